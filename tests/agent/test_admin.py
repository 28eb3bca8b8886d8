"""What the host's administrator may tell the running agent, and that nobody else may."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from agent import __main__ as command_line
from agent import app
from agent.config import load
from tests.support.control_plane import in_background
from tests.support.local import as_user, call
from tests.support.waiting import PATIENCE, eventually

TOKEN = "a token of the local API"


def make_host(folder: Path, *extra: str) -> Path:
    """An agent.toml with one participant."""
    (folder / "bot-1").mkdir(exist_ok=True)
    (folder / "token").write_text(TOKEN)
    lines = ["[agent]", 'local_http = "127.0.0.1:0"', 'socket = "agent.sock"', 'local_token_file = "token"']
    lines += ["[[participants]]", 'id = "bot-1"', 'root = "bot-1"', 'targets = ["SOUL.md"]', *extra]
    path = folder / "agent.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Path]:
    """The agent of a folder, ready; its socket."""
    stop = asyncio.Event()
    async with in_background(app.run(load(folder / "agent.toml"), folder / "state", stop)) as task:
        await eventually(lambda: task.done() or (folder / "state" / "addresses.json").exists())
        if task.done():
            await task
        yield folder / "agent.sock"
        stop.set()
        await asyncio.wait_for(task, PATIENCE)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that other users can pass through; pytest keeps its own to one user."""
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


async def test_a_hold_is_ordered_on_the_socket_and_shown(tmp_path: Path) -> None:
    """As a condition and by itself; the host stays ready, since doing nothing is what it was told."""
    make_host(tmp_path)
    async with running(tmp_path) as socket:
        answer = await call(socket, "/v1/admin/hold", body={"held": True})
        assert (answer.status, answer.body["held"], answer.body["waitingOffers"]) == (200, True, 0)
        status = (await call(socket, "/status")).body
        assert status["hold"] == {"sinceAt": answer.body["sinceAt"], "waitingOffers": 0}
        assert "HOST_HELD" in [condition["code"] for condition in status["conditions"]]
        assert status["ready"]
        answer = await call(socket, "/v1/admin/hold", body={"held": False})
        assert answer.body == {"held": False, "sinceAt": None, "waitingOffers": 0}
        assert (await call(socket, "/status")).body["hold"] is None


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"held"}),
        ({"held": "on"}, {"held"}),
        ({"held": True, "why": "because"}, {"why"}),
        ([], set()),
    ],
)
async def test_a_bad_order_changes_nothing(tmp_path: Path, body: object, fields: set[str]) -> None:
    """Every fault is named by field."""
    make_host(tmp_path)
    async with running(tmp_path) as socket:
        answer = await call(socket, "/v1/admin/hold", body=body)
        assert answer.status == 400
        assert set(answer.faults) == fields
        assert (await call(socket, "/v1/admin/hold", data=b"{")).status == 400
        text = {"Content-Type": "text/plain"}
        assert (await call(socket, "/v1/admin/hold", data=b'{"held": true}', headers=text)).status == 400
        assert (await call(socket, "/status")).body["hold"] is None


async def test_the_local_token_orders_nothing(tmp_path: Path) -> None:
    """It is for applications, on loopback; orders come over the socket."""
    make_host(tmp_path)
    async with running(tmp_path) as socket:
        http = (await eventually(lambda: (tmp_path / "state" / "addresses.json").read_text())).split('"')[3]
        token = {"Authorization": f"Bearer {TOKEN}"}
        report = await call(http, "/v1/impressions", body={}, headers=token)
        assert report.status == 202
        answer = await call(http, "/v1/admin/hold", body={"held": True}, headers=token)
        assert (answer.status, answer.body["reason"]) == (403, "NOT_ADMIN")
        assert (await call(socket, "/status")).body["hold"] is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as another user")
async def test_other_users_order_nothing(reachable: Path) -> None:
    """Not even the one who owns a participant's root."""
    make_host(reachable)
    async with running(reachable) as socket:
        os.chown(reachable / "bot-1", 1234, 1234)
        assert (await as_user(socket, 1234, "/v1/impressions", {}))[0] == 202
        status, problem = await as_user(socket, 1234, "/v1/admin/hold", {"held": True})
        assert (status, problem["reason"]) == (403, "NOT_ADMIN")
        assert (await call(socket, "/status")).body["hold"] is None


async def test_hold_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what happens now; without a running agent it says so."""
    make_host(tmp_path)
    state = ["--state-dir", str(tmp_path / "state")]
    async with running(tmp_path):
        assert await asyncio.to_thread(command_line.run, ["hold", "on", *state]) == 0
        assert "on hold since 20" in capsys.readouterr().out
        assert await asyncio.to_thread(command_line.run, ["hold", "off", *state]) == 0
        assert "not on hold" in capsys.readouterr().out
    assert command_line.run(["hold", "on", *state]) == 1
    assert "no variant-agent is running" in capsys.readouterr().err


async def test_nothing_is_adopted_that_nobody_proposed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says so; an order for some incarnation is refused with what shows the right one."""
    make_host(tmp_path, 'drift = "report"')
    async with running(tmp_path) as socket:
        answer = await call(socket, "/v1/admin/adopt", body={"incarnation": ""})
        assert answer.body == {"adopted": False, "proposal": None}
        refused = await call(socket, "/v1/admin/adopt", body={"incarnation": "nonsense"})
        assert refused.status == 409
        assert "variant-agent adopt" in refused.body["detail"]
        assert (await call(socket, "/v1/admin/adopt", body={"incarnation": 1})).status == 400
        state = str(tmp_path / "state")
        assert await asyncio.to_thread(command_line.run, ["adopt", "--state-dir", state]) == 0
        assert "nothing to adopt" in capsys.readouterr().out
