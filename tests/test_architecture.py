"""The house keeps its rules; what import contracts cannot say is said here."""

import re
from pathlib import Path

import pytest

from tests.support.builders import ENGINES

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("control_plane", "agent", "shared")
SOURCES = [
    path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if "pb" not in path.relative_to(ROOT).parts
]

CLOCKS_AND_CHANCE = re.compile(
    r"datetime\.now|datetime\.utcnow|\btime\.(time|monotonic|time_ns|monotonic_ns|sleep)\b"
    r"|^\s*(import|from) (uuid|random|secrets|uuid_utils)\b(?!.*\bRandom\b)",
    re.MULTILINE,
)
MAY_HOLD_THEM = {"shared/clock.py", "shared/ids.py"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_time_ids_and_chance_have_one_source(path: Path) -> None:
    """Clocks, ids and randomness are handed in; only their own modules make them."""
    if str(path.relative_to(ROOT)) in MAY_HOLD_THEM:
        return
    found = CLOCKS_AND_CHANCE.search(path.read_text())
    assert found is None, f"{path}: {found and found[0]}; take a Clock, NewId or Random"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_hides_one_thing(path: Path) -> None:
    """A module stays readable in one sitting and is named after what it hides."""
    assert len(path.read_text().splitlines()) <= 560, "split it by what it hides"
    assert path.stem not in {"utils", "common", "helpers", "base", "manager", "interfaces", "misc"}


def test_one_place_knows_sql() -> None:
    """No SQL outside the store."""
    sql = re.compile(r"\"\s*(select|insert into|update \w+ set|delete from) ", re.IGNORECASE)
    strays = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if "store" not in path.parts and sql.search(path.read_text())
    ]
    # readiness asks the database whether it answers at all
    assert [stray for stray in strays if stray != "control_plane/app.py"] == []


def test_no_handler_decides_a_status() -> None:
    """Failures become statuses in one table; no handler aborts or answers an error by itself."""
    strays = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.parts[-2:] != ("api", "errors.py")
        and re.search(r"context\.abort\(|raise web\.HTTP", path.read_text())
    ]
    assert strays == []


def test_an_agent_does_not_import_what_it_does_not_need() -> None:
    """The daemon's modules import neither pydantic nor typer nor the statistics."""
    for path in sorted((ROOT / "agent").rglob("*.py")):
        assert not re.search(
            r"^\s*(import|from) (pydantic|typer|rich|numpy|scipy)\b", path.read_text(), re.M
        ), path


def test_nothing_here_names_one_machine() -> None:
    """No committed text names a path of the machine it was written on."""
    here = str(ROOT.parent)
    if here in ("/", "/tmp"):  # a clone at the top of the file system: every text would match
        return
    for path in [
        *SOURCES,
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "tests").rglob("*.py"),
    ]:
        assert here + "/" not in path.read_text(), path


def test_nothing_that_needs_postgresql_does_without() -> None:
    """The suite has its own server, so that no test of either database may be left out for want of one."""
    folders = [ROOT / "tests" / name for name in ("contract", "services", "support")]
    named = [path for folder in folders for path in folder.rglob("*.py") if "postgres" in path.read_text()]
    assert ROOT / "tests" / "contract" / "conftest.py" in named
    left_out = re.compile(r"importorskip|pytest\.skip|mark\.skip")
    assert [str(path) for path in named if left_out.search(path.read_text())] == []
    assert ENGINES == ("sqlite", "postgres")
