"""A simulated fleet beside a control plane of its own process, as benchmarks use both.

Hides how agents come about, and that what they have done is read in the database's file, so that asking costs the
server nothing.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from agent import simulate
from tests.bench.stage import PATIENCE_SECONDS, Served, until
from tests.support.plane import Plane
from tests.support.waiting import eventually

LABELS = {"fleet": "sim"}
FANOUT_BYTES = 2_048
JITTER_VARIABLE = "VARIANT_AGENT_RECONNECT_JITTER"


async def token(operator: Plane, agents: int) -> str:
    """Good for so many hosts."""
    return await operator.token(name="simulation", maxUses=agents, labels=LABELS)


@asynccontextmanager
async def fleet(
    server: Served,
    folder: Path,
    ticket: str,
    agents: int,
    *,
    first: int = 1,
    participants: int = 1,
    jitter: float = 1.0,
    processes: int | None = None,
) -> AsyncIterator[simulate.Fleet]:
    """So many agents, numbered from `first`, all connected; the same ones again from the same folder.

    In as many `processes` as suit them here, where nothing else is said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[JITTER_VARIABLE] = str(jitter)
    plan = simulate.Plan(
        directory=str(folder),
        token=ticket,
        name="sim",
        agents=agents,
        first=first,
        participants=participants,
    )
    ended = asyncio.Event()
    async with simulate.running(plan, processes or simulate.processes_for(agents), ended=ended) as running:

        def connected() -> bool:
            if running.failure:
                raise RuntimeError(running.failure)
            return running.progress.connected >= agents

        await eventually(connected, within=PATIENCE_SECONDS, what=f"{agents} agents are connected")
        yield running


def counted(server: Served, sql: str, *parameters: Any) -> int:
    """A number from the server's database."""
    with closing(sqlite3.connect(f"file:{server.data / 'variantd.db'}?mode=ro", uri=True)) as database:
        return int(database.execute(sql, parameters).fetchone()[0])


async def on_record(
    server: Served, number: int, sql: str, *parameters: Any, by: simulate.Fleet | None = None
) -> None:
    """The database says so. Raises RuntimeError where the fleet that it is up to has failed."""

    def so() -> bool:
        if by is not None and by.failure:
            raise RuntimeError(by.failure)
        return counted(server, sql, *parameters) >= number

    await until(so)


def draft(key: str) -> dict[str, Any]:
    """An experiment on everybody, of two variants with contents of their own."""
    variants = [
        {
            "name": name,
            "key": name,
            "content": f"{key} {name} ".ljust(FANOUT_BYTES, "x"),
            "weight": 50,
            "isControl": first,
        }
        for name, first in (("a", True), ("b", False))
    ]
    return {
        "name": key,
        "key": key,
        "targetFile": "soul.md",
        "variants": variants,
        "participants": {"labels": LABELS},
        "metrics": {"primary": {"eventName": "done"}},
    }


APPLIED = (
    "select count(*) from deployment d join experiment e on e.id = d.experiment_id"
    " where e.key = ? and d.state in ('applied', 'confirmed')"
)
CLOSED = (
    "select count(*) from deployment d join experiment e on e.id = d.experiment_id"
    " where e.key = ? and d.action = 'close' and d.state in ('applied', 'confirmed')"
)
