"""The client with daemons that SRV records name."""

from __future__ import annotations

import io
import json
import random
import socket
import sys
import time
import unittest
from collections import Counter
from typing import Any
from unittest import mock

from fdpassd._address import Deadline, Unconnected
from fdpassd._srv import Record, Service, in_order
from fdpassd.client import Client, ResolveError, Unavailable

from .daemon import Daemon
from .nameserver import CNAME, SRV, Answer, Asked, Nameserver, name
from .worker import TIMEOUT, needs

SERVICE = "_fdpassd._tcp.example.net"

LONG = 3600

#: The host of a target, its priority and its weight, and its port.
Target = tuple[str, int, int, int]


def zone(ttl: int, *targets: Target) -> Answer:
    """Answers for the service, with the addresses of all hosts. Other names do not exist."""

    def answer(asked: Asked) -> list[bytes]:
        if asked.kind != SRV or asked.name != SERVICE:
            return [asked.reply(3).bytes]
        reply = asked.reply()
        for host, priority, weight, port in targets:
            reply.srv(ttl, priority, weight, port, host).address(host, ttl)
        return [reply.bytes]

    return answer


def silence(asked: Asked) -> list[bytes]:
    return []


class Order(unittest.TestCase):
    def first(self, *of: tuple[int, int]) -> Counter[int]:
        """Returns how often each record is the first of 20,000 draws."""
        generator = random.Random(7)
        records = [Record(priority, weight, port, "a") for port, (priority, weight) in enumerate(of)]
        draws = (in_order(records, lambda record: record, lambda last: generator.randint(0, last)) for _ in range(20_000))
        return Counter(draw[0].port for draw in draws)

    def test_the_first_target_is_drawn_by_its_weight(self) -> None:
        firsts = self.first((1, 10), (2, 65535), (1, 60), (1, 30))
        self.assertEqual(set(firsts), {0, 2, 3})
        for port, expected in ((0, 2000), (2, 12_000), (3, 6000)):
            self.assertAlmostEqual(firsts[port], expected, delta=500)
        firsts = self.first((1, 0), (1, 0), (1, 0), (1, 0))
        for port in range(4):
            self.assertAlmostEqual(firsts[port], 5000, delta=500)

    def test_a_weight_of_0_is_drawn_rarely(self) -> None:
        self.assertAlmostEqual(self.first((1, 99), (1, 0))[1], 200, delta=100)
        records = [Record(1, 9, 0, "a"), Record(1, 0, 1, "a")]
        self.assertEqual(in_order(records, lambda record: record, lambda last: 0)[0].port, 1)
        self.assertEqual(in_order(records, lambda record: record, lambda last: last)[0].port, 0)

    def test_a_lower_priority_always_comes_first(self) -> None:
        records = [Record(priority, 1, port, "a") for port, priority in enumerate((20, 10, 20, 0, 10))]
        for _ in range(100):
            ordered = [record.priority for record in in_order(records, lambda record: record)]
            self.assertEqual(ordered, [0, 10, 10, 20, 20])
        self.assertEqual(in_order(list[Record](), lambda record: record), [])


class Names(unittest.TestCase):
    def test_without_dnspython_the_error_names_the_extra(self) -> None:
        with mock.patch.dict(sys.modules, {"dns": None, "dns.resolver": None}):
            with self.assertRaisesRegex(ImportError, r"dnspython: pip install 'fdpassd\[srv\]'"):
                Client(f"srv:{SERVICE}")

    def test_a_mistake_in_a_name_has_its_sentence(self) -> None:
        form = "a name of SRV records is _SERVICE._PROTOCOL.NAME"
        for text, why in (
            ("rpc.example.net", form),
            ("_fdpassd._tcp", form),
            ("_fdpassd.tcp.example.net", form),
            ("_._tcp.example.net", form),
            ("_fdpassd._tcp..net", "'' is not a label"),
            ("_fdpassd._tcp.exämple.net", "is not a label"),
            ("_fdpassd._tcp.example.net:8080", "'net:8080' is not a label"),
            ("_fdpassd._tcp." + ".".join(["x" * 60] * 5), "at most 253 bytes"),
        ):
            with self.assertRaisesRegex(ValueError, why):
                Client(f"srv:{text}")
        for text in ("srv:", "srv:0"):
            with self.assertRaisesRegex(ValueError, "expected HOST:PORT"):
                Client(text)
        # A host with this name.
        Client("srv:8080").close()


class Case(unittest.TestCase):
    def setUp(self) -> None:
        needs(self, "dns")

    def daemon(self) -> tuple[Daemon, int]:
        daemon = Daemon(None, "", '"127.0.0.1:0"')
        self.addCleanup(daemon.__exit__)
        return daemon, int(daemon.address.rpartition(":")[2])

    def nameserver(self, answer: Answer) -> Nameserver:
        nameserver = Nameserver(answer)
        self.addCleanup(nameserver.close)
        return nameserver

    def client(self, *nameservers: Nameserver, **options: Any) -> Client:
        given = {"timeout": TIMEOUT, "backoff": (0.01, 0.1), "nameservers": [each.address for each in nameservers]}
        client = Client(f"srv:{SERVICE}", **{**given, **options})
        self.addCleanup(client.close)
        return client

    def called(self, client: Client) -> str | None:
        """Calls a method. Returns the daemon that has replied."""
        self.assertEqual(client.call("ping", 7), 7)
        return client.address

    def cause(self, nameservers: list[str] | None) -> OSError:
        """Returns why the name has no target."""
        with self.assertRaises(Unconnected) as caught:
            Service(f"srv:{SERVICE}", nameservers).connect(TIMEOUT, Deadline(TIMEOUT))
        ((address, cause),) = caught.exception.failures
        self.assertEqual(address, f"srv:{SERVICE}")
        return cause

    def kick_all(self, daemon: Daemon) -> None:
        def clients() -> Any:
            return json.loads(daemon.ctl("clients", "--json"))["clients"]

        for client in clients():
            daemon.ctl("kick", str(client["id"]))
        # Before, the next request might still be answered there.
        deadline = Deadline(TIMEOUT)
        while clients():
            self.assertGreater(deadline.left(), 0, "the connections have not ended")


class Targets(Case):
    def test_the_lowest_priority_comes_first_and_then_the_next(self) -> None:
        (first, a), (_, b) = self.daemon(), self.daemon()
        nameserver = self.nameserver(zone(LONG, ("b.example.net", 20, 65535, b), ("a.example.net", 10, 0, a)))
        client = self.client(nameserver)
        self.assertEqual(self.called(client), f"a.example.net:{a}")
        first.kill()
        self.assertEqual(self.called(client), f"b.example.net:{b}")
        self.assertEqual(len(nameserver.asked), 1)

    def test_clients_spread_over_targets_of_the_same_priority(self) -> None:
        (_, a), (_, b) = self.daemon(), self.daemon()
        nameserver = self.nameserver(zone(LONG, ("a.example.net", 1, 1, a), ("b.example.net", 1, 1, b)))
        seen: set[str | None] = set()
        end = time.monotonic() + TIMEOUT
        while len(seen) < 2:
            self.assertLess(time.monotonic(), end, "each of the two was called")
            seen.add(self.called(self.client(nameserver)))

    def test_new_records_are_used_when_the_time_to_live_is_over(self) -> None:
        (first, a), (_, b), (_, c) = self.daemon(), self.daemon(), self.daemon()
        old = ("a.example.net", 10, 0, a), ("b.example.net", 20, 0, b)
        for ttl, expected in ((0, ("c", c)), (LONG, ("b", b)), (0xFFFF_FFFF, ("c", c))):
            nameserver = self.nameserver(zone(ttl, *old))
            client = self.client(nameserver)
            self.assertEqual(self.called(client), f"a.example.net:{a}")
            nameserver.answer = zone(ttl, ("c.example.net", 5, 0, c), *old)
            # A connection outlives the records.
            self.assertEqual(self.called(client), f"a.example.net:{a}")
            self.kick_all(first)
            self.assertEqual(self.called(client), "{}.example.net:{}".format(*expected))

    def test_the_nameserver_is_asked_again_when_all_targets_have_failed(self) -> None:
        (first, a), (_, b) = self.daemon(), self.daemon()
        nameserver = self.nameserver(zone(LONG, ("a.example.net", 1, 0, a)))
        client = self.client(nameserver)
        self.assertEqual(self.called(client), f"a.example.net:{a}")
        first.kill()
        nameserver.answer = zone(LONG, ("b.example.net", 1, 0, b))
        self.assertEqual(self.called(client), f"b.example.net:{b}")

    def test_records_that_hold_are_used_while_the_nameserver_fails(self) -> None:
        daemon, port = self.daemon()
        nameserver = self.nameserver(zone(LONG, ("a.example.net", 1, 0, port)))
        client = self.client(nameserver)
        self.called(client)
        nameserver.answer = lambda asked: [asked.reply(2).bytes]
        self.kick_all(daemon)
        self.assertEqual(self.called(client), f"a.example.net:{port}")
        # The name is gone: so is the target.
        nameserver.answer = lambda asked: [asked.reply(3).bytes]
        self.kick_all(daemon)
        with self.assertRaisesRegex(Unavailable, f"srv:{SERVICE}: the name does not exist") as caught:
            client.call("ping", timeout=5)
        cause = caught.exception.causes[f"srv:{SERVICE}"]
        assert isinstance(cause, ResolveError), cause
        self.assertEqual(cause.kind, "no_such_name")

    def test_a_forked_client_has_the_records(self) -> None:
        _, port = self.daemon()
        client = self.client(self.nameserver(zone(LONG, ("a.example.net", 1, 0, port))))
        self.called(client)
        client._forget()
        self.assertEqual(self.called(client), f"a.example.net:{port}")


class Answers(Case):
    def kind(self, answer: Answer) -> str:
        cause = self.cause([self.nameserver(answer).address])
        assert isinstance(cause, ResolveError), cause
        return cause.kind

    def test_a_name_without_targets_has_a_kind_of_error(self) -> None:
        other = name("_rpc._tcp.example.org")
        for kind, answer in (
            ("no_such_name", lambda asked: asked.reply(3)),
            ("no_records", lambda asked: asked.reply()),
            ("no_records", lambda asked: asked.reply().answer(b"\xc0\x0c", CNAME, 60, other)),
            ("not_available", lambda asked: asked.reply().srv(60, 0, 0, 0, ".")),
            ("server_failed", lambda asked: asked.reply(2)),
            ("server_failed", lambda asked: asked.reply(5)),
            ("bad_answer", lambda asked: asked.reply().srv(60, 0, 0, 0, "a.example.net").srv(60, 0, 0, 9, "a b.net")),
            ("bad_answer", lambda asked: asked.reply().answer(b"\xc0\x0c", CNAME, 60, name(SERVICE))),
        ):
            with self.subTest(kind=kind):
                self.assertEqual(self.kind(lambda asked, answer=answer: [answer(asked).bytes]), kind)  # type: ignore[misc]

    def test_without_a_nameserver_the_error_says_so(self) -> None:
        cause = self.cause([])
        self.assertEqual(str(cause), "there is no nameserver: the option has none")
        # The file of the system, without a nameserver.
        with mock.patch("dns._file_util.maybe_open", return_value=io.StringIO("search example.net\n")):
            cause = self.cause(None)
        self.assertRegex(str(cause), "^there is no nameserver: ")

    def test_a_nameserver_that_is_silent_costs_no_more_than_the_deadline(self) -> None:
        def foreign(asked: Asked) -> list[bytes]:
            reply = asked.reply()
            reply.id ^= 1
            return [reply.bytes] * 20

        def malformed(asked: Asked) -> list[bytes]:
            return [asked.reply().srv(60, 0, 0, 80, "a.example.net").bytes[:-3], b"", b"\0"]

        for answer in (silence, foreign, malformed):
            nameserver = self.nameserver(answer)
            began = time.monotonic()
            with self.assertRaises(Unavailable) as caught:
                self.client(nameserver, connect_timeout=TIMEOUT).call("ping", timeout=1)
            ((address, cause),) = caught.exception.causes.items()
            self.assertEqual(address, f"srv:{SERVICE}")
            self.assertIsInstance(cause, TimeoutError)
            self.assertLess(time.monotonic() - began, TIMEOUT)
            self.assertTrue(nameserver.asked)

    def test_an_error_has_the_last_causes_of_many_targets(self) -> None:
        # Nothing listens at them. Each round is in another order, and the nameserver is asked again after it.
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
            targets = [(f"host-{number}.example.net", 1, 1, port) for number in range(40)]
            nameserver = self.nameserver(zone(0, *targets))
            with self.assertRaises(Unavailable) as caught:
                self.client(nameserver, backoff=(0.001, 0.001)).call("ping", timeout=3)
        self.assertEqual(len(caught.exception.causes), 16)

    def test_the_next_nameserver_is_asked_if_one_fails(self) -> None:
        _, port = self.daemon()
        good = self.nameserver(zone(LONG, ("a.example.net", 1, 0, port)))
        for answer in (silence, lambda asked: [asked.reply(2).bytes]):
            client = self.client(self.nameserver(answer), good)
            self.assertEqual(self.called(client), f"a.example.net:{port}")

    def test_a_truncated_answer_is_asked_for_over_tcp(self) -> None:
        _, port = self.daemon()

        # Of the hosts, the nameserver knows the addresses when it is asked for them.
        def answer(asked: Asked) -> list[bytes]:
            reply = asked.reply(truncated=asked.kind == SRV and not asked.is_tcp)
            if asked.kind == SRV and asked.is_tcp:
                for n in range(1000):
                    reply.srv(60, 1, 1, port, f"host-{n}.example.net")
            elif asked.kind == 1:
                reply.answer(b"\xc0\x0c", 1, 60, bytes([127, 0, 0, 1]))
            return [reply.bytes]

        nameserver = self.nameserver(answer)
        self.assertRegex(str(self.called(self.client(nameserver))), rf"^host-\d+\.example\.net:{port}$")
        self.assertEqual([asked.is_tcp for asked in nameserver.asked[:2]], [False, True])

    def test_aliases_are_followed(self) -> None:
        _, port = self.daemon()
        other = name("_RPC._tcp.example.org")

        def answer(asked: Asked) -> list[bytes]:
            reply = asked.reply().answer(b"\xc0\x0c", CNAME, 60, other)
            data = bytes([0, 1, 0, 1]) + port.to_bytes(2) + name("a.example.net")
            return [reply.answer(other, SRV, 60, data).address("A.example.net", 60).bytes]

        self.assertEqual(self.called(self.client(self.nameserver(answer))), f"a.example.net:{port}")

    def test_no_answer_ends_the_client(self) -> None:
        _, port = self.daemon()
        generator = random.Random(11)

        def mutated(asked: Asked) -> list[bytes]:
            reply = asked.reply().srv(0, 1, 0, port, "a.example.net").address("a.example.net", 0)
            message = bytearray(reply.bytes)
            for _ in range(generator.randint(1, 6)):
                # Not the number, so that the message is looked at.
                message[generator.randrange(2, len(message))] = generator.choice([0xC0, generator.randrange(256)])
            return [bytes(message[: generator.choice([12, len(message)])])]

        nameserver = self.nameserver(mutated)
        client = self.client(nameserver)
        for _ in range(30):
            try:
                client.call("ping", timeout=0.1)
            except Unavailable:
                pass
        nameserver.answer = zone(LONG, ("a.example.net", 1, 0, port))
        self.called(client)

