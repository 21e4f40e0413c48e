"""Connections that end, hosts that disappear, and servers that break the protocol."""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import threading
from typing import Any
from unittest import mock

from fdpassd._connection import Connection
from fdpassd.client import BadReply, Request, Unavailable, UnknownOutcome

from .clients import (
    FOR_HUGE,
    HUGE,
    LARGE,
    ClientCase,
    answering,
    declaring,
    echoing,
    measuring,
    reading,
    refusing_with,
)
from .server import Peer, Server
from .worker import TIMEOUT


def drop_everything(connection: socket.socket) -> None:
    """Makes the kernel drop what arrives for a socket, without an acknowledgement, as if its host were gone."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0), 8)  # BPF_RET, 0 bytes
    filter_of = struct.pack("HL", 1, ctypes.addressof(program))
    connection.setsockopt(socket.SOL_SOCKET, 26, filter_of)  # SO_ATTACH_FILTER


class Losses(ClientCase):
    def test_a_request_whose_outcome_is_unknown_is_not_sent_again(self) -> None:
        with Server(reading) as server, Server() as other:
            client = self.client(server, other)
            with self.unknown(server, "the connection was closed before the reply"):
                client.call("add", idempotent=False)
        with Server(reading) as server, Server() as other:
            client = self.client(server, other, idempotent=["price"])
            with self.unknown(server, "the connection was closed before the reply"):
                client.call("add")

    def test_an_idempotent_request_is_sent_again(self) -> None:
        cases: list[tuple[dict[str, Any], bool | None]] = [
            ({"idempotent": ["add"]}, None),
            ({"idempotent": []}, True),
            ({}, True),
        ]
        for options, idempotent in cases:
            with Server(reading) as first, Server(answering("again")) as second:
                client = self.client(first, second, **options)
                self.assertEqual(client.call("add", idempotent=idempotent), "again")
        for method in ("ping", "methods"):
            with Server(reading, answering("again")) as server:
                self.assertEqual(self.client(server).call(method), "again")

    def test_an_idempotent_request_is_sent_three_times_at_most(self) -> None:
        for retries in (0, 1, 2):
            with Server(*[reading] * (retries + 1)) as server:
                client = self.client(server, retries=retries)
                with self.unknown(server, "the connection was closed before the reply", "price"):
                    client.call("price", idempotent=True)

    def test_the_daemon_knows_whether_a_method_is_idempotent(self) -> None:
        with Server(reading) as first, Server(declaring(add=True)) as second:
            self.assertEqual(self.client(first, second).call("add"), "again")
        for declared in ({"add": False}, {}):
            with Server(reading) as first, Server(declaring(**declared)) as second:
                client = self.client(first, second)
                with self.unknown(first, "the connection was closed before the reply"):
                    client.call("add")

    def test_a_server_without_a_list_of_methods_has_none_idempotent(self) -> None:
        def unknown_method(peer: Peer) -> None:
            self.assertEqual(peer.read(), {"in": "methods"})
            peer.error("unknown_method")

        for result in (None, {"name": "add"}, ["add", 7, {"name": 7, "idempotent": True}, {"idempotent": True}]):
            with Server(reading, answering(result)) as server:
                client = self.client(server)
                with self.unknown(server, "the connection was closed before the reply"):
                    client.call("add")
        with Server(reading, unknown_method) as server:
            client = self.client(server)
            with self.unknown(server, "the connection was closed before the reply"):
                client.call("add")

    def test_a_daemon_that_dies_while_it_is_asked_is_asked_again(self) -> None:
        with Server(reading, reading, declaring(add=True)) as server:
            self.assertEqual(self.client(server, retries=1).call("add"), "again")

    def test_a_reset_is_a_loss(self) -> None:
        def resetting(peer: Peer) -> None:
            peer.read()
            peer.reset()

        with Server(resetting) as server:
            client = self.client(server)
            with self.unknown(server, "Connection reset by peer"):
                client.call("add", idempotent=False)

    def test_half_a_reply_is_a_loss(self) -> None:
        for length, where in [
            (1, "after 1 bytes of its length"),
            (3, "after 3 bytes of its length"),
            (4, "after 0 of 27 bytes"),
            (20, "after 16 of 27 bytes"),
        ]:

            def script(peer: Peer, length: int = length) -> None:
                peer.read()
                peer.write(peer.frame({"out": "a", "result": 123})[:length])

            with Server(script) as server:
                client = self.client(server)
                with self.unknown(server, f"the connection was closed in the middle of a reply, {where}"):
                    client.call("add", idempotent=False)

    def test_a_connection_that_ended_at_rest_is_replaced(self) -> None:
        left = threading.Event()

        def script(peer: Peer) -> None:
            answering("first")(peer)
            peer.socket.close()
            left.set()

        with Server(script, answering("second")) as server:
            client = self.client(server)
            self.assertEqual(client.call("add", idempotent=False), "first")
            self.assertTrue(left.wait(TIMEOUT))
            self.assertEqual(client.call("add", idempotent=False), "second")

    def test_what_comes_at_rest_belongs_to_no_request(self) -> None:
        sent = threading.Event()

        def unasked(peer: Peer) -> None:
            answering("first")(peer)
            peer.reply("wrong")
            sent.set()
            peer.expect_end()

        def overloaded(peer: Peer) -> None:
            answering("first")(peer)
            peer.error("overloaded")
            sent.set()
            peer.expect_end()

        def partly(peer: Peer) -> None:
            peer.read()
            peer.write(peer.frame({"out": "a", "result": "first"}) + b"\x30")
            sent.set()
            peer.expect_end()

        def together(peer: Peer) -> None:
            peer.read()
            peer.send({"out": "a", "result": "first"}, {"out": "a", "result": "wrong"})
            sent.set()
            peer.expect_end()

        for script in (unasked, overloaded, partly, together):
            sent.clear()
            with Server(script, answering("second")) as server:
                client = self.client(server)
                self.assertEqual(client.call("add", idempotent=False), "first")
                self.assertTrue(sent.wait(TIMEOUT))
                self.assertEqual(client.call("add", idempotent=False), "second")

    def test_a_request_that_is_not_taken_whole_is_sent_again(self) -> None:
        def script(peer: Peer) -> None:
            peer.read_bytes(1000)
            peer.reset()

        for unix in (False, True):
            with Server(script, unix=unix) as first, Server(measuring) as second:
                client = self.client(first, second, **FOR_HUGE)
                self.assertEqual(client.call("add", HUGE, idempotent=False), len(HUGE))

    def test_only_requests_without_a_reply_are_of_unknown_outcome(self) -> None:
        def script(peer: Peer) -> None:
            for n in range(5):
                self.assertEqual(peer.read()["params"], n)
            peer.reply(0)
            peer.reply(1)

        with Server(script) as server:
            outcomes = self.client(server).call_all([Request("add", n, False) for n in range(5)])
            self.assertEqual([outcome.result() for outcome in outcomes[:2]], [0, 1])
            for outcome in outcomes[2:]:
                with self.unknown(server, "the connection was closed before the reply"):
                    outcome.result()

    def test_requests_that_were_not_sent_yet_continue_elsewhere(self) -> None:
        def script(peer: Peer) -> None:
            for _ in range(64):
                peer.read()

        with Server(script) as first, Server(echoing) as second:
            client = self.client(first, second)
            outcomes = client.call_all([Request("add", n, n % 2 == 0) for n in range(100)])
            client.close()
        for n, outcome in enumerate(outcomes):
            if n < 64 and n % 2:
                self.assertIsInstance(outcome.error, UnknownOutcome)
            else:
                self.assertEqual(outcome.result(), n)

    def test_an_error_after_a_doubt_does_not_remove_it(self) -> None:
        for code in ("unknown_method", "bad_request", "too_large"):
            with Server(reading, refusing_with(code)) as server, self.client(server) as client:
                (outcome,) = client.call_all([Request("add", None, True)])
                self.error_reply(outcome, code, True)
        with Server(reading, refusing_with("overloaded"), reading, reading) as server:
            client = self.client(server)
            with self.unknown(server, "the connection was closed before the reply"):
                client.call("add", idempotent=True)

    def test_a_host_that_acknowledges_nothing_is_gone(self) -> None:
        def vanishing(peer: Peer) -> None:
            peer.read_bytes(1000) if is_sending else peer.read()
            drop_everything(peer.socket)
            ended.wait(TIMEOUT)

        is_sending, ended = False, threading.Event()
        with Server(vanishing) as server:
            client = self.client(server, silence=0.5)
            with self.unknown(server, "the host has acknowledged nothing for 0.5 s"):
                client.call("add", idempotent=False)
            ended.set()
        is_sending, ended = True, threading.Event()
        with Server(vanishing) as first, Server(measuring) as second:
            client = self.client(first, second, silence=0.5, **FOR_HUGE)
            self.assertEqual(client.call("add", HUGE, idempotent=False), len(HUGE))
            ended.set()

    def test_a_host_that_is_only_slow_is_not_gone(self) -> None:
        def slow_to_answer(peer: Peer) -> None:
            peer.read()
            has_looked.wait(TIMEOUT)
            peer.reply("late")

        def slow_to_read(peer: Peer) -> None:
            peer.read_bytes(4)
            has_looked.wait(TIMEOUT)
            peer.read_bytes(len(HUGE) + len('{"in":"add","params":""}'))
            peer.reply("late")

        is_silent, silence = Connection._is_silent, 0.5

        def counted(connection: Connection, waited: float) -> bool:
            if waited > 4 * silence:
                has_looked.set()
            return is_silent(connection, waited)

        for script, params in [(slow_to_answer, ""), (slow_to_read, HUGE)]:
            has_looked = threading.Event()
            with mock.patch.object(Connection, "_is_silent", counted), Server(script) as server:
                client = self.client(server, silence=silence, **FOR_HUGE)
                self.assertEqual(client.call("add", params, idempotent=False), "late")
                self.assertTrue(has_looked.is_set())


class Hostile(ClientCase):
    def bad(self, raw: bytes, reason: str, **options: Any) -> None:
        """Expects the reason for these bytes instead of a reply, and that the next request is answered."""
        ended = threading.Event()

        def script(peer: Peer) -> None:
            peer.read()
            peer.write(raw)
            peer.expect_end()
            ended.set()

        with Server(script, answering("well")) as server:
            client = self.client(server, **options)
            with self.assertRaises(BadReply) as caught:
                client.call("add", idempotent=True)
            self.assertEqual(str(caught.exception), f"add was sent to {server.address} and may have run: {reason}")
            self.assertTrue(ended.wait(TIMEOUT))
            self.assertEqual(client.call("add", idempotent=False), "well")

    def body(self, body: str | bytes, reason: str) -> None:
        raw = body if isinstance(body, bytes) else body.encode()
        self.bad(struct.pack("<I", len(raw)) + raw, reason)

    def test_a_reply_that_is_too_long_is_refused_at_once(self) -> None:
        self.bad(struct.pack("<I", 5097), "the reply has 5097 bytes, at most 5096 are accepted", max_frame=1000)
        self.bad(b"\xff\xff\xff\xff", "the reply has 4294967295 bytes, at most 1052672 are accepted")

    def test_the_longest_reply_is_accepted(self) -> None:
        result = "x" * (5096 - len('{"out": "any_r", "result": ""}'))
        with Server(answering(result)) as server:
            self.assertEqual(self.client(server, max_frame=1000).call("add"), result)

    def test_another_protocol_is_named(self) -> None:
        self.bad(b"HTTP/1.1 400 Bad Request\r\n\r\n", "the answer is an HTTP response, not a frame")
        self.bad(b"SSH-2.0-x\r\n", "the answer is an SSH banner, not a frame")
        self.bad(b"\x15\x03\x03\x00\x02\x02\x46", "the answer is a TLS alert, not a frame", max_frame=1000)
        self.bad(
            b"\0\0\0\x1a",
            "the reply has 436207616 bytes, at most 1052672 are accepted; "
            "in big-endian it has 26: perhaps the listener has that byte order",
        )

    def test_a_tls_alert_may_have_the_length_of_a_frame(self) -> None:
        def script(peer: Peer) -> None:
            peer.read()
            peer.write(b"\x15\x03\x03\x00\x02\x02\x46")

        with Server(script) as server:
            client = self.client(server)
            with self.unknown(server, "the connection was closed after a TLS alert instead of a frame"):
                client.call("add", idempotent=False)

    def test_a_body_that_is_not_json_is_named(self) -> None:
        prefix = "the reply cannot be read as JSON: "
        self.body("", prefix + "JSONDecodeError: Expecting value: line 1 column 1 (char 0)")
        self.body('{"out"', prefix + "JSONDecodeError: Expecting ':' delimiter: line 1 column 7 (char 6)")
        self.body('{"out":"a","result":1}{', prefix + "JSONDecodeError: Extra data: line 1 column 23 (char 22)")
        self.body('{"out":"a","result":NaN}', prefix + "ValueError: NaN is no JSON")
        self.body('{"out":"a","result":-Infinity}', prefix + "ValueError: -Infinity is no JSON")
        reason = "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 8: invalid start byte"
        self.body(b'{"out":"\xff","result":1}', prefix + reason)

    def test_json_beyond_the_library_is_named(self) -> None:
        for result in ("[" * 100_000 + "]" * 100_000, "1" * 5000):
            reply = b'{"out":"a","result":%b}' % result.encode()

            def script(peer: Peer, reply: bytes = reply) -> None:
                peer.read()
                peer.send(reply)
                peer.expect_end()

            with Server(script) as server:
                with self.assertRaisesRegex(BadReply, "cannot be read as JSON: (RecursionError|ValueError): "):
                    self.client(server).call("add")

    def test_json_that_is_no_reply_is_named(self) -> None:
        for body, reason in [
            ("[]", "the reply is not an object"),
            ("null", "the reply is not an object"),
            ("{}", 'the reply has no "out"'),
            ('{"out":"a"}', 'the reply has no "result"'),
            ('{"result":1}', 'the reply has no "out"'),
            ('{"out":"a","result":1,"more":2}', "the reply has an unknown member 'more'"),
            ('{"out":1,"result":1}', '"out" of the reply is not a string'),
            ('{"out":"error","result":1}', "the error reply is not an object"),
            ('{"out":"error","result":{"message":"m"}}', 'the error reply has no "code"'),
            ('{"out":"error","result":{"code":"c"}}', 'the error reply has no "message"'),
            ('{"out":"error","result":{"code":"c","message":"m","x":1}}', "the error reply has an unknown member 'x'"),
            ('{"out":"error","result":{"code":1,"message":"m"}}', "the error reply has the code 1"),
            ('{"out":"error","result":{"code":"C","message":"m"}}', "the error reply has the code 'C'"),
            ('{"out":"error","result":{"code":"c","message":1}}', '"message" of the error reply is not a string'),
        ]:
            with self.subTest(body=body):
                self.body(body, reason)

    def test_a_long_text_is_cut(self) -> None:
        long = "y" * 10_000
        self.body(json.dumps({"out": 1, "result": 2, long: 3}), f"the reply has an unknown member '{'y' * 79}…")

    def test_a_bad_reply_makes_those_behind_it_unknown(self) -> None:
        def script(peer: Peer) -> None:
            for _ in range(4):
                peer.read()
            peer.reply("well")
            peer.send(b"?", {"out": "a", "result": "not believed"})
            peer.expect_end()

        with Server(script, answering("again")) as server:
            requests = [Request("add", n, idempotent) for n, idempotent in enumerate([False, True, False, True])]
            first, second, third, fourth = self.client(server).call_all(requests)
            self.assertEqual((first.result(), fourth.result()), ("well", "again"))
            self.assertIsInstance(second.error, BadReply)
            reason = "the server broke the protocol: the reply cannot be read as JSON: JSONDecodeError: "
            with self.unknown(server, reason + "Expecting value: line 1 column 1 (char 0)"):
                third.result()

    def test_a_reply_before_the_request_is_no_reply(self) -> None:
        def script(peer: Peer) -> None:
            peer.read_bytes(4)
            peer.reply("early")
            peer.finish()

        with Server(script, measuring, unix=True) as server:
            self.assertEqual(self.client(server).call("add", LARGE, idempotent=False), len(LARGE))
        # The first wait is longer than the call.
        with Server(script, unix=True) as server, mock.patch("random.uniform", max):
            client = self.client(server, backoff=(500.0, 500.0))
            reason = "the server broke the protocol: there is a reply without a request"
            with self.assertRaisesRegex(Unavailable, f": {reason}$"):
                client.call("add", LARGE, timeout=3)
