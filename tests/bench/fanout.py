"""A change to a whole fleet, until the last outcome is stored: `make bench BENCH=fanout`.

Agents of `variant-agent simulate`, each with its certificate, session, files and journal, get a variant of 2 KiB from a
control plane: from the answer to `start` on, until the last outcome is in the database. Beside it, in turn within each
round: bare grpc.aio over mutual TLS that sends as many bytes to as many streams, and is acknowledged at once, or after
each host has written them durably, or that besides stores the acknowledgement and a report of what the host has now,
which comes in a message of its own, from hosts that wait for their disks as often as ours. What `start` itself takes
(hosts are asked, everybody is assigned, deployments are committed) stands beside it. Processor time is the server's
process alone; what it takes in a second while nothing changes is told too, because hosts that share a machine take
long. VARIANTD_BENCH_AGENTS=100,1000 or --agents say how many there are. Nothing is asserted.
"""

import argparse
import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from agent.simulate import Fleet
from tests.bench.bare import bare_fleet
from tests.bench.simulated import APPLIED, CLOSED, FANOUT_BYTES, draft, fleet, on_record, token
from tests.bench.stage import Served, median, pass_on, ratio, served, tell
from tests.support.plane import Plane

SIZES = os.environ.get("VARIANTD_BENCH_AGENTS", "1000,5000")


async def changed(server: Served, operator: Plane, key: str, agents: int, by: Fleet) -> tuple[float, ...]:
    """(seconds, processor seconds) from the answer to `start` to the last outcome, then those of `start`."""
    await operator.made("/v1/experiments", draft(key))
    began, cpu = time.perf_counter(), server.cpu
    await operator.made(f"/v1/experiments/{key}/start", {})
    answered, answered_cpu = time.perf_counter(), server.cpu
    await on_record(server, agents, APPLIED, key, by=by)
    ended = (time.perf_counter() - answered, server.cpu - answered_cpu)
    await operator.made(f"/v1/experiments/{key}/complete", {"then": "keep"})
    await on_record(server, agents, CLOSED, key, by=by)
    return (*ended, answered - began, answered_cpu - cpu)


async def measure(folder: Path, agents: int, rounds: int, quiet: float) -> dict[str, Any]:
    """The row of a fleet."""
    found: list[tuple[tuple[float, ...], ...]] = []
    async with (
        served(folder / "ours") as server,
        server.operator() as operator,
        bare_fleet(folder / "bare") as (bare, stack),
    ):
        ticket = await token(operator, agents)
        async with fleet(server, folder / "hosts", ticket, agents) as hosts:
            await bare.connect(stack, agents)
            pass_on(f"{agents} agents", connected=agents)
            idle = server.cpu
            await asyncio.sleep(quiet)
            idle = (server.cpu - idle) / quiet
            for number in range(rounds + 1):
                quick = await bare.fan_out(FANOUT_BYTES)
                durable = await bare.fan_out(FANOUT_BYTES, durable=True)
                stored = await bare.fan_out(FANOUT_BYTES, durable=True, reported=True)
                ours = await changed(server, operator, f"round-{number}", agents, hosts)
                pass_on(
                    f"{agents} agents, {f'round {number} of {rounds}' if number else 'to warm up'}",
                    seconds=ours[0],
                    cpuMicros=ours[1] / agents * 1e6,
                    bareSeconds=quick[0],
                    durableSeconds=durable[0],
                    storedSeconds=stored[0],
                    storedCpuMicros=stored[1] / agents * 1e6,
                    bareCpuMicros=quick[1] / agents * 1e6,
                )
                if number:  # the first round warms up
                    found.append((quick, durable, stored, ours))
    return {
        "agents": agents,
        "rounds": len(found),
        "seconds": median(ours[0] for *_, ours in found),
        "secondsOfDurable": ratio((ours[0], durable[0]) for _, durable, _, ours in found),
        "bareSeconds": median(quick[0] for quick, *_ in found),
        "durableSeconds": median(durable[0] for _, durable, *_ in found),
        "cpuMicros": median((ours[1] / agents * 1e6 for *_, ours in found), 0),
        "idleMicrosEachSecond": round(idle / agents * 1e6),
        "cpuMicrosBeyondIdle": median(((ours[1] - idle * ours[0]) / agents * 1e6 for *_, ours in found), 0),
        "bareCpuMicros": median((quick[1] / agents * 1e6 for quick, *_ in found), 0),
        "cpuOfBare": ratio((ours[1], quick[1]) for quick, _, _, ours in found),
        "durableCpuMicros": median((durable[1] / agents * 1e6 for _, durable, *_ in found), 0),
        "cpuOfDurable": ratio((ours[1], durable[1]) for _, durable, _, ours in found),
        "storedSeconds": median(stored[0] for _, _, stored, _ in found),
        "secondsOfStored": ratio((ours[0], stored[0]) for _, _, stored, ours in found),
        "storedCpuMicros": median((stored[1] / agents * 1e6 for _, _, stored, _ in found), 0),
        "cpuOfStored": ratio((ours[1], stored[1]) for _, _, stored, ours in found),
        "startSeconds": median(ours[2] for *_, ours in found),
        "startCpuMicros": median((ours[3] / agents * 1e6 for *_, ours in found), 0),
    }


def main() -> None:
    """The table, then the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--agents", default=SIZES, help="sizes with commas between them")
    parser.add_argument("--quiet", type=float, default=10.0, metavar="SECONDS", help="before the first round")
    given = parser.parse_args()
    found = []
    for agents in map(int, given.agents.split(",")):
        folder = Path(tempfile.mkdtemp())
        try:
            found.append(asyncio.run(measure(folder, agents, given.rounds, given.quiet)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    for row in found:
        row["cpuOfFirst"] = round(row["cpuMicros"] / found[0]["cpuMicros"], 2)
    columns = {
        "agents": "agents",
        "seconds": "s to last",
        "secondsOfDurable": "× bare with writes",
        "durableSeconds": "bare with writes, s",
        "bareSeconds": "bare, s",
        "cpuMicros": "CPU µs each",
        "idleMicrosEachSecond": "idle, CPU µs each a second",
        "cpuMicrosBeyondIdle": "CPU µs each beyond idle",
        "bareCpuMicros": "bare CPU µs",
        "cpuOfBare": "CPU × bare",
        "durableCpuMicros": "with writes, CPU µs",
        "cpuOfDurable": "CPU × with writes",
        "storedSeconds": "and with reports and rows, s",
        "secondsOfStored": "× with rows",
        "storedCpuMicros": "with rows, CPU µs",
        "cpuOfStored": "CPU × with rows",
        "cpuOfFirst": "CPU × first row",
        "startSeconds": "start, s",
        "startCpuMicros": "start, CPU µs each",
    }
    tell("fanout", columns, found, rounds=given.rounds)


if __name__ == "__main__":
    main()
