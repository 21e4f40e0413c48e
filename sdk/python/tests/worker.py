"""The worker's side of the protocol, for tests: starts an app, sends frames, and reads what it answers."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path
from typing import Any, Self

SOURCES = Path(__file__).parent.parent / "src"

#: The package's directory.
ROOT = SOURCES.parent

#: The longest time until a fact is there. It is not reached if all is well.
TIMEOUT = 20.0


def needs(test: unittest.TestCase, *modules: str) -> None:
    """Skips a test, or a part of it, without these modules. It fails instead if REQUIRE, a list with commas, has one."""
    required = os.environ.get("REQUIRE", "").split(",")
    for module in modules:
        if importlib.util.find_spec(module) is None:
            if module in required:
                test.fail(f"there is no {module}")
            print(f"\nskipped: {test.id()}: there is no {module}", file=sys.stderr)
            test.skipTest(f"there is no {module}")


class Worker:
    """An app and the worker's end of its socket pair.

    :param code: The program. ``from fdpassd import *`` stands before it, and ``app.run()`` after it.
    :param sources: The directory with the package.
    """

    def __init__(self, code: str, *, max_frame: int = 1 << 20, run: bool = True, sources: Path = SOURCES) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="fdpassd-test-")
        self.path = Path(self._directory.name) / "app.py"
        text = "from fdpassd import *\n" + textwrap.dedent(code) + ("\napp.run()\n" if run else "")
        self.path.write_text(text)
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(TIMEOUT)
        self.descriptor = theirs.fileno()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(sources), *sys.path[1:]]),
            "FDPASSD_APP": str(theirs.fileno()),
            "FDPASSD_MAX_FRAME": str(max_frame),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(self.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            env=environment,
            process_group=0,
        )
        theirs.close()
        self._rest = b""
        self._number = 0
        self.hello: dict[str, Any] = {}

    def begin(self) -> Self:
        """Reads the hello."""
        self.hello = self.read()
        assert self.hello["hello"] == 1, self.hello
        return self

    def frame(self, message: dict[str, Any] | bytes) -> bytes:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return struct.pack("<I", len(body)) + body

    def send(self, *messages: dict[str, Any] | bytes) -> None:
        """Sends frames with one write."""
        self.socket.sendall(b"".join(map(self.frame, messages)))

    def request(self, method: str, *params: Any, **more: Any) -> dict[str, Any]:
        """Returns a request that is not sent yet, with the next number."""
        self._number += 1
        head = {"id": self._number, "in": method, "client": 4711, "peer": "10.0.0.9:4242", "attempt": 1}
        return {**head, **more, **({"params": params[0]} if params else {})}

    def call(self, method: str, *params: Any, **more: Any) -> Any:
        """Returns the answer to a request, without its number."""
        request = self.request(method, *params, **more)
        self.send(request)
        answer = self.read()
        assert answer.pop("id") == request["id"], answer
        return answer

    def read(self) -> dict[str, Any]:
        """Returns the next message."""
        message: dict[str, Any] = json.loads(self.read_body())
        return message

    def read_body(self) -> bytes:
        (length,) = struct.unpack("<I", self._exactly(4))
        return self._exactly(length)

    def read_by_id(self, count: int) -> dict[int, Any]:
        """Returns that many answers, by their numbers."""
        answers = [self.read() for _ in range(count)]
        return {answer.pop("id"): answer for answer in answers}

    def _exactly(self, length: int) -> bytes:
        while len(self._rest) < length:
            piece = self.socket.recv(1 << 16)
            if not piece:
                raise EOFError(self.output())
            self._rest += piece
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken

    def end(self) -> tuple[int, str]:
        """Closes the descriptor. Returns the exit status and the output."""
        self.socket.close()
        return self.wait()

    def wait(self) -> tuple[int, str]:
        output = self.output()
        return self.process.wait(TIMEOUT), output

    def output(self) -> str:
        """Returns what the app has printed, after its end."""
        assert self.process.stdout is not None
        self.socket.close()
        return self.process.communicate(timeout=TIMEOUT)[0].decode()

    def lines(self, count: int) -> list[str]:
        """Returns the next lines of the output."""
        assert self.process.stdout is not None
        return [self.process.stdout.readline().decode().rstrip() for _ in range(count)]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._directory.cleanup()
