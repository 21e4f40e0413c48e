"""An app without a library, for many requests at a time. Its first argument is the file to which it appends a line for
each request that it begins, the request's number and attempt, and another one when it answers. Its second argument is
its concurrency. The first attempt of a request waits until the file `until` exists, the second one until the file `then`
does."""

import heapq
import json
import os
import select
import socket
import struct
import sys
import time

wire = socket.socket(fileno=3)
wire.set_inheritable(False)
journal = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def send(frames):
    wire.sendall(b"".join(struct.pack("<I", len(frame)) + frame for frame in frames))


def hello():
    methods = [
        {"name": "price", "idempotent": True},
        {"name": "order"},
        {"name": "pid", "idempotent": True},
        {"name": "exit"},
        {"name": "stop", "idempotent": True},
    ]
    value = {"hello": 1, "methods": methods, "concurrency": int(sys.argv[2]), "name": "shop", "version": "1.4"}
    send([json.dumps(value).encode()])


def begin(request):
    """Returns when the answer is due, and the answer with its line. Returns None if it is due when a file exists."""
    params = request.get("params") or {}
    number = params.get("n", 0)
    line = b"%d %d" % (number, request["attempt"])
    os.write(journal, line + b"\n")
    if request["in"] == "exit":
        print("no more stock", file=sys.stderr, flush=True)
        os._exit(params["status"])
    if request["in"] == "stop" and request["attempt"] == 1:
        # Children of this process hold descriptor 3 no longer than it does.
        os.kill(os.getpid(), 19)
    if until := params.get("until" if request["attempt"] == 1 else "then"):
        waiting.append((until, request["id"], number, line))
        return None
    result = os.getpid() if request["in"] == "pid" else number
    answer = json.dumps({"id": request["id"], "result": result}).encode()
    return time.monotonic() + params.get("ms", 0) / 1000, request["id"], answer, line


hello()
pending, received, waiting = [], b"", []
while True:
    wait = max(0, pending[0][0] - time.monotonic()) if pending else None
    if waiting:
        wait = 0.005
    if select.select([wire], [], [], wait)[0]:
        chunk = wire.recv(1 << 20)
        if not chunk:
            os._exit(0)
        received += chunk
        while len(received) >= 4:
            length = struct.unpack("<I", received[:4])[0]
            if len(received) < 4 + length:
                break
            frame = json.loads(received[4 : 4 + length])
            received = received[4 + length :]
            if "in" in frame:
                if begun := begin(frame):
                    heapq.heappush(pending, begun)
            elif "probe" in frame:
                send([json.dumps({"alive": frame["probe"]}).encode()])
    for item in [item for item in waiting if os.path.exists(item[0])]:
        waiting.remove(item)
        answer = json.dumps({"id": item[1], "result": item[2]}).encode()
        heapq.heappush(pending, (0, item[1], answer, item[3]))
    due = []
    while pending and pending[0][0] <= time.monotonic():
        _, _, answer, line = heapq.heappop(pending)
        due.append(answer)
        os.write(journal, line + b" done\n")
    if due:
        send(due)
