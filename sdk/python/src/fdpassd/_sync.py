"""An app without coroutines: one request after another, by blocking calls."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

from ._app import end, status_of, why_failed
from ._call import Call, current
from ._frames import Splitter, perform
from ._log import log_exception
from ._process import Inherited

if TYPE_CHECKING:
    from ._app import App

#: The most that is read at a time.
_READ = 64 << 10

#: Answers are sent together, but none waits longer than this for the next one.
_FLUSH_AFTER = 0.001


def serve(app: App, inherited: Inherited) -> NoReturn:
    """Serves the methods of an app."""
    loop = _Loop(app, inherited)
    try:
        for function in app._at_start:
            function()
        hello = loop.frame(app._hello())
    except BaseException as error:
        loop.notify(why_failed(error))
        end(1)
    loop.write(hello)
    app._metrics.changed = loop.on_metrics
    app._serve_with(loop.notify)
    loop.on_metrics()
    for check, every in app._checks:
        threading.Thread(target=_check, args=(app, check, every), name="health", daemon=True).start()
    try:
        loop.run()
    except (BrokenPipeError, ConnectionResetError):
        loop.finish()
    except SystemExit as error:
        # A method ends the process, also if it has started threads. Answers from before are written.
        end(status_of(error))


class _Loop:
    """The connection to the worker."""

    def __init__(self, app: App, inherited: Inherited) -> None:
        self._app = app
        self._socket = socket.socket(fileno=inherited.descriptor)
        self._writer = app._writer(inherited)
        self._splitter = Splitter()
        #: Messages that have arrived, in their order. Cancels are taken out.
        self._waiting: deque[dict[str, Any]] = deque()
        #: Requests among them that no client waits for.
        self._cancelled: dict[int, str] = {}
        self._call: Call | None = None
        #: Whether the loop will flush soon, so that other frames go with the answers.
        self._is_in_turn = False
        self._thread = threading.get_ident()
        self._methods = app._methods
        #: Bound once, not for each request.
        self._look = self.look
        self._lock = threading.Lock()

    def run(self) -> NoReturn:
        waiting, clock = self._waiting, time.monotonic
        while True:
            self._receive(0)
            self._is_in_turn = True
            received = begin = clock()
            try:
                while waiting:
                    message = waiting.popleft()
                    name = message.get("in")
                    if name is not None:
                        self._answer(name, message, received)
                    else:
                        self._take(message)
                    if waiting and clock() - begin > _FLUSH_AFTER:
                        self._flush()
                        begin = clock()
            finally:
                # Also if a method ends the process: what was answered before it counts.
                self._is_in_turn = False
                self._flush()

    def _take(self, message: dict[str, Any]) -> None:
        """Processes a message that is not a request."""
        if "probe" in message:
            self._writer.send({"alive": message["probe"]})
        elif "closed" in message:
            for function in self._app._at_close:
                try:
                    function(message["closed"])
                except SystemExit:
                    raise
                except BaseException as error:
                    log_exception(f"on_close of client {message['closed']}: {type(error).__name__}", error)
        elif "stop" in message:
            self._flush()
            self.finish(is_flushed=True)

    def _answer(self, name: str, message: dict[str, Any], received: float) -> None:
        method = self._methods.get(name)
        if method is None:
            self._writer.error(message, "internal", f"there is no method {name}")
            return
        if self._cancelled and self._cancelled.pop(message["id"], ""):
            self._writer.error(message, "internal", "cancelled before it began")
            return
        self._call = Call(message, received, self._look)
        current.set(self._call)
        perform(self._writer, method, message)
        self._call = None

    def look(self) -> None:
        """Takes what has arrived while a method runs, above all cancels."""
        if threading.get_ident() == self._thread:
            try:
                self._receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass

    def _receive(self, flags: int) -> None:
        data = self._socket.recv(_READ, flags)
        if not data:
            self.finish()
        for frame in self._splitter.feed(data):
            message = self._writer.decode(frame)
            if "cancel" in message:
                self._cancel(message["cancel"], message.get("why", "gone"))
            else:
                self._waiting.append(message)

    def _cancel(self, number: int, why: str) -> None:
        if self._call is not None and self._call._message["id"] == number:
            self._call._why = why
        elif any(message.get("id") == number for message in self._waiting):
            self._cancelled[number] = why

    def on_metrics(self) -> None:
        """Sends what was counted; by the thread that serves together with its answers."""
        if threading.get_ident() == self._thread:
            if not self._is_in_turn:
                self._flush()
        else:
            for metrics in self._app._metrics.take():
                self.write(self._writer.framed(self._writer.metrics(metrics)))

    def frame(self, message: dict[str, Any]) -> bytes:
        return self._writer.frame(message)

    def notify(self, message: dict[str, Any]) -> None:
        """Sends a message, from any thread."""
        self.write(self.frame(message))

    def _flush(self) -> None:
        self._writer.send_metrics(self._app._metrics)
        if self._writer.frames:
            self.write(self._writer.take())

    def write(self, frames: bytes) -> None:
        with self._lock:
            self._socket.sendall(frames)

    def finish(self, is_flushed: bool = False) -> NoReturn:
        """Ends the app: its worker stops or is gone."""
        for function in self._app._at_stop:
            try:
                function()
            except SystemExit as error:
                end(status_of(error))
            except BaseException as error:
                log_exception("stop of the app", error)
        if is_flushed:
            try:
                self._flush()
            except OSError:
                pass
        end()


def _check(app: App, check: Any, every: float) -> NoReturn:
    """Checks the health in a thread of its own."""
    while True:
        try:
            reason = check()
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
        app._set_health(None if reason is None else str(reason))
        time.sleep(every)
