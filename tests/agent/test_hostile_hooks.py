"""Commands of the host that end the agent, leave their process group, or want all memory."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.failures import ATTEMPTS
from agent.policy import Refused
from shared.model import DriftPolicy, OfferedFile, Outcome, ReasonCode, Result, digest
from tests.support.clock import FakeClock
from tests.support.host import OTHER_SLOT, Host, bare_host, make_offer, running_host
from tests.support.privileged import mounted
from tests.support.waiting import eventually

ENDS = "grep -q bad $0 || exit 0; touch {began}; exec sleep 600"
"""What stands for a check that ends the agent: the host is stopped while it runs."""


def ending(directory: Path) -> tuple[str, ...]:
    return ("/bin/sh", "-c", ENDS.format(began=directory / "began"), "{staged}")


async def stopped_in_check(directory: Path, host: Host) -> Outcome | None:
    """What became of an offer of bad content; None where its check was begun, of which nobody saw the end."""
    began = directory / "began"
    host.reconciler.offer(make_offer({"soul.md": "bad"}))
    await eventually(lambda: began.exists() or host.outcomes)
    began.unlink(missing_ok=True)
    return host.outcomes[-1] if host.outcomes else None


@pytest.mark.fault(48)
async def test_a_check_that_ends_the_agent_is_begun_three_times(tmp_path: Path) -> None:
    """Then its content is in quarantine, over restarts and in a preflight too, until somebody says retry."""
    for _ in range(ATTEMPTS):
        async with running_host(tmp_path, clock=FakeClock(), check=ending(tmp_path)) as host:
            assert await stopped_in_check(tmp_path, host) is None
    async with running_host(tmp_path, clock=FakeClock(), check=ending(tmp_path)) as host:
        outcome = await stopped_in_check(tmp_path, host)
        assert outcome is not None
        assert outcome.reason is not None
        assert (outcome.result, outcome.reason.code, outcome.quarantined) == (
            Result.REFUSED,
            ReasonCode.CHECK_FAILED,
            True,
        )
        assert "stopped 3 times" in outcome.reason.message
        assert (host.text("soul.md"), host.leftovers()) == (None, [])
        assert (await host.apply(make_offer({"soul.md": "good"}, revision=2))).result is Result.APPLIED
    async with running_host(tmp_path, clock=FakeClock(), check=ending(tmp_path)) as host:
        with pytest.raises(Refused, match="stopped 3 times"):
            await host.reconciler.judge("bot-1", offered("bad"))
        host.reconciler.offer(make_offer({"soul.md": "bad"}, revision=3, slot_id=OTHER_SLOT, retry=True))
        await eventually((tmp_path / "began").exists)


@pytest.mark.fault(48)
async def test_a_check_that_ends_the_agent_in_a_preflight_is_begun_three_times(tmp_path: Path) -> None:
    """No slot knows of it, and yet it is no loop; a question that is dropped counts for nothing."""
    began = tmp_path / "began"
    async with running_host(tmp_path, clock=FakeClock(), check=ending(tmp_path)) as host:
        for _ in range(ATTEMPTS + 1):
            asking = asyncio.ensure_future(host.reconciler.judge("bot-1", offered("bad")))
            await eventually(began.exists)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            began.unlink()
    checks = tmp_path / "state" / "checks"
    kept = None
    for _ in range(ATTEMPTS):
        async with running_host(tmp_path, clock=FakeClock(), check=ending(tmp_path)) as host:
            asking = asyncio.ensure_future(host.reconciler.judge("bot-1", offered("bad")))
            await eventually(began.exists)
            kept = {path: path.read_bytes() for path in checks.iterdir()}
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            began.unlink()
        for path, content in kept.items():  # as a kill would have left it
            path.write_bytes(content)
    async with running_host(tmp_path, clock=FakeClock(), check=ending(tmp_path)) as host:
        with pytest.raises(Refused, match="stopped 3 times"):
            await host.reconciler.judge("bot-1", offered("bad"))
        assert not began.exists()
        await host.reconciler.reconfigure(host.config)  # the rules may be others now
        asking = asyncio.ensure_future(host.reconciler.judge("bot-1", offered("bad")))
        await eventually(began.exists)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


def offered(text: str) -> OfferedFile:
    content = text.encode()
    return OfferedFile(path="soul.md", digest=digest(content), size=len(content), content=content)


@pytest.mark.fault(47)
async def test_a_record_of_checks_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    """It counts anew; one that cannot be written refuses the content, and no check is run."""
    (tmp_path / "state" / "checks").mkdir(parents=True)
    (tmp_path / "state" / "checks" / "bot-1.json").write_bytes(b"\x00[")
    async with running_host(tmp_path, check=ending(tmp_path)) as host:
        assert (await host.apply(make_offer({"soul.md": "good"}))).result is Result.APPLIED
    (tmp_path / "state" / "checks" / "bot-1.json").unlink(missing_ok=True)
    (tmp_path / "state" / "checks").rmdir()
    (tmp_path / "state" / "checks").write_text("no directory")
    async with running_host(tmp_path, clock=FakeClock(), check=ending(tmp_path)) as host:
        outcome = await host.apply(make_offer({"soul.md": "fine"}, revision=2))
        assert outcome.reason is not None
        assert (outcome.result, outcome.reason.code) == (Result.IN_PROGRESS, ReasonCode.IO_ERROR)


@pytest.mark.fault(48)
async def test_what_left_the_process_group_is_killed_as_well(tmp_path: Path) -> None:
    """A process in a session of its own, whose parent is gone, ends with its command at the limit."""
    clock = FakeClock()
    orphan = f"setsid sh -c 'echo $$ > {tmp_path}/pid; mv {tmp_path}/pid {tmp_path}/child; exec sleep 600'"
    check = ("/bin/sh", "-c", f"({orphan} &) ; exec sleep 600", "{staged}")
    async with running_host(tmp_path, clock=clock, check=check) as host:
        host.reconciler.offer(make_offer({"soul.md": "A"}))
        child = await eventually(lambda: (tmp_path / "child").read_text().strip())
        await eventually(lambda: clock.sleeping)
        await clock.advance(30)
        await eventually(lambda: next((one for one in host.outcomes if one.reason), None))
        stat = Path(f"/proc/{child}/stat")
        await eventually(lambda: not stat.exists() or stat.read_text().split()[2] == "Z")


@pytest.mark.fault(48, 53)
async def test_the_kernel_takes_a_command_s_memory_before_the_agent_s(tmp_path: Path) -> None:
    """Where memory runs out, the command is what is killed first."""
    waits = "until [ $(cat /proc/self/oom_score_adj) = 1000 ]; do :; done"
    async with running_host(tmp_path, check=("/bin/sh", "-c", waits)) as host:
        assert (await host.apply(make_offer({"soul.md": "A"}))).result is Result.APPLIED


async def test_a_repair_s_reload_that_ends_the_agent_is_no_loop(tmp_path: Path) -> None:
    """It is run at so many starts, then no more, and a condition says why."""
    (tmp_path / "root").mkdir()
    began, ends = tmp_path / "began", tmp_path / "ends"
    script = f"echo run >> {tmp_path}/runs; test -e {ends} || exit 0; touch {began}; exec sleep 600"
    rules: dict[str, Any] = {"drift": DriftPolicy.REPAIR, "reload": ("/bin/sh", "-c", script)}
    async with running_host(tmp_path, **rules) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        ends.touch()
        (host.root / "soul.md").write_text("edited")
        looking = asyncio.ensure_future(host.reconciler.observed("bot-1", "soul.md"))
        await eventually(began.exists)
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    for _ in range(ATTEMPTS - 1):
        began.unlink()
        host = bare_host(tmp_path, **rules)
        starting = asyncio.ensure_future(host.reconciler.start())
        await eventually(began.exists)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
    began.unlink()
    async with running_host(tmp_path, **rules) as host:
        [condition] = host.reconciler.conditions()
        assert condition.code == "REPAIR_FAILED"
        assert "stopped 3 times" in condition.message
    assert not began.exists()
    assert len((tmp_path / "runs").read_text().split()) == 1 + ATTEMPTS


async def test_output_that_cannot_be_kept_stops_no_agent(tmp_path: Path) -> None:
    """What a check said is lost, what it decided is told, and the reconciler lives."""
    host = bare_host(tmp_path, check=("sh", "-c", "echo no; exit 1"))
    (host.state_dir / "output").write_text("no directory")
    await host.reconciler.start()
    working = asyncio.create_task(host.reconciler.run())
    host.reconciler.offer(make_offer({"soul.md": "A"}))
    try:
        await eventually(lambda: host.outcomes or working.done())
        assert not working.done()
        assert host.outcomes[-1].reason is not None
        assert host.outcomes[-1].reason.code is ReasonCode.CHECK_FAILED
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def test_a_reload_that_fails_on_a_full_disk_is_a_condition(tmp_path: Path) -> None:
    """A repair is made, its reload fails, and there is no room for what it said: nothing is raised."""
    (tmp_path / "state").mkdir()
    reload = ("sh", "-c", "test -e ../well || { echo no; exit 1; }")
    with mounted("-t", "tmpfs", "-o", "size=256k", "tmpfs", at=tmp_path / "state"):
        async with running_host(tmp_path, drift=DriftPolicy.REPAIR, reload=reload) as host:
            (tmp_path / "well").touch()
            await host.apply(make_offer({"soul.md": "A"}))
            (tmp_path / "well").unlink()
            with (
                (host.state_dir / "other").open("ab", buffering=0) as file,
                pytest.raises(OSError, match="No space"),
            ):
                while True:
                    file.write(bytes(4096))
            (host.root / "soul.md").write_text("edited")
            await host.reconciler.observed("bot-1", "soul.md")
            assert host.text("soul.md") == "A"
            assert "REPAIR_FAILED" in [one.code for one in host.reconciler.conditions()]
