#!/usr/bin/env bash
# A listening TCP socket that is shut down, and its port.
#
# 1. If the kernel has chosen the port (bind(2) to port 0), shutdown(2) gives it back: another socket can bind it at once, and
#    a later listen(2) chooses another port. getsockname(2) still returns the old port, so a program that calls it
#    does not notice. bind(2) to that port succeeds, although the socket had been bound before, and then listen(2)
#    keeps it.
# 2. If the port was given, it stays: others get EADDRINUSE, and bind(2) on the socket itself fails with EINVAL. This
#    shows which of the two cases it is.
#
# Needs python3; installs nothing. Exits with 1 if the behaviour has changed.
set -euo pipefail
echo "kernel $(uname -r), $(python3 --version)"
python3 - <<'PYTHON'
import errno, socket, sys

changed = []


def check(name, seen, expected):
    print(f"{name}: {seen}")
    if seen != expected:
        changed.append(f"{name}: expected {expected}")


def listener(port):
    s = socket.socket()
    s.bind(("127.0.0.1", port))
    s.listen()
    return s


def bind(s, port):
    try:
        s.bind(("127.0.0.1", port))
        return "bound"
    except OSError as error:
        return errno.errorcode[error.errno]


def shut_down(port):
    """Returns a listener that is shut down, the port that it had, and what is true of that port now."""
    s = listener(port)
    port = s.getsockname()[1]
    s.shutdown(socket.SHUT_RD)
    with socket.socket() as other:
        return s, port, (s.getsockname()[1] == port, bind(other, port))


s, port, state = shut_down(0)
check("port 0: getsockname(2) shows the old port, another socket", state, (True, "bound"))
check("port 0: the socket itself", bind(s, port), "bound")
s.listen()
check("port 0: after bind(2) and listen(2), the same port", s.getsockname()[1], port)
s.close()

s, port, _ = shut_down(0)
with socket.socket() as other:
    # Otherwise the kernel may choose the same port once more.
    bind(other, port)
    s.listen()
    check("port 0: after listen(2) alone, the same port", s.getsockname()[1] == port, False)
s.close()

with socket.socket() as free:
    bind(free, 0)
    port = free.getsockname()[1]
s, port, state = shut_down(port)
check("a given port: getsockname(2) shows it, another socket", state, (True, "EADDRINUSE"))
check("a given port: the socket itself", bind(s, port), "EINVAL")
s.listen()
check("a given port: after listen(2), the same port", s.getsockname()[1], port)
if changed:
    sys.exit("changed:\n" + "\n".join(changed))
PYTHON
