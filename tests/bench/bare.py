"""The least that could do a control plane's job: bare grpc.aio over mutual TLS, on both ends.

One message to each stream and an acknowledgement on it; nothing is looked up or decided by the server. The hosts' end
opens its streams from few processes, each over a connection of its own, and where it is told to writes a file for each
message before it acknowledges: staged, fsynced, renamed, the directory fsynced. Where it is told to report, too, each
host says what it has in a second message, and the server stores both, a row each and how far the host is, in SQLite
with what else comes within 20 ms, before it answers: the messages and rows that a delivery of ours has at the least.
Its host then writes as often as one of ours, too: besides the file itself, what was there before is kept, what it is
about to do and has done are journalled, and what it reports is in a spool; each of them fsynced.
"""

import asyncio
import json
import os
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import grpc

from shared import tls
from shared.clock import SystemClock
from shared.ids import new_id
from tests.bench.stage import PATIENCE_SECONDS, Child, answer, child, cpu_seconds, resident_bytes
from tests.support.waiting import eventually

METHOD, ASK = (f"/bare.Service/{name}" for name in ("Sync", "Ask"))
SERVER_OPTIONS = [("grpc.so_reuseport", 0), ("grpc.server.max_pending_requests", 16_384)]
CLIENT_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
CONNECTING = 64  # at once in a process
STREAMS_OF_A_PROCESS = 1_000
GATHER_SECONDS = 0.02
RECORD_BYTES = 500
"""Of a journal or a spool."""
SCHEMA = """
    pragma journal_mode = wal; pragma synchronous = full;
    create table outcome (id blob primary key, host blob not null, at integer not null) without rowid;
    create table view (id blob primary key, host blob not null, at integer not null) without rowid;
    create table mark (host blob primary key, through integer not null) without rowid;
"""
OUTCOME = "insert into outcome (id, host, at) values (?, ?, ?)"
VIEW = "insert into view (id, host, at) values (?, ?, ?)"
MARK = "insert into mark (host, through) values (?, 1) on conflict (host) do update set through = through + 1"

Row = tuple[str, bytes, bytes, int]
"""Table, id, host, moment."""


async def _lines() -> AsyncIterator[dict[str, Any]]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


# -- the server's end


class _Rows:
    """Rows that are stored together with what else comes within a moment."""

    def __init__(self, file: Path) -> None:
        self._connection = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._connection.executescript(SCHEMA)
        self._waiting: list[tuple[Row, asyncio.Future[None]]] = []
        self._storing: asyncio.Task[None] | None = None

    async def store(self, row: Row) -> None:
        """It is durable."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, stored))
        if self._storing is None:
            self._storing = asyncio.create_task(self._store())
        await stored

    async def _store(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_SECONDS)
            taken, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._write, [row for row, _ in taken])
            except sqlite3.Error as error:
                raise SystemExit(f"the bare server could not store: {error}") from error
            for _, stored in taken:
                stored.set_result(None)
        self._storing = None

    def _write(self, rows: Sequence[Row]) -> None:
        self._connection.execute("begin immediate")
        self._connection.executemany(OUTCOME, [row for table, *row in rows if table == "outcome"])
        views = [row for table, *row in rows if table == "view"]
        self._connection.executemany(VIEW, views)
        self._connection.executemany(MARK, [(host,) for _, host, _ in views])
        self._connection.execute("commit")


class _Server:
    """Streams that wait for something to be sent to all of them."""

    def __init__(self, rows: _Rows) -> None:
        self.waiting: set[asyncio.Future[bytes]] = set()
        self._rows = rows
        self._reported = False
        self.acknowledged = 0
        self.done = asyncio.Event()
        self.wanted = 0

    async def asked(self, what: bytes, context: Any) -> bytes:
        """What somebody else asks meanwhile is answered at once."""
        return what

    def _count(self) -> None:
        self.acknowledged += 1
        if self.acknowledged >= self.wanted:
            self.done.set()

    async def sync(self, messages: AsyncIterator[bytes], context: Any) -> None:
        """One stream, until its host is gone."""
        host = await anext(messages)
        await context.write(b"welcome")
        while True:
            sending: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self.waiting.add(sending)
            listening = asyncio.ensure_future(anext(messages, None))
            try:
                await asyncio.wait((sending, listening), return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.waiting.discard(sending)
            if not sending.done():
                return
            await context.write(sending.result())
            if await listening is None:
                return
            if self._reported:
                await self._record(host, messages)
                await context.write(b"stored")
                self._count()
            self._count()

    async def _record(self, host: bytes, messages: AsyncIterator[bytes]) -> None:
        """What the host acknowledged is stored, and so is what it reports next."""
        storing = asyncio.ensure_future(self._rows.store(("outcome", new_id(), host, time.time_ns())))
        reported = await anext(messages, b"")
        await self._rows.store(("view", new_id(), reported, time.time_ns()))
        await storing

    async def fan_out(self, size: int, *, reported: bool) -> None:
        """Everybody was sent so many bytes, and has acknowledged them, and reported it where that is wanted."""
        streams = list(self.waiting)
        self._reported = reported
        self.wanted, self.acknowledged = len(streams) * (2 if reported else 1), 0
        self.done.clear()
        for stream in streams:
            stream.set_result(os.urandom(size))
        await self.done.wait()


async def serve(given: dict[str, Any]) -> None:
    """The server's process: told certificates, then what to do."""
    with TemporaryDirectory() as folder:
        await _serve(given, _Server(_Rows(Path(folder) / "bare.db")))


async def _serve(given: dict[str, Any], own: _Server) -> None:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    handlers = {
        "Sync": grpc.stream_stream_rpc_method_handler(own.sync),
        "Ask": grpc.unary_unary_rpc_method_handler(own.asked),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare.Service", handlers),))
    pair = (given["key"].encode(), given["certificate"].encode())
    credentials = grpc.ssl_server_credentials([pair], given["ca"].encode(), True)
    port = server.add_secure_port(given["address"], credentials)
    await server.start()
    answer(address=f"127.0.0.1:{port}")
    async for question in _lines():
        if "size" in question:
            await own.fan_out(question["size"], reported=question["reported"])
        answer(streams=len(own.waiting))


# -- the hosts' end


class _Hosts:
    """Streams that acknowledge, and open another when they lose theirs, after up to `jitter` seconds."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given
        self._credentials = _credentials(given)
        self._connecting = asyncio.Semaphore(CONNECTING)
        self._random = Random(os.getpid())
        self.durable = self.reported = False
        self.open = 0

    async def live(self, number: int) -> None:
        """One host, for ever."""
        folder = Path(self._given["folder"]) / f"{os.getpid()}-{number}"
        folder.mkdir(parents=True)
        async with grpc.aio.secure_channel(
            self._given["address"], self._credentials, options=CLIENT_OPTIONS
        ) as channel:
            method = channel.stream_stream(METHOD)
            while True:
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await self._once(method, folder)
                await asyncio.sleep(self._random.uniform(0, self._given["jitter"]))

    async def _once(self, method: Any, folder: Path) -> None:
        name = folder.name.encode()
        async with self._connecting:
            call = method()
            await call.write(name)
            if await call.read() is grpc.aio.EOF:
                return
        self.open += 1
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                # Before it is acknowledged: what is wanted next may be said while that is being written.
                durable, reported = self.durable, self.reported
                if durable:
                    await asyncio.to_thread(_write_all if reported else _write, folder, message)
                await call.write(b"done")
                if reported:
                    await call.write(name)
                    assert await call.read() == b"stored"
        finally:
            self.open -= 1


def _credentials(given: Mapping[str, str]) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(*(given[name].encode() for name in ("ca", "key", "certificate")))


def _write(folder: Path, content: bytes, name: str = "soul.md") -> None:
    staged = folder / ".staged"
    with staged.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    staged.rename(folder / name)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)


def _write_all(folder: Path, content: bytes) -> None:
    """What a delivery of ours waits for its host's disk for: seven times."""
    _write(folder, content, "kept")
    _add(folder / "journal")
    _write(folder, content)
    _add(folder / "journal")
    _add(folder / "spool")


def _add(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(RECORD_BYTES))
        file.flush()
        os.fsync(file.fileno())


async def attend(given: dict[str, Any]) -> None:
    """The hosts' process: told where to connect and how often, then what to do."""
    hosts = _Hosts(given)
    tasks = [asyncio.create_task(hosts.live(number)) for number in range(given["streams"])]
    answer(ready=True)
    async for question in _lines():
        hosts.durable = question.get("durable", hosts.durable)
        hosts.reported = question.get("reported", hosts.reported)
        answer(open=hosts.open)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# -- how it is used


def processes_of(streams: int) -> int:
    """How many processes of hosts have so many streams."""
    return -(-streams // STREAMS_OF_A_PROCESS)


class Bare:
    """A server and hosts, started by `bare_fleet`."""

    def __init__(self, certificates: dict[str, dict[str, str]], folder: Path, jitter: float) -> None:
        self._certificates, self._folder, self._jitter = certificates, folder, jitter
        self.server: Child
        self._hosts: list[Child] = []
        self._streams = 0
        self._address = "127.0.0.1:0"

    async def serve(self, stack: AsyncExitStack) -> None:
        """There is a server, at the address of the one before."""
        self.server = await stack.enter_async_context(child("tests.bench.bare", "server"))
        said = await self.server.ask(**self._certificates["server"], address=self._address)
        self._address = said["address"]

    async def connect(self, stack: AsyncExitStack, streams: int) -> None:
        """So many streams more are open."""
        for start in range(0, streams, STREAMS_OF_A_PROCESS):
            hosts = await stack.enter_async_context(child("tests.bench.bare", "hosts"))
            part = min(STREAMS_OF_A_PROCESS, streams - start)
            where = {"address": self._address, "folder": str(self._folder), "jitter": self._jitter}
            await hosts.ask(**self._certificates["hosts"], **where, streams=part)
            self._hosts.append(hosts)
        self._streams += streams
        await self.all_open(self._streams)

    async def all_open(self, streams: int) -> None:
        """So many streams are open, as the server sees it."""

        async def all_there() -> bool:
            return (await self.server.ask())["streams"] >= streams

        await eventually(all_there, within=PATIENCE_SECONDS, what=f"{streams} streams")

    async def fan_out(
        self, size: int, *, durable: bool = False, reported: bool = False
    ) -> tuple[float, float]:
        """(seconds, processor seconds of the server) until everybody has acknowledged, or reported."""
        for hosts in self._hosts:
            await hosts.ask(durable=durable, reported=reported)
        began, cpu = time.perf_counter(), cpu_seconds(self.server.pid)
        await self.server.ask(size=size, reported=reported)
        return time.perf_counter() - began, cpu_seconds(self.server.pid) - cpu

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Asks the server, over a connection of its own, and waits for the answer."""
        credentials = _credentials(self._certificates["hosts"])
        async with grpc.aio.secure_channel(self._address, credentials, options=CLIENT_OPTIONS) as channel:
            method = channel.unary_unary(ASK)

            async def ask() -> None:
                assert await method(b"how is it?", wait_for_ready=True)

            yield ask

    @property
    def resident(self) -> int:
        return resident_bytes(self.server.pid)


@asynccontextmanager
async def bare_fleet(folder: Path, *, jitter: float = 0.0) -> AsyncIterator[tuple[Bare, AsyncExitStack]]:
    """A bare server, up; what is started beside it goes on the stack."""
    folder.mkdir(parents=True)
    now = SystemClock().now()
    authority = tls.new_authority("bare", now=now)
    certificate, key = authority.issue_server(["127.0.0.1"], now=now)
    own = tls.new_key()
    request = tls.new_signing_request(own, "bare")
    host = authority.issue_agent(request, project_id=new_id(), agent_uid=new_id(), now=now)
    ca = authority.certificate.decode()
    certificates = {
        "server": {"key": key.decode(), "certificate": certificate.decode(), "ca": ca},
        "hosts": {"key": tls.key_to_pem(own).decode(), "certificate": host.decode(), "ca": ca},
    }
    async with AsyncExitStack() as stack:
        bare = Bare(certificates, folder, jitter)
        await bare.serve(stack)
        yield bare, stack


def main() -> None:
    """A process of either end."""
    given = json.loads(sys.stdin.readline())
    asyncio.run((serve if sys.argv[1] == "server" else attend)(given))


if __name__ == "__main__":
    main()
