#!/usr/bin/env bash
# TCP Fast Open: until the handshake is complete (SYN_RECV), the socket can be read and written, but SIOCINQ, SIOCOUTQ and
# SIOCOUTQNSD report 0 even if its queues contain data. TCP_INFO and MSG_PEEK report the contents, except for bytes in
# flight, of which only the number of segments is known (tcpi_unacked). tcpi_bytes_sent does not help: it also counts
# segments that this host's queueing discipline dropped and that are still in tcpi_notsent_bytes.
#
# Needs root or user namespaces, unshare(1), ip(8), tc(8) with tbf, python3. Changes nothing outside a network namespace.
set -euo pipefail
script=$(mktemp)
trap 'rm -f "$script"' EXIT
cat >"$script" <<'PYTHON'
import fcntl, select, socket, struct, subprocess, sys, time

SIOCINQ, SIOCOUTQ, SIOCOUTQNSD, TCP_INFO = 0x541B, 0x5411, 0x894B, 11

def ioctl(sock, number):
    return struct.unpack("i", fcntl.ioctl(sock, number, bytes(4)))[0]

def seen(sock):
    info = sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 256)
    field = lambda kind, at: struct.unpack_from(kind, info, at)[0]
    try:
        peeked = len(sock.recv(65536, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        peeked = 0
    return {
        "state": info[0], "SIOCINQ": ioctl(sock, SIOCINQ), "peeked": peeked, "bytes_received": field("Q", 128),
        "SIOCOUTQ": ioctl(sock, SIOCOUTQ), "SIOCOUTQNSD": ioctl(sock, SIOCOUTQNSD), "unacked": field("I", 24),
        "notsent_bytes": field("I", 144), "bytes_sent": field("Q", 200),
    }

def expect(what, found, wanted):
    print(f"{what}: {found}")
    wrong = {key: found[key] for key in wanted if found[key] != wanted[key]}
    if wrong:
        sys.exit(f"changed: {wrong}, and not {wanted}")

def wait_until(is_so):
    """Checks every 10 ms for at most 20 s. The caller compares the result in any case."""
    deadline = time.monotonic() + 20
    while not is_so() and time.monotonic() < deadline:
        select.select([], [], [], 0.01)

# Clients and listeners, data in the SYN without a cookie, every listener (ip-sysctl.rst).
with open("/proc/sys/net/ipv4/tcp_fastopen", "w") as switch:
    switch.write("1543")
listener = socket.create_server(("127.0.0.1", 0))
# The SYN passes; after it hardly anything passes for minutes. Packets longer than the burst are dropped.
subprocess.run("tc qdisc add dev lo root tbf rate 8bit burst 600 limit 1m".split(), check=True)
client = socket.socket()
client.setblocking(False)
client.sendto(b"x" * 480, socket.MSG_FASTOPEN, listener.getsockname())
server, _ = listener.accept()
server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
SYN_RECV = {"state": 3, "SIOCINQ": 0, "SIOCOUTQ": 0, "SIOCOUTQNSD": 0}
expect("accepted", seen(server), SYN_RECV | {"peeked": 480, "bytes_received": 480})
server.recv(80)
expect("80 bytes read", seen(server), SYN_RECV | {"peeked": 400, "bytes_received": 480})
server.send(b"y" * 100)
expect("100 bytes written, in flight", seen(server), SYN_RECV | {"unacked": 1, "notsent_bytes": 0, "bytes_sent": 100})
server.send(b"z" * 1000)
# The queueing discipline drops the segment at once; the kernel's timer retries later.
wait_until(lambda: seen(server)["bytes_sent"] > 100)
found = seen(server)
expect("1000 more written, too long for the link", found, SYN_RECV | {"unacked": 1, "notsent_bytes": 1000})
if found["bytes_sent"] <= 100:
    sys.exit("changed: bytes_sent does not count what was dropped on this host")
subprocess.run("tc qdisc del dev lo root".split(), check=True)
wait_until(lambda: seen(server)["state"] != 3)
expect("handshake complete", seen(server), {"state": 1, "SIOCINQ": 400, "peeked": 400})
PYTHON
uname -sr
python3 --version
# shellcheck disable=SC2016 # $0 is the argument of the inner shell
unshare -rn sh -c 'ip link set lo up && exec python3 "$0"' "$script"
