"""The first steps of a process that fdpassd has started."""

from __future__ import annotations

import os
import signal
from types import FrameType

#: The longest frame that the worker accepts if its environment does not limit it.
_MAX_FRAME = 1 << 20

_PASSED_OVER = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Inherited:
    """The descriptor of the protocol, and the longest frame that may be written to it.

    Of a zygote the descriptor is the one for requests, until it has forked an app.
    """

    def __init__(self, descriptor: int, max_frame: int, is_zygote: bool) -> None:
        self.descriptor = descriptor
        self.max_frame = max_frame
        self.is_zygote = is_zygote
        #: Whether the next child is an app, which replaces the descriptor itself and keeps the handlers of signals.
        self.is_forking = False
        self.inode = os.fstat(descriptor).st_ino

    def become(self, wire: int) -> None:
        """In an app that was forked: replaces the descriptor."""
        os.dup2(wire, self.descriptor, inheritable=False)
        os.close(wire)
        self.is_zygote = self.is_forking = False
        self.inode = os.fstat(self.descriptor).st_ino


def _pass_over(_signal: int, _frame: FrameType | None) -> None:
    """Does nothing. Unlike SIG_IGN a handler is not inherited by the programs that the app starts."""


def _take() -> Inherited | None:
    """Takes the descriptor over. Children see nothing of it, neither in the environment nor open."""
    number = os.environ.pop("FDPASSD_APP", None)
    max_frame = os.environ.pop("FDPASSD_MAX_FRAME", None)
    is_zygote = os.environ.pop("FDPASSD_PRELOAD", None) is not None
    if number is None:
        return None
    try:
        descriptor = int(number)
        os.set_inheritable(descriptor, False)
        found = Inherited(descriptor, int(max_frame) if max_frame else _MAX_FRAME, is_zygote)
    except (ValueError, OSError) as error:
        raise SystemExit(f"FDPASSD_APP={number}: {error}") from None
    try:
        for number_of in _PASSED_OVER:
            signal.signal(number_of, _pass_over)
            signal.siginterrupt(number_of, False)
    except ValueError:
        pass  # Not the main thread: the program has to do it.
    os.register_at_fork(before=_before_fork, after_in_parent=_unblock, after_in_child=lambda: _in_child(found))
    return found


_masks: list[set[int]] = []


def _before_fork() -> None:
    """Blocks the signals, because a child may be sent one before it has its defaults back."""
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_OVER))


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _in_child(own: Inherited) -> None:
    """In a forked child: descriptor and signals are the parent's business only."""
    if own.is_forking:
        _unblock()
        return
    try:
        # Not closed: another file would get its number, which objects of the parent's memory still close.
        if os.fstat(own.descriptor).st_ino == own.inode:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, own.descriptor, inheritable=False)
            os.close(null)
    except OSError:
        pass
    for number in _PASSED_OVER:
        if signal.getsignal(number) is _pass_over:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _unblock()


inherited = _take()
