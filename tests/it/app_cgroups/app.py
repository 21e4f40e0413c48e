"""An app without a library that starts a process out of its reach: in a session and a process group of its own, without
a parent, and without open descriptors. Its method returns the pid of that process and its own."""

import json
import os
import signal
import socket
import struct


def start_stray():
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(theirs, b"%d" % os.getpid())
            os.closerange(0, 64)
            while True:
                signal.pause()
        os._exit(0)
    os.wait()
    pid = int(os.read(ours, 16))
    os.close(ours)
    os.close(theirs)
    return pid


def send(value):
    frame = json.dumps(value).encode()
    wire.sendall(struct.pack("<I", len(frame)) + frame)


def receive(length):
    data = b""
    while len(data) < length:
        chunk = wire.recv(length - len(data))
        if not chunk:
            os._exit(0)
        data += chunk
    return data


stray = start_stray()
wire = socket.socket(fileno=3)
send({"hello": 1, "methods": [{"name": "pids", "idempotent": True}]})
while True:
    request = json.loads(receive(struct.unpack("<I", receive(4))[0]))
    if "in" in request:
        send({"id": request["id"], "result": [os.getpid(), stray]})
    elif "probe" in request:
        send({"alive": request["probe"]})
