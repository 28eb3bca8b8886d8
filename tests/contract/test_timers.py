"""What timers bear of a database that is in trouble: each engine has its own."""

import asyncio
import os
import resource
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from control_plane.store.database import Tx
from tests.services.test_timers import HOUR, after, ticking
from tests.support import postgres
from tests.support.builders import World, engine, make_world
from tests.support.waiting import PATIENCE, eventually


async def runs(world: World, key: str) -> bool:
    """Whether the experiment does, a second later."""
    await world.clock.advance(1)
    return {"key": key, "status": "running"} in await world.rows("select key, status from experiment")


async def test_an_experiment_whose_timer_cannot_be_done_now_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has the first one's row locked; the second one starts all the same, and the first one after that."""
    monkeypatch.setattr("control_plane.store.postgres.LOCK_SECONDS", 0.2)
    with engine("postgres"):
        async with make_world(tmp_path) as world:
            await world.agent("p", "q")
            await world.experiment("p", name="First", schedule={"startAt": after(world, HOUR)})
            schedule = {"startAt": after(world, HOUR + 1)}
            await world.experiment("q", name="Second", targetFile="other.md", schedule=schedule)
            await world.clock.advance(HOUR + 2)
            async with ticking(world):
                with psycopg.connect(postgres.url_of(tmp_path)) as other:
                    other.execute("select 1 from experiment where key = 'first' for update")
                    await eventually(lambda: runs(world, "second"), what="the other one starts")
                    assert not await runs(world, "first")
                await eventually(lambda: runs(world, "first"), what="the first one starts")
    postgres.drop(tmp_path)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """One on SQLite."""
    async with make_world(tmp_path) as made:
        yield made


@pytest.mark.fault(54)
async def test_timers_outlive_the_last_descriptor(world: World) -> None:
    """No further connection can be made and the only one is in use: they look again, and are there afterwards."""
    await world.agent("p")
    await world.experiment("p", name="First", schedule={"startAt": after(world, HOUR)})
    await world.clock.advance(HOUR + 1)
    inside, go = threading.Event(), threading.Event()

    def hold(tx: Tx) -> None:
        tx.one("select 1")
        inside.set()
        assert go.wait(PATIENCE)

    holding = asyncio.create_task(world.database.read(hold))
    await asyncio.to_thread(inside.wait, PATIENCE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(int(one.name) for one in Path("/proc/self/fd").iterdir()) + 2, hard)
    )
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        async with ticking(world):  # raises what ended them
            for _ in range(3):
                await world.clock.advance(1)
            for one in taken:
                os.close(one)
            taken.clear()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            go.set()
            await holding
            await eventually(lambda: runs(world, "first"), what="it starts")
    finally:
        for one in taken:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        go.set()
