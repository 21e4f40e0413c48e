"""An app without any library, with one mistake: app.py MISTAKE. Without a mistake it passes all checks."""

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

MISTAKE = sys.argv[1] if len(sys.argv) > 1 else ""
THREADS = MISTAKE in ("threads", "joins")
CONCURRENCY = 8 if THREADS or MISTAKE in ("loses", "in-order", "one-frame") else 1

if "FDPASSD_APP" not in os.environ:
    if MISTAKE == "by-hand":
        sys.exit(3)
    print("this is an app", file=sys.stderr)
    sys.exit(64)

MAX_FRAME = int(os.environ["FDPASSD_MAX_FRAME"])
wire = socket.socket(fileno=3)
wire.set_inheritable(MISTAKE == "inheritable")
if MISTAKE == "copy":
    os.dup2(3, 9, inheritable=True)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    if not (MISTAKE == "dies-of-SIGTERM" and number == signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
lock = threading.Lock()
# As standard output is, a pipe, unless the environment has PYTHONUNBUFFERED.
output = os.fdopen(1, "w", closefd=False)


def send_body(body):
    with lock:
        frame = struct.pack("<I", len(body)) + body
        if MISTAKE == "stdout":
            os.write(1, frame)
        elif MISTAKE == "no-drain":
            # As a write that does not block, to a socket that is full.
            os.write(3, frame[:65536])
        else:
            wire.sendall(frame)


def send(message):
    send_body(json.dumps(message).encode())


def exactly(length):
    body = b""
    while len(body) < length:
        piece = wire.recv(length - len(body))
        if not piece:
            end()
        body += piece
        if MISTAKE == "one-read":
            break
    return body


def frames():
    """Yields messages."""
    while True:
        if MISTAKE in ("one-frame", "loses"):
            data = wire.recv(1 << 20) or end()
            # Bytes after the first frame are lost.
            yield json.loads(data[4 : 4 + struct.unpack("<I", data[:4])[0]])
        else:
            body = exactly(struct.unpack("<I", exactly(4))[0])
            try:
                message = json.loads(body)
            except (RecursionError, ValueError) as error:
                kind = "depth" if isinstance(error, RecursionError) else "digits"
                if MISTAKE == f"dies-of-{kind}" or isinstance(error, json.JSONDecodeError):
                    raise
                # The JSON is valid, but more than Python accepts.
                fault({"id": int(body[6 : body.index(b",")])}, "bad_params", type(error).__name__)
                continue
            yield message


def end():
    if MISTAKE == "stays":
        time.sleep(600)
    if MISTAKE == "joins":
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join()
    os._exit(1 if MISTAKE == "status" else 0)


def result(request, value):
    message = {"id": request["id"], "result": value}
    if MISTAKE == "no-null" and value is None:
        del message["result"]
    if MISTAKE == "wrong-id":
        message["id"] += 1
    body = json.dumps(message, allow_nan=True).encode()
    if MISTAKE == "not-json":
        body = b'{"id":%d,"result":NaN}' % request["id"]
    if len(body) > MAX_FRAME and MISTAKE != "too-long":
        fault(request, "internal", "the result is too long")
        return
    send_body(body)
    if MISTAKE == "twice":
        send_body(body)


def fault(request, code, message):
    send({"id": request["id"], "error": {"code": code, "message": message}})


def answer(request):
    method, params = request["in"], request.get("params")
    if method == "check_echo":
        if MISTAKE == "mangles" and isinstance(params, str):
            params = params.encode().decode("latin-1")
        if MISTAKE == "rounds" and isinstance(params, int):
            params = int(float(params))
        result(request, params)
    elif method == "check_sleep":
        time.sleep(params / 1000)
        if MISTAKE != "no-answer-if-cancelled" or params < 1000:
            result(request, None)
    elif method == "check_fault":
        fault(request, "internal" if MISTAKE == "one-code" else params["code"], params["message"])
    elif method == "check_crash":
        if MISTAKE == "crash-result":
            result(request, "oops")
            return
        code = "failure" if MISTAKE == "crash-code" else "crashed"
        fault(request, code, 'Traceback:\n  File "/app.py"' if MISTAKE == "traceback" else "KeyError")
    elif method == "check_null":
        result(request, False if MISTAKE == "false" else None)
    elif method == "check_spawn":
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
            try:
                file = os.readlink(f"/proc/{child.pid}/fd/3")
            except OSError:
                file = ""
            # Its dynamic loader opens files with this number.
            result(request, {"open": file.startswith("socket:")})
    elif method == "check_print":
        print(params, file=output, flush=MISTAKE != "buffers")
        result(request, None)


NAMES = ["check_" + name for name in "echo sleep fault crash null spawn print".split()]
METHODS = [{"name": name, "idempotent": True} for name in NAMES]
HELLO = {"hello": 1, "methods": METHODS, "concurrency": CONCURRENCY, "closes": True, "later": {}}
METRICS = {
    "metric-name": [{"name": "x" * 59, "type": "counter"}],
    "metric-twice": [{"name": name, "type": "counter"} for name in ("orders", "orders_total")],
    "metric-help": [{"name": "x", "type": "counter", "help": "y" * 129}],
    "metric-end": [{"name": "x_count", "type": "histogram"}],
    "metric-buckets": [{"name": "x", "type": "histogram", "buckets": [2, 1]}],
    "metrics": [{"name": f"x{n}", "type": "counter"} for n in range(65)],
    "fraction": [{"name": "orders", "type": "counter"}],
    "huge-count": [{"name": "orders", "type": "counter"}],
    "counted-histogram": [{"name": "orders", "type": "histogram"}],
}
if MISTAKE in METRICS:
    HELLO["metrics"] = METRICS[MISTAKE]
if MISTAKE == "few-methods":
    HELLO["methods"] = [{"name": "twice"}]
    del HELLO["closes"]
elif MISTAKE == "version":
    HELLO["hello"] = 2
elif MISTAKE == "no-methods":
    del HELLO["methods"]
elif MISTAKE == "own-name":
    METHODS.append({"name": "ping"})
elif MISTAKE == "bad-name":
    METHODS.append({"name": "Ping"})
elif MISTAKE == "bad-reply":
    METHODS.append({"name": "a", "reply": "error"})
elif MISTAKE == "double-name":
    METHODS.append(METHODS[0])
elif MISTAKE == "concurrency":
    HELLO["concurrency"] = 0
elif MISTAKE == "exits":
    sys.exit("no module named shop")
elif MISTAKE == "silent":
    time.sleep(600)
elif MISTAKE == "fails":
    send({"failed": "no database"})
    sys.exit(1)
elif MISTAKE == "early":
    send({"alive": 1})
elif MISTAKE == "prints-on-3":
    os.write(3, b"hello, world\n")
elif MISTAKE == "no-object":
    send([1, 2])
elif MISTAKE == "closes-3":
    wire.close()
    time.sleep(600)
send(HELLO)
if MISTAKE == "hello-twice":
    send(HELLO)
elif MISTAKE == "undeclared":
    send({"metrics": {"orders": 1}})
elif MISTAKE in ("fraction", "huge-count", "counted-histogram"):
    send({"metrics": {"orders": {"fraction": 0.5, "huge-count": 1e300}.get(MISTAKE, 1)}})

for message in frames():
    if "in" in message:
        if THREADS and message["in"] == "check_sleep":
            threading.Thread(target=answer, args=[message], daemon=True).start()
        else:
            answer(message)
    elif "probe" in message:
        if MISTAKE == "probe-number":
            send({"alive": 77})
        elif MISTAKE != "no-probe":
            send({"alive": message["probe"]})
    elif "stop" in message:
        if MISTAKE == "no-drain":
            os._exit(0)
        if MISTAKE == "stop-status":
            os._exit(2)
    elif "closed" in message:
        if MISTAKE == "closed":
            raise KeyError(message["closed"])
    elif "cancel" not in message and MISTAKE == "strict":
        raise ValueError(f"unknown message {message}")
