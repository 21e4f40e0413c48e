"""One connection of a client: requests, and their replies in the same order."""

from __future__ import annotations

import math
import select
import socket
import time
from collections import deque
from collections.abc import Iterable
from itertools import islice
from struct import Struct
from typing import Any, NoReturn

from ._address import Deadline
from ._failure import (
    CLOSING,
    NOT_RUN,
    OF_A_PART,
    TRANSIENT,
    BadReply,
    ErrorReply,
    Malformed,
    Outcome,
    UnknownOutcome,
    why,
)
from ._replies import ByteOrder, Frames, Goaway, Reply, reply_of

#: The most requests that are sent before the reply to the first of them: the most of unknown outcome if a host dies.
WINDOW = 64

#: How many bytes are received at a time.
_PIECE = 1 << 16

#: The longest time between two looks at a connection without events, in seconds.
_LOOK = 1.0

#: Of `struct tcp_info` of linux/tcp.h: how many retransmissions and probes in a row were not acknowledged, and for how
#: many milliseconds the peer has sent no data and no acknowledgement.
_TCP_INFO = Struct("@2xBB48xII")


class Lost(Exception):
    """A connection has ended, or there is none.

    :param reason: Why.
    :param may_have_run: Whether requests that were sent whole, and are not answered, may have been executed.
    """

    def __init__(self, reason: Exception, may_have_run: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.may_have_run = may_have_run


class Pending:
    """A request that has no outcome yet."""

    __slots__ = ("doubt", "doubts", "frame", "frames", "idempotent", "method", "outcome", "sent")

    def __init__(self, method: str, frames: tuple[bytes, bytes], idempotent: bool | None) -> None:
        """:param frames: The frame, and the one that also asks for a goaway; the same if that would be too long."""
        self.method = method
        self.frames = frames
        #: That of the two which is sent.
        self.frame = frames[0]
        #: None if only the daemon knows.
        self.idempotent = idempotent
        #: How many bytes of the frame this connection has taken.
        self.sent = 0
        #: Why a run of it has an unknown outcome, and how many of them have.
        self.doubt: tuple[str, Exception] | None = None
        self.doubts = 0
        self.outcome: Outcome | None = None

    def begin(self, asks: bool) -> bool:
        """Chooses the frame, of which nothing is sent yet. Returns whether it asks for a goaway."""
        self.frame = self.frames[asks]
        self.sent = 0
        return self.frame is not self.frames[0]

    @property
    def is_sent(self) -> bool:
        return self.sent == len(self.frame)

    def answer(self, reply: Reply) -> None:
        if reply.code is None:
            self.outcome = Outcome(reply.result)
            return
        may_have_run = reply.code not in NOT_RUN or self.doubt is not None
        self.outcome = Outcome(error=ErrorReply(reply.code, reply.message, may_have_run))

    def fail(self, kind: type[UnknownOutcome], address: str, reason: Exception) -> None:
        """Stores that it was sent to this address, and that there is no reply."""
        error = kind(f"{self.method} was sent to {address} and may have run: {why(reason)}")
        error.__cause__ = reason
        self.outcome = Outcome(error=error)

    def add_doubt(self, address: str, reason: Exception, retries: int) -> None:
        """Notes that a run has an unknown outcome, and fails unless it may be sent once more."""
        self.doubt = (address, reason)
        self.doubts += 1
        if self.idempotent is False or self.doubts > retries:
            self.settle_doubt()

    def settle_doubt(self) -> None:
        """Fails if a run has an unknown outcome."""
        if self.doubt is not None:
            self.fail(UnknownOutcome, *self.doubt)


class Connection:
    """A connection, idle between two exchanges.

    :param silence: After how many seconds without an acknowledgement the host of a TCP connection is taken for gone.
    """

    def __init__(
        self, connected: socket.socket, address: str, order: ByteOrder, max_reply: int, silence: float
    ) -> None:
        self._socket = connected
        self.address = address
        #: Whether a request was answered, so that the next wait is a short one again.
        self.has_replied = False
        #: How many requests were answered, and whether one that asks for a goaway has begun.
        self._answered = 0
        self._has_asked = False
        self._frames = Frames(order, max_reply)
        self._silence = silence
        self._is_tcp = connected.family != socket.AF_UNIX
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)
        if self._is_tcp:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._probe_every(int(min(max(silence / 3, 1), 3600)))

    def _probe_every(self, interval: int) -> None:
        """The other kernel acknowledges each probe, so that its silence is noticed while a method takes long."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, interval)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)

    def close(self) -> None:
        self._socket.close()

    def is_usable(self) -> bool:
        """Returns whether the connection can carry another request: nothing has arrived, not even its end."""
        return self._frames.is_empty and not self._poll.poll(0)

    def exchange(self, requests: Iterable[Pending], deadline: Deadline) -> None:
        """Sends requests and stores the outcomes of those that are answered, which are all of them unless it raises.

        :raises Lost: The connection can no longer be used.
        """
        unsent = deque(requests)
        for request in unsent:
            self._has_asked |= request.begin(asks=not self._has_asked)
        sent: deque[Pending] = deque()
        broken: OSError | None = None
        while sent or unsent:
            events = select.POLLIN
            if broken is None and unsent and len(sent) < WINDOW:
                try:
                    if not self._send(unsent, sent):
                        events |= select.POLLOUT
                except OSError as error:
                    # The reason may have been received before: `overloaded`, for example.
                    broken = error
            if self._wait(events, deadline) & ~select.POLLOUT:
                self._receive(sent, unsent, broken)

    def _send(self, unsent: deque[Pending], sent: deque[Pending]) -> bool:
        """Sends what the socket takes. Returns whether that was all that may be sent now.

        :raises OSError: The socket is broken.
        """
        first = unsent[0]
        pieces: list[Any] = [memoryview(first.frame)[first.sent :]]
        pieces += [request.frame for request in islice(unsent, 1, WINDOW - len(sent))]
        try:
            count = self._socket.sendmsg(pieces, [], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        for _ in pieces:
            request = unsent[0]
            taken = min(count, len(request.frame) - request.sent)
            request.sent += taken
            count -= taken
            if not request.is_sent:
                return False
            sent.append(unsent.popleft())
        return True

    def _wait(self, events: int, deadline: Deadline) -> int:
        """Returns what has happened: events of poll(2).

        :raises Lost: Nothing has, until the deadline; or the host is gone.
        """
        self._poll.modify(self._socket, events)
        began = time.monotonic()
        while (left := deadline.left()) > 0:
            look = min(left, _LOOK, self._silence / 4)
            for _, found in self._poll.poll(math.ceil(look * 1000)):
                return found
            if self._is_silent(time.monotonic() - began):
                raise Lost(ConnectionAbortedError(f"the host has acknowledged nothing for {self._silence:g} s"))
        raise Lost(TimeoutError(f"no reply within {deadline.timeout:g} s"))

    def _is_silent(self, waited: float) -> bool:
        """Returns whether nothing has come from the host for too long, although its kernel was asked more than once.

        TCP_USER_TIMEOUT would also end a connection whose host acknowledges, but has no space for more requests.
        """
        if not self._is_tcp or waited < self._silence:
            return False
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        retransmissions, probes, *quiet = _TCP_INFO.unpack(info)
        return bool(max(retransmissions, probes) > 1 and min(quiet) >= self._silence * 1000)

    def _receive(self, sent: deque[Pending], unsent: deque[Pending], broken: OSError | None) -> None:
        """Receives once, and stores the outcomes of what is answered.

        :raises Lost: The connection has ended, or is about to.
        """
        try:
            data = self._socket.recv(_PIECE)
        except BlockingIOError:
            if broken is None:
                return
            raise Lost(_end(broken)) from None
        except OSError as error:
            raise Lost(_end(error)) from None
        if not data:
            where = self._frames.part() or " before the reply"
            raise Lost(ConnectionResetError("the connection was closed" + where))
        try:
            for body in self._frames.feed(data):
                self._settle(reply_of(body), sent, unsent)
        except Malformed as error:
            if sent:
                sent.popleft().fail(BadReply, self.address, error)
            raise Lost(ConnectionAbortedError(f"the server broke the protocol: {error}")) from None

    def _settle(self, reply: Reply | Goaway, sent: deque[Pending], unsent: deque[Pending]) -> None:
        """Gives a reply to its request.

        :raises Lost: It is the last one of the connection.
        """
        if isinstance(reply, Goaway):
            if reply.read != self._answered:
                raise Malformed(f"the goaway counts {reply.read} requests, and {self._answered} were answered")
            raise Lost(ConnectionAbortedError(f"the daemon has sent a goaway: {reply.reason}"), may_have_run=False)
        if not sent:
            _settle_part(reply, unsent)
        request = sent[0]
        if reply.code in TRANSIENT:
            raise Lost(ErrorReply(reply.code, reply.message, False), may_have_run=False)
        self.has_replied = True
        self._answered += 1
        sent.popleft()
        request.answer(reply)
        if reply.code in CLOSING:
            # The daemon discards everything after it.
            raise Lost(ErrorReply(reply.code, reply.message, False), may_have_run=False)


def _end(error: OSError) -> ConnectionError:
    """Returns the error of a connection, which also is one if the kernel reports it as that of a host or a time."""
    return error if isinstance(error, ConnectionError) else ConnectionAbortedError(why(error))


def _settle_part(reply: Reply, unsent: deque[Pending]) -> NoReturn:
    """Takes a reply although no request is sent whole: the last one of the connection."""
    if reply.code is None or reply.code not in OF_A_PART:
        raise Malformed("there is a reply without a request")
    if unsent and unsent[0].sent and reply.code in ("bad_request", "too_large"):
        unsent[0].answer(reply)
    raise Lost(ErrorReply(reply.code, reply.message, False), may_have_run=False)
