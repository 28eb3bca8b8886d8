"""What a failure means for the next try: quarantine, another try soon, or a person."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.failures import BACK_OFF
from agent.progress import MOMENT_SECONDS
from shared.model import Offer, OfferedFile, Outcome, ReasonCode, Result, Step, digest
from tests.support.clock import FakeClock
from tests.support.host import OTHER_SLOT, bare_host, make_offer, running_host
from tests.support.waiting import eventually, ticked


def code(outcome: Any) -> ReasonCode | None:
    return outcome.reason and outcome.reason.code


def fetched(*, revision: int = 1) -> Offer:
    """Of content that has to be got first."""
    wanted = OfferedFile(path="soul.md", digest=digest(b"A"), size=1)
    return replace(make_offer({}, revision=revision), files=(wanted,))


PICKY = ("/bin/sh", "-c", "! grep -q bad $0", "{staged}")


async def test_what_the_host_s_check_refused_is_not_checked_again(tmp_path: Path) -> None:
    """By digest and path, in every slot, over a restart, until an offer says retry."""
    async with running_host(tmp_path, check=PICKY) as host:
        bad = await host.apply(make_offer({"soul.md": "bad", "good.md": "good"}))
        assert (code(bad), bad.result, bad.quarantined) == (ReasonCode.CHECK_FAILED, Result.REFUSED, True)
        again = await host.apply(make_offer({"soul.md": "bad"}, slot_id=OTHER_SLOT))
        assert (code(again), again.result, again.step) == (
            ReasonCode.QUARANTINED,
            Result.REFUSED,
            Step.RECEIVED,
        )
        assert again.reason is not None
        assert "CHECK_FAILED" in again.reason.message
        assert (await host.apply(make_offer({"good.md": "good"}, revision=2))).result is Result.APPLIED
        assert code(await host.apply(make_offer({"other.md": "bad"}, revision=3))) is ReasonCode.CHECK_FAILED
        assert [slot.quarantined for slot in host.reconciler.slots()] == [True, False]
        found = host.reconciler.conditions()
        assert [(one.code, one.severity) for one in found] == [("CONTENT_QUARANTINED", "warning")] * 2
        assert all("CHECK_FAILED" in one.message and "retry" in one.message for one in found)
    async with running_host(tmp_path) as host:
        assert code(await host.apply(make_offer({"soul.md": "bad"}, revision=4))) is ReasonCode.QUARANTINED
        outcome = await host.apply(make_offer({"soul.md": "bad"}, revision=5, retry=True))
        assert (outcome.result, outcome.quarantined) == (Result.APPLIED, False)
        assert len(host.reconciler.conditions()) == 1  # of the other slot
        assert code(await host.apply(make_offer({"other.md": "bad"}, revision=6))) is ReasonCode.QUARANTINED


async def test_a_reload_of_the_rules_forgives_everything(tmp_path: Path) -> None:
    """What the host does not allow is quarantined as well; the rules as they are now judge anew."""
    async with running_host(tmp_path, max_bytes=8) as host:
        first = await host.apply(make_offer({"soul.md": "much too long"}))
        assert (code(first), first.quarantined) == (ReasonCode.TOO_LARGE, True)
        assert (
            code(await host.apply(make_offer({"soul.md": "much too long"}, revision=2)))
            is ReasonCode.QUARANTINED
        )
        assert (
            code(await host.apply(make_offer({"no.txt": "x"}, revision=3))) is ReasonCode.TARGET_NOT_ALLOWED
        )
        assert code(await host.apply(make_offer({"no.txt": "x"}, revision=4))) is ReasonCode.QUARANTINED
        await host.reconciler.reconfigure(host.config)
        assert (
            code(await host.apply(make_offer({"soul.md": "much too long"}, revision=5)))
            is ReasonCode.TOO_LARGE
        )


async def test_what_fails_in_passing_is_tried_again_and_then_done(tmp_path: Path) -> None:
    """With a back-off; until then it is in progress, and says why."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock) as host:
        offer = fetched()
        first = await host.apply(offer)
        assert (first.result, first.attempt, code(first)) == (Result.IN_PROGRESS, 1, ReasonCode.IO_ERROR)
        assert host.reconciler.unacknowledged() == ()  # no end of anything
        assert [slot.result for slot in host.reconciler.slots()] == [Result.IN_PROGRESS]
        assert [one.code for one in host.reconciler.conditions()] == ["APPLY_RETRIED"]
        host.reconciler.offer(offer)  # a new session offers it once more: no reason to hurry
        await clock.advance(BACK_OFF[0] - 0.5)
        assert len(host.outcomes) == 1
        host.contents[digest(b"A")] = b"A"
        await ticked(clock, 0.5, lambda: host.outcomes[-1].result is Result.APPLIED)
        assert host.outcomes[-1].attempt == 2
        assert host.reconciler.conditions() == ()


async def test_after_three_tries_it_is_stuck(tmp_path: Path) -> None:
    """Loudly, and for good: only somebody who offers again gets another try."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock) as host:
        await host.apply(fetched())
        await ticked(clock, 5.0, lambda: host.outcomes[-1].result is Result.STUCK)
        stuck = host.outcomes[-1]
        assert [one.attempt for one in host.outcomes if one.reason] == [1, 2, 3]
        assert stuck.reason is not None
        assert stuck.reason.message.endswith("tried 3 times")
        assert host.reconciler.unacknowledged() == (stuck,)
        [condition] = host.reconciler.conditions()
        assert (condition.code, condition.severity) == ("SLOT_STUCK", "error")
        assert "IO_ERROR" in condition.message
        await clock.advance(600)
        assert host.outcomes[-1] is stuck
        host.contents[digest(b"A")] = b"A"
        assert (await host.apply(fetched(revision=2))).result is Result.APPLIED
        assert host.reconciler.conditions() == ()


async def test_a_restart_asks_for_the_offer_that_it_lost(tmp_path: Path) -> None:
    """The content is not on the journal, but the count of tries is."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock) as host:
        await host.apply(fetched())
    async with running_host(tmp_path, clock=clock) as host:
        [slot] = host.reconciler.slots()
        assert (slot.result, slot.revision) == (Result.IN_PROGRESS, 1)
        assert (await host.apply(fetched())).attempt == 2


@pytest.mark.fault(48)
async def test_a_reload_that_takes_too_long_is_tried_three_times(tmp_path: Path) -> None:
    """Each time the content before is put back, and the application told so."""
    clock = FakeClock()
    script = f"echo run >> {tmp_path}/runs; if grep -q B soul.md; then sleep 600; fi"
    async with running_host(tmp_path, clock=clock, reload=("/bin/sh", "-c", script)) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        host.reconciler.offer(make_offer({"soul.md": "B"}, revision=2))

        def stuck() -> bool:
            return host.outcomes[-1].result is Result.STUCK

        await ticked(clock, 5.0, stuck)
        assert (host.outcomes[-1].attempt, code(host.outcomes[-1])) == (3, ReasonCode.RELOAD_FAILED)
        assert not host.outcomes[-1].quarantined
        assert host.text("soul.md") == "A"
        assert (tmp_path / "runs").read_text().split() == ["run"] * 7


@pytest.mark.fault(48)
async def test_a_reload_that_ends_the_agent_is_no_loop(tmp_path: Path) -> None:
    """The hook is owed at every start, until it has stopped the agent too often: then the content goes back."""
    killer = tmp_path / "kills"
    reload = ("/bin/sh", "-c", f"test -e {killer} && touch {tmp_path}/began && exec sleep 600; true")
    async with running_host(tmp_path, reload=reload) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        killer.touch()
        host.reconciler.offer(make_offer({"soul.md": "B"}, revision=2))
        await eventually((tmp_path / "began").exists)
    (tmp_path / "began").unlink()
    starts = 0
    while True:
        starts += 1
        assert starts < 12
        ended = await started_and_stopped(tmp_path, reload)
        if ended is not None:
            break
    assert (ended.result, code(ended)) == (Result.ROLLED_BACK, ReasonCode.RELOAD_FAILED)
    assert (tmp_path / "root" / "soul.md").read_text() == "A"
    assert starts > 3


async def started_and_stopped(directory: Path, reload: tuple[str, ...]) -> Outcome | None:
    """What a start said; None where it was cut off while it ran its hook, as if that had stopped it."""
    host = bare_host(directory, reload=reload)
    starting = asyncio.ensure_future(host.reconciler.start())
    began = directory / "began"
    hook = asyncio.ensure_future(eventually(began.exists))
    await asyncio.wait([starting, hook], return_when=asyncio.FIRST_COMPLETED)
    for task in (starting, hook):
        task.cancel()
    await asyncio.gather(starting, hook, return_exceptions=True)
    began.unlink(missing_ok=True)
    return host.outcomes[-1] if host.outcomes else None


async def test_what_takes_its_time_is_told_while_it_does(tmp_path: Path) -> None:
    """The step it is at, once for each that lasts; what is quick is told by its end alone."""
    clock = FakeClock()
    go = tmp_path / "go"
    os.mkfifo(go)
    async with running_host(tmp_path, clock=clock, check=("/bin/sh", "-c", f"cat {go}")) as host:
        host.reconciler.offer(make_offer({"soul.md": "A"}))
        checking = await reader_of(go)
        await ticked(clock, 0.5, lambda: host.outcomes)
        await clock.advance(3 * MOMENT_SECONDS)
        assert [(one.step, one.result) for one in host.outcomes] == [(Step.STAGED, Result.IN_PROGRESS)]
        assert (host.outcomes[0].files, host.reconciler.unacknowledged()) == ((), ())
        os.close(checking)
        await eventually(lambda: len(host.outcomes) == 2)
        assert (host.outcomes[1].step, host.outcomes[1].result) == (Step.SWAPPED, Result.APPLIED)
    async with running_host(tmp_path) as quick:
        await quick.apply(make_offer({"soul.md": "B"}, revision=2))
        assert len(quick.outcomes) == 1


async def test_what_takes_long_is_told_ever_more_seldom(tmp_path: Path) -> None:
    """After each word the pause is twice as long: a second step is not told before that has passed."""
    clock = FakeClock()
    gates = [tmp_path / "check", tmp_path / "hook"]
    for gate in gates:
        os.mkfifo(gate)
    check, hook = (("/bin/sh", "-c", f"cat {gate}") for gate in gates)
    async with running_host(tmp_path, clock=clock, check=check, reload=hook) as host:
        host.reconciler.offer(make_offer({"soul.md": "A"}))
        checking = await reader_of(gates[0])
        await ticked(clock, 0.5, lambda: host.outcomes)
        os.close(checking)
        hooking = await reader_of(gates[1])
        await clock.advance(2 * MOMENT_SECONDS - 0.5)
        assert [one.step for one in host.outcomes] == [Step.STAGED]
        await ticked(clock, 0.5, lambda: len(host.outcomes) > 1)
        assert (host.outcomes[1].step, host.outcomes[1].result) == (Step.RELOAD_OWED, Result.IN_PROGRESS)
        os.close(hooking)
        await eventually(lambda: len(host.outcomes) == 3)
        assert host.outcomes[2].result is Result.APPLIED


async def reader_of(fifo: Path) -> int:
    """Somebody reads the FIFO, and goes on once this descriptor is closed."""
    return await eventually(lambda: os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
