"""Agents and control planes of two versions meet, in every order of upgrading them.

The earlier version is one of this repository's own history: its code beside the present one, with the same libraries.
Skips where the history is not there, as in a shallow clone.
"""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.arena import Trial, trial_on
from tests.support.fleet import Fleet, Host, Process, running_fleet

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(400)
EARLIER = "01b12fd"
"""Before a spool that heals itself, quarantine, and sessions that tell two processes from one."""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the earlier version."""
    command = ["git", "-C", str(ROOT), "archive", EARLIER, "agent", "control_plane", "shared"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the history of this repository: {done.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    probe = "import agent.app, control_plane.app"
    at = {**os.environ, "PYTHONPATH": str(folder)}
    runs = subprocess.run(
        [sys.executable, "-P", "-c", probe], env=at, capture_output=True, text=True, check=False
    )
    if runs.returncode:
        pytest.skip(
            f"the earlier version needs what is not installed: {runs.stderr.strip().splitlines()[-1]}"
        )
    return folder


def of_version(process: Process, tree: Path | None) -> None:
    """From its next start on, the process runs the code of that tree, or the present one."""
    arguments = process.command[process.command.index("serve" if "serve" in process.command else "run") :]
    package = "control_plane" if arguments[0] == "serve" else "agent"
    path = ["env", f"PYTHONPATH={tree}"] if tree else []
    process.command = [*path, sys.executable, "-P", "-m", package, *arguments]


@asynccontextmanager
async def both_earlier(tmp_path: Path, earlier: Path) -> AsyncIterator[tuple[Fleet, Host, Trial]]:
    """A control plane and a host of the earlier version that have worked together."""
    server = ["env", f"PYTHONPATH={earlier}", sys.executable, "-P", "-m", "control_plane"]
    async with running_fleet(tmp_path, server=server) as fleet:
        host = await fleet.add_host("one", "bot-1", starts=False)
        of_version(host.process, earlier)
        await host.start()
        trial = trial_on(fleet)
        async with trial.oracle.watching():
            await trial.begin()
            await works(trial, host)
            yield fleet, host, trial


async def works(trial: Trial, host: Host) -> None:
    """The two that run now are connected; orders and reports pass between them."""
    await trial.shown(host, "connected", within=150)  # the agent's back-off is what it is in earnest
    await trial.report(host, 5)
    await trial.order(host)
    await trial.settled()


async def restarted(
    fleet: Fleet, host: Host, *, server: Path | None = None, agent: Path | None = None
) -> None:
    """Both run, of these versions; what runs as that version already goes on."""
    for process, tree, start in (
        (fleet.plane.process, server, fleet.plane.start),
        (host.process, agent, host.start),
    ):
        before = list(process.command)
        of_version(process, tree)
        if process.command[:2] != before[:2]:
            assert await process.stop() == 0
            await start()


@pytest.mark.fault(58)
@pytest.mark.parametrize("first", ["control plane", "agent"])
async def test_two_versions_work_together_whichever_is_upgraded_first(
    tmp_path: Path, earlier: Path, first: str
) -> None:
    """And an agent goes back to the earlier version as well: files, orders and reports go on at each step."""
    async with both_earlier(tmp_path, earlier) as (fleet, host, trial):
        await restarted(
            fleet,
            host,
            server=None if first == "control plane" else earlier,
            agent=None if first == "agent" else earlier,
        )
        await works(trial, host)
        await restarted(fleet, host)
        await works(trial, host)
        if first == "agent":
            await restarted(fleet, host, agent=earlier)
            await works(trial, host)


@pytest.mark.fault(58)
async def test_an_earlier_control_plane_leaves_a_later_database_alone(tmp_path: Path, earlier: Path) -> None:
    """It says that the database is of a newer version, and changes nothing of it; the later one goes on."""
    async with running_fleet(tmp_path) as fleet:
        host = await fleet.add_host("one", "bot-1")
        trial = trial_on(fleet)
        async with trial.oracle.watching():
            await trial.begin()
            await works(trial, host)
            present = list(fleet.plane.process.command)
            assert await fleet.plane.process.stop() == 0
            of_version(fleet.plane.process, earlier)
            await fleet.plane.process.start()
            assert fleet.plane.process.child is not None
            assert await fleet.plane.process.child.wait() == 1
            assert "written by a newer variantd" in fleet.plane.process.log.read_text()
            fleet.plane.process.command = present
            await fleet.plane.start()
            await works(trial, host)
