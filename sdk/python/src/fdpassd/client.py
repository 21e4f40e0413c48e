"""A client of fdpassd that blocks, with several addresses.

::

    from fdpassd.client import Client

    with Client(["192.0.2.31:8080", "192.0.2.32:8080"], timeout=5) as client:
        price = client.call("price", {"item": "tea", "count": 2})

The protocol is fdpassd-rpc(7).
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple, Self

from ._address import Address, Deadline, Unconnected, is_service, seconds
from ._codec import codec
from ._connection import Connection, Lost, Pending
from ._failure import BadReply, Error, ErrorReply, Outcome, ResolveError, Unavailable, UnknownOutcome, why
from ._replies import ByteOrder, length_of
from ._srv import MAX_FAILURES, Service

__all__ = [
    "BadReply",
    "ByteOrder",
    "Client",
    "Error",
    "ErrorReply",
    "Outcome",
    "Request",
    "ResolveError",
    "Unavailable",
    "UnknownOutcome",
]

#: How many bytes the body of a reply may be longer than that of a request.
_ROOM = 4096

#: The end of a request that asks for a goaway. Daemons of before ignore the member.
_ASKS = b',"goaway":true}'

#: Methods that every daemon has, and that are idempotent.
_OWN = frozenset({"ping", "methods"})

_dumps = codec("json").dumps


class Request(NamedTuple):
    """A request for `Client.call_all`.

    :param idempotent: Whether it may run more than once; None is what the client was made with.
    """

    method: str
    params: Any = None
    idempotent: bool | None = None


class Client:
    """A client of one daemon, or of several that have the same methods.

    It has one connection, to one address at a time, which it opens when it needs it. When a connection is refused or
    ends, it tries the next address at once; after each round, and after a connection that has ended without a reply, it
    waits for a random time up to a bound that doubles (full jitter).

    The first request of a connection asks the daemon for a goaway, so that after a polite end the client knows which of
    its requests were not executed.

    A request is sent once more only if it surely was not executed, until the deadline; or if it is idempotent, at most
    `retries` times. Its first run may then still be under way. Every other request whose connection ends before the
    reply fails with `UnknownOutcome`.

    Threads may share a client. Their calls are performed one after the other: the time in which one waits for the other
    is part of its own timeout. A forked child has no part in the connection of its parent, and opens its own.

    :param addresses: ``HOST:PORT``, ``[IPV6]:PORT``, ``unix:/PATH`` or ``srv:_SERVICE._PROTOCOL.NAME``, one or several.
        The last one is a name whose SRV records have the daemons (RFC 2782); it needs ``fdpassd[srv]``.
    :param timeout: The seconds for a call, all attempts included. If it is longer than the daemon's
        ``request-timeout``, the daemon's own reply comes first.
    :param connect_timeout: The seconds for each attempt to connect, and for each lookup of a name.
    :param idempotent: The methods that may run more than once. By default the daemon is asked, by ``methods``, before a
        request is sent once more.
    :param retries: How often a request is sent once more although it may have run.
    :param backoff: The bounds of the first wait and of the longest, in seconds.
    :param silence: After how many seconds without an acknowledgement the host of a TCP connection is taken for gone.
    :param shuffle: Whether the order of the addresses is random, so that many clients spread over them.
    :param max_frame: The daemon's ``max-frame``. The limit of a request in bytes; a reply may have 4 KiB more.
    :param byte_order: The ``byte-order`` of the listener; "little" also fits "auto".
    :param nameservers: The nameservers that are asked for SRV records and for the addresses of their targets, as
        ``ADDRESS`` or ``ADDRESS:PORT``, instead of those of ``/etc/resolv.conf``.
    :raises ValueError: An argument is not valid.
    :raises ImportError: There is a name of SRV records, and dnspython is not installed.
    """

    def __init__(
        self,
        addresses: str | Iterable[str],
        *,
        timeout: float = 60.0,
        connect_timeout: float = 5.0,
        idempotent: Collection[str] | None = None,
        retries: int = 2,
        backoff: tuple[float, float] = (0.05, 2.0),
        silence: float = 10.0,
        shuffle: bool = True,
        max_frame: int = 1 << 20,
        byte_order: ByteOrder = "little",
        nameservers: Iterable[str] | None = None,
    ) -> None:
        asked = None if nameservers is None else list(nameservers)
        self._addresses: list[Address | Service] = [
            Service(text, asked) if is_service(text) else Address(text)
            for text in ([addresses] if isinstance(addresses, str) else addresses)
        ]
        if not self._addresses:
            raise ValueError("a client needs an address")
        if byte_order not in ("little", "big"):
            raise ValueError(f'byte_order {byte_order!r} is not "little" or "big"')
        if shuffle:
            random.shuffle(self._addresses)
        self._timeout = seconds("timeout", timeout)
        self._connect_timeout = seconds("connect_timeout", connect_timeout)
        self._backoff = (seconds("backoff", backoff[0]), seconds("backoff", backoff[1]))
        self._silence = seconds("silence", silence)
        self._idempotent = None if idempotent is None else frozenset(idempotent)
        if retries < 0:
            raise ValueError("retries is at least 0")
        if not 1 <= max_frame <= 256 << 20:
            raise ValueError("max_frame is from 1 to 256 MiB")
        self._retries = retries
        self._max_frame = max_frame
        self._byte_order: ByteOrder = byte_order
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        #: The address to which the next connection is made, and the one of the connection.
        self._next = 0
        self._current = 0
        #: When it may be made, and how many waits there were since the last reply.
        self._not_before = 0.0
        self._waits = 0
        #: Why a request was not executed at each address, during a call.
        #: By the indices and the names of addresses.
        self._reasons: dict[tuple[int, str], Exception] = {}
        self._is_closed = False
        _clients.add(self)

    def call(
        self, method: str, params: Any = None, *, timeout: float | None = None, idempotent: bool | None = None
    ) -> Any:
        """Sends a request, and returns the result.

        :param timeout: The seconds for this call instead of those of the client.
        :param idempotent: Whether the method may run more than once, instead of what the client was made with.
        :raises ErrorReply: The daemon or the method answers with an error.
        :raises Unavailable: No daemon has executed the request.
        :raises UnknownOutcome: The request was sent and may have run, and there is no reply.
        :raises ValueError: The params are not JSON, the request is longer than `max_frame`, or the client is closed.
        """
        return self.call_all([Request(method, params, idempotent)], timeout=timeout)[0].result()

    def call_all(
        self, requests: Iterable[Request | tuple[str, Any]], *, timeout: float | None = None
    ) -> list[Outcome]:
        """Sends requests without waiting for the replies in between, and returns the outcomes in the same order.

        On one connection the daemon executes them one after the other, also after an error. They should not depend on
        each other: if the connection ends, those that are sent once more run later, perhaps on another host.

        :param timeout: The seconds for all of them together.
        :raises ValueError: A request cannot be sent; then none is.
        """
        deadline = Deadline(self._timeout if timeout is None else seconds("timeout", timeout))
        pending = [self._pending(Request(*request)) for request in requests]
        if self._lock.acquire(timeout=min(deadline.left(), threading.TIMEOUT_MAX)):
            try:
                if self._is_closed:
                    raise ValueError("the client is closed")
                self._perform(pending, deadline)
            finally:
                self._lock.release()
        else:
            self._give_up(pending, deadline, "the calls of other threads took longer")
        return [request.outcome for request in pending if request.outcome is not None]

    def close(self) -> None:
        """Closes the connection, after a call of another thread. Later calls are errors."""
        with self._lock:
            self._is_closed = True
            self._drop()

    @property
    def address(self) -> str | None:
        """The address to which the client is connected, as far as it knows."""
        connection = self._connection
        return None if connection is None else connection.address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pending(self, request: Request) -> Pending:
        method, params, idempotent = request
        if not isinstance(method, str):
            raise TypeError("the method is a str")
        body = _dumps({"in": method} if params is None else {"in": method, "params": params})
        if len(body) > self._max_frame:
            raise ValueError(f"the request {method} has {len(body)} bytes, at most {self._max_frame} are possible")
        if idempotent is None:
            idempotent = method in _OWN or (None if self._idempotent is None else method in self._idempotent)
        pack = length_of(self._byte_order).pack
        plain, asking = pack(len(body)) + body, body[:-1] + _ASKS
        has_space = len(asking) <= self._max_frame
        return Pending(method, (plain, pack(len(asking)) + asking if has_space else plain), idempotent)

    def _perform(self, requests: list[Pending], deadline: Deadline) -> None:
        """Gives each request its outcome."""
        self._reasons = {}
        while pending := [request for request in requests if request.outcome is None]:
            try:
                connection = self._connected(deadline)
                self._decide(connection, pending, deadline)
                connection.exchange([request for request in pending if request.outcome is None], deadline)
            except Lost as lost:
                self._lose(lost, pending)
                if deadline.left() == 0:
                    self._give_up(pending, deadline, "there was no time left")
            except BaseException:
                # A reply may be outstanding, which is not that of the next request.
                self._drop()
                raise

    def _connected(self, deadline: Deadline) -> Connection:
        """Returns the connection, or a new one.

        :raises Lost: There is none, at no address or until the deadline.
        """
        if self._connection is not None:
            if self._connection.is_usable():
                return self._connection
            # Perhaps it was a goaway: the daemon at this address may not accept connections any more.
            self._addresses[self._current].note_end(self._connection.address, True)
            self._drop()
            self._next = (self._next + 1) % len(self._addresses)
        time.sleep(min(max(0.0, self._not_before - time.monotonic()), deadline.left()))
        for _ in self._addresses:
            if deadline.left() == 0:
                break
            address = self._addresses[self._next]
            try:
                name, connected = address.connect(self._connect_timeout, deadline)
            except Unconnected as error:
                for name, reason in error.failures:
                    self._note(self._next, name, reason)
                self._next = (self._next + 1) % len(self._addresses)
                continue
            max_reply = self._max_frame + _ROOM
            self._current = self._next
            self._connection = Connection(connected, name, self._byte_order, max_reply, self._silence)
            return self._connection
        raise Lost(ConnectionRefusedError("no address accepts a connection"), may_have_run=False)

    def _decide(self, connection: Connection, pending: list[Pending], deadline: Deadline) -> None:
        """Decides which of the requests that may have run are sent once more, if only the daemon knows.

        :raises Lost: The connection has ended.
        """
        doubtful = [request for request in pending if request.doubt is not None and request.idempotent is None]
        if not doubtful:
            return
        asked = self._pending(Request("methods"))
        connection.exchange([asked], deadline)
        names = _idempotent_of(asked.outcome)
        for request in doubtful:
            request.idempotent = request.method in names
            if not request.idempotent:
                request.settle_doubt()

    def _lose(self, lost: Lost, pending: list[Pending]) -> None:
        """Drops the connection, and decides about the requests that it has taken and when to connect again."""
        if self._connection is not None:
            address, has_replied = self._connection.address, self._connection.has_replied
            self._drop()
            self._addresses[self._current].note_end(address, has_replied)
            self._next = (self._next + 1) % len(self._addresses)
            self._note(self._current, address, lost.reason)
            if has_replied:
                self._waits = 0
            for request in pending:
                if request.outcome is None and request.is_sent and lost.may_have_run:
                    request.add_doubt(address, lost.reason, self._retries)
        for request in pending:
            request.sent = 0
        first, longest = self._backoff
        self._not_before = time.monotonic() + random.uniform(0, min(longest, first * 2 ** min(self._waits, 30)))
        self._waits += 1

    def _give_up(self, pending: list[Pending], deadline: Deadline, otherwise: str) -> None:
        """Ends the requests without an outcome at the deadline."""
        causes = {address: reason for (_, address), reason in self._reasons.items()}
        texts = (f"{address}: {why(reason)}" for address, reason in causes.items())
        reasons = "; ".join(texts) or otherwise
        for request in pending:
            if request.outcome is None:
                request.settle_doubt()
            if request.outcome is None:
                text = f"{request.method} was not executed within {deadline.timeout:g} s: {reasons}"
                request.outcome = Outcome(error=Unavailable(text, dict(causes)))

    def _note(self, index: int, address: str, reason: Exception) -> None:
        """Notes why a request was not executed at an address. The end of the time counts only if there is no other reason.
        Of a name with SRV records, which may have hundreds of targets, the last ones are kept."""
        key = (index, address)
        if isinstance(reason, TimeoutError) and key in self._reasons:
            return
        known = [other for other in self._reasons if other[0] == index]
        if key not in self._reasons and len(known) >= MAX_FAILURES:
            del self._reasons[known[0]]
        self._reasons[key] = reason

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _forget(self) -> None:
        """In a forked child: closes the copy of the connection, and lets no call wait for a thread of the parent."""
        self._lock = threading.Lock()
        self._drop()
        for address in self._addresses:
            address.forget()


def _idempotent_of(outcome: Outcome | None) -> frozenset[str]:
    """Returns the names of the idempotent methods in the result of `methods`; none if there is no such result."""
    if outcome is None or outcome.error is not None:
        return frozenset()
    methods = outcome.result()
    if not isinstance(methods, list):
        return frozenset()
    members = [method for method in methods if isinstance(method, dict) and method.get("idempotent") is True]
    return frozenset(name for method in members if isinstance(name := method.get("name"), str))


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork() -> None:
    for client in list(_clients):
        client._forget()


os.register_at_fork(after_in_child=_after_fork)
