"""A server with asyncio alone: server.py PORT json|orjson."""

import asyncio
import sys
from struct import Struct

from json_of import codec

loads, dumps = codec(sys.argv[2])
length = Struct("<I")


class Connection(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.received = b""

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
            body = dumps({"out": "pong", "result": request["params"]})
            out += (length.pack(len(body)), body)
            begin = until
        self.received = received[begin:]
        if out:
            self.transport.write(b"".join(out))


async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


asyncio.run(main())
