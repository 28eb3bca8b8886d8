"""What `variantd` says where its surroundings are not as they should be: one sentence, never a traceback."""

import asyncio
import gzip
import os
import pwd
import shutil
import signal
import sqlite3
import stat
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from control_plane.data import DataDir, agreed_authorities, backup, restore, write_private
from control_plane.services import access
from control_plane.store.sqlite import SqliteDatabase
from control_plane.store.store import Store
from shared.clock import SystemClock
from shared.errors import FailedPrecondition, Invalid
from shared.ids import new_id
from tests.support.fleet import BIN, Process, run
from tests.support.privileged import mounted
from tests.support.waiting import PATIENCE, eventually


def junk(path: Path) -> Path:
    """A data directory whose database is none."""
    data = DataDir(path)
    data.prepare()
    data.authority(SystemClock())
    data.database.write_bytes(b"not a database, though as long as the header of one" * 9)
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def pem(path: Path) -> dict[str, str]:
    path.write_text("nothing of the kind")
    return {"VARIANTD_CA_KEY_FILE": str(path)}


def used(path: Path) -> Path:
    """A data directory that a server had."""
    data = DataDir(path)
    data.prepare()
    data.authority(SystemClock())
    SqliteDatabase.open(data.database)
    return path


CASES: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "serve, a file": (lambda at: ["serve", "--data-dir", str(text(at / "file", ""))], "file"),
    "migrate, a file": (lambda at: ["migrate", "--data-dir", str(text(at / "file", ""))], "file"),
    "serve, no database": (lambda at: ["serve", "--data-dir", str(junk(at / "junk"))], "junk/variantd.db"),
    "backup, no database": (
        lambda at: ["backup", "--data-dir", str(junk(at / "junk")), str(at / "b.tar")],
        "junk/variantd.db",
    ),
    "backup, to nowhere": (
        lambda at: ["backup", "--data-dir", str(used(at / "d")), str(at / "gone" / "b.tar")],
        "gone",
    ),
    "restore, a file": (
        lambda at: ["restore", "--data-dir", str(text(at / "file", "")), str(at / "b.tar")],
        "file",
    ),
    "serve, no TOML": (
        lambda at: ["serve", "--config", str(text(at / "c.toml", "http = [")), "--data-dir", str(at / "d")],
        "c.toml is not TOML",
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_it_is_named(tmp_path: Path, case: str) -> None:
    """`run` fails where there is a traceback."""
    words, named = CASES[case]
    code, _, said = await run("variantd", *words(tmp_path), ok=False)
    assert code == 1
    assert named in said


async def test_an_authority_that_is_none_is_named(tmp_path: Path) -> None:
    words = ("serve", "--data-dir", str(tmp_path / "d"))
    code, _, said = await run("variantd", *words, ok=False, **pem(tmp_path / "authority.pem"))
    assert code == 1
    assert "authority.pem" in said


async def test_help_is_for_every_terminal() -> None:
    """Also one that knows ASCII only."""
    for words in (
        ("variantd", "serve", "--help"),
        ("variant-agent", "--help"),
        ("variant-agent", "report", "--help"),
    ):
        code, said, _ = await run(*words, PYTHONIOENCODING="ascii")
        assert (code, "usage:" in said) == (0, True)


def test_no_authority_takes_the_place_of_one_whose_file_is_missing(tmp_path: Path) -> None:
    """After a restore on another machine, where `ca_key_file` is still set: every host would be locked out."""
    data = DataDir(used(tmp_path / "d"))
    before = data.ca_certificate.read_bytes()
    moved = DataDir(data.path, tmp_path / "authority.pem")
    with pytest.raises(FailedPrecondition, match="has an authority") as refused:
        moved.authorities(SystemClock())
    assert data.ca_certificate.read_bytes() == before
    assert not (tmp_path / "authority.pem").exists()
    keys = data.path / "ca" / "key.pem"
    assert f"`cat {keys} {data.ca_certificate} > {tmp_path / 'authority.pem'}`" in refused.value.message
    (tmp_path / "authority.pem").write_bytes(keys.read_bytes() + before)
    assert moved.authorities(SystemClock()).first.certificate == before


async def test_a_restore_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Half of one, or all of the former incarnation, would pass for a data directory."""
    data = DataDir(used(tmp_path / "d"))
    backup(data, tmp_path / "good.tar")
    database = SqliteDatabase.open(data.database)
    await database.write(
        lambda tx: tx.run("insert into migration (name, checksum) values ('9999_x.sql', 'x')")
    )
    await database.close()
    backup(data, tmp_path / "newer.tar")
    (tmp_path / "there").mkdir()
    for target in ("absent", "there"):
        with pytest.raises(FailedPrecondition, match="newer variantd"):
            await restore(DataDir(tmp_path / target), tmp_path / "newer.tar", new_id=new_id)
    assert not (tmp_path / "absent").exists()
    assert list((tmp_path / "there").iterdir()) == []
    await restore(DataDir(tmp_path / "there"), tmp_path / "good.tar", new_id=new_id)
    found = sorted(path.name for path in (tmp_path / "there").iterdir())
    assert found == ["ca", "variantd.db"]


def test_a_backup_without_an_authority_is_none(tmp_path: Path) -> None:
    """It could not be restored."""
    data = DataDir(tmp_path / "d")
    data.prepare()
    SqliteDatabase.open(data.database)
    with pytest.raises(Invalid, match="no authority yet"):
        backup(data, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


async def test_no_authority_takes_the_place_of_one_that_was_deleted(tmp_path: Path) -> None:
    """Hosts that trust the first one would be locked out; whoever knows that says so."""
    data, now = DataDir(tmp_path / "d"), SystemClock()
    data.prepare()
    database = SqliteDatabase.open(data.database)
    try:
        first = (await agreed_authorities(data, database, now)).first.certificate
        assert (await agreed_authorities(data, database, now)).first.certificate == first
        shutil.rmtree(data.ca_certificate.parent)
        with pytest.raises(FailedPrecondition, match="new-incarnation") as refused:
            await agreed_authorities(data, database, now)
        assert refused.value.reason == "OTHER_AUTHORITY"
        assert not data.has_authority
        anew = ("variantd", "admin", "new-incarnation", "--data-dir", str(data.path))
        code, _, said = await run(*anew, ok=False)
        assert (code, "`variantd serve` begins it" in said) == (1, True)
        await database.write(lambda tx: access.initialise(Store(tx), new_id=new_id, now=now.now()))
        await run(*anew)
        data.prepare()
        assert (await agreed_authorities(data, database, now)).first.certificate != first
    finally:
        await database.close()


def test_a_backup_follows_a_link_to_another_disk(tmp_path: Path) -> None:
    """`latest.tar` is often one."""
    data = DataDir(used(tmp_path / "d"))
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "latest.tar").symlink_to(other / "1.tar")
    with mounted("-t", "tmpfs", "none", at=other):
        backup(data, tmp_path / "latest.tar")
        assert (tmp_path / "latest.tar").is_symlink()
        assert stat.S_IMODE((other / "1.tar").stat().st_mode) == 0o600


async def test_a_disk_without_room_is_named(tmp_path: Path) -> None:
    """The backup's, not the database's; and which file of a restore had no room."""
    data = DataDir(used(tmp_path / "d"))
    backup(data, tmp_path / "b.tar")
    small = tmp_path / "small"
    small.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=64k", "none", at=small):
        for words, named in (
            (
                ("backup", "--data-dir", str(data.path), str(small / "b.tar")),
                f"cannot write {small / 'b.tar'}: No",
            ),
            (
                ("restore", "--data-dir", str(small / "r"), str(tmp_path / "b.tar")),
                f"{small}/r/restoring.db: No",
            ),
        ):
            code, _, said = await run("variantd", *words, ok=False)
            assert (code, said) == (1, f"variantd: {named} space left on device\n")
        assert list(small.iterdir()) == []


async def test_a_backup_that_was_packed_and_broke_is_named(tmp_path: Path) -> None:
    """As by a transfer that ended early, or with other bytes in it; nothing of it is left."""
    backup(DataDir(used(tmp_path / "d")), tmp_path / "b.tar")
    whole = gzip.compress((tmp_path / "b.tar").read_bytes())
    packed, half = tmp_path / "b.tar.gz", len(whole) // 2
    for broken in (whole[:half], whole[:half] + bytes(64) + whole[half + 64 :], b""):
        packed.write_bytes(broken)
        words = ("restore", "--data-dir", str(tmp_path / "r"), str(packed))
        code, _, said = await run("variantd", *words, ok=False)
        assert (code, said.startswith(f"variantd: {packed} is not a backup of variantd")) == (1, True), said
        assert not (tmp_path / "r").exists()
    packed.write_bytes(whole)
    await run("variantd", *words)
    assert (tmp_path / "r" / "variantd.db").exists()


async def test_a_backup_may_be_larger_than_memory(tmp_path: Path) -> None:
    """A restore reads it bit by bit."""
    data = DataDir(used(tmp_path / "d"))
    with closing(sqlite3.connect(data.database)) as database:
        database.execute("create table large as select zeroblob(30000000)")
    backup(data, tmp_path / "b.tar")
    tracemalloc.start()
    try:
        await restore(DataDir(tmp_path / "r"), tmp_path / "b.tar", new_id=new_id)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert (tmp_path / "r" / "variantd.db").stat().st_size > 30_000_000


async def test_a_restore_that_was_killed_is_no_data_directory(tmp_path: Path) -> None:
    """A server that began there would be an empty one with the authority that hosts trust, and a key of its own."""
    data = DataDir(used(tmp_path / "d"))
    with closing(sqlite3.connect(data.database)) as database:
        database.execute("create table large as select zeroblob(100000000)")
    write_private(data.operator_key, b"of the backup")
    backup(data, tmp_path / "b.tar")
    half = DataDir(tmp_path / "r")
    words = ("restore", "--data-dir", str(half.path), str(tmp_path / "b.tar"))
    process = await asyncio.create_subprocess_exec(Path(sys.executable).parent / "variantd", *words)
    await eventually(half.operator_key.exists, what="half of a restore")
    process.kill()
    await process.wait()
    assert not half.database.exists()
    for verb in ("serve", "migrate"):
        code, _, said = await run("variantd", verb, "--data-dir", str(half.path), ok=False)
        assert (code, f"a restore into {half.path} did not end; restore into a new directory" in said) == (
            1,
            True,
        )
    assert half.operator_key.read_bytes() == b"of the backup"


def test_a_backup_takes_the_place_of_nothing_but_a_file(tmp_path: Path) -> None:
    """As root, /dev/null would be a file from then on."""
    data = DataDir(used(tmp_path / "d"))
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", tmp_path):
        with pytest.raises(Invalid, match="is no file"):
            backup(data, target)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    "words",
    [
        ("migrate", "--data-dir", "d"),
        ("admin", "ca", "next", "--data-dir", "d"),
        ("admin", "new-incarnation", "--data-dir", "d"),
        ("restore", "--data-dir", "d", "b.tar"),
    ],
)
async def test_what_root_makes_is_the_directory_s_owner_s(tmp_path: Path, words: tuple[str, ...]) -> None:
    """An administrator is root and the server is not: it has to start after whatever was done to its directory."""
    if os.geteuid() != 0:
        pytest.skip("needs root to be another user than the server")
    server = pwd.getpwnam("nobody")
    backup(DataDir(used(tmp_path / "was")), tmp_path / "b.tar")
    at = tmp_path / "d"
    at.mkdir()
    if words[0] == "admin":
        await restore(DataDir(at), tmp_path / "b.tar", new_id=new_id)
    for path in (at, *at.rglob("*")):
        os.chown(path, server.pw_uid, server.pw_gid)
    given = [str(tmp_path / word) if word in ("d", "b.tar") else word for word in words]
    await run("variantd", *given)
    assert (at / "ca").exists()
    assert (at / "variantd.db").exists()
    for path in (at, *at.rglob("*")):
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (server.pw_uid, server.pw_gid), path
        assert stat.S_IMODE(found.st_mode) & 0o077 == 0, path


@asynccontextmanager
async def serving(tmp_path: Path, *before: str) -> AsyncIterator[Process]:
    """A server that listens, started by the words `before`; it has ended well afterwards."""
    addresses = tmp_path / "d" / "addresses.json"
    words = [*before, str(BIN / "variantd"), "serve", "--data-dir", str(addresses.parent)]
    for listener in ("http", "operator", "agents"):
        words += [f"--{listener}", "127.0.0.1:0"]
    process = Process(words, tmp_path / "log")
    await process.start()
    try:
        await eventually(lambda: process.running() and addresses.exists())
        yield process
    finally:
        assert await process.stop() == 0


@pytest.fixture
def _hangups_are_heard() -> Iterator[None]:
    """Whoever runs the tests under nohup has SIGHUP ignored, and so had every child."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_hangups_are_heard")
async def test_a_terminal_that_goes_away_is_a_stop(tmp_path: Path) -> None:
    """The server drains and ends as it is asked to."""
    async with serving(tmp_path) as process:
        assert process.child is not None
        process.child.send_signal(signal.SIGHUP)
        async with asyncio.timeout(PATIENCE):
            assert await process.child.wait() == 0
    assert "control_plane.stopping" in process.log.read_text()
    assert not (tmp_path / "d" / "addresses.json").exists()


async def test_under_nohup_a_server_goes_on(tmp_path: Path) -> None:
    """SIGHUP stays ignored."""
    async with serving(tmp_path, "nohup") as process:
        status = Path(f"/proc/{process.pid}/status").read_text()
        ignored = int(status.split("SigIgn:")[1].split()[0], 16)
        assert ignored & (1 << (signal.SIGHUP - 1))
