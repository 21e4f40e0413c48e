"""Common parts of the tests of the client: scripts of its servers, and expectations."""

from __future__ import annotations

import socket
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fdpassd.client import Client, ErrorReply, Outcome, UnknownOutcome

from .server import Peer, Script, Server
from .worker import TIMEOUT

#: A timeout that a test waits for, in seconds: enough for a request to be sent by a busy machine.
SHORT = 1

#: Params that no Unix socket takes whole while the other end does not read.
LARGE = "x" * 1_000_000

#: Those that no TCP socket takes, and the option of a client that may send them.
HUGE = "x" * (8 << 20)
FOR_HUGE: dict[str, Any] = {"max_frame": 16 << 20}


def answering(*results: Any) -> Script:
    """Returns a script that answers this number of requests."""

    def script(peer: Peer) -> None:
        for result in results:
            peer.read()
            peer.reply(result)

    return script


def echoing(peer: Peer) -> None:
    """Answers each request by its params, until the client leaves."""
    try:
        while True:
            peer.reply(peer.read().get("params"))
    except EOFError:
        pass


def measuring(peer: Peer) -> None:
    """Answers one request by the length of its params."""
    peer.reply(len(peer.read()["params"]))


def reading(peer: Peer) -> None:
    """Reads a request, and closes the connection."""
    peer.read()


def refusing_with(code: str) -> Script:
    """Returns a script that answers a request by an error that closes the connection."""

    def script(peer: Peer) -> None:
        peer.read()
        peer.error(code)
        peer.finish()

    return script


def declaring(**methods: bool) -> Script:
    """Returns a script that declares methods, and then answers a request."""

    def script(peer: Peer) -> None:
        assert peer.read() == {"in": "methods"}
        peer.send({"out": "methods_r", "result": [{"name": n, "idempotent": i} for n, i in methods.items()]})
        if True in methods.values():
            peer.read()
            peer.reply("again")

    return script


class ClientCase(unittest.TestCase):
    def client(self, *servers: Server | str, **options: Any) -> Client:
        addresses = [server if isinstance(server, str) else server.address for server in servers]
        given = {"timeout": TIMEOUT, "backoff": (0.001, 0.01), "shuffle": False, **options}
        client = Client(addresses, **given)
        self.addCleanup(client.close)
        return client

    def refusing(self) -> str:
        """Returns an address that refuses connections: it is taken, and nothing listens there."""
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        self.addCleanup(bound.close)
        return f"127.0.0.1:{bound.getsockname()[1]}"

    @contextmanager
    def unknown(self, address: Server | str, reason: str, method: str = "add") -> Iterator[None]:
        """Expects that a request fails because its outcome is unknown."""
        address = address if isinstance(address, str) else address.address
        with self.assertRaises(UnknownOutcome) as caught:
            yield
        self.assertEqual(type(caught.exception), UnknownOutcome)
        self.assertEqual(str(caught.exception), f"{method} was sent to {address} and may have run: {reason}")
        self.assertIs(caught.exception.may_have_run, True)
        expected = TimeoutError if reason.startswith("no reply within") else ConnectionError
        self.assertIsInstance(caught.exception.__cause__, expected)

    def error_reply(self, outcome: Outcome, code: str, may_have_run: bool) -> None:
        error = outcome.error
        assert isinstance(error, ErrorReply), outcome
        self.assertEqual((error.code, error.message, error.may_have_run), (code, "a reason", may_have_run))
