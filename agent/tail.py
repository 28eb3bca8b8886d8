"""The end of the spool that is written to: the only code that appends, and what it does when a disk fails.

Hides segment after segment, the mark behind each sync, and that a sync which failed is never believed later.
"""

import errno
import os
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from agent.cursor import Mark, write_all
from agent.durable import sync_directory
from agent.epochs import Epoch, Segment
from agent.segments import FRAME_OVERHEAD, segment_name, to_frame
from shared.model import Loss, Record, Unseen, View

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No space, by any bound."""


@dataclass(kw_only=True)
class Append:
    """Records that are to be durable together, and who waits for that."""

    records: list[tuple[Record, bytes]]
    future: "Future[None]" = field(default_factory=Future)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes on disk by participant."""
        sizes: dict[str, int] = {}
        for record, raw in self.records:
            name = whose(record)
            sizes[name] = sizes.get(name, 0) + len(raw) + FRAME_OVERHEAD
        return sizes

    @property
    def size(self) -> int:
        """All of them."""
        return sum(self.sizes.values())

    @cached_property
    def reserved(self) -> bool:
        """What was on disk has room of its own and is never dropped."""
        return all(isinstance(record.body, View | Unseen) for record, _ in self.records)

    def refuse(self, error: BaseException) -> None:
        """None of them is."""
        self.future.set_exception(error)


def whose(record: Record) -> str:
    """The participant that a record is of; empty where it stands for several."""
    return "" if isinstance(record.body, Loss) else record.body.participant


class Tail:
    """Appends to one epoch, until `close`; then to another."""

    def __init__(self, directory: Path, *, segment_bytes: int) -> None:
        self._directory, self._segment_bytes = directory, segment_bytes
        self._fd: int | None = None  # of the epoch's last segment, while that is written to
        self._mark: Mark | None = None  # once the epoch has a segment

    @property
    def is_open(self) -> bool:
        """A segment is being written to."""
        return self._fd is not None

    def write(self, epoch: Epoch, raws: Sequence[bytes]) -> None:
        """`raws` are durable behind the tail of `epoch`. Raises OSError, having stored nothing.

        After an fsync that failed, what the page cache says of the file is worthless: the group is written
        again from memory to a fresh file, once.
        """
        data = b"".join(to_frame(seq, raw) for seq, raw in enumerate(raws, epoch.tail + 1))
        for last_try in (False, True):
            try:
                segment = self._segment(epoch)
                assert self._fd is not None
                write_all(self._fd, data)
                os.fdatasync(self._fd)  # the size is part of what it makes durable
            except OSError as error:
                self._abandon(epoch)
                if last_try or error.errno in FULL:
                    raise
            else:
                segment.size += len(data)
                epoch.size += len(data)
                epoch.tail += len(raws)
                if self._mark is not None:
                    self._mark.move(epoch.tail)
                return

    def _segment(self, epoch: Epoch) -> Segment:
        """The segment to write to, durable in its directory."""
        if self._mark is None:
            self._mark = Mark(self._directory, epoch.id)
        if self._fd is not None and epoch.segments[-1].size >= self._segment_bytes:
            self.release()
        if self._fd is None:
            path = self._directory / segment_name(epoch.id, epoch.tail + 1)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o600)
            epoch.segments.append(Segment(first_seq=epoch.tail + 1, path=path))
            sync_directory(self._directory)
        return epoch.segments[-1]

    def _abandon(self, epoch: Epoch) -> None:
        """The segment ends before the write that failed; what comes next goes to a fresh file.

        Where even cutting it fails, the rest is ignored anyway once a next segment exists: a segment ends
        where the next one begins.
        """
        if self._fd is None:
            return
        segment = epoch.segments[-1]
        with suppress(OSError):
            os.ftruncate(self._fd, segment.size)
        self.release()
        if not segment.size:
            epoch.segments.pop()
            with suppress(OSError):
                segment.path.unlink()

    def release(self) -> None:
        """What comes next goes to a fresh segment."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def close(self) -> None:
        """What comes next goes to another epoch. Repeating it changes nothing."""
        self.release()
        if self._mark is not None:
            self._mark.close()
            self._mark = None
