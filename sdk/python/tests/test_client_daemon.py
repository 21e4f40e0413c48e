"""The client against the daemon itself."""

from __future__ import annotations

import os
import random
import re
import select
import subprocess
import sys
import threading
import time
import unittest
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from fdpassd import _failure
from fdpassd.client import BadReply, Client, ErrorReply, Request, Unavailable, UnknownOutcome

from .daemon import PROJECT, Daemon
from .worker import SOURCES, TIMEOUT

APP = """
import os, threading
app = App()

def note(path, text):
    with open(path, "a") as file:
        file.write(text + "\\n")

@app.method
def add(path: str, text: str):
    note(path, text)
    return text

@app.method(idempotent=True)
def price(item: str, count: int = 1):
    if count < 1:
        raise Fault("bad_params", "count is at least 1")
    return 3 * count

@app.method
def fail():
    raise KeyError("secret")

@app.method
def refuse():
    raise Fault("no_such_item", "there is no tea")

def wait_the_first_time(path):
    is_first = not os.path.exists(path)
    note(path, "run")
    if is_first:
        with open(path + ".begun", "w") as begun:
            begun.write("begun")
        threading.Event().wait()
    return "run again"

@app.method
def wait_once(path: str):
    return wait_the_first_time(path)

@app.method(idempotent=True)
def wait_once_safely(path: str):
    return wait_the_first_time(path)
"""


class Case(unittest.TestCase):
    def daemon(self, app: str | None = None, config: str = "", listen: str = '"127.0.0.1:0"') -> Daemon:
        daemon = Daemon(app, config, listen)
        self.addCleanup(daemon.__exit__)
        return daemon

    def client(self, *daemons: Daemon, **options: Any) -> Client:
        given = {"timeout": TIMEOUT, "backoff": (0.01, 0.1), "shuffle": False, **options}
        client = Client([daemon.address for daemon in daemons], **given)
        self.addCleanup(client.close)
        return client

    def begun(self, daemon: Daemon) -> threading.Thread:
        """Lets the method wait_once begin. Returns what ends when it has begun."""
        fifo = str(daemon.directory / "run.begun")
        os.mkfifo(fifo)

        def read() -> None:
            with open(fifo) as begun:
                begun.read()

        thread = threading.Thread(target=read)
        thread.start()
        self.addCleanup(thread.join, TIMEOUT)
        return thread

    def fails(self, client: Client, method: str, params: Any = None) -> ErrorReply:
        with self.assertRaises(ErrorReply) as caught:
            client.call(method, params)
        return caught.exception


class Serving(Case):
    def test_the_daemons_own_methods_are_called(self) -> None:
        auto = '{ address = "127.0.0.1:0", byte-order = "auto" }'
        for listen in ('"127.0.0.1:0"', '"unix:DIRECTORY/rpc.sock"', auto):
            client = self.client(self.daemon(listen=listen))
            value = {"hello": ["1", 2.5, None, "é\U0001f600"]}
            self.assertEqual(client.call("ping", value), value)
            self.assertIsNone(client.call("ping"))
            self.assertEqual(client.call("pi", 1000), 3.14127432760274)
            methods = {"name": "ping", "idempotent": True}, {"name": "methods", "idempotent": True}
            for method in methods:
                self.assertIn(method, client.call("methods"))

    def test_the_byte_order_is_that_of_the_listener(self) -> None:
        daemon = self.daemon(listen='{ address = "127.0.0.1:0", byte-order = "big" }')
        self.assertEqual(self.client(daemon, byte_order="big").call("ping", 7), 7)
        with self.assertRaisesRegex(BadReply, "in big-endian it has [0-9]+: perhaps the listener has that byte order"):
            self.client(daemon).call("ping", 7)

    def test_many_requests_are_answered_in_their_order(self) -> None:
        client = self.client(self.daemon())
        outcomes = client.call_all([("ping", n) for n in range(5000)])
        self.assertEqual([outcome.result() for outcome in outcomes], list(range(5000)))
        large = ["x" * 900_000 + str(n) for n in range(20)]
        outcomes = client.call_all([("ping", text) for text in large])
        self.assertEqual([outcome.result() for outcome in outcomes], large)

    def test_the_longest_frames_are_exchanged(self) -> None:
        client = self.client(self.daemon(config='limits.max-frame = "64KiB"'), max_frame=65536)
        longest = "x" * (65536 - len('{"in":"ping","params":""}'))
        self.assertEqual(client.call("ping", longest), longest)
        with self.assertRaisesRegex(ValueError, "65537 bytes, at most 65536"):
            client.call("ping", longest + "x")


class Errors(Case):
    def test_errors_of_methods_have_their_codes(self) -> None:
        client = self.client(self.daemon(APP))
        for method, params, code, message, may_have_run in [
            ("price", {"item": "tea", "count": 0}, "bad_params", "count is at least 1", True),
            ("price", None, "bad_params", "missing: item", True),
            ("fail", None, "crashed", "KeyError", True),
            ("refuse", None, "no_such_item", "there is no tea", True),
            ("nope", None, "unknown_method", 'unknown method "nope"', False),
        ]:
            error = self.fails(client, method, params)
            self.assertEqual((error.code, error.message, error.may_have_run), (code, message, may_have_run))
        address = client.address
        self.assertEqual(client.call("price", {"item": "tea", "count": 2}), 6)
        self.assertEqual(client.address, address)

    def test_a_method_that_takes_too_long_is_timeout(self) -> None:
        daemon = self.daemon(APP, 'limits.request-timeout = "200ms"')
        self.begun(daemon)
        error = self.fails(self.client(daemon), "wait_once", str(daemon.directory / "run"))
        self.assertEqual((error.code, error.may_have_run), ("timeout", True))

    def test_a_frame_above_the_limit_of_the_daemon_is_too_large(self) -> None:
        client = self.client(self.daemon(config='limits.max-frame = "64KiB"'))
        outcomes = client.call_all([("ping", 1), ("ping", "x" * 100_000), ("ping", 2), ("ping", 3)])
        first, second, third, fourth = outcomes
        self.assertEqual((first.result(), third.result(), fourth.result()), (1, 2, 3))
        assert isinstance(second.error, ErrorReply)
        self.assertEqual((second.error.code, second.error.may_have_run), ("too_large", False))

    def test_too_many_clients_of_an_address_are_waited_for(self) -> None:
        daemon = self.daemon(APP, "limits.max-clients-per-address = 1")
        first, hasty, second = self.client(daemon), self.client(daemon, backoff=(500, 500)), self.client(daemon)
        self.assertEqual(first.call("price", "tea"), 3)
        added = daemon.directory / "added"
        # Its first wait is longer than its call.
        with self.assertRaisesRegex(Unavailable, ": overloaded: "), mock.patch("random.uniform", max):
            hasty.call("add", {"path": str(added), "text": "hasty"}, timeout=2)
        results: list[Any] = []
        params = {"path": str(added), "text": "second"}
        caller = threading.Thread(target=lambda: results.append(second.call("add", params, idempotent=False)))
        caller.start()
        first.close()
        caller.join(TIMEOUT)
        self.assertEqual((results, added.read_text()), (["second"], "second\n"))

    def test_the_codes_are_those_of_the_man_page(self) -> None:
        page = (PROJECT / "man/fdpassd-rpc.7").read_text()
        errors = page[page.index(".Ss Errors") : page.index(".Ss Pipelining")]
        opened, closed = errors.split("the daemon closes the connection:")
        stay, end = (set(re.findall(r"^\.It Sy (\w+)$", part, re.MULTILINE)) for part in (opened, closed))
        self.assertEqual(end, _failure.OF_A_PART)
        self.assertEqual(end - stay, _failure.CLOSING)
        self.assertEqual(_failure.NOT_RUN - _failure.CLOSING, {"bad_request", "unknown_method"})
        for code in _failure.NOT_RUN:
            self.assertIn(code, stay | end)


class Hosts(Case):
    def test_a_daemon_that_stopped_is_replaced_by_another(self) -> None:
        first, second = self.daemon(APP), self.daemon(APP)
        client = self.client(first, second)
        path = str(first.directory / "added")
        for n in range(2):
            self.assertEqual(client.call("add", {"path": path, "text": str(n)}, idempotent=False), str(n))
            if n == 0:
                self.assertEqual(client.address, first.address)
                first.ctl("stop")
        self.assertEqual(client.address, second.address)
        self.assertEqual(Path(path).read_text(), "0\n1\n")

    def test_a_drained_daemon_keeps_its_clients_and_refuses_others(self) -> None:
        first, second = self.daemon(APP), self.daemon(APP)
        old, new = self.client(first, second), self.client(first, second)
        self.assertEqual(old.call("price", "tea"), 3)
        first.ctl("drain", "--notice", "0")
        self.assertEqual((old.call("price", "tea"), old.address), (3, first.address))
        self.assertEqual((new.call("price", "tea"), new.address), (3, second.address))

    def test_clients_of_a_drained_daemon_move_to_another(self) -> None:
        first, second = self.daemon(APP), self.daemon(APP)
        client = self.client(first, second)
        path = str(first.directory / "added")
        self.assertEqual((client.call("add", {"path": path, "text": "0"}), client.address), ("0", first.address))
        first.ctl("drain", "--notice", "0", "--move", "0", "--wait")
        self.assertEqual((client.call("add", {"path": path, "text": "1"}), client.address), ("1", second.address))
        self.assertEqual(Path(path).read_text(), "0\n1\n")

    def test_a_polite_end_amid_many_requests_costs_none(self) -> None:
        for verb in (["drain", "--notice", "0", "--move", "0"], ["stop"]):
            first, second = self.daemon(APP), self.daemon(APP)
            client = self.client(first, second)
            path = str(first.directory / "added")
            results: list[Any] = []

            def call() -> None:
                """Sends requests until they are executed by the other daemon."""
                while client.address != second.address:
                    texts = [str(len(results) + number) for number in range(100)]
                    requests = [Request("add", {"path": path, "text": text}, idempotent=False) for text in texts]
                    results.extend(outcome.result() for outcome in client.call_all(requests))

            caller = threading.Thread(target=call)
            caller.start()
            self.wait_for_lines(Path(path), 20)
            first.ctl(*verb)
            caller.join(TIMEOUT)
            self.assertEqual(client.address, second.address)
            texts = [str(number) for number in range(len(results))]
            self.assertEqual(results, texts)
            self.assertEqual(Path(path).read_text().splitlines(), texts)

    def wait_for_lines(self, path: Path, count: int) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not path.exists() or path.read_bytes().count(b"\n") < count:
            self.assertLess(time.monotonic(), deadline, f"{path} has fewer than {count} lines")
            threading.Event().wait(0.001)

    def test_a_client_that_was_idle_for_too_long_connects_again(self) -> None:
        daemon = self.daemon(APP, 'limits.idle-timeout = "100ms"')
        client = self.client(daemon)
        path = str(daemon.directory / "added")
        for n in range(3):
            self.assertEqual(client.call("add", {"path": path, "text": str(n)}, idempotent=False), str(n))
            connection = client._connection
            assert connection is not None
            ended = select.poll()
            ended.register(connection._socket, select.POLLIN)
            self.assertTrue(ended.poll(TIMEOUT * 1000))
        self.assertEqual(Path(path).read_text(), "0\n1\n2\n")

    def killed(self, method: str) -> tuple[Daemon, list[Any], str]:
        """Kills a daemon while it executes this method, and lets the client continue with another one."""
        first, second = self.daemon(APP), self.daemon(APP)
        client = self.client(first, second)
        path = str(first.directory / "run")
        begun = self.begun(first)
        outcomes: list[Any] = []
        caller = threading.Thread(target=lambda: outcomes.extend(client.call_all([(method, path)])))
        caller.start()
        begun.join(TIMEOUT)
        first.kill()
        caller.join(TIMEOUT)
        return first, outcomes, Path(path).read_text()

    def test_an_idempotent_method_runs_again_on_another_host(self) -> None:
        _, (outcome,), runs = self.killed("wait_once_safely")
        self.assertEqual((outcome.result(), runs), ("run again", "run\nrun\n"))

    def test_another_method_does_not(self) -> None:
        first, (outcome,), runs = self.killed("wait_once")
        self.assertEqual(runs, "run\n")
        self.assertIsInstance(outcome.error, UnknownOutcome)
        self.assertIn(f"wait_once was sent to {first.address} and may have run: ", str(outcome.error))

    def test_the_example_of_the_readme_works(self) -> None:
        text = (PROJECT / "sdk/python/README.md").read_text()
        app = re.search(r"```python\n(from fdpassd import App, Fault\n.*?)\napp.run\(\)\n```", text, re.DOTALL)
        example = re.search(r"```python\n(from fdpassd.client import .*?)```", text, re.DOTALL)
        assert app is not None and example is not None
        daemon = self.daemon(app[1])
        code, count = re.subn(r"127\.0\.0\.1:8080", daemon.address, example[1])
        self.assertEqual(count, 1)
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        self.assertEqual(re.findall(r"# (.*)", example[1]), done.stdout.splitlines(), done.stderr)


class Everything(Case):
    """Exact accounting while daemons are killed, stopped and started again."""

    def test_every_outcome_is_true(self) -> None:
        seed = int(os.environ.get("CLIENT_SEED", random.randrange(1 << 32)))
        kills = int(os.environ.get("CLIENT_KILLS", "6"))
        draw = random.Random(seed)
        daemons = [self.daemon(APP, listen='"unix:DIRECTORY/rpc.sock"') for _ in range(2)]
        log = daemons[0].directory / "added"
        log.touch()
        ended = threading.Event()
        known: dict[str, str] = {}

        def call(number: int) -> None:
            client = self.client(*daemons, shuffle=True, idempotent=[])
            n = 0
            while not ended.is_set():
                texts = [f"{number}.{n + i}" for i in range(1 + n % 7)]
                outcomes = client.call_all([Request("add", {"path": str(log), "text": text}) for text in texts])
                for text, outcome in zip(texts, outcomes, strict=True):
                    known[text] = type(outcome.error).__name__
                    if outcome.error is None and outcome.result() != text:
                        known[text] = f"wrong: {outcome!r}"
                n += len(texts)

        callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
        for caller in callers:
            caller.start()
        try:
            for _ in range(kills):
                victim = draw.choice(daemons)
                enough = len(known) + 200
                while len(known) < enough and any(caller.is_alive() for caller in callers):
                    select.select([], [], [], 0.005)
                if draw.random() < 0.7:
                    victim.kill()
                else:
                    victim.ctl("stop")
                victim.restart()
        finally:
            ended.set()
            for caller in callers:
                caller.join(TIMEOUT * 2)
        runs = Counter(log.read_text().split())
        wrong = {
            text: (error, runs[text])
            for text, error in known.items()
            if runs[text] not in {"NoneType": (1,), "UnknownOutcome": (0, 1), "Unavailable": (0,)}.get(error, ())
        }
        self.assertEqual((wrong, set(runs) - set(known)), ({}, set()), f"CLIENT_SEED={seed}")
        counts = Counter(known.values())
        self.assertGreaterEqual(counts["NoneType"], 200 * kills - counts["UnknownOutcome"])

