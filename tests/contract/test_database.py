"""What every database keeps: all or nothing, durable when answered, one writer's failure its own."""

import asyncio
import json
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from control_plane.store import database as contract
from control_plane.store.database import Database, IntegrityViolation, Tx, carries
from control_plane.store.postgres import prepare
from control_plane.store.sqlite import SqliteDatabase, backup_database
from shared.errors import FailedPrecondition, Invalid, Unavailable
from tests.contract.conftest import Engine
from tests.support import postgres
from tests.support.fleet import run
from tests.support.network import proxied
from tests.support.waiting import PATIENCE, eventually

KILLED_AFTER_ANSWER = """
import asyncio, os, signal
{opened}

async def main():
    database = opened()
    for n in range(20):
        await database.write(lambda tx: tx.run("insert into meta values (?, ?)", (f"k{{n}}", b"v")))
        print(n, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def put(key: str) -> Callable[[Tx], int]:
    return lambda tx: tx.run("insert into meta (key, value) values (?, ?)", (key, b"v"))


def grow(key: str, tx: Tx) -> int:
    return tx.run("insert into meta (key, value) values (?, zeroblob(200000))", (key,))


async def keys(database: Database) -> list[str]:
    rows = await database.read(lambda tx: tx.all("select key from meta order by key"))
    return [row["key"] for row in rows]


# -- on every engine


async def test_one_failure_in_a_group_undoes_only_itself(engine: Engine) -> None:
    """Writers that are committed together do not share each other's failures."""
    database = engine.open()

    def fail(tx: Tx) -> None:
        put("half")(tx)
        raise ValueError("on purpose")

    writes = [database.write(put(f"k{n}")) for n in range(5)]
    results = await asyncio.gather(
        *writes, database.write(fail), database.write(put("k0")), return_exceptions=True
    )
    assert [type(item) for item in results[5:]] == [ValueError, IntegrityViolation]
    assert await keys(database) == [f"k{n}" for n in range(5)]
    await database.close()


async def test_what_comes_while_a_transaction_runs_is_committed_with_it(engine: Engine) -> None:
    """Whoever comes a moment too late for the first unit of work does not wait for a commit of its own."""
    database, loop = engine.open(), asyncio.get_running_loop()
    runs, comes = asyncio.Event(), threading.Event()

    def first(tx: Tx) -> None:
        put("first")(tx)
        loop.call_soon_threadsafe(runs.set)
        assert comes.wait(PATIENCE)

    def second(tx: Tx) -> list[str]:
        put("second")(tx)
        return asyncio.run_coroutine_threadsafe(keys(database), loop).result(PATIENCE)

    earlier = asyncio.create_task(database.write(first))
    await runs.wait()
    later = asyncio.create_task(database.write(second))
    await asyncio.sleep(0)  # it has been handed over
    comes.set()
    await earlier
    assert await later == []  # nothing is committed yet, not even the first
    assert await keys(database) == ["first", "second"]
    await database.close()


async def test_a_statement_runs_once_for_each_row(engine: Engine) -> None:
    """However many rows there are, whatever they hold; one that may not be undoes those before it."""
    values = [f"{n}; delete from meta; -- '?' %s" for n in range(1_203)]
    database = engine.open()

    def fill(tx: Tx) -> None:
        tx.many("insert into meta (key, value) values (?, ?)", [(str(n), b"") for n in range(len(values))])

    def change(tx: Tx) -> None:
        rows = [(text.encode(), text, str(n)) for n, text in enumerate(values)]
        tx.many("update meta set value = ?, key = ? where key = ?", rows)

    def collide(tx: Tx) -> None:
        tx.many("update meta set key = ? where key = ?", [("new", values[0]), (values[2], values[1])])

    def found(tx: Tx) -> dict[str, bytes]:
        return {row["key"]: row["value"] for row in tx.all("select key, value from meta")}

    await database.write(fill)
    await database.write(change)
    await database.write(lambda tx: tx.many("update meta set key = ? where key = ?", []))
    with pytest.raises(IntegrityViolation):
        await database.write(collide)
    assert await database.read(found) == {text: text.encode() for text in values}
    await database.close()


async def test_a_row_that_is_too_long_fails_alone(engine: Engine) -> None:
    """What one engine has no room for in an index is its writer's own trouble, not that of the group."""
    database, loop = engine.open(), asyncio.get_running_loop()
    runs, comes = asyncio.Event(), threading.Event()
    text = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=4096))

    def first(tx: Tx) -> None:
        put("first")(tx)
        loop.call_soon_threadsafe(runs.set)
        assert comes.wait(PATIENCE)

    earlier = asyncio.create_task(database.write(first))
    await runs.wait()
    later = [asyncio.create_task(database.write(put(key))) for key in (text, "last")]
    await asyncio.sleep(0)  # they have been handed over
    comes.set()
    results = await asyncio.gather(earlier, *later, return_exceptions=True)
    await database.close()
    assert [results[0], results[2]] == [None, 1]
    assert results[1] == 1 if engine.name == "sqlite" else isinstance(results[1], Invalid)


@pytest.mark.fault(3)
async def test_what_was_answered_survives_a_kill(engine: Engine) -> None:
    """A process killed right after its answers finds every one of them again."""
    script = KILLED_AFTER_ANSWER.format(opened=engine.source)
    command = [sys.executable, "-c", script]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    database = engine.open()
    assert len(await keys(database)) == len(done.stdout.split()) == 20
    await database.close()


async def test_a_reader_sees_one_moment(engine: Engine) -> None:
    """A read is a snapshot, and cannot write."""
    database = engine.open()
    with pytest.raises(Unavailable):
        await database.read(put("x"))
    started, changed = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def twice(tx: Tx) -> tuple[int, int]:
        first = len(tx.all("select key from meta"))
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(changed.wait(), loop).result()
        return first, len(tx.all("select key from meta"))

    reading = asyncio.create_task(database.read(twice))
    await started.wait()
    await database.write(put("x"))
    changed.set()
    assert await reading == (0, 0)
    assert await keys(database) == ["x"]
    await database.close()


async def take_turns(first: Database, second: Database) -> None:
    """Both counted in the same row, a hundred times together, and none was lost."""
    await first.write(lambda tx: tx.run("insert into meta (key, value) values ('n', ?)", (b"0",)))

    def count(tx: Tx) -> None:
        row = tx.one("select value from meta where key = 'n'")
        assert row is not None
        tx.run("update meta set value = ? where key = 'n'", (b"%d" % (int(row["value"]) + 1),))

    await asyncio.gather(*(database.write(count) for _ in range(50) for database in (first, second)))
    row = await second.read(lambda tx: tx.one("select value from meta where key = 'n'"))
    assert row is not None
    assert bytes(row["value"]) == b"100"
    await first.close()
    await second.close()


async def test_writers_of_two_processes_take_turns(engine: Engine) -> None:
    """What is read and then written loses nothing, however many do it over one database."""
    first, second = engine.open(), engine.open()
    await take_turns(first, second)


async def test_values_come_back_as_they_went_in(engine: Engine) -> None:
    """64-bit numbers, bytes, text of every kind; sums are numbers; text is in the order of its characters."""
    database = engine.open()
    largest = 2**63 - 1
    project, seed, name = bytes(range(16)), bytes(range(255, 239, -1)), "Ünïcode 'quoted' \\ ? % _ 字"

    def write(tx: Tx) -> None:
        tx.run(
            "insert into project (id, name, last_number, created_at) values (?, ?, ?, ?)",
            (project, name, largest, 0),
        )
        rows = [(bytes([n]) * 16, project, key, key, "", 0.25 + n, seed, n, n) for n, key in enumerate("Zaz")]
        tx.run("update project set settings_version = ?", (True,))
        tx.many(
            "insert into holdout (id, project_id, key, name, description, share, seed, created_at, updated_at)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )

    await database.write(write)

    def read(tx: Tx) -> list[object]:
        kept = tx.one("select * from project where name = ? and id = ?", (name, project))
        total = tx.one("select sum(created_at) as n, max(share) as most, max(1, 2) as larger from holdout")
        order = tx.all("select key, seed from holdout order by key")
        assert kept is not None
        assert total is not None
        return [
            bytes(kept["id"]),
            kept["last_number"],
            kept["frozen_at"],
            kept["settings_version"],
            total["n"],
            total["most"],
            total["larger"],
            [(row["key"], bytes(row["seed"])) for row in order],
        ]

    ordered = [(key, seed) for key in "Zaz"]
    assert await database.read(read) == [project, largest, None, 1, 3, 2.25, 2, ordered]
    await database.close()


async def test_text_is_never_a_part_of_the_statement(engine: Engine) -> None:
    """Whatever it holds, in one row and in many; and bytes that look like text."""
    database = engine.open()
    texts = [
        "",
        "plain",
        "it's",
        "'",
        "\\",
        "a\\'b",
        "'; drop table meta; --",
        "? %s %",
        "\n\t",
        "ü字",
        "'" * 65,
    ]
    bodies = {text: text.encode() + b"\\x00'\0" for text in texts}

    def write(tx: Tx) -> None:
        for text, body in bodies.items():
            tx.run("insert into meta (key, value) values (?, ?)", (text, body))
        tx.many("insert into meta (key, value) values (?, ?)", [(f"{x}2", y) for x, y in bodies.items()])

    await database.write(write)
    for text, body in bodies.items():
        for key, value in ((text, body), (f"{text}2", body)):
            row = await database.read(
                lambda tx, found=(key, value): tx.one(  # type: ignore[misc]
                    "select * from meta where key = ? and value = ?", found
                )
            )
            assert row is not None
            assert (row["key"], bytes(row["value"])) == (key, value)
    await database.close()


async def test_labels_are_looked_up_within_json(engine: Engine) -> None:
    """The JSON in statements: every wanted label is in the first column or, failing that, in the second."""
    database = engine.open()

    def carried(
        own: dict[str, str], inherited: dict[str, str], wanted: dict[str, str]
    ) -> Callable[[Tx], bool]:
        sql = f"select 1 from (select ? as a, ? as b) x where {carries('a', 'b')}"
        values = (json.dumps(own), json.dumps(inherited), json.dumps(wanted))
        return lambda tx: tx.one(sql, values) is not None

    assert await database.read(carried({"role": "support"}, {}, {"role": "support"}))
    assert await database.read(carried({}, {"role": "support"}, {"role": "support"}))
    assert await database.read(carried({}, {}, {}))
    assert not await database.read(carried({"role": "sales"}, {"role": "support"}, {"role": "support"}))
    assert not await database.read(carried({"role": "support"}, {}, {"role": "support", "tier": "gold"}))
    await database.close()


async def test_migrations_run_once_and_are_not_rewritten(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second open applies nothing; a migration that changed since, or is unknown, is an error."""
    database = engine.open()
    assert await database.write(contract.migrate) == []
    await database.close()
    known = contract._migrations()
    monkeypatch.setattr(contract, "_migrations", lambda: [(known[0][0], known[0][1] + "\n-- changed")])
    with pytest.raises(FailedPrecondition, match="not the one"):
        engine.open()
    monkeypatch.setattr(contract, "_migrations", list)
    with pytest.raises(FailedPrecondition, match="newer variantd"):
        engine.open()


# -- SQLite


@pytest.mark.fault(7)
async def test_a_locked_database_is_unavailable_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that holds the lock makes writes fail as Unavailable; afterwards they work."""
    monkeypatch.setattr("control_plane.store.sqlite.BUSY_SECONDS", 0.05)
    database = SqliteDatabase.open(tmp_path / "d.db")
    other = sqlite3.connect(tmp_path / "d.db", isolation_level=None)
    other.execute("begin immediate")
    with pytest.raises(Unavailable):
        await database.write(put("x"))
    other.execute("rollback")
    other.close()
    await database.write(put("x"))
    assert await keys(database) == ["x"]
    await database.close()


async def test_a_backup_taken_under_writes_is_whole(tmp_path: Path) -> None:
    """The copy passes SQLite's own check and holds what was answered before it began."""
    database = SqliteDatabase.open(tmp_path / "d.db")
    await database.write(put("before"))
    writes = asyncio.gather(*(database.write(put(f"k{n}")) for n in range(200)))
    await asyncio.to_thread(backup_database, tmp_path / "d.db", tmp_path / "copy.db")
    await writes
    with sqlite3.connect(tmp_path / "copy.db") as copy:
        assert copy.execute("pragma integrity_check").fetchone() == ("ok",)
        assert copy.execute("select count(*) from meta where key = 'before'").fetchone() == (1,)
    copy.close()
    await database.close()


async def test_the_log_stays_short_under_readers_without_a_gap(tmp_path: Path) -> None:
    """There is always somebody reading, who keeps SQLite from beginning its log anew; the writer sees to it."""
    path, limit = tmp_path / "d.db", 1 << 20
    database = SqliteDatabase.open(path, log_bytes=limit)
    inside, longest = threading.Semaphore(0), 0

    def look(tx: Tx) -> None:
        tx.one("select count(*) from meta")
        tx.one(
            "with recursive n (i) as (select 1 union all select i + 1 from n where i < 20000) select count(*) from n"
        )
        inside.release()

    async def read() -> None:
        while True:
            await database.read(look)

    readers = [asyncio.create_task(read()) for _ in range(4)]
    for number in range(150):
        await database.write(partial(grow, f"k{number}"))
        longest = max(longest, Path(f"{path}-wal").stat().st_size)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await database.close()
    assert inside.acquire(timeout=0)
    assert path.stat().st_size > 20 * limit
    assert longest < 12 * limit


async def test_the_database_is_as_durable_as_it_says(tmp_path: Path) -> None:
    """Write-ahead log, full synchronisation and foreign keys are on, for the connection that writes."""
    database = SqliteDatabase.open(tmp_path / "d.db")

    def pragmas(tx: Tx) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [next(iter(dict(tx.one(f"pragma {name}") or {}).values())) for name in names]

    assert await database.write(pragmas) == ["wal", 2, 1]
    await database.close()


# -- PostgreSQL


@pytest.mark.fault(6)
async def test_a_connection_that_is_lost_is_unavailable_once(tmp_path: Path) -> None:
    """A restart of the server costs what was under way an error; what comes after finds it again."""
    url = postgres.url_of(tmp_path)
    database = postgres.opened(url)
    await database.write(put("before"))
    assert await keys(database) == ["before"]
    assert postgres.end_connections(url) == 2
    with pytest.raises(Unavailable):
        await database.write(put("lost"))
    with pytest.raises(Unavailable):
        await keys(database)
    await database.write(put("after"))
    assert await keys(database) == ["after", "before"]
    await database.close()
    postgres.drop(tmp_path)


async def test_two_processes_migrate_once(tmp_path: Path) -> None:
    """Whoever comes first makes the tables, the other waits for it and finds them."""
    url = postgres.url_of(tmp_path)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("drop schema public cascade; create schema public")

        def all_wait() -> bool:
            row = other.execute(
                "select count(*) from pg_locks where locktype = 'advisory' and not granted"
                " and database = (select oid from pg_database where datname = current_database())"
            ).fetchone()
            return row == (2,)

        def migrate(name: str) -> Awaitable[tuple[int, str, str]]:
            return run("variantd", "migrate", "--data-dir", str(tmp_path / name), "--database", url)

        with postgres.writers_turn(url):
            each = [asyncio.ensure_future(migrate(name)) for name in ("one", "two")]
            await eventually(all_wait, what="both wait for their turn")
        printed = sorted([out for _, out, _ in await asyncio.gather(*each)], key=len)
    assert printed[0] == "the schema is the newest\n"
    assert printed[1].splitlines() == [name for name, _ in contract._migrations()]
    postgres.drop(tmp_path)


@pytest.mark.fault(59)
async def test_a_writer_that_is_paused_loses_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the others up for a bounded time, and what it meant to write is refused when it goes on."""
    monkeypatch.setattr("control_plane.store.postgres.IDLE_SECONDS", 1)
    url = postgres.url_of(tmp_path)
    paused, other = postgres.opened(url), postgres.opened(url)
    begun, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def pause(tx: Tx) -> None:
        put("first")(tx)
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        put("second")(tx)

    pausing = asyncio.create_task(paused.write(pause))
    await begun.wait()
    await other.write(put("other"))
    go_on.set()
    with pytest.raises(Unavailable):
        await pausing
    assert await keys(other) == ["other"]
    await paused.close()
    await other.close()
    postgres.drop(tmp_path)


@pytest.mark.fault(8)
async def test_a_statement_that_waits_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that somebody locked makes writes fail as Unavailable; afterwards they work."""
    monkeypatch.setattr("control_plane.store.postgres.LOCK_SECONDS", 1)
    url = postgres.url_of(tmp_path)
    database = postgres.opened(url)
    with psycopg.connect(url) as other:
        other.execute("lock table meta in access exclusive mode")
        with pytest.raises(Unavailable):
            await database.write(put("x"))
    await database.write(put("x"))
    assert await keys(database) == ["x"]
    await database.close()
    postgres.drop(tmp_path)


@pytest.mark.fault(8)
async def test_a_statement_that_takes_too_long_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends it and nothing of it is stored; writer and reader go on, on the connections they have."""
    url = postgres.url_of(tmp_path)
    database = postgres.opened(url)
    monkeypatch.setattr("control_plane.store.postgres.STATEMENT_SECONDS", 2)

    def backend(tx: Tx) -> object:
        return (tx.one("select pg_backend_pid() as pid") or {})["pid"]

    def slow(tx: Tx) -> None:
        tx.one("select pg_sleep(3600)")

    def slow_write(tx: Tx) -> None:
        put("lost")(tx)
        slow(tx)

    before = [await database.write(backend), await database.read(backend)]
    for ask, work in ((database.write, slow_write), (database.read, slow)):
        with pytest.raises(Unavailable, match=r"statement timeout.*nothing of it is stored.*try again"):
            await ask(work)
    await database.write(put("after"))
    assert await keys(database) == ["after"]
    assert [await database.write(backend), await database.read(backend)] == before
    await database.close()
    postgres.drop(tmp_path)


@pytest.mark.fault(9)
async def test_readers_share_what_connections_there_are(tmp_path: Path) -> None:
    """With a single one they take turns and none fails; once there are more, they read at once again."""
    with postgres.guest(postgres.url_of(tmp_path)) as guest:
        database = postgres.opened(guest.url)
        await database.write(put("x"))
        assert await keys(database) == ["x"]
        guest.allow(2)
        assert await asyncio.gather(*(keys(database) for _ in range(20))) == [["x"]] * 20
        guest.allow(postgres.GUESTS)
        everybody = threading.Barrier(3)
        await asyncio.gather(*(database.read(lambda tx: everybody.wait(30)) for _ in range(3)))
        await database.close()
    postgres.drop(tmp_path)


def test_a_server_that_is_not_there_is_told_without_its_password() -> None:
    """Neither a wrong URL nor an absent server shows a secret."""
    with pytest.raises(Unavailable) as absent:
        postgres.opened("postgresql://somebody:pass-word@127.0.0.1:1/none")
    assert "pass-word" not in str(absent.value)
    assert "somebody" in str(absent.value)
    with pytest.raises(Invalid) as malformed:
        postgres.opened("postgresql://somebody:pass-word@127.0.0.1:1/none?nonsense=1")
    assert "pass-word" not in str(malformed.value)


@pytest.mark.fault(6)
async def test_a_server_that_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads or writes then is told; once it speaks again everything goes on."""
    monkeypatch.setattr("control_plane.store.postgres.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("control_plane.store.postgres.CONNECT_SECONDS", 2)
    where, url = postgres.by_tcp(postgres.url_of(tmp_path))
    async with proxied(where) as network:
        database = await asyncio.to_thread(postgres.opened, url.format(network.address))
        await database.write(put("before"))
        network.hold()
        for asked in (database.write(put("during")), keys(database)):
            with pytest.raises(Unavailable):
                await asyncio.wait_for(asked, PATIENCE)
        network.let_go()
        network.reset()
        await database.write(put("after"))
        assert {"before", "after"} <= set(await keys(database))
        await database.close()
    postgres.drop(tmp_path)


async def test_a_migration_takes_as_long_as_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What limits a statement of a server that runs does not limit an index over all that was ever reported."""
    monkeypatch.setattr("control_plane.store.postgres.STATEMENT_SECONDS", 1)
    url, known = postgres.url_of(tmp_path), contract._migrations()
    slow = ("9999_slow.sql", "create table slow as select 1 as n from pg_sleep(2)")
    monkeypatch.setattr(contract, "_migrations", lambda: [*known, slow])
    assert await asyncio.to_thread(prepare, url) == [slow[0]]
    postgres.drop(tmp_path)


async def test_options_of_the_url_are_heard_but_never_weaken_anything(tmp_path: Path) -> None:
    """A search_path puts everything into its schema; a commit is as durable as ever, whatever is asked for."""
    url = postgres.url_of(tmp_path)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("drop schema public cascade; create schema ours")
        options = quote("-c search_path=ours -c synchronous_commit=off")
        database = postgres.opened(f"{url}{'&' if '?' in url else '?'}options={options}")
        await database.write(put("there"))
        assert await keys(database) == ["there"]
        assert other.execute("select key from ours.meta").fetchone() == ("there",)
        shown = await database.write(lambda tx: tx.one("show synchronous_commit"))
        assert shown is not None
        assert shown["synchronous_commit"] == "on"
        await database.close()
    postgres.drop(tmp_path)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_writers_take_turns_whatever_the_servers_default_is(tmp_path: Path, level: str) -> None:
    """What was read in one's turn is what the turn before wrote; nobody is told of a conflict."""
    url = postgres.url_of(tmp_path)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute(f"alter database {other.info.dbname} set default_transaction_isolation = '{level}'")
    first, second = postgres.opened(url), postgres.opened(url)
    await take_turns(first, second)
    postgres.drop(tmp_path)


@pytest.mark.fault(28)
async def test_who_listens_over_a_half_open_connection_listens_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's side is gone and nobody said so; hints are heard again."""
    monkeypatch.setattr("control_plane.store.postgres.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("control_plane.store.postgres.LISTEN_CHECK_SECONDS", 0.2)
    url = postgres.url_of(tmp_path)
    where, through = postgres.by_tcp(url)
    told: list[str] = []
    async with proxied(where) as network:
        database = await asyncio.to_thread(postgres.opened, through.format(network.address))
        listening = asyncio.create_task(database.listen(told.append))
        try:
            await eventually(lambda: told[:1] == [""], what="it listens")
            network.half_open()
            with psycopg.connect(url, autocommit=True) as other:

                async def heard() -> bool:
                    other.execute("select pg_notify('variantd', 'x')")
                    return "x" in told

                await eventually(heard, what="a hint")
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            network.heal()
            await database.close()
    postgres.drop(tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@127.0.0.1:1/x?password=secret",
        "postgresql://u:secret@127.0.0.1:1/x",
        "postgresql://u:se@secret@127.0.0.1:1/x",
        "postgresql://u:%zzsecret@127.0.0.1:1/x",
        "postgresql://u:a secret@127.0.0.1:1/x",
        "postgresql://u:secret@[127.0.0.1:1/x",
    ],
)
def test_what_is_said_of_a_url_has_no_password(url: str) -> None:
    """Wherever in the URL it is, and however badly quoted."""
    with pytest.raises((Invalid, Unavailable)) as failed:
        prepare(url)
    assert "secret" not in str(failed.value)
    assert "%40" in str(failed.value) or "postgresql://u@127.0.0.1:1/x" in str(failed.value)


def test_a_database_that_cannot_hold_every_text_is_refused(tmp_path: Path) -> None:
    """Before anything is made in it."""
    url = postgres.url_of(tmp_path)
    with psycopg.connect(url, autocommit=True) as other:
        name = f"{other.info.dbname}_latin"
        other.execute(f"create database {name} encoding 'LATIN1' locale 'C' template template0")
        try:
            with pytest.raises(FailedPrecondition, match="UTF8"):
                prepare(url.replace(other.info.dbname, name))
        finally:
            other.execute(f"drop database {name} with (force)")
    postgres.drop(tmp_path)


async def test_json_that_says_nul_is_read(engine: Engine) -> None:
    """Names and values besides it are found, whichever escape is how near; a backslash that is one stays one."""
    said = {"a": "x", "\0": "\0\0", "b": "\\u0000", "c": "\\\0", "d": "\\\\u0000y"}
    database = engine.open()
    try:
        rows = await database.read(
            lambda tx: tx.all("select key, value from json_each(?) where key <= 'z'", (json.dumps(said),))
        )
        listed = await database.read(
            lambda tx: tx.all("select value from json_each(?)", (json.dumps(["\0", "b"]),))
        )
    finally:
        await database.close()
    found = {row["key"]: row["value"] for row in rows}
    assert {key: found[key] for key in "abd"} == {key: said[key] for key in "abd"}
    assert found["c"].startswith("\\")
    assert [row["value"] for row in listed][1] == "b"
