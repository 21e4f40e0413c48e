"""Counters and histograms of the app, which the daemon adds up over all workers."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, isfinite
from typing import Any

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Metrics:
    """What was counted since the last report."""

    def __init__(self) -> None:
        self.declared: list[dict[str, Any]] = []
        #: Called after an addition; set by the loop that sends the reports.
        self.changed: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._new: dict[str, Any] = {}

    def declare(self, name: str, kind: str, help_text: str, **more: Any) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a valid name of a metric: [a-z][a-z0-9_]*")
        if any(other["name"] == name for other in self.declared):
            raise ValueError(f"duplicate metric {name!r}")
        self.declared.append({"name": name, "type": kind, "help": help_text, **more})

    def add(self, name: str, number: float) -> None:
        with self._lock:
            self._new[name] = self._new.get(name, 0) + number
        self.changed()

    def observe(self, name: str, number: float) -> None:
        with self._lock:
            self._new.setdefault(name, []).append(number)
        self.changed()

    def take(self) -> dict[str, Any] | None:
        """Returns what is new; None if nothing is."""
        if not self._new:
            return None
        with self._lock:
            new, self._new = self._new, {}
        return new


class Counter:
    """A number that only grows."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name

    def add(self, number: float = 1) -> None:
        """Adds a number to the counter. May be called by any thread.

        :raises ValueError: The number is negative, infinite or NaN.
        """
        if not 0 <= number < inf:
            raise ValueError(f"a counter cannot grow by {number}")
        if number:
            self._metrics.add(self._name, number)


class Histogram:
    """How observations are distributed over buckets."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name

    def observe(self, number: float) -> None:
        """Adds one observation. May be called by any thread.

        :raises ValueError: The number is infinite or NaN.
        """
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
    bounds = [bound for bound in buckets if bound != inf]
    if not bounds or any(a >= b for a, b in zip(bounds, bounds[1:])) or not all(map(isfinite, bounds)):
        raise ValueError("the buckets of a histogram are increasing numbers")
    return bounds
