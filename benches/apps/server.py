"""A server with asyncio alone: server.py PORT def|async json|orjson.

With `async`, a request is a task that runs a coroutine. From Python 3.12 on its first step runs at once.
"""

import asyncio
import sys
from struct import Struct

from json_of import codec

kind, (loads, dumps) = sys.argv[2], codec(sys.argv[3])
length = Struct("<I")
eager = {"eager_start": True} if sys.version_info >= (3, 12) else {}


async def echo(value):
    return value


class Connection(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.received = b""
        self.loop = asyncio.get_running_loop()

    def data_received(self, data):
        received = self.received + data if self.received else data
        begin, end, out = 0, len(received), []
        while end - begin >= 4:
            until = begin + 4 + length.unpack_from(received, begin)[0]
            if until > end:
                break
            request = loads(received[begin + 4 : until])
            if request["in"] != "echo":
                self.transport.close()
                return
            begin = until
            if kind == "async":
                # The loop refers to a task that waits for nothing.
                asyncio.Task(self.answer(request["params"]), loop=self.loop, **eager)
            else:
                out += reply(request["params"])
        self.received = received[begin:]
        if out:
            self.transport.write(b"".join(out))

    async def answer(self, params):
        self.transport.write(b"".join(reply(await echo(params))))


def reply(result):
    body = dumps({"out": "pong", "result": result})
    return length.pack(len(body)), body


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


asyncio.run(main())
