"""An app with coroutines: requests at the same time, in a loop of asyncio."""

from __future__ import annotations

import asyncio
import inspect
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, NoReturn, cast

from ._app import end, status_of, why_failed
from ._call import Call, current
from ._frames import Splitter, params_of, perform
from ._log import log_exception
from ._process import Inherited

if TYPE_CHECKING:
    from ._app import App
    from ._method import Method

#: The most that is read at a time.
_READ = 64 << 10

#: From Python 3.12 on the first step of a coroutine runs at once, so that one which does not wait costs no turn.
_EAGER: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}


def serve(app: App, inherited: Inherited) -> NoReturn:
    """Serves the methods of an app."""
    loop = (app._loop_factory or asyncio.new_event_loop)()
    asyncio.set_event_loop(loop)
    connection = _Connection(app, inherited, loop)
    try:
        loop.run_until_complete(_serve(app, inherited, connection))
    except SystemExit as error:
        # A method ends the process. Its earlier answers count. Other requests are not cancelled, which would answer
        # them: another app may execute those that are idempotent once more.
        connection.status = status_of(error)
        try:
            loop.run_until_complete(connection.drain())
        finally:
            end(connection.status)
    end()


async def _serve(app: App, inherited: Inherited, connection: _Connection) -> None:
    loop = asyncio.get_running_loop()
    stream = socket.socket(fileno=inherited.descriptor)
    try:
        for function in app._at_start:
            await _run(function)
        hello = connection.frame(app._hello())
    except BaseException as error:
        stream.sendall(connection.frame(why_failed(error)))
        end(1)
    try:
        # Nothing else is written before, and the worker reads.
        stream.sendall(hello)
    except OSError:
        end()
    stream.setblocking(False)
    await loop.create_unix_connection(lambda: connection, sock=stream)
    app._metrics.changed = connection.wake
    app._serve_with(connection.notify)
    connection.wake()
    checks = [loop.create_task(_check(app, check, every)) for check, every in app._checks]
    await connection.ended.wait()
    for check in checks:
        check.cancel()
    for function in app._at_stop:
        try:
            await _run(function)
        except SystemExit:
            raise
        except BaseException as error:
            log_exception("stop of the app", error)
    await connection.drain()
    end(connection.status)


class _Connection(asyncio.BufferedProtocol):
    """The connection to the worker.

    It has a buffer of its own, because asyncio would allocate 256 KiB for each read, which costs more than a request.
    """

    def __init__(self, app: App, inherited: Inherited, loop: asyncio.AbstractEventLoop) -> None:
        self._app = app
        self._loop = loop
        self._writer = app._writer(inherited)
        self._splitter = Splitter()
        self._buffer = memoryview(bytearray(_READ))
        self._transport: asyncio.Transport | None = None
        #: The requests that are being answered.
        self._calls: dict[int, Call] = {}
        #: Tasks for clients that have left: the loop itself does not keep them alive.
        self._tasks: set[asyncio.Task[None]] = set()
        #: Messages of other threads, which wait for the loop.
        self._messages: list[dict[str, Any]] = []
        self._is_flush_due = False
        #: What is left of this turn of asyncio's own loop; None of any other loop.
        self._ready: deque[Any] | None = getattr(loop, "_ready", None)
        self._thread = threading.get_ident()
        self._threads: ThreadPoolExecutor | None = None
        self._is_stopping = False
        self._is_gone = False
        self._is_drained = asyncio.Event()
        self._is_drained.set()
        #: The exit status.
        self.status = 0
        #: Set when the last answer is out after `stop`, or the worker is gone.
        self.ended = asyncio.Event()

    def frame(self, message: dict[str, Any]) -> bytes:
        return self._writer.frame(message)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked: uvloop's transports are none of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._is_gone = True
        self._is_drained.set()
        self.ended.set()

    def pause_writing(self) -> None:
        self._is_drained.clear()

    def resume_writing(self) -> None:
        self._is_drained.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        received = time.monotonic()
        # Answers that are there at the end of this turn need no turn of their own.
        self._is_flush_due = True
        try:
            for frame in self._splitter.feed(bytes(self._buffer[:nbytes])):
                self._take(self._writer.decode(frame), received)
        finally:
            # Also if a method ends the process: what was answered before it counts.
            self._flush()

    def eof_received(self) -> bool:
        self._is_gone = True
        self.ended.set()
        return False

    def _take(self, message: dict[str, Any], received: float) -> None:
        name = message.get("in")
        if name is not None:
            self._answer(name, message, received)
        elif "cancel" in message:
            self._cancel(message["cancel"], message.get("why", "gone"))
        elif "probe" in message:
            self._writer.send({"alive": message["probe"]})
        elif "closed" in message:
            self._spawn(self._close(message["closed"]))
        elif "stop" in message:
            self._is_stopping = True

    def _answer(self, name: str, message: dict[str, Any], received: float) -> None:
        method = self._app._methods.get(name)
        if method is None:
            self._writer.error(message, "internal", f"there is no method {name}")
            return
        call = Call(message, received)
        if method.is_async:
            self._calls[message["id"]] = call
            task = asyncio.Task(self._await(method, message, call), loop=self._loop, **_EAGER)
            if not task.done():
                call._task = task
        elif method.in_thread:
            self._calls[message["id"]] = call
            self._spawn(self._thread_of(method, message, call))
        else:
            token = current.set(call)
            perform(self._writer, method, message)
            current.reset(token)

    async def _await(self, method: Method, message: dict[str, Any], call: Call) -> None:
        """Runs a coroutine, and answers."""
        current.set(call)
        call._has_begun = True
        try:
            if call._why is not None:
                raise asyncio.CancelledError
            result = await method.invoke(params_of(method, message))
        except asyncio.CancelledError as error:
            if call._why is None:
                self._writer.fault(message, error)
            else:
                self._writer.error(message, "internal", "cancelled")
        except SystemExit:
            raise
        except BaseException as error:
            self._writer.fault(message, error)
        else:
            self._writer.result(method, message, result)
        self._done(message)

    async def _thread_of(self, method: Method, message: dict[str, Any], call: Call) -> None:
        """Runs a method in a thread, and answers when it has ended, whether a client waits or not."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._app._limit(), "method")
        current.set(call)
        run = copy_context().run

        def invoke() -> tuple[Any, BaseException | None]:
            # StopIteration would not survive a future.
            try:
                return run(method.invoke, params_of(method, message)), None
            except SystemExit:
                raise
            except BaseException as error:
                return None, error

        result, error = await self._loop.run_in_executor(self._threads, invoke)
        if error is None:
            self._writer.result(method, message, result)
        else:
            self._writer.fault(message, error)
        self._done(message)

    def _done(self, message: dict[str, Any]) -> None:
        del self._calls[message["id"]]
        if self._is_flush_due:
            return
        if self._ready is not None and not self._ready:
            # Nothing else runs in this turn, so the answer need not wait for the next one.
            self._flush()
        else:
            self._flush_soon()

    def _cancel(self, number: int, why: str) -> None:
        call = self._calls.get(number)
        if call is not None and call._why is None:
            call._why = why
            # A coroutine that has not begun could not answer.
            if call._has_begun and call._task is not None:
                call._task.cancel(why)

    async def _close(self, client: int) -> None:
        for function in self._app._at_close:
            try:
                await _run(function, client)
            except SystemExit:
                raise
            except BaseException as error:
                log_exception(f"on_close of client {client}: {type(error).__name__}", error)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.Task(coroutine, loop=self._loop, **_EAGER)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def notify(self, message: dict[str, Any]) -> None:
        """Sends a message, from any thread."""
        self._messages.append(message)
        self.wake()

    def wake(self) -> None:
        """Sends what there is, at the end of this turn of the loop. May be called by any thread."""
        if threading.get_ident() == self._thread:
            self._flush_soon()
        else:
            self._loop.call_soon_threadsafe(self._flush_soon)

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        self._writer.send_metrics(self._app._metrics)
        while self._messages:
            self._writer.send(self._messages.pop(0))
        if self._writer.frames and self._transport is not None:
            self._transport.write(self._writer.take())
        if self._is_stopping and not self._calls:
            self.ended.set()

    async def drain(self) -> None:
        """Waits until everything is written, or the worker is gone."""
        if self._transport is not None and not self._is_gone:
            self._flush()
            self._transport.set_write_buffer_limits(high=0)
            await self._is_drained.wait()


async def _run(function: Callable[..., Any], *arguments: Any) -> None:
    result = function(*arguments)
    if inspect.isawaitable(result):
        await result


async def _check(app: App, check: Callable[[], Any], every: float) -> NoReturn:
    """Checks the health as long as the app serves."""
    is_async = inspect.iscoroutinefunction(check)
    while True:
        try:
            reason = await (check() if is_async else asyncio.to_thread(check))
        except SystemExit:
            raise
        except BaseException as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            reason = f"{type(error).__name__}: {error}"
        app._set_health(None if reason is None else str(reason))
        await asyncio.sleep(every)
