"""What an application says it loaded is on record as said, and completes the apply it belongs to."""

from pathlib import Path

from shared.model import FileOutcome, Loaded, OfferAction, Result, Step, digest
from tests.support.clock import FakeClock
from tests.support.host import OTHER_SLOT, Host, make_end, make_offer, running_host
from tests.support.waiting import eventually

A, B = digest(b"A"), digest(b"B")


def say(host: Host, clock: FakeClock, value: bytes, path: str = "soul.md") -> None:
    """The application's receipt, now."""
    host.reconciler.loaded(Loaded(participant="bot-1", path=path, digest=value, loaded_at=clock.now()))


def shown(host: Host, path: str = "soul.md") -> bytes | None:
    """What GET /v1/content says was loaded."""
    holding = host.reconciler.view_of("bot-1", path)
    assert holding is not None
    return holding.loaded.digest if holding.loaded else None


async def test_a_receipt_of_what_was_written_is_the_step_loaded(tmp_path: Path) -> None:
    """Once, with the revision and attempt it belongs to; it stays on record across a restart."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock) as host:
        applied = await host.apply(make_offer({"soul.md": "A"}, revision=3))
        say(host, clock, A)
        await eventually(lambda: len(host.outcomes) == 2)
        outcome = host.outcomes[1]
        assert (outcome.step, outcome.result) == (Step.LOADED, Result.APPLIED)
        assert (outcome.revision, outcome.attempt) == (3, 1)
        assert outcome.files == (FileOutcome(path="soul.md", desired=A, running=A, previous=A),)
        assert host.reconciler.unacknowledged() == (applied, outcome)
        say(host, clock, A)
        await eventually(host.reconciler.settled)
        assert await host.apply(make_offer({"soul.md": "A"}, revision=3)) == outcome
        assert shown(host) == A
    async with running_host(tmp_path, clock=clock) as host:
        assert [(slot.step, slot.result) for slot in host.reconciler.slots()] == [
            (Step.LOADED, Result.APPLIED)
        ]
        assert shown(host) == A
        assert host.outcomes == []


async def test_a_receipt_of_something_else_completes_nothing(tmp_path: Path) -> None:
    """It is shown as what it is; a new content on disk has none at all."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        say(host, clock, B)
        await eventually(lambda: shown(host) == B)
        assert len(host.outcomes) == 1
        await host.apply(make_offer({"soul.md": "B"}, revision=2))
        assert shown(host) is None
        say(host, clock, B)
        await eventually(lambda: len(host.outcomes) == 3)
        assert (host.outcomes[2].step, host.outcomes[2].revision) == (Step.LOADED, 2)


async def test_every_file_of_a_slot_has_to_be_loaded(tmp_path: Path) -> None:
    """A set of files is one variant."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock) as host:
        await host.apply(make_offer({"soul.md": "A", "config/b.md": "B"}))
        say(host, clock, A)
        await eventually(lambda: shown(host) == A)
        assert len(host.outcomes) == 1
        say(host, clock, B, "config/b.md")
        await eventually(lambda: len(host.outcomes) == 2)
        assert host.outcomes[1].step is Step.LOADED


async def test_nobody_s_receipt_is_no_outcome(tmp_path: Path) -> None:
    """Of a target that no slot holds any more, and of one that another slot has taken over."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        await host.apply(make_offer({"soul.md": "B"}, slot_id=OTHER_SLOT))
        say(host, clock, A)
        await eventually(lambda: shown(host) == A)
        await host.apply(make_end(OfferAction.RESTORE, "soul.md", slot_id=OTHER_SLOT, revision=2))
        await host.apply(make_end(OfferAction.CLOSE, "soul.md", revision=2))
        say(host, clock, A)
        await eventually(host.reconciler.settled)
        assert {outcome.step for outcome in host.outcomes} == {Step.SWAPPED}
