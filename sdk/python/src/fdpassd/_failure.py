"""The errors of a client: an error reply, or the reason why there is no reply, and whether the request may have run."""

from __future__ import annotations

from typing import Any

#: The codes of requests that the daemon surely has not executed. No method can send them.
NOT_RUN = frozenset({"bad_request", "unknown_method", "too_large", "overloaded", "shutting_down"})

#: Of these, the ones for which the same request may succeed later or on another host. The daemon closes the connection.
TRANSIENT = frozenset({"overloaded", "shutting_down"})

#: The codes after which the daemon closes the connection, whatever is pending on it.
CLOSING = TRANSIENT | {"too_large"}

#: The codes that a daemon sends for a frame that it has not received whole.
OF_A_PART = CLOSING | {"bad_request", "timeout"}


class Error(Exception):
    """A request has no result.

    `may_have_run` is False only if the method surely was not executed.
    """

    may_have_run: bool = True


class ErrorReply(Error):
    """The reply is an error: of the daemon or of the method.

    The code is for programs, the message for people. fdpassd-rpc(7) lists the codes of the daemon; of these,
    ``bad_request``, ``unknown_method``, ``too_large``, ``overloaded`` and ``shutting_down`` mean that the method was
    not executed. After ``crashed`` and ``timeout`` it may have had some of its effects.
    """

    code: str
    message: str

    def __init__(self, code: str, message: str, may_have_run: bool = True) -> None:
        super().__init__(code, message, may_have_run)
        self.code = code
        self.message = message
        self.may_have_run = may_have_run

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Unavailable(Error):
    """No daemon has executed the request before the deadline: there was no connection, or it was not sent whole, or it
    was answered by ``overloaded`` or ``shutting_down``. The message has the last reason of each address; of a name with
    SRV records, those of its last 16 targets."""

    may_have_run = False

    #: These reasons by the addresses; a reason is an `OSError` or an `ErrorReply`.
    causes: dict[str, Exception]

    def __init__(self, text: str, causes: dict[str, Exception] | None = None) -> None:
        super().__init__(text)
        self.causes = {} if causes is None else causes


class ResolveError(OSError):
    """The daemons of a name of SRV records are not known, or the addresses of one of them.

    The values of `kind`: ``no_nameserver``, ``no_such_name``, ``no_records``, ``not_available`` (the target is ``.``),
    ``server_failed``, ``unreachable``, ``bad_answer``. That no nameserver has answered in time is a `TimeoutError`.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind

    @property
    def is_final(self) -> bool:
        """Whether no nameserver knows more."""
        return self.kind in ("no_such_name", "no_records", "not_available")


class UnknownOutcome(Error):
    """The request was sent, and there is no reply. The method may have run, or may still be running.

    ``__cause__`` is a `TimeoutError` after the deadline, or a `ConnectionError`.
    """


class BadReply(UnknownOutcome):
    """The reply breaks the protocol: it is too long, not JSON, or not ``{"out": NAME, "result": ANY}``."""


class Malformed(Exception):
    """The received bytes break the protocol."""


class Outcome:
    """The outcome of one request."""

    __slots__ = ("_result", "error")

    #: Why there is no result; None if there is one.
    error: Error | None

    def __init__(self, result: Any = None, error: Error | None = None) -> None:
        self._result = result
        self.error = error

    def result(self) -> Any:
        """Returns the result.

        :raises Error: There is none.
        """
        if self.error is not None:
            raise self.error
        return self._result

    def __repr__(self) -> str:
        return f"Outcome({self._result!r})" if self.error is None else f"Outcome(error={self.error!r})"


def why(error: Exception) -> str:
    """Returns a reason for people, without the number of a system error."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
