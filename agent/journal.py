"""What the agent has promised and done, so that a restart goes on from it: one small file per slot.

Hides when a file is replaced and when added to, and where the contents of baselines are kept. A journal file that
cannot be read is set aside and reported, never guessed at. Everything here blocks: call it from a thread.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock

from agent.durable import sync_directory
from agent.slot_format import encode, read
from agent.slots import FileImage, Slot, SlotKey
from shared.logs import get
from shared.model import Condition, Digest, digest

MAX_BYTES = 32_768
"""A slot's file is not added to beyond this, but replaced; a start reads all of it."""

CLOSED_KEPT = 1_000
"""Of a participant's closed slots: an experiment that was ended so many ago is started on this host as a new one."""

_log = get(__name__)


class Journal:
    """The slots' journal files in `directory`, and the contents they refer to."""

    def __init__(self, directory: Path) -> None:
        self._slots = directory / "slots"
        self._contents = directory / "contents"
        self._conditions: list[Condition] = []
        self._ends: dict[str, int] = {}  # of files that can be added to
        self._lock = Lock()

    def load(self, *, now: int) -> dict[SlotKey, Slot]:
        """Every slot that can be read; what cannot is renamed `*.quarantined` and becomes a condition.

        Of a participant's closed slots the CLOSED_KEPT that were closed last; those before are forgotten.
        """
        for directory in (self._slots, self._contents):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for leftover in directory.glob("*.tmp"):
                leftover.unlink()
            # What was named right before a kill is relied on from now on, and was perhaps not durable yet.
            sync_directory(directory)
        slots: dict[SlotKey, Slot] = {}
        for path in sorted(self._slots.glob("*.json")):
            try:
                data = path.read_bytes()
                slot, end = read(data)
                if _file_name(slot.key) != path.name:
                    raise ValueError("it is another slot's")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self._set_aside(path, f"{type(error).__name__}: {error}")
            else:
                slots[slot.key] = slot
                if end == len(data):
                    self._ends[path.name] = end
        self._conditions = [
            Condition(
                code="JOURNAL_QUARANTINED",
                severity="error",
                since_at=now,
                message=f"{path.name} could not be read and was set aside; its slot's baseline is lost",
            )
            for path in sorted(self._slots.glob("*.quarantined"))
        ]
        if not self._conditions:
            for slot in _outlived(slots.values()):
                self._forget(slot)
                del slots[slot.key]
            # A file set aside may refer to contents that only a person can still make use of.
            self._forget_contents(keeping=_references(slots.values()))
        return slots

    def conditions(self) -> tuple[Condition, ...]:
        """What was set aside, as of `load`."""
        return tuple(self._conditions)

    def save(self, slot: Slot) -> None:
        """The slot's file holds `slot`, durably. Raises OSError; then it holds what it held.

        It is added to the file, which waits for the disk once, or replaces a file that has become long, which waits
        twice.
        """
        self._put(slot, sync=os.fsync)

    def note(self, slot: Slot) -> None:
        """As `save`, but a power cut may take it back: for what is only said again then, as an outcome that is owed."""
        self._put(slot, sync=lambda _: None)

    def _put(self, slot: Slot, *, sync: Callable[[int], None]) -> None:
        name, record = _file_name(slot.key), encode(slot)
        end = self._ends.pop(name, None)  # until it is known again: a file that was not written is replaced
        if end and end + len(record) < MAX_BYTES:
            self._ends[name] = _add(self._slots / name, record, at=end, sync=sync)
        else:
            _write(self._slots / name, record)
            self._ends[name] = len(record)

    def keep(self, content: bytes) -> Digest:
        """`content` is durable until no slot refers to it and the agent starts again. Idempotent."""
        value = digest(content)
        path = self._contents / value.hex()
        with self._lock:  # two participants may keep the same content at once
            if self.content(value) is None:  # gone, or damaged
                _write(path, content)
        return value

    def content(self, value: Digest) -> bytes | None:
        """What was kept under the digest; None where it is gone or damaged."""
        try:
            content = (self._contents / value.hex()).read_bytes()
        except OSError:
            return None
        return content if digest(content) == value else None

    def _set_aside(self, path: Path, why: str) -> None:
        _log.error("journal.quarantined", file=path.name, why=why[:200])
        target = path.with_suffix(".quarantined")
        number = 1
        while target.exists():
            target = path.with_suffix(f".{number}.quarantined")
            number += 1
        path.rename(target)

    def _forget(self, slot: Slot) -> None:
        name = _file_name(slot.key)
        self._ends.pop(name, None)
        (self._slots / name).unlink()

    def _forget_contents(self, *, keeping: set[Digest]) -> None:
        for path in self._contents.iterdir():
            with suppress(ValueError):
                if bytes.fromhex(path.name) not in keeping:
                    path.unlink()


def _file_name(key: SlotKey) -> str:
    participant, slot_id = key
    return f"{participant}.{slot_id.hex()}.json"


def _add(path: Path, record: bytes, *, at: int, sync: Callable[[int], None]) -> int:
    """`record` follows what the file holds up to `at`, as durably as `sync` makes it; where it ends."""
    left = memoryview(b"\n" + record + b"\n")
    end = at + len(left)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.lseek(fd, at, os.SEEK_SET)
        while left:
            left = left[os.write(fd, left) :]
        sync(fd)
    except BaseException:
        with suppress(OSError):
            os.ftruncate(fd, at)
        raise
    finally:
        os.close(fd)
    return end


def _write(path: Path, data: bytes) -> None:
    temp = path.with_name(path.name + ".tmp")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temp.rename(path)
    except BaseException:
        with suppress(OSError):
            temp.unlink()
        raise
    sync_directory(path.parent)


def _outlived(slots: Iterable[Slot]) -> Iterator[Slot]:
    """Closed slots that nobody needs, but for the CLOSED_KEPT of each participant that were closed last."""
    closed: dict[str, list[Slot]] = defaultdict(list)
    for slot in slots:
        if slot.closed:
            closed[slot.participant].append(slot)
    for found in closed.values():
        found.sort(key=lambda slot: slot.ended_at, reverse=True)
        yield from (slot for slot in found[CLOSED_KEPT:] if not _is_needed(slot))


def _is_needed(slot: Slot) -> bool:
    """Something is owed, or it alone knows what a target held at first, or which content is not to be tried again."""
    owed = bool(slot.unacknowledged) or slot.reload_owed or slot.retrying or not slot.result.holds
    return owed or bool(slot.quarantined) or any(file.original for file in slot.files)


def _references(slots: Iterable[Slot]) -> set[Digest]:
    found: set[Digest] = set()
    for slot in slots:
        for file in (*slot.files, *(slot.probation.files if slot.probation else ())):
            images = [file.before, file.original, FileImage(digest=file.applied)]
            if file.change is not None:
                images += [file.change.old, file.change.new]
            found |= {image.digest for image in images if image is not None and image.digest is not None}
    return found
