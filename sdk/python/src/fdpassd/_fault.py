"""Errors that methods send to their clients."""

from __future__ import annotations

import re

_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")

#: Codes that only the daemon itself uses.
_RESERVED = frozenset({"bad_request", "unknown_method", "too_large", "timeout", "overloaded", "shutting_down"})


class Fault(Exception):
    """An error that the client of the request receives in place of a result.

    The code is for programs: lower-case letters, digits and underscores. The message is for people. Of the daemon's
    own codes a method may use ``bad_params``, ``internal`` and ``crashed``.

    :raises ValueError: The code has other characters or is reserved for the daemon.
    """

    code: str
    message: str

    def __init__(self, code: str, message: str = "") -> None:
        if not _CODE.fullmatch(code):
            raise ValueError(f"{code!r} is not a valid code: [a-z][a-z0-9_]{{0,63}}")
        if code in _RESERVED:
            raise ValueError(f"{code!r} is reserved for the daemon")
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
