"""Every database there is, fresh for each test and real."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from control_plane.store.database import Database
from control_plane.store.postgres import PostgresDatabase
from control_plane.store.sqlite import SqliteDatabase
from tests.support import postgres
from tests.support.builders import ENGINES


@dataclass(frozen=True)
class Engine:
    """One kind of database and the test's own one of it; `source` is Python that opens it."""

    name: str
    open: Callable[[], Database]
    source: str


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """The test's database, on each engine."""
    if request.param == "sqlite":
        path = tmp_path / "d.db"
        opened = f"__import__('control_plane.store.sqlite', fromlist=['_']).SqliteDatabase.open({path!r})"
        source = "from pathlib import PosixPath\n" + f"opened = lambda: {opened}"
        yield Engine("sqlite", lambda: SqliteDatabase.open(path), source)
        return
    url = postgres.url_of(tmp_path)
    opened = f"__import__('control_plane.store.postgres', fromlist=['_']).PostgresDatabase.open({url!r})"
    yield Engine("postgres", lambda: PostgresDatabase.open(url), f"opened = lambda: {opened}")
    postgres.drop(tmp_path)
