"""An app without a library that starts when its test wants it. Its argument is a directory:

hold        while this file exists, it does not send its hello
kill        the number of starts at which it kills the master instead, which is the parent of its parent
journal     it appends a line for each request that it begins: number, attempt, pid
"""

import json
import os
import random
import select
import signal
import socket
import struct
import sys

place = sys.argv[1]
wire = socket.socket(fileno=3)
wire.set_inheritable(False)
journal = os.open(f"{place}/journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def send(record):
    frame = json.dumps(record).encode()
    wire.sendall(struct.pack("<I", len(frame)) + frame)


def receive(length):
    data = b""
    while len(data) < length:
        chunk = wire.recv(length - len(data))
        if not chunk:
            os._exit(0)
        data += chunk
    return data


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")")[1].split()[0] not in "ZX"
    except OSError:
        return False


kills = int(open(f"{place}/kill").read()) if os.path.exists(f"{place}/kill") else 0
if kills:
    select.select([wire], [], [], random.random() / 20)
    with open(f"/proc/{os.getppid()}/stat") as file:
        master = int(file.read().rsplit(")")[1].split()[1])
    with open(f"{place}/kill", "w") as file:
        file.write(str(kills - 1))
    os.kill(master, signal.SIGKILL)
while os.path.exists(f"{place}/hold"):
    # The end of the worker ends the app.
    if select.select([wire], [], [], 0.002)[0]:
        os._exit(0)
methods = [{"name": "order"}, {"name": "large", "idempotent": True}]
send({"hello": 1, "methods": methods, "concurrency": 8})
memory = None
while True:
    request = json.loads(receive(struct.unpack("<I", receive(4))[0]))
    if "in" not in request:
        continue
    number = request["params"]["n"]
    os.write(journal, b"%d %d %d\n" % (number, request["attempt"], os.getpid()))
    if request["in"] == "large":
        if request["attempt"] == 1:
            # A process with much memory takes long to end.
            memory = bytearray(b"x" * (1 << 30))
            with open(f"{place}/large", "w") as file:
                file.write(str(os.getpid()))
            os.rename(f"{place}/large", f"{place}/is_large")
            continue
        number = is_running(int(open(f"{place}/is_large").read()))
    send({"id": request["id"], "result": number})
