"""Views and events on their way to the control plane, kept on disk until it has counted them.

Hides segment files, group commit, the cursor and what becomes of damage. One thread owns every file: what
waits to be appended while an fsync is in progress is written and synced together next (group commit), so
many reporters share one fsync and each is answered only after it.

A position is (epoch, seq): every start of the daemon opens a new epoch, sequences are contiguous from 1. A
record that cannot be read any more is replaced, at its own sequence, by a `Loss` of one record with an id
made of epoch and sequence: what is sent stays contiguous and the same at every re-send, and the chain hash
is over what is sent. A torn tail is declared too, although its writer may never have been answered.

At most one segment is in memory at a time, so neither a backlog nor its age costs memory or start-up time.
"""

import asyncio
import errno
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from agent.durable import sync_directory
from agent.segments import (
    FRAME_OVERHEAD,
    MAX_PAYLOAD,
    Cursor,
    Epoch,
    Item,
    Segment,
    find_epochs,
    segment_name,
    to_frame,
)
from shared import logs, wire
from shared.clock import Clock
from shared.errors import Error, Invalid, ResourceExhausted, Unavailable
from shared.ids import NewId
from shared.model import (
    Batch,
    Condition,
    Event,
    Loaded,
    Record,
    SpoolState,
    View,
    chain,
)

_log = logs.get(__name__)
T = TypeVar("T")

SEGMENT_BYTES = 1024 * 1024
MAX_BYTES = 1024 * 1024 * 1024
GROUP = 512  # appends in one commit: bounds how long the first of them waits for the last
VIEW_RESERVE = 8  # views may use 1/8 more than events: what was on disk stays known on a full spool


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the control plane said of a batch: durable and counted up to `through_seq`.

    `diverged`: it knows another history of this epoch; see `Spool.diverged`.
    """

    through_seq: int
    diverged: bool = False


@dataclass(slots=True)
class _Append:
    records: list[tuple[Record, bytes]]
    future: "Future[None]" = field(default_factory=Future)

    @property
    def size(self) -> int:
        return sum(len(raw) + FRAME_OVERHEAD for _, raw in self.records)

    @property
    def reserved(self) -> bool:
        return all(isinstance(record.body, View) for record, _ in self.records)


class Spool:
    """The spool in one directory; opening it begins a new epoch and starts its thread.

    Everything but the constructor and `close` may be called from one event loop only. Errors of the disk
    leave as `ResourceExhausted` (no space, or `max_bytes` reached: reason SPOOL_FULL) or `Unavailable`
    (reason SPOOL_UNWRITABLE); a call that raises has stored nothing that counts.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock,
        new_id: NewId,
        max_bytes: int = MAX_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._directory, self._clock, self._new_id = directory, clock, new_id
        self._max_bytes, self._segment_bytes = max_bytes, segment_bytes
        self._fd: int | None = None  # of the last segment of the last epoch, while that is written to
        self._conditions: dict[str, Condition] = {}
        self._oldest_at = 0
        self._listener: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cursor = Cursor(directory)
        self._lost = self._cursor.lost
        self._epochs = find_epochs(directory, self._cursor)
        self._epochs.append(Epoch(id=new_id()))
        self._forget_finished()
        self._find_oldest()
        self._state = self._count()
        self._queue: queue.SimpleQueue[_Append | Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="spool", daemon=True)
        self._thread.start()

    # -- what others call ------------------------------------------------------------------------

    async def append(self, body: View | Loaded | Event) -> Record:
        """The record of `body` is durable."""
        return (await self.append_all([body]))[0]

    async def append_all(self, bodies: Sequence[View | Loaded | Event]) -> list[Record]:
        """The records of all `bodies` are durable, in order; of none of them where it raises."""
        now = self._clock.now()
        records = [Record(id=self._new_id(), recorded_at=now, body=body) for body in bodies]
        encoded = [(record, wire.record_to_bytes(record)) for record in records]
        if any(len(raw) > MAX_PAYLOAD for _, raw in encoded):
            raise Invalid(f"a record has at most {MAX_PAYLOAD} bytes", reason="RECORD_TOO_LARGE")
        if encoded:
            work = _Append(encoded)
            self._put(work)
            # Shielded: a caller that goes away must not take its future from the writer.
            await asyncio.shield(asyncio.wrap_future(work.future))
        return records

    async def next_batch(self, limit_records: int, limit_bytes: int) -> Batch | None:
        """The first unacknowledged records, of one epoch, the oldest first; None where there are none.

        At least one record, whatever `limit_bytes` says. Asking again gives the same again.
        """
        return await self._do(lambda: self._batch(limit_records, limit_bytes))

    async def acknowledge(self, epoch: bytes, through_seq: int) -> None:
        """Records up to `through_seq` are done with, durably; segments without others are deleted.

        Repeating it, or naming an epoch that is gone, changes nothing; a sequence above the epoch's tail
        means its tail.
        """
        await self._do(lambda: self._acknowledge(epoch, through_seq))

    async def diverged(self, epoch: bytes) -> None:
        """What is unacknowledged of `epoch` stands in a new epoch, with the same record ids.

        The new epoch is the present one from here on, so what is appended later stays behind it. A crash
        on the way leaves both; the control plane drops the second by record id.
        """
        await self._do(lambda: self._diverge(epoch))

    def state(self) -> SpoolState:
        """What the spool held after the last change."""
        return self._state

    def lost(self) -> dict[str, int]:
        """Records declared lost and acknowledged as such, by reason, since this spool exists."""
        return dict(self._lost)

    def conditions(self) -> tuple[Condition, ...]:
        """What is wrong with the spool now."""
        return tuple(self._conditions.values())

    @property
    def writable(self) -> bool:
        """The last write succeeded, or none was tried."""
        return not {"SPOOL_FULL", "SPOOL_UNWRITABLE"} & self._conditions.keys()

    async def wait(self) -> None:
        """Returns once something is unacknowledged."""
        arrived = asyncio.Event()
        self._listener = (asyncio.get_running_loop(), arrived)
        while not self._state.depth:
            arrived.clear()
            if not self._state.depth:
                await arrived.wait()

    def close(self) -> None:
        """What was appended is on disk, the thread has ended. Repeating it changes nothing."""
        self._queue.put(None)
        self._thread.join()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    # -- the thread ------------------------------------------------------------------------------

    def _put(self, work: "_Append | Callable[[], None]") -> None:
        if not self._thread.is_alive():
            raise Unavailable("the spool is closed", reason="SPOOL_CLOSED")
        self._queue.put(work)

    async def _do(self, work: Callable[[], T]) -> T:
        future: Future[T] = Future()

        def run() -> None:
            try:
                result = work()
            except OSError as error:
                future.set_exception(self._refusal(error))
            except BaseException as error:
                future.set_exception(error)
            else:
                self._settle()
                future.set_result(result)

        self._put(run)
        return await asyncio.shield(asyncio.wrap_future(future))

    def _loop(self) -> None:
        while True:
            waiting = [self._queue.get()]
            with suppress(queue.Empty):
                while len(waiting) < GROUP:
                    waiting.append(self._queue.get_nowait())
            appends: list[_Append] = []
            for work in waiting:
                if isinstance(work, _Append):
                    appends.append(work)
                    continue
                self._commit(appends)
                appends = []
                if work is None:
                    return
                work()
            self._commit(appends)

    def _commit(self, group: list[_Append]) -> None:
        """Every one of `group` is answered: durable, or refused."""
        accepted = self._admitted(group)
        if not accepted:
            return
        try:
            self._write([raw for work in accepted for _, raw in work.records])
        except OSError as error:
            for work in accepted:
                work.future.set_exception(self._refusal(error))
            return
        except BaseException as error:
            for work in accepted:
                work.future.set_exception(error)
            return
        self._conditions.pop("SPOOL_UNWRITABLE", None)
        if len(accepted) == len(group):
            self._conditions.pop("SPOOL_FULL", None)
        if not self._oldest_at:
            self._oldest_at = accepted[0].records[0][0].recorded_at
        self._settle()
        for work in accepted:
            work.future.set_result(None)

    def _admitted(self, group: list[_Append]) -> list[_Append]:
        """Those of `group` that fit; the others are refused."""
        accepted: list[_Append] = []
        used = self._used()
        for work in group:
            limit = self._max_bytes + (self._max_bytes // VIEW_RESERVE if work.reserved else 0)
            if used + work.size > limit and not accepted and self._made_room():
                used = self._used()
            if used + work.size > limit:
                work.future.set_exception(self._full(f"holds {used} of at most {self._max_bytes} bytes"))
                continue
            accepted.append(work)
            used += work.size
        return accepted

    def _settle(self) -> None:
        self._state = self._count()
        if self._listener and self._state.depth:
            loop, arrived = self._listener
            with suppress(RuntimeError):  # that loop has ended; nobody waits there any more
                loop.call_soon_threadsafe(arrived.set)

    def _count(self) -> SpoolState:
        depth = sum(epoch.tail - epoch.acked for epoch in self._epochs)
        return SpoolState(
            epoch=self._epochs[-1].id,
            depth=depth,
            size=self._used(),
            oldest_at=self._oldest_at if depth else 0,
        )

    def _used(self) -> int:
        return sum(segment.size for epoch in self._epochs for segment in epoch.segments)

    # -- writing ---------------------------------------------------------------------------------

    def _write(self, raws: Sequence[bytes]) -> None:
        """`raws` are durable behind the tail of the present epoch. Raises OSError, having stored nothing.

        After an fsync that failed, what the page cache says of the file is worthless: the group is written
        again from memory to a fresh file, once.
        """
        epoch = self._epochs[-1]
        data = b"".join(to_frame(seq, raw) for seq, raw in enumerate(raws, epoch.tail + 1))
        for last_try in (False, True):
            try:
                segment = self._segment(epoch)
                fd = self._fd
                assert fd is not None
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fdatasync(fd)  # the size is part of what it makes durable
            except OSError as error:
                self._abandon(epoch)
                if last_try or error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
            else:
                segment.size += len(data)
                epoch.tail += len(raws)
                return

    def _segment(self, epoch: Epoch) -> Segment:
        """The segment to write to, durable in its directory."""
        if self._fd is not None and epoch.segments[-1].size >= self._segment_bytes:
            os.close(self._fd)
            self._fd = None
        if self._fd is None:
            path = self._directory / segment_name(epoch.id, epoch.tail + 1)
            self._fd = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
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
        os.close(self._fd)
        self._fd = None
        if not segment.size:
            epoch.segments.pop()
            with suppress(OSError):
                segment.path.unlink()

    def _made_room(self) -> bool:
        """Whether the open segment could be deleted, all of it being acknowledged."""
        epoch = self._epochs[-1]
        if self._fd is None or epoch.acked < epoch.tail:
            return False
        os.close(self._fd)
        self._fd = None
        with suppress(OSError):
            self._delete_segments(epoch)
        return True

    # -- reading ---------------------------------------------------------------------------------

    def _batch(self, limit_records: int, limit_bytes: int) -> Batch | None:
        for epoch in self._epochs:
            raws: list[bytes] = []
            size = 0
            for item in epoch.items():
                size += len(item.raw)
                if raws and (size > limit_bytes or len(raws) >= limit_records):
                    break
                if item.lost:
                    self._damaged(epoch, item)
                raws.append(item.raw)
            if raws:
                return Batch(
                    epoch=epoch.id,
                    first_seq=epoch.acked + 1,
                    chain=epoch.chain,
                    records=tuple(raws),
                    tail_seq=epoch.tail,
                )
        return None

    def _acknowledge(self, epoch_id: bytes, through_seq: int) -> None:
        epoch = next((epoch for epoch in self._epochs if epoch.id == epoch_id), None)
        if epoch is None or through_seq <= epoch.acked:
            return
        value, acked, resume = epoch.chain, epoch.acked, epoch.resume
        lost: dict[str, int] = dict(self._lost)
        for item in epoch.items():
            if item.seq > through_seq:
                break
            value, acked, resume = chain(value, item.raw), item.seq, item.resume
            if item.lost:
                lost[item.lost] = lost.get(item.lost, 0) + 1
        epoch.chain, epoch.acked, epoch.resume, self._lost = value, acked, resume, lost
        self._cursor.save(self._epochs, self._lost)
        self._forget_finished()
        if self._used() < self._max_bytes:
            self._conditions.pop("SPOOL_FULL", None)  # as far as is known; the next append finds out
        self._find_oldest()

    def _diverge(self, epoch_id: bytes) -> None:
        epoch = next((epoch for epoch in self._epochs if epoch.id == epoch_id), None)
        if epoch is None:
            return
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._epochs.append(Epoch(id=self._new_id()))
        group: list[bytes] = []
        for item in epoch.items():
            group.append(item.raw)
            if len(group) == GROUP:
                self._write(group)
                group = []
        if group:
            self._write(group)
        _log.warning("spool.diverged", epoch=epoch_id.hex(), again=epoch.tail - epoch.acked)
        epoch.acked = epoch.tail
        self._cursor.save(self._epochs, self._lost)
        self._forget_finished()

    def _forget_finished(self) -> None:
        """Segments without unacknowledged records are deleted, and epochs without segments forgotten."""
        gone = False
        for epoch in self._epochs:
            while len(epoch.segments) > 1 and epoch.segments[1].first_seq <= epoch.acked + 1:
                epoch.segments.pop(0).path.unlink(missing_ok=True)
                gone = True
            if epoch is not self._epochs[-1] and epoch.acked >= epoch.tail and epoch.segments:
                self._delete_segments(epoch)
                gone = True
        if gone:
            sync_directory(self._directory)  # before the cursor forgets them
        self._epochs = [e for e in self._epochs if e is self._epochs[-1] or e.acked < e.tail]

    def _delete_segments(self, epoch: Epoch) -> None:
        for segment in epoch.segments:
            segment.path.unlink(missing_ok=True)
        epoch.segments = []

    def _find_oldest(self) -> None:
        self._oldest_at = 0
        for epoch in self._epochs:
            for item in epoch.items():
                with suppress(Invalid):
                    self._oldest_at = wire.record_from_bytes(item.raw).recorded_at
                return

    # -- what is wrong ---------------------------------------------------------------------------

    def _refusal(self, error: OSError) -> Error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._full("finds no space on its disk")
        message = f"the spool cannot be used: {error.strerror}"
        self._condition("SPOOL_UNWRITABLE", "error", message)
        return Unavailable(message, reason="SPOOL_UNWRITABLE")

    def _full(self, how: str) -> Error:
        message = f"the spool {how}; it empties once the control plane can be reached"
        self._condition("SPOOL_FULL", "error", message)
        return ResourceExhausted(message, reason="SPOOL_FULL")

    def _damaged(self, epoch: Epoch, item: Item) -> None:
        if self._condition(
            "SPOOL_DAMAGED", "warning", "records of the spool were damaged on disk; see /metrics"
        ):
            _log.error("spool.damaged", epoch=epoch.id.hex(), seq=item.seq, reason=item.lost)

    def _condition(self, code: str, severity: str, message: str) -> bool:
        """Whether it is new."""
        known = self._conditions.get(code)
        since = known.since_at if known else self._clock.now()
        self._conditions[code] = Condition(code=code, severity=severity, since_at=since, message=message)
        return known is None
