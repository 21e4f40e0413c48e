"""Apps with and without coroutines answer in the same way."""

from __future__ import annotations

import json
import signal
import struct
import unittest
import uuid
from collections.abc import Iterator
from typing import Any

from .worker import ROOT, TIMEOUT, Worker, needs

APP = """
import os
app = App(name="shop", version="1.4", concurrency=16)
orders = app.counter("orders", "Orders")

@app.method(idempotent=True)
{kind} echo(value, /):
    return value

@app.method(idempotent=True, reply="priced")
{kind} price(item: str, count: int = 1):
    if count < 1:
        raise Fault("bad_params", "count is at least 1")
    return [item, count]

@app.method
{kind} nothing():
    pass

@app.method
{kind} fail():
    raise KeyError("secret")

@app.method(name="a.b-c")
{kind} bad_result():
    return {{1, 2}}

@app.method
{kind} nan():
    return float("nan")

@app.method
{kind} long(n: int):
    return "x" * n

@app.method
{kind} circumstances():
    c = call()
    return [c.method, c.client, c.peer, c.attempt, c.is_connected, c.is_cancelled, c.pid, c.uid]

@app.method
{kind} remaining():
    import time
    deadline = call().deadline
    return None if deadline is None else deadline - time.monotonic()

@app.method
{kind} order():
    orders.add(2)

@app.method
{kind} say(text: str):
    print(text)

@app.method
{kind} leave(status: int):
    raise SystemExit(status)

@app.on_close
{kind} closed(client):
    print("closed", client)

@app.method(raw=True)
{kind} raw(params):
    assert isinstance(params, bytes)
    return params if params != b"0" else 0

@app.stop
{kind} stop():
    print("stopped")
"""


class Both(unittest.TestCase):
    """Each test runs with `def` and with `async def`."""

    def worker(self, kind: str, code: str = "", max_frame: int = 1 << 20) -> Worker:
        worker = Worker(APP.format(kind=kind) + code.replace("KIND", kind), max_frame=max_frame)
        self.addCleanup(worker.__exit__)
        return worker.begin()

    def both(self, code: str = "") -> list[Worker]:
        return [self.worker(kind, code) for kind in ("def", "async def")]

    def test_hello_declares_the_app(self) -> None:
        for worker in self.both():
            hello = worker.hello
            self.assertEqual((hello["name"], hello["version"], hello["concurrency"]), ("shop", "1.4", 16))
            self.assertIs(hello["closes"], True)
            self.assertEqual(hello["metrics"], [{"name": "orders", "type": "counter", "help": "Orders"}])
            methods = {method.pop("name"): method for method in hello["methods"]}
            self.assertEqual(methods["echo"], {"idempotent": True})
            self.assertEqual(methods["price"], {"idempotent": True, "reply": "priced"})
            self.assertEqual(methods["a.b-c"], {"idempotent": False})

    def test_params_become_arguments(self) -> None:
        for worker in self.both():
            for params, result in [
                ({"item": "tea"}, ["tea", 1]),
                ({"count": 3, "item": "tea"}, ["tea", 3]),
                ("tea", ["tea", 1]),
                ([1, 2], [[1, 2], 1]),
                (0, [0, 1]),
            ]:
                self.assertEqual(worker.call("price", params), {"result": result})
            values: list[Any] = [None, 1, 1.5, "é\U0001f600\n", [], {}, {"a": None}, True]
            for value in values:
                self.assertEqual(worker.call("echo", value), {"result": value})
            self.assertEqual(worker.call("echo"), {"result": None})
            self.assertEqual(worker.call("nothing"), {"result": None})
            self.assertEqual(worker.call("nothing", None), {"result": None})
            self.assertEqual(worker.call("nothing", {}), {"result": None})

    def test_params_that_do_not_fit_are_bad_params(self) -> None:
        for worker in self.both():
            for method, params, message in [
                ("price", None, "missing: item"),
                ("price", {"count": 2}, "missing: item"),
                ("price", {"item": 1, "colour": 2}, "unknown: colour"),
                ("price", {"item": 1, "count": 0}, "count is at least 1"),
                ("nothing", 1, "the method takes no params"),
                ("nothing", {"x": 1}, "unknown: x"),
            ]:
                error = worker.call(method, params)["error"]
                self.assertEqual(error, {"code": "bad_params", "message": message})

    def test_a_log_whose_reader_is_gone_does_not_end_the_app(self) -> None:
        for worker in self.both():
            assert worker.process.stdout is not None
            worker.process.stdout.close()  # Standard error is the same pipe.
            for _ in range(3):
                self.assertEqual(worker.call("fail")["error"], {"code": "crashed", "message": "KeyError"})
            self.assertEqual(worker.call("echo", 1), {"result": 1})
            echo, leave = worker.request("echo", 2), worker.request("leave", "a reason")
            worker.send(echo, leave)
            self.assertEqual(worker.read(), {"id": echo["id"], "result": 2})
            self.assertEqual(worker.process.wait(TIMEOUT), 1)

    def test_an_exception_is_crashed_and_its_traceback_in_the_log(self) -> None:
        for worker in self.both():
            error = worker.call("fail")["error"]
            self.assertEqual(error, {"code": "crashed", "message": "KeyError"})
            self.assertEqual(worker.call("echo", 1), {"result": 1})
            _, output = worker.end()
            self.assertIn("<3>fail of client 4711: KeyError\n<3>Traceback", output)
            self.assertIn("<3>KeyError: 'secret'\n", output)

    def test_a_result_that_cannot_be_sent_is_internal(self) -> None:
        for kind in ("def", "async def"):
            worker = self.worker(kind, max_frame=1000)
            for method, message in [
                ("a.b-c", "the result cannot be written as JSON: TypeError"),
                ("nan", "the result cannot be written as JSON: ValueError"),
            ]:
                self.assertEqual(worker.call(method)["error"], {"code": "internal", "message": message})
            longest = 1000 - len('{"id":3,"result":""}')
            self.assertEqual(worker.call("long", longest), {"result": "x" * longest})
            self.assertEqual(worker.call("long", longest + 1)["error"]["code"], "internal")
            self.assertEqual(
                worker.call("long", 5000)["error"], {"code": "internal", "message": "the result is too long"}
            )

    def test_json_beyond_the_codec_is_bad_params_of_its_caller(self) -> None:
        for worker in self.both():
            head = b'{"id":900,"in":"echo","client":1,"peer":"","attempt":1,"params":'
            for params in [b"1" * 5000, b"[" * 100_000 + b"]" * 100_000]:
                worker.send(head + params + b"}")
                answer = worker.read()
                self.assertEqual((answer["id"], answer["error"]["code"]), (900, "bad_params"))
            worker.send(head + rb'"\ud800"}')
            self.assertEqual(worker.read_body(), rb'{"id":900,"result":"\ud800"}')

    def test_a_raw_method_has_the_bytes_of_the_client(self) -> None:
        for worker in self.both():
            head = b'{"id":900,"in":"raw","client":1,"peer":"","attempt":1'
            for params in [b"[ 1e400,\n-0.0]", b"1" * 5000, b'{"a":1,"a":",\\"params\\":2"}', rb'"\ud800"']:
                worker.send(head + b',"params":' + params + b"}")
                self.assertEqual(worker.read_body(), b'{"id":900,"result":' + params + b"}")
            worker.send(head + b"}")
            self.assertEqual(worker.read_body(), b'{"id":900,"result":null}')
            self.assertEqual(worker.call("raw", 0)["error"]["code"], "internal")

    def test_a_call_knows_its_circumstances(self) -> None:
        for worker in self.both():
            call = worker.call("circumstances", attempt=2)
            self.assertEqual(
                call["result"], ["circumstances", 4711, "10.0.0.9:4242", 2, True, False, None, None]
            )
            call = worker.call("circumstances", peer="", pid=7, uid=0)
            self.assertEqual(call["result"], ["circumstances", 4711, "", 1, True, False, 7, 0])
            self.assertIsNone(worker.call("remaining")["result"])
            self.assertTrue(20 < worker.call("remaining", timeout=30_000)["result"] <= 30)

    def test_many_requests_are_answered_with_one_write(self) -> None:
        code = """
import socket
written = []

class Counting(socket.socket):
    def send(self, *rest):
        written.append("send")
        return super().send(*rest)

    def sendall(self, *rest):
        written.append("sendall")
        return super().sendall(*rest)

socket.socket = Counting

@app.method
KIND writes():
    return len(written)
"""
        for worker in self.both(code):
            before = worker.call("writes")["result"]
            requests = [worker.request("echo", n) for n in range(16)]
            worker.send(*requests)
            self.assertEqual(
                worker.read_by_id(16), {request["id"]: {"result": request["params"]} for request in requests}
            )
            # The answer to the first call was not written when it was counted. A blocking app that is slow writes again.
            self.assertIn(worker.call("writes")["result"] - before, range(2, 6))

    def test_frames_may_come_in_any_pieces(self) -> None:
        for worker in self.both():
            requests = [worker.request("echo", {"n": n, "text": "y" * n * 7}) for n in range(8)]
            data = b"".join(map(worker.frame, requests))
            for begin in range(0, len(data), 3):
                worker.socket.sendall(data[begin : begin + 3])
            answers = worker.read_by_id(8)
            for request in requests:
                self.assertEqual(answers[request["id"]], {"result": request["params"]})

    def test_large_frames_go_both_ways(self) -> None:
        for worker in self.both():
            value = ["z" * 300_000, 1]
            worker.send(worker.request("echo", value), worker.request("echo", 2))
            answers = worker.read_by_id(2)
            self.assertEqual([answer["result"] for answer in answers.values()], [value, 2])

    def test_unknown_members_and_messages_are_ignored(self) -> None:
        for worker in self.both():
            worker.send({"weather": 1})
            self.assertEqual(worker.call("echo", 1, colour="red"), {"result": 1})
            worker.send({"cancel": 12345, "why": "gone"})
            self.assertEqual(worker.call("echo", 2), {"result": 2})

    def test_a_probe_is_answered(self) -> None:
        for worker in self.both():
            worker.send({"probe": 3})
            self.assertEqual(worker.read(), {"alive": 3})

    def test_signals_pass(self) -> None:
        for worker in self.both():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                worker.signal(number)
                self.assertEqual(worker.call("echo", 1), {"result": 1})

    def test_the_end_of_the_descriptor_ends_the_app(self) -> None:
        for worker in self.both():
            self.assertEqual(worker.end(), (0, "stopped\n"))

    def test_stop_answers_what_there_is_and_ends(self) -> None:
        for worker in self.both():
            request = worker.request("echo", 5)
            worker.send(request, {"stop": 30_000})
            self.assertEqual(worker.read(), {"id": request["id"], "result": 5})
            self.assertEqual(worker.wait(), (0, "stopped\n"))

    def test_what_is_printed_is_written_by_the_line(self) -> None:
        for worker in self.both():
            worker.call("say", "hello")
            self.assertEqual(worker.lines(1), ["hello"])

    def test_clients_that_left_are_reported(self) -> None:
        for worker in self.both():
            worker.send({"closed": 42})
            self.assertEqual(worker.lines(1), ["closed 42"])

    def test_what_was_counted_comes_with_the_answer(self) -> None:
        for worker in self.both():
            worker.send(worker.request("order"), worker.request("order"))
            messages = [worker.read() for _ in range(3)]
            self.assertIn({"metrics": {"orders": 4}}, messages)

    def test_many_observations_are_split_into_several_frames(self) -> None:
        code = """
import threading
seconds = app.histogram("seconds", "", [0.1, 1])

def all_of(count):
    for n in range(count):
        seconds.observe(n / 7)

@app.method
KIND many(count: int):
    all_of(count)

@app.start
KIND many_at_first():
    thread = threading.Thread(target=all_of, args=(1000,))
    thread.start()
    thread.join()
"""
        for kind in ("def", "async def"):
            worker = self.worker(kind, code, max_frame=2000)
            for _ in range(2):
                values: list[float] = []
                while len(values) < 1000:
                    body = worker.read_body()
                    self.assertLessEqual(len(body), 2000)
                    values += json.loads(body).get("metrics", {}).get("seconds", [])
                self.assertEqual(values, [n / 7 for n in range(1000)])
                worker.send(worker.request("many", 1000))

    def test_an_exit_in_a_method_loses_no_earlier_answer(self) -> None:
        for worker in self.both():
            worker.send(worker.request("echo", 1), worker.request("leave", 9))
            self.assertEqual(worker.read()["result"], 1)
            self.assertEqual(worker.wait()[0], 9)

    def test_an_exit_in_a_method_waits_for_no_thread(self) -> None:
        code = """
@app.method
KIND leave_threads():
    import threading, time
    threading.Thread(target=time.sleep, args=(600,)).start()
    raise SystemExit(9)
"""
        for worker in self.both(code):
            worker.send(worker.request("leave_threads"))
            self.assertEqual(worker.process.wait(TIMEOUT), 9)

    def test_each_exception_of_any_class_is_answered(self) -> None:
        code = """
import asyncio
class Panic(BaseException): ...
CLASSES = {c.__name__: c for c in (Panic, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)}

@app.method(name="raise")
KIND raise_it(name: str):
    raise CLASSES[name]("on purpose")

seen = [None, "ill"]
@app.health(every=0.01)
KIND check():
    if not seen:
        raise CLASSES["CancelledError"]
    return seen.pop(0)

@app.on_close
KIND left(client):
    raise CLASSES["Panic"]
"""
        for worker in self.both(code):
            self.assertEqual([worker.read(), worker.read()], [{"health": "ill"}, {"health": "CancelledError: "}])
            worker.send({"closed": 4711})
            for name in ("Panic", "KeyboardInterrupt", "GeneratorExit", "CancelledError"):
                self.assertEqual(worker.call("raise", name)["error"], {"code": "crashed", "message": name})
            self.assertEqual(worker.call("echo", 1), {"result": 1})
            self.assertEqual(worker.end()[0], 0)

    def test_a_start_that_fails_is_reported(self) -> None:
        code = """
@app.start
KIND connect():
    raise ConnectionRefusedError("no database")
"""
        for kind in ("def", "async def"):
            worker = Worker(APP.format(kind=kind) + code.replace("KIND", kind))
            self.addCleanup(worker.__exit__)
            self.assertEqual(worker.read(), {"failed": "ConnectionRefusedError: no database"})
            status, output = worker.wait()
            self.assertEqual(status, 1)
            self.assertIn("<3>the app cannot start\n<3>Traceback", output)

    def test_texts_for_the_worker_are_utf_8_and_cut(self) -> None:
        code = """
@app.method
KIND half():
    raise Fault("half", "no \\ud83d")

@app.method
KIND far():
    raise Fault("far", "€" * 100_000)

@app.method
KIND ill():
    app.unhealthy("ill \\ude00" + "x" * 2_000)
"""
        failing = "\n@app.start\nKIND connect():\n    raise OSError('no \\ud83d' + 'x' * 2_000)\n"
        for kind in ("def", "async def"):
            worker = self.worker(kind, code)
            self.assertEqual(worker.call("half")["error"], {"code": "half", "message": "no ?"})
            self.assertEqual(worker.call("far")["error"]["message"], "€" * 1000 + "…")
            worker.send(worker.request("ill"))
            bodies = [worker.read_body(), worker.read_body()]
            self.assertIn("ill ?" + "x" * 995 + "…", [json.loads(body).get("health") for body in bodies])
            failed = Worker(APP.format(kind=kind) + failing.replace("KIND", kind))
            self.addCleanup(failed.__exit__)
            reason = failed.read()["failed"]
            self.assertEqual(reason, "OSError: no ?" + "x" * 987 + "…")

    def test_start_runs_before_hello(self) -> None:
        code = """
@app.start
KIND connect():
    print("connected")
    orders.add(7)
"""
        for worker in self.both(code):
            self.assertEqual(worker.lines(1), ["connected"])
            self.assertEqual(worker.read(), {"metrics": {"orders": 7}})

    def test_health_is_reported_when_it_changes(self) -> None:
        code = """
@app.method
KIND ill(reason: str = ""):
    app.unhealthy(reason) if reason else app.healthy()

@app.start
KIND warm_up():
    app.unhealthy("cold")
"""
        for worker in self.both(code):
            self.assertEqual(worker.read(), {"health": "cold"})
            for params, health in [("no database", "no database"), (None, None)]:
                request = worker.request("ill", params)
                worker.send(request)
                messages = [worker.read(), worker.read()]
                self.assertIn({"health": health}, messages)
            self.assertEqual(worker.call("ill"), {"result": None})

    def test_health_can_be_checked_by_time(self) -> None:
        code = """
seen = [None, "no database", None]
@app.health(every=0.01)
KIND check():
    if not seen:
        raise ValueError("over")
    return seen.pop(0)
"""
        for worker in self.both(code):
            self.assertEqual(worker.read(), {"health": "no database"})
            self.assertEqual(worker.read(), {"health": None})
            self.assertEqual(worker.read(), {"health": "ValueError: over"})

    def test_threads_may_count(self) -> None:
        code = """
import threading
@app.method
KIND later():
    thread = threading.Thread(target=lambda: [orders.add(1) for _ in range(100)])
    thread.start()
"""
        for worker in self.both(code):
            request = worker.request("later")
            worker.send(request)
            total = 0
            while total < 100:
                total += worker.read().get("metrics", {}).get("orders", 0)
            self.assertEqual(total, 100)

    def test_a_child_has_nothing_of_the_protocol(self) -> None:
        code = """
import subprocess, sys
PROBE = "import os, signal; print('FDPASSD_APP' in os.environ, len(os.listdir('/proc/self/fd')) - 1, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
@app.method
KIND child():
    return subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, close_fds=False).stdout

@app.method
KIND terminate():
    child = subprocess.Popen(["sleep", "60"])
    child.terminate()
    return child.wait()

@app.method
KIND fork_number(descriptor: int):
    import os, socket
    pid = os.fork()
    if pid == 0:
        # The effect of the parent's objects when the child collects them.
        file = os.open(app_file, os.O_RDONLY)
        os.close(descriptor)
        os._exit(0 if file != descriptor and os.path.sameopenfile(file, os.open(app_file, os.O_RDONLY)) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

app_file = __file__

@app.method
KIND fork():
    import os, signal, time
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
    os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
        for worker in self.both(code):
            result = worker.call("child")["result"]
            self.assertTrue(result.startswith("False 3 "), result)
            self.assertTrue(result.endswith("True\n"), result)
            self.assertEqual(worker.call("terminate"), {"result": -15})
            self.assertEqual(worker.call("fork_number", worker.descriptor), {"result": 0})
            self.assertEqual(worker.call("fork"), {"result": -15})


class Codecs(unittest.TestCase):
    """The table in README.md of how the codecs differ."""

    CODE = """
import dataclasses, datetime, uuid
app = App(codec="NAME")

@dataclasses.dataclass
class Tea:
    count: int

@app.method
def echo(value, /):
    return value

@app.method
def result(of: str):
    return {
        "nan": float("nan"),
        "infinity": -float("inf"),
        "date": datetime.datetime(2025, 1, 2),
        "uuid": uuid.UUID(int=7),
        "class": Tea(3),
    }[of]
"""

    def each(self) -> Iterator[tuple[str, Worker]]:
        """Yields an app with each codec that is there, in a sub-test of its own."""
        for name in ("json", "orjson", "msgspec"):
            with self.subTest(name):
                needs(self, name)
                with Worker(self.CODE.replace("NAME", name)) as worker:
                    yield name, worker.begin()

    def echo(self, worker: Worker, params: str) -> dict[str, Any]:
        """Returns the answer to a request with this text as params."""
        worker.send(b'{"id":1,"in":"echo","client":1,"peer":"","attempt":1,"params":%b}' % params.encode())
        return worker.read()

    def test_each_codec_echoes_json(self) -> None:
        for _, worker in self.each():
            value = {"a": [1, 2.5, None, True, "é\U0001f600"], "b": {}, "c": 2**64 - 1}
            self.assertEqual(worker.call("echo", value), {"result": value})

    def test_large_integers(self) -> None:
        for name, worker in self.each():
            exact, most = (False, 308) if name == "orjson" else (True, 4300)
            answer = self.echo(worker, str(2**64))
            self.assertEqual((answer["result"], type(answer["result"])), (2**64, int if exact else float))
            answer = self.echo(worker, "9" * most)
            self.assertEqual(answer["result"], int("9" * most) if exact else 1e308)
            self.assertEqual(self.echo(worker, "9" * (most + 1))["error"]["code"], "bad_params")

    def test_numbers_that_are_none(self) -> None:
        for name, worker in self.each():
            for of in ("nan", "infinity"):
                answer = worker.call("result", {"of": of})
                if name == "json":
                    self.assertEqual(answer["error"]["code"], "internal")
                else:
                    self.assertEqual(answer, {"result": None})

    def test_half_of_a_surrogate_pair(self) -> None:
        for name, worker in self.each():
            answer = self.echo(worker, '"\\ud800"')
            if name == "json":
                self.assertEqual(answer["result"], "\ud800")
            else:
                self.assertEqual(answer["error"]["code"], "bad_params")

    def test_objects_that_are_not_of_json(self) -> None:
        written = {"date": "2025-01-02T00:00:00", "uuid": str(uuid.UUID(int=7)), "class": {"count": 3}}
        for name, worker in self.each():
            for of, value in written.items():
                answer = worker.call("result", {"of": of})
                if name == "json":
                    self.assertEqual(answer["error"]["code"], "internal")
                else:
                    self.assertEqual(answer, {"result": value})

    def test_another_codec_is_refused(self) -> None:
        from fdpassd import App

        with self.assertRaisesRegex(ValueError, "one of json, orjson, msgspec"):
            App(codec="pickle")  # type: ignore[arg-type]


class Examples(unittest.TestCase):
    def test_the_shop_serves(self) -> None:
        code = (ROOT / "examples" / "shop.py").read_text()
        with Worker(code, run=False) as worker:
            worker.begin()
            self.assertEqual(worker.call("price", {"item": "tea", "count": 2}), {"result": 9})
            for params, error in (
                ({"item": "gold"}, "no_such_item"),
                ({"item": "tea", "count": 0}, "bad_params"),
                (None, "bad_params"),
            ):
                self.assertEqual(worker.call("price", params)["error"]["code"], error)
            worker.send(worker.request("order", {"item": "milk"}))
            frames = [worker.read(), worker.read()]
            self.assertIn({"metrics": {"orders": 1}}, frames)
            self.assertIn({"item": "milk", "price": 1.2}, [frame.get("result") for frame in frames])


class Length(unittest.TestCase):
    def test_no_frame_is_longer_than_the_worker_accepts(self) -> None:
        code = "app = App()\n@app.method\ndef fault(n: int): raise Fault('x', 'm' * n)\n"
        with Worker(code, max_frame=500) as worker:
            worker.begin()
            worker.send(worker.request("fault", 5000))
            (length,) = struct.unpack("<I", worker._exactly(4))
            self.assertLessEqual(length, 500)
            self.assertEqual(json.loads(worker._exactly(length))["error"]["code"], "x")

    def test_health_longer_than_a_frame_is_sent_without_its_text(self) -> None:
        for kind in ("def", "async def"):
            code = f"app = App()\n@app.method\n{kind} ill(text: str): app.unhealthy(text)\n"
            with Worker(code, max_frame=4160) as worker:
                worker.begin()
                worker.send(worker.request("ill", "\x01" * 1000))
                self.assertIn({"health": "unhealthy"}, [worker.read(), worker.read()])

    def test_an_app_whose_hello_is_longer_than_a_frame_says_why(self) -> None:
        for kind in ("def", "async def"):
            code = f"app = App()\nfor i in range(100):\n @app.method(name=f'method_{{i}}')\n {kind} method(): pass\n"
            with Worker(code, max_frame=1000) as worker:
                why = "the list of methods is longer than a frame may be"
                self.assertEqual(worker.read(), {"failed": f"ValueError: {why}"})
                self.assertEqual(worker.wait()[0], 1)

    def test_an_app_that_cannot_start_for_a_long_reason_says_so(self) -> None:
        code = "app = App()\n@app.start\ndef start(): raise ValueError('\\x01' * 1000)\n"
        with Worker(code, max_frame=4160) as worker:
            self.assertEqual(worker.read(), {"failed": "the app cannot start; its log has the reason"})
            self.assertEqual(worker.wait()[0], 1)


class Sums(unittest.TestCase):
    def test_a_counter_gets_at_most_what_the_worker_counts(self) -> None:
        for kind in ("def", "async def"):
            code = f"app = App()\nc = app.counter('c', '')\n@app.method\n{kind} add():\n c.add(2**53)\n c.add(2**53)\n"
            with Worker(code) as worker:
                worker.begin()
                worker.send(worker.request("add"))
                self.assertIn({"metrics": {"c": 2**53}}, [worker.read(), worker.read()])
