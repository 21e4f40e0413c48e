# The app of the tests: asyncio, without a library. Each method does what it is named after, wrong things among them.
import asyncio, json, os, signal, socket, struct, subprocess, sys, threading
from asyncio import sleep as pause
from time import sleep as block

for name in ("SIGTERM", "SIGINT", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
wire = socket.socket(fileno=3)
wire.set_inheritable(False)
CONCURRENCY = int(os.environ.get("CONCURRENCY", "8"))
COUNTS = os.environ.get("COUNTS")
cancelled = {}
held = []


def frame(record):
    body = record if isinstance(record, bytes) else json.dumps(record).encode()
    return struct.pack("<I", len(body)) + body


def count(word):
    if COUNTS:
        with open(COUNTS, "a") as file:
            file.write(f"{word}\n")


async def answer(writer, request):
    id, method, params = request["id"], request["in"], request.get("params")
    result = params
    if method == "count":
        count(params)
    elif method == "circumstances":
        result = {key: value for key, value in request.items() if key not in ("id", "params")}
    elif method == "sleep":
        ms, word = params
        count(word)
        await pause(ms / 1000)
        result = [word, cancelled.pop(id, None)]
    elif method == "until_exists":
        path, word = params
        count(word)
        while not os.path.exists(path):
            await pause(0.005)
        result = word
    elif method == "recorded":
        # The same, and the end is recorded as well.
        path, word = params
        count(f"begun {word}")
        while not os.path.exists(path):
            await pause(0.005)
        count(f"done {word}")
        result = word
    elif method == "until_cancelled":
        count("begun")
        while id not in cancelled:
            await pause(0.005)
        count(cancelled[id])
    elif method == "never":
        count("never")
        return
    elif method == "block":
        while not os.path.exists(params):
            block(0.005)
    elif method == "open":
        count("open")
        os.open(params, os.O_RDONLY)
    elif method == "exit":
        print("the reason of the exit", file=sys.stderr, flush=True)
        os._exit(params)
    elif method == "print_and_die":
        print("no reason", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    elif method == "answer_and_exit":
        wire.setblocking(True)
        wire.sendall(frame({"id": id, "result": "last"}))
        os._exit(0)
    elif method == "fault":
        writer.write(frame({"id": id, "error": {"code": params, "message": "meant"}}))
        return
    elif method == "write":
        # Bytes of a frame, as the caller wants it; ID is the id of the request.
        writer.write(frame(params.replace("ID", str(id)).encode()))
        return
    elif method == "write_bytes":
        # The same, of bytes that are not text.
        writer.write(frame(params.replace("ID", str(id)).encode("latin-1")))
        return
    elif method == "long":
        result = "x" * params
    elif method == "longest":
        # An answer that exceeds the longest frame by params.
        body = b'{"id":%d,"result":"%s"}'
        length = int(os.environ["FDPASSD_MAX_FRAME"]) + params - len(body % (id, b""))
        writer.write(frame(body % (id, b"x" * length)))
        return
    elif method == "half":
        wire.setblocking(True)
        wire.sendall(struct.pack("<I", 1000) + b'{"id":%d,"result":"' % id)
        if params == "exit":
            os._exit(0)
        return
    elif method == "eat":
        held.append(bytearray(params << 20))
    elif method == "eat_later":
        # In a thread, when this request was answered long ago.
        threading.Timer(0.3, lambda: held.append(bytearray(params << 20))).start()
    elif method == "write_prefix":
        writer.write(struct.pack("<I", params))
        return
    elif method == "block_and_close":
        # It ends the wire and still runs. From its first file on it reads nothing.
        open(params + ".begun", "w").close()
        while not os.path.exists(params):
            block(0.005)
        wire.shutdown(socket.SHUT_RDWR)
        while True:
            block(1)
    elif method == "close":
        # The worker waits only for a moment for the exit.
        wire.shutdown(socket.SHUT_RDWR)
        os._exit(0)
        return
    elif method == "pour":
        # A child that writes to standard error until it is killed.
        held.append(subprocess.Popen(params, stdout=2))
        result = held[-1].pid
    elif method == "health":
        writer.write(frame({"health": params}))
    elif method == "ail":
        # It is unhealthy, and answers when a file exists.
        reason, path = params
        writer.write(frame({"health": reason}))
        while not os.path.exists(path):
            await pause(0.005)
    elif method == "metrics":
        writer.write(frame({"metrics": params}))
    elif method == "spawn":
        # A child that keeps descriptor 3.
        os.set_inheritable(3, True)
        held.append(os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "1000"))
        result = held[-1]
    writer.write(frame({"id": id, "result": result}))


def serve_slowly():
    """Reads a request when it has answered the one before, although it may have others."""
    wire.sendall(frame({"hello": 1, "methods": [{"name": "echo"}], "concurrency": 8}))
    while prefix := wire.recv(4, socket.MSG_WAITALL):
        request = json.loads(wire.recv(*struct.unpack("<I", prefix), socket.MSG_WAITALL))
        if "in" in request:
            block(0.01)
            wire.sendall(frame({"id": request["id"], "result": request["params"]}))
    os._exit(0)


async def main():
    reader, writer = await asyncio.open_connection(sock=wire, limit=1 << 25)
    methods = [
        {"name": "echo", "idempotent": True, "reply": "echoed"},
        {"name": "idempotent_sleep", "idempotent": True},
        {"name": "idempotent_open", "idempotent": True},
        {"name": "idempotent_until_exists", "idempotent": True},
    ]
    for name in (
        "count circumstances sleep until_exists recorded until_cancelled never block open exit print_and_die answer_and_exit "
        "fault write write_prefix write_bytes long longest half eat eat_later close block_and_close pour spawn metrics health ail"
    ).split():
        methods.append({"name": name})
    metrics = [
        {"name": "orders", "type": "counter", "help": "Orders that were placed."},
        {"name": "prices", "type": "histogram", "help": "Their prices.", "buckets": [1, 10]},
    ]
    hello = {"hello": 1, "methods": methods, "concurrency": CONCURRENCY, "metrics": metrics, "later": {}}
    if "NAME_LENGTH" in os.environ:
        hello["name"] = "n" * int(os.environ["NAME_LENGTH"])
    at_once = os.environ.get("AT_ONCE")
    writer.write(frame(hello) + (frame(at_once.encode()) if at_once else b""))
    tasks = set()
    while True:
        try:
            (length,) = struct.unpack("<I", await reader.readexactly(4))
            body = await reader.readexactly(length)
            request = json.loads(body)
        except asyncio.IncompleteReadError:
            while "IGNORES_END" in os.environ:
                block(1)
            os._exit(0)
        except RecursionError:
            # Params that are nested too deeply for the module json.
            id = int(body[6 : body.index(b",")])
            writer.write(frame({"id": id, "error": {"code": "bad_params", "message": "nested too deeply"}}))
            continue
        if "in" in request:
            request["in"] = request["in"].removeprefix("idempotent_")
            task = asyncio.create_task(answer(writer, request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        elif "probe" in request:
            writer.write(frame({"alive": request["probe"]}))
        elif "stop" in request and "AT_STOP" in os.environ:
            writer.write(frame(os.environ["AT_STOP"].encode()))
            await writer.drain()
            os._exit(0)
        elif "cancel" in request:
            cancelled[request["cancel"]] = request["why"]


serve_slowly() if "READS_ONE_AT_A_TIME" in os.environ else asyncio.run(main())
