"""Views and events on their way to the control plane, kept on disk until it has counted them.

Hides segment files, group commit, the cursor and what becomes of damage. One thread owns every file: what
waits to be appended while an fsync is in progress is written and synced together next (group commit), so
many reporters share one fsync and each is answered only after it.

A position is (epoch, seq): every start of the daemon opens a new epoch, sequences are contiguous from 1. A
record that cannot be read any more is replaced, at its own sequence, by a `Loss` of one record with an id
made of epoch and sequence: what is sent stays contiguous and the same at every re-send, and the chain hash
is over what is sent. What a full spool dropped is a `Loss` too, at a sequence that only the cursor knows.

At most one segment is in memory at a time, so neither a backlog nor its age costs memory or start-up time.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from agent.config import WhenFull
from agent.cursor import Account, Cursor, Position, start_of
from agent.durable import sync_directory
from agent.epochs import MAX_KEPT, SPOOL_FULL, Epoch, Item, contents, remove_mark
from agent.room import Room
from agent.segments import FRAME_OVERHEAD, MAX_PAYLOAD
from agent.tail import FULL, Append, Tail, whose
from shared import logs, wire
from shared.clock import Clock
from shared.errors import Error, Invalid, ResourceExhausted, Unavailable
from shared.ids import NewId
from shared.lifecycle import answered
from shared.model import (
    CHAIN_START,
    Batch,
    Condition,
    Event,
    Loaded,
    Record,
    SpoolState,
    Unseen,
    View,
    chain,
)

_log = logs.get(__name__)
T = TypeVar("T")

SEGMENT_BYTES = 1024 * 1024
MAX_BYTES = 1024 * 1024 * 1024
GROUP = 512  # appends in one commit: bounds how long the first of them waits for the last
GROUP_BYTES = 1024 * 1024  # and how long a segment can get, at most a request more than twice its size


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the control plane said of a batch: durable and counted up to `through_seq`.

    `diverged`: it knows another history of this epoch; see `Spool.diverged`.
    """

    through_seq: int
    diverged: bool = False


class Spool:
    """The spool in one directory; opening it begins a new epoch and starts its thread.

    Everything but the constructor, `record` and `close` may be called from one event loop only. Errors of the disk
    leave as `ResourceExhausted` (no space, `max_bytes` reached, or one participant's share of them: reason
    SPOOL_FULL) or `Unavailable` (reason SPOOL_UNWRITABLE); a call that raises has stored nothing that counts.
    With `when_full` DROP_NEWEST, events that find no space are counted, durably, in place of being refused.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock,
        new_id: NewId,
        max_bytes: int = MAX_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        when_full: WhenFull = WhenFull.BLOCK,
    ) -> None:
        self._directory, self._clock, self._new_id = directory, clock, new_id
        self._when_full = when_full
        self._tail = Tail(directory, segment_bytes=segment_bytes)
        self._handed = (b"", 0)  # the epoch and last sequence of the batch handed out last
        self._conditions: dict[str, Condition] = {}
        self._oldest_at = 0
        self._listener: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cursor = Cursor(directory)
        found = contents(directory, self._cursor)
        self._epochs, self._damaged = found.epochs, found.damaged
        self._epochs.append(Epoch.begun(new_id()))
        self.room = Room(max_bytes)
        """Who may take how much of `max_bytes`."""
        self._say_what_was_found(found.newer)
        self._forget_finished()
        self._find_oldest()
        self._state = self._count()
        self._queue: queue.SimpleQueue[Append | Callable[[], None] | None] = queue.SimpleQueue()
        self._closing, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._loop, name="spool", daemon=True)
        self._thread.start()

    # -- what others call ------------------------------------------------------------------------

    async def append(self, body: View | Loaded | Event | Unseen) -> Record:
        """The record of `body` is durable, or dropped and counted as such."""
        return (await self.append_all([body]))[0]

    async def append_all(self, bodies: Sequence[View | Loaded | Event | Unseen]) -> list[Record]:
        """The records of all `bodies` are durable, in order, or dropped; of none of them where it raises."""
        work = self._asked(bodies)
        if bodies:
            self._put(work)
            await answered(work.future)
        return [record for record, _ in work.records]

    def record(self, body: View) -> None:
        """As `append`, for a thread that may wait."""
        work = self._asked([body])
        self._put(work)
        work.future.result()

    def _asked(self, bodies: Sequence[View | Loaded | Event | Unseen]) -> Append:
        now = self._clock.now()
        records = [Record(id=self._new_id(), recorded_at=now, body=body) for body in bodies]
        encoded = [(record, wire.record_to_bytes(record)) for record in records]
        if any(len(raw) > MAX_PAYLOAD for _, raw in encoded):
            raise Invalid(f"a record has at most {MAX_PAYLOAD} bytes", reason="RECORD_TOO_LARGE")
        return Append(records=encoded)

    async def next_batch(self, limit_records: int, limit_bytes: int) -> Batch | None:
        """The first unacknowledged records, of one epoch, the oldest first; None where there are none.

        At least one record, whatever `limit_bytes` says. Asking again gives the same again, or its beginning.
        """
        return await self._do(lambda: self._batch(limit_records, limit_bytes))

    async def acknowledge(self, epoch: bytes, through_seq: int) -> None:
        """Records up to `through_seq` are done with, durably; segments without others are deleted.

        Repeating it, or naming an epoch that is gone, changes nothing; a sequence above the epoch's tail
        means its tail.
        """
        await self._do(lambda: self._acknowledge(epoch, through_seq))

    async def diverged(self, epoch: bytes) -> None:
        """What is unacknowledged of `epoch` is sent as a new epoch, with the same record ids; needs no space.

        What is appended later stays behind it, in an epoch of its own. After a crash on the way the old one
        is sent, and diverges again.
        """
        await self._do(lambda: self._diverge(epoch))

    def state(self) -> SpoolState:
        """What the spool held after the last change."""
        return self._state

    def lost(self) -> dict[str, int]:
        """Records declared lost and acknowledged as such, by reason, since this spool exists."""
        return dict(self._cursor.account.lost)

    @property
    def dropped(self) -> int:
        """Events that a full spool took without keeping them, since it exists; each is declared lost."""
        return self._cursor.account.dropped

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
        with self._closing:
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._tail.close()

    # -- the thread ------------------------------------------------------------------------------

    def _put(self, work: "Append | Callable[[], None]") -> None:
        with self._closing:  # what is behind the end of the queue would never be answered
            if self._closed:
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
        return await answered(future)

    def _loop(self) -> None:
        while True:
            waiting = [self._queue.get()]
            size = 0
            with suppress(queue.Empty):
                while len(waiting) < GROUP and size < GROUP_BYTES:
                    work = self._queue.get_nowait()
                    size += work.size if isinstance(work, Append) else 0
                    waiting.append(work)
            appends: list[Append] = []
            for work in waiting:
                if isinstance(work, Append):
                    appends.append(work)
                    continue
                self._commit(appends)
                appends = []
                if work is None:
                    return
                work()
            self._commit(appends)

    def _commit(self, group: list[Append]) -> None:
        """Every one of `group` is answered: durable, dropped, or refused."""
        accepted, over = self._admitted(group)
        if accepted:
            try:
                self._tail.write(self._epochs[-1], [raw for work in accepted for _, raw in work.records])
            except OSError as error:
                refusal = self._refusal(error)
                if isinstance(refusal, ResourceExhausted):
                    over += [(work, refusal) for work in accepted]
                else:
                    for work in accepted:
                        work.refuse(refusal)
                accepted = []
            except BaseException as error:
                for work in accepted:
                    work.refuse(error)
                accepted = []
        if accepted:
            self._conditions.pop("SPOOL_UNWRITABLE", None)
            if not over:
                self._conditions.pop("SPOOL_FULL", None)
                self._conditions.pop("SPOOL_SHARE", None)
            if not self._oldest_at:
                self._oldest_at = accepted[0].records[0][0].recorded_at
            for work in accepted:
                self.room.take(work.sizes)
        dropped = self._turned_away(over)
        self._settle()
        for work in (*accepted, *dropped):
            work.future.set_result(None)

    def _admitted(self, group: list[Append]) -> tuple[list[Append], list[tuple[Append, Error]]]:
        """Those of `group` that fit, and the others with what to tell them."""
        accepted: list[Append] = []
        over: list[tuple[Append, Error]] = []
        used = self._used()
        self.room.begin(used - self._epochs[-1].size)
        for work in group:
            why = self.room.refusal(work.sizes, used, reserved=work.reserved)
            if why and not accepted and self._made_room():
                used = self._used()
                why = self.room.refusal(work.sizes, used, reserved=work.reserved)
            if why:
                is_share = used + work.size <= self.room.max_bytes
                over.append((work, self._full(why, code="SPOOL_SHARE" if is_share else "SPOOL_FULL")))
                continue
            accepted.append(work)
            used += work.size
        return accepted, over

    def _turned_away(self, over: list[tuple[Append, Error]]) -> list[Append]:
        """Those of `over` that are counted as dropped, durably; the others are refused."""
        dropped: list[Append] = []
        for work, refusal in over:
            if self._when_full is WhenFull.DROP_NEWEST and not work.reserved:
                dropped.append(work)
            else:
                work.refuse(refusal)
        if dropped:
            try:
                self._drop(sum(len(work.records) for work in dropped))
            except OSError as error:
                refusal = self._refusal(error)
                for work in dropped:
                    work.refuse(refusal)
                return []
        return dropped

    def _settle(self) -> None:
        self._state = self._count()
        if self._listener and self._state.depth:
            loop, arrived = self._listener
            with suppress(RuntimeError):  # that loop has ended; nobody waits there any more
                loop.call_soon_threadsafe(arrived.set)

    def _count(self) -> SpoolState:
        depth = sum(epoch.tail - epoch.acked for epoch in self._epochs)
        return SpoolState(
            epoch=self._epochs[-1].at.sent_as,
            depth=depth,
            size=self._used(),
            oldest_at=self._oldest_at if depth else 0,
        )

    def _used(self) -> int:
        return sum(epoch.size for epoch in self._epochs)

    # -- room ------------------------------------------------------------------------------------

    def _made_room(self) -> bool:
        """Whether the open segment could be deleted, all of it being acknowledged."""
        epoch = self._epochs[-1]
        if not self._tail.is_open or epoch.acked < epoch.tail:
            return False
        self._tail.release()
        self._retire(epoch, len(epoch.segments))
        return True

    def _drop(self, count: int) -> None:
        """So many events are counted as dropped, durably, in space that is taken already. Raises OSError."""
        epoch = self._epochs[-1]
        seq = epoch.tail
        if seq not in epoch.drops or (self._handed[0] == epoch.id and self._handed[1] >= seq):
            seq += 1  # what was sent once stays as it is
        before = dict(epoch.drops)
        epoch.drops[seq] = epoch.drops.get(seq, 0) + count
        try:
            self._save(dropped=self.dropped + count, twice=True)
        except OSError:
            epoch.drops = before
            raise
        epoch.tail = seq

    # -- reading ---------------------------------------------------------------------------------

    def _batch(self, limit_records: int, limit_bytes: int) -> Batch | None:
        for epoch in self._epochs:
            raws: list[bytes] = []
            size = 0
            whose, through = self._handed
            for item in epoch.items():
                size += len(item.raw)
                if raws and (size > limit_bytes or len(raws) >= limit_records):
                    break
                if whose == epoch.id and epoch.acked < through < item.seq:
                    break
                if item.lost and item.lost != SPOOL_FULL:
                    self._met_damage(epoch, item)
                raws.append(item.raw)
            if raws:
                self._handed = (epoch.id, epoch.acked + len(raws))
                return Batch(
                    epoch=epoch.at.sent_as,
                    first_seq=epoch.acked + 1 - epoch.at.base,
                    chain=epoch.at.chain,
                    records=tuple(raws),
                    tail_seq=epoch.tail - epoch.at.base,
                )
        return None

    def _sent_as(self, epoch_id: bytes) -> Epoch | None:
        return next((epoch for epoch in self._epochs if epoch.at.sent_as == epoch_id), None)

    def _acknowledge(self, epoch_id: bytes, through_seq: int) -> None:
        epoch = self._sent_as(epoch_id)
        if epoch is None or through_seq + epoch.at.base <= epoch.acked:
            return
        value, acked, resume = epoch.at.chain, epoch.acked, epoch.resume
        lost, given = self.lost(), []
        for item in epoch.items():
            if item.seq > through_seq + epoch.at.base:
                break
            value, acked, resume = chain(value, item.raw), item.seq, item.resume
            if item.lost:
                lost[item.lost] = lost.get(item.lost, 0) + item.count
            elif epoch is self._epochs[-1]:
                given.append(item.raw)
        self._move(epoch, replace(epoch.at, acked=acked, chain=value), lost=lost)
        epoch.resume = resume
        epoch.drops = {seq: count for seq, count in epoch.drops.items() if seq > acked}
        for raw in given if self.room.share < 1 else ():
            with suppress(Invalid):
                self.room.give_back(whose(wire.record_from_bytes(raw)), len(raw) + FRAME_OVERHEAD)
        self._forget_finished()
        self._conditions.pop("SPOOL_UNWRITABLE", None)
        if self._used() < self.room.max_bytes:
            # As far as is known; the next append finds out.
            self._conditions.pop("SPOOL_FULL", None)
            self._conditions.pop("SPOOL_SHARE", None)
        self._find_oldest()

    def _diverge(self, epoch_id: bytes) -> None:
        epoch = self._sent_as(epoch_id)
        if epoch is None:
            return
        sent_as = self._new_id()
        self._move(epoch, Position(acked=epoch.acked, chain=CHAIN_START, sent_as=sent_as, base=epoch.acked))
        self._tail.close()
        self._epochs.remove(epoch)
        self._epochs += [epoch, Epoch.begun(self._new_id())]
        self.room.clear()
        _log.warning("spool.diverged", epoch=epoch_id.hex(), again=epoch.tail - epoch.acked)
        self._forget_finished()

    def _move(self, epoch: Epoch, at: Position, *, lost: dict[str, int] | None = None) -> None:
        """The epoch stands at `at`, durably. Raises OSError, and then it stands where it stood."""
        before, epoch.at = epoch.at, at
        try:
            self._save(lost=lost)
        except OSError:
            epoch.at = before
            raise

    def _save(
        self, *, lost: dict[str, int] | None = None, dropped: int | None = None, twice: bool = False
    ) -> None:
        account = Account(
            # One that nothing is acknowledged of needs no place, however many starts an outage sees.
            positions={e.id: e.at for e in self._epochs if e.at != start_of(e.id)},
            drops={(e.id, seq): n for e in self._epochs for seq, n in e.drops.items() if seq > e.acked},
            lost=self.lost() if lost is None else lost,
            dropped=self.dropped if dropped is None else dropped,
        )
        self._cursor.save(account, twice=twice or account.drops != self._cursor.account.drops)

    def _forget_finished(self) -> None:
        """Segments without unacknowledged records are deleted, and epochs without segments forgotten."""
        gone = False
        for epoch in self._epochs:
            is_present = epoch is self._epochs[-1]
            done = sum(1 for segment in epoch.segments[1:] if segment.first_seq <= epoch.acked + 1)
            if not is_present and epoch.acked >= epoch.tail:
                done = len(epoch.segments)
            gone = self._retire(epoch, done) or gone
            if not is_present and epoch.acked >= epoch.tail and not epoch.segments:
                with suppress(OSError):
                    remove_mark(self._directory, epoch)
                    gone = True
        if gone:
            with suppress(OSError):
                sync_directory(self._directory)  # before the cursor forgets them
        self._epochs = [e for e in self._epochs if e is self._epochs[-1] or e.acked < e.tail or e.segments]

    def _retire(self, epoch: Epoch, count: int) -> bool:
        """Whether any of the epoch's first `count` segments is gone; one that cannot be deleted stays for later."""
        for done in range(count):
            segment = epoch.segments[0]
            try:
                kept = segment.retire()
            except OSError as error:
                _log.warning("spool.segment_stays", name=segment.path.name, error=error.strerror)
                return done > 0
            epoch.segments.pop(0)
            epoch.size -= segment.size
            if kept is not None:
                self._keep(kept)
        return count > 0

    def _find_oldest(self) -> None:
        self._oldest_at = 0
        for epoch in self._epochs:
            with suppress(OSError):
                for item in epoch.items():
                    with suppress(Invalid):
                        self._oldest_at = wire.record_from_bytes(item.raw).recorded_at
                    return

    # -- what is wrong ---------------------------------------------------------------------------

    def _refusal(self, error: OSError) -> Error:
        if error.errno in FULL:
            return self._full("the spool finds no space on its disk")
        message = f"the spool cannot be used: {error.strerror}"
        self._condition("SPOOL_UNWRITABLE", "error", message)
        return Unavailable(message, reason="SPOOL_UNWRITABLE")

    def _full(self, how: str, *, code: str = "SPOOL_FULL") -> Error:
        message = f"{how}; it empties once the control plane can be reached"
        drops = self._when_full is WhenFull.DROP_NEWEST
        told = f"{message}; reports are dropped and counted meanwhile" if drops else message
        self._condition(code, "error" if code == "SPOOL_FULL" else "warning", told)
        return ResourceExhausted(message, reason="SPOOL_FULL")

    def _met_damage(self, epoch: Epoch, item: Item) -> None:
        _log.error("spool.damaged", epoch=epoch.id.hex(), seq=item.seq, reason=item.lost)
        self._condition("SPOOL_DAMAGED", "warning", self._damage())

    def _damage(self) -> str:
        kept = f"; {len(self._damaged)} damaged files are kept as {self._directory}/*.damaged"
        return "records of the spool were damaged on disk and are declared lost" + (
            kept if self._damaged else ""
        )

    def _keep(self, path: Path) -> None:
        """A damaged segment stays for whoever looks into it, unless it is one of too many."""
        self._damaged.append(path)
        while len(self._damaged) > MAX_KEPT:
            with suppress(OSError):
                self._damaged.pop(0).unlink()
        self._condition("SPOOL_DAMAGED", "warning", self._damage())

    def _say_what_was_found(self, newer: int) -> None:
        if self._damaged:
            self._condition("SPOOL_DAMAGED", "warning", self._damage())
        if newer:
            message = f"{newer} segments of the spool wait for the newer version of the agent that wrote them"
            self._condition("SPOOL_NEWER", "warning", message)

    def _condition(self, code: str, severity: str, message: str) -> None:
        known = self._conditions.get(code)
        since = known.since_at if known else self._clock.now()
        self._conditions[code] = Condition(code=code, severity=severity, since_at=since, message=message)
