#!/usr/bin/env bash
# A listening socket that one process has shut down, as the kernel shows it to other processes that share it.
#
# 1. Unix: after shutdown(2), accept(2) always fails with EAGAIN, SO_ACCEPTCONN is still 1 and listen(2) succeeds, but
#    poll(2) reports POLLIN. After SHUT_RD alone poll(2) does not report POLLHUP either; only POLLRDHUP, if requested,
#    shows that no client can connect any more. A server that calls accept(2) whenever poll(2) reports POLLIN loops.
# 2. TCP: after shutdown(2), accept(2) fails with EINVAL; listen(2) makes the socket a working listener again.
# 3. TCP: after `ss -K`, listen(2) also succeeds and clients connect, but accepted sockets are shut down from the start: the
#    server can neither read what clients send nor write (EPIPE). This part needs root, ss(8) and INET_DIAG_DESTROY.
#
# Needs python3; installs nothing. Exits with 1 if the behaviour has changed.
set -euo pipefail
echo "kernel $(uname -r), $(python3 --version), $(ss --version 2>/dev/null || echo 'no ss')"
python3 - <<'PYTHON'
import os, select, socket, subprocess, sys, tempfile

NAMES = [(select.POLLIN, "IN"), (select.POLLHUP, "HUP"), (select.POLLRDHUP, "RDHUP")]
changed = []

def events(s):
    poll = select.poll()
    poll.register(s, select.POLLIN | select.POLLRDHUP)
    mask = sum(m for _, m in poll.poll(0))
    return "|".join(name for bit, name in NAMES if mask & bit) or "-"

def accept(s):
    s.setblocking(False)
    try:
        s.accept()
        return "a client"
    except OSError as e:
        return {11: "EAGAIN", 22: "EINVAL"}.get(e.errno, str(e))

def show(what, found, expected):
    print(f"{what}: {found}")
    if found != expected:
        changed.append(f"{what}: expected {expected}")

directory = tempfile.mkdtemp()
for how, name, expected in [(socket.SHUT_RDWR, "SHUT_RDWR", "IN|HUP|RDHUP"), (socket.SHUT_RD, "SHUT_RD", "IN|RDHUP")]:
    path = os.path.join(directory, name)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(path)
    unix.listen(5)
    unix.shutdown(how)
    unix.listen(5)
    accepting = unix.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        connects = "connects"
    except ConnectionRefusedError:
        connects = "refused"
    found = (events(unix), accept(unix), f"SO_ACCEPTCONN {accepting}", connects)
    show(f"Unix, {name}, listen", found, (expected, "EAGAIN", "SO_ACCEPTCONN 1", "refused"))
    os.unlink(path)
os.rmdir(directory)

def client_of(listener):
    client = socket.create_connection(listener.getsockname(), 5)
    listener.setblocking(True)
    server, _ = listener.accept()
    server.settimeout(5)
    client.sendall(b"x")
    try:
        read = server.recv(1)
    except ConnectionResetError:
        read = b""
    try:
        server.send(b"y")
        written = "sent"
    except OSError as e:
        written = type(e).__name__
    return read, written

tcp = socket.create_server(("127.0.0.1", 0))
tcp.shutdown(socket.SHUT_RDWR)
show("TCP, SHUT_RDWR", accept(tcp), "EINVAL")
tcp.listen(5)
show("TCP, SHUT_RDWR, listen", client_of(tcp), (b"x", "sent"))

tcp = socket.create_server(("127.0.0.1", 0))
command = ["ss", "-K", "-H", "-t", "state", "listening", f"sport = :{tcp.getsockname()[1]}"]
try:
    killed = subprocess.run(command, capture_output=True, text=True).stdout.strip()
except FileNotFoundError:
    killed = ""
if not killed:
    print("TCP, ss -K: skipped, it needs root, ss(8) and INET_DIAG_DESTROY")
else:
    show("TCP, ss -K", accept(tcp), "EINVAL")
    tcp.listen(5)
    show("TCP, ss -K, listen", client_of(tcp), (b"", "BrokenPipeError"))

for change in changed:
    print("CHANGED", change)
sys.exit(bool(changed))
PYTHON
