"""Faults of the control plane's own disk and database: full, or locked by somebody else.

Whole system in this process; what has to hold afterwards is the oracle's to say.
"""

import asyncio
import itertools
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import psycopg
import pytest
from pydantic import SecretStr

from tests.support import postgres
from tests.support.arena import Arena, ArenaHost, arena
from tests.support.fleet import run, running_fleet
from tests.support.privileged import mounted, run_or_skip
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("quickly")

LASTING = """
create function lasts() returns trigger language plpgsql as $$ begin perform pg_sleep(3600); return new; end $$;
create trigger lasts before insert on participant for each row when (new.public_id = 'slow')
execute function lasts()
"""

LOCKER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("begin immediate")
print("locked", flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def locked(database: Path) -> AsyncIterator[None]:
    """Another process holds the database's write lock."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", LOCKER, str(database),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    assert await process.stdout.readline() == b"locked\n"
    try:
        yield
    finally:
        process.stdin.close()
        await process.wait()


@asynccontextmanager
async def unmoved(system: Arena, host: ArenaHost) -> AsyncIterator[None]:
    """What was begun has arrived before; the host, connected then, never has to connect again."""
    async with system.oracle.watching():
        await system.begin()
        await system.oracle.converged()
        await host.connected()
        attempts = host.network.attempts
        yield
        assert host.network.attempts == attempts


async def refuses_writes(system: Arena, host: ArenaHost) -> None:
    """Writes are refused with what to make of it, soon; reads and sessions go on, and so does the host."""
    for number in itertools.count():
        async with asyncio.timeout(PATIENCE):
            answer = await system.plane.rest("POST", "/v1/participants", {"id": f"more-{number}"})
        if answer.status != 201:
            break
        assert number < 10_000, "there was room for everything"
    assert (answer.status, answer.body["reason"]) == (503, "DATABASE_UNAVAILABLE"), answer.body
    with pytest.raises(AssertionError, match="DATABASE_UNAVAILABLE"):
        await system.deploy("bot-1", 2)
    for path in ("/v1/experiments/arena", "/v1/participants/bot-1", "/v1/experiments/arena/results"):
        assert (await system.plane.rest("GET", path)).status == 200, path
    await system.report(host, 10)
    assert (await host.status())["session"]["state"] == "connected"


async def recovered(system: Arena, host: ArenaHost) -> None:
    """Everything works again by itself, in the session that was open, and nothing was lost."""
    await system.shown(host, "connected")
    await system.order(host)
    await system.settled()
    checked = sqlite3.connect(system.oracle.database).execute("pragma integrity_check").fetchone()
    assert checked == ("ok",)


@pytest.mark.fault(13)
async def test_a_full_disk_refuses_writes_and_nothing_else(tmp_path: Path) -> None:
    """Until there is room again."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    with mounted("-t", "tmpfs", "-o", "size=6m,mode=700", "none", at=data):
        async with arena(tmp_path) as system, system.hosts[0].running():
            [host] = system.hosts
            async with unmoved(system, host):
                with (data / "filler").open("wb", buffering=0) as filler:
                    try:
                        while True:
                            filler.write(b"x" * 4096)
                    except OSError:
                        pass
                await refuses_writes(system, host)
                (data / "filler").unlink()
                await recovered(system, host)


@pytest.mark.fault(13)
async def test_a_server_that_begins_on_a_full_disk_serves(tmp_path: Path) -> None:
    """Killed meanwhile, it is read again where it was; what it cannot write down is told in its log."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    with mounted("-t", "tmpfs", "-o", "size=6m,mode=700", "none", at=data):
        async with running_fleet(tmp_path, quick=True) as fleet:
            plane = fleet.plane
            await plane.post("/v1/participants", {"id": "before"})
            event = {"participantId": "before", "kind": "impression", "properties": {"x": "y" * 1000}}
            batches = (
                {"events": [{**event, "eventId": f"{n}-{i}"} for i in range(100)]} for n in itertools.count()
            )
            while (answered := await plane.rest("POST", "/v1/events:batch", next(batches)))[0] == 200:
                pass
            assert (answered[0], answered[1]["reason"]) == (503, "DATABASE_UNAVAILABLE")
            await plane.process.kill()
            await plane.process.start()

            def told() -> str:
                printed = plane.process.log.read_text()
                return printed if printed.count("control_plane.ready") == 2 else ""

            printed = await eventually(told, within=PATIENCE)
            assert "addresses.unwritten" in printed
            assert not (data / "addresses.json").exists(), "what is not so any more says nothing"
            found = await plane.get("/v1/participants")
            assert [item["id"] for item in found["entities"]] == ["before"]
            run_or_skip("mount", "-o", "remount,size=60m", data)
            await plane.post("/v1/events:batch", next(batches))


@pytest.mark.fault(7)
async def test_a_lock_held_by_another_process_refuses_writes_and_nothing_else(tmp_path: Path) -> None:
    """After a bounded wait; until the lock is gone."""
    async with arena(tmp_path) as system, system.hosts[0].running():
        [host] = system.hosts
        async with unmoved(system, host):
            async with locked(system.oracle.database):
                await refuses_writes(system, host)
            await recovered(system, host)


@pytest.mark.fault(8)
async def test_a_statement_that_lasts_costs_its_caller_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends it after its time, with what to do; the session it came in the way of is the same afterwards."""
    monkeypatch.setattr("control_plane.store.postgres.STATEMENT_SECONDS", 3)
    url = postgres.url_of(tmp_path)
    async with arena(tmp_path, database=SecretStr(url)) as system, system.hosts[0].running():
        [host] = system.hosts
        async with unmoved(system, host):
            with psycopg.connect(url, autocommit=True) as other:
                other.execute(LASTING)
            answer = await system.plane.rest("POST", "/v1/participants", {"id": "slow"})
            assert (answer.status, answer.body["reason"]) == (503, "DATABASE_UNAVAILABLE")
            assert "statement timeout" in answer.body["detail"]
            assert "try again" in answer.body["detail"]
            assert (await system.plane.rest("GET", "/v1/participants/slow")).status == 404
            assert (await system.plane.rest("POST", "/v1/participants", {"id": "quick"})).status == 201
            await system.shown(host, "connected")
            await system.order(host)
            await system.oracle.converged()
    postgres.drop(tmp_path)


@pytest.mark.fault(9)
async def test_without_a_connection_to_be_had_everybody_is_told_so_and_nobody_is_lost(tmp_path: Path) -> None:
    """Other programs have all that PostgreSQL allows, until they go: sessions live on, and no report is lost."""
    with postgres.guest(postgres.url_of(tmp_path)) as guest:
        async with arena(tmp_path, database=SecretStr(guest.url)) as system, system.hosts[0].running():
            [host] = system.hosts
            async with unmoved(system, host):
                with guest.crowded():
                    await system.report(host, 10)
                    for method, path, body in (
                        ("GET", "/v1/experiments/arena", None),
                        ("POST", "/v1/participants", {"id": "more"}),
                    ):
                        # The first of them find what they had ended, each of the readers one.
                        for _ in range(6):
                            async with asyncio.timeout(PATIENCE):
                                answer = await system.plane.rest(method, path, body)
                            assert (answer.status, answer.body["reason"]) == (503, "DATABASE_UNAVAILABLE")
                        assert "too many connections" in answer.body["detail"]
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await system.plane.grpc("ExperimentService.GetExperiment", id="arena")
                    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
                    code, _, said = await run(
                        *("variantctl", "experiments", "wait", "arena", "--timeout", "300ms"),
                        *("--server", system.plane.addresses["operator"]),
                        *("--ca", str(system.plane.data / "ca" / "ca.pem")),
                        *("--api-key-file", str(system.plane.data / "operator.api-key")),
                        ok=False,
                    )
                    assert (code, "gave up waiting" in said, "DATABASE_UNAVAILABLE" in said) == (
                        5,
                        True,
                        True,
                    )
                    assert (await host.status())["session"]["state"] == "connected"
                await system.shown(host, "connected")
                await system.order(host)
                await system.oracle.converged()

                async def has_all() -> bool:
                    assert (await host.status())["spool"]["depth"] == 0
                    found = (await system.get("/v1/experiments/arena/results"))["variants"]
                    return sum(variant["impressions"] for variant in found) == 10

                await eventually(has_all, what="every report is counted")
    postgres.drop(tmp_path)
