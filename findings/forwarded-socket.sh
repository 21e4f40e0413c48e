#!/usr/bin/env bash
# A Unix socket that ssh(1) forwards (-L), when nothing can be reached at the other end.
#
# 1. ExitOnForwardFailure=yes does not notice that the remote path has no listener: connect(2) to the local socket
#    succeeds, and then the stream ends, as with a server that accepts and closes.
# 2. The only trace is a line of ssh at LogLevel=INFO, "open failed: connect failed: open failed". It is the same for
#    ENOENT and ECONNREFUSED, and at LogLevel=ERROR there is none. So a program that uses the tunnel detects a missing
#    server only by that text, and cannot find out why it is missing.
#
# Needs root (for sshd in a mount namespace of its own), openssh-client, openssh-server and python3. Exits with 1 if the
# behaviour has changed.
set -euo pipefail
if [[ ${1:-} != inside ]]; then
  exec unshare --mount --propagation private bash "$0" inside
fi
export PATH=$PATH:/usr/sbin
ssh -V 2>&1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mount -t tmpfs tmpfs /run
mkdir -m 755 /run/sshd
ssh-keygen -q -t ed25519 -N '' -f "$dir/host"
ssh-keygen -q -t ed25519 -N '' -f "$dir/user"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat > "$dir/sshd_config" <<CONFIG
ListenAddress 127.0.0.1:$port
HostKey $dir/host
AuthorizedKeysFile $dir/user.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
CONFIG

python3 - "$dir" "$port" "$(command -v sshd)" <<'PYTHON'
import socket, subprocess, sys

directory, port, sshd = sys.argv[1:]
changed = []


def check(name, seen, expected):
    print(f"{name}: {seen}")
    if seen != expected:
        changed.append(f"{name}: expected {expected}")


def attempt(name, remote, level):
    """Connects through a tunnel; returns the result, whether ssh goes on, and what it said about the channel."""
    local = f"{directory}/{name}"
    options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ExitOnForwardFailure=yes"]
    options += [f"LogLevel={level}", "ControlPath=none"]
    command = ["ssh", "-F", "none", "-T", "-i", f"{directory}/user", "-p", port, "-L", f"{local}:{remote}"]
    for option in options:
        command += ["-o", option]
    command += ["root@127.0.0.1", "echo ready; exec cat"]
    pipe = subprocess.PIPE
    ssh = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    # The session begins when the local socket is there.
    ready = ssh.stdout.readline()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(local)
        end = client.recv(1)
    goes_on = ready == "ready\n" and ssh.poll() is None
    _, said = ssh.communicate()
    said = [line.split(": ", 1)[1].strip() for line in said.splitlines() if "open failed" in line]
    return ("connected, then the end" if end == b"" else end, goes_on, said)


server = subprocess.Popen([sshd, "-D", "-e", "-f", f"{directory}/sshd_config"], stderr=subprocess.PIPE, text=True)
while "Server listening" not in (line := server.stderr.readline()):
    if not line:
        sys.exit("sshd has ended")
# A socket whose server has gone, and a path that does not exist.
stale = socket.socket(socket.AF_UNIX)
stale.bind(f"{directory}/stale")
stale.close()
line = ["open failed: connect failed: open failed"]
for kind, path in [("ENOENT", f"{directory}/nothing"), ("ECONNREFUSED", f"{directory}/stale")]:
    check(f"{kind}, INFO", attempt(kind + ".info", path, "INFO"), ("connected, then the end", True, line))
    check(f"{kind}, ERROR", attempt(kind + ".error", path, "ERROR"), ("connected, then the end", True, []))

server.terminate()
server.wait()
if changed:
    sys.exit("changed:\n" + "\n".join(changed))
PYTHON
