"""The client, its requests and the errors of methods and daemons."""

from __future__ import annotations

import threading
from typing import Any
from unittest import mock

from fdpassd._connection import Connection
from fdpassd.client import Client, ErrorReply, Request, Unavailable

from .clients import LARGE, ClientCase, answering, echoing, measuring, refusing_with
from .server import Peer, Script, Server
from .worker import TIMEOUT


class Calls(ClientCase):
    def test_a_request_and_its_reply_are_frames(self) -> None:
        def script(peer: Peer) -> None:
            self.assertEqual(peer.read_bytes(4), b"\x34\0\0\0")
            expected = b'{"in":"price","params":{"item":"t\xc3\xa9"},"goaway":true}'
            self.assertEqual(peer.read_bytes(0x34), expected)
            peer.send(b' {"result":[1.5,null],\n"out":"priced"} ')
            self.assertEqual(peer.read_body(), b'{"in":"price"}')
            peer.reply(None)
            peer.expect_end()

        for unix in (False, True):
            with Server(script, unix=unix) as server, self.client(server) as client:
                self.assertIsNone(client.address)
                self.assertEqual(client.call("price", {"item": "té"}), [1.5, None])
                self.assertEqual(client.address, server.address)
                self.assertIsNone(client.call("price"))

    def test_lengths_are_big_endian_if_the_client_is(self) -> None:
        with Server(answering(7), order=">") as server:
            self.assertEqual(self.client(server, byte_order="big").call("any"), 7)

    def test_a_name_is_looked_up(self) -> None:
        with Server(answering(7)) as server:
            port = server.address.rpartition(":")[2]
            self.assertEqual(self.client(f"localhost:{port}").call("any"), 7)

    def test_replies_come_in_any_pieces(self) -> None:
        def script(peer: Peer) -> None:
            requests = [peer.read() for _ in range(5)]
            data = b"".join(peer.frame({"out": "a", "result": request["params"]}) for request in requests)
            for begin in range(0, len(data), 3):
                peer.write(data[begin : begin + 3])
            for _ in range(2):
                peer.read()
            peer.send({"out": "a", "result": 8}, {"out": "a", "result": 9})

        with Server(script) as server:
            client = self.client(server)
            outcomes = client.call_all([("a", {"n": n}) for n in range(5)])
            self.assertEqual([outcome.result() for outcome in outcomes], [{"n": n} for n in range(5)])
            self.assertEqual([outcome.result() for outcome in client.call_all([("b", 8), ("b", 9)])], [8, 9])

    def test_no_more_than_64_requests_are_unanswered(self) -> None:
        def script(peer: Peer) -> None:
            for n in range(64):
                self.assertEqual(peer.read()["params"], n)
            peer.socket.settimeout(0.1)
            with self.assertRaises(TimeoutError):
                peer.read_bytes(1)
            peer.socket.settimeout(TIMEOUT)
            for n in range(64, 70):
                peer.reply(n - 64)
                self.assertEqual(peer.read()["params"], n)
            for n in range(6, 70):
                peer.reply(n)

        with Server(script) as server:
            outcomes = self.client(server).call_all([("a", n) for n in range(70)])
            self.assertEqual([outcome.result() for outcome in outcomes], list(range(70)))

    def test_a_client_that_sends_much_reads_at_the_same_time(self) -> None:
        text = "x" * 500_000
        with Server(echoing) as server:
            client = self.client(server)
            outcomes = client.call_all([("a", text + str(n)) for n in range(100)])
            self.assertEqual([outcome.result()[500_000:] for outcome in outcomes], [str(n) for n in range(100)])
            client.close()

    def test_a_call_without_requests_has_no_outcomes(self) -> None:
        with Server() as server:
            self.assertEqual(self.client(server).call_all([]), [])

    def test_requests_that_cannot_be_sent_are_refused_first(self) -> None:
        with Server() as server:
            client = self.client(server, max_frame=100)
            with self.assertRaisesRegex(ValueError, "the request a has 101 bytes, at most 100 are possible"):
                client.call_all([("a", 1), ("a", "x" * (101 - len('{"in":"a","params":""}')))])
            with self.assertRaises(ValueError):
                client.call("a", float("nan"))
            with self.assertRaises(TypeError):
                client.call("a", {1, 2})
            with self.assertRaisesRegex(TypeError, "the method is a str"):
                client.call(7)  # type: ignore[arg-type]
            for timeout in (0, -1, float("nan")):
                with self.assertRaisesRegex(ValueError, "timeout is a time above 0"):
                    client.call("a", timeout=timeout)
            client.close()
            with self.assertRaisesRegex(ValueError, "the client is closed"):
                client.call("a")

    def test_wrong_arguments_are_refused(self) -> None:
        for address, reason in [
            ("localhost", "expected HOST:PORT or unix:/PATH"),
            (":80", "expected HOST:PORT"),
            ("h:", "expected HOST:PORT"),
            ("h:0", "expected HOST:PORT"),
            ("h:65536", "expected HOST:PORT"),
            ("h:8o", "expected HOST:PORT"),
            ("h:٣", "expected HOST:PORT"),
            ("::1:80", "in brackets"),
            ("[::g]:80", "'::g' is not an IPv6 address"),
            ("unix:rpc.sock", "is absolute"),
            ("unix:/a\0b", "has no NUL"),
            ("unix:/" + "é" * 54, "at most 107 bytes, this one has 109"),
            ("systemd:rpc", "expected HOST:PORT"),
        ]:
            with self.assertRaisesRegex(ValueError, reason):
                Client(address)
        wrong: list[dict[str, Any]] = [
            {"timeout": 0},
            {"connect_timeout": -1},
            {"silence": float("nan")},
            {"backoff": (0, 1)},
            {"retries": -1},
            {"max_frame": 0},
            {"max_frame": (256 << 20) + 1},
            {"byte_order": "auto"},
        ]
        for options in wrong:
            with self.assertRaises(ValueError):
                Client("127.0.0.1:1", **options)
        with self.assertRaisesRegex(ValueError, "needs an address"):
            Client([])

    def test_clients_spread_over_the_addresses(self) -> None:
        texts = [f"127.0.0.{n}:1" for n in range(1, 5)]
        firsts = {Client(texts)._addresses[0].text for _ in range(200)}
        self.assertEqual(firsts, set(texts))
        self.assertEqual([address.text for address in Client(texts, shuffle=False)._addresses], texts)


class Errors(ClientCase):
    def test_an_error_reply_has_its_code_and_leaves_the_connection(self) -> None:
        codes = {
            "bad_request": False,
            "unknown_method": False,
            "bad_params": True,
            "internal": True,
            "crashed": True,
            "timeout": True,
            "no_such_item": True,
        }

        def script(peer: Peer) -> None:
            for code in codes:
                peer.read()
                peer.error(code)
            peer.read()
            peer.reply("the last")

        with Server(script) as server:
            requests = [Request("a", idempotent=True) for _ in range(len(codes) + 1)]
            *outcomes, last = self.client(server).call_all(requests)
            for outcome, (code, may_have_run) in zip(outcomes, codes.items(), strict=True):
                self.error_reply(outcome, code, may_have_run)
            self.assertEqual(last.result(), "the last")

    def test_a_call_raises_the_error(self) -> None:
        def script(peer: Peer) -> None:
            peer.read()
            peer.error("no_such_item", "there is no tea")

        with Server(script) as server, self.assertRaises(ErrorReply) as caught:
            self.client(server).call("price")
        self.assertEqual(str(caught.exception), "no_such_item: there is no tea")

    def test_a_request_that_the_daemon_has_not_run_is_sent_again(self) -> None:
        for code in ("overloaded", "shutting_down"):
            with Server(refusing_with(code)) as first, Server(answering("done")) as second:
                client = self.client(first, second)
                self.assertEqual(client.call("add", idempotent=False), "done")
                self.assertEqual(client.address, second.address)

    def test_requests_behind_an_error_that_closes_are_sent_again(self) -> None:
        for code in ("overloaded", "shutting_down", "too_large"):
            again: list[int] = []

            def first_part(peer: Peer, code: str = code) -> None:
                self.assertEqual([peer.read()["params"] for _ in range(4)], [0, 1, 2, 3])
                peer.reply("first")
                peer.error(code)
                peer.finish()

            def second_part(peer: Peer, again: list[int] = again, count: int = 2 if code == "too_large" else 3) -> None:
                for _ in range(count):
                    again.append(peer.read()["params"])
                    peer.reply("again")
                peer.expect_end()

            with Server(first_part) as first, Server(second_part) as second:
                client = self.client(first, second)
                outcomes = client.call_all([Request("add", n, False) for n in range(4)])
                client.close()
            self.assertEqual(outcomes[0].result(), "first")
            if code == "too_large":
                self.error_reply(outcomes[1], code, False)
                self.assertEqual(again, [2, 3])
            else:
                self.assertEqual(outcomes[1].result(), "again")
                self.assertEqual(again, [1, 2, 3])
            self.assertEqual([outcome.result() for outcome in outcomes[2:]], ["again", "again"])

    def test_a_daemon_that_stays_overloaded_is_unavailable(self) -> None:
        # The first wait is longer than the call.
        with Server(refusing_with("overloaded")) as server, mock.patch("random.uniform", max):
            with self.assertRaises(Unavailable) as caught:
                self.client(server, backoff=(500.0, 500.0)).call("add", timeout=3)
            text = f"add was not executed within 3 s: {server.address}: overloaded: a reason"
            self.assertEqual((str(caught.exception), caught.exception.may_have_run), (text, False))

    def test_a_reply_before_the_end_is_read_although_nothing_can_be_sent(self) -> None:
        def overloaded(peer: Peer) -> None:
            peer.error("overloaded")
            peer.socket.close()
            closed.set()

        def exchange(connection: Connection, *arguments: Any) -> None:
            self.assertTrue(closed.wait(TIMEOUT))
            original(connection, *arguments)

        original, closed = Connection.exchange, threading.Event()
        with Server(overloaded, unix=True) as server, mock.patch.object(Connection, "exchange", exchange):
            client = self.client(server, backoff=(500.0, 500.0))
            with self.assertRaisesRegex(Unavailable, ": overloaded: a reason$"), mock.patch("random.uniform", max):
                client.call("add", timeout=3)

    def test_a_part_of_a_request_was_not_run(self) -> None:
        def answering_a_part(code: str) -> Script:
            def script(peer: Peer) -> None:
                peer.read_bytes(4)
                peer.error(code)
                peer.finish()

            return script

        for code in ("timeout", "overloaded", "shutting_down"):
            with Server(answering_a_part(code), unix=True) as first, Server(measuring) as second:
                client = self.client(first, second)
                self.assertEqual(client.call("add", LARGE, idempotent=False), len(LARGE))
        for code in ("too_large", "bad_request"):
            with Server(answering_a_part(code), unix=True) as first, Server() as second:
                (outcome,) = self.client(first, second).call_all([Request("add", LARGE, True)])
                self.error_reply(outcome, code, False)
