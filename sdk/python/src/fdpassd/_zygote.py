"""A zygote: it has loaded what the apps of all workers share, and forks each of them."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import time
from struct import Struct
from typing import TYPE_CHECKING, Any

from ._app import end, why_failed
from ._process import Inherited

if TYPE_CHECKING:
    from ._app import App

_LENGTH = Struct("<I")

#: The longest message, and the most descriptors of one: the line, the socket, standard output and standard error.
_READ, _DESCRIPTORS = 4096, 4

#: How long a thread that is ending may take to end.
_THREADS_TIMEOUT = 0.5


def serve(app: App, inherited: Inherited) -> None:
    """Loads, and forks apps until no worker needs more. Returns in each app.

    The process has one thread, because a fork copies only the thread that calls it.
    """
    requests = socket.socket(fileno=os.dup(inherited.descriptor))
    requests.setblocking(True)
    try:
        for function in app._at_preload:
            function()
        _check_threads()
    except BaseException as error:
        _send(requests, why_failed(error))
        end(1)
    # The collector writes to all objects that it looks at, and a page that is written to is no longer shared.
    was_enabled = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()
    # While the program loads, this signal ends it together with the daemon.
    at_user1 = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    _send(requests, {"preloaded": 1})
    _Zygote(inherited, requests).run()
    signal.signal(signal.SIGUSR1, at_user1)
    if was_enabled:
        gc.enable()


class _Child:
    """An app, and the line to its worker. It is collected when the worker has closed the line."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        self.line = line
        self.pidfd = os.pidfd_open(pid)
        self.has_ended = self.is_left = False

    def report(self) -> None:
        """Reports its end, and leaves it uncollected."""
        self.has_ended = True
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert found is not None
        exited = found.si_code == os.CLD_EXITED
        _send(self.line, {"exited" if exited else "killed": found.si_status})

    def kill(self) -> None:
        """Kills it with its process group. It is not collected, so the number is its own."""
        self.is_left = True
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except OSError:
            pass

    def close(self) -> None:
        self.line.close()
        os.close(self.pidfd)


class _Zygote:
    def __init__(self, inherited: Inherited, requests: socket.socket) -> None:
        self._inherited = inherited
        self._requests = requests
        self._poll = select.poll()
        self._poll.register(requests, select.POLLIN)
        self._is_open = True
        #: By the descriptor of the line, and by that of the process.
        self._children: dict[int, _Child] = {}

    def run(self) -> None:
        """Returns in an app."""
        while self._is_open or self._children:
            for number, _ in self._poll.poll():
                if number == self._requests.fileno():
                    if self._fork():
                        return
                elif number in self._children:
                    self._attend(number, self._children[number])
        end()

    def _fork(self) -> bool:
        """Takes a request. Returns whether this process is the app."""
        data, descriptors, _, _ = socket.recv_fds(self._requests, _READ, _DESCRIPTORS)
        if not data:
            self._poll.unregister(self._requests)
            self._is_open = False
            return False
        if len(descriptors) < 2:
            # The kernel has no room for them; the worker sees the end of its line.
            for number in descriptors:
                os.close(number)
            return False
        line = socket.socket(fileno=descriptors[0])
        line.setblocking(True)
        self._inherited.is_forking = True
        try:
            pid = os.fork()
        except OSError as error:
            _send(line, {"failed": str(error)})
            line.close()
        else:
            if pid == 0:
                self._become(line, descriptors[1:])
                return True
            os.setpgid(pid, pid)
            child = _Child(pid, line)
            self._children[line.fileno()] = self._children[child.pidfd] = child
            self._poll.register(line, 0)
            self._poll.register(child.pidfd, select.POLLIN)
            _send(line, {"forked": pid})
        self._inherited.is_forking = False
        for number in descriptors[1:]:
            os.close(number)
        return False

    def _become(self, line: socket.socket, descriptors: list[int]) -> None:
        """Makes this process the app: it has nothing of the others, and waits until the worker knows it."""
        self._requests.close()
        for child in set(self._children.values()):
            child.close()
        self._inherited.become(descriptors[0])
        for number, own in zip((1, 2), descriptors[1:]):
            os.dup2(own, number)
            os.close(own)
        if not line.recv(_READ):
            end()
        line.close()

    def _attend(self, number: int, child: _Child) -> None:
        self._poll.unregister(number)
        if number == child.pidfd:
            child.report()
        else:
            child.kill()
        if child.has_ended and child.is_left:
            os.waitpid(child.pid, 0)
            del self._children[child.line.fileno()], self._children[child.pidfd]
            child.close()


def _check_threads() -> None:
    """Checks that the process has no other thread. A thread that was joined may be in the list for a moment."""
    until = time.monotonic() + _THREADS_TIMEOUT
    while (count := len(os.listdir("/proc/self/task"))) > 1:
        if time.monotonic() > until:
            raise RuntimeError(
                f"the preload has left {count - 1} threads, and a forked app would have none of them: start them in app.start"
            )
        select.select([], [], [], 0.01)


def _send(line: socket.socket, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    try:
        line.sendall(_LENGTH.pack(len(body)) + body)
    except OSError:
        pass  # The other end is gone, and so is what it wanted.
