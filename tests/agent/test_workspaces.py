"""What one user does to a workspace stops no agent, which has those of others."""

import asyncio
import os
from pathlib import Path

from shared.model import Result, ViewState
from tests.agent.test_reload import running, write_config
from tests.support.host import make_offer, running_host
from tests.support.local import call
from tests.support.waiting import eventually


async def test_a_root_that_is_a_loop_is_its_own_trouble(tmp_path: Path) -> None:
    """A user puts a link to itself in the place of the workspace: a hangup is survived."""
    hangup = asyncio.Event()
    write_config(tmp_path, "bot-1", "bot-2")
    async with running(tmp_path, hangup) as agent:
        (tmp_path / "bot-2").rmdir()
        (tmp_path / "bot-2").symlink_to("bot-2")
        hangup.set()
        await eventually(lambda: not hangup.is_set())
        assert (await call(agent, "/v1/admin/reload", body={})).status == 200


async def test_a_root_that_cannot_be_looked_at_is_its_own_trouble(tmp_path: Path) -> None:
    """A closed home, a dead mount, a link to what can have no name: the agent starts, and serves the others."""
    write_config(tmp_path, "bot-1", "bot-2")
    (tmp_path / "bot-2").rmdir()
    (tmp_path / "bot-2").symlink_to("n" * 300)
    async with running(tmp_path) as agent:
        answer = await call(agent, "/v1/impressions", body={"participantId": "bot-1"})
        assert answer.status == 202


async def test_a_deep_workspace_is_its_own_trouble(tmp_path: Path) -> None:
    """1,500 directories within one another below a `**`: the agent starts."""
    top = tmp_path / "root" / "deep"
    top.mkdir(parents=True)
    here = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    try:
        async with running_host(tmp_path) as host:
            assert (await host.apply(make_offer({"soul.md": "A"}))).result is Result.APPLIED
    finally:
        process = await asyncio.create_subprocess_exec("rm", "-rf", str(top))
        await process.wait()


async def test_a_huge_file_is_its_own_trouble(tmp_path: Path) -> None:
    """`truncate -s 8T` costs its owner nothing: it is drift, and nobody reads it to the end."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        os.truncate(host.root / "soul.md", 8 << 40)
        looking = asyncio.create_task(host.reconciler.look_around())
        ended, _ = await asyncio.wait({looking}, timeout=10)
        os.truncate(host.root / "soul.md", 1)
        await looking
        assert ended
        assert any(view.state is ViewState.DRIFTED and view.digest is None for view in host.views)
