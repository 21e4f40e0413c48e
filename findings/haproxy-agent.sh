#!/usr/bin/env bash
# HAProxy's agent-check: what becomes of a server for each reply of its agent.
#
# 1. A reply is one line with a newline at its end. Without it, it is ignored, as is a byte NUL, an unknown word (`failed`,
#    but `fail` is one) and `33.5%`. Everything after the first newline is ignored; of several words of a kind only the last counts.
# 2. `drain` and `maint` last until `ready`: `up 100%` does not end them. `down` lasts until `up`: `ready` does not end it.
# 3. `ready` ends a drain that an operator has ordered (`set server … state drain`). A percentage and `up` do not.
# 4. `up 0%` keeps new clients away as `drain` does, and the next percentage ends it.
# 5. A percentage is a share of the configured weight, cut at 256. `-5%` is 256; `maxconn:-1` is 4294967295. With the default
#    weight of 1, each percentage below 100 is 0.
# 6. The last word stays in force when the agent is gone, and when it closes without a line.
#
# So an agent that never sends `ready`, `drain` or `maint` leaves the operator's own orders in force.
#
# Seen with HAProxy 2.6.12 (Debian 12); the words also with 2.8.25 and 3.0.11. Needs haproxy and python3. Exits with 1 if the
# behaviour has changed.
set -euo pipefail
export PATH=$PATH:/usr/sbin
directory=$(mktemp -d)
trap 'rm -r "$directory"' EXIT
haproxy -v | sed -n 1p
python3 - "$directory" <<'PYTHON'
import csv, re, socket, subprocess, sys, threading, time

directory = sys.argv[1]
changed = []


class Agent:
    """An agent that gives the same reply until it gets another one."""

    def __init__(self, port=0):
        self.socket = socket.create_server(("127.0.0.1", port))
        self.port = self.socket.getsockname()[1]
        self.reply = b"up 100%\n"
        self.given = 0
        self.changed = threading.Condition()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            with client, self.changed:
                try:
                    client.sendall(self.reply)
                except OSError:
                    # HAProxy has ended the check.
                    continue
                self.given += 1
                self.changed.notify_all()

    def say(self, reply):
        """Gives this reply, three times at least. HAProxy has acted on the first when it asks for the next."""
        with self.changed:
            self.reply, begin = reply, self.given
            done = self.changed.wait_for(lambda: self.given >= begin + 3, timeout=60)
        assert done, "HAProxy does not ask its agent"

    def end(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def ask(command):
    end = time.monotonic() + 60
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as control:
                control.connect(f"{directory}/haproxy.sock")
                control.sendall(command.encode() + b"\n")
                text = b"".join(iter(lambda: control.recv(65536), b"")).decode()
            if text.strip() or not command.startswith("show"):
                return text
        except (FileNotFoundError, ConnectionRefusedError):
            pass
        if time.monotonic() > end:
            sys.exit("HAProxy does not start")
        threading.Event().wait(0.02)


def server(name="a"):
    rows = csv.DictReader(ask("show stat").removeprefix("# ").splitlines())
    return next(row for row in rows if (row["pxname"], row["svname"]) == ("rpc", name))


def state(name="a"):
    row = server(name)
    # "UP 1/3" is a server whose own check has not succeeded often enough.
    status = re.sub(r" \d+/\d+$", "", row["status"])
    return status, row["weight"], row["slim"] or "none"


def check(what, seen, expected):
    print(f"{what}: {seen}")
    if seen != expected:
        changed.append(f"{what}: expected {expected}")


agent, small = Agent(), Agent()
target = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=lambda: [target.accept() for _ in iter(int, 1)], daemon=True).start()
with socket.create_server(("127.0.0.1", 0)) as free:
    frontend = free.getsockname()[1]
with open(f"{directory}/haproxy.cfg", "w") as file:
    file.write(f"""
global
    stats socket {directory}/haproxy.sock level admin
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
listen rpc
    bind 127.0.0.1:{frontend}
    server a 127.0.0.1:{target.getsockname()[1]} weight 100 check agent-check agent-port {agent.port} agent-inter 100ms
    server b 127.0.0.1:{target.getsockname()[1]} check agent-check agent-port {small.port} agent-inter 100ms
""")
process = subprocess.Popen(["haproxy", "-db", "-f", f"{directory}/haproxy.cfg"])
try:
    full = ("UP", "100", "none")
    # Steps in their order: each begins where the one before has left the server.
    steps = [
        (b"up 100%\n", full),
        (b"75%\n", ("UP", "75", "none")),
        (b"up 25%\r\n", ("UP", "25", "none")),
        (b"up 40%", ("UP", "25", "none")),
        (b"up 40%\0\n", ("UP", "25", "none")),
        (b"failed\n", ("UP", "25", "none")),
        (b"33.5%\n", ("UP", "25", "none")),
        (b"", ("UP", "25", "none")),
        (b"up 50%\ndrain\n", ("UP", "50", "none")),
        (b"up 0% #drained\n", ("UP", "0", "none")),
        (b"up 100%\n", full),
        (b"300%\n", ("UP", "256", "none")),
        (b"-5%\n", ("UP", "256", "none")),
        (b"up 100%\n", full),
        (b"drain\n", ("DRAIN (agent)", "100", "none")),
        (b"up 100%\n", ("DRAIN (agent)", "100", "none")),
        (b"ready\n", full),
        (b"maint\n", ("MAINT", "100", "none")),
        (b"up 100%\n", ("MAINT", "100", "none")),
        (b"ready\n", full),
        (b"down #reason\n", ("DOWN (agent)", "100", "none")),
        (b"ready\n", ("DOWN (agent)", "100", "none")),
        (b"up\n", full),
        (b"fail\n", ("DOWN (agent)", "100", "none")),
        (b"up\n", full),
        (b"down up\n", full),
        (b"up down\n", ("DOWN (agent)", "100", "none")),
        (b"up\n", full),
        (b"maxconn:30\n", ("UP", "100", "30")),
        (b"maxconn:-1\n", ("UP", "100", "4294967295")),
        (b"maxconn:0\n", full),
    ]
    for reply, expected in steps:
        agent.say(reply)
        check(repr(reply.decode()), state(), expected)

    for reply, expected in [(b"up 90%\n", "0"), (b"up 100%\n", "1")]:
        small.say(reply)
        check(f"default weight, {reply.decode()!r}", server("b")["weight"], expected)

    for reply, expected in [(b"up 70%\n", "DRAIN (agent)"), (b"up\n", "DRAIN (agent)"), (b"ready\n", "UP")]:
        agent.say(b"up 100%\n")
        ask("set server rpc/a state drain")
        agent.say(reply)
        check(f"an operator's drain, then {reply.decode()!r}", state()[0], expected)
        ask("set server rpc/a state ready")

    agent.say(b"up 0%\n")
    agent.end()
    # Until HAProxy has found that the agent is gone.
    end = time.monotonic() + 60
    while server()["agent_status"] not in ("L4CON", "* L4CON"):
        assert time.monotonic() < end, server()
        threading.Event().wait(0.02)
    check("the agent is gone", state(), ("UP", "0", "none"))
finally:
    process.kill()
    process.wait()
if changed:
    sys.exit("changed:\n" + "\n".join(changed))
PYTHON
