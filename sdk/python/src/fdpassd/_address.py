"""Addresses of listeners, and connections to them."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

#: The longest path of a Unix socket, in bytes: `sun_path` without its final NUL.
_MAX_UNIX_PATH = 107

#: A bound for the argument of `settimeout`, in seconds. The kernel gives up much earlier.
_LONGEST_CONNECT = 86_400.0

#: A family and the address of a socket in it.
SocketTarget = tuple[socket.AddressFamily, Any]

#: A daemon to which no connection was made, and why.
Failure = tuple[str, OSError]

_T = TypeVar("_T")


class Unconnected(Exception):
    """No connection was made.

    :param failures: The daemons that were tried, or the name of which none is known.
    """

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__(failures)
        self.failures = failures


class Deadline:
    """A time on the monotonic clock."""

    __slots__ = ("at", "timeout")

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.at = time.monotonic() + timeout

    def left(self) -> float:
        """Returns the seconds until then, 0 from then on."""
        return max(0.0, self.at - time.monotonic())

    def within(self, timeout: float) -> Deadline:
        """Returns the deadline after this time, or this one if that is earlier."""
        return self if timeout >= self.left() else Deadline(timeout)


def seconds(name: str, value: float) -> float:
    """Returns a time that may be infinite.

    :raises ValueError: It is not above 0.
    """
    value = float(value)
    if math.isnan(value) or value <= 0:
        raise ValueError(f"{name} is a time above 0 in seconds")
    return value


class Lookup(Generic[_T]):
    """A call of a function by a thread, because resolvers know no deadline."""

    def __init__(self, find: Callable[[], _T]) -> None:
        self._found: list[_T] = []
        self._error: OSError | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, args=(find,), name="lookup", daemon=True).start()

    def _run(self, find: Callable[[], _T]) -> None:
        try:
            self._found.append(find())
        except OSError as error:
            self._error = error
        except Exception as error:
            self._error = OSError(f"the lookup has failed: {error}")
        finally:
            self._done.set()

    def wait(self, deadline: Deadline) -> bool:
        """Returns whether it is done before the deadline."""
        return self._done.wait(min(deadline.left(), threading.TIMEOUT_MAX))

    def result(self) -> _T:
        """Returns what was found.

        :raises OSError: Nothing was.
        """
        if self._error is not None:
            raise self._error
        return self._found[0]


class Endpoint:
    """A listener, and the addresses of its host.

    :param text: The listener, as users of the client read it.
    :param targets: The addresses that are known.
    :param find: Finds them, by a thread for each connection, if none is.
    """

    def __init__(self, text: str, targets: list[SocketTarget], find: Callable[[], list[SocketTarget]]) -> None:
        self.text = text
        self._targets = targets
        self._find = find
        #: A lookup that was not done at the deadline of its call; the next call waits for the same one.
        self._lookup: Lookup[list[SocketTarget]] | None = None

    def connect(self, connect_timeout: float, deadline: Deadline) -> tuple[str, socket.socket]:
        """Connects to the first target that accepts. Returns the text as well.

        :raises Unconnected: None did.
        """
        try:
            return self.text, self.open(connect_timeout, deadline)
        except OSError as error:
            raise Unconnected([(self.text, error)]) from None

    def note_end(self, name: str, has_replied: bool) -> None:
        """Notes that its connection has ended. It has no other."""

    def open(self, connect_timeout: float, deadline: Deadline) -> socket.socket:
        """Connects to the first target that accepts, each within `connect_timeout`.

        :raises OSError: None did.
        """
        error: OSError = TimeoutError("there was no time left")
        for target in self.targets(deadline.within(connect_timeout)):
            if deadline.left() == 0:
                break
            try:
                return _connect(target, deadline.within(connect_timeout))
            except OSError as why:
                error = why
        raise error

    def targets(self, deadline: Deadline) -> list[SocketTarget]:
        """Returns where to connect to. A name is looked up each time.

        :raises OSError: The name is not known, or not before the deadline.
        """
        if self._targets:
            return self._targets
        lookup = self._lookup or Lookup(self._find)
        if not lookup.wait(deadline):
            self._lookup = lookup
            raise TimeoutError(f"the name was not looked up within {deadline.timeout:g} s")
        self._lookup = None
        return lookup.result()

    @staticmethod
    def look_up(host: str, port: int, flags: int = 0) -> list[SocketTarget]:
        """Asks the resolver of the system.

        :raises OSError: It does not know the name.
        """
        try:
            return _lookup(host, port, flags)
        except UnicodeError as error:
            raise OSError(f"{host!r} is not a valid name: {error}") from None

    def forget(self) -> None:
        """In a forked child: there is no thread that looks the name up."""
        self._lookup = None


class Address(Endpoint):
    """The address of a listener: ``192.0.2.1:8080``, ``[2001:db8::1]:8080``, ``rpc.example:8080`` or ``unix:/PATH``.

    :raises ValueError: The text is none of these.
    """

    def __init__(self, text: str) -> None:
        if text.startswith("unix:"):
            super().__init__(text, [(socket.AF_UNIX, _unix_path(text))], list)
            return
        host, port = host_and_port(text)
        try:
            targets = self.look_up(host, port, socket.AI_NUMERICHOST)
        except OSError:
            if text.startswith("["):
                raise ValueError(f"{text!r}: {host!r} is not an IPv6 address") from None
            targets = []
        super().__init__(text, targets, lambda: self.look_up(host, port))


def _unix_path(text: str) -> str:
    path = text.removeprefix("unix:")
    length = len(os.fsencode(path))
    if not path.startswith("/") or "\0" in path:
        raise ValueError(f"{text!r}: the path of a Unix socket is absolute and has no NUL")
    if length > _MAX_UNIX_PATH:
        limit = f"at most {_MAX_UNIX_PATH} bytes"
        raise ValueError(f"{text!r}: the path of a Unix socket has {limit}, this one has {length}")
    return path


def host_and_port(text: str) -> tuple[str, int]:
    """Splits ``HOST:PORT`` or ``[IPV6]:PORT``.

    :raises ValueError: It is neither.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address is written in brackets: [2001:db8::1]:8080")
    if not colon or not host or not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"{text!r} is not a valid address: expected HOST:PORT or unix:/PATH")
    return host, int(port)


def is_service(text: str) -> bool:
    """Returns whether a text is a name of SRV records: ``srv:`` and more than the port of a host called ``srv``."""
    name = text.removeprefix("srv:")
    return name != text and not (name.isascii() and (name.isdigit() or not name))


def _lookup(host: str, port: int, flags: int) -> list[SocketTarget]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags | socket.AI_NUMERICSERV)
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


def _connect(target: SocketTarget, deadline: Deadline) -> socket.socket:
    family, to = target
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(min(max(deadline.left(), 0.001), _LONGEST_CONNECT))
        try:
            connection.connect(to)
        except BlockingIOError:
            raise ConnectionRefusedError("the accept queue is full") from None
        except TimeoutError:
            raise TimeoutError(f"no connection within {deadline.timeout:.3g} s") from None
        # On loopback, a port of which there is no listener may be chosen for this end.
        if family != socket.AF_UNIX and connection.getsockname() == connection.getpeername():
            raise ConnectionRefusedError("nothing listens there")
        connection.setblocking(False)
    except BaseException:
        connection.close()
        raise
    return connection
