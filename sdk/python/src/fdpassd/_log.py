"""Lines for the log of the daemon: sd-daemon(3) levels at their beginning."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from typing import TextIO


def line_by_line() -> None:
    """Has standard output written by the line: it is a pipe, and the log would get it late otherwise."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True, errors="backslashreplace")


def log_error(text: str) -> None:
    """Writes lines of the level "error" with one write, if the log can be written: no answer depends on it."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write("".join(f"<3>{line}\n" for line in text.splitlines()))
        sys.stderr.flush()


def log_exception(what: str, error: BaseException) -> None:
    """Writes an exception with its traceback, which the client does not get."""
    log_error(f"{what}\n" + "".join(traceback.format_exception(error)))


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes records of `logging` to standard error, with the level that the daemon's log then shows.

    >>> logging.basicConfig(level=logging.INFO, handlers=[LogHandler()])
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def format(self, record: logging.LogRecord) -> str:
        level = _level(record.levelno)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines())


def _level(number: int) -> int:
    """Returns the level of sd-daemon(3) for one of `logging`."""
    if number >= logging.CRITICAL:
        return 2
    if number >= logging.ERROR:
        return 3
    if number >= logging.WARNING:
        return 4
    if number >= logging.INFO:
        return 6
    return 7
