"""A simulated fleet is a fleet: it joins, holds what it is offered, reports, and leaves."""

import asyncio
import json
import os
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent import simulate
from tests.support.fleet import BIN, ENVIRONMENT, Fleet, run, running_fleet
from tests.support.waiting import PATIENCE, eventually

CONTENT = {"a": "As agreed.\n", "b": "The other one.\n"}
LABELS = {"fleet": "sim"}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path) as running:
        yield running


class Simulation:
    """The command, running, and what it said last."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child
        self.said: list[dict[str, Any]] = []

    async def listen(self) -> None:
        """Takes in every line until the command ends."""
        assert self.child.stdout is not None
        async for line in self.child.stdout:
            self.said.append(json.loads(line))

    async def stop(self) -> int:
        """The command was interrupted and has ended; its exit code."""
        if self.child.returncode is None:
            self.child.terminate()
        async with asyncio.timeout(PATIENCE):
            return await self.child.wait()

    @property
    def last(self) -> dict[str, Any]:
        return self.said[-1] if self.said else {}


@asynccontextmanager
async def simulation(fleet: Fleet, *options: str) -> AsyncIterator[Simulation]:
    """`variant-agent simulate` with a token for so many hosts as it needs."""
    asked = {"name": "simulation", "maxUses": 50, "labels": LABELS}
    token = fleet.folder / "token"
    token.write_text((await fleet.plane.post("/v1/enrollment-tokens", asked))["token"])
    words = ("simulate", "--token-file", str(token), "--json", *options)
    temporary = fleet.folder / "tmp"
    temporary.mkdir(exist_ok=True)
    child = await asyncio.create_subprocess_exec(
        str(BIN / "variant-agent"),
        *words,
        stdout=asyncio.subprocess.PIPE,
        env={**ENVIRONMENT, "TMPDIR": str(temporary)},
    )
    running = Simulation(child)
    listening = asyncio.create_task(running.listen())
    try:
        yield running
    finally:
        await running.stop()
        await listening


async def test_a_fleet_joins_holds_its_variants_reports_and_leaves(fleet: Fleet) -> None:
    """12 participants on 6 hosts in 2 processes: all applied, every report counted, nothing left behind."""
    wanted = (
        "--agents",
        "6",
        "--participants",
        "2",
        "--processes",
        "2",
        "--reports",
        "120",
        "--conversion",
        "1",
    )
    async with simulation(fleet, *wanted) as simulated:
        await eventually(lambda: simulated.last.get("connected") == 6, what="all hosts are connected")
        variants = [
            {"name": key, "key": key, "content": body, "weight": 50, "isControl": key == "a"}
            for key, body in CONTENT.items()
        ]
        values = {
            "name": "Tone",
            "targetFile": "soul.md",
            "variants": variants,
            "participants": {"labels": LABELS},
        }
        await fleet.plane.post("/v1/experiments", {**values, "exposureCriteria": {"settleSeconds": 0}})
        await fleet.plane.post("/v1/experiments/tone/start")

        async def applied() -> bool:
            states = await fleet.states("tone")
            return len(states) == 12 and set(states.values()) == {"applied"}

        await eventually(applied, what="every deployment is applied")
        held = sorted(path.read_text() for path in (fleet.folder / "tmp").glob("*/*/roots/*/soul.md"))
        assert held == sorted([*CONTENT.values()] * 6)

        async def counted() -> bool:
            return all(pair[1] > 0 for pair in (await fleet.plane.results("tone", "done")).values())

        await eventually(counted, what="reports of both variants are counted")
        await eventually(lambda: simulated.last["applied"] == 12)
        assert await simulated.stop() == 0
    assert simulated.last["failed"] == 0
    agents = (await fleet.plane.get("/v1/agents"))["entities"]
    assert {agent["presence"] for agent in agents} == {"lost"}
    assert list((fleet.folder / "tmp").iterdir()) == []


async def test_a_fleet_in_a_directory_comes_back(fleet: Fleet) -> None:
    """With --dir the second run is of the same hosts: nobody enrolls again."""
    wanted = ("--agents", "2", "--dir", str(fleet.folder / "hosts"))
    for _ in range(2):
        async with simulation(fleet, *wanted) as simulated:
            await eventually(lambda said=simulated: said.last.get("connected") == 2)  # type: ignore[misc]
    agents = (await fleet.plane.get("/v1/agents"))["entities"]
    assert sorted(agent["name"] for agent in agents) == ["sim-00001", "sim-00002"]


async def test_a_token_that_is_not_good_for_all_ends_the_simulation(fleet: Fleet) -> None:
    """It says what went wrong, and what to do."""
    token = (await fleet.plane.post("/v1/enrollment-tokens", {"name": "one"}))["token"]
    command = ("variant-agent", "simulate", "--token-file", "-", "--agents", "2", "--for", "30")
    code, _, err = await run(*command, stdin=token, ok=False)
    assert code == 1
    assert "refused the token" in err
    assert err.count("variantctl agents token") == 1
    assert "--max-uses" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--agents", "0"), "0 is not from 1 to 10000"),
        (("--conversion", "nan"), "nan is not from 0 to 1"),
        (("--target", "../soul.md", "--token-file", "-"), "no file within a workspace"),
        ((), "--token-file"),
    ],
)
async def test_bad_options_are_told(words: tuple[str, ...], said: str) -> None:
    """Nothing is begun."""
    code, _, err = await run("variant-agent", "simulate", *words, ok=False)
    assert code != 0
    assert said in err


@pytest.mark.parametrize(
    ("agents", "files", "processes"),
    [
        (1, 1_024, 1),
        (200, 20_000, 1),
        (400, 20_000, 2),
        (1_000, 20_000, 4),
        (5_000, 20_000, 4),
        (10_000, 10_000, 8),
        (10_000, resource.RLIM_INFINITY, 4),
        (10_000, 4, simulate.MAX_PROCESSES),
    ],
)
def test_there_are_two_processes_for_each_core_and_more_where_files_want_it(
    monkeypatch: pytest.MonkeyPatch, agents: int, files: int, processes: int
) -> None:
    """Two cores here; a machine that lets a process open few files has more of them."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert simulate.processes_for(agents) == processes


async def test_a_process_that_does_not_stop_is_killed(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while; the fleet is over then, without an error."""
    monkeypatch.setattr(simulate, "STOP_SECONDS", 0.1)
    asked = {"name": "simulation", "maxUses": 1, "labels": LABELS}
    token = (await fleet.plane.post("/v1/enrollment-tokens", asked))["token"]
    plan = simulate.Plan(directory=str(tmp_path), token=token, name="sim", agents=1)
    others = children()
    async with simulate.running(plan, 1, ended=asyncio.Event()) as running:
        await eventually(lambda: running.progress.connected, what="the agent is connected")
        [worker] = children() - others
        os.kill(worker, signal.SIGSTOP)
    assert worker not in children()
    assert running.failure == "a process of the simulation ended with -9"


def children() -> set[int]:
    """Processes that this one started and that have not ended."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


@pytest.mark.parametrize("named", ["../escape", "a/b", "", ".hidden", "x" * 101, "a b"])
async def test_a_name_is_no_path(tmp_path: Path, named: str) -> None:
    """The hosts are beneath the directory, which is gone afterwards."""
    words = (
        "--token-file",
        "-",
        "--agents",
        "1",
        "--for",
        "1",
        "--name",
        named,
        "--dir",
        str(tmp_path / "fleet"),
    )
    code, _, said = await run("variant-agent", "simulate", *words, stdin="token", ok=False)
    assert code == 1
    assert "--name" in said
    assert list(tmp_path.iterdir()) == []


async def test_a_fleet_runs_itself_and_can_be_stopped_at_once(fleet: Fleet) -> None:
    """Whatever programs are in the working directory; stopped before its processes listen to signals, too."""
    asked = {"name": "short", "maxUses": 5, "labels": LABELS}
    token = fleet.folder / "short"
    token.write_text((await fleet.plane.post("/v1/enrollment-tokens", asked))["token"])
    (fleet.folder / "agent.py").write_text("raise SystemExit('somebody else')")
    for seconds in ("0", "3"):
        words = ("--token-file", str(token), "--agents", "2", "--for", seconds, "--json", "--dir", "hosts")
        child = await asyncio.create_subprocess_exec(
            *(str(BIN / "variant-agent"), "simulate", *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=ENVIRONMENT,
            cwd=fleet.folder,
        )
        async with asyncio.timeout(PATIENCE):
            out, err = await child.communicate()
        assert (child.returncode, err.decode()) == (0, "")
    last = json.loads(out.decode().splitlines()[-1])
    assert (last["agents"], last["connected"]) == (2, 0)
