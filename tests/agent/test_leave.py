"""A host that leaves says what stays behind, or puts every baseline back first."""

import asyncio
from pathlib import Path

from shared.model import OfferAction, Result, ViewState
from tests.support.host import OTHER_SLOT, make_end, make_offer, running_host
from tests.support.waiting import PATIENCE


async def test_every_open_slot_is_given_back(tmp_path: Path) -> None:
    """Files are as before variantd, the reload has run, views say so; no outcome is invented for it."""
    reload = ("sh", "-c", "cat soul.md >> ../reloads")
    async with running_host(tmp_path, reload=reload) as host:
        (host.root / "soul.md").write_text("mine")
        first = await host.apply(make_offer({"soul.md": "A", "two.md": "B"}))
        second = await host.apply(make_offer({"three.md": "C"}, slot_id=OTHER_SLOT))
        assert len(await host.reconciler.remaining()) == 3
        assert await host.reconciler.give_back() == []
        assert [host.text(path) for path in ("soul.md", "two.md", "three.md")] == ["mine", None, None]
        assert (tmp_path / "reloads").read_text() == "AAminemine"
        assert {view.state for view in host.views[-3:]} == {ViewState.UNMANAGED}
        assert set(host.reconciler.unacknowledged()) == {first, second}
        assert await host.reconciler.remaining() == []
        assert await host.reconciler.give_back() == []
    async with running_host(tmp_path) as host:
        assert host.text("soul.md") == "mine"
        assert {slot.revision for slot in host.reconciler.slots()} == {1}
        assert (await host.apply(make_offer({"soul.md": "D"}, revision=2))).result is Result.APPLIED


async def test_what_was_changed_since_is_not_restored_over(tmp_path: Path) -> None:
    """It is told, the others are restored, and the slot goes on as if nobody had asked."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        await host.apply(make_offer({"two.md": "B"}, slot_id=OTHER_SLOT))
        before = host.reconciler.unacknowledged()
        (host.root / "soul.md").write_text("edited")
        [fault] = await host.reconciler.give_back()
        assert fault.startswith("bot-1: 'soul.md' holds sha256:")
        assert (host.text("soul.md"), host.text("two.md")) == ("edited", None)
        assert host.reconciler.unacknowledged() == before
        [slot] = [slot for slot in host.reconciler.slots() if slot.slot_id != OTHER_SLOT]
        assert (slot.revision, slot.result) == (1, Result.APPLIED)
        over = make_end(OfferAction.RESTORE, "soul.md", revision=2, overwrite_drift=True)
        assert (await host.apply(over)).result is Result.APPLIED
        assert host.text("soul.md") is None


async def test_what_is_closed_is_left_alone(tmp_path: Path) -> None:
    """A kept winner is the host's own file."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        await host.apply(make_end(OfferAction.CLOSE, "soul.md", revision=2))
        assert await host.reconciler.give_back() == []
        assert host.text("soul.md") == "A"


async def test_a_host_on_hold_can_give_back(tmp_path: Path) -> None:
    """It is the administrator who asks; what is offered at that moment waits."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        await host.reconciler.hold()
        host.reconciler.offer(make_offer({"soul.md": "B"}, revision=2))
        assert await asyncio.wait_for(host.reconciler.give_back(), PATIENCE) == []
        assert host.text("soul.md") is None
