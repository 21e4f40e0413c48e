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


methods = [{"name": "echo", "idempotent": True}, {"name": "answer_and_exit"}]
write({"hello": 1, "methods": methods, "concurrency": 1})
while True:
    request = json.loads(read(struct.unpack("<I", read(4))[0]))
    if "in" in request:
        write({"id": request["id"], "result": request.get("params")})
        if request["in"] == "answer_and_exit":
            os._exit(0)
    elif "probe" in request:
        write({"alive": request["probe"]})
