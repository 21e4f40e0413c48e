"""How long the client waits, and with which threads and processes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import fdpassd._address
from fdpassd.client import Client, Unavailable, UnknownOutcome

from .clients import LARGE, SHORT, ClientCase, answering, echoing, reading, refusing_with
from .server import Peer, Server
from .worker import TIMEOUT


class Deadlines(ClientCase):
    def within(self, began: float, least: float) -> None:
        """Shows that a wait was not shorter than its timeout. How much longer it was depends on the machine."""
        taken = time.monotonic() - began
        self.assertGreaterEqual(taken, least - 0.01)
        self.assertLess(taken, TIMEOUT / 2)

    def test_a_late_reply_is_not_that_of_the_next_request(self) -> None:
        def late(peer: Peer) -> None:
            peer.read()
            peer.expect_end()

        with Server(late, answering("second")) as server:
            client = self.client(server)
            began = time.monotonic()
            with self.unknown(server, f"no reply within {SHORT} s"):
                client.call("add", timeout=SHORT, idempotent=True)
            self.within(began, SHORT)
            self.assertIsNone(client.address)
            self.assertEqual(client.call("add"), "second")

    def test_a_timeout_of_the_client_holds_for_each_call(self) -> None:
        def late(peer: Peer) -> None:
            peer.read()
            peer.expect_end()

        with Server(late) as server:
            client = self.client(server, timeout=SHORT)
            with self.unknown(server, f"no reply within {SHORT} s"):
                client.call("add")

    def test_a_reply_in_many_pieces_does_not_extend_the_time(self) -> None:
        def dripping(peer: Peer) -> None:
            peer.read()
            peer.write(struct.pack("<I", 1 << 20))
            ended = threading.Event()
            try:
                while not ended.wait(0.01):
                    peer.write(b" ")
            except OSError:
                pass

        with Server(dripping) as server:
            client = self.client(server)
            began = time.monotonic()
            with self.unknown(server, f"no reply within {SHORT} s"):
                client.call("add", timeout=SHORT)
            self.within(began, SHORT)

    def test_a_request_that_is_not_taken_in_time_was_not_run(self) -> None:
        def unreading(_: Peer) -> None:
            ended.wait(TIMEOUT)

        ended = threading.Event()
        with Server(unreading, unix=True) as server:
            client = self.client(server)
            with self.assertRaises(Unavailable) as caught:
                client.call("add", LARGE, timeout=SHORT)
            ended.set()
            text = f"add was not executed within {SHORT} s: {server.address}: no reply within {SHORT} s"
            self.assertEqual(str(caught.exception), text)

    def test_no_listener_in_time_is_unavailable(self) -> None:
        refusing, missing = self.refusing(), "unix:/nonexistent/rpc.sock"
        client = self.client(refusing, missing)
        began = time.monotonic()
        with self.assertRaises(Unavailable) as caught:
            client.call("add", timeout=SHORT)
        self.within(began, SHORT)
        text = f"{refusing}: Connection refused; {missing}: No such file or directory"
        self.assertEqual(str(caught.exception), f"add was not executed within {SHORT} s: {text}")

    def test_an_address_that_does_not_answer_is_left_in_time(self) -> None:
        # A queue for one connection, which is full: the kernel answers no other.
        full = socket.socket()
        self.addCleanup(full.close)
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            filling = socket.socket()
            self.addCleanup(filling.close)
            filling.setblocking(False)
            filling.connect_ex(full.getsockname())
        address = f"127.0.0.1:{full.getsockname()[1]}"
        with Server(answering("well")) as server:
            client = self.client(address, server, connect_timeout=SHORT)
            began = time.monotonic()
            self.assertEqual(client.call("add"), "well")
            self.within(began, SHORT)
        with self.assertRaises(Unavailable) as caught:
            self.client(address).call("add", timeout=SHORT)
        text = f"add was not executed within {SHORT} s: {address}: no connection within {SHORT} s"
        self.assertEqual(str(caught.exception), text)

    def test_a_full_queue_of_a_unix_socket_is_tried_again(self) -> None:
        with Server(unix=True) as server:
            pass
        path = server.address.removeprefix("unix:")
        os.makedirs(os.path.dirname(path))
        self.addCleanup(shutil.rmtree, os.path.dirname(path))
        full = socket.socket(socket.AF_UNIX)
        self.addCleanup(full.close)
        full.bind(path)
        full.listen(0)
        filling = socket.socket(socket.AF_UNIX)
        self.addCleanup(filling.close)
        filling.connect(path)
        with self.assertRaisesRegex(Unavailable, "the accept queue is full"):
            self.client(server.address).call("add", timeout=SHORT)

    def test_a_lookup_does_not_extend_the_time(self) -> None:
        release, lookups = threading.Event(), []
        original = fdpassd._address._lookup

        def hanging(host: str, port: int, flags: int) -> Any:
            if flags:
                return original(host, port, flags)
            lookups.append(host)
            release.wait(TIMEOUT)
            return original("127.0.0.1", port, flags)

        with mock.patch("fdpassd._address._lookup", hanging), Server(answering("well")) as server:
            client = self.client(f"slow.invalid:{server.address.rpartition(':')[2]}")
            for _ in range(2):
                began = time.monotonic()
                with self.assertRaisesRegex(Unavailable, f"the name was not looked up within {SHORT} s"):
                    client.call("add", timeout=SHORT)
                self.within(began, SHORT)
            self.assertEqual(lookups, ["slow.invalid"])
            release.set()
            self.assertEqual(client.call("add"), "well")
            self.assertEqual(lookups, ["slow.invalid"])

    def test_a_name_that_does_not_exist_is_unavailable(self) -> None:
        unknown = OSError(socket.EAI_NONAME, "Name or service not known")
        with mock.patch("socket.getaddrinfo", side_effect=unknown):
            client = self.client("no.invalid:80")
            with self.assertRaisesRegex(Unavailable, "no.invalid:80: Name or service not known"):
                client.call("add", timeout=SHORT)

    def test_a_call_without_a_deadline_waits_as_long_as_it_takes(self) -> None:
        with Server(answering("well")) as server:
            client = self.client(server, timeout=float("inf"), connect_timeout=float("inf"), silence=float("inf"))
            self.assertEqual(client.call("add"), "well")

    def test_a_port_that_answers_itself_is_no_listener(self) -> None:
        class SelfConnecting(socket.socket):
            def connect(self, to: Any) -> None:
                self.bind(to)
                super().connect(to)

        address = fdpassd._address.Address("127.0.0.1:1")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address._targets = [(socket.AF_INET, free.getsockname())]
        with mock.patch("fdpassd._address.socket.socket", SelfConnecting):
            with self.assertRaisesRegex(ConnectionRefusedError, "nothing listens there"):
                address.open(TIMEOUT, fdpassd._address.Deadline(TIMEOUT))


class Waits(ClientCase):
    """How long the client waits before it connects again."""

    @contextmanager
    def jitter(self) -> Iterator[tuple[list[float], list[float]]]:
        """Makes each random time the longest, and lets no wait last. Returns the bounds of the times, and the waits."""
        bounds: list[float] = []
        waits: list[float] = []

        def uniform(least: float, most: float) -> float:
            self.assertEqual(least, 0)
            bounds.append(most)
            return most

        with mock.patch("random.uniform", uniform), mock.patch("fdpassd.client.time.sleep", waits.append):
            yield bounds, waits

    def patient(self, *servers: Server | str, **options: Any) -> Client:
        """Returns a client whose waits are far longer than what happens between them."""
        return self.client(*servers, backoff=(500.0, 10_000.0), timeout=1e6, **options)

    def assert_waits(self, waits: list[float], expected: list[float]) -> None:
        for wait, longest in zip(waits, expected, strict=True):
            self.assertTrue(longest == 0 == wait or longest - 100 < wait <= longest, (waits, expected))

    def test_the_bound_doubles_until_a_limit(self) -> None:
        with Server(*[refusing_with("overloaded")] * 7, answering("well")) as server, self.jitter() as (bounds, waits):
            self.assertEqual(self.patient(server).call("add"), "well")
            self.assertEqual(bounds, [500, 1000, 2000, 4000, 8000, 10_000, 10_000])
            self.assert_waits(waits, [0, *bounds])

    def test_a_reply_makes_the_next_wait_short_again(self) -> None:
        def one(peer: Peer) -> None:
            peer.read()
            peer.reply("well")
            peer.read()

        with Server(reading, reading, one, answering("well")) as server, self.jitter() as (bounds, _):
            client = self.patient(server, idempotent=["add"])
            self.assertEqual([client.call("add"), client.call("add")], ["well", "well"])
            self.assertEqual(bounds, [500, 1000, 500])

    def test_the_next_call_waits_as_well(self) -> None:
        with Server(reading, answering("well")) as server, self.jitter() as (_, waits):
            client = self.patient(server)
            with self.assertRaises(UnknownOutcome):
                client.call("add", idempotent=False)
            self.assert_waits(waits, [0])
            self.assertEqual(client.call("add"), "well")
            self.assert_waits(waits, [0, 500])

    def test_no_wait_is_longer_than_the_call(self) -> None:
        with self.jitter() as (bounds, waits):
            with self.assertRaises(Unavailable):
                self.patient(self.refusing()).call("add", timeout=0.1)
            self.assertEqual(bounds[0], 500)
            self.assertLessEqual(max(waits), 0.1)

    def test_other_addresses_are_tried_without_a_wait(self) -> None:
        with Server(answering("well")) as server, self.jitter() as (bounds, waits):
            self.assertEqual(self.patient(self.refusing(), self.refusing(), server).call("add"), "well")
            self.assertEqual((bounds, waits), ([], [0]))

    def test_a_round_without_a_connection_is_followed_by_a_wait(self) -> None:
        late = Server(answering("well"))
        with self.jitter() as (bounds, waits):
            client = self.patient(late.address, self.refusing())
            uniform = random.uniform

            def begin(least: float, most: float) -> float:
                if len(bounds) == 2:
                    late.begin()
                return uniform(least, most)

            with mock.patch("random.uniform", begin):
                self.assertEqual(client.call("add"), "well")
            late.__exit__(None)
            self.assertEqual(bounds, [500, 1000, 2000])
            self.assert_waits(waits, [0, *bounds])


class Sharing(ClientCase):
    def test_threads_get_their_own_replies(self) -> None:
        results: dict[int, list[Any]] = {}

        def calls(number: int) -> None:
            results[number] = [client.call("echo", [number, n]) for n in range(50)]

        with Server(echoing) as server:
            client = self.client(server)
            threads = [threading.Thread(target=calls, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(TIMEOUT)
            client.close()
        self.assertEqual(results, {number: [[number, n] for n in range(50)] for number in range(8)})

    def test_the_wait_for_another_thread_is_part_of_the_timeout(self) -> None:
        asked, release = threading.Event(), threading.Event()

        def script(peer: Peer) -> None:
            peer.read()
            asked.set()
            release.wait(TIMEOUT)
            peer.reply("slow")
            answering("next")(peer)

        with Server(script) as server:
            client = self.client(server)
            slow: list[Any] = []
            thread = threading.Thread(target=lambda: slow.append(client.call("slow")))
            thread.start()
            self.assertTrue(asked.wait(TIMEOUT))
            with self.assertRaises(Unavailable) as caught:
                client.call("add", timeout=SHORT)
            text = f"add was not executed within {SHORT} s: the calls of other threads took longer"
            self.assertEqual(str(caught.exception), text)
            release.set()
            thread.join(TIMEOUT)
            self.assertEqual((slow, client.call("add")), (["slow"], "next"))

    def test_a_forked_child_has_a_connection_of_its_own(self) -> None:
        with Server(answering("before", "parent"), answering("child")) as server:
            client = self.client(server)
            self.assertEqual(client.call("add", idempotent=False), "before")
            with client._lock:  # As if another thread were in a call.
                child = os.fork()
                if child == 0:
                    status = 1
                    try:
                        status = client.call("add", idempotent=False) != "child"
                    finally:
                        os._exit(status)
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
            self.assertEqual(client.call("add", idempotent=False), "parent")

    def test_an_interrupted_call_leaves_no_reply_for_the_next(self) -> None:
        class Interrupted(BaseException):
            pass

        def interrupt(_signal: int, _frame: object) -> None:
            raise Interrupted

        def script(peer: Peer) -> None:
            peer.read()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            peer.expect_end()

        previous = signal.signal(signal.SIGUSR1, interrupt)
        self.addCleanup(signal.signal, signal.SIGUSR1, previous)
        with Server(script, answering("next")) as server:
            client = self.client(server)
            with self.assertRaises(Interrupted):
                client.call("add", idempotent=True)
            self.assertEqual(client.call("add"), "next")
