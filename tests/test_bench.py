"""The measurements themselves work; what they say is for people to read."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest


async def test_the_operator_api_is_measured_beside_bare_handlers() -> None:
    """Every operation on both transports has its row, with processor and wall time on both sides."""
    command = ("-m", "tests.bench.api", "--rounds", "1", "--calls", "4", "--width", "2")
    child = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    assert child.returncode == 0
    rows = json.loads(out.splitlines()[-1])["rows"]
    wanted = {(way, name) for way in ("REST", "gRPC") for name in ("create", "get", "list", "start")}
    assert {(row["transport"], row["operation"]) for row in rows} == wanted
    assert all(row["cpuMicros"] > 0 and row["bareCpuMicros"] > 0 and row["wallMicros"] > 0 for row in rows)


async def test_results_are_measured_beside_one_statement_and_random_draws() -> None:
    """Each of the three databases has its row, each number of arms too; the draws say what the integrals say."""
    small = ("--rounds", "1", "--variants", "3", "--participants", "30", "--days", "20", "--events", "3000")
    command = ("-m", "tests.bench.results", *small)
    child = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    assert child.returncode == 0
    found = json.loads(out.splitlines()[-1])
    assert [row["of"] for row in found["results"]] == [
        "3e+03 events",
        "3e+04 events",
        "3e+03 events, tallies alone",
    ]
    assert all(row["ratio"] > 0 and row["gatherMs"] > 0 and row["answerMs"] > 0 for row in found["results"])
    assert [row["arms"] for row in found["probabilities"]] == list(range(2, 11))
    assert all(row["deviation"] < 0.02 for row in found["probabilities"])


@pytest.mark.timeout(600)
async def test_an_agent_is_measured_beside_the_least_that_does_the_same(tmp_path: Path) -> None:
    """Applies, reports and agents at rest have their rows, each beside its limit; the file has them too."""
    small = ("--rounds", "1", "--calls", "3", "--seconds", "0.1", "--participants", "3", "--rest", "0.2")
    told = tmp_path / "results" / "agent.json"
    command = ("-m", "tests.bench.agent", *small, "--settle", "0.2", "--results", str(told))
    child = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    assert child.returncode == 0
    found = json.loads(out.splitlines()[-1])
    assert json.loads(told.read_text()) == found
    assert [len(found[part]) for part in ("apply", "reports", "rest")] == [1, 4, 8]
    rows = [row for part in ("apply", "reports", "rest") for row in found[part]]
    assert all(row["limit"] > 0 and row["rounds"] == 1 for row in rows)
    # Who rests for a moment may take no time at all of the processor.
    assert [row["unit"] for row in found["rest"]] == ["MiB", "MiB", "ms", "ms"] * 2
    assert all(row["ratio"] > 0 for row in rows if not row["what"].startswith("cpu"))
    assert all(row["ours"] > 10 and row["bare"] > 10 for row in found["rest"] if row["unit"] == "MiB")
    assert all(0 <= row["ours"] < 200 for row in found["rest"] if row["what"].startswith("cpu"))


@pytest.mark.timeout(600)
async def test_ingest_is_measured_beside_bare_inserts() -> None:
    """Both engines, with and without repeats, beside bare inserts, parsing and a database that does not wait."""
    command = ("-m", "tests.bench.ingest", "--rounds", "1", "--records", "400", "--participants", "8")
    child = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    assert child.returncode == 0
    rows = {(row["of"], row["batch"]): row for row in json.loads(out.splitlines()[-1])["rows"]}
    ours = {f"variantd, {name}{again}" for name in ("SQLite", "PostgreSQL") for again in ("", ", 10 % again")}
    bare = {"parsing alone", "bare SQLite", "bare SQLite, all rows", "bare PostgreSQL", "variantd, NORMAL"}
    assert set(rows) == {(name, batch) for name in ours | bare for batch in (100, 500)}
    assert all(row["cpuMicros"] > 0 and row["perSecond"] > 0 for row in rows.values())


@pytest.mark.timeout(600)
async def test_growth_is_measured_by_events_and_by_participants() -> None:
    """Rows that were copied are events like others to the next record; what they take on disk is told."""
    small = ("-m", "tests.bench.ingest", "--rounds", "1", "--records", "400")
    found = []
    for more in (("--participants", "8", "--grow", "2000,8000"), ("--people", "8", "--no-postgres")):
        child = await asyncio.create_subprocess_exec(
            sys.executable, *small, *more, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        out, _ = await child.communicate()
        assert child.returncode == 0
        found.append(json.loads(out.splitlines()[-1])["rows"])
    grown, peopled = found
    assert [row["of"] for row in grown] == ["variantd, SQLite"] * 2 + ["variantd, PostgreSQL"] * 2
    assert [row["events"] for row in grown] == [4_000, 9_992] * 2
    assert all(row["cpuMicros"] > 0 and row["bytes"] > 300 for row in grown)
    assert [(row["participants"], row["hosts"]) for row in peopled] == [(8, 4)]
    assert all(row[name] > 0 for row in peopled for name in ("startMicros", "cpuMicros", "resultsMillis"))


@pytest.mark.timeout(600)
async def test_fanout_is_measured_beside_bare_streams() -> None:
    """A small fleet gets its change; the row has time and processor time of both sides."""
    command = ("-m", "tests.bench.fanout", "--rounds", "1", "--agents", "4", "--quiet", "1")
    child = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    assert child.returncode == 0
    (row,) = json.loads(out.splitlines()[-1])["rows"]
    assert row["agents"] == 4
    times = (
        "startSeconds",
        "seconds",
        "bareSeconds",
        "durableSeconds",
        "startCpuMicros",
        "cpuMicros",
        "bareCpuMicros",
    )
    assert all(row[name] > 0 for name in times)
    assert row["secondsOfDurable"] > 0
    assert row["cpuOfBare"] > 0


@pytest.mark.timeout(600)
async def test_memory_is_measured_beside_bare_streams() -> None:
    """What a connected agent costs, and what a bare stream does."""
    command = ("-m", "tests.bench.memory", "--rounds", "1", "--agents", "4")
    child = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    assert child.returncode == 0
    (row,) = json.loads(out.splitlines()[-1])["rows"]
    assert (row["agents"], row["slots"]) == (4, 3)
    assert row["kib"] > 0
    assert row["bareKib"] > 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("apart", [False, True])
async def test_the_way_back_is_measured_beside_bare_streams(apart: bool) -> None:
    """All come back to both servers; operators were answered meanwhile."""
    if apart and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one processor only")
    command = (
        "-m",
        "tests.bench.reconnect",
        "--rounds",
        "1",
        "--agents",
        "4",
        "--jitter",
        "0.1",
        "--lasted",
        "0",
        *(("--apart",) if apart else ()),
    )
    child = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    assert child.returncode == 0
    (row,) = json.loads(out.splitlines()[-1])["rows"]
    assert (row["agents"], row["apart"]) == (4, apart)
    assert all(row[name] > 0 for name in ("seconds", "bareSeconds", "operatorP99Ms", "idleP99Ms"))
    assert row["cpuMicros"] >= 0  # of four hosts, less than what the operator's questions are taken to cost


@pytest.mark.timeout(600)
async def test_replicas_are_measured_beside_one() -> None:
    """Two servers over one database: what a record and a delivery cost, and that none is lost."""
    small = ("--rounds", "1", "--records", "2000", "--participants", "8", "--replicas", "2")
    command = ("-m", "tests.bench.replicas", *small, "--agents", "8", "--quiet", "1")
    child = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    assert child.returncode == 0
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [(row["of"], row["replicas"], row["lost"]) for row in rows] == [
        ("reports", 2, 0),
        ("deliveries", 2, 0),
    ]
    assert all(row["cpuMicros"] > 0 for row in rows)
    assert rows[1]["bareMicros"] > 0
