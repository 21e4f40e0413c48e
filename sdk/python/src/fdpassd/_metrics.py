"""Counters and histograms of the app, which the daemon adds up over all workers."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, isfinite
from typing import Any

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

#: The most that is added to a counter at once: larger whole numbers are not exact in the daemon.
_MAX_COUNT = 1 << 53

#: The most that a counter gets with one frame: the worker ignores more.
_MAX_SUM = _MAX_COUNT

#: The most observations in one frame, which has a limit.
_MAX_OBSERVATIONS = 256


class Metrics:
    """The counts since the last report."""

    def __init__(self) -> None:
        self.declared: list[dict[str, Any]] = []
        #: Called after an addition; set by the loop that sends the reports.
        self.changed: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._new: dict[str, Any] = {}

    def declare(self, name: str, kind: str, help_text: str, **more: Any) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a valid name of a metric: [a-z][a-z0-9_]{{0,63}}")
        if any(other["name"] == name for other in self.declared):
            raise ValueError(f"duplicate metric {name!r}")
        self.declared.append({"name": name, "type": kind, "help": help_text, **more})

    def add(self, name: str, number: int) -> None:
        with self._lock:
            self._new[name] = self._new.get(name, 0) + number
        self.changed()

    def observe(self, name: str, number: float) -> None:
        with self._lock:
            self._new.setdefault(name, []).append(number)
        self.changed()

    def take(self) -> list[dict[str, Any]]:
        """Returns what is new, by name, as one object for each frame."""
        if not self._new:
            return []
        with self._lock:
            new, self._new = self._new, {}
        first: dict[str, Any] = {}
        frames = [first]
        for name, value in new.items():
            if isinstance(value, int):
                first[name] = min(value, _MAX_SUM)
                continue
            first[name] = value[:_MAX_OBSERVATIONS]
            for begin in range(_MAX_OBSERVATIONS, len(value), _MAX_OBSERVATIONS):
                frames.append({name: value[begin : begin + _MAX_OBSERVATIONS]})
        return frames


def halves(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns two halves of an object of `Metrics.take`, or nothing if it is one number."""
    if len(metrics) > 1:
        items = list(metrics.items())
        middle = len(items) // 2
        return [dict(items[:middle]), dict(items[middle:])]
    ((name, value),) = metrics.items()
    if not isinstance(value, list) or len(value) < 2:
        return []
    middle = len(value) // 2
    return [{name: value[:middle]}, {name: value[middle:]}]


def _float(number: Any) -> float:
    """Returns a number of any class as the one that JSON has.

    :raises TypeError: It is not a number; a string is not one, either.
    :raises ValueError: It is too large.
    """
    if isinstance(number, (str, bytes, bytearray)):
        raise TypeError(f"{type(number).__name__} is not a number")
    try:
        return float(number)
    except OverflowError:
        raise ValueError("the number is too large") from None


class Counter:
    """A number that only grows."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name

    def add(self, number: float = 1) -> None:
        """Adds a whole number from 0 to 2^53 to the counter. May be called by any thread.

        :raises TypeError: The argument is not a number.
        :raises ValueError: The number is negative, too large or not whole.
        """
        number = _float(number)
        if not (0 <= number <= _MAX_COUNT and number.is_integer()):
            raise ValueError(f"a counter cannot grow by {number}")
        if number:
            self._metrics.add(self._name, int(number))


class Histogram:
    """How observations are distributed over buckets."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name

    def observe(self, number: float) -> None:
        """Adds one observation. May be called by any thread.

        :raises TypeError: The argument is not a number.
        :raises ValueError: The number is infinite, NaN or too large.
        """
        number = _float(number)
        if not isfinite(number):
            raise ValueError(f"{number} cannot be observed")
        self._metrics.observe(self._name, number)

    @contextmanager
    def time(self) -> Iterator[None]:
        """Observes how many seconds the block takes."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.observe(time.perf_counter() - begin)


def buckets_of(buckets: Sequence[float]) -> list[float]:
    """Returns the upper bounds of buckets, without the last one, which has none.

    :raises ValueError: They do not increase.
    """
    bounds = [bound for bound in map(_float, buckets) if bound != inf]
    if not bounds or any(a >= b for a, b in zip(bounds, bounds[1:])) or not all(map(isfinite, bounds)):
        raise ValueError("the buckets of a histogram are increasing numbers")
    return bounds
