# An app that reads by read(2) and writes by write(2), which no worker calls on its end of the wire.
import json, os, signal, struct

for name in ("SIGTERM", "SIGINT", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)


def read(length):
    data = b""
    while len(data) < length:
        more = os.read(3, length - len(data))
        if not more:
            os._exit(0)
        data += more
    return data


def write(record):
    body = json.dumps(record).encode()
    os.write(3, struct.pack("<I", len(body)) + body)


def line_of(fifo):
    """Waits until the test writes a line."""
    with open(fifo) as lines:
        return lines.readline()


names = ("echo", "echo_after", "answer_and_exit")
methods = [{"name": name, "idempotent": name == "echo"} for name in names]
if "HELLO_AFTER" in os.environ:
    line_of(os.environ["HELLO_AFTER"])
write({"hello": 1, "methods": methods, "concurrency": 1})
while True:
    request = json.loads(read(struct.unpack("<I", read(4))[0]))
    if "in" in request:
        result = request.get("params")
        if request["in"] == "echo_after":
            result = line_of(result)
        write({"id": request["id"], "result": result})
        if request["in"] == "answer_and_exit":
            os._exit(0)
    elif "probe" in request:
        write({"alive": request["probe"]})
