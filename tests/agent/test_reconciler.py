"""Offers become files, exactly and for good, or a reason why not; baselines come back exactly."""

import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.model import (
    DriftPolicy,
    OfferAction,
    OfferedFile,
    ReasonCode,
    Result,
    Step,
    ViewState,
    digest,
)
from tests.support.clock import FakeClock
from tests.support.host import OTHER_SLOT, SLOT, Host, make_end, make_offer, running_host
from tests.support.synced import Synced
from tests.support.waiting import eventually

RESTORE, CLOSE = OfferAction.RESTORE, OfferAction.CLOSE


def code(outcome: Any) -> ReasonCode | None:
    return outcome.reason and outcome.reason.code


def shown(host: Host) -> list[tuple[str, ViewState]]:
    """The views so far, contents by their first digest byte in hex."""
    return [(view.digest.hex()[:6] if view.digest else "", view.state) for view in host.views]


def short(text: str) -> str:
    return digest(text.encode()).hex()[:6]


async def test_an_offer_becomes_what_is_on_disk(tmp_path: Path) -> None:
    """Content in place, mode and owner kept, outcome and view said, nothing left behind."""
    async with running_host(tmp_path) as host:
        target = host.root / "soul.md"
        target.write_text("mine")
        target.chmod(0o640)
        outcome = await host.apply(make_offer({"soul.md": "A"}))
        assert (outcome.result, outcome.step, outcome.attempt) == (Result.APPLIED, Step.SWAPPED, 1)
        [file] = outcome.files
        assert (file.path, file.desired, file.running, file.previous) == (
            "soul.md",
            digest(b"A"),
            digest(b"A"),
            digest(b"mine"),
        )
        assert target.read_text() == "A"
        assert target.stat().st_mode & 0o7777 == 0o640
        assert shown(host) == [(short("A"), ViewState.APPLIED)]
        assert host.views[0].from_at <= outcome.occurred_at
        assert host.reconciler.unacknowledged() == (outcome,)
        assert dict(host.reconciler.watched()) == {("bot-1", "soul.md"): target}
        assert host.changes == 2  # once at the start, once now
        assert host.leftovers() == []


async def test_restore_puts_content_mode_owner_and_absence_back_exactly(tmp_path: Path) -> None:
    """After three variants the host is as it was before the first, directories included."""
    async with running_host(tmp_path) as host:
        target = host.root / "soul.md"
        target.write_bytes(b"mine\r\n\x00\xff")
        target.chmod(0o604)
        if os.geteuid() == 0:
            os.chown(target, 1234, 4321)
        before = target.stat()
        for revision, text in enumerate("ABC", start=1):
            offer = make_offer({"soul.md": text, "deep/er/new.md": text}, revision=revision)
            assert (await host.apply(offer)).result is Result.APPLIED
        target.chmod(0o600)
        outcome = await host.apply(make_end(RESTORE, "soul.md", "deep/er/new.md", revision=4))
        assert (outcome.result, outcome.step) == (Result.APPLIED, Step.SWAPPED)
        assert target.read_bytes() == b"mine\r\n\x00\xff"
        after = target.stat()
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
        assert sorted(path.name for path in host.root.rglob("*")) == ["soul.md"]
        assert host.reconciler.watched() == {}
        assert [view.state for view in host.views[-2:]] == [ViewState.UNMANAGED] * 2
        [state] = host.reconciler.slots()
        assert (state.closed, state.files) == (True, ())
        assert target.read_bytes() == b"mine\r\n\x00\xff"


async def test_restored_absence_leaves_directories_that_others_use(tmp_path: Path) -> None:
    """A directory made for a target stays once something else is in it."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"deep/er/new.md": "A"}))
        (host.root / "deep" / "notes").write_text("somebody's")
        await host.apply(make_end(RESTORE, "deep/er/new.md", revision=2))
        assert sorted(path.name for path in host.root.rglob("*")) == ["deep", "notes"]


async def test_close_leaves_the_files_and_ends_the_watch(tmp_path: Path) -> None:
    """What was shipped stays; what happens to it afterwards is the host's own business."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        outcome = await host.apply(make_end(CLOSE, "soul.md", revision=2))
        assert outcome.result is Result.APPLIED
        assert host.text("soul.md") == "A"
        assert host.reconciler.watched() == {}
        assert shown(host)[-1] == (short("A"), ViewState.UNMANAGED)
        (host.root / "soul.md").write_text("own")
        await host.reconciler.observed("bot-1", "soul.md")
        assert len(host.views) == 2


async def test_a_closed_slot_can_still_be_restored(tmp_path: Path) -> None:
    """Its baseline is kept; a file the host changed since is drift, as ever."""
    async with running_host(tmp_path) as host:
        (host.root / "soul.md").write_text("mine")
        await host.apply(make_offer({"soul.md": "A"}))
        await host.apply(make_end(CLOSE, "soul.md", revision=2))
        (host.root / "soul.md").write_text("own")
        assert code(await host.apply(make_end(RESTORE, "soul.md", revision=3))) is ReasonCode.DRIFTED
        (host.root / "soul.md").write_text("A")
        await host.apply(make_end(RESTORE, "soul.md", revision=4))
        assert host.text("soul.md") == "mine"


async def test_a_slot_written_again_after_a_restore_takes_a_new_baseline(tmp_path: Path) -> None:
    """What is there when a slot begins anew is what it gives back."""
    async with running_host(tmp_path) as host:
        (host.root / "soul.md").write_text("one")
        await host.apply(make_offer({"soul.md": "A"}))
        await host.apply(make_end(RESTORE, "soul.md", revision=2))
        (host.root / "soul.md").write_text("two")
        assert (await host.apply(make_offer({"soul.md": "B"}, revision=3))).result is Result.APPLIED
        await host.apply(make_end(RESTORE, "soul.md", revision=4))
        assert host.text("soul.md") == "two"


async def test_content_that_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    """The same digest: journalled, said, and the very same inode."""
    async with running_host(tmp_path) as host:
        target = host.root / "soul.md"
        target.write_text("A")
        inode = target.stat().st_ino
        assert (await host.apply(make_offer({"soul.md": "A"}))).result is Result.APPLIED
        assert target.stat().st_ino == inode
        assert shown(host) == [(short("A"), ViewState.APPLIED)]
        assert (await host.apply(make_offer({"soul.md": "B"}, revision=2))).result is Result.APPLIED
        await host.apply(make_end(RESTORE, "soul.md", revision=3))
        assert host.text("soul.md") == "A"


async def test_two_files_change_together_or_not_at_all(tmp_path: Path) -> None:
    """One bad file refuses the whole offer, and the good one is untouched."""
    async with running_host(tmp_path) as host:
        (host.root / "a.md").write_text("mine")
        (host.root / "b.md").mkdir()
        inode = (host.root / "a.md").stat().st_ino
        outcome = await host.apply(make_offer({"a.md": "A", "b.md": "B"}))
        assert (outcome.result, code(outcome)) == (Result.REFUSED, ReasonCode.NOT_A_REGULAR_FILE)
        assert (host.text("a.md"), (host.root / "a.md").stat().st_ino) == ("mine", inode)
        assert (host.views, host.leftovers()) == ([], [])


# -- revisions ---------------------------------------------------------------------------------------


async def test_an_older_revision_is_refused_and_an_equal_one_repeats_its_outcome(tmp_path: Path) -> None:
    """No host goes backwards; a repeated offer is answered and not applied again."""
    async with running_host(tmp_path) as host:
        done = await host.apply(make_offer({"soul.md": "B"}, revision=5))
        inode = (host.root / "soul.md").stat().st_ino
        outcome = await host.apply(make_offer({"soul.md": "A"}, revision=4))
        assert (outcome.result, code(outcome), outcome.revision) == (
            Result.REFUSED,
            ReasonCode.REGRESSION,
            4,
        )
        assert await host.apply(make_offer({"soul.md": "B"}, revision=5)) == done
        assert (host.root / "soul.md").stat().st_ino == inode
        assert {o.revision for o in host.reconciler.unacknowledged()} == {4, 5}


async def test_a_host_tells_of_its_open_slots_and_of_those_it_closed_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many experiments there were, a Hello stays small; what is not told is known all the same."""
    monkeypatch.setattr("agent.standing.CLOSED_TOLD", 2)
    slots = [number.to_bytes(16) for number in range(1, 6)]
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock) as host:
        for number, slot in enumerate(slots):
            await host.apply(make_offer({f"{number}.md": "A"}, slot_id=slot))
        for number in (3, 0, 2, 1):
            await clock.advance(1)
            await host.apply(make_end(RESTORE, f"{number}.md", revision=2, slot_id=slots[number]))
        told = {state.slot_id: state for state in host.reconciler.slots()}
        assert {slot: state.closed for slot, state in told.items()} == {
            slots[4]: False,
            slots[2]: True,
            slots[1]: True,
        }
        assert [file.digest for file in told[slots[4]].files] == [digest(b"A")]
        outcome = await host.apply(make_offer({"3.md": "B"}, slot_id=slots[3]))
        assert (outcome.result, code(outcome)) == (Result.REFUSED, ReasonCode.REGRESSION)


async def test_a_refused_revision_may_be_tried_again(tmp_path: Path) -> None:
    """The attempt counts up, and the cause may be gone."""
    async with running_host(tmp_path) as host:
        (host.root / "soul.md").mkdir()
        offer = make_offer({"soul.md": "A"}, revision=3)
        assert (await host.apply(offer)).attempt == 1
        (host.root / "soul.md").rmdir()
        outcome = await host.apply(offer)
        assert (outcome.result, outcome.attempt) == (Result.APPLIED, 2)


async def test_the_newest_offer_of_a_slot_wins(tmp_path: Path) -> None:
    """What waits behind a newer one ends superseded, whichever came first."""
    async with running_host(tmp_path) as host:
        for revision in (1, 3, 2):
            host.reconciler.offer(make_offer({"soul.md": f"text {revision}"}, revision=revision))
        assert not host.reconciler.settled()
        await eventually(host.reconciler.settled)
        assert host.text("soul.md") == "text 3"
        ends = {o.revision: (o.result, code(o)) for o in host.outcomes}
        assert ends == {
            1: (Result.REFUSED, ReasonCode.SUPERSEDED),
            2: (Result.REFUSED, ReasonCode.SUPERSEDED),
            3: (Result.APPLIED, None),
        }


# -- what the host does not do -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("other.txt", ReasonCode.TARGET_NOT_ALLOWED),
        ("../soul.md", ReasonCode.PATH_ESCAPES_ROOT),
        ("/etc/soul.md", ReasonCode.PATH_ESCAPES_ROOT),
        ("", ReasonCode.PATH_ESCAPES_ROOT),
        ("x" * 3000 + ".md", ReasonCode.PATH_ESCAPES_ROOT),
    ],
)
async def test_paths_outside_the_policy_are_refused_without_fetching_or_reading(
    tmp_path: Path, path: str, expected: ReasonCode
) -> None:
    """Nothing is asked of the control plane for a target that is none, and no digest of it is told."""
    async with running_host(tmp_path) as host:
        (host.root / "other.txt").write_text("private")
        content = OfferedFile(path=path, digest=digest(b"A"), size=1)
        outcome = await host.apply(replace(make_offer({}), files=(content,)))
        assert (outcome.result, outcome.step, code(outcome)) == (Result.REFUSED, Step.RECEIVED, expected)
        assert outcome.reason is not None
        assert outcome.reason.remedy
        assert [file.running for file in outcome.files] == ([None] if path else [])


async def test_a_participant_that_agent_toml_does_not_name_is_refused(tmp_path: Path) -> None:
    """The refusal says what is missing, and is owed until acknowledged."""
    async with running_host(tmp_path) as host:
        outcome = await host.apply(make_offer({"soul.md": "A"}, participant="nobody"))
        assert code(outcome) is ReasonCode.TARGET_NOT_ALLOWED
        assert outcome.reason is not None
        assert "agent.toml" in outcome.reason.message
        assert host.reconciler.unacknowledged() == (outcome,)
        host.reconciler.acknowledged(outcome.key)
        assert host.reconciler.unacknowledged() == ()


async def test_content_over_the_limit_is_refused_by_its_size_and_by_its_bytes(tmp_path: Path) -> None:
    """A size that understates does not help."""
    async with running_host(tmp_path, max_bytes=10) as host:
        assert code(await host.apply(make_offer({"soul.md": "x" * 11}))) is ReasonCode.TOO_LARGE
        big = b"y" * 11
        host.contents[digest(big)] = big
        understated = (OfferedFile(path="soul.md", digest=digest(big), size=1),)
        outcome = await host.apply(replace(make_offer({}, revision=2), files=understated))
        assert code(outcome) is ReasonCode.TOO_LARGE
        (host.root / "soul.md").write_text("z" * 11)
        outcome = await host.apply(make_offer({"soul.md": "ok"}, revision=3))
        assert (code(outcome), host.text("soul.md")) == (ReasonCode.TOO_LARGE, "z" * 11)


async def test_content_comes_by_digest_where_it_is_not_inline(tmp_path: Path) -> None:
    """Fetched content is taken only where it is what was offered."""
    async with running_host(tmp_path) as host:
        content = b"long" * 20_000
        host.contents[digest(content)] = content
        wanted = OfferedFile(path="soul.md", digest=digest(content), size=len(content))
        outcome = await host.apply(replace(make_offer({}), files=(wanted,)))
        assert outcome.result is Result.APPLIED
        assert (host.root / "soul.md").read_bytes() == content
        lying = OfferedFile(path="soul.md", digest=digest(b"truth"), size=3, content=b"lie")
        outcome = await host.apply(replace(make_offer({}, revision=2), files=(lying,)))
        assert (code(outcome), outcome.result) == (ReasonCode.DIGEST_MISMATCH, Result.REFUSED)
        missing = OfferedFile(path="soul.md", digest=digest(b"gone"), size=4)
        outcome = await host.apply(replace(make_offer({}, revision=3), files=(missing,)))
        assert (code(outcome), outcome.result) == (ReasonCode.IO_ERROR, Result.IN_PROGRESS)
        assert (host.root / "soul.md").read_bytes() == content


# -- drift -------------------------------------------------------------------------------------------


async def test_a_file_somebody_else_changed_is_not_written_over(tmp_path: Path) -> None:
    """Refused with both digests, until the operator says overwrite."""
    async with running_host(tmp_path) as host:
        (host.root / "soul.md").write_text("mine")
        await host.apply(make_offer({"soul.md": "A"}))
        (host.root / "soul.md").write_text("edited")
        outcome = await host.apply(make_offer({"soul.md": "B"}, revision=2))
        assert code(outcome) is ReasonCode.DRIFTED
        assert outcome.reason is not None
        assert digest(b"edited").hex() in outcome.reason.message
        assert digest(b"A").hex() in outcome.reason.message
        assert host.text("soul.md") == "edited"
        assert code(await host.apply(make_end(RESTORE, "soul.md", revision=3))) is ReasonCode.DRIFTED
        over = make_offer({"soul.md": "B"}, revision=4, overwrite_drift=True)
        assert (await host.apply(over)).result is Result.APPLIED
        await host.apply(make_end(RESTORE, "soul.md", revision=5))
        assert host.text("soul.md") == "mine"


async def test_a_host_that_repairs_lets_its_drift_be_written_over(tmp_path: Path) -> None:
    """The drift policy belongs to the host."""
    async with running_host(tmp_path, drift=DriftPolicy.REPAIR) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        (host.root / "soul.md").write_text("edited")
        assert (await host.apply(make_offer({"soul.md": "B"}, revision=2))).result is Result.APPLIED


@pytest.mark.fault(23)
async def test_what_is_observed_becomes_a_view_once(tmp_path: Path) -> None:
    """Drifted, missing, replaced by something that is no file, and back: one view per change."""
    async with running_host(tmp_path) as host:
        target = host.root / "soul.md"
        await host.apply(make_offer({"soul.md": "A"}))

        async def observe() -> tuple[str, ViewState]:
            await host.reconciler.observed("bot-1", "soul.md")
            await host.reconciler.observed("bot-1", "soul.md")
            return shown(host)[-1]

        target.write_text("x")
        assert await observe() == (short("x"), ViewState.DRIFTED)
        target.unlink()
        assert await observe() == ("", ViewState.MISSING)
        os.mkfifo(target)
        assert await observe() == ("", ViewState.DRIFTED)
        target.unlink()
        target.write_text("A")
        assert await observe() == (short("A"), ViewState.APPLIED)
        assert len(host.views) == 5
        holding = host.reconciler.view_of("bot-1", "soul.md")
        assert holding is not None
        assert (holding.slot_id, holding.digest, holding.state) == (SLOT, digest(b"A"), ViewState.APPLIED)
        assert host.reconciler.view_of("bot-1", "other.md") is None


# -- baselines ---------------------------------------------------------------------------------------


async def test_what_the_experiment_wrote_is_never_a_baseline(tmp_path: Path) -> None:
    """With the record lost, the file is written, but a restore is refused rather than guessed."""
    digests = (digest(b"A"), digest(b"B"))
    for damaged, known in ((True, {"experiment_digests": digests}), (False, {"applied_before": True})):
        slots = tmp_path / next(iter(known)) / "state" / "journal" / "slots"
        slots.mkdir(parents=True)
        if damaged:
            (slots / "a.json").write_text("{")
        async with running_host(tmp_path / next(iter(known))) as host:
            (host.root / "soul.md").write_text("A")
            assert (await host.apply(make_offer({"soul.md": "B"}, **known))).result is Result.APPLIED
            assert "BASELINE_LOST" in [condition.code for condition in host.reconciler.conditions()]
            outcome = await host.apply(make_end(RESTORE, "soul.md", revision=2, **known))
            assert (outcome.result, code(outcome)) == (Result.REFUSED, ReasonCode.BASELINE_LOST)
            assert host.text("soul.md") == "B"


async def test_a_restore_of_what_was_always_refused_is_done(tmp_path: Path) -> None:
    """Where policy let nothing be written there is nothing to put back, and the slot is closed."""
    async with running_host(tmp_path) as host:
        refused = await host.apply(make_offer({"../soul.md": "A"}))
        assert refused.result is Result.REFUSED
        assert (await host.apply(make_end(RESTORE, "../soul.md", revision=2))).result is Result.APPLIED


async def test_a_control_that_is_the_present_file_has_a_baseline(tmp_path: Path) -> None:
    """The usual experiment takes the present file as its control; every host gets it back exactly."""
    digests = (digest(b"A"), digest(b"B"))
    for first in ("A", "B"):
        async with running_host(tmp_path / first) as host:
            (host.root / "soul.md").write_text("A")
            offer = make_offer({"soul.md": first}, experiment_digests=digests)
            assert (await host.apply(offer)).result is Result.APPLIED
            end = make_end(RESTORE, "soul.md", revision=2, experiment_digests=digests, applied_before=True)
            assert (await host.apply(end)).result is Result.APPLIED
            assert host.text("soul.md") == "A"


async def test_a_restore_without_any_record_needs_none_where_nothing_was_written(tmp_path: Path) -> None:
    """A slot that never got as far as a file is closed; one that did, elsewhere on record, is lost."""
    async with running_host(tmp_path) as host:
        (host.root / "soul.md").write_text("mine")
        lost = make_end(RESTORE, "soul.md", revision=2, applied_before=True)
        assert code(await host.apply(lost)) is ReasonCode.BASELINE_LOST
        assert (await host.apply(make_end(RESTORE, "soul.md", revision=3))).result is Result.APPLIED
        assert host.text("soul.md") == "mine"


@pytest.mark.parametrize("end", [OfferAction.CLOSE, OfferAction.RESTORE, None])
async def test_a_slot_that_is_about_another_file_by_now_restores_that(
    tmp_path: Path, end: OfferAction | None
) -> None:
    """Also one that was not ended before gives both back; what it was closed over stays as the host has it since."""
    async with running_host(tmp_path) as host:
        (host.root / "soul.md").write_text("mine")
        (host.root / "other.md").write_text("mine, too")
        await host.apply(make_offer({"soul.md": "A"}))
        if end is not None:
            await host.apply(make_end(end, "soul.md", revision=2))
            (host.root / "soul.md").write_text("edited since")
        again = make_offer({"other.md": "A"}, revision=3, applied_before=True)
        assert (await host.apply(again)).result is Result.APPLIED
        watched = {"soul.md", "other.md"} if end is None else {"other.md"}
        assert {path for _, path in host.reconciler.watched()} == watched
        restored = await host.apply(make_end(RESTORE, "other.md", revision=4, applied_before=True))
        assert restored.result is Result.APPLIED
        assert host.text("other.md") == "mine, too"
        assert host.text("soul.md") == ("mine" if end is None else "edited since")


async def test_a_slot_whose_record_was_lost_knows_no_other_file_either(tmp_path: Path) -> None:
    """What it wrote before its journal went may have been any file of the experiment."""
    async with running_host(tmp_path) as host:
        (host.root / "other.md").write_text("A")
        await host.apply(make_offer({"soul.md": "B"}, applied_before=True))
        await host.apply(make_offer({"soul.md": "B", "other.md": "B"}, revision=2, applied_before=True))
        lost = make_end(RESTORE, "soul.md", "other.md", revision=3, applied_before=True)
        assert code(await host.apply(lost)) is ReasonCode.BASELINE_LOST
        assert host.text("other.md") == "B"


async def test_a_later_slot_takes_a_target_over_and_inherits_the_baseline(tmp_path: Path) -> None:
    """The older slot's restore does not touch the file; the newer one gives back what was there first."""
    async with running_host(tmp_path) as host:
        (host.root / "soul.md").write_text("mine")
        await host.apply(make_offer({"soul.md": "A"}))
        newer = make_offer({"soul.md": "B"}, slot_id=OTHER_SLOT)
        assert (await host.apply(newer)).result is Result.APPLIED
        stale = await host.apply(make_offer({"soul.md": "A2"}, revision=2))
        assert code(stale) is ReasonCode.SUPERSEDED
        assert (await host.apply(make_end(RESTORE, "soul.md", revision=3))).result is Result.APPLIED
        assert host.text("soul.md") == "B"
        assert set(host.reconciler.watched()) == {("bot-1", "soul.md")}
        await host.apply(make_end(RESTORE, "soul.md", revision=2, slot_id=OTHER_SLOT))
        assert host.text("soul.md") == "mine"


async def test_a_later_slot_that_ends_first_gives_the_target_back_to_the_older(tmp_path: Path) -> None:
    """Its baseline is what the older slot had put there."""
    async with running_host(tmp_path) as host:
        (host.root / "soul.md").write_text("mine")
        await host.apply(make_offer({"soul.md": "A"}))
        await host.apply(make_offer({"soul.md": "B"}, slot_id=OTHER_SLOT))
        await host.apply(make_end(RESTORE, "soul.md", revision=2, slot_id=OTHER_SLOT))
        assert host.text("soul.md") == "A"
        assert shown(host)[-1] == (short("A"), ViewState.APPLIED)
        await host.apply(make_end(RESTORE, "soul.md", revision=2))
        assert host.text("soul.md") == "mine"


async def test_an_edit_between_two_slots_is_the_newer_one_s_baseline(tmp_path: Path) -> None:
    """The older slot's baseline does not take its place."""
    async with running_host(tmp_path) as host:
        (host.root / "soul.md").write_text("mine")
        await host.apply(make_offer({"soul.md": "A"}))
        (host.root / "soul.md").write_text("edited")
        await host.apply(make_offer({"soul.md": "B"}, slot_id=OTHER_SLOT))
        await host.apply(make_end(RESTORE, "soul.md", revision=2))
        await host.apply(make_end(RESTORE, "soul.md", revision=2, slot_id=OTHER_SLOT))
        assert host.text("soul.md") == "edited"


async def test_a_followed_link_that_leads_elsewhere_is_drift(tmp_path: Path) -> None:
    """The baseline belongs to the file behind it then, not to the one behind it now."""
    async with running_host(tmp_path, follow_symlinks=True) as host:
        (host.root / "one.txt").write_text("one")
        (host.root / "two.txt").write_text("two")
        (host.root / "soul.md").symlink_to("one.txt")
        await host.apply(make_offer({"soul.md": "A"}))
        (host.root / "soul.md").unlink()
        (host.root / "soul.md").symlink_to("two.txt")
        over = make_offer({"soul.md": "B"}, revision=2, overwrite_drift=True)
        assert code(await host.apply(over)) is ReasonCode.DRIFTED
        await host.apply(make_end(RESTORE, "soul.md", revision=3))
        assert (host.text("one.txt"), host.text("two.txt")) == ("one", "two")


async def test_two_names_of_one_file_are_one_target(tmp_path: Path) -> None:
    """Behind a followed link there is one file: not two of an offer, and one holder at a time."""
    async with running_host(tmp_path, follow_symlinks=True) as host:
        (host.root / "AGENTS.md").write_text("mine")
        (host.root / "CLAUDE.md").symlink_to("AGENTS.md")
        both = make_offer({"AGENTS.md": "A", "CLAUDE.md": "B"})
        assert code(await host.apply(both)) is ReasonCode.SYMLINK_REFUSED
        await host.apply(make_offer({"CLAUDE.md": "A"}, revision=2))
        assert (host.text("AGENTS.md"), (host.root / "CLAUDE.md").is_symlink()) == ("A", True)
        await host.apply(make_offer({"AGENTS.md": "B"}, slot_id=OTHER_SLOT))
        assert set(host.reconciler.watched()) == {("bot-1", "AGENTS.md")}
        await host.apply(make_end(RESTORE, "CLAUDE.md", revision=3))
        await host.apply(make_end(RESTORE, "AGENTS.md", revision=2, slot_id=OTHER_SLOT))
        assert (host.text("AGENTS.md"), (host.root / "CLAUDE.md").is_symlink()) == ("mine", True)


# -- commands of the host ----------------------------------------------------------------------------


def script(directory: Path, text: str) -> tuple[str, ...]:
    path = directory / "command"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return (str(path), "{staged}")


async def test_the_host_s_check_sees_the_staged_content_and_decides(tmp_path: Path) -> None:
    """It runs before anything changes; what it prints stays on the host."""
    check = script(tmp_path, 'cat "$1"; ! grep -q secret "$1"')
    async with running_host(tmp_path, check=check) as host:
        assert (await host.apply(make_offer({"soul.md": "fine"}))).result is Result.APPLIED
        outcome = await host.apply(make_offer({"soul.md": "secret", "b.md": "x"}, revision=2))
        assert (outcome.result, outcome.step, code(outcome)) == (
            Result.REFUSED,
            Step.STAGED,
            ReasonCode.CHECK_FAILED,
        )
        assert outcome.reason is not None
        assert "status 1" in outcome.reason.message
        assert "secret" not in str(outcome)
        assert (host.state_dir / "output" / "bot-1.check").read_text() == "secret"
        assert (host.text("soul.md"), host.text("b.md"), host.leftovers()) == ("fine", None, [])
        assert (await host.apply(make_end(RESTORE, "soul.md", revision=3))).result is Result.APPLIED


@pytest.mark.fault(48)
async def test_a_check_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    """The whole process group ends at the limit, and the offer is refused."""
    clock = FakeClock()
    check = script(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; wait")
    async with running_host(tmp_path, clock=clock, check=check) as host:
        host.reconciler.offer(make_offer({"soul.md": "A"}))
        child = await eventually(lambda: (tmp_path / "child").read_text().strip())
        await eventually(lambda: clock.sleeping)
        await clock.advance(30)
        outcome = await eventually(lambda: next((one for one in host.outcomes if one.reason), None))
        assert (code(outcome), outcome.result) == (ReasonCode.CHECK_FAILED, Result.IN_PROGRESS)
        assert not outcome.quarantined  # it may be quicker the next time
        stat = Path(f"/proc/{child}/stat")
        await eventually(lambda: not stat.exists() or stat.read_text().split()[2] == "Z")
        assert (host.text("soul.md"), host.leftovers()) == (None, [])


@pytest.mark.fault(48)
async def test_a_command_that_prints_without_end_or_cannot_start_is_a_plain_failure(tmp_path: Path) -> None:
    """Output is bounded; no command at all is a reason like any other."""
    check = script(tmp_path, "head -c 3000000 /dev/zero; exit 3")
    async with running_host(tmp_path, check=check) as host:
        outcome = await host.apply(make_offer({"soul.md": "A"}))
        assert code(outcome) is ReasonCode.CHECK_FAILED
        assert (host.state_dir / "output" / "bot-1.check").stat().st_size <= 16 * 1024
    async with running_host(tmp_path, check=("/nowhere/to/be/found",)) as host:
        outcome = await host.apply(make_offer({"soul.md": "B"}, revision=2))
        assert outcome.reason is not None
        assert "could not be started" in outcome.reason.message
        assert not outcome.quarantined


async def test_the_reload_hook_runs_once_after_the_swap(tmp_path: Path) -> None:
    """It sees the new content; without a change it is not bothered."""
    reload = ("/bin/sh", "-c", f"cat soul.md >> {tmp_path}/reloaded")
    async with running_host(tmp_path, reload=reload) as host:
        outcome = await host.apply(make_offer({"soul.md": "A"}))
        assert (outcome.result, outcome.step) == (Result.APPLIED, Step.RELOADED)
        assert (await host.apply(make_offer({"soul.md": "A"}, revision=2))).step is Step.SWAPPED
        assert (tmp_path / "reloaded").read_text() == "A"


async def test_a_reload_that_fails_brings_the_previous_content_back(tmp_path: Path) -> None:
    """Both files, new ones removed, and the hook runs once more for what is there again."""
    reload = ("/bin/sh", "-c", f"cat soul.md >> {tmp_path}/reloaded; ! grep -q bad soul.md")
    async with running_host(tmp_path, reload=reload) as host:
        (host.root / "soul.md").write_text("mine")
        outcome = await host.apply(make_offer({"soul.md": "bad", "deep/new.md": "x"}))
        assert (outcome.result, outcome.step, code(outcome)) == (
            Result.ROLLED_BACK,
            Step.RELOAD_OWED,
            ReasonCode.RELOAD_FAILED,
        )
        assert {file.path: file.running for file in outcome.files} == {
            "soul.md": digest(b"mine"),
            "deep/new.md": None,
        }
        assert (host.text("soul.md"), (host.root / "deep").exists()) == ("mine", False)
        assert (tmp_path / "reloaded").read_text() == "badmine"
        assert [state for _, state in shown(host)] == [ViewState.APPLIED] * 2 + [ViewState.UNMANAGED] * 2
        assert (await host.apply(make_offer({"soul.md": "good"}, revision=2))).result is Result.APPLIED
        await host.apply(make_end(RESTORE, "soul.md", "deep/new.md", revision=3))
        assert host.text("soul.md") == "mine"


# -- across a restart --------------------------------------------------------------------------------


async def test_a_restart_knows_everything_and_says_every_open_target_first(tmp_path: Path) -> None:
    """Slots, owed outcomes and baselines survive; what was acknowledged stays acknowledged."""
    async with running_host(tmp_path) as host:
        (host.root / "soul.md").write_text("mine")
        (host.root / "b.md").write_text("other")
        first = await host.apply(make_offer({"soul.md": "A"}))
        second = await host.apply(make_offer({"soul.md": "B"}, revision=2))
        assert host.reconciler.unacknowledged() == (first, second)
        host.reconciler.acknowledged(first.key)
        await host.apply(make_offer({"b.md": "x"}, slot_id=OTHER_SLOT))
        await host.apply(make_end(CLOSE, "b.md", slot_id=OTHER_SLOT, revision=2))
        slots = host.reconciler.slots()
    async with running_host(tmp_path) as host:
        assert [outcome.revision for outcome in host.reconciler.unacknowledged()] == [2, 1, 2]
        assert host.reconciler.unacknowledged()[0] == second
        assert host.reconciler.slots() == slots
        assert shown(host) == [(short("B"), ViewState.APPLIED)]
        assert await host.apply(make_offer({"soul.md": "B"}, revision=2)) == second
        await host.apply(make_end(RESTORE, "soul.md", revision=3))
        assert host.text("soul.md") == "mine"


async def test_drift_while_the_agent_was_down_is_the_first_view(tmp_path: Path) -> None:
    """A new epoch begins with what is on disk, not with what was written once."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
    (tmp_path / "root" / "soul.md").write_text("edited")
    async with running_host(tmp_path) as host:
        assert shown(host) == [(short("edited"), ViewState.DRIFTED)]


@pytest.mark.fault(47)
async def test_a_journal_that_cannot_be_read_is_set_aside_and_never_guessed(tmp_path: Path) -> None:
    """The condition says so, the slot is unknown, and its baseline is lost rather than made up."""
    async with running_host(tmp_path) as host:
        (host.root / "soul.md").write_text("mine")
        await host.apply(make_offer({"soul.md": "A"}))
    [journal] = (tmp_path / "state" / "journal" / "slots").iterdir()
    journal.write_bytes(b"")
    async with running_host(tmp_path) as host:
        assert [condition.code for condition in host.reconciler.conditions()] == ["JOURNAL_QUARANTINED"]
        assert host.reconciler.slots() == ()
        offer = make_offer({"soul.md": "B"}, revision=2, applied_before=True)
        assert (await host.apply(offer)).result is Result.APPLIED
        assert code(await host.apply(make_end(RESTORE, "soul.md", revision=3))) is ReasonCode.BASELINE_LOST


async def test_slots_of_a_participant_that_left_agent_toml_are_kept_and_said(tmp_path: Path) -> None:
    """Its files are left alone, and come back under management with the participant."""
    async with running_host(tmp_path) as host:
        (host.root / "soul.md").write_text("mine")
        await host.apply(make_offer({"soul.md": "A"}))
    async with running_host(tmp_path, name="bot-2") as host:
        assert [condition.code for condition in host.reconciler.conditions()] == ["PARTICIPANT_UNKNOWN"]
        assert host.reconciler.slots() == ()
    async with running_host(tmp_path) as host:
        await host.apply(make_end(RESTORE, "soul.md", revision=2))
        assert host.text("soul.md") == "mine"


async def test_an_apply_waits_for_the_journal_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For intent and final, whatever the number of files; in all seven times for a single one, with its view."""
    synced = Synced(monkeypatch)
    async with running_host(tmp_path) as host:
        (host.root / "soul.md").write_text("mine")
        await host.apply(make_offer({"soul.md": "A"}))
        slots, [journal] = tmp_path / "state" / "journal" / "slots", host.reconciler.slots()
        name = f"bot-1.{journal.slot_id.hex()}.json"
        synced.taken()
        await host.apply(make_offer({"soul.md": "B", "b.md": "B"}, revision=2))
        assert synced.taken(below=slots) == [name, name]
        await host.apply(make_offer({"soul.md": "C"}, revision=3))
        # The content, and at the same time the way back and its name; the intent, the content's name, the final.
        assert len(synced.taken(below=tmp_path)) == 6  # the view's is the spool's, which is not of this test


async def test_status_says_per_slot_and_file_what_an_operator_asks(tmp_path: Path) -> None:
    """Desired and running digests, state and the last reason."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        (host.root / "soul.md").write_text("x")
        await host.reconciler.observed("bot-1", "soul.md")
        await host.apply(make_offer({"soul.md": "B"}, revision=2))
        [slot] = host.reconciler.status()
        assert (slot["revision"], slot["result"]) == ("2", "refused")
        assert slot["reason"]["code"] == "DRIFTED"  # type: ignore[index]
        assert slot["files"] == [
            {
                "path": "soul.md",
                "desiredDigest": "sha256:" + digest(b"A").hex(),
                "runningDigest": "sha256:" + digest(b"x").hex(),
                "state": "drifted",
                "loadedDigest": None,
                "loadedAt": None,
            }
        ]


async def test_a_look_around_tells_what_changed_and_nothing_else(tmp_path: Path) -> None:
    """Edited, gone, back: each is a view; what is as it was last seen is none."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A", "b.md": "B"}))
        views = len(host.views)
        await host.reconciler.look_around()
        assert len(host.views) == views
        (host.root / "soul.md").write_text("edited")
        (host.root / "b.md").unlink()
        await host.reconciler.look_around()
        await host.reconciler.look_around()
        assert {state for _, state in shown(host)[views:]} == {ViewState.DRIFTED, ViewState.MISSING}
        assert len(host.views) == views + 2
        (host.root / "soul.md").write_text("A")
        await host.reconciler.look_around()
        assert shown(host)[-1] == (digest(b"A").hex()[:6], ViewState.APPLIED)


async def test_an_access_list_is_kept(tmp_path: Path) -> None:
    """Without it the group bits of its mode, which are its mask, would let the whole group in."""
    async with running_host(tmp_path) as host:
        target = host.root / "soul.md"
        target.write_text("mine")
        nobody = 2**32 - 1
        access = [(1, 6, nobody), (2, 6, 65534), (4, 0, nobody), (16, 6, nobody), (32, 0, nobody)]
        entries = b"".join(struct.pack("<HHI", *one) for one in access)  # u::rw u:65534:rw g::- m::rw o::-
        try:
            os.setxattr(target, "system.posix_acl_access", struct.pack("<I", 2) + entries)
        except OSError as error:
            pytest.skip(f"no access lists here: {error.strerror}")
        before = os.getxattr(target, "system.posix_acl_access")
        assert (await host.apply(make_offer({"soul.md": "A"}))).result is Result.APPLIED
        assert os.listxattr(target) == ["system.posix_acl_access"]
        assert os.getxattr(target, "system.posix_acl_access") == before
