"""The app of the tests, without a library."""

import json
import os
import signal
import socket
import struct
import subprocess
import time

wire = socket.socket(fileno=3)
wire.set_inheritable(False)
frames = wire.makefile("rb")
for number in signal.SIGHUP, signal.SIGINT, signal.SIGTERM:
    signal.signal(number, lambda *_: None)
# A process in a session of its own, which has no open descriptors of the app.
subprocess.Popen(["tail", "-f", "/dev/null"], stdin=0, stdout=0, stderr=0, start_new_session=True)
orders = open(os.environ["ORDERS"], "a", buffering=1)


def send(message):
    body = json.dumps(message).encode()
    wire.sendall(struct.pack("<I", len(body)) + body)


def read(length):
    return frames.read(length) or os._exit(0)


def execute(method, params):
    if method == "order":
        print(params["number"], file=orders)
        time.sleep(params["ms"] / 1000)
        return params["number"]
    time.sleep(0.002)
    return params


send({"hello": 1, "methods": [{"name": "echo", "idempotent": True}, {"name": "order"}]})
while True:
    message = json.loads(read(*struct.unpack("<I", read(4))))
    if "in" in message:
        send({"id": message["id"], "result": execute(message["in"], message["params"])})
    if "probe" in message:
        send({"alive": message["probe"]})
