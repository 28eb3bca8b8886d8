"""What a host does about drift is its own choice: repair, hold, exclude, or only report."""

import asyncio
import os
from pathlib import Path

import pytest

from agent.repair import MAX_REPAIRS, WINDOW_SECONDS
from shared.model import DriftPolicy, OfferAction, ReasonCode, Result, ViewState, digest
from tests.support.clock import FakeClock
from tests.support.host import (
    OTHER_SLOT,
    Host,
    make_config,
    make_end,
    make_offer,
    make_participant,
    running_host,
)
from tests.support.waiting import eventually

REPAIR, HOLD, EXCLUDE = DriftPolicy.REPAIR, DriftPolicy.HOLD, DriftPolicy.EXCLUDE


def shown(host: Host) -> list[tuple[bytes | None, ViewState]]:
    return [(view.digest, view.state) for view in host.views]


def codes(host: Host) -> list[str]:
    return [condition.code for condition in host.reconciler.conditions()]


async def look(host: Host, path: str = "soul.md") -> None:
    await host.reconciler.observed("bot-1", path)


# -- repair ------------------------------------------------------------------------------------------


async def test_a_drifted_file_is_written_again(tmp_path: Path) -> None:
    """Edited, emptied or removed, it is back at the next look, with its mode; every change is a view."""
    async with running_host(tmp_path, drift=REPAIR) as host:
        target = host.root / "config" / "soul.md"
        outcome = await host.apply(make_offer({"config/soul.md": "A"}))
        target.chmod(0o640)
        target.write_text("edited")
        await look(host, "config/soul.md")
        assert target.read_text() == "A"
        assert target.stat().st_mode & 0o7777 == 0o640
        target.unlink()
        target.parent.rmdir()
        await look(host, "config/soul.md")
        assert target.read_text() == "A"
        a = digest(b"A")
        assert shown(host) == [
            (a, ViewState.APPLIED),
            (digest(b"edited"), ViewState.DRIFTED),
            (a, ViewState.APPLIED),
            (None, ViewState.MISSING),
            (a, ViewState.APPLIED),
        ]
        assert [view.from_at for view in host.views] == sorted(view.from_at for view in host.views)
        assert host.leftovers() == []
        assert host.reconciler.unacknowledged() == (outcome,)  # a repair is no news about the deployment
        assert codes(host) == []


async def test_only_the_drifted_file_of_a_slot_is_written(tmp_path: Path) -> None:
    """The others are not touched, not even by a write of the same content."""
    async with running_host(tmp_path, drift=REPAIR) as host:
        await host.apply(make_offer({"soul.md": "A", "two.md": "B"}))
        before = (host.root / "two.md").stat().st_ino
        (host.root / "soul.md").write_text("edited")
        await look(host)
        await look(host, "two.md")
        assert (host.text("soul.md"), host.text("two.md")) == ("A", "B")
        assert (host.root / "two.md").stat().st_ino == before


@pytest.mark.fault(25)
async def test_after_three_repairs_in_ten_minutes_the_file_is_held(tmp_path: Path) -> None:
    """A condition names it, offers are refused, and it is repaired again once the first is long enough ago."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock, drift=REPAIR) as host:
        target = host.root / "soul.md"
        await host.apply(make_offer({"soul.md": "A"}))
        for _ in range(MAX_REPAIRS):
            target.write_text("mine")
            await look(host)
            assert host.text("soul.md") == "A"
            await clock.advance(60)
        assert codes(host) == []
        target.write_text("mine")
        await look(host)
        await look(host)
        assert host.text("soul.md") == "mine"
        assert shown(host)[-1] == (digest(b"mine"), ViewState.DRIFTED)
        [condition] = host.reconciler.conditions()
        assert (condition.code, condition.severity) == ("DRIFT_WAR", "error")
        assert "'soul.md' of bot-1" in condition.message
        refused = await host.apply(make_offer({"soul.md": "B"}, revision=2))
        assert refused.reason is not None
        assert refused.reason.code is ReasonCode.HELD
        await clock.advance(WINDOW_SECONDS - 60 * MAX_REPAIRS)
        await look(host)
        assert host.text("soul.md") == "A"
        assert codes(host) == []


async def test_a_repair_that_is_overwritten_at_once_is_part_of_the_war(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes between the rename and the look at it is no fault of the disk: it is told what to look for."""
    async with running_host(tmp_path, clock=FakeClock(), drift=REPAIR) as host:
        target, rename = host.root / "soul.md", os.rename
        await host.apply(make_offer({"soul.md": "A"}))

        def overwritten(*names: str, **directories: int) -> None:
            rename(*names, **directories)
            target.write_text("mine")

        monkeypatch.setattr(os, "rename", overwritten)
        target.write_text("mine")
        for _ in range(MAX_REPAIRS):
            assert codes(host) == []
            await look(host)
        assert codes(host) == ["DRIFT_WAR"]


async def test_the_operator_decides_a_drift_war(tmp_path: Path) -> None:
    """overwriteDrift is applied over it at once."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock, drift=REPAIR) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        for _ in range(MAX_REPAIRS + 1):
            (host.root / "soul.md").write_text("mine")
            await look(host)
        assert codes(host) == ["DRIFT_WAR"]
        over = make_offer({"soul.md": "B"}, revision=2, overwrite_drift=True)
        assert (await host.apply(over)).result is Result.APPLIED
        assert host.text("soul.md") == "B"
        assert codes(host) == []


async def test_a_repair_outlives_a_restart_without_a_control_plane(tmp_path: Path) -> None:
    """The content is on this host, and stays there however often the journal is tidied up."""
    for _ in range(2):
        async with running_host(tmp_path, drift=REPAIR) as host:
            if not host.reconciler.slots():
                await host.apply(make_offer({"soul.md": "A"}))
    (tmp_path / "root" / "soul.md").write_text("edited while the agent was down")
    async with running_host(tmp_path, drift=REPAIR) as host:
        await look(host)
        assert host.text("soul.md") == "A"


async def test_a_host_that_begins_to_repair_keeps_what_it_finds_in_place(tmp_path: Path) -> None:
    """What was written under another policy can be written again once it was seen."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
    async with running_host(tmp_path, drift=REPAIR) as host:
        await look(host)
        (host.root / "soul.md").write_text("edited")
        await look(host)
        assert host.text("soul.md") == "A"


async def test_a_repair_that_cannot_be_made_is_a_condition(tmp_path: Path) -> None:
    """What is in the way stays; once it is gone, so are the drift and the condition."""
    async with running_host(tmp_path, drift=REPAIR) as host:
        target = host.root / "soul.md"
        await host.apply(make_offer({"soul.md": "A"}))
        target.unlink()
        os.mkfifo(target)
        await look(host)
        assert target.is_fifo()
        assert codes(host) == ["REPAIR_FAILED"]
        target.unlink()
        await look(host)
        assert host.text("soul.md") == "A"
        assert codes(host) == []
        assert host.leftovers() == []


async def test_the_host_s_hooks_have_their_say_in_a_repair(tmp_path: Path) -> None:
    """The check sees the staged content, the reload runs after it; one that fails is a condition."""
    reload = ("sh", "-c", "cat soul.md >> ../reloads; test ! -e ../broken")
    async with running_host(tmp_path, drift=REPAIR, check=("grep", "A", "{staged}"), reload=reload) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        (host.root / "soul.md").write_text("edited")
        await look(host)
        assert (tmp_path / "reloads").read_text() == "AA"
        (tmp_path / "broken").touch()
        (host.root / "soul.md").write_text("edited")
        await look(host)
        assert host.text("soul.md") == "A"
        assert codes(host) == ["REPAIR_FAILED"]
        (tmp_path / "broken").unlink()
        (host.root / "soul.md").write_text("edited")
        await look(host)
        assert codes(host) == []


async def test_a_reload_that_a_repair_owes_outlives_a_stop(tmp_path: Path) -> None:
    """Stopped between the swap and the end of the reload, the next start runs it."""
    reload = ("sh", "-c", "test -e ../slow && sleep 60; echo done >> ../reloads")
    async with running_host(tmp_path, drift=REPAIR, reload=reload) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        (tmp_path / "slow").touch()
        (host.root / "soul.md").write_text("edited")
        looking = asyncio.create_task(look(host))
        await eventually(lambda: host.text("soul.md") == "A")
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        assert (tmp_path / "reloads").read_text() == "done\n"
    (tmp_path / "slow").unlink()
    async with running_host(tmp_path, drift=REPAIR, reload=reload) as host:
        assert host.text("soul.md") == "A"
        assert (tmp_path / "reloads").read_text() == "done\ndone\n"
    async with running_host(tmp_path, drift=REPAIR, reload=reload):
        assert (tmp_path / "reloads").read_text() == "done\ndone\n"


async def test_a_reload_that_an_overwritten_repair_owes_is_run_once_the_file_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever put it back: what the service read meanwhile may be what was written between."""
    reload = ("sh", "-c", "cat soul.md >> ../reloads")
    async with running_host(tmp_path, drift=REPAIR, reload=reload) as host:
        target, rename = host.root / "soul.md", os.rename
        await host.apply(make_offer({"soul.md": "A"}))

        def overwritten(*names: str, **directories: int) -> None:
            rename(*names, **directories)
            target.write_text("mine")

        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(os, "rename", overwritten)
            target.write_text("mine")
            await look(host)
        assert (tmp_path / "reloads").read_text() == "A"
        target.write_text("A")
        await host.reconciler.look_around()
        assert (tmp_path / "reloads").read_text() == "AA"
        await host.reconciler.look_around()
        assert (tmp_path / "reloads").read_text() == "AA"


async def test_what_a_slot_no_longer_holds_is_not_repaired(tmp_path: Path) -> None:
    """Closed or restored, the file is the host's own again."""
    async with running_host(tmp_path, drift=REPAIR) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        await host.apply(make_end(OfferAction.CLOSE, "soul.md", revision=2))
        (host.root / "soul.md").write_text("edited")
        await look(host)
        assert host.text("soul.md") == "edited"


# -- hold --------------------------------------------------------------------------------------------


async def test_a_held_file_waits_for_somebody_to_decide(tmp_path: Path) -> None:
    """Left as it is and refused with a remedy, to other slots too, until overwriteDrift."""
    async with running_host(tmp_path, drift=HOLD) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        (host.root / "soul.md").write_text("edited")
        await look(host)
        assert host.text("soul.md") == "edited"
        [condition] = host.reconciler.conditions()
        assert (condition.code, condition.severity) == ("DRIFT_HELD", "warning")
        for offer in (
            make_offer({"soul.md": "B"}, revision=2),
            make_offer({"soul.md": "B"}, slot_id=OTHER_SLOT),
        ):
            outcome = await host.apply(offer)
            assert outcome.result is Result.REFUSED
            assert outcome.reason is not None
            assert outcome.reason.code is ReasonCode.HELD
            assert "overwriteDrift" in outcome.reason.remedy
        assert host.text("soul.md") == "edited"
        over = make_offer({"soul.md": "B"}, revision=3, overwrite_drift=True)
        assert (await host.apply(over)).result is Result.APPLIED
        assert codes(host) == []


async def test_a_held_file_that_is_back_is_held_no_longer(tmp_path: Path) -> None:
    """Whether it is what the slot put there, or already what is offered; the baseline alone is not enough."""
    async with running_host(tmp_path, drift=HOLD) as host:
        target = host.root / "soul.md"
        target.write_text("mine")
        await host.apply(make_offer({"soul.md": "A"}))
        target.write_text("mine")
        assert (await host.apply(make_offer({"soul.md": "B"}, revision=2))).result is Result.REFUSED
        target.write_text("A")
        assert (await host.apply(make_offer({"soul.md": "B"}, revision=3))).result is Result.APPLIED
        target.write_text("C")
        assert (await host.apply(make_offer({"soul.md": "C"}, revision=4))).result is Result.APPLIED


# -- exclude and report ------------------------------------------------------------------------------


async def test_an_excluded_participant_is_told_of(tmp_path: Path) -> None:
    """The file stays; the condition lasts as long as the drift."""
    async with running_host(tmp_path, drift=EXCLUDE) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        (host.root / "soul.md").unlink()
        await look(host)
        assert host.text("soul.md") is None
        assert codes(host) == ["DRIFT_EXCLUDED"]
        (host.root / "soul.md").write_text("A")
        await look(host)
        assert codes(host) == []


async def test_a_host_that_reports_only_reports(tmp_path: Path) -> None:
    """The view is all there is."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        (host.root / "soul.md").write_text("edited")
        await look(host)
        assert host.text("soul.md") == "edited"
        assert shown(host)[-1] == (digest(b"edited"), ViewState.DRIFTED)
        assert codes(host) == []


async def test_what_is_no_target_any_more_is_not_repaired(tmp_path: Path) -> None:
    """agent.toml takes the file out of `targets`: nothing writes it from then on."""
    async with running_host(tmp_path, drift=DriftPolicy.REPAIR) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        narrower = make_participant(host.root, targets=("config/*.md",), drift=DriftPolicy.REPAIR)
        await host.reconciler.reconfigure(make_config(tmp_path, narrower))
        (host.root / "soul.md").write_text("the host's own again")
        await host.reconciler.observed("bot-1", "soul.md")
        assert host.text("soul.md") == "the host's own again"
