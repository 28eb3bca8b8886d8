"""What every database keeps: all or nothing, durable when answered, one writer's failure its own."""

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from control_plane.store import database as contract
from control_plane.store.database import IntegrityViolation, Tx
from control_plane.store.sqlite import SqliteDatabase, backup_database
from shared.errors import FailedPrecondition, Unavailable

KILLED_AFTER_ANSWER = """
import asyncio, os, signal, sys
from pathlib import Path
from control_plane.store.sqlite import SqliteDatabase

async def main():
    database = SqliteDatabase.open(Path(sys.argv[1]))
    for n in range(20):
        await database.write(lambda tx: tx.run("insert into meta values (?, ?)", (f"k{n}", b"v")))
        print(n, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def put(key: str) -> object:
    return lambda tx: tx.run("insert into meta (key, value) values (?, ?)", (key, b"v"))


async def keys(database: SqliteDatabase) -> list[str]:
    rows = await database.read(lambda tx: tx.all("select key from meta order by key"))
    return [row["key"] for row in rows]


async def test_one_failure_in_a_group_undoes_only_itself(tmp_path: Path) -> None:
    """Writers that are committed together do not share each other's failures."""
    database = SqliteDatabase.open(tmp_path / "d.db")

    def fail(tx: Tx) -> None:
        tx.run("insert into meta (key, value) values ('half', x'00')")
        raise ValueError("on purpose")

    writes = [database.write(put(f"k{n}")) for n in range(5)]  # type: ignore[arg-type]
    results = await asyncio.gather(
        *writes, database.write(fail), database.write(put("k0")), return_exceptions=True
    )  # type: ignore[arg-type]
    assert [type(item) for item in results[5:]] == [ValueError, IntegrityViolation]
    assert await keys(database) == [f"k{n}" for n in range(5)]
    await database.close()


@pytest.mark.fault(3)
def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    """A process killed right after its answers finds every one of them again."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_ANSWER, str(tmp_path / "d.db")], capture_output=True, text=True
    )
    assert done.returncode == -9, done.stderr
    with sqlite3.connect(tmp_path / "d.db") as connection:
        count = connection.execute("select count(*) from meta").fetchone()[0]
    connection.close()
    assert count == len(done.stdout.split()) == 20


async def test_a_reader_sees_one_moment(tmp_path: Path) -> None:
    """A read is a snapshot, and cannot write."""
    database = SqliteDatabase.open(tmp_path / "d.db")
    with pytest.raises(Unavailable):
        await database.read(put("x"))  # type: ignore[arg-type]
    assert await keys(database) == []
    await database.close()


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
        await database.write(put("x"))  # type: ignore[arg-type]
    other.execute("rollback")
    other.close()
    await database.write(put("x"))  # type: ignore[arg-type]
    assert await keys(database) == ["x"]
    await database.close()


async def test_a_backup_taken_under_writes_is_whole(tmp_path: Path) -> None:
    """The copy passes SQLite's own check and holds what was answered before it began."""
    database = SqliteDatabase.open(tmp_path / "d.db")
    await database.write(put("before"))  # type: ignore[arg-type]
    writes = asyncio.gather(*(database.write(put(f"k{n}")) for n in range(200)))  # type: ignore[arg-type]
    await asyncio.to_thread(backup_database, tmp_path / "d.db", tmp_path / "copy.db")
    await writes
    with sqlite3.connect(tmp_path / "copy.db") as copy:
        assert copy.execute("pragma integrity_check").fetchone() == ("ok",)
        assert copy.execute("select count(*) from meta where key = 'before'").fetchone() == (1,)
    copy.close()
    await database.close()


async def test_migrations_run_once_and_are_not_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second open applies nothing; a migration that changed since, or is unknown, is an error."""
    database = SqliteDatabase.open(tmp_path / "d.db")
    assert await database.write(contract.migrate) == []
    await database.close()
    known = contract._migrations()
    monkeypatch.setattr(contract, "_migrations", lambda: [(known[0][0], known[0][1] + "\n-- changed")])
    with pytest.raises(RuntimeError, match="not the one"):
        SqliteDatabase.open(tmp_path / "d.db")
    monkeypatch.setattr(contract, "_migrations", list)
    with pytest.raises(FailedPrecondition, match="newer variantd"):
        SqliteDatabase.open(tmp_path / "d.db")


async def test_the_database_is_as_durable_as_it_says(tmp_path: Path) -> None:
    """Write-ahead log, full synchronisation and foreign keys are on, for the connection that writes."""
    database = SqliteDatabase.open(tmp_path / "d.db")

    def pragmas(tx: Tx) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [next(iter(dict(tx.one(f"pragma {name}") or {}).values())) for name in names]

    assert await database.write(pragmas) == ["wal", 2, 1]
    await database.close()
