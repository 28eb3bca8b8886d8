"""The whole fleet comes back after the server was killed: `make bench BENCH=reconnect`.

A control plane is killed (SIGKILL) with all its agents connected and started again on the same ports; until every
agent has a session again, and what an operator waits for meanwhile for a page of experiments, beside the same while
nothing happens, in the minute before. Beside it, in turn within each round: a bare grpc.aio server that is killed and
started likewise, with as many streams over mutual TLS, and somebody who waits for answers that take nothing to give.
Either server has as many processes of hosts, each with a share of the cores as large as its own; all hosts wait at
random up to the same time before they try again (--jitter, or what our server asks of so large a fleet), which is
taken off both; the time is counted from the kill, processor time from the moment the server listens again, less what
the questions cost before there was a fleet. Agents whose sessions were short wait longer, so theirs have lasted for a
minute (--lasted) before each kill, in which both servers are asked in turn. Nothing is asserted.
"""

import argparse
import asyncio
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_plane.api.spacing import Spacing
from tests.bench.bare import Bare, bare_fleet, processes_of
from tests.bench.simulated import fleet, on_record, token
from tests.bench.stage import Served, cpu_seconds, kept_to, median, pass_on, processors, ratio, served, tell
from tests.support.plane import Plane

SIZES = os.environ.get("VARIANTD_BENCH_AGENTS", "2000,5000")
BACK = "select count(*) from agent where connected_at >= ?"
COUNTED_QUESTIONS = 200
PAUSE_SECONDS = 0.02


class Asker:
    """Somebody who asks again and again, the next time a moment after the answer."""

    def __init__(self, question: Callable[[], Awaitable[None]]) -> None:
        self._question = question
        self.waits: list[float] = []

    async def ask(self) -> None:
        """One question; how long it took is noted."""
        began = time.perf_counter()
        await self._question()
        self.waits.append(time.perf_counter() - began)
        await asyncio.sleep(PAUSE_SECONDS)

    async def ask_often(self) -> None:
        """As often as tells what a question costs."""
        for _ in range(COUNTED_QUESTIONS):
            await self.ask()

    @asynccontextmanager
    async def meanwhile(self) -> AsyncIterator[None]:
        """Questions are asked within."""

        async def run() -> None:
            while True:
                await self.ask()

        asking = asyncio.create_task(run())
        try:
            yield
        finally:
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking

    @property
    def p99(self) -> float:
        """Seconds, of the slowest percent."""
        waits = self.waits
        return statistics.quantiles(waits, n=100)[98] if len(waits) > 1 else max(waits, default=0.0)


def operators(operator: Plane) -> Asker:
    """An operator who looks at the first page of experiments."""

    async def question() -> None:
        answer = await operator.rest("GET", "/v1/experiments?limit=5")
        assert answer.status == 200

    return Asker(question)


@dataclass(frozen=True, slots=True, kw_only=True)
class Back:
    """One return of a fleet: seconds since the kill until the server listened, and until all were back.

    `cpu`: processor seconds of the server, without the operator's questions; `p99`: the slowest percent of those.
    """

    listening: float
    seconds: float
    cpu: float
    p99: float


async def question_cpu(server: Served) -> float:
    """Processor seconds of the server for one question of the operator's, while nobody else is there."""
    async with server.operator() as operator:
        asker = operators(operator)
        await asker.ask()
        started = server.cpu
        await asker.ask_often()
        return (server.cpu - started) / COUNTED_QUESTIONS


async def bare_question_cpu(bare: Bare) -> float:
    """The same of the bare server."""
    async with bare.asking() as ask:
        asker = Asker(ask)
        await asker.ask()
        started = cpu_seconds(bare.server.pid)
        await asker.ask_often()
        return (cpu_seconds(bare.server.pid) - started) / COUNTED_QUESTIONS


async def idle_waits(server: Served, bare: Bare, *, seconds: float) -> tuple[Asker, Asker]:
    """An operator's waits and those for the bare server's answer, in turn, while so long nothing happens."""
    async with server.operator() as operator, bare.asking() as ask:
        askers = operators(operator), Asker(ask)
        until = time.perf_counter() + seconds
        while True:
            for asker in askers:
                await asker.ask()
            if time.perf_counter() >= until:
                return askers


async def ours_back(server: Served, agents: int, *, each: float) -> Back:
    """The server was killed, and every agent is back; a question takes `each` processor seconds."""
    moment, began = time.time_ns() // 1_000, time.perf_counter()
    await server.end(signal.SIGKILL)
    await server.start()
    started, listening = server.cpu, time.perf_counter() - began
    async with server.operator() as operator:
        asker = operators(operator)
        async with asker.meanwhile():
            await on_record(server, agents, BACK, moment)
            took, cpu = time.perf_counter() - began, server.cpu - started
    return Back(listening=listening, seconds=took, cpu=cpu - each * len(asker.waits), p99=asker.p99)


async def bare_back(bare: Bare, stack: Any, streams: int, *, each: float) -> Back:
    """The same of the bare server."""
    began = time.perf_counter()
    await bare.server.kill()
    await bare.serve(stack)
    started, listening = cpu_seconds(bare.server.pid), time.perf_counter() - began
    async with bare.asking() as ask:
        asker = Asker(ask)
        async with asker.meanwhile():
            await bare.all_open(streams)
            took, cpu = time.perf_counter() - began, cpu_seconds(bare.server.pid) - started
    return Back(listening=listening, seconds=took, cpu=cpu - each * len(asker.waits), p99=asker.p99)


async def measure(
    folder: Path, agents: int, rounds: int, shortest: float, lasted: float, *, places: set[int] | None = None
) -> dict[str, Any]:
    """The row of a fleet, whose hosts come back over `shortest` seconds, or longer where there are so many.

    Hosts have the processors `places`, or share them with the servers.
    """
    found: list[tuple[Back, Back]] = []
    idles: list[tuple[float, float]] = []
    jitter = max(shortest, Spacing.of(agents).reconnect_window)
    async with (
        served(folder / "ours") as server,
        bare_fleet(folder / "bare", jitter=jitter) as (bare, stack),
        AsyncExitStack() as hosts,
    ):
        async with server.operator() as operator:
            ticket = await token(operator, agents)
        each = await question_cpu(server)
        bare_each = await bare_question_cpu(bare)
        processes = processes_of(agents)
        with kept_to(places) if places else nullcontext():
            await hosts.enter_async_context(
                fleet(server, folder / "hosts", ticket, agents, jitter=jitter, processes=processes)
            )
            await bare.connect(stack, agents)
        pass_on(f"{agents} agents", connected=agents)
        for number in range(1, rounds + 1):
            idle, bare_idle = await idle_waits(server, bare, seconds=lasted)
            least = await bare_back(bare, stack, agents, each=bare_each)
            ours = await ours_back(server, agents, each=each)
            pass_on(
                f"{agents} agents, round {number} of {rounds}",
                seconds=ours.seconds,
                bareSeconds=least.seconds,
                cpuMicros=ours.cpu / agents * 1e6,
                p99Ms=ours.p99 * 1e3,
                idleP99Ms=idle.p99 * 1e3,
                bareP99Ms=least.p99 * 1e3,
            )
            found.append((least, ours))
            idles.append((bare_idle.p99, idle.p99))
    beyond = [(max(0.0, ours.seconds - jitter), max(0.0, least.seconds - jitter)) for least, ours in found]
    return {
        "agents": agents,
        "rounds": rounds,
        "apart": places is not None,
        "jitter": jitter,
        "listening": median(ours.listening for _, ours in found),
        "bareListening": median(least.listening for least, _ in found),
        "seconds": median(ours.seconds for _, ours in found),
        "bareSeconds": median(least.seconds for least, _ in found),
        "ofBare": ratio((ours.seconds, least.seconds) for least, ours in found),
        "beyondJitter": ratio(beyond) if all(least for _, least in beyond) else None,
        "cpuMicros": median((ours.cpu / agents * 1e6 for _, ours in found), 0),
        "bareCpuMicros": median((least.cpu / agents * 1e6 for least, _ in found), 0),
        "operatorP99Ms": median(ours.p99 * 1e3 for _, ours in found),
        "idleP99Ms": median(idle * 1e3 for _, idle in idles),
        "p99OfIdle": median(ours.p99 / idle for (_, ours), (_, idle) in zip(found, idles, strict=True)),
        "bareP99Ms": median(least.p99 * 1e3 for least, _ in found),
        "bareIdleP99Ms": median(idle * 1e3 for idle, _ in idles),
        "bareP99OfIdle": median(least.p99 / idle for (least, _), (idle, _) in zip(found, idles, strict=True)),
    }


def main() -> None:
    """The table, then the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--agents", default=SIZES, help="sizes with commas between them")
    parser.add_argument("--jitter", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--lasted", type=float, default=61.0, metavar="SECONDS")
    parser.add_argument("--apart", action="store_true", help="hosts on other processors than the servers")
    given = parser.parse_args()
    try:
        mine, places = processors() if given.apart else (None, None)
    except ValueError as error:
        parser.error(str(error))
    rows = []
    for agents in map(int, given.agents.split(",")):
        folder = Path(tempfile.mkdtemp())
        asked = given.rounds, given.jitter, given.lasted
        try:
            with kept_to(mine) if mine else nullcontext():
                rows.append(asyncio.run(measure(folder, agents, *asked, places=places)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    columns = {
        "agents": "agents",
        "jitter": "over, s",
        "listening": "s until it listens",
        "bareListening": "bare listens, s",
        "seconds": "s until all are back",
        "bareSeconds": "bare, s",
        "ofBare": "× bare",
        "beyondJitter": "beyond jitter, × bare",
        "cpuMicros": "CPU µs each",
        "bareCpuMicros": "bare CPU µs",
        "operatorP99Ms": "operator p99, ms",
        "idleP99Ms": "idle p99, ms",
        "p99OfIdle": "× idle",
        "bareP99Ms": "bare p99, ms",
        "bareIdleP99Ms": "bare idle p99, ms",
        "bareP99OfIdle": "× bare idle",
    }
    tell("reconnect", columns, rows, rounds=given.rounds)


if __name__ == "__main__":
    main()
