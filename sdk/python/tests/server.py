"""A daemon for tests of the client that follows its scripts."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

from .worker import TIMEOUT

Script = Callable[["Peer"], None]


class Peer:
    """One connection of a client."""

    def __init__(self, accepted: socket.socket, order: Literal["<", ">"] = "<") -> None:
        self.socket = accepted
        self.socket.settimeout(TIMEOUT)
        self._order = order
        self._was_asked = False

    def read(self) -> Any:
        """Returns the next request, without the wish for a goaway: only the first one of a connection has that."""
        request = json.loads(self.read_body())
        if isinstance(request, dict):
            asks = request.pop("goaway", None)
            assert asks is None or (asks is True and not self._was_asked), request
        self._was_asked = True
        return request

    def read_body(self) -> bytes:
        (length,) = struct.unpack(self._order + "I", self.read_bytes(4))
        return self.read_bytes(length)

    def read_bytes(self, count: int) -> bytes:
        """Returns exactly this number of bytes."""
        read = bytearray()
        while len(read) < count:
            piece = self.socket.recv(min(count - len(read), 1 << 20))
            if not piece:
                raise EOFError(f"the client has closed the connection after {bytes(read[:100])!r}")
            read += piece
        return bytes(read)

    def frame(self, message: Any) -> bytes:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return struct.pack(self._order + "I", len(body)) + body

    def send(self, *messages: Any) -> None:
        """Sends frames with one write: of values, or of bytes as they are."""
        self.write(b"".join(map(self.frame, messages)))

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self, result: Any = None) -> None:
        self.send({"out": "any_r", "result": result})

    def error(self, code: str, message: str = "a reason") -> None:
        self.send({"out": "error", "result": {"code": code, "message": message}})

    def goaway(self, read: Any, reason: Any = "draining") -> None:
        """Ends the connection politely."""
        self.send({"out": "goaway", "result": {"read": read, "reason": reason}})
        self.finish()

    def reset(self) -> None:
        """Ends the connection without its usual end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def expect_end(self) -> None:
        """Waits until the client closes the connection, and shows that it sends nothing more."""
        try:
            rest = self.socket.recv(1)
        except ConnectionResetError:
            rest = b""
        assert rest == b"", rest

    def finish(self) -> None:
        """Closes the connection as the daemon does after an error: what was sent arrives, and the rest is discarded."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while self.socket.recv(1 << 16):
                pass


class Server:
    """A listener. Each connection is performed by the next script, and closed after it.

    The end of the ``with`` block waits for all scripts, and fails if one has failed or was not used, or if there were
    more connections than scripts.
    """

    def __init__(self, *scripts: Script, unix: bool = False, order: Literal["<", ">"] = "<") -> None:
        self._scripts = list(scripts)
        self._order: Literal["<", ">"] = order
        self._directory = tempfile.TemporaryDirectory(prefix="fdpassd-test-")
        if unix:
            self.listener = socket.socket(socket.AF_UNIX)
            self.address = f"unix:{Path(self._directory.name, 'rpc.sock')}"
            self.listener.bind(self.address.removeprefix("unix:"))
        else:
            self.listener = socket.socket()
            self.listener.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)

    def begin(self) -> Self:
        """Listens."""
        self.listener.listen()
        self._accepting.start()
        return self

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self.listener.accept()
            except OSError:
                return
            script = self._scripts.pop(0) if self._scripts else _unexpected
            thread = threading.Thread(target=self._perform, args=(script, accepted))
            self._threads.append(thread)
            thread.start()

    def _perform(self, script: Script, accepted: socket.socket) -> None:
        try:
            script(Peer(accepted, self._order))
        except BaseException as error:
            self.failures.append(error)
        finally:
            accepted.close()

    def end(self) -> None:
        """Stops listening. Waits for the scripts."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        if self._accepting.ident is not None:
            self._accepting.join(TIMEOUT)
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "a script has not ended"

    def __enter__(self) -> Self:
        return self.begin()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end()
        self._directory.cleanup()
        # The first error of either side is the cause of those of the other.
        if self.failures:
            raise self.failures[0]
        if kind is None:
            assert not self._scripts, f"{len(self._scripts)} connections were not made"



def _unexpected(_: Peer) -> None:
    raise AssertionError("there is a connection more than scripts")
