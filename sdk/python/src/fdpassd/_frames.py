"""Frames: four bytes of length, little-endian, then JSON in UTF-8."""

from __future__ import annotations

import json
import re
from struct import Struct
from typing import TYPE_CHECKING, Any

from ._codec import Codec
from ._fault import Fault
from ._log import log_error, log_exception
from ._metrics import Metrics, halves

if TYPE_CHECKING:
    from ._method import Method

_LENGTH = Struct("<I")
_prefix = _LENGTH.pack

#: The last member of a request. No member before it has such a text.
_PARAMS = re.compile(rb',\s*"params"\s*:\s*')

#: The member of a message with its frame, which no frame has.
_FRAME = " frame"


#: The most characters of a text for a client or an operator: a frame has a limit.
_MAX_TEXT = 1000


#: What is sent instead of texts for the operator that are too long as JSON, in which a control character has six bytes.
_SHORT = {"health": "unhealthy", "failed": "the app cannot start; its log has the reason"}


def cut(text: str) -> str:
    """Returns a text that the worker accepts: not too long, and without half of a surrogate pair, which is not UTF-8."""
    if len(text) > _MAX_TEXT:
        text = text[:_MAX_TEXT] + "…"
    return text.encode("utf-8", "replace").decode()


class Splitter:
    """Finds the frames in what is read. A frame of many pieces is put together once."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Returns the bodies that are complete with this piece."""
        if self._pieces:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._pieces)
            self._pieces = []
        frames = []
        begin, end = 0, len(data)
        length_at = _LENGTH.unpack_from
        while end - begin >= 4:
            until = begin + 4 + length_at(data, begin)[0]
            if until > end:
                self._need = until - begin
                break
            frames.append(data[begin + 4 : until])
            begin = until
        else:
            self._need = 4
        if begin < end:
            self._pieces = [data[begin:] if begin else data]
            self._have = end - begin
        return frames


class Undecodable:
    """Params that are JSON, but more than the codec can read."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Writer:
    """Makes the frames for the worker. None is longer than the worker accepts."""

    def __init__(self, codec: Codec, max_frame: int, keeps_frames: bool) -> None:
        self._keeps_frames = keeps_frames
        self._dumps = codec.dumps
        self._loads = codec.loads
        self._max_frame = max_frame
        self.frames: list[bytes] = []

    def decode(self, frame: bytes) -> dict[str, Any]:
        """Returns the message of a frame."""
        try:
            message: dict[str, Any] = self._loads(frame)
        except Exception as error:
            # Valid JSON may be more than the codec accepts: numbers of thousands of digits, half surrogate pairs, depth.
            found = _PARAMS.search(frame)
            if found is None:
                raise
            message = self._loads(frame[: found.start()] + b"}")
            message["params"] = Undecodable(error)
        if self._keeps_frames:
            message[_FRAME] = frame
        return message

    def send(self, message: dict[str, Any]) -> None:
        self._push(self._body(message))

    def metrics(self, metrics: dict[str, Any]) -> list[bytes]:
        """Returns the bodies of frames with metrics. May be called by any thread."""
        body = self._dumps({"metrics": metrics})
        if len(body) <= self._max_frame:
            return [body]
        return [body for half in halves(metrics) for body in self.metrics(half)]

    def send_metrics(self, metrics: Metrics) -> None:
        """Adds what is new of an app's metrics."""
        for new in metrics.take():
            for body in self.metrics(new):
                self._push(body)

    def result(self, method: Method, message: dict[str, Any], result: Any) -> None:
        """Answers a request. A result that cannot be sent becomes an error of its caller."""
        try:
            body = b'{"id":%d,"result":%b}' % (message["id"], result if method.is_raw else self._dumps(result))
        except Exception as error:
            log_exception(f"the result of {message['in']} cannot be written as JSON", error)
            self.error(message, "internal", f"the result cannot be written as JSON: {type(error).__name__}")
            return
        length = len(body)
        if length > self._max_frame:
            log_error(f"the result of {message['in']} is too long: {length} of {self._max_frame} bytes")
            self.error(message, "internal", "the result is too long")
            return
        self.frames.append(_prefix(length) + body)

    def fault(self, message: dict[str, Any], error: BaseException) -> None:
        """Answers a request whose method has raised this."""
        if isinstance(error, Fault):
            self.error(message, error.code, error.message)
            return
        name = type(error).__name__
        log_exception(f"{message['in']} of client {message['client']}: {name}", error)
        self.error(message, "crashed", name)

    def error(self, message: dict[str, Any], code: str, text: str) -> None:
        body = json.dumps({"id": message["id"], "error": {"code": code, "message": cut(str(text))}}).encode()
        if len(body) > self._max_frame:
            body = json.dumps({"id": message["id"], "error": {"code": code, "message": ""}}).encode()
        self._push(body)

    def frame(self, message: dict[str, Any]) -> bytes:
        """Returns one frame, for a write of its own. May be called by any thread, unlike everything else."""
        return self.framed([self._body(message)])

    def framed(self, bodies: list[bytes]) -> bytes:
        """Returns these bodies as frames."""
        return b"".join(_LENGTH.pack(len(body)) + body for body in bodies)

    def take(self) -> bytes:
        """Returns all frames since the last call, for one write."""
        frames = b"".join(self.frames)
        self.frames.clear()
        return frames

    def _body(self, message: dict[str, Any]) -> bytes:
        """Returns a message that is not an answer as JSON.

        :raises ValueError: A hello is longer than the worker accepts.
        """
        body = self._dumps(message)
        if len(body) <= self._max_frame:
            return body
        if "hello" in message:
            raise ValueError("the list of methods is longer than a frame may be")
        return self._dumps({name: _SHORT[name] for name in message})

    def _push(self, body: bytes) -> None:
        self.frames.append(_LENGTH.pack(len(body)))
        self.frames.append(body)


def perform(writer: Writer, method: Method, message: dict[str, Any]) -> None:
    """Runs a method that is not a coroutine, and answers, unless it ends the process."""
    try:
        # The usual params without another call.
        params = message.get("params")
        if method.is_raw or params.__class__ is Undecodable:
            params = params_of(method, message)
        result = method.invoke(params)
    except SystemExit:
        raise
    except BaseException as error:
        writer.fault(message, error)
    else:
        writer.result(method, message, result)


def params_of(method: Method, message: dict[str, Any]) -> Any:
    """Returns the params of a request.

    :raises Fault: They are JSON, but more than the codec can read.
    """
    if method.is_raw:
        frame: bytes = message[_FRAME]
        found = _PARAMS.search(frame)
        return b"null" if found is None else frame[found.end() : -1]
    params = message.get("params")
    if params.__class__ is Undecodable:
        raise Fault("bad_params", f"the params cannot be read: {type(params.error).__name__}")
    return params
