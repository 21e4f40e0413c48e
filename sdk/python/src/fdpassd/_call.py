"""The circumstances of a request."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any


class Call:
    """The circumstances of one request."""

    __slots__ = ("_message", "_received", "_why", "_look", "_task", "_has_begun")

    def __init__(self, message: dict[str, Any], received: float, look: Callable[[], None] | None = None) -> None:
        self._message = message
        self._received = received
        self._why: str | None = None
        self._look = look
        self._task: Any = None
        self._has_begun = False

    @property
    def method(self) -> str:
        """The name of the method."""
        name: str = self._message["in"]
        return name

    @property
    def client(self) -> int:
        """The client's number: the same for all requests of a connection, in every worker, and never reused."""
        client: int = self._message["client"]
        return client

    @property
    def peer(self) -> str:
        """The client's address and port; empty for a client of a Unix socket."""
        peer: str = self._message.get("peer", "")
        return peer

    @property
    def via(self) -> str | None:
        """The load balancer that the client came through, if it has reported `peer`; empty if it uses a Unix socket."""
        return self._message.get("via")

    @property
    def pid(self) -> int | None:
        """The process of a client of a Unix socket."""
        return self._message.get("pid")

    @property
    def uid(self) -> int | None:
        """The user of a client of a Unix socket."""
        return self._message.get("uid")

    @property
    def attempt(self) -> int:
        """1, or 2 if the request runs again because its worker or app died in it."""
        attempt: int = self._message.get("attempt", 1)
        return attempt

    @property
    def deadline(self) -> float | None:
        """The `time.monotonic()` at which the client gets `timeout`; None without a limit."""
        timeout: float | None = self._message.get("timeout")
        return None if timeout is None else self._received + timeout / 1000

    @property
    def why_cancelled(self) -> str | None:
        """`gone` if the client has left, `timeout` if its time is up, else None."""
        if self._why is None and self._look is not None:
            self._look()
        return self._why

    @property
    def is_cancelled(self) -> bool:
        """Whether no client waits for the answer any more."""
        return self.why_cancelled is not None

    @property
    def is_connected(self) -> bool:
        """Whether the client has not left, as far as is known."""
        return self.why_cancelled != "gone"


current: ContextVar[Call] = ContextVar("fdpassd.call")


def call() -> Call:
    """Returns the circumstances of the request that is being answered.

    :raises RuntimeError: There is none: the caller is not a method, and was called by none.
    """
    try:
        return current.get()
    except LookupError:
        raise RuntimeError("call() is for methods") from None
