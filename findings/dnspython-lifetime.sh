#!/usr/bin/env bash
# How long a lookup of dnspython takes when no nameserver answers, compared with the `lifetime` that its caller has set.
#
# The manual calls `lifetime` the total number of seconds to spend trying to get an answer. dnspython 2.9.2 asks all
# nameservers once with `timeout` each, sleeps 0.1 s, asks again, sleeps 0.2 s, and so on; each sleep is twice as long as
# the one before, up to 2 s. The limit is looked at after a sleep and not before it, and a sleep is not shortened.
# Observed on loopback, with one silent nameserver and a timeout of 0.05 s:
#  - with a lifetime of 1.0 s the lookup ends after 1.7 s: the sleep of 0.8 s began at 0.9 s;
#  - with a lifetime of 0.5 s it ends after 0.85 s, of 0.4 s after 0.4 s, because a sleep ends just then;
#  - with a timeout as long as the lifetime, 1.0 s, there is one sleep of 0.1 s, so it ends after 1.1 s;
#  - dns.asyncresolver waits equally long.
# A caller with a deadline has to set a lifetime that is about half of it, or run the lookup in a thread that it need not
# wait for.
#
# Needs Python 3.9 and the network for pip.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-deps --disable-pip-version-check --root-user-action ignore \
    --target "$folder/packages" dnspython==2.9.2
cat > "$folder/lifetime.py" <<'PYTHON'
import asyncio
import socket
import sys
import time

import dns.asyncresolver
import dns.exception
import dns.resolver
import dns.version

failed = False
print(f"dnspython {dns.version.version}, Python {sys.version.split()[0]}")


def configured(kind, nameserver, timeout, lifetime):
    resolver = kind(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = nameserver
    resolver.timeout, resolver.lifetime = timeout, lifetime
    return resolver


def took(ask):
    begin = time.monotonic()
    try:
        ask()
    except dns.exception.Timeout:
        return time.monotonic() - begin
    sys.exit("a nameserver that is silent has answered")


def check(what, seconds, least, most):
    global failed
    is_so = least <= seconds <= most
    failed |= not is_so
    print(f"{'as seen' if is_so else 'CHANGED'}: {what}: {seconds:.2f} s")


with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
    silent.bind(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    blocking, waiting = dns.resolver.Resolver, dns.asyncresolver.Resolver

    def resolve(timeout, lifetime):
        resolver = configured(blocking, port, timeout, lifetime)
        return took(lambda: resolver.resolve("_service._tcp.example.net", "SRV"))

    def resolve_async(timeout, lifetime):
        resolver = configured(waiting, port, timeout, lifetime)
        return took(lambda: asyncio.run(resolver.resolve("_service._tcp.example.net", "SRV")))

    # A busy machine makes them longer.
    check("lifetime 1.0, timeout 0.05", resolve(0.05, 1.0), 1.6, 3.0)
    check("lifetime 0.5, timeout 0.05", resolve(0.05, 0.5), 0.8, 1.4)
    check("lifetime 0.4, timeout 0.05", resolve(0.05, 0.4), 0.4, 0.7)
    check("lifetime 1.0, timeout 1.0", resolve(1.0, 1.0), 1.08, 1.6)
    check("lifetime 1.0, timeout 0.05, asyncio", resolve_async(0.05, 1.0), 1.6, 3.0)

sys.exit("the behaviour has changed" if failed else 0)
PYTHON
PYTHONPATH="$folder/packages" python3 "$folder/lifetime.py"
