"""What an agent costs beside the least that does the same: `make bench BENCH=agent`.

Three parts. An apply, from the offer to its durable outcome, beside write, fsync, rename and fsync of the same bytes.
Reports a second that the local API answered 202, each after its fsync, beside bare group-committed appends of as many
bytes, and beside those behind one aiohttp handler. An agent at rest, of few and of many participants that all hold a
variant, beside a process that only imports the same libraries, and one with a bare grpc.aio stream that beats as
often; memory, processor time and the time until ready. Contenders take turns within each round, those at rest
rest at the same time; figures are medians of the rounds' pairs, each beside the limit it is held to. Nothing
is asserted.
"""

import argparse
import asyncio
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from aiohttp import web

from shared import logs
from shared.model import digest
from tests.bench.stage import cpu_seconds, median, ratio, resident_bytes
from tests.support.fleet import ENVIRONMENT, Fleet, Host, running_fleet
from tests.support.host import make_config, make_offer, make_participant
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from agent.reconciler import Reconciler

LIMITS = {"apply": 3.0, "reports": 0.5, "rss imports": 1.15, "rss stream": 1.6, "cpu": 2.0, "ready": 1.5}
"""Ratios: at most, of reports at least."""

BYTES = 4096
RECORD_BYTES = 90
"""What an impression with a subject takes in the spool."""

REPORTERS = 32
LEAST = "tests.support.least"
TOLD = b"ready\n"


# -- an apply


def bare_write(folder: Path, content: bytes) -> None:
    """The file is replaced, durably."""
    fd = os.open(folder / ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    (folder / ".new").rename(folder / "soul.md")
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


async def applies(folder: Path, rounds: int, calls: int) -> dict[str, Any]:
    """Microseconds of an apply and of a bare write, and what they are to each other."""
    from agent.reconciler import Reconciler
    from agent.spool import Spool
    from shared.clock import SystemClock
    from shared.ids import new_id

    (folder / "bare").mkdir()
    ended = asyncio.Event()
    spool = Spool(folder / "spool", clock=SystemClock(), new_id=new_id)
    (folder / "state").mkdir(mode=0o700)
    reconciler = Reconciler(
        config=make_config(folder, make_participant(folder / "root")),
        state_dir=folder / "state",
        clock=SystemClock(),
        new_id=new_id,
        record_view=spool.record,
        fetch=_nothing_to_fetch,
        on_outcome=lambda outcome: ended.set(),
        on_change=lambda: None,
    )
    await reconciler.start()
    running = asyncio.create_task(reconciler.run())
    revision, pairs, syncs = 0, [], _Counted()
    try:
        for number in range(rounds + 1):
            took = [0.0, 0.0]
            for _ in range(calls):
                revision += 1
                content = f"{revision}".ljust(BYTES, ".").encode()
                began = time.perf_counter()
                bare_write(folder / "bare", content)
                between = time.perf_counter()
                ended.clear()
                reconciler.offer(make_offer({"soul.md": content.decode()}, revision=revision))
                await ended.wait()
                took[0] += between - began
                took[1] += time.perf_counter() - between
                await _acknowledged(reconciler, folder / "state")
            if number:
                pairs.append((took[0] / calls * 1e6, took[1] / calls * 1e6))
        assert digest((folder / "root" / "soul.md").read_bytes()) == digest(content)
        with syncs:
            ended.clear()
            reconciler.offer(make_offer({"soul.md": "the last one"}, revision=revision + 1))
            await ended.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.to_thread(spool.close)
    return {
        **_compared("apply", "bare write", pairs, limit=LIMITS["apply"]),
        "bareMicros": median([bare for bare, _ in pairs]),
        "micros": median([ours for _, ours in pairs]),
        "bareSyncs": 2,
        "syncs": syncs.count,
    }


async def _acknowledged(reconciler: "Reconciler", state: Path) -> None:
    """Nothing is owed of any slot, durably: what that costs is no part of the next apply."""
    for outcome in reconciler.unacknowledged():
        reconciler.acknowledged(outcome.key)
    await eventually(
        lambda: all(
            slot.read_bytes().rstrip().endswith(b'"unacknowledged":[]}')
            for slot in state.glob("journal/slots/*.json")
        )
    )


async def _nothing_to_fetch(wanted: bytes, size: int) -> bytes:
    raise OSError("everything is inline")


class _Counted:
    """How often something was made durable within it."""

    def __enter__(self) -> None:
        self.count = 0
        self._own = os.fsync, os.fdatasync

        def counting(sync: Callable[[Any], None]) -> Callable[[Any], None]:
            def call(fd: Any) -> None:
                self.count += 1
                sync(fd)

            return call

        os.fsync, os.fdatasync = (counting(sync) for sync in self._own)

    def __exit__(self, *_: object) -> None:
        os.fsync, os.fdatasync = self._own


# -- reports


class Appends:
    """Appends to one file, each answered after an fsync that those which came meanwhile share."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._queue: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    async def append(self, record: bytes) -> None:
        done = self._loop.create_future()
        self._queue.put((record, done))
        await done

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        os.close(self._fd)

    def _work(self) -> None:
        while True:
            group = [self._queue.get()]
            with suppress(queue.Empty):
                while True:
                    group.append(self._queue.get_nowait())
            waiting = [item for item in group if item is not None]
            if waiting:
                os.write(self._fd, b"".join(record for record, _ in waiting))
                os.fdatasync(self._fd)
                self._loop.call_soon_threadsafe(_answer, [done for _, done in waiting])
            if len(waiting) < len(group):
                return


def _answer(waiting: list["asyncio.Future[None]"]) -> None:
    for done in waiting:
        if not done.done():
            done.set_result(None)


async def serve_appends(folder: Path) -> None:
    """One aiohttp handler on a socket that appends what a report would take, and answers 202."""
    appends = Appends(folder / "appended")

    async def take(request: web.Request) -> web.Response:
        await request.json()
        await appends.append(bytes(RECORD_BYTES))
        return web.json_response({"id": "0"}, status=202)

    app = web.Application()
    app.router.add_post("/v1/impressions", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "agent.sock")).start()
    _tell_ready()
    await asyncio.Event().wait()


async def rate(call: Callable[[int], Awaitable[None]], callers: int, seconds: float) -> float:
    """Calls a second, by so many callers at a time."""
    count, end = 0, time.perf_counter() + seconds

    async def calls(number: int) -> None:
        nonlocal count
        while time.perf_counter() < end:
            await call(number)
            count += 1

    began = time.perf_counter()
    await asyncio.gather(*(calls(number) for number in range(callers)))
    return count / (time.perf_counter() - began)


class Reporter:
    """Posts impressions over one connection to a socket, with as little work of its own as there can be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, participant: str) -> None:
        self._reader, self._writer, self._participant, self._number = reader, writer, participant, 0

    async def report(self) -> None:
        self._number += 1
        subject = f"{self._number:024d}"
        body = json.dumps({"participantId": self._participant, "subject": subject}).encode()
        head = (
            "POST /v1/impressions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        text = await self._reader.readexactly(int(length))
        if b" 202 " not in answer.partition(b"\r\n")[0]:
            raise RuntimeError(text.decode())

    def close(self) -> None:
        self._writer.close()


async def reports(folder: Path, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Rows: reports a second at 1 and at 32 callers, beside the appends alone and behind a bare handler."""
    host = await _unenrolled(folder, [f"bot-{number}" for number in range(REPORTERS)])
    (folder / "bare").mkdir()
    handler = await _child("--appends", str(folder / "bare"))
    appends = Appends(folder / "appended")
    try:
        found: dict[int, list[tuple[float, float, float]]] = {1: [], REPORTERS: []}
        for number in range(rounds + 1):
            for callers, rows in found.items():
                alone = await rate(lambda _: appends.append(bytes(RECORD_BYTES)), callers, seconds)
                behind = await _posted(folder / "bare" / "agent.sock", callers, seconds)
                ours = await _posted(Path(host.socket), callers, seconds)
                if number:
                    rows.append((alone, behind, ours))
    finally:
        appends.close()
        handler.terminate()
        await handler.wait()
        await host.process.stop()
    return [
        {
            **_compared(f"202s/s, {callers} callers", beside, pairs, limit=LIMITS["reports"]),
            "barePerSecond": round(median(bare for bare, _ in pairs)),
            "perSecond": round(median(ours for _, ours in pairs)),
        }
        for callers, rows in found.items()
        for beside, pairs in (
            ("appends", [(alone, ours) for alone, _, ours in rows]),
            ("appends behind aiohttp", [(behind, ours) for _, behind, ours in rows]),
        )
    ]


async def _posted(socket: Path, callers: int, seconds: float) -> float:
    reporters = [
        Reporter(*await asyncio.open_unix_connection(str(socket)), f"bot-{at}") for at in range(callers)
    ]
    try:
        return await rate(lambda at: reporters[at].report(), callers, seconds)
    finally:
        for reporter in reporters:
            reporter.close()


async def _unenrolled(folder: Path, participants: list[str]) -> Host:
    from tests.support.fleet import Process

    command = [sys.executable, "-m", "agent", "run", "--config", str(folder / "agent.toml")]
    process = Process(command=[*command, "--state-dir", str(folder / "state")], log=folder / "agent.log")
    host = Host(folder=folder, name="host-1", participants=participants, process=process)
    host.write_config()
    (folder / "state").mkdir(mode=0o700)
    await host.start()
    return host


# -- at rest


LIBRARIES = """
import json, sys
import agent.app, agent.config, shared.lifecycle, shared.logs
own = ("agent", "shared", "__main__")
names = [name for name in sys.modules if name.partition(".")[0] not in own]
print(json.dumps(names))
"""


def imported() -> list[str]:
    """The modules that the daemon has, without any of ours, in the order in which they were imported."""
    done = subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, check=True, text=True)
    names: list[str] = json.loads(done.stdout)
    return names


async def serve_streams(at: Path) -> None:
    """Streams that answer every message, where `at` says."""

    async def talk(messages: Any, context: Any) -> None:
        async for message in messages:
            await context.write(message)

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(
        "bench", {"Talk": grpc.stream_stream_rpc_method_handler(talk)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    at.write_text(f"127.0.0.1:{port}")
    _tell_ready()
    await asyncio.Event().wait()


@dataclass(frozen=True)
class Rest:
    """One contender in one round: MiB, processor milliseconds while it rested, milliseconds until it was ready."""

    rss: float
    cpu: float
    ready: float


async def at_rest(
    folder: Path, rounds: int, sizes: tuple[int, ...], settle: float, seconds: float
) -> list[dict[str, Any]]:
    """Rows of the agents of every size, beside both of the others."""
    server = await _child("--streams", str(folder / "streams"))
    found: list[dict[str, Rest]] = []
    names = json.dumps(imported())
    try:
        async with running_fleet(folder) as fleet:
            hosts = {f"{size} participants": await _holding(fleet, size) for size in sizes}
            address = (folder / "streams").read_text()
            for number in range(rounds + 1):
                contenders: dict[str, Callable[[], Awaitable[asyncio.subprocess.Process]]] = {
                    "imports": lambda: _child("imports", module=LEAST, stdin=names),
                    "stream": lambda: _child("stream", address, module=LEAST),
                    **{name: _started(host) for name, host in hosts.items()},
                }
                took = await _round(contenders, settle, seconds)
                if number:
                    found.append(took)
    finally:
        server.terminate()
        await server.wait()
    return [row for name in hosts for row in _rest_rows(name, found)]


def _rest_rows(name: str, found: list[dict[str, Rest]]) -> list[dict[str, Any]]:
    def pairs(part: str, beside: str) -> list[tuple[float, float]]:
        return [(getattr(one[beside], part), getattr(one[name], part)) for one in found]

    kinds = (
        ("rss", "imports", "rss imports", "MiB"),
        ("rss", "stream", "rss stream", "MiB"),
        ("cpu", "stream", "cpu", "ms"),
        ("ready", "imports", "ready", "ms"),
    )
    return [
        {
            **_compared(f"{part}, {name}", beside, pairs(part, beside), limit=LIMITS[limit]),
            "bare": median([bare for bare, _ in pairs(part, beside)]),
            "ours": median([ours for _, ours in pairs(part, beside)]),
            "unit": unit,
        }
        for part, beside, limit, unit in kinds
    ]


async def _holding(fleet: Fleet, size: int) -> Host:
    """An enrolled host, not running, whose participants all hold a variant of an experiment."""
    people = [f"p{size}-{number}" for number in range(size)]
    key = f"rest-{size}"
    host = await fleet.add_host(key, *people)
    await fleet.connected(people[-1])
    variants = [
        {"name": name, "content": f"{name}\n", "weight": 50, "isControl": name == "Friendly"}
        for name in ("Friendly", "Concise")
    ]
    draft = {"name": key, "key": key, "targetFile": "soul.md", "variants": variants, "participantIds": people}
    await fleet.plane.post("/v1/experiments", draft)
    await fleet.plane.post(f"/v1/experiments/{key}/start")
    ours = {b"Friendly\n", b"Concise\n"}
    await eventually(lambda: all(host.file(one).read_bytes() in ours for one in people), within=180)
    await host.process.stop()
    return host


def _started(host: Host) -> Callable[[], Awaitable[asyncio.subprocess.Process]]:
    async def start() -> asyncio.subprocess.Process:
        addresses = host.state / "addresses.json"
        addresses.unlink(missing_ok=True)
        with host.process.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *host.process.command, stdout=log, stderr=log, env=ENVIRONMENT
            )
        while not addresses.exists():  # noqa: ASYNC110  # nobody tells, and a coarser look would be measured too
            await asyncio.sleep(0.001)
        return process

    return start


async def _round(
    contenders: dict[str, Callable[[], Awaitable[asyncio.subprocess.Process]]],
    settle: float,
    seconds: float,
) -> dict[str, Rest]:
    """Each is started alone, then all rest for so long at the same time."""
    started, ready = {}, {}
    try:
        for name, start in contenders.items():
            began = time.perf_counter()
            started[name] = await start()
            ready[name] = (time.perf_counter() - began) * 1e3
        await asyncio.sleep(settle)  # what a start leaves to be done is done
        before = {name: cpu_seconds(process.pid) for name, process in started.items()}
        await asyncio.sleep(seconds)  # the rest that is measured
        return {
            name: Rest(
                rss=resident_bytes(process.pid) / 2**20,
                cpu=(cpu_seconds(process.pid) - before[name]) * 1e3,
                ready=ready[name],
            )
            for name, process in started.items()
        }
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            await process.wait()


# -- children, and what is told


async def _child(
    *words: str, module: str = "tests.bench.agent", stdin: str = ""
) -> asyncio.subprocess.Process:
    """A process of this module in one of its other roles, ready."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(stdin.encode())
    process.stdin.close()
    line = await process.stdout.readline()
    if line != TOLD:
        raise RuntimeError(f"{words[0]} did not start")
    return process


def _tell_ready() -> None:
    sys.stdout.buffer.write(TOLD)
    sys.stdout.buffer.flush()


def _compared(name: str, beside: str, pairs: list[tuple[float, float]], *, limit: float) -> dict[str, Any]:
    return {
        "what": name,
        "beside": beside,
        "ratio": ratio((ours, bare) for bare, ours in pairs),
        "limit": limit,
        "rounds": len(pairs),
    }


async def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for."""
    found: dict[str, Any] = {"rounds": given.rounds}
    for part in given.parts:
        below = folder / part
        below.mkdir()
        if part == "apply":
            found[part] = [await applies(below, given.rounds, given.calls)]
        elif part == "reports":
            found[part] = await reports(below, given.rounds, given.seconds)
        else:
            sizes = (1, given.participants)
            found[part] = await at_rest(below, given.rounds, sizes, given.settle, given.rest)
        shutil.rmtree(below, ignore_errors=True)
    return found


def main() -> None:
    """The table, then the same as JSON, which bench/results/agent.json has too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=100, help="applies in a round")
    parser.add_argument("--seconds", type=float, default=1.0, help="of reporting at a time")
    parser.add_argument("--participants", type=int, default=500, help="of the larger agent at rest")
    parser.add_argument("--rest", type=float, default=30.0, help="seconds at rest in a round")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds between start and rest")
    parser.add_argument("--parts", nargs="+", default=["apply", "reports", "rest"])
    parser.add_argument("--folder", type=Path, help="where to write; the temporary folder if not given")
    parser.add_argument("--results", type=Path, default=Path("bench/results/agent.json"))
    parser.add_argument("--appends", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--streams", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    logs.configure(level="error")
    if given.appends:
        asyncio.run(serve_appends(given.appends))
    elif given.streams:
        asyncio.run(serve_streams(given.streams))
    else:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            found = asyncio.run(measure(Path(folder), given))
        show(found)
        given.results.parent.mkdir(parents=True, exist_ok=True)
        given.results.write_text(json.dumps(found, indent=2) + "\n")
        print(json.dumps(found))


def show(found: dict[str, Any]) -> None:
    """The table."""
    print(f"{'':28}{'beside':24}{'ratio':>8}{'limit':>8}")
    for rows in found.values():
        for row in rows if isinstance(rows, list) else ():
            print(f"{row['what']:28}{row['beside']:24}{row['ratio']:>8}{row['limit']:>8}")


if __name__ == "__main__":
    main()
