"""`variantctl export`: lines as REST has them, and Parquet with the same rows in columns."""

import json
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from control_plane.cli.export import COLUMNS, What
from tests.cli.conftest import Run
from tests.support.plane import Plane


@pytest.fixture
async def lived(plane: Plane, running: Run) -> Run:
    """`soul-tone` with some events."""
    events = [
        {
            "kind": kind,
            "participantId": bot,
            "eventId": f"{bot} {kind}",
            "subject": "chat",
            "properties": {"a": [1, "ä"]},
            **({"eventName": "resolved", "value": 2.5} if kind == "conversion" else {}),
        }
        for bot in ("bot-1", "bot-2")
        for kind in ("impression", "conversion")
    ]
    await plane.made("/v1/events:batch", {"events": events})
    return running


async def rest(plane: Plane, what: str) -> str:
    """What REST answers."""
    return str((await plane.rest("GET", f"/v1/experiments/soul-tone/export?what={what}")).body)


async def test_lines_are_those_of_rest(plane: Plane, lived: Run, tmp_path: Path) -> None:
    """On standard output, and in a file that is written whole."""
    said = await lived("export", "soul-tone", "--what", "tallies")
    assert (said.code, said.out) == (0, await rest(plane, "tallies"))
    file = tmp_path / "events.ndjson"
    assert (await lived("export", "soul-tone", "-o", str(file))).code == 0
    assert file.read_text() == await rest(plane, "events")
    assert len(file.read_text().splitlines()) == 4


def plain(kind: str, value: Any) -> Any:
    """What a Parquet column of this kind has for a value of the JSON."""
    if value is None:
        return None
    if kind == "json":
        return json.dumps(value, ensure_ascii=False)
    if kind == "moment":
        return datetime.fromisoformat(value).astimezone(UTC)
    return date.fromisoformat(value) if kind == "day" else value


@pytest.mark.parametrize("what", list(What))
async def test_a_parquet_file_has_the_same_rows(plane: Plane, lived: Run, tmp_path: Path, what: What) -> None:
    """Every field of the JSON is a column of its kind, also where there are no rows."""
    file = tmp_path / "out.parquet"
    said = await lived("export", "soul-tone", "--what", what, "--format", "parquet", "-o", str(file))
    assert said.code == 0, said.err
    table = pyarrow.parquet.read_table(file)
    rows = [json.loads(line) for line in (await rest(plane, what)).splitlines()]
    assert bool(rows) == (what not in (What.VIEWS, What.RECEIPTS))
    assert table.column_names == list(COLUMNS[what])
    for row in rows:
        assert set(row) == set(COLUMNS[what])
    expected = [{name: plain(kind, row[name]) for name, kind in COLUMNS[what].items()} for row in rows]
    assert table.to_pylist() == expected


async def test_parquet_without_its_library(
    lived: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure says what to install; no file is there."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    file = tmp_path / "out.parquet"
    said = await lived("export", "soul-tone", "--format", "parquet", "-o", str(file))
    assert said.code == 1
    assert "pip install 'variantd[analytics]'" in said.err
    assert list(tmp_path.glob("*out.parquet*")) == []


async def test_what_fails_leaves_the_file_as_it_was(lived: Run, tmp_path: Path) -> None:
    """An experiment there is not, a folder there is not, and Parquet to standard output."""
    file = tmp_path / "kept.ndjson"
    file.write_text("before\n")
    assert (await lived("export", "none", "-o", str(file))).code == 1
    assert file.read_text() == "before\n"
    assert [item.name for item in tmp_path.iterdir() if "kept" in item.name] == ["kept.ndjson"]
    missing = await lived("export", "soul-tone", "-o", str(tmp_path / "no" / "such"))
    assert (missing.code, "cannot write" in missing.err) == (1, True)
    assert (await lived("export", "soul-tone", "--format", "parquet")).code == 2
