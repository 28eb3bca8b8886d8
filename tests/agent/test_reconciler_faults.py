"""What a host can do to an apply: full disks, immutable files, hooks cut short, roots that are not there."""

from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import AgentConfig
from shared.model import OfferAction, Outcome, ReasonCode, Result, Step, ViewState, digest
from tests.support.clock import FakeClock
from tests.support.host import make_end, make_offer, make_participant, running_host
from tests.support.privileged import immutable, mounted, run_or_skip
from tests.support.waiting import eventually, ticked

RESTORE = OfferAction.RESTORE


def code(outcome: Outcome) -> ReasonCode | None:
    """Why it did not end well."""
    return outcome.reason.code if outcome.reason else None


@pytest.mark.fault(11)
async def test_a_full_disk_leaves_both_files_and_no_leftover(tmp_path: Path) -> None:
    """The second file does not fit: nothing changes, and it is applied once there is room."""
    (tmp_path / "root").mkdir()
    clock = FakeClock()
    with mounted("-t", "tmpfs", "-o", "size=64k", "none", at=tmp_path / "root"):
        async with running_host(tmp_path, clock=clock) as host:
            (host.root / "a.md").write_text("mine")
            (host.root / "filler").write_bytes(b"x" * 20_000)
            outcome = await host.apply(make_offer({"a.md": "A", "b.md": "B" * 40_000}))
            assert (outcome.result, outcome.step) == (Result.IN_PROGRESS, Step.ALLOWED)
            assert outcome.reason is not None
            assert outcome.reason.code is ReasonCode.NO_SPACE
            assert (host.text("a.md"), host.text("b.md"), host.leftovers()) == ("mine", None, [])
            (host.root / "filler").unlink()
            await ticked(clock, 1.0, lambda: host.outcomes[-1].result is Result.APPLIED)
            assert host.outcomes[-1].attempt == 2
            await host.apply(make_end(RESTORE, "a.md", "b.md", revision=2))
            assert (host.text("a.md"), host.text("b.md")) == ("mine", None)


@pytest.mark.fault(11)
async def test_a_full_state_directory_refuses_before_anything_changes(tmp_path: Path) -> None:
    """Without a journal there is no apply; the outcome is owed in memory until there is room again."""
    (tmp_path / "state").mkdir()
    clock = FakeClock()
    with mounted("-t", "tmpfs", "-o", "size=32k", "none", at=tmp_path / "state"):
        async with running_host(tmp_path, clock=clock) as host:
            (host.root / "soul.md").write_text("mine")
            filler = tmp_path / "state" / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"x" * 1024)
                except OSError:
                    pass
            first = await host.apply(make_offer({"soul.md": "A"}))
            assert first.result is Result.IN_PROGRESS
            await ticked(clock, 5.0, lambda: host.outcomes[-1].result is Result.STUCK)
            outcome = host.outcomes[-1]
            assert (outcome.result, outcome.attempt) == (Result.STUCK, 3)
            assert outcome.reason is not None
            assert outcome.reason.code is ReasonCode.NO_SPACE
            assert (host.text("soul.md"), host.leftovers()) == ("mine", [])
            assert host.reconciler.unacknowledged() == (outcome,)
            assert [one.code for one in host.reconciler.conditions()] == ["JOURNAL_UNWRITABLE", "SLOT_STUCK"]
            filler.unlink()
            await host.reconciler.catch_up()
            assert [one.code for one in host.reconciler.conditions()] == ["SLOT_STUCK"]
        async with running_host(tmp_path) as host:
            assert host.reconciler.unacknowledged() == (outcome,)
            assert (await host.apply(make_offer({"soul.md": "A"}))).attempt == 4
            assert host.reconciler.conditions() == ()


@pytest.mark.fault(16)
async def test_a_file_system_that_becomes_read_only_costs_that_order_only(tmp_path: Path) -> None:
    """The targets', while an order is under way, then the agent's own: refused, told, and over once it is writable."""
    root, state, goes_on = tmp_path / "root", tmp_path / "state", tmp_path / "goes on"
    check = ("/bin/sh", "-c", f"test -e '{goes_on}' || mount -o remount,ro {root}")
    for folder in (root, state):
        folder.mkdir()
    with (
        mounted("-t", "tmpfs", "none", at=root),
        mounted("-t", "tmpfs", "-o", "mode=700", "none", at=state),
    ):
        async with running_host(tmp_path, check=check) as host:
            (root / "soul.md").write_text("mine")
            outcome = await host.apply(make_offer({"soul.md": "A"}))
            assert (outcome.result, code(outcome)) == (Result.REFUSED, ReasonCode.READ_ONLY)
            assert host.text("soul.md") == "mine"
            run_or_skip("mount", "-o", "remount,rw", root)
            goes_on.touch()
            assert (await host.apply(make_offer({"soul.md": "A"}, revision=2))).result is Result.APPLIED

            run_or_skip("mount", "-o", "remount,ro", state)
            outcome = await host.apply(make_offer({"soul.md": "B"}, revision=3))
            assert (outcome.result, code(outcome)) == (Result.REFUSED, ReasonCode.READ_ONLY)
            assert host.text("soul.md") == "A"
            assert [one.code for one in host.reconciler.conditions()] == ["JOURNAL_UNWRITABLE"]
            run_or_skip("mount", "-o", "remount,rw", state)
            await host.reconciler.catch_up()
            assert host.reconciler.conditions() == ()
            assert (await host.apply(make_offer({"soul.md": "B"}, revision=4))).result is Result.APPLIED
        async with running_host(tmp_path) as host:
            assert (host.text("soul.md"), host.leftovers()) == ("B", [])
            assert [(slot.revision, slot.result) for slot in host.reconciler.slots()] == [(4, Result.APPLIED)]


@pytest.mark.fault(12)
async def test_views_wait_while_the_spool_is_full(tmp_path: Path) -> None:
    """In order and as of when they happened; the apply itself goes on."""
    async with running_host(tmp_path) as host:
        host.spool_full = True
        outcome = await host.apply(make_offer({"soul.md": "A"}))
        assert outcome.result is Result.APPLIED
        (host.root / "soul.md").write_text("x")
        await host.reconciler.observed("bot-1", "soul.md")
        assert [one.code for one in host.reconciler.conditions()] == ["VIEWS_OWED"]
        host.spool_full = False
        await host.reconciler.catch_up()
        assert [(view.digest, view.state) for view in host.views] == [
            (digest(b"A"), ViewState.APPLIED),
            (digest(b"x"), ViewState.DRIFTED),
        ]
        assert host.views[0].from_at <= outcome.occurred_at <= host.views[1].from_at
        assert host.reconciler.conditions() == ()


@pytest.mark.fault(20)
async def test_an_immutable_second_file_leaves_the_first(tmp_path: Path) -> None:
    """Told before the swap, so nothing was touched."""
    async with running_host(tmp_path) as host:
        for name in ("a.md", "b.md"):
            (host.root / name).write_text("mine")
        with immutable(host.root / "b.md"):
            outcome = await host.apply(make_offer({"a.md": "A", "b.md": "B"}))
        assert outcome.result is Result.REFUSED
        assert outcome.reason is not None
        assert outcome.reason.code is ReasonCode.IMMUTABLE
        assert (host.text("a.md"), host.text("b.md"), host.leftovers()) == ("mine", "mine", [])


async def test_a_file_that_changes_during_the_check_undoes_the_whole_offer(tmp_path: Path) -> None:
    """Nobody's edit is written over, even one made in the last moment."""
    check = ("/bin/sh", "-c", "echo edited > b.md")
    async with running_host(tmp_path, check=check) as host:
        for name in ("a.md", "b.md"):
            (host.root / name).write_text("mine")
        outcome = await host.apply(make_offer({"a.md": "A", "b.md": "B"}))
        assert outcome.result is Result.REFUSED
        assert outcome.reason is not None
        assert outcome.reason.code is ReasonCode.DRIFTED
        assert (host.text("a.md"), host.text("b.md"), host.leftovers()) == ("mine", "edited\n", [])


@pytest.mark.fault(50)
async def test_a_rollback_that_fails_is_stuck_loudly_and_the_baseline_is_kept(tmp_path: Path) -> None:
    """The slot holds what it could not undo; once the cause is gone a restore brings the baseline back."""
    with immutable(tmp_path):
        pass  # skips where that does not work
    reload = ("/bin/sh", "-c", "chattr +i a.md; exit 1")
    async with running_host(tmp_path, reload=reload) as host:
        for name in ("a.md", "b.md"):
            (host.root / name).write_text("mine")
        outcome = await host.apply(make_offer({"a.md": "A", "b.md": "B"}))
        assert (outcome.result, outcome.step) == (Result.STUCK, Step.RELOAD_OWED)
        assert outcome.reason is not None
        assert outcome.reason.code is ReasonCode.IMMUTABLE
        assert (host.text("a.md"), host.text("b.md")) == ("A", "mine")
        assert [one.code for one in host.reconciler.conditions()] == ["SLOT_STUCK"]
        assert set(host.reconciler.watched()) == {("bot-1", "a.md")}
        run_or_skip("chattr", "-i", host.root / "a.md")
    async with running_host(tmp_path) as host:
        assert [one.code for one in host.reconciler.conditions()] == ["SLOT_STUCK"]
        outcome = await host.apply(make_end(RESTORE, "a.md", "b.md", revision=2))
        assert outcome.result is Result.APPLIED
        assert (host.text("a.md"), host.text("b.md")) == ("mine", "mine")
        assert host.reconciler.conditions() == ()


@pytest.mark.fault(57)
async def test_an_agent_stopped_during_the_reload_hook_owes_it_to_the_next_start(tmp_path: Path) -> None:
    """The hook is killed with the agent, and run again; the outcome comes then."""
    flag = tmp_path / "go"
    reload = ("/bin/sh", "-c", f"echo ran >> {tmp_path}/ran; test -e {flag} || exec sleep 600")
    async with running_host(tmp_path, reload=reload, clock=FakeClock()) as host:
        host.reconciler.offer(make_offer({"soul.md": "A"}))
        await eventually((tmp_path / "ran").exists)
        assert not host.reconciler.settled()
        assert host.outcomes == []
    flag.touch()
    async with running_host(tmp_path, reload=reload) as host:
        [outcome] = host.outcomes
        assert (outcome.result, outcome.step) == (Result.APPLIED, Step.RELOADED)
        assert (tmp_path / "ran").read_text() == "ran\nran\n"
        assert [(view.digest, view.state) for view in host.views] == [(digest(b"A"), ViewState.APPLIED)]
        assert host.views[0].from_at == FakeClock().now()  # as of the swap, in the run before


async def test_what_was_begun_waits_for_a_root_that_is_not_there_yet(tmp_path: Path) -> None:
    """An unmounted root undoes nothing; the next start, or the next offer, goes on."""
    reload = ("/bin/sh", "-c", f"echo ran >> {tmp_path}/ran; exec sleep 600")
    async with running_host(tmp_path, reload=reload) as host:
        (host.root / "soul.md").write_text("mine")
        host.reconciler.offer(make_offer({"soul.md": "A"}))
        await eventually((tmp_path / "ran").exists)
    (tmp_path / "root").rename(tmp_path / "aside")
    (tmp_path / "root").write_text("no directory")
    async with running_host(tmp_path, root_is_made=False) as host:
        outcome = await host.apply(make_end(RESTORE, "soul.md", revision=2))
        assert outcome.reason is not None
        assert outcome.reason.code is ReasonCode.NOT_A_REGULAR_FILE
        assert [one.code for one in host.reconciler.conditions()] == ["APPLY_INTERRUPTED"]
        (tmp_path / "root").unlink()
        (tmp_path / "aside").rename(tmp_path / "root")
        await host.apply(make_end(RESTORE, "soul.md", revision=2))
        assert host.text("soul.md") == "mine"
        assert host.reconciler.conditions() == ()


async def test_participants_do_not_wait_for_one_another(tmp_path: Path) -> None:
    """A hook that hangs holds up its own participant only."""
    slow = tmp_path / "slow"

    def with_another(config: AgentConfig) -> AgentConfig:
        other = make_participant(tmp_path / "other", "bot-2")
        return replace(config, participants=(*config.participants, other))

    reload = ("/bin/sh", "-c", f"touch {slow}; exec sleep 600")
    async with running_host(tmp_path, reload=reload, configure=with_another) as host:
        host.reconciler.offer(make_offer({"soul.md": "A"}))
        await eventually(slow.exists)
        outcome = await host.apply(make_offer({"soul.md": "B"}, participant="bot-2"))
        assert (outcome.participant, outcome.result) == ("bot-2", Result.APPLIED)
        assert (tmp_path / "other" / "soul.md").read_text() == "B"
        assert not host.reconciler.settled()
