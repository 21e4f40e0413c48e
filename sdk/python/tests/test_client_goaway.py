"""The polite end of a connection: which requests are sent once more after a goaway."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

from fdpassd.client import BadReply, Request, Unavailable, UnknownOutcome

from .clients import ClientCase, answering, reading
from .server import Peer, Server


def leaving(answers: int, read: Any = None, requests: int = 4) -> Any:
    """Returns a script that reads requests, answers the first of them, and ends the connection politely."""

    def script(peer: Peer) -> None:
        for _ in range(requests):
            peer.read()
        for number in range(answers):
            peer.reply(number)
        peer.goaway(answers if read is None else read)

    return script


class Goaways(ClientCase):
    def test_the_first_request_of_a_connection_asks(self) -> None:
        bodies: list[Any] = []

        def recording(peer: Peer) -> None:
            for _ in range(3):
                bodies.append(json.loads(peer.read_body()))
                peer.reply()

        with Server(recording, recording) as server:
            client = self.client(server)
            for _ in range(2):
                client.call("add", 1)
                client.call_all([("add", 2), ("add", None)])
                client._drop()
        first = [{"in": "add", "params": 1, "goaway": True}, {"in": "add", "params": 2}, {"in": "add"}]
        self.assertEqual(bodies, first * 2)

    def test_a_request_that_has_no_space_leaves_it_to_the_next(self) -> None:
        bodies: list[bytes] = []

        def recording(peer: Peer) -> None:
            for _ in range(3):
                bodies.append(peer.read_body())
                peer.reply()

        long = "x" * 20
        with Server(recording) as server:
            client = self.client(server, max_frame=44)
            client.call_all([("add", long), ("add", 7), ("add", 8)])
        whole = [b'{"in":"add","params":"%s"}' % long.encode(), b'{"in":"add","params":7,"goaway":true}']
        self.assertEqual(bodies, [*whole, b'{"in":"add","params":8}'])

    def test_requests_after_the_number_are_sent_elsewhere(self) -> None:
        requests = [Request("add", number, idempotent=False) for number in range(4)]
        for answers in range(5):
            with Server(leaving(answers)) as first:
                rest = [Server(answering(*range(answers, 4)))] if answers < 4 else []
                for server in rest:
                    server.begin()
                client = self.client(first, *rest)
                results = [outcome.result() for outcome in client.call_all(requests)]
                self.assertEqual(results, list(range(4)))
                client.close()
                for server in rest:
                    server.__exit__(None)

    def test_a_goaway_at_rest_is_not_noticed(self) -> None:
        def polite(peer: Peer) -> None:
            peer.read()
            peer.reply(1)
            peer.goaway(1)

        with Server(polite) as first, Server(answering(2)) as second:
            client = self.client(first, second)
            self.assertEqual(client.call("add", idempotent=False), 1)
            self.assertEqual(client.call("add", idempotent=False), 2)

    def test_a_goaway_amid_a_request_excludes_it(self) -> None:
        def amid(peer: Peer) -> None:
            peer.read_bytes(100)
            peer.goaway(0)

        with Server(amid) as first, Server(answering("done")) as second:
            client = self.client(first, second)
            self.assertEqual(client.call("add", "x" * 900_000, idempotent=False), "done")

    def test_a_wrong_number_leaves_the_outcome_unknown(self) -> None:
        for read in (0, 2, 5, -1, 1.0, True, "1", None):
            def script(peer: Peer, read: Any = read) -> None:
                for _ in range(3):
                    peer.read()
                peer.reply("first")
                peer.send({"out": "goaway", "result": {"read": read, "reason": "draining"}})
                peer.finish()

            with Server(script) as server:
                client = self.client(server)
                requests = [Request("add", number, idempotent=False) for number in range(3)]
                outcomes = client.call_all(requests)
                self.assertEqual(outcomes[0].result(), "first")
                self.assertIsInstance(outcomes[1].error, BadReply, read)
                self.assertEqual(type(outcomes[2].error), UnknownOutcome, read)

    def test_later_versions_may_add_members_and_reasons(self) -> None:
        def script(peer: Peer) -> None:
            peer.read()
            peer.send({"out": "goaway", "result": {"read": 0, "reason": "moon", "after": 7}})
            peer.finish()

        with Server(script) as first, Server(answering(1)) as second:
            self.assertEqual(self.client(first, second).call("add", idempotent=False), 1)

    def test_an_earlier_doubt_stays(self) -> None:
        # The first connection ends without a goaway, so the request may have run there.
        with Server(reading, leaving(0, requests=1), reading) as server:
            client = self.client(server, retries=1)
            with self.unknown(server, "the connection was closed before the reply"):
                client.call("add", idempotent=True)

    def test_a_client_without_another_host_reports_the_reason(self) -> None:
        # The wait before the next attempt is random, and is the longest one here.
        with Server(leaving(0, requests=1)) as server, mock.patch("random.uniform", max):
            client = self.client(server, timeout=1, backoff=(60, 60))
            with self.assertRaisesRegex(Unavailable, "the daemon has sent a goaway: draining") as caught:
                client.call("add", idempotent=False)
            self.assertIs(caught.exception.may_have_run, False)

