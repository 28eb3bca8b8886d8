"""The journal: what was saved is read back, what cannot be read is set aside, contents outlive restarts."""

import json
import resource
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.journal import MAX_BYTES, Journal
from agent.slots import MAX_UNACKNOWLEDGED, Change, Condemned, FileImage, Probation, Slot, SlotFile, Undo
from shared.model import (
    Durations,
    FileOutcome,
    OfferAction,
    Outcome,
    Reason,
    ReasonCode,
    Result,
    Step,
    digest,
)
from tests.support.synced import Synced

SLOT = bytes(15) + b"\x01"


def make_outcome(revision: int) -> Outcome:
    return Outcome(
        participant="bot-1",
        slot_id=SLOT,
        revision=revision,
        attempt=2,
        step=Step.RELOAD_OWED,
        result=Result.ROLLED_BACK,
        files=(FileOutcome(path="a.md", desired=digest(b"A"), running=None, previous=digest(b"")),),
        occurred_at=1_800_000_000_000_000,
        reason=Reason(code=ReasonCode.RELOAD_FAILED, message="“no”", remedy="look"),
        durations=Durations(fetch=1, check=2, write=3, reload=4, probe=5),
    )


def make_slot(**values: object) -> Slot:
    image = FileImage(digest=digest(b"old"), mode=0o640, uid=1, gid=2)
    absent = FileImage(digest=None, made=("deep", "deep/er"))
    full = Slot(
        participant="bot-1",
        slot_id=SLOT,
        revision=7,
        attempt=2,
        action=OfferAction.WRITE,
        step=Step.CHECKED,
        result=Result.IN_PROGRESS,
        files=(
            SlotFile(
                path="a.md", real="real/a.md", before=image, original=image, applied=digest(b"A"), order=3
            ),
            SlotFile(
                path="b.md",
                real="b.md",
                before=None,
                change=Change(old=absent, new=image, temp=".variantd-1.tmp"),
            ),
        ),
        reload_owed=True,
        swapped_at=5,
        closed=True,
        outcome=make_outcome(7),
        unacknowledged=(make_outcome(6), make_outcome(7)),
        quarantined=(Condemned(path="a.md", digest=digest(b"bad"), code=ReasonCode.CHECK_FAILED),),
        probation=Probation(
            revision=7,
            attempt=2,
            since=1,
            until=2,
            files=(
                SlotFile(
                    path="a.md",
                    real="real/a.md",
                    before=image,
                    change=Change(old=image, new=absent),
                    loaded_at=4,
                ),
            ),
        ),
        undo=Undo(
            reason=Reason(code=ReasonCode.PROBE_FAILED, message="m", remedy="r"), revision=7, attempt=2
        ),
        retrying=True,
        resumed=2,
    )
    return replace(full, **values)  # type: ignore[arg-type]


def loaded(directory: Path) -> tuple[Journal, dict[tuple[str, bytes], Slot]]:
    journal = Journal(directory)
    return journal, journal.load(now=1)


def test_a_slot_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    """Every field, in a directory and files that only the agent can read."""
    journal, slots = loaded(tmp_path / "journal")
    assert slots == {}
    slot = make_slot()
    journal.save(make_slot(revision=6))
    journal.save(slot)
    assert loaded(tmp_path / "journal")[1] == {slot.key: slot}
    [path] = (tmp_path / "journal" / "slots").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_slots_of_one_id_and_many_participants_are_apart(tmp_path: Path) -> None:
    """A slot id is the experiment's; the participant tells the slots apart."""
    journal, _ = loaded(tmp_path)
    slots = [
        make_slot(participant=name, outcome=None, unacknowledged=()) for name in ("a", "a.b", "A", "x" * 128)
    ]
    for slot in slots:
        journal.save(slot)
    assert loaded(tmp_path)[1] == {slot.key: slot for slot in slots}


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    head, body = data.split(b"\n", 1)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "flipped bit":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif kind == "zeroed":
        path.write_bytes(bytes(len(data)))
    elif kind == "newer version":
        path.write_bytes(head.replace(b" 1 ", b" 2 ") + b"\n" + body)
    elif kind == "another slot's":
        path.rename(path.with_name("bot-2." + SLOT.hex() + ".json"))
    elif kind == "missing field":
        table = json.loads(body)
        del table["files"]
        body = json.dumps(table).encode()
        path.write_bytes(b"variantd-slot 1 " + digest(body).hex().encode() + b"\n" + body)
    else:
        path.write_bytes(b"\xff\xfe\n\n")


@pytest.mark.fault(47)
@pytest.mark.parametrize(
    "kind",
    ["empty", "torn", "flipped bit", "zeroed", "newer version", "another slot's", "missing field", "garbage"],
)
def test_a_file_that_cannot_be_read_is_set_aside_and_reported(tmp_path: Path, kind: str) -> None:
    """Never guessed, never lost: a person finds it, contents included, at this start and the next."""
    journal, _ = loaded(tmp_path)
    kept = journal.keep(b"old")
    journal.save(make_slot())
    other = make_slot(slot_id=bytes(16), files=(), outcome=None, unacknowledged=())
    journal.save(other)
    damage(tmp_path / "slots" / f"bot-1.{SLOT.hex()}.json", kind)
    for _ in range(2):
        journal, slots = loaded(tmp_path)
        assert slots == {other.key: other}
        [condition] = journal.conditions()
        assert (condition.code, condition.severity) == ("JOURNAL_QUARANTINED", "error")
        assert journal.content(kept) == b"old"
    [aside] = (tmp_path / "slots").glob("*.quarantined")
    journal.save(make_slot())
    damage(tmp_path / "slots" / f"bot-1.{SLOT.hex()}.json", "empty")
    loaded(tmp_path)
    assert len(list((tmp_path / "slots").glob("*.quarantined"))) == 2
    assert aside.exists()


def story() -> list[Slot]:
    """An end, the next intent, what that came to."""
    end = make_slot(revision=6, result=Result.APPLIED)
    return [end, make_slot(), make_slot(result=Result.ROLLED_BACK)]


def test_what_is_saved_of_a_slot_waits_for_the_disk_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is added to the slot's file, which is replaced where it has become long, so that it stays small."""
    synced = Synced(monkeypatch)
    journal, _ = loaded(tmp_path)
    assert synced.taken() == ["slots", "contents"]  # what was named right before a kill
    name = f"bot-1.{SLOT.hex()}.json"
    end, intent, done = story()
    waited = []
    for slot in (end, intent, done, intent, done, end):
        journal.save(slot)
        waited.append(synced.taken())
        assert loaded(tmp_path)[1] == {slot.key: slot}
        synced.taken()
    whole, added = [f"{name}.tmp", "slots"], [name]
    assert waited == [whole, added, added, added, added, added]
    journal.note(done)
    assert synced.taken() == []
    assert loaded(tmp_path)[1] == {done.key: done}
    synced.taken()
    for _ in range(200):
        journal.save(intent)
        assert (tmp_path / "slots" / name).stat().st_size <= MAX_BYTES
    assert synced.taken().count("slots") < 20
    assert loaded(tmp_path)[1] == {intent.key: intent}


@pytest.mark.fault(2, 47)
@pytest.mark.parametrize("filled", [b"", b"\0"])
def test_what_was_being_added_when_the_power_went_holds_nothing(tmp_path: Path, filled: bytes) -> None:
    """Nobody was told of it; the record before it does, wherever the new one breaks off, and is gone on from."""
    journal, _ = loaded(tmp_path)
    path = tmp_path / "slots" / f"bot-1.{SLOT.hex()}.json"
    ends = []
    for slot in story():
        journal.save(slot)
        ends.append((path.stat().st_size, slot))
    data = path.read_bytes()
    for cut in (*range(ends[0][0], len(data), 397), *(size - 1 for size, _ in ends[1:])):
        path.write_bytes(data[:cut] + filled * (len(data) - cut))
        # The end of the last line is not needed: what follows tells that it is whole.
        before = [slot for size, slot in ends if size <= cut + 1]
        journal, slots = loaded(tmp_path)
        assert slots == {before[-1].key: before[-1]}, cut
        journal.save(make_slot(revision=8))
        assert loaded(tmp_path)[1] == {before[-1].key: make_slot(revision=8)}, cut


@pytest.mark.fault(47)
def test_a_damaged_record_among_several_is_never_passed_over(tmp_path: Path) -> None:
    """What was durable and cannot be read is no torn end: the record before it is not what holds."""
    journal, _ = loaded(tmp_path)
    for slot in story():
        journal.save(slot)
    path = tmp_path / "slots" / f"bot-1.{SLOT.hex()}.json"
    data = path.read_bytes()
    for position in (len(data) // 2, len(data) - 9):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert loaded(tmp_path)[1] == {}
        [aside] = (tmp_path / "slots").glob("*.quarantined")
        aside.unlink()


@pytest.mark.fault(47)
@settings(max_examples=60)
@given(data=st.binary(max_size=200), position=st.integers(0, 6000), cut=st.booleans())
def test_no_damage_is_taken_for_a_slot(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, position: int, cut: bool
) -> None:
    """Whatever bytes are written into a journal file, it is a slot that was saved or it is set aside."""
    directory = tmp_path_factory.mktemp("journal")
    journal, _ = loaded(directory)
    saved = story()
    for slot in saved:
        journal.save(slot)
    path = directory / "slots" / f"bot-1.{SLOT.hex()}.json"
    whole = path.read_bytes()
    position = min(position, len(whole))
    path.write_bytes(whole[:position] + data + (b"" if cut else whole[position + len(data) :]))
    _, slots = loaded(directory)
    assert not slots or slots[slot.key] in saved


def test_contents_are_kept_once_and_go_when_nothing_refers_to_them(tmp_path: Path) -> None:
    """Baselines, originals and what an intent needs stay; the rest goes at the next start."""
    journal, _ = loaded(tmp_path)
    images = {name: journal.keep(name.encode()) for name in ("before", "original", "old", "new", "nobody")}
    assert journal.keep(b"before") == images["before"]
    file = SlotFile(
        path="a.md",
        real="a.md",
        before=FileImage(digest=images["before"]),
        original=FileImage(digest=images["original"]),
        change=Change(old=FileImage(digest=images["old"]), new=FileImage(digest=images["new"])),
    )
    journal.save(make_slot(files=(file,)))
    journal, _ = loaded(tmp_path)
    found = {name for name, value in images.items() if journal.content(value) == name.encode()}
    assert found == {"before", "original", "old", "new"}


def test_closed_slots_are_forgotten_once_there_are_many_newer_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what they put back; what is open, owed or known to them alone stays, and so do another participant's."""
    monkeypatch.setattr("agent.journal.CLOSED_KEPT", 2)
    journal, _ = loaded(tmp_path)
    baselines = {name: journal.keep(name.encode()) for name in ("first", "last", "none")}

    def slot(number: int, *, baseline: str = "none", **values: object) -> Slot:
        file = SlotFile(path="a.md", real="a.md", before=FileImage(digest=baselines[baseline]), order=number)
        closed = Slot(
            participant="bot-1",
            slot_id=bytes([number]) * 16,
            revision=1,
            attempt=1,
            action=OfferAction.CLOSE,
            step=Step.SWAPPED,
            result=Result.APPLIED,
            files=(file,),
            closed=True,
            outcome=replace(make_outcome(1), occurred_at=number),
        )
        return replace(closed, **values)  # type: ignore[arg-type]

    original = SlotFile(path="a.md", real="a.md", before=None, original=FileImage(digest=None))
    needed = (
        slot(2, unacknowledged=(make_outcome(1),)),
        slot(3, files=(original,)),
        slot(4, quarantined=(Condemned(path="a.md", digest=digest(b"bad"), code=ReasonCode.CHECK_FAILED),)),
        slot(5, closed=False),
        slot(6, result=Result.STUCK),
        slot(7, reload_owed=True),
        slot(8, participant="bot-2"),
        slot(11),
        slot(12, baseline="last"),
    )
    for one in (*needed, slot(1, baseline="first"), slot(9), slot(10)):
        journal.save(one)
    journal, slots = loaded(tmp_path)
    assert slots.keys() == {one.key for one in needed}
    assert (journal.content(baselines["first"]), journal.content(baselines["last"])) == (None, b"last")
    assert loaded(tmp_path)[1] == slots
    journal.save(again := slot(9, outcome=replace(make_outcome(1), occurred_at=13)))  # taken up once more
    assert again.key in loaded(tmp_path)[1]


def test_nothing_is_forgotten_while_a_journal_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of the record is all that a person has to mend the rest."""
    monkeypatch.setattr("agent.journal.CLOSED_KEPT", 0)
    journal, _ = loaded(tmp_path)
    done = make_slot(
        result=Result.APPLIED, files=(), unacknowledged=(), quarantined=(), reload_owed=False, retrying=False
    )
    journal.save(done)
    (tmp_path / "slots" / "bot-1.json").write_text("not one")
    assert list(loaded(tmp_path)[1]) == [done.key]
    (tmp_path / "slots" / "bot-1.quarantined").unlink()
    assert loaded(tmp_path)[1] == {}


@pytest.mark.fault(47)
def test_damaged_content_is_no_content(tmp_path: Path) -> None:
    """A baseline is put back exactly or not at all."""
    journal, _ = loaded(tmp_path)
    value = journal.keep(b"old")
    (tmp_path / "contents" / value.hex()).write_bytes(b"odd")
    assert journal.content(value) is None


def test_leftovers_of_an_interrupted_write_go_at_the_start(tmp_path: Path) -> None:
    """They were never referred to."""
    loaded(tmp_path)
    (tmp_path / "slots" / "bot-1.json.tmp").write_text("half")
    (tmp_path / "contents" / "ab.tmp").write_text("half")
    loaded(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """And no temporary file."""
    journal, _ = loaded(tmp_path)
    slot = make_slot()
    journal.save(slot)
    [path] = (tmp_path / "slots").iterdir()
    for limit in (100, path.stat().st_size + 100):  # replaced, and added to
        journal, _ = loaded(tmp_path)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                journal.save(make_slot(revision=8))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list((tmp_path / "slots").iterdir()) == [path]
        assert loaded(tmp_path)[1] == {slot.key: slot}
        journal.save(make_slot(revision=9))
        assert loaded(tmp_path)[1] == {slot.key: make_slot(revision=9)}
        journal.save(slot)


def test_outcomes_are_owed_until_acknowledged_up_to_a_limit() -> None:
    """The same outcome is owed once; beyond the limit the oldest go."""
    slot = make_slot(unacknowledged=())
    for revision in range(1, MAX_UNACKNOWLEDGED + 3):
        slot = slot.ended(make_outcome(revision)).ended(make_outcome(revision))
    assert [outcome.revision for outcome in slot.unacknowledged] == list(range(3, MAX_UNACKNOWLEDGED + 3))
    assert slot.outcome == make_outcome(MAX_UNACKNOWLEDGED + 2)
    slot = slot.acknowledged(make_outcome(3).key).acknowledged(make_outcome(3).key)
    assert slot.unacknowledged[0].revision == 4


async def test_damaged_content_is_kept_anew(tmp_path: Path) -> None:
    """What is asked to be kept is durable afterwards, whatever lay there under its name."""
    journal = Journal(tmp_path)
    journal.load(now=1)
    value = journal.keep(b"mine")
    (tmp_path / "contents" / value.hex()).write_bytes(b"mi\0e")
    journal.keep(b"mine")
    assert journal.content(value) == b"mine"
