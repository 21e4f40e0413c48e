"""A nameserver on loopback whose answers a test writes, over UDP and over TCP."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from collections.abc import Callable
from typing import NamedTuple

A, CNAME, AAAA, SRV = 1, 5, 28, 33


class Asked(NamedTuple):
    """A question."""

    name: str
    kind: int
    is_tcp: bool
    id: int
    #: The question as it was received.
    question: bytes

    def reply(self, code: int = 0, truncated: bool = False) -> Message:
        """Begins the answer. 2 is SERVFAIL, 3 is NXDOMAIN, 5 is REFUSED."""
        return Message(self.id, 0x8180 | code | (0x200 if truncated else 0), self.question)


class Message:
    """An answer."""

    def __init__(self, id: int, flags: int, question: bytes) -> None:
        self.id = id
        self.question = question
        self._flags = flags
        self._answers: list[bytes] = []
        self._added: list[bytes] = []

    def answer(self, owner: bytes, kind: int, ttl: int, data: bytes) -> Message:
        self._answers.append(record(owner, kind, ttl, data))
        return self

    def srv(self, ttl: int, priority: int, weight: int, port: int, target: str) -> Message:
        """Adds a record of the name that was asked for."""
        return self.answer(b"\xc0\x0c", SRV, ttl, struct.pack(">HHH", priority, weight, port) + name(target))

    def address(self, host: str, ttl: int, ip: str = "127.0.0.1") -> Message:
        """Adds the address of a host to the additional section."""
        packed = ipaddress.ip_address(ip).packed
        self._added.append(record(name(host), A if len(packed) == 4 else AAAA, ttl, packed))
        return self

    @property
    def bytes(self) -> bytes:
        counts = (1 if self.question else 0, len(self._answers), 0, len(self._added))
        header = struct.pack(">HHHHHH", self.id, self._flags, *counts)
        return header + self.question + b"".join(self._answers + self._added)


def name(text: str) -> bytes:
    """Returns a name on the wire; "." is the root."""
    labels = [label.encode() for label in text.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def record(owner: bytes, kind: int, ttl: int, data: bytes) -> bytes:
    return owner + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data


#: Returns the messages for a question; none is silence.
Answer = Callable[[Asked], list[bytes]]


class Nameserver:
    """It is at `address`, with `answer`, which a test may replace; `asked` has the questions so far."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self._tcp, self._udp = _sockets()
        self.address = "{}:{}".format(*self._udp.getsockname())
        self._is_over = False
        self._threads = [threading.Thread(target=serve) for serve in (self._serve_udp, self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._is_over = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._udp.getsockname())
        socket.create_connection(self._tcp.getsockname()).close()
        for thread in self._threads:
            thread.join()
        self._udp.close()
        self._tcp.close()

    def _serve_udp(self) -> None:
        while True:
            message, client = self._udp.recvfrom(2048)
            if self._is_over:
                return
            for answer in self._answers(message, False):
                self._udp.sendto(answer, client)

    def _serve_tcp(self) -> None:
        while True:
            connection, _ = self._tcp.accept()
            with connection:
                if self._is_over:
                    return
                length = connection.recv(2, socket.MSG_WAITALL)
                if len(length) < 2:
                    continue
                message = connection.recv(int.from_bytes(length), socket.MSG_WAITALL)
                for answer in self._answers(message, True):
                    connection.sendall(len(answer).to_bytes(2) + answer)

    def _answers(self, message: bytes, is_tcp: bool) -> list[bytes]:
        labels, at = [], 12
        while length := message[at]:
            labels.append(message[at + 1 : at + 1 + length].decode())
            at += 1 + length
        (kind,) = struct.unpack(">H", message[at + 1 : at + 3])
        (id,) = struct.unpack(">H", message[:2])
        asked = Asked(".".join(labels), kind, is_tcp, id, message[12 : at + 5])
        self.asked.append(asked)
        return self.answer(asked)


def _sockets() -> tuple[socket.socket, socket.socket]:
    """Returns a listener, and a socket with the same port: another process may have it for UDP."""
    for _ in range(100):
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:
            tcp.close()
            udp.close()
        else:
            return tcp, udp
    raise AssertionError("there is no port for both")
