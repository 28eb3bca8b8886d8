"""A host on hold writes nothing, until its administrator says so; what was offered then comes after all."""

from pathlib import Path

from agent.hold import Hold
from shared.model import DriftPolicy, OfferAction, ReasonCode, Result, digest
from tests.support.clock import FakeClock
from tests.support.host import Host, make_end, make_offer, running_host
from tests.support.waiting import eventually


def codes(host: Host) -> list[str]:
    return [condition.code for condition in host.reconciler.conditions()]


async def test_offers_wait_for_the_end_of_a_hold(tmp_path: Path) -> None:
    """Refused HELD as attempt 0 with what is on disk; the newest of a slot is applied afterwards, and only it."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        await host.reconciler.hold()
        for revision, text in ((2, "B"), (3, "C")):
            outcome = await host.apply(make_offer({"soul.md": text}, revision=revision))
            assert (outcome.result, outcome.revision, outcome.attempt) == (Result.REFUSED, revision, 0)
            assert outcome.reason is not None
            assert outcome.reason.code is ReasonCode.HELD
            assert "hold off" in outcome.reason.remedy
            assert [file.running for file in outcome.files] == [digest(b"A")]
            host.reconciler.acknowledged(outcome.key)
        assert host.text("soul.md") == "A"
        assert [slot.revision for slot in host.reconciler.slots()] == [
            1
        ]  # so a later Hello asks for it again
        assert (codes(host), host.reconciler.waiting) == (["HOST_HELD"], 1)
        assert host.reconciler.settled()
        host.heard.clear()
        await host.reconciler.release()
        await eventually(lambda: host.outcomes[-1].revision == 3 and host.outcomes[-1].result.holds)
        assert host.outcomes[-1].attempt == 1
        assert host.text("soul.md") == "C"
        assert (codes(host), host.reconciler.waiting) == ([], 0)


async def test_a_hold_outlives_a_restart(tmp_path: Path) -> None:
    """With the moment it began; repeating it changes nothing; once ended it stays ended."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock) as host:
        await host.reconciler.hold()
    began = clock.now()
    await clock.advance(100)
    async with running_host(tmp_path, clock=clock) as host:
        await host.reconciler.hold()
        assert host.reconciler.held_since == began
        assert (await host.apply(make_offer({"soul.md": "A"}))).result is Result.REFUSED
        assert host.text("soul.md") is None
        await host.reconciler.release()
        await host.reconciler.release()
        await eventually(lambda: host.text("soul.md") == "A")
    async with running_host(tmp_path, clock=clock) as host:
        assert host.reconciler.held_since is None


async def test_a_hold_stops_restores_and_repairs_but_not_a_close(tmp_path: Path) -> None:
    """Whatever would write waits; drift is still seen; a slot that is closed meanwhile stays as it is."""
    async with running_host(tmp_path, drift=DriftPolicy.REPAIR) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        await host.reconciler.hold()
        (host.root / "soul.md").write_text("edited")
        await host.reconciler.observed("bot-1", "soul.md")
        assert host.text("soul.md") == "edited"
        assert host.views[-1].digest == digest(b"edited")
        restore = make_end(OfferAction.RESTORE, "soul.md", revision=2)
        assert (await host.apply(restore)).result is Result.REFUSED
        close = make_end(OfferAction.CLOSE, "soul.md", revision=3)
        assert (await host.apply(close)).result is Result.APPLIED
        await host.reconciler.release()
        assert host.reconciler.waiting == 0
        assert host.text("soul.md") == "edited"


async def test_what_is_applied_already_is_no_news_to_a_hold(tmp_path: Path) -> None:
    """The same offer once more has the outcome it had."""
    async with running_host(tmp_path) as host:
        offer = make_offer({"soul.md": "A"})
        outcome = await host.apply(offer)
        await host.reconciler.hold()
        assert await host.apply(offer) == outcome
        assert host.reconciler.waiting == 0


def test_a_hold_that_cannot_be_read_is_a_hold(tmp_path: Path) -> None:
    """Damaged by a disk or a hand, it counts from the start of the agent on, and can be ended."""
    for damaged in (b"", b"{}", b"[1]", b'{"sinceUs": null}'):
        (tmp_path / "hold.json").write_bytes(damaged)
        hold = Hold(tmp_path, now=7)
        assert hold.since == 7
        assert [condition.since_at for condition in hold.conditions()] == [7]
    hold.end()
    assert Hold(tmp_path, now=8).since is None
