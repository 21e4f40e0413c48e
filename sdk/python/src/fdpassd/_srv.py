"""Daemons that SRV records name (RFC 2782): ``srv:_SERVICE._PROTOCOL.NAME``. Needs dnspython.

The records are kept until their time to live is over, or until each target has failed. A connection is made to a target
of the lowest priority first. One whose connection was refused or has ended is left until all were tried.
"""

from __future__ import annotations

import ipaddress
import random
import re
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from ._address import Deadline, Endpoint, Failure, Lookup, SocketTarget, Unconnected, host_and_port
from ._failure import ResolveError

#: The longest name, in bytes of its text.
_MAX_NAME = 253

#: A label of a host or of a service.
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}", re.ASCII)

#: The longest time to live; above it a record counts as one of 0 s (RFC 2181, section 8).
_MAX_TTL = (1 << 31) - 1

#: How many reasons of targets are kept.
MAX_FAILURES = 16

_T = TypeVar("_T")


class Record(NamedTuple):
    """An SRV record; the target has no dot at its end."""

    priority: int
    weight: int
    port: int
    target: str


class Found(NamedTuple):
    """The targets of a name, in any order, and for how many seconds they hold."""

    targets: list[tuple[Record, Endpoint]]
    ttl: int


class Service:
    """A name with SRV records.

    :param nameservers: The nameservers that are asked, as ``ADDRESS`` or ``ADDRESS:PORT``; None: those of the system.
    :raises ValueError: The name, or a nameserver, is not valid.
    :raises ImportError: dnspython is not installed.
    """

    def __init__(self, text: str, nameservers: list[str] | None) -> None:
        self._name = _checked(text)
        self._nameservers = None if nameservers is None else [_nameserver(each) for each in nameservers]
        try:
            import dns.resolver  # noqa: F401
        except ImportError as error:
            why = "SRV records need the package dnspython: pip install 'fdpassd[srv]'"
            raise ImportError(f"{text!r}: {why} ({error})", name="dns") from None
        self.text = f"srv:{self._name}"
        self._targets: list[tuple[Record, Endpoint]] = []
        #: When their time to live is over.
        self._until = 0.0
        #: The targets that have failed, or whose connection has ended, since all targets were tried.
        self._left: list[str] = []
        #: A lookup that was not done at the deadline of its call; the next call waits for the same one.
        self._lookup: Lookup[Found] | None = None

    def connect(self, connect_timeout: float, deadline: Deadline) -> tuple[str, socket.socket]:
        """Connects to the first target that accepts, each within `connect_timeout`. Returns its name and port as well.

        :raises Unconnected: None did, or they are not known.
        """
        try:
            targets = self._untried(deadline.within(connect_timeout))
        except OSError as error:
            raise Unconnected([(self.text, error)]) from None
        failures: list[Failure] = []
        for _, endpoint in in_order(targets, lambda target: target[0]):
            if deadline.left() == 0:
                break
            try:
                return endpoint.text, endpoint.open(connect_timeout, deadline)
            except OSError as error:
                self.note_end(endpoint.text, False)
                if len(failures) < MAX_FAILURES:
                    failures.append((endpoint.text, error))
        raise Unconnected(failures or [(self.text, TimeoutError("there was no time left"))])

    def note_end(self, name: str, has_replied: bool) -> None:
        """Notes that the connection to a target has ended, or was not made.

        After one with replies, all others are tried first.
        """
        if has_replied:
            self._left.clear()
        if name not in self._left:
            self._left.append(name)

    def forget(self) -> None:
        """In a forked child: there is no thread that looks a name up."""
        self._lookup = None
        for _, endpoint in self._targets:
            endpoint.forget()

    def _untried(self, deadline: Deadline) -> list[tuple[Record, Endpoint]]:
        """Returns the targets that are tried now.

        A nameserver is asked if their time to live is over, or if all were tried.

        :raises OSError: They are not known.
        """
        holds = time.monotonic() < self._until
        if holds and (untried := self._not_left()):
            return untried
        try:
            # Of a name that is known, the rest of the time is for the targets, if no nameserver answers.
            found = self._found(Deadline(deadline.left() / 2) if holds else deadline)
        except OSError as error:
            if not holds or (isinstance(error, ResolveError) and error.is_final):
                self._until = 0.0
                raise
        else:
            self._targets = found.targets
            self._until = time.monotonic() + found.ttl
        if not (untried := self._not_left()):
            self._left.clear()
            untried = list(self._targets)
        return untried

    def _not_left(self) -> list[tuple[Record, Endpoint]]:
        return [target for target in self._targets if target[1].text not in self._left]

    def _found(self, deadline: Deadline) -> Found:
        """Asks the nameservers, by a thread: dnspython may take longer than it is given, because it sleeps."""
        lookup = self._lookup or Lookup(lambda: self._resolve(deadline))
        if not lookup.wait(deadline):
            self._lookup = lookup
            raise TimeoutError(f"no nameserver has answered within {deadline.timeout:.3g} s")
        self._lookup = None
        return lookup.result()

    def _resolve(self, deadline: Deadline) -> Found:
        answer = self._ask(self._name, "SRV", deadline)
        return _targets_of(answer, self._endpoint)

    def _endpoint(self, record: Record, targets: list[SocketTarget]) -> Endpoint:
        """Returns a target, of which these addresses were in the answer."""

        def find() -> list[SocketTarget]:
            if self._nameservers is None:
                return Endpoint.look_up(record.target, record.port)
            return self._addresses(record)

        return Endpoint(f"{record.target}:{record.port}", targets, find)

    def _addresses(self, record: Record) -> list[SocketTarget]:
        """Asks the nameservers of the client, which may know other names than those of the system."""
        found: list[SocketTarget] = []
        error: OSError | None = None
        for kind, family in (("AAAA", socket.AF_INET6), ("A", socket.AF_INET)):
            try:
                answer = self._ask(record.target, kind, Deadline(_ADDRESS_TIME))
            except OSError as why:
                error = why if error is None or not isinstance(why, ResolveError) or why.kind != "no_records" else error
            else:
                found += [(family, (rdata.address, record.port)) for rdata in answer]
        if not found and error is not None:
            raise error
        return found

    def _ask(self, name: str, kind: str, deadline: Deadline) -> Any:
        """Returns the answer of the first nameserver that has one.

        :raises OSError: None has.
        """
        import dns.exception
        import dns.message
        import dns.name
        import dns.nameserver
        import dns.resolver

        if deadline.left() == 0:
            raise TimeoutError("there was no time left")
        try:
            resolver = dns.resolver.Resolver(configure=self._nameservers is None)
            if self._nameservers is not None:
                resolver.nameservers = [dns.nameserver.Do53Nameserver(*each) for each in self._nameservers]
        except (dns.exception.DNSException, ValueError, OSError) as error:
            raise ResolveError("no_nameserver", f"there is no nameserver: {_words(error)}") from None
        if not resolver.nameservers:
            raise ResolveError("no_nameserver", "there is no nameserver: the option has none")
        # Each is asked twice.
        lifetime = deadline.left()
        resolver.timeout = min(resolver.timeout, lifetime / (2 * len(resolver.nameservers)))
        try:
            return resolver.resolve(dns.name.from_text(name), kind, lifetime=lifetime, search=False)
        except dns.resolver.NXDOMAIN:
            raise ResolveError("no_such_name", "the name does not exist") from None
        except dns.resolver.NoAnswer:
            raise ResolveError("no_records", f"the name has no {kind} records") from None
        except dns.resolver.LifetimeTimeout:
            raise TimeoutError(f"no nameserver has answered within {lifetime:.3g} s") from None
        except dns.resolver.NoNameservers as error:
            raise _failed(error.kwargs.get("errors") or []) from None
        except (dns.exception.DNSException, ValueError, EOFError) as error:
            raise ResolveError("bad_answer", f"the answer of a nameserver is not valid: {_words(error)}") from None


#: The seconds in which a nameserver is asked for the addresses of a target, by a thread for which a call waits less long.
_ADDRESS_TIME = 5.0


def in_order(
    targets: Iterable[_T], record: Callable[[_T], Record], draw: Callable[[int], int] = lambda last: random.randint(0, last)
) -> list[_T]:
    """Orders targets by their priority, lowest first, and those of a priority at random by their weight.

    As RFC 2782 describes: with a weight of 0 there is only a small chance to be selected before others.

    :param draw: Returns a random number from 0 to its argument.
    """
    rest = list(targets)
    # Those of the same weight have no order of their own: without a weight above 0, the first one is selected.
    for last in range(len(rest) - 1, 0, -1):
        other = draw(last)
        rest[last], rest[other] = rest[other], rest[last]
    rest.sort(key=lambda target: (record(target).priority, record(target).weight > 0))
    ordered = []
    while rest:
        weights = [record(target).weight for target in rest if record(target).priority == record(rest[0]).priority]
        drawn = draw(sum(weights))
        total = selected = 0
        for selected, weight in enumerate(weights):
            total += weight
            if total >= drawn:
                break
        ordered.append(rest.pop(selected))
    return ordered


def _targets_of(answer: Any, endpoint: Callable[[Record, list[SocketTarget]], Endpoint]) -> Found:
    """Returns the targets of an answer.

    :raises ResolveError: There is none.
    """
    import dns.name
    import dns.rdatatype

    families = {dns.rdatatype.A: socket.AF_INET, dns.rdatatype.AAAA: socket.AF_INET6}
    added = [rrset for rrset in answer.response.additional if rrset.rdtype in families]
    ttl = _seconds(answer.chaining_result.minimum_ttl)
    targets: dict[str, tuple[Record, Endpoint]] = {}
    for rdata in answer:
        name = rdata.target.to_text(omit_final_dot=True)
        record = Record(rdata.priority, rdata.weight, rdata.port, name)
        if rdata.target == dns.name.root or not _is_name(name) or not record.port:
            continue
        known: list[SocketTarget] = []
        for rrset in added:
            if rrset.name == rdata.target:
                known += [(families[rrset.rdtype], (each.address, record.port)) for each in rrset]
                ttl = min(ttl, _seconds(rrset.ttl))
        target = endpoint(record, known)
        targets.setdefault(target.text, (record, target))
    if targets:
        return Found(list(targets.values()), ttl)
    if all(rdata.target == dns.name.root for rdata in answer):
        text = 'the service is not available there: the target of its record is "."'
        raise ResolveError("not_available", text)
    text = "no target has the name of a host and a port"
    raise ResolveError("bad_answer", f"the answer of a nameserver is not valid: {text}")


def _failed(errors: list[Any]) -> ResolveError:
    """Returns the error of the last nameserver."""
    for server, _, _, error, _ in reversed(errors):
        # dnspython has Do53:ADDRESS@PORT.
        who = str(server).removeprefix("Do53:").replace("@", ":")
        if isinstance(error, str):
            return ResolveError("server_failed", f"the nameserver {who} has answered {error}")
        if isinstance(error, OSError):
            return ResolveError("unreachable", f"the nameserver {who} cannot be reached: {_words(error)}")
        return ResolveError("bad_answer", f"the answer of the nameserver {who} is not valid: {_words(error)}")
    return ResolveError("server_failed", "no nameserver has answered")


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__


def _seconds(ttl: int) -> int:
    return ttl if ttl <= _MAX_TTL else 0


def _is_name(text: str) -> bool:
    return len(text) <= _MAX_NAME and all(_LABEL.fullmatch(label) for label in text.split("."))


def _checked(text: str) -> str:
    """Returns the name of an address, without a dot at its end."""
    name = text.removeprefix("srv:").removesuffix(".")
    labels = name.split(".")
    if len(labels) < 3 or not all(len(label) > 1 and label.startswith("_") for label in labels[:2]):
        form = "_SERVICE._PROTOCOL.NAME, such as _fdpassd._tcp.example.net"
        raise ValueError(f"{text!r}: a name of SRV records is {form}")
    for label in labels:
        if not _LABEL.fullmatch(label):
            rule = '1 to 63 ASCII letters, digits, "-" and "_"'
            raise ValueError(f"{text!r}: {label!r} is not a label of a DNS name: {rule}")
    if len(name) > _MAX_NAME:
        raise ValueError(f"{text!r}: a DNS name has at most {_MAX_NAME} bytes, this one has {len(name)}")
    return name


def _nameserver(text: str) -> tuple[str, int]:
    """Returns the address and the port of a nameserver."""
    try:
        return str(ipaddress.ip_address(text)), 53
    except ValueError:
        pass
    try:
        host, port = host_and_port(text)
        return str(ipaddress.ip_address(host)), port
    except ValueError:
        raise ValueError(f"the nameserver {text!r} is not an IP address, or one and a port") from None
