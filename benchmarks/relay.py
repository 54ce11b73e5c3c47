"""20 ms of network: a TCP port in front of PostgreSQL that holds everything for 10 ms each way.

Run by `distance`: `python -m benchmarks.relay PORT` prints the port that it listens on.
"""

import asyncio
import sys
from typing import cast

import uvloop

ONE_WAY = 0.010  # seconds


class End(asyncio.Protocol):
    """One end of a connection, which hands what it gets to the other end, later."""

    def __init__(self) -> None:
        self.link: asyncio.Transport | None = None
        self.other: End | None = None
        self.held: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.link = cast(asyncio.Transport, transport)
        for data in self.held:
            self.link.write(data)

    def data_received(self, data: bytes) -> None:
        if self.other:  # timers of the same length fire in the order in which they were set
            asyncio.get_running_loop().call_later(ONE_WAY, self.other.send, data)

    def connection_lost(self, _error: Exception | None) -> None:
        if self.other:
            asyncio.get_running_loop().call_later(ONE_WAY, self.other.close)

    def send(self, data: bytes) -> None:
        if self.link:
            self.link.write(data)
        else:
            self.held.append(data)

    def close(self) -> None:
        if self.link:
            self.link.close()


class Near(End):
    """The end that a program connects to, which connects to PostgreSQL."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        far = self.other = End()
        far.other = self
        self._connecting = asyncio.ensure_future(
            asyncio.get_running_loop().create_connection(lambda: far, "127.0.0.1", self._port)
        )


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Near(port), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
