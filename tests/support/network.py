"""A network that does what it is told: a TCP proxy in front of one address, in the test's event loop.

What it can do to connections, those there are and those to come:
hold (forward nothing, one way or both: a black hole), let go, delay and limit the rate, half-open (drop the server's
side and keep the client's), reset, refuse, cut after so many bytes, reset after the first bytes of an answer,
change a byte. What is held is forwarded once it is let go, as TCP would retransmit it.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

UP, DOWN = "up", "down"  # from the client to the server, and back
PIECE = 4096


@dataclass(eq=False)
class _Connection:
    """One connection of a client, and ours to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    passed: dict[str, int] = field(default_factory=lambda: {UP: 0, DOWN: 0})
    cut_at: dict[str, int] = field(default_factory=dict)
    corrupt_at: int | None = None
    swallows: bool = False


class Network:
    """The way to `target` (HOST:PORT, or the path of a socket); clients connect to `address`. Use `proxied`."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.address = ""
        self.attempts = 0  # connections that clients opened
        self.forwarded = {UP: 0, DOWN: 0}  # bytes
        self.delay = 0.0  # seconds for each piece, each way
        self.rate: float | None = None  # bytes a second, each way
        self.refusing = False  # every new connection is reset at once
        self.reset_after: int | None = None  # every connection, after so many bytes of the server
        self._cuts: list[tuple[str, int]] = []
        self._corruptions: list[int] = []
        self._open = {UP: asyncio.Event(), DOWN: asyncio.Event()}
        self._connections: set[_Connection] = set()
        self.let_go()

    # -- what a test tells it

    def hold(self, *ways: str) -> None:
        """Nothing is forwarded those ways (both, if none is named); new connections are taken and stay silent."""
        for way in ways or (UP, DOWN):
            self._open[way].clear()

    def let_go(self) -> None:
        """Everything is forwarded again, what was held first."""
        for event in self._open.values():
            event.set()

    def heal(self) -> None:
        """All faults are over; connections that are half open are reset, as a peer that restarted would do."""
        self.delay, self.rate, self.refusing, self.reset_after = 0.0, None, False, None
        self._cuts, self._corruptions = [], []
        for connection in [one for one in self._connections if one.swallows]:
            self._reset(connection)
        self.let_go()

    def half_open(self) -> None:
        """The server's ends of all present connections are gone; the clients' ends live on and hear nothing."""
        for connection in self._connections:
            connection.swallows = True
            _abort(connection.server)

    def reset(self) -> None:
        """All present connections were reset at both ends."""
        for connection in list(self._connections):
            self._reset(connection)

    def cut(self, way: str, after: int) -> None:
        """The next connection is reset once so many bytes went that way; the next `cut` is for the one after it."""
        self._cuts.append((way, after))

    def cut_present(self, way: str, after: int) -> None:
        """All present connections are reset once so many further bytes went that way."""
        for connection in self._connections:
            connection.cut_at[way] = connection.passed[way] + after

    def corrupt(self, at: int) -> None:
        """In the next connection, one bit of that byte of the server's is changed."""
        self._corruptions.append(at)

    def corrupt_present(self, after: int) -> None:
        """In all present connections one bit is changed after so many further bytes of the server's."""
        for connection in self._connections:
            connection.corrupt_at = connection.passed[DOWN] + after

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    # -- how

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.attempts += 1
        if self.refusing:
            _abort(writer)
            return
        await self._open[UP].wait()
        try:
            from_server, to_server = await _connected(self.target)
        except OSError:
            _abort(writer)
            return
        for one in (writer, to_server):
            one.transport.set_write_buffer_limits(0)  # what counts as passed has left this process
        connection = _Connection(writer, to_server)
        if self._cuts:
            way, after = self._cuts.pop(0)
            connection.cut_at[way] = after
        if self._corruptions:
            connection.corrupt_at = self._corruptions.pop(0)
        self._connections.add(connection)
        connection.tasks = [
            asyncio.create_task(self._pump(connection, reader, to_server, UP)),
            asyncio.create_task(self._pump(connection, from_server, writer, DOWN)),
        ]
        try:
            await asyncio.gather(*connection.tasks, return_exceptions=True)
        finally:
            self._connections.discard(connection)
            _abort(writer)
            _abort(to_server)

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(PIECE):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if self.rate:
                    await asyncio.sleep(len(data) / self.rate)
                await self._open[way].wait()
                if connection.swallows:
                    continue
                data, ends = self._hurt(connection, data, way)
                connection.passed[way] += len(data)
                self.forwarded[way] += len(data)
                writer.write(data)
                await writer.drain()
                if ends:
                    self._reset(connection)
                    return
        if connection.swallows:
            if way == DOWN:
                await asyncio.Event().wait()  # the client's end stays until it gives up
            self._reset(connection)
            return
        with suppress(OSError, RuntimeError):
            writer.write_eof()

    def _hurt(self, connection: _Connection, data: bytes, way: str) -> tuple[bytes, bool]:
        """(what is left of `data`, whether the connection ends behind it)."""
        passed, ends = connection.passed[way], False
        at = connection.corrupt_at
        if way == DOWN and at is not None and passed <= at < passed + len(data):
            hurt = bytearray(data)
            hurt[at - passed] ^= 0x10
            data, connection.corrupt_at = bytes(hurt), None
        limit = connection.cut_at.get(way)
        if way == DOWN and self.reset_after is not None:
            limit = min(limit, self.reset_after) if limit is not None else self.reset_after
        if limit is not None and passed + len(data) >= limit:
            data, ends = data[: max(0, limit - passed)], True
        return data, ends

    def _reset(self, connection: _Connection) -> None:
        _abort(connection.client)
        _abort(connection.server)
        for task in connection.tasks:
            if task is not asyncio.current_task():
                task.cancel()


async def _connected(target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if target.startswith("/"):
        return await asyncio.open_unix_connection(target)
    host, _, port = target.rpartition(":")
    return await asyncio.open_connection(host, int(port))


def _abort(writer: asyncio.StreamWriter) -> None:
    """Closed by RST: the other end notices at its next use."""
    with suppress(OSError, AttributeError):
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    writer.transport.abort()


@asynccontextmanager
async def proxied(target: str) -> AsyncIterator[Network]:
    """A network in front of `target`, whole until it is told otherwise."""
    network = Network(target)
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await network._serve(reader, writer)
        except asyncio.CancelledError:
            _abort(writer)  # the end of the test: nobody waits for this task
        finally:
            serving.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    network.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield network
    finally:
        server.close()
        network.reset()
        for task in list(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
