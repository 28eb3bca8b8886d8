"""What a connected agent costs the server in memory: `make bench BENCH=memory`.

The resident memory of a control plane that was just started, with the first agents connected and with all of a fleet,
of three slots each; beside a bare grpc.aio server with as many streams over mutual TLS. What the first agents make a
server load and set aside, whoever they are, is told by itself and not shared out among the others. Both are started
anew for each round, in turn. Nothing is asserted.
"""

import argparse
import asyncio
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.bare import bare_fleet
from tests.bench.simulated import APPLIED, draft, fleet, on_record, token
from tests.bench.stage import Served, median, pass_on, ratio, resident_bytes, served, tell

SIZES = os.environ.get("VARIANTD_BENCH_AGENTS", "1000")
SLOTS = 3
FIRST = 100


async def of_ours(server: Served, folder: Path, ticket: str, agents: int) -> tuple[float, int]:
    """(bytes for each further agent, bytes with the first ones) of a server that was just started."""
    await server.end()
    await server.start()
    few = min(FIRST, agents // 2)
    async with fleet(server, folder, ticket, few, participants=SLOTS):
        before = resident_bytes(server.pid)
        async with fleet(server, folder, ticket, agents - few, first=few + 1, participants=SLOTS):
            return (resident_bytes(server.pid) - before) / (agents - few), before


async def of_bare(folder: Path, streams: int) -> tuple[float, int]:
    """The same of a bare server's streams."""
    few = min(FIRST, streams // 2)
    async with bare_fleet(folder) as (bare, stack):
        await bare.connect(stack, few)
        before = bare.resident
        await bare.connect(stack, streams - few)
        return (bare.resident - before) / (streams - few), before


async def measure(folder: Path, agents: int, rounds: int) -> dict[str, Any]:
    """The row of a fleet."""
    found = []
    async with served(folder / "ours") as server:
        async with server.operator() as operator:
            ticket = await token(operator, agents)
            async with fleet(server, folder / "hosts", ticket, agents, participants=SLOTS):
                await operator.made("/v1/experiments", draft("slots"))
                await operator.made("/v1/experiments/slots/start", {})
                await on_record(server, agents * SLOTS, APPLIED, "slots")
        for number in range(rounds):
            ours = await of_ours(server, folder / "hosts", ticket, agents)
            bare = await of_bare(folder / f"bare-{number}", agents)
            pass_on(
                f"{agents} agents, round {number + 1} of {rounds}",
                kib=ours[0] / 1024,
                bareKib=bare[0] / 1024,
            )
            found.append((ours, bare))
        await server.end(signal.SIGKILL)
    return {
        "agents": agents,
        "slots": SLOTS,
        "rounds": rounds,
        "kib": median((ours[0] / 1024 for ours, _ in found), 1),
        "bareKib": median((bare[0] / 1024 for _, bare in found), 1),
        "ofBare": ratio((ours[0], bare[0]) for ours, bare in found),
        "firstMib": median((ours[1] / 1_048_576 for ours, _ in found), 1),
        "bareFirstMib": median((bare[1] / 1_048_576 for _, bare in found), 1),
    }


def main() -> None:
    """The table, then the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--agents", default=SIZES, help="sizes with commas between them")
    given = parser.parse_args()
    rows = []
    for agents in map(int, given.agents.split(",")):
        folder = Path(tempfile.mkdtemp())
        try:
            rows.append(asyncio.run(measure(folder, agents, given.rounds)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    columns = {
        "agents": "agents",
        "slots": "slots each",
        "kib": "KiB each",
        "bareKib": "bare, KiB each",
        "ofBare": "× bare",
        "firstMib": "MiB with the first",
        "bareFirstMib": "bare, MiB",
    }
    tell("memory", columns, rows, rounds=given.rounds)


if __name__ == "__main__":
    main()
