"""Clients that count: each numbers its requests and compares every reply with its request.

The long clients send a request every 50 ms through one connection each; the short ones connect for every request. A
request belongs to the phase in which it began. Long clients may ask for a goaway; one that gets it connects again, and
sends its request once more.
"""

import asyncio
import dataclasses
import json
import struct
import time

LONG = 40
SHORT = 8
PACE = 0.05
SHORT_PACE = 0.02
# A request hangs if it is not answered after this time, in seconds. In a drained host's queue it would wait until
# `undrain`.
HANGS = 30.0


@dataclasses.dataclass
class Figures:
    """The outcome of the requests of a phase. Times are in milliseconds."""

    sent: int = 0
    answered: int = 0
    # Replies that are not those of their requests.
    wrong: int = 0
    # Replies that are errors.
    errors: int = 0
    # Requests that got a goaway, by which they were not executed.
    moved: int = 0
    # Connections that could not be made.
    refused: int = 0
    # Connections that ended before the reply.
    lost_of_long: int = 0
    lost_of_short: int = 0
    # Connections of long clients that ended, with a request under way or not.
    closed: int = 0
    late: int = 0
    longest: float = 0.0
    # The longest time of a short client until its reply.
    longest_of_short: float = 0.0

    @property
    def lost(self):
        return self.lost_of_long + self.lost_of_short


class Hung(Exception):
    """Requests have no reply."""


async def pause(seconds):
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    timer = loop.call_later(seconds, over.set_result, None)
    try:
        await over
    finally:
        timer.cancel()


async def occupy(host):
    """Has a worker of a host compute, until it is cancelled."""
    reader, writer = await asyncio.open_connection(host, 8080)
    body = json.dumps({"in": "pi", "params": 1_000_000}).encode()
    try:
        while True:
            writer.write(struct.pack("<I", len(body)) + body)
            (length,) = struct.unpack("<I", await reader.readexactly(4))
            await reader.readexactly(length)
    finally:
        writer.close()


class LongClient:
    """A client that stays connected."""

    def __init__(self):
        self.answered = 0
        # The same through its connection.
        self.answered_there = 0
        # The local port of its connection, and those of the connections that have ended.
        self.port = None
        self.ended = []

    def lose(self, streams, figures):
        """Counts the end of its connection, if there is one."""
        if streams is not None:
            figures.closed += 1
            self.ended.append(self.port)
        return close(streams)


class Load:
    """All clients, connected to one address."""

    def __init__(self, address, port):
        self.target = (address, port)
        # The current phase is the last one. First the clients connect.
        self.phases = [Figures()]
        self.hung = 0
        self.long = [LongClient() for _ in range(LONG)]
        self.short = [0] * SHORT
        # When each request that is under way has begun, by its client and number.
        self.open = {}
        self.is_over = False
        # Whether the long clients ask for a goaway.
        self.asks_for_goaway = False
        # Set: the idle long clients continue. None while they send.
        self.resumed = None
        self.idle = 0
        self.tasks = []

    async def start(self):
        """Connects the clients, and lets them be for a second, which is a phase."""
        for client in range(LONG):
            self.tasks.append(asyncio.create_task(self._stay(client)))
        for client in range(SHORT):
            self.tasks.append(asyncio.create_task(self._come_and_go(client)))
        await self.rounds(5)
        undisturbed = self.begin_phase()
        await self.rounds(20)
        self.begin_phase()
        return undisturbed

    def begin_phase(self):
        self.phases.append(Figures())
        return self.phases[-1]

    async def rounds(self, count):
        """Waits until each client has this many more replies."""
        long = [client.answered + count for client in self.long]
        short = [answered + count for answered in self.short]

        def are_answered():
            return all(client.answered >= due for client, due in zip(self.long, long)) and all(
                answered >= due for answered, due in zip(self.short, short)
            )

        await self._until(are_answered)

    async def be_idle(self):
        """Has the long clients send nothing until `resume`."""
        self.resumed = asyncio.Event()
        await self._until(lambda: self.idle == LONG)

    def resume(self):
        if self.resumed is not None:
            self.resumed.set()
            self.resumed = None
            self.idle = 0

    async def settle(self):
        """Waits until each request that has begun is over."""
        begun = set(self.open)
        await self._until(lambda: not begun & self.open.keys())

    async def stop(self):
        """Ends all clients after their replies."""
        self.is_over = True
        done = asyncio.gather(*self.tasks)
        try:
            await asyncio.wait_for(done, HANGS)
        except asyncio.TimeoutError:
            self.hung = len(self.open)
            raise Hung(f"{self.hung} requests hang") from None

    async def kill(self):
        """Ends all clients at once."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _until(self, is_so):
        while not is_so():
            for task in self.tasks:
                if task.done():
                    task.result()
            now = time.monotonic()
            self.hung = sum(now - since > HANGS for since in self.open.values())
            if self.hung:
                raise Hung(f"{self.hung} requests hang, {len(self.open)} are under way")
            await pause(0.01)

    async def _connect(self, figures):
        try:
            streams = await asyncio.open_connection(*self.target)
        except OSError:
            figures.refused += 1
            raise
        return streams

    async def _call(self, streams, client, number, figures, more={}):
        """Sends a request and reads its reply.

        Returns the number of requests that a goaway reports; `None` if the reply is another. Raises OSError or
        IncompleteReadError if the connection ends.
        """
        reader, writer = streams
        params = [client, number]
        body = json.dumps({"in": "ping", "params": params} | more).encode()
        figures.sent += 1
        writer.write(struct.pack("<I", len(body)) + body)
        await writer.drain()
        (length,) = struct.unpack("<I", await reader.readexactly(4))
        reply = json.loads(await reader.readexactly(length))
        if reply == {"out": "pong", "result": params}:
            figures.answered += 1
        elif reply.get("out") == "goaway":
            figures.moved += 1
            return reply["result"]["read"]
        elif reply.get("out") == "error":
            figures.errors += 1
        else:
            figures.wrong += 1

    def _end(self, client, number, figures):
        took = (time.monotonic() - self.open.pop((client, number))) * 1000
        figures.longest = max(figures.longest, took)
        figures.late += took > 100
        return took

    async def _stay(self, index):
        client = self.long[index]
        number = 0
        streams = None
        while not self.is_over:
            number += 1
            streams = await self._request(client, f"long {index}", number, streams)
            if streams is not None and self.resumed is None:
                await pause(PACE)
            elif streams is not None:
                streams = await self._be_idle(client, streams)
        await self._leave(streams)

    async def _request(self, client, name, number, streams):
        """Sends a request of a long client, and connects it first if necessary. Returns the connection if it stays."""
        figures = self.phases[-1]
        self.open[name, number] = time.monotonic()
        is_sent = False
        try:
            read = 0
            while read is not None:
                if streams is None:
                    streams = await self._connect(figures)
                    client.port = streams[1].get_extra_info("sockname")[1]
                    client.answered_there = 0
                is_sent = True
                read = await self._call(streams, name, number, figures, self._more())
                if read is not None:
                    figures.wrong += read != client.answered_there
                    is_sent, streams = False, close(streams)
            client.answered += 1
            client.answered_there += 1
        except (OSError, asyncio.IncompleteReadError):
            figures.lost_of_long += is_sent
            streams = client.lose(streams, figures)
        self._end(name, number, figures)
        return streams

    def _more(self):
        return {"goaway": True} if self.asks_for_goaway else {}

    async def _be_idle(self, client, streams):
        """Waits for `resume`, or for the end of the connection."""
        resumed = asyncio.create_task(self.resumed.wait())
        byte = asyncio.create_task(streams[0].read(1))
        self.idle += 1
        await asyncio.wait([resumed, byte], return_when=asyncio.FIRST_COMPLETED)
        resumed.cancel()
        if byte.done():
            figures = self.phases[-1]
            figures.wrong += byte.exception() is None and byte.result() != b""
            return client.lose(streams, figures)
        byte.cancel()
        await asyncio.wait([byte])
        return streams

    async def _leave(self, streams):
        """Shows that nothing follows the last reply but the end of the connection."""
        if streams is None:
            return
        reader, writer = streams
        writer.write_eof()
        try:
            rest = await reader.read()
            self.phases[-1].wrong += rest != b""
        except OSError:
            self.phases[-1].closed += 1
        close(streams)

    async def _come_and_go(self, index):
        number = 0
        while not self.is_over:
            number += 1
            figures = self.phases[-1]
            name = f"short {index}"
            self.open[name, number] = time.monotonic()
            streams = None
            is_answered = False
            try:
                streams = await self._connect(figures)
                await self._call(streams, name, number, figures)
                self.short[index] += 1
                is_answered = True
            except (OSError, asyncio.IncompleteReadError):
                figures.lost_of_short += streams is not None
            close(streams)
            took = self._end(name, number, figures)
            if is_answered:
                figures.longest_of_short = max(figures.longest_of_short, took)
            await pause(SHORT_PACE)


def close(streams):
    if streams is not None:
        streams[1].close()
    return None
