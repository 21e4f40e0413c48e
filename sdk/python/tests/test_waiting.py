"""Requests at the same time, and clients that leave."""

from __future__ import annotations

import unittest

from .worker import Worker, needs

WAITING = """
import asyncio, threading
app = App()
events = {}

@app.method
async def wait(name: str):
    event = events.setdefault(name, asyncio.Event())
    try:
        await event.wait()
    except asyncio.CancelledError:
        print("cancelled", call().why_cancelled, call().is_connected)
        raise
    return name

@app.method
async def open(name: str):
    events.setdefault(name, asyncio.Event()).set()

@app.method
async def stubborn():
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "answered all the same"

@app.method
async def own_cancel():
    raise asyncio.CancelledError

@app.method
async def with_timeout():
    async with asyncio.timeout(10):
        await asyncio.sleep(0)
    return asyncio.current_task() is not None

@app.method(thread=True)
def in_thread():
    until_cancelled(call())
    return [call().why_cancelled, threading.current_thread() is threading.main_thread()]

def until_cancelled(call):
    import time
    while not call.is_cancelled:
        time.sleep(0.002)

@app.method(thread=True)
def raises():
    raise StopIteration

@app.method(thread=True)
def panics():
    raise KeyboardInterrupt

@app.method
def plain(value, /):
    return value
"""


class Waiting(unittest.TestCase):
    def worker(self, code: str = WAITING) -> Worker:
        worker = Worker(code)
        self.addCleanup(worker.__exit__)
        return worker.begin()

    def test_an_app_with_coroutines_has_64_at_a_time(self) -> None:
        self.assertEqual(self.worker().hello["concurrency"], 64)

    def test_an_app_without_has_one_and_no_asyncio(self) -> None:
        code = "import sys\napp = App()\n@app.method\ndef loaded(): return 'asyncio' in sys.modules\n"
        worker = self.worker(code)
        self.assertEqual(worker.hello["concurrency"], 1)
        self.assertEqual(worker.call("loaded"), {"result": False})

    def test_answers_come_in_any_order(self) -> None:
        worker = self.worker()
        first, second = worker.request("wait", "a"), worker.request("wait", "b")
        worker.send(first, second)
        self.assertEqual(worker.call("plain", 3), {"result": 3})
        opened = worker.request("open", "b")
        worker.send(opened)
        self.assertEqual(set(worker.read_by_id(2)), {opened["id"], second["id"]})
        worker.send(worker.request("open", "a"))
        self.assertEqual(worker.read_by_id(2)[first["id"]], {"result": "a"})

    def test_a_cancel_interrupts_a_coroutine_and_is_answered(self) -> None:
        for why, line in [("gone", "cancelled gone False"), ("timeout", "cancelled timeout True")]:
            worker = self.worker()
            request = worker.request("wait", "a")
            worker.send(request)
            worker.call("plain", 1)
            worker.send({"cancel": request["id"], "why": why})
            answer = worker.read()
            self.assertEqual((answer["id"], answer["error"]["code"]), (request["id"], "internal"))
            self.assertEqual(worker.lines(1), [line])

    def test_a_cancel_in_the_same_write_is_answered(self) -> None:
        worker = self.worker()
        for method in ("wait", "stubborn"):
            request = worker.request(method, *(["a"] if method == "wait" else []))
            worker.send(request, {"cancel": request["id"], "why": "gone"})
            self.assertEqual(worker.read()["id"], request["id"])

    def test_a_coroutine_may_answer_after_a_cancel(self) -> None:
        worker = self.worker()
        request = worker.request("stubborn")
        worker.send(request)
        worker.call("plain", 1)
        worker.send({"cancel": request["id"], "why": "timeout"})
        self.assertEqual(worker.read(), {"id": request["id"], "result": "answered all the same"})

    def test_a_cancellation_of_its_own_is_crashed(self) -> None:
        error = self.worker().call("own_cancel")["error"]
        self.assertEqual(error, {"code": "crashed", "message": "CancelledError"})

    def test_the_first_step_runs_in_a_task(self) -> None:
        self.assertEqual(self.worker().call("with_timeout"), {"result": True})

    def test_a_thread_does_not_block_the_others_and_sees_cancels(self) -> None:
        worker = self.worker()
        request = worker.request("in_thread")
        worker.send(request)
        self.assertEqual(worker.call("plain", 3), {"result": 3})
        worker.send({"cancel": request["id"], "why": "gone"})
        self.assertEqual(worker.read(), {"id": request["id"], "result": ["gone", False]})
        self.assertEqual(worker.call("raises")["error"]["message"], "StopIteration")
        self.assertEqual(worker.call("panics")["error"]["message"], "KeyboardInterrupt")

    def test_stop_waits_for_what_is_under_way(self) -> None:
        worker = self.worker()
        waiting = worker.request("wait", "a")
        worker.send(waiting, {"stop": 30_000})
        worker.send(worker.request("open", "a"))
        self.assertIn(waiting["id"], worker.read_by_id(2))
        self.assertEqual(worker.wait()[0], 0)

    def test_the_last_answer_is_whole_however_long_it_is(self) -> None:
        worker = self.worker()
        value = "w" * 900_000
        worker.send(worker.request("plain", value), {"stop": 30_000})
        self.assertEqual(worker.read()["result"], value)
        self.assertEqual(worker.wait()[0], 0)

    def test_the_end_does_not_wait_for_requests(self) -> None:
        worker = self.worker()
        worker.send(worker.request("wait", "a"), worker.request("in_thread"))
        worker.call("plain", 1)
        self.assertEqual(worker.end()[0], 0)

    def test_an_exit_in_a_method_answers_no_other_request(self) -> None:
        worker = self.worker(WAITING + "@app.method\nasync def leave(): raise SystemExit('enough')\n")
        worker.send(worker.request("wait", "a"))
        worker.call("plain", 1)
        worker.send(worker.request("leave"))
        with self.assertRaisesRegex(EOFError, "enough"):
            worker.read()
        self.assertEqual(worker.process.wait(), 1)

    def test_uvloop_serves_as_well(self) -> None:
        needs(self, "uvloop")
        import signal

        worker = self.worker("import uvloop\n" + WAITING.replace("App()", "App(loop_factory=uvloop.new_event_loop)"))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            worker.signal(number)
            self.assertEqual(worker.call("with_timeout"), {"result": True})
        waiting = worker.request("wait", "a")
        worker.send(waiting)
        worker.send({"cancel": waiting["id"], "why": "gone"})
        self.assertEqual(worker.read()["id"], waiting["id"])
        value = "w" * 900_000
        worker.send(worker.request("plain", value), {"stop": 1000})
        self.assertEqual(worker.read()["result"], value)
        self.assertEqual(worker.wait()[0], 0)


class Blocking(unittest.TestCase):
    def test_a_blocking_method_can_ask_whether_a_client_waits(self) -> None:
        code = """
import time
app = App(concurrency=4)
@app.method
def until_gone():
    print("begun")
    while call().is_connected:
        time.sleep(0.001)
    return call().why_cancelled
@app.method
def echo(value, /):
    return value
"""
        with Worker(code) as worker:
            worker.begin()
            first, second, third = worker.request("until_gone"), worker.request("echo", 2), worker.request("echo", 3)
            worker.send(first)
            self.assertEqual(worker.lines(1), ["begun"])
            worker.send(second, third, {"cancel": second["id"], "why": "gone"}, {"cancel": first["id"], "why": "gone"})
            answers = worker.read_by_id(3)
            self.assertEqual(answers[first["id"]], {"result": "gone"})
            self.assertEqual(answers[second["id"]]["error"]["message"], "cancelled before it began")
            self.assertEqual(answers[third["id"]], {"result": 3})

    def test_no_answer_waits_for_a_slow_neighbour(self) -> None:
        code = """
import time
app = App(concurrency=4)
@app.method
def slow(file: str):
    import os
    time.sleep(0.002)
    while not os.path.exists(file):
        time.sleep(0.002)
"""
        with Worker(code) as worker:
            worker.begin()
            here = str(worker.path)
            worker.send(worker.request("slow", here), worker.request("slow", here + ".never"))
            self.assertEqual(worker.read()["id"], 1)
