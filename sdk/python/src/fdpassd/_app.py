"""An app: its methods, and what happens at its start and end."""

from __future__ import annotations

import contextlib
import inspect
import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar, overload

from . import _method
from ._codec import Codec, CodecName, codec
from ._frames import Writer, cut
from ._log import line_by_line, log_exception
from ._metrics import Counter, Histogram, Metrics, buckets_of
from ._process import Inherited, inherited

if TYPE_CHECKING:
    import asyncio

Function = TypeVar("Function", bound=Callable[..., Any])

#: Like sysexits.h: the program was started in a wrong way.
_EX_USAGE = 64

#: How many requests an app has at a time that says nothing else, without and with coroutines.
_CONCURRENCY = {False: 1, True: 64}


class Decorator(Protocol):
    """Returns the function that it is given."""

    def __call__(self, function: Function, /) -> Function: ...


class App:
    """An app: methods that the workers of fdpassd call.

    :param concurrency: How many requests the app has at a time. By default 1 for an app without coroutines, which then
        needs no asyncio, otherwise 64.
    :param codec: "json", "orjson" or "msgspec". They differ in what they accept and write.
    :param loop_factory: For an app with coroutines, such as ``uvloop.new_event_loop``.
    :param name: The name of the app, for the operator.
    :param version: The version of the app, for the operator.
    """

    def __init__(
        self,
        *,
        concurrency: int | None = None,
        codec: CodecName = "json",
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        name: str | None = None,
        version: str | None = None,
    ) -> None:
        if concurrency is not None and not 1 <= concurrency <= 4096:
            raise ValueError("concurrency is from 1 to 4096")
        self._concurrency = concurrency
        self._codec: Codec = _codec_of(codec)
        self._loop_factory = loop_factory
        self._name = name
        self._version = version
        self._methods: dict[str, _method.Method] = {}
        self._at_preload: list[Callable[[], Any]] = []
        self._at_start: list[Callable[[], Any]] = []
        self._at_stop: list[Callable[[], Any]] = []
        self._at_close: list[Callable[[int], Any]] = []
        self._checks: list[tuple[Callable[[], Any], float]] = []
        self._metrics = Metrics()
        self._unhealthy: str | None = None
        self._health_lock = threading.Lock()
        #: Sends a message at the next opportunity, from any thread; set while the app serves.
        self._notify: Callable[[dict[str, Any]], None] | None = None

    @overload
    def method(self, function: Function, /) -> Function: ...

    @overload
    def method(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        idempotent: bool = False,
        reply: str | None = None,
        thread: bool = False,
        raw: bool = False,
    ) -> Decorator: ...

    def method(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        idempotent: bool = False,
        reply: str | None = None,
        thread: bool = False,
        raw: bool = False,
    ) -> Any:
        """Makes a function a method. It stays what it was, and tests may call it.

        The members of an object are its keyword arguments; any other value is its first argument. A single parameter
        that is positional-only (``def echo(value, /)``) gets the params as they are, None if there are none.

        Of an app with coroutines, other methods run in the loop, and everything waits for them.

        :param name: The method's name, by default the function's.
        :param idempotent: Whether a request may run once more if the worker or the app died in it.
        :param reply: The name of its replies, by default the method's with ``_r``.
        :param thread: Whether it runs in a thread of its own, while the app does other things. A thread is not
            interrupted when the client leaves: see `Call.is_cancelled`.
        :param raw: Whether its one argument is the bytes of the params as the client wrote them, ``b"null"`` if there are
            none, and its result the bytes of one JSON value, which the client gets unchanged.
        """
        if function is not None:
            self._add(_method.method(function, name, idempotent, reply, thread, raw))
            return function

        def decorate(function: Function) -> Function:
            self._add(_method.method(function, name, idempotent, reply, thread, raw))
            return function

        return decorate

    def _add(self, method: _method.Method) -> None:
        if method.name in self._methods:
            raise ValueError(f"duplicate method {method.name!r}")
        self._methods[method.name] = method

    def preload(self, function: Function, /) -> Function:
        """Runs a function before everything else. With ``app.preload`` of the configuration this is done once for all
        workers, and their apps share what it has loaded; otherwise each app does it. It must not leave threads behind."""
        if inspect.iscoroutinefunction(function):
            raise ValueError("a preload is not a coroutine: a loop would not survive the fork")
        self._at_preload.append(function)
        return function

    def start(self, function: Function, /) -> Function:
        """Runs a function or coroutine before the app serves. If it fails, fdpassd reports the exception."""
        self._at_start.append(function)
        return function

    def stop(self, function: Function, /) -> Function:
        """Runs a function or coroutine when the app ends in order, because its worker stops. The process then ends
        without more ado: functions of `atexit` do not run. It is killed after 5 s."""
        self._at_stop.append(function)
        return function

    def on_close(self, function: Function, /) -> Function:
        """Runs a function or coroutine with the number of each client that has left, if it has sent requests to this app."""
        self._at_close.append(function)
        return function

    @overload
    def health(self, function: Function, /) -> Function: ...

    @overload
    def health(self, function: None = None, /, *, every: float = 10.0) -> Decorator: ...

    def health(self, function: Callable[..., Any] | None = None, /, *, every: float = 10.0) -> Any:
        """Calls a function or coroutine at an interval. It returns None, or the reason why the app is not healthy.

        A function runs in a thread of its own. An exception is a reason, too. See `unhealthy` for a way without a timer.
        """
        if not every > 0:
            raise ValueError("a health check needs a time between two of them")
        if function is not None:
            self._checks.append((function, every))
            return function

        def decorate(function: Function) -> Function:
            self._checks.append((function, every))
            return function

        return decorate

    def unhealthy(self, reason: str) -> None:
        """Reports why the app is not healthy, for the operator. May be called by any thread.

        An unhealthy app gets clients only if no healthy one has capacity; if all are unhealthy, ``/readyz`` is 503.
        """
        self._set_health(reason or "unhealthy")

    def healthy(self) -> None:
        """Reports that the app is healthy, as it is at first."""
        self._set_health(None)

    def counter(self, name: str, help: str) -> Counter:
        """Declares a counter of the daemon's metrics, before `run`."""
        self._metrics.declare(name, "counter", help)
        return Counter(self._metrics, name)

    def histogram(self, name: str, help: str, buckets: Sequence[float]) -> Histogram:
        """Declares a histogram of the daemon's metrics, before `run`.

        :param buckets: The upper bounds of its buckets, such as ``[0.01, 0.1, 1]``.
        """
        self._metrics.declare(name, "histogram", help, buckets=buckets_of(buckets))
        return Histogram(self._metrics, name)

    def run(self) -> NoReturn:
        """Serves the methods until the worker stops or is gone, and ends the process.

        Run by hand, it prints how to start the program, and ends with exit status 64.
        """
        if inherited is None:
            command = shlex.join(sys.orig_argv)
            print(f"start this app with: fdpassd app -- {command}", file=sys.stderr)
            sys.exit(_EX_USAGE)
        line_by_line()
        if inherited.is_zygote:
            from ._zygote import serve as serve_forks

            serve_forks(self, inherited)
        else:
            self._at_start[:0] = self._at_preload
        if self._is_async():
            from ._async import serve
        else:
            from ._sync import serve
        serve(self, inherited)

    def _is_async(self) -> bool:
        """Whether there is anything for a loop of asyncio."""
        functions = [*self._at_start, *self._at_stop, *self._at_close, *(check for check, _ in self._checks)]
        return any(map(inspect.iscoroutinefunction, functions)) or any(
            method.is_async or method.in_thread for method in self._methods.values()
        )

    def _hello(self) -> dict[str, Any]:
        hello: dict[str, Any] = {"hello": 1, "methods": [m.as_declared() for m in self._methods.values()]}
        hello["concurrency"] = self._limit()
        if self._name is not None:
            hello["name"] = self._name
        if self._version is not None:
            hello["version"] = self._version
        if self._at_close:
            hello["closes"] = True
        if self._metrics.declared:
            hello["metrics"] = self._metrics.declared
        return hello

    def _limit(self) -> int:
        return _CONCURRENCY[self._is_async()] if self._concurrency is None else self._concurrency

    def _writer(self, inherited: Inherited) -> Writer:
        keeps_frames = any(method.is_raw for method in self._methods.values())
        return Writer(self._codec, inherited.max_frame, keeps_frames)

    def _set_health(self, reason: str | None) -> None:
        reason = None if reason is None else cut(reason)
        with self._health_lock:
            if reason == self._unhealthy:
                return
            self._unhealthy = reason
            if self._notify is not None:
                self._notify({"health": reason})

    def _serve_with(self, notify: Callable[[dict[str, Any]], None]) -> None:
        """Sends what was reported before, and from now on what is."""
        with self._health_lock:
            self._notify = notify
            if self._unhealthy is not None:
                notify({"health": self._unhealthy})


_codec_of = codec


def why_failed(error: BaseException) -> dict[str, Any]:
    """Returns the message about a start that has failed, after its traceback is in the log."""
    log_exception("the app cannot start", error)
    text = str(error)
    name = type(error).__name__
    return {"failed": cut(f"{name}: {text}" if text else name)}


def status_of(error: SystemExit) -> int:
    """Returns the exit status that Python has for this, after it has printed a reason that is not a number."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    with contextlib.suppress(OSError, ValueError):
        print(error.code, file=sys.stderr)
    return 1


def end(status: int = 0) -> NoReturn:
    """Ends the process at once, with threads and children as they are."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
    os._exit(status)
