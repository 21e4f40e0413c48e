"""The reading side of a client: frames, and the replies in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from struct import Struct
from typing import Any, Literal, NamedTuple, NoReturn

from ._failure import Malformed

ByteOrder = Literal["little", "big"]

_LENGTHS: dict[str, Struct] = {"little": Struct("<I"), "big": Struct(">I")}
_OTHER: dict[str, ByteOrder] = {"little": "big", "big": "little"}
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_ENVELOPE = frozenset({"out", "result"})
_ERROR = frozenset({"code", "message"})

#: The most characters of an error that are shown.
_MAX_SHOWN = 80


def length_of(order: ByteOrder) -> Struct:
    """Returns the format of a length."""
    return _LENGTHS[order]


class Frames:
    """Finds the bodies of frames in what is received. A body takes memory only as it arrives."""

    def __init__(self, order: ByteOrder, limit: int) -> None:
        self._order = order
        self._limit = limit
        self._unpack = _LENGTHS[order].unpack_from
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Returns each body that is complete with these bytes.

        :raises Malformed: A length is above the limit.
        """
        buffer = self._buffer
        buffer += data
        begin = 0
        try:
            while len(buffer) - begin >= 4:
                (length,) = self._unpack(buffer, begin)
                if length > self._limit:
                    raise Malformed(self._why_too_long(bytes(buffer[begin : begin + 4]), length))
                end = begin + 4 + length
                if end > len(buffer):
                    break
                yield bytes(buffer[begin + 4 : end])
                begin = end
        finally:
            del buffer[:begin]

    @property
    def is_empty(self) -> bool:
        return not self._buffer

    def part(self) -> str:
        """Returns a description of the incomplete frame, to be added to an error; empty if there is none."""
        have = len(self._buffer)
        if not have:
            return ""
        if have < 4:
            return f" in the middle of a reply, after {have} bytes of its length"
        if _is_tls_alert(self._buffer) and have >= 6 and self._buffer[5] in (1, 2):
            return " after a TLS alert instead of a frame"
        (length,) = self._unpack(self._buffer)
        return f" in the middle of a reply, after {have - 4} of {length} bytes"

    def _why_too_long(self, prefix: bytes, length: int) -> str:
        for begin, what in ((b"HTTP", "an HTTP response"), (b"SSH-", "an SSH banner")):
            if prefix == begin:
                return f"the answer is {what}, not a frame"
        if _is_tls_alert(prefix):
            return "the answer is a TLS alert, not a frame"
        plain = f"the reply has {length} bytes, at most {self._limit} are accepted"
        other = _OTHER[self._order]
        (length,) = _LENGTHS[other].unpack(prefix)
        if length > self._limit:
            return plain
        return f"{plain}; in {other}-endian it has {length}: perhaps the listener has that byte order"


def _is_tls_alert(prefix: bytes | bytearray) -> bool:
    return prefix[:2] == b"\x15\x03" and prefix[2] <= 4


class Goaway(NamedTuple):
    """The last frame of a connection, for a client that has asked for it: no request after the first `read` was
    executed, and none will be."""

    read: int
    reason: str


class Reply(NamedTuple):
    """One reply. An error has no result."""

    result: Any
    #: The code and the message of an error; empty and no code otherwise.
    code: str | None
    message: str


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_decode = json.JSONDecoder(parse_constant=_refuse).decode


def reply_of(body: bytes) -> Reply | Goaway:
    """Returns the reply in the body of a frame, or the goaway.

    :raises Malformed: It is none.
    """
    try:
        message = _decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the reply cannot be read as JSON: {type(error).__name__}: {_cut(str(error))}") from None
    _check_members("the reply", message, _ENVELOPE)
    name, result = message["out"], message["result"]
    if not isinstance(name, str):
        raise Malformed('"out" of the reply is not a string')
    if name == "goaway":
        return _goaway_of(result)
    if name != "error":
        return Reply(result, None, "")
    _check_members("the error reply", result, _ERROR)
    code, text = result["code"], result["message"]
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        raise Malformed(f"the error reply has the code {_cut(repr(code))}")
    if not isinstance(text, str):
        raise Malformed('"message" of the error reply is not a string')
    return Reply(None, code, text)


def _goaway_of(result: Any) -> Goaway:
    # Later versions may add members and reasons.
    read = result.get("read") if isinstance(result, dict) else None
    if type(read) is not int or read < 0:
        raise Malformed("the goaway has no number of requests")
    return Goaway(read, _cut(str(result.get("reason"))))


def _check_members(what: str, value: Any, expected: frozenset[str]) -> None:
    if not isinstance(value, dict):
        raise Malformed(f"{what} is not an object")
    for name in sorted(expected - value.keys()):
        raise Malformed(f'{what} has no "{name}"')
    for name in sorted(value.keys() - expected):
        raise Malformed(f"{what} has an unknown member {_cut(repr(name))}")


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
