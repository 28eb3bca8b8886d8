"""What is in a spool's directory: epochs, their segments, and what stands in the place of a record that is gone.

Hides how damage of any kind becomes records that go up in its place. Whatever happened to the files, an epoch
gives a record for each of its sequences, the same at every asking: the one that was written, or a declared
loss that says why it is gone.
"""

import hashlib
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from agent.cursor import CURSOR, Cursor, Position, mark_path, parse_mark_name, read_mark, start_of
from agent.segments import (
    FRAME_OVERHEAD,
    VERSION,
    Unreadable,
    frames,
    is_torn,
    parse_segment_name,
    read_from,
    records_in,
)
from shared import logs, wire
from shared.model import CHAIN_START, Loss, Record

_log = logs.get(__name__)

DAMAGED_SUFFIX = ".damaged"
MAX_KEPT = 16
"""Damaged segments that are kept for whoever looks into it; the oldest go first."""

SPOOL_FULL = "spool_full"
CAUSES = ("torn", "corrupt", "missing_segment", "unreadable", SPOOL_FULL)
"""Why records are declared lost."""


@dataclass(slots=True, kw_only=True)
class Segment:
    """A file of an epoch; it ends where the next one begins, whatever else lies in it.

    `is_damaged`: something in it could not be read. What could, where the disk gives only parts, is kept in
    memory until the segment is done with, so that the disk is asked once.
    """

    first_seq: int
    path: Path
    size: int = 0
    is_damaged: bool = False
    is_unreadable: bool = False
    _salvaged: bytes | None = None

    def read(self, start: int) -> bytes:
        """What lies in it from `start` on. Raises OSError where that may be known later."""
        if self.is_unreadable:
            return b""
        if self._salvaged is None:
            try:
                data, is_whole = read_from(self.path, start)
                if is_whole:
                    return data
                self._salvaged, _ = read_from(self.path, 0)
                _log.error("spool.segment_salvaged", name=self.path.name)
            except Unreadable as unreadable:
                _log.error("spool.segment_unreadable", name=self.path.name, error=str(unreadable))
                self.is_unreadable = self.is_damaged = True
                return b""
        return self._salvaged[start:]

    def retire(self) -> Path | None:
        """The file is gone, or put aside where it was damaged: then, its new name. Raises OSError."""
        if not self.is_damaged:
            self.path.unlink(missing_ok=True)
            return None
        with suppress(FileNotFoundError):
            return self.path.rename(self.path.with_name(self.path.name + DAMAGED_SUFFIX))
        return None


@dataclass(frozen=True, slots=True)
class Item:
    """One record as it is sent, and where reading goes on behind it."""

    seq: int
    raw: bytes
    resume: tuple[int, int]
    lost: str = ""  # why the original is gone, where this is its replacement
    count: int = 0  # of records it stands for, where it is a replacement


@dataclass(slots=True, kw_only=True)
class Epoch:
    """The records of one start of the daemon; `tail` is a sequence in its files, `at` how far it is done with.

    `drops` are sequences that stand for so many reports that found the spool full.
    """

    id: bytes
    at: Position
    segments: list[Segment] = field(default_factory=list)
    size: int = 0  # of all segments
    tail: int = 0
    drops: dict[int, int] = field(default_factory=dict)
    resume: tuple[int, int] = (0, 0)  # (segment's first sequence, offset) behind `at.acked`, where known

    @classmethod
    def begun(cls, epoch: bytes) -> "Epoch":
        """An epoch without records."""
        return cls(id=epoch, at=start_of(epoch))

    @property
    def acked(self) -> int:
        """The last sequence that is done with."""
        return self.at.acked

    def items(self) -> Iterator[Item]:
        """What is unacknowledged, in order, without a gap: a declared loss stands for a record that is gone."""
        expected, resume = self.acked + 1, self.resume
        for index, segment in enumerate(self.segments):
            is_last = index == len(self.segments) - 1
            until = self.tail if is_last else self.segments[index + 1].first_seq - 1
            if until < expected:
                continue
            yield from self._gone(range(expected, segment.first_seq), "missing_segment", resume)
            expected = max(expected, segment.first_seq)
            start = self.resume[1] if self.resume[0] == segment.first_seq else 0
            data = segment.read(start)
            end = 0
            for frame in frames(data):
                if frame.seq > until:
                    break
                end = frame.end
                if frame.seq < expected:
                    continue
                yield from self._gone(range(expected, frame.seq), "corrupt", resume, segment)
                resume = (segment.first_seq, start + end)
                yield Item(frame.seq, frame.payload, resume)
                expected = frame.seq + 1
            cause = "unreadable" if segment.is_unreadable else _cause(data[end:], is_last=is_last)
            yield from self._gone(range(expected, until + 1), cause, resume, segment)
            expected = until + 1
        yield from self._gone(range(expected, self.tail + 1), "missing_segment", resume)

    def _gone(
        self, sequences: range, reason: str, resume: tuple[int, int], segment: Segment | None = None
    ) -> Iterator[Item]:
        """One declared loss in the place of each, the same bytes every time."""
        for seq in sequences:
            dropped = self.drops.get(seq)
            if dropped is None and segment is not None:
                segment.is_damaged = True
            count, why = (1, reason) if dropped is None else (dropped, SPOOL_FULL)
            identity = hashlib.sha256(b"variantd loss" + self.id + seq.to_bytes(8, "big")).digest()[:16]
            moment = int.from_bytes(self.id[:6], "big") * 1000  # when the epoch began: its id is a UUIDv7
            # What was dropped never had a sequence of its own.
            body = Loss(reason=why, count=count, epoch=self.id, first_seq=seq if dropped is None else 0)
            raw = wire.record_to_bytes(Record(id=identity, recorded_at=moment, body=body))
            yield Item(seq, raw, resume, why, count)


def _cause(rest: bytes, *, is_last: bool) -> str:
    """Why records are gone of a segment behind whose last intact frame there is `rest`."""
    if not rest:
        return "missing_segment"
    return "torn" if is_last and is_torn(rest) else "corrupt"


# -- a directory -------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Contents:
    """What a spool's directory holds: `epochs`, the oldest first; segments put aside as damaged, the oldest
    first; and how many segments only a newer version can read."""

    epochs: list[Epoch]
    damaged: list[Path]
    newer: int = 0


def contents(directory: Path, cursor: Cursor) -> Contents:
    """What lies in `directory`; only the last segment of each epoch is read. Changes nothing."""
    found: dict[bytes, Epoch] = {}
    damaged: list[Path] = []
    newer = 0
    for path in sorted(directory.iterdir()):
        named, marked = parse_segment_name(path.name), parse_mark_name(path.name)
        if named is not None and named.version > VERSION:
            newer += 1  # left as it is: the version that wrote it goes on with it once it is back
        elif named is not None:
            status = path.lstat()
            odd = not stat.S_ISREG(status.st_mode)
            segment = Segment(first_seq=named.first_seq, path=path, size=0 if odd else status.st_size)
            segment.is_unreadable = segment.is_damaged = odd
            _epoch_in(found, named.epoch).segments.append(segment)
        elif marked is not None:
            _epoch_in(found, marked)
        elif path.name.endswith(DAMAGED_SUFFIX):
            damaged.append(path)
        elif not path.name.startswith(CURSOR):
            _log.warning("spool.foreign_file", name=path.name)
    for (epoch_id, seq), count in cursor.account.drops.items():
        _epoch_in(found, epoch_id).drops[seq] = count
    for epoch in found.values():
        _measure(epoch, directory, cursor)
    return Contents(
        epochs=sorted(found.values(), key=lambda epoch: epoch.at.sent_as), damaged=damaged, newer=newer
    )


def _epoch_in(found: dict[bytes, Epoch], epoch: bytes) -> Epoch:
    return found.setdefault(epoch, Epoch.begun(epoch))


def _measure(epoch: Epoch, directory: Path, cursor: Cursor) -> None:
    """`at` and `tail` of an epoch are known, as exactly as its files tell."""
    epoch.at = cursor.account.positions.get(epoch.id, epoch.at)
    mark = read_mark(directory, epoch.id)
    epoch.tail = _tail(epoch, mark)
    epoch.tail = max([epoch.tail, epoch.acked, *epoch.drops])
    epoch.size = sum(segment.size for segment in epoch.segments)
    if cursor.damaged:
        # What is not there was acknowledged and deleted, as far as anybody knows. The chain to go on with is
        # gone as well: the control plane will say that the epoch diverged, and drop what it has by record id.
        first = epoch.segments[0].first_seq - 1 if epoch.segments else mark or 0
        if first > epoch.acked:
            epoch.at = Position(acked=first, chain=CHAIN_START, sent_as=epoch.at.sent_as, base=epoch.at.base)


def _tail(epoch: Epoch, mark: int | None) -> int:
    """The last sequence that somebody may have been answered for.

    Where the mark is gone too, bytes behind the last intact frame count for as many records as they seem to be.
    """
    while epoch.segments:
        last = epoch.segments[-1]
        data = last.read(0)
        end, tail = 0, last.first_seq - 1
        for frame in frames(data):
            end, tail = frame.end, max(tail, frame.seq)
        if end or tail <= _believable(epoch, mark):
            return max(tail, mark) if mark is not None else tail + records_in(data[end:])
        _log.warning("spool.foreign_file", name=last.path.name)
        epoch.segments.pop()
    return mark or 0


def _believable(epoch: Epoch, mark: int | None) -> int:
    """The highest sequence behind which the last segment may begin, where no record in it tells."""
    known = [epoch.acked, mark or 0]
    if len(epoch.segments) > 1:
        before = epoch.segments[-2]
        known.append(before.first_seq + before.size // FRAME_OVERHEAD)
    return max(known)


def remove_mark(directory: Path, epoch: Epoch) -> None:
    """The mark of an epoch that is done with is gone."""
    mark_path(directory, epoch.id).unlink(missing_ok=True)
