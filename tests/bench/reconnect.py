"""The whole fleet comes back after the server was killed: `make bench BENCH=reconnect`.

A control plane is killed (SIGKILL) with all its agents connected and started again on the same ports; until every agent
has a session again, and what an operator waits for meanwhile for a page of experiments, beside the same while nothing
happens. Beside it, in turn within each round: a bare grpc.aio server that is killed and started likewise, with as many
streams over mutual TLS. Both kinds of hosts wait at random up to the same time before they try again (--jitter), which
is taken off both; the time is counted from the kill, processor time from the moment the server listens again, less what
the operator's questions cost before there was a fleet. Agents whose sessions were short wait longer, so theirs have
lasted for a minute (--lasted) before each kill. Nothing is asserted.
"""

import argparse
import asyncio
import os
import shutil
import signal
import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.bare import Bare, bare_fleet
from tests.bench.simulated import fleet, on_record, token
from tests.bench.stage import Served, cpu_seconds, median, pass_on, ratio, served, tell
from tests.support.plane import Plane

SIZES = os.environ.get("VARIANTD_BENCH_AGENTS", "2000,5000")
BACK = "select count(*) from agent where connected_at >= ?"
IDLE_QUESTIONS = 200
PAUSE_SECONDS = 0.02


class Asker:
    """An operator who asks again and again."""

    def __init__(self, operator: Plane) -> None:
        self._operator = operator
        self.waits: list[float] = []

    async def ask(self) -> None:
        """One question; how long it took is noted."""
        began = time.perf_counter()
        answer = await self._operator.rest("GET", "/v1/experiments?limit=5")
        assert answer.status == 200
        self.waits.append(time.perf_counter() - began)
        await asyncio.sleep(PAUSE_SECONDS)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.ask()


def _p99(waits: list[float]) -> float:
    return statistics.quantiles(waits, n=100)[98] if len(waits) > 1 else max(waits, default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Back:
    """One return of our fleet: seconds since the kill until the server listened, and until all were back.

    `cpu`: processor seconds of the server, without the operator's questions; `p99`: the slowest percent of those.
    """

    listening: float
    seconds: float
    cpu: float
    p99: float


async def question_cpu(server: Served) -> float:
    """Processor seconds of the server for one question of the operator's, while nobody else is there."""
    async with server.operator() as operator:
        asker = Asker(operator)
        await asker.ask()
        started = server.cpu
        for _ in range(IDLE_QUESTIONS):
            await asker.ask()
        return (server.cpu - started) / IDLE_QUESTIONS


async def ours_back(server: Served, agents: int, *, each: float) -> Back:
    """The server was killed, and every agent is back; a question takes `each` processor seconds."""
    moment, began = time.time_ns() // 1_000, time.perf_counter()
    await server.end(signal.SIGKILL)
    await server.start()
    started, listening = server.cpu, time.perf_counter() - began
    async with server.operator() as operator:
        asker = Asker(operator)
        asking = asyncio.create_task(asker.run())
        await on_record(server, agents, BACK, moment)
        took, cpu = time.perf_counter() - began, server.cpu - started
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
    return Back(listening=listening, seconds=took, cpu=cpu - each * len(asker.waits), p99=_p99(asker.waits))


async def bare_back(bare: Bare, stack: Any, streams: int) -> tuple[float, float]:
    """(seconds until all are back, processor seconds of the server)."""
    began = time.perf_counter()
    await bare.server.kill()
    await bare.serve(stack)
    started = cpu_seconds(bare.server.pid)
    await bare.all_open(streams)
    return time.perf_counter() - began, cpu_seconds(bare.server.pid) - started


async def measure(folder: Path, agents: int, rounds: int, jitter: float, lasted: float) -> dict[str, Any]:
    """The row of a fleet."""
    found = []
    async with (
        served(folder / "ours") as server,
        bare_fleet(folder / "bare", jitter=jitter) as (bare, stack),
    ):
        async with server.operator() as operator:
            ticket = await token(operator, agents)
        each = await question_cpu(server)
        async with fleet(server, folder / "hosts", ticket, agents, jitter=jitter):
            await bare.connect(stack, agents)
            pass_on(f"{agents} agents", connected=agents)
            async with server.operator() as operator:
                asker = Asker(operator)
                for _ in range(IDLE_QUESTIONS):
                    await asker.ask()
            for number in range(1, rounds + 1):
                least = await bare_back(bare, stack, agents)
                await asyncio.sleep(lasted)
                ours = await ours_back(server, agents, each=each)
                pass_on(
                    f"{agents} agents, round {number} of {rounds}",
                    seconds=ours.seconds,
                    bareSeconds=least[0],
                    cpuMicros=ours.cpu / agents * 1e6,
                    p99Ms=ours.p99 * 1e3,
                )
                found.append((least, ours))
    idle = _p99(asker.waits)
    beyond = [(max(0.0, ours.seconds - jitter), max(0.0, least[0] - jitter)) for least, ours in found]
    return {
        "agents": agents,
        "rounds": rounds,
        "listening": median(ours.listening for _, ours in found),
        "seconds": median(ours.seconds for _, ours in found),
        "bareSeconds": median(least[0] for least, _ in found),
        "ofBare": ratio((ours.seconds, least[0]) for least, ours in found),
        "beyondJitter": ratio(beyond) if all(least for _, least in beyond) else None,
        "cpuMicros": median((ours.cpu / agents * 1e6 for _, ours in found), 0),
        "bareCpuMicros": median((least[1] / agents * 1e6 for least, _ in found), 0),
        "operatorP99Ms": median(ours.p99 * 1e3 for _, ours in found),
        "idleP99Ms": round(idle * 1e3, 2),
        "p99OfIdle": median(ours.p99 / idle for _, ours in found),
    }


def main() -> None:
    """The table, then the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--agents", default=SIZES, help="sizes with commas between them")
    parser.add_argument("--jitter", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--lasted", type=float, default=61.0, metavar="SECONDS")
    given = parser.parse_args()
    rows = []
    for agents in map(int, given.agents.split(",")):
        folder = Path(tempfile.mkdtemp())
        try:
            rows.append(asyncio.run(measure(folder, agents, given.rounds, given.jitter, given.lasted)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    columns = {
        "agents": "agents",
        "listening": "s until it listens",
        "seconds": "s until all are back",
        "bareSeconds": "bare, s",
        "ofBare": "× bare",
        "beyondJitter": "beyond jitter, × bare",
        "cpuMicros": "CPU µs each",
        "bareCpuMicros": "bare CPU µs",
        "operatorP99Ms": "operator p99, ms",
        "idleP99Ms": "idle p99, ms",
        "p99OfIdle": "× idle",
    }
    tell("reconnect", columns, rows, rounds=given.rounds, jitter=given.jitter)


if __name__ == "__main__":
    main()
