"""Agents and control planes of two versions meet, in every order of upgrading them.

The earlier version is one of this repository's own history: its code beside the present one, with the same libraries.
Skips where the history is not there, as in a shallow clone.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support import postgres
from tests.support.arena import Trial, trial_on
from tests.support.fleet import ControlPlane, Fleet, Host, Process, run, running_fleet
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(400)
EARLIER = "01b12fd"
"""Before a spool that heals itself, quarantine, and sessions that tell two processes from one."""


REPLICATED = "a7e5613"
"""Runs several servers over one database; the schema has changed twice since."""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the earlier version."""
    return code_of(EARLIER, tmp_path_factory.mktemp("earlier"))


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the earlier version that runs over PostgreSQL."""
    return code_of(REPLICATED, tmp_path_factory.mktemp("replicated"))


def code_of(version: str, folder: Path) -> Path:
    """The folder has the code of that version, which runs with the libraries that are here."""
    command = ["git", "-C", str(ROOT), "archive", version, "agent", "control_plane", "shared"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the history of this repository: {done.stderr.decode().strip()}")
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
    async with running_fleet(tmp_path, server=running(earlier)) as fleet:
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


@pytest.mark.fault(58)
async def test_servers_are_upgraded_one_after_the_other_over_one_database(
    tmp_path: Path, replicated: Path
) -> None:
    """The schema comes first: earlier servers go on over it, beside later ones; none that starts then touches it."""
    url = postgres.url_of(tmp_path)
    with psycopg.connect(url, autocommit=True) as database:
        database.execute("drop schema public cascade; create schema public")
    settings = tmp_path / "variantd.toml"
    settings.write_text(f'ca_key_file = "{tmp_path / "authority.pem"}"\n')
    over = ("--config", str(settings), "--database", url)
    async with running_fleet(tmp_path, *over, server=running(replicated)) as fleet:
        host = await fleet.add_host("one", "bot-1")
        trial = trial_on(fleet)
        async with trial.oracle.watching():
            await trial.begin()
            await passes(trial, host, 5)
            _, printed, _ = await run(
                "variantd", "migrate", "--data-dir", str(fleet.plane.data), "--database", url
            )
            assert "0035_retention" in printed
            await passes(trial, host, 10)
            late = beside(fleet, "late", running(replicated), over)
            await late.process.start()
            assert late.process.child is not None
            assert await late.process.child.wait() == 1
            assert "written by a newer variantd" in late.process.log.read_text()
            present = beside(fleet, "present", running(None), over)
            try:
                await present.start()
                shutil.copy(fleet.plane.data / "operator.api-key", present.data)
                for asked, reports in ((present, 15), (fleet.plane, 20)):  # the host is at the earlier one
                    trial.post, trial.get = asked.post, asked.get
                    await passes(trial, host, reports)
                assert await fleet.plane.process.stop() == 0
                of_version(fleet.plane.process, None)
                await fleet.plane.start()
                await passes(trial, host, 25)
            finally:
                stopped = await present.process.stop()
            assert stopped == 0
    postgres.drop(tmp_path)


async def passes(trial: Trial, host: Host, reports: int) -> None:
    """An order reaches the host, and so many reports altogether are counted."""
    await trial.shown(host, "connected", within=150)
    await trial.report(host, 5)
    await trial.order(host)
    await trial.oracle.converged()

    async def counted() -> bool:
        found = (await trial.get("/v1/experiments/arena/results"))["variants"]
        return sum(variant["impressions"] for variant in found) == reports

    await eventually(counted, what=f"{reports} reports are counted")


def running(tree: Path | None) -> list[str]:
    """How the control plane of that tree is run, or the present one."""
    path = ["env", f"PYTHONPATH={tree}"] if tree else []
    return [*path, sys.executable, "-P", "-m", "control_plane"]


def beside(fleet: Fleet, name: str, server: Sequence[str], over: Sequence[str]) -> ControlPlane:
    """One more server, that has not started."""
    data = fleet.folder / name
    ports = (word for port in ("http", "operator", "agents") for word in (f"--{port}", "127.0.0.1:0"))
    command = [*server, "serve", *over, "--data-dir", str(data), *ports]
    return ControlPlane(
        data=data, process=Process(command=command, log=data.with_suffix(".log")), http=fleet.plane.http
    )
