"""Spools: batches of agents' records are taken in, each record once, in one transaction for all that came together.

The position in the spool (epoch, high-water sequence, chain hash) decides what of a batch is new; what the new records
become is `services.events`. A host that reports a view at a time costs as much as one that reports hundreds, unless
its batch shares what has to be read and written with those of others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from control_plane.services.events import Incoming, take
from control_plane.store.events import EventStore, Mark, Origin
from shared import wire
from shared.errors import Invalid, ResourceExhausted
from shared.model import CHAIN_START, Batch, Loss, chain

MAX_RECORDS = 1_000


class Verdict(StrEnum):
    """What the agent has to do about its epoch."""

    OK = "ok"
    EPOCH_DIVERGED = "epoch_diverged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything of the epoch up to `through_seq` is durable and counted."""

    through_seq: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A batch, and whose it is."""

    project_id: bytes
    agent_uid: bytes
    batch: Batch


def require_size(batch: Batch) -> None:
    """Raises ResourceExhausted for a batch of too many records."""
    if len(batch.records) > MAX_RECORDS:
        raise ResourceExhausted(f"a batch has at most {MAX_RECORDS} records", reason="BATCH_TOO_LARGE")


def report(store: EventStore, batches: Sequence[Sent], *, now: int) -> list[Report]:
    """The batches are stored and counted, each record once; what was acknowledged before changes nothing.

    In their order: of two of one epoch the second goes on where the first ends. A batch that starts above the mark
    (this database was restored) records the difference as lost and goes on. One whose chain hash does not fit says
    EPOCH_DIVERGED, and nothing of it is stored.
    """
    known = store.marks(sorted({(sent.agent_uid, sent.batch.epoch) for sent in batches}))
    moved: dict[tuple[bytes, bytes], Mark] = {}
    losses: list[tuple[bytes, bytes, str, int]] = []
    incoming: list[Incoming] = []
    reports: list[Report] = []
    for sent in batches:
        place, batch = (sent.agent_uid, sent.batch.epoch), sent.batch
        before = moved.get(place) or known.get(place) or Mark(0, CHAIN_START)
        after = _follow(before, batch)
        reports.append(
            Report(through_seq=before.high_seq, verdict=Verdict.EPOCH_DIVERGED)
            if after is None
            else Report(through_seq=after.high_seq, verdict=Verdict.OK)
        )
        if after is None or after == before:
            continue
        moved[place] = after
        first = max(batch.first_seq, before.high_seq + 1)
        if first > before.high_seq + 1:
            losses.append((*place, "lost_by_restore", first - before.high_seq - 1))
        origin = Origin(sent.project_id, *place)
        for seq, raw in enumerate(batch.records[first - batch.first_seq :], first):
            try:
                incoming.append(Incoming(origin, seq, wire.record_from_bytes(raw)))
            except Invalid:  # it is counted as such; it must not stop the rest
                losses.append((*place, "malformed", 1))
    named = {
        (item.origin.project_id, item.origin.agent_uid or b"", item.record.body.participant)
        for item in incoming
        if not isinstance(item.record.body, Loss)
    }
    take(store, incoming, store.participants_of(sorted(named)), now=now)
    store.add_losses(losses)
    store.put_marks(moved, now=now)
    return reports


def _follow(mark: Mark, batch: Batch) -> Mark | None:
    """The mark with the batch; the same if it adds nothing, None where its chain hash does not fit."""
    stored = max(0, mark.high_seq + 1 - batch.first_seq)
    value = batch.chain
    for raw in batch.records[:stored]:
        value = chain(value, raw)
    adjoins = batch.first_seq <= mark.high_seq + 1 and stored <= len(batch.records)
    if adjoins and value != mark.chain:
        return None
    if stored >= len(batch.records):
        return mark
    for raw in batch.records[stored:]:
        value = chain(value, raw)
    return Mark(batch.first_seq + len(batch.records) - 1, value)
