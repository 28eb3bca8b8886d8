"""A health window: what is in place has to prove itself, or is taken back; over restarts, holds and newer offers."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig
from shared.model import OfferAction, Outcome, ReasonCode, Result, Step, ViewState, digest
from tests.support.application import Application, application
from tests.support.clock import FakeClock
from tests.support.host import OTHER_SLOT, Host, make_config, make_end, make_offer, running_host
from tests.support.waiting import PATIENCE, eventually, ticked

A, B = digest(b"A"), digest(b"B")


async def outcomes(host: Host, clock: FakeClock, count: int, step: float = 2.0) -> list[Outcome]:
    """What the host has said once it has said so much, time going on meanwhile."""
    await ticked(clock, step, lambda: len(host.outcomes) >= count)
    return host.outcomes


def shown(one: Outcome) -> tuple[Step, Result]:
    return one.step, one.result


@pytest.mark.fault(49)
async def test_what_stays_healthy_is_confirmed_after_its_window(tmp_path: Path) -> None:
    """Applied at once, and said to be on probation; confirmed no sooner than the window is over."""
    clock = FakeClock()
    async with application() as app, running_host(tmp_path, clock=clock, probe=app.probe()) as host:
        applied = await host.apply(make_offer({"soul.md": "A"}, revision=4))
        assert (applied.result, applied.confirming) == (Result.APPLIED, True)
        started = clock.now()
        _, confirmed = await outcomes(host, clock, 2)
        assert clock.now() - started >= 60_000_000
        assert shown(confirmed) == (Step.CONFIRMED, Result.CONFIRMED)
        assert (confirmed.revision, confirmed.attempt, confirmed.confirming) == (4, 1, False)
        assert [(file.desired, file.running) for file in confirmed.files] == [(A, A)]
        assert confirmed.durations.probe >= 60_000
        assert app.asked >= 5
        assert host.reconciler.unacknowledged() == (applied, confirmed)
        # The same again is done already, and needs no other window.
        assert await host.apply(make_offer({"soul.md": "A"}, revision=4)) == confirmed
        again = await host.apply(make_offer({"soul.md": "A"}, revision=5))
        assert (again.result, again.confirming) == (Result.APPLIED, False)


@pytest.mark.fault(49)
@pytest.mark.parametrize("status", [500, 302, 0])
async def test_what_makes_it_unwell_is_taken_back(tmp_path: Path, status: int) -> None:
    """The content before is there again, the application has read it, and the content is in quarantine."""
    clock = FakeClock()
    reload = ("/bin/sh", "-c", f"cat soul.md >> {tmp_path}/reloads")
    async with (
        application() as app,
        running_host(tmp_path, clock=clock, probe=app.probe(), reload=reload) as host,
    ):
        await host.apply(make_offer({"soul.md": "A"}))
        await outcomes(host, clock, 2)
        app.status = status
        await host.apply(make_offer({"soul.md": "B", "config/new.md": "B"}, revision=2))
        back = (await outcomes(host, clock, 4))[3]
        assert shown(back) == (Step.CONFIRMED, Result.ROLLED_BACK)
        assert back.reason is not None
        assert back.reason.code is ReasonCode.PROBE_FAILED
        assert back.quarantined
        assert {f.path: (f.desired, f.running, f.previous) for f in back.files} == {
            "soul.md": (B, A, A),
            "config/new.md": (B, None, None),
        }
        assert (host.text("soul.md"), host.text("config/new.md")) == ("A", None)
        assert (tmp_path / "reloads").read_text() == "ABA"
        assert [(v.path, v.digest, v.state) for v in host.views[-2:]] == [
            ("soul.md", A, ViewState.APPLIED),
            ("config/new.md", None, ViewState.UNMANAGED),
        ]
        assert host.leftovers() == []
        refused = await host.apply(make_offer({"soul.md": "B"}, revision=3))
        assert (refused.reason and refused.reason.code, refused.quarantined) == (ReasonCode.QUARANTINED, True)
        app.status = 200
        assert (
            await host.apply(make_offer({"soul.md": "B"}, revision=4, retry=True))
        ).result is Result.APPLIED


async def test_a_moment_of_illness_is_forgiven(tmp_path: Path) -> None:
    """Two asks in a row without a right answer are not three, and an application may take a moment to come back."""
    clock = FakeClock()
    async with application() as app, running_host(tmp_path, clock=clock, probe=app.probe()) as host:
        app.status = 503
        await host.apply(make_offer({"soul.md": "A"}))
        await eventually(lambda: app.asked == 1)
        await ticked(clock, 1.0, lambda: app.asked == 2)
        app.status = 200
        assert shown((await outcomes(host, clock, 2))[1]) == (Step.CONFIRMED, Result.CONFIRMED)


@pytest.mark.fault(49)
async def test_a_restart_goes_on_with_what_is_left_of_the_window(tmp_path: Path) -> None:
    """Whether it ends well or not; a clock that was set meanwhile makes it no longer than the whole."""
    clock = FakeClock()
    async with application() as app:
        async with running_host(tmp_path, clock=clock, probe=app.probe()) as host:
            (host.root / "soul.md").write_text("mine")
            await host.apply(make_offer({"soul.md": "A"}))
            await eventually(lambda: app.asked)
        clock.jump(-86_400)
        async with running_host(tmp_path, clock=clock, probe=app.probe()) as host:
            assert host.text("soul.md") == "A"
            began = clock.monotonic()
            await outcomes(host, clock, 1)
            # Time goes on while the host writes its end, so that there is no telling by how much; it is not by a day.
            assert 60 <= clock.monotonic() - began < 3_600
            assert host.outcomes[0].result is Result.CONFIRMED
            await host.apply(make_offer({"soul.md": "B"}, revision=2))
        app.status = 500
        async with running_host(tmp_path, clock=clock, probe=app.probe()) as host:
            assert shown((await outcomes(host, clock, 1))[0]) == (Step.CONFIRMED, Result.ROLLED_BACK)
            assert host.text("soul.md") == "A"
        async with running_host(tmp_path, clock=clock, probe=app.probe()) as host:
            quarantined = await host.apply(make_offer({"soul.md": "B"}, revision=3))
            assert quarantined.reason is not None
            assert quarantined.reason.code is ReasonCode.QUARANTINED  # it outlives the process
            await host.apply(make_end(OfferAction.RESTORE, "soul.md", revision=4))
            assert host.text("soul.md") == "mine"


async def test_a_newer_offer_takes_the_window_s_place(tmp_path: Path) -> None:
    """It is confirmed by itself; what it replaced is not heard of again."""
    clock = FakeClock()
    async with application() as app, running_host(tmp_path, clock=clock, probe=app.probe()) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        await eventually(lambda: app.asked)
        await host.apply(make_offer({"soul.md": "B"}, revision=2))
        third = (await outcomes(host, clock, 3))[2]
        assert (shown(third), third.revision) == ((Step.CONFIRMED, Result.CONFIRMED), 2)
        await clock.advance(120)
        assert len(host.outcomes) == 3


async def test_an_offer_that_was_refused_ends_no_window(tmp_path: Path) -> None:
    """What is in place goes on proving itself, and is told of under its own revision."""
    clock = FakeClock()
    async with application() as app, running_host(tmp_path, clock=clock, probe=app.probe()) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        refused = await host.apply(make_offer({"other.txt": "B"}, revision=2))
        assert refused.result is Result.REFUSED
        app.status = 500
        back = (await outcomes(host, clock, 3))[2]
        assert (shown(back), back.revision) == ((Step.CONFIRMED, Result.ROLLED_BACK), 1)
        assert host.text("soul.md") is None
        [slot] = host.reconciler.slots()
        assert slot.revision == 2


async def test_a_host_on_hold_takes_nothing_back(tmp_path: Path) -> None:
    """Nothing is written; once the hold is over, the application is asked again."""
    clock = FakeClock()
    async with application() as app, running_host(tmp_path, clock=clock, probe=app.probe()) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        await host.reconciler.hold()
        app.status = 500
        await ticked(clock, 2.0, lambda: app.asked >= 6)
        assert (host.text("soul.md"), len(host.outcomes)) == ("A", 1)
        await host.reconciler.release()
        assert (await outcomes(host, clock, 2))[1].result is Result.ROLLED_BACK


async def test_a_host_without_a_probe_any_more_asks_nobody(tmp_path: Path) -> None:
    """A reload of agent.toml took it away: what is applied stays applied."""
    clock = FakeClock()
    async with application() as app, running_host(tmp_path, clock=clock, probe=app.probe()) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        await eventually(lambda: app.asked)
        await host.reconciler.reconfigure(without_probe(host))
        await clock.advance(120)
        assert [one.result for one in host.outcomes] == [Result.APPLIED]
        [slot] = host.reconciler.status()
        assert slot["result"] == "applied"


def without_probe(host: Host) -> AgentConfig:
    config = host.config
    return replace(config, participants=tuple(replace(p, probe=None) for p in config.participants))


@pytest.mark.fault(50)
async def test_a_rollback_that_fails_is_stuck_and_no_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once, loudly; both reasons are there, and nothing tries again by itself."""
    clock = FakeClock()
    async with application() as app, running_host(tmp_path, clock=clock, probe=app.probe()) as host:
        (host.root / "soul.md").write_text("mine")
        await host.apply(make_offer({"soul.md": "A"}))
        app.status = 500

        def refuse(*args: Any, **values: Any) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("os.rename", refuse)
        monkeypatch.setattr("os.replace", refuse)
        stuck = (await outcomes(host, clock, 2))[1]
        assert shown(stuck) == (Step.CONFIRMED, Result.STUCK)
        assert stuck.reason is not None
        assert "health probe" in stuck.reason.message
        assert "could not be put back" in stuck.reason.message
        assert (host.text("soul.md"), stuck.quarantined) == ("A", True)
        monkeypatch.undo()
        await clock.advance(300)
        assert (len(host.outcomes), host.text("soul.md")) == (2, "A")
        assert "SLOT_STUCK" in [one.code for one in host.reconciler.conditions()]
        outcome = await host.apply(make_end(OfferAction.RESTORE, "soul.md", revision=2))
        assert (outcome.result, host.text("soul.md")) == (Result.APPLIED, "mine")


async def test_an_application_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    """No answer within five seconds is none."""
    clock = FakeClock()
    silent: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: silent.append(writer), "127.0.0.1", 0)
    try:
        app = Application(port=server.sockets[0].getsockname()[1])
        async with running_host(tmp_path, clock=clock, probe=app.probe()) as host:
            await host.apply(make_offer({"soul.md": "A"}))
            back = (await outcomes(host, clock, 2, step=1.0))[1]
            assert back.result is Result.ROLLED_BACK
            assert back.reason is not None
            assert "did not answer within 5 seconds" in back.reason.message
    finally:
        server.close()
        for writer in silent:
            writer.close()


@pytest.mark.parametrize("decision", ["hold", "removed"])
async def test_what_the_host_decides_while_a_window_waits_counts(tmp_path: Path, decision: str) -> None:
    """The third ask failed while another slot's reload ran: what the host says meanwhile comes before the way back."""
    clock, begun, go = FakeClock(), tmp_path / "begun", tmp_path / "go"
    reload = ("sh", "-c", "touch ../begun; until test -e ../go; do :; done")
    async with (
        application() as well,
        running_host(tmp_path, clock=clock, probe=well.probe(), reload=reload) as host,
    ):
        (host.root / "soul.md").write_text("mine")
        go.touch()
        await host.apply(make_offer({"soul.md": "A"}))
        go.unlink()
        begun.unlink()
        well.status = 500
        host.reconciler.offer(make_offer({"two.md": "B"}, slot_id=OTHER_SLOT))
        await eventually(begun.exists)
        waiters = lambda: len(host.reconciler._locks["bot-1"]._waiters or ())  # noqa: E731
        deciding: asyncio.Task[None] | None = None
        if decision == "removed":
            deciding = asyncio.create_task(host.reconciler.reconfigure(make_config(tmp_path)))
            await eventually(lambda: waiters() == 1)
        before = waiters()
        await ticked(clock, 1.0, lambda: waiters() > before)
        if decision == "hold":
            await host.reconciler.hold()
        asked = well.asked
        go.touch()
        if deciding is not None:
            await asyncio.wait_for(deciding, PATIENCE)
        await eventually(lambda: not waiters() and host.reconciler.settled())
        if decision == "hold":
            await ticked(clock, 1.0, lambda: well.asked > asked + 2 or host.text("soul.md") != "A")
        else:  # whatever it does, it does before the lock is anybody else's
            async with asyncio.timeout(PATIENCE), host.reconciler._locks["bot-1"]:
                pass
        assert host.text("soul.md") == "A"
