"""Ingest: a batch of an agent's spool becomes facts and sums, exactly once, in one transaction.

The position in the spool (epoch, high-water sequence, chain hash) decides what is new; record ids dedupe
what an agent re-sends under another epoch; the application's own ids dedupe its repeats. Attribution is
`domain.attribution`; this module finds what it needs and applies what it says.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from control_plane.domain.attribution import (
    Attributed,
    Enrolled,
    Happening,
    Seen,
    Several,
    Standing,
    Tallies,
    Timeline,
    UnitKey,
    UnitState,
    advance,
    as_by_itself,
    attribute,
    judge,
    judge_all,
    recount,
    with_views,
)
from control_plane.store.events import EventStore, StoredEvent
from shared import wire
from shared.errors import Invalid, ResourceExhausted
from shared.model import CHAIN_START, Batch, Event, EventKind, Loaded, Loss, Record, Unseen, View, chain
from shared.moment import SECOND, utc_day

MAX_RECORDS = 1_000
FUTURE = 300 * SECOND
"""An event later than this after its arrival has a wrong clock behind it; it is kept, and counts nowhere."""
MAX_EVENT_NAMES = 100


class Verdict(StrEnum):
    """What the agent has to do about its epoch."""

    OK = "ok"
    EPOCH_DIVERGED = "epoch_diverged"


class Kept(StrEnum):
    """Why an accepted event takes part in no experiment."""

    NO_EXPERIMENT = "NO_ACTIVE_EXPERIMENT"
    NOT_BOUND = "PARTICIPANT_NOT_BOUND"
    FUTURE = "OCCURRED_IN_FUTURE"
    DUPLICATE = "DUPLICATE_EVENT_ID"
    TOO_MANY_NAMES = "TOO_MANY_EVENT_NAMES"
    TOO_LATE = "CAME_TOO_LATE"

    @property
    def meaning(self) -> str:
        """What happened, in a sentence."""
        return _MEANINGS[self]


_MEANINGS: Mapping[Kept, str] = {
    Kept.NO_EXPERIMENT: "no experiment had the participant at that moment",
    Kept.NOT_BOUND: "the agent does not serve the participant",
    Kept.FUTURE: "it says it happened over five minutes after it arrived: a wrong clock",
    Kept.DUPLICATE: "the application's own id was seen before",
    Kept.TOO_MANY_NAMES: "the experiment counts 100 other conversions already",
    Kept.TOO_LATE: "the phase it belongs to was over for so long that its raw events are deleted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything of the epoch up to `through_seq` is durable and counted."""

    through_seq: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Whose batch it is; without an agent, a server's own."""

    project_id: bytes
    agent_uid: bytes | None
    now: int


def report(store: EventStore, source: Source, batch: Batch) -> Report:
    """The batch is stored and counted, once; what was acknowledged before changes nothing.

    A batch that starts above the mark (this database was restored) records the difference as lost and goes
    on. One whose chain hash does not fit says EPOCH_DIVERGED and stores nothing.
    """
    if len(batch.records) > MAX_RECORDS:
        raise ResourceExhausted(f"a batch has at most {MAX_RECORDS} records", reason="BATCH_TOO_LARGE")
    agent_uid = source.agent_uid
    assert agent_uid is not None, "a spool is an agent's"
    mark, known_chain = store.epoch(agent_uid, batch.epoch) or (0, CHAIN_START)
    skip = max(0, mark + 1 - batch.first_seq)
    through = max(mark, batch.first_seq + len(batch.records) - 1)
    value = batch.chain
    for raw in batch.records[: min(skip, len(batch.records))]:
        value = chain(value, raw)
    gap = batch.first_seq - mark - 1
    comparable = gap <= 0 and skip <= len(batch.records)
    if comparable and value != known_chain:
        return Report(through_seq=mark, verdict=Verdict.EPOCH_DIVERGED)
    fresh = batch.records[skip:]
    if not fresh:
        return Report(through_seq=mark, verdict=Verdict.OK)
    if gap > 0:
        store.add_loss(agent_uid, batch.epoch, reason="lost_by_restore", count=gap)
    for raw in fresh:
        value = chain(value, raw)
    ingest = _Ingest(
        store=store, source=source, epoch=batch.epoch, participants=store.participants_of(agent_uid)
    )
    ingest.run(list(ingest.decoded(batch.first_seq + skip, fresh)))
    for epoch, reason, count in ingest.lost:
        store.add_loss(agent_uid, epoch, reason=reason, count=count)
    store.move_epoch(agent_uid, batch.epoch, high_seq=through, chain=value, now=source.now)
    return Report(through_seq=through, verdict=Verdict.OK)


def take(
    store: EventStore, source: Source, participants: Mapping[str, bytes], records: Sequence[Record]
) -> dict[bytes, str | None]:
    """Events that came without a spool are stored and counted; by record id, why one counts nowhere."""
    ingest = _Ingest(store=store, source=source, epoch=None, participants=participants)
    kept = ingest.run([(None, record) for record in records])
    return {item.record_id: item.reason for item in kept}


@dataclass(slots=True, kw_only=True)
class _Ingest:
    """One batch on its way into the store."""

    store: EventStore
    source: Source
    epoch: bytes | None
    participants: Mapping[str, bytes]
    lost: list[tuple[bytes, str, int]] = field(default_factory=list)
    stored: list[StoredEvent] = field(default_factory=list)
    happened: defaultdict[bytes, list[Happening]] = field(default_factory=lambda: defaultdict(list))
    seen: defaultdict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))
    standings: defaultdict[tuple[bytes, Standing, Standing], int] = field(
        default_factory=lambda: defaultdict(int)
    )
    """By phase and how an event stands among those assigned and those delivered: how many more."""
    tallies: Tallies = field(default_factory=Tallies)
    fresh: defaultdict[UnitKey, list[Attributed]] = field(default_factory=lambda: defaultdict(list))
    again: defaultdict[UnitKey, dict[bytes, Attributed]] = field(default_factory=lambda: defaultdict(dict))
    keys: set[str] = field(default_factory=set)
    """The applications' own ids in this batch that are taken, and by whom those that were free."""
    taken: list[tuple[str, bytes]] = field(default_factory=list)
    rules: dict[tuple[bytes, int], Several | None] = field(default_factory=dict)
    names: dict[bytes, tuple[set[str], set[str]]] = field(default_factory=dict)
    """By phase: the conversions it knew before, and those it meets in this batch."""

    def run(self, records: Sequence[tuple[int | None, Record]]) -> list[StoredEvent]:
        """What is new of the batch is stored and counted; the events as they are kept."""
        known = self._known([record for _, record in records])
        self.keys = self._keys([record for _, record in records if record.id not in known])
        views: list[tuple[bytes, bytes, View]] = []
        receipts: list[tuple[bytes, bytes, Loaded]] = []
        unseen: list[tuple[bytes, bytes, Unseen]] = []
        losses: list[bytes] = []
        for seq, record in records:
            if record.id in known:
                continue
            known.add(record.id)
            if isinstance(record.body, Loss):
                losses.append(record.id)
                self.lost.append(
                    (record.body.epoch or self.epoch or b"", record.body.reason, record.body.count)
                )
            elif isinstance(record.body, View):
                if participant_id := self._seen(record.body.participant, record.body.from_at):
                    views.append((record.id, participant_id, record.body))
            elif isinstance(record.body, Loaded):
                if participant_id := self._seen(record.body.participant, record.body.loaded_at):
                    receipts.append((record.id, participant_id, record.body))
            elif isinstance(record.body, Unseen):
                if participant_id := self.participants.get(record.body.participant):
                    unseen.append((record.id, participant_id, record.body))
            else:
                self._hear(seq, record, record.body)
        self.store.note_losses(losses)
        self.store.add_unseen(unseen, now=self.source.now)
        self.store.add_views(views, now=self.source.now)
        self.store.add_receipts(receipts, now=self.source.now)
        return self._count()

    def decoded(self, first_seq: int, raws: Sequence[bytes]) -> Iterable[tuple[int, Record]]:
        """The records that can be read; one that cannot is counted as such, it must not stop the rest."""
        for seq, raw in enumerate(raws, first_seq):
            try:
                yield seq, wire.record_from_bytes(raw)
            except Invalid:
                self.lost.append((self.epoch or b"", "malformed", 1))

    def _seen(self, participant: str, since: int) -> bytes | None:
        """Whose view or receipt it is, if anybody's; what it tells may change how events stand from then on."""
        participant_id = self.participants.get(participant)
        if participant_id is not None:
            self.seen[participant_id].append(since)
        return participant_id

    def _known(self, records: Sequence[Record]) -> set[bytes]:
        """Which of these records are stored already; what is sent again is of the kind that it was."""
        by_kind: defaultdict[str, list[bytes]] = defaultdict(list)
        for record in records:
            by_kind[_TABLE[type(record.body)]].append(record.id)
        return {record_id for table, ids in by_kind.items() for record_id in self.store.known(table, ids)}

    def _keys(self, records: Sequence[Record]) -> set[str]:
        """Which of the applications' own ids in these records are taken."""
        keys = {record.body.event_id for record in records if isinstance(record.body, Event)} - {""}
        return set(self.store.taken_keys(self.source.project_id, sorted(keys)))

    def _hear(self, seq: int | None, record: Record, event: Event) -> None:
        participant_id = self.participants.get(event.participant)
        reason: Kept | None = None
        if participant_id is None:
            reason = Kept.NOT_BOUND
        elif event.occurred_at > self.source.now + FUTURE:
            reason = Kept.FUTURE
        elif event.event_id in self.keys:
            reason = Kept.DUPLICATE
        elif event.event_id:
            self.keys.add(event.event_id)
            self.taken.append((event.event_id, record.id))
        self.stored.append(StoredEvent(record.id, record.recorded_at, event, participant_id, seq, reason))
        if participant_id is not None and reason is None:
            self.happened[participant_id].append(_happening(record.id, event))

    # -- counting

    def _count(self) -> list[StoredEvent]:
        unattributed: dict[bytes, Kept] = {}
        # A view of a file that nobody has worked with since, as every change of content makes one, tells no event more.
        touched = {participant_id: self._touched(participant_id) for participant_id in self.seen}
        concerned = sorted(set(self.happened) | {key for key, items in touched.items() if items})
        enrolled = self.store.enrolled(concerned)
        timelines = self._timelines(
            {
                participant_id: (enrolled[participant_id], [event.occurred_at for event in events])
                for participant_id, events in self.happened.items()
            }
        )
        for participant_id in concerned:
            unattributed |= self._attribute(
                participant_id,
                enrolled[participant_id],
                timelines[participant_id],
                touched.get(participant_id, ()),
            )
        self._count_units()
        kept = [
            item._replace(reason=unattributed[item.record_id]) if item.record_id in unattributed else item
            for item in self.stored
        ]
        self.store.take_keys(self.source.project_id, self.taken, now=self.source.now)
        self.store.add_events(
            kept,
            project_id=self.source.project_id,
            agent_uid=self.source.agent_uid,
            epoch=self.epoch,
            now=self.source.now,
        )
        self.store.add_event_names(
            (phase_id, name) for phase_id, (_, new) in self.names.items() for name in new
        )
        self.store.count_standings(self._standings())
        self.store.add_tallies(self.tallies)
        self._add_activity()
        return kept

    def _attribute(
        self,
        participant_id: bytes,
        enrolled: Sequence[Enrolled],
        timelines: Mapping[str, Timeline],
        touched: Sequence[Attributed],
    ) -> dict[bytes, Kept]:
        """The participant's new events, and those that stand otherwise now, wait for their units to be counted.

        Returns which events belong nowhere.
        """
        events = self.happened.get(participant_id, [])
        nowhere: dict[bytes, Kept] = {}
        if events and enrolled:
            for event in events:
                items = [item for item in attribute(event, enrolled, timelines) if self._admit(item)]
                if not items:
                    covered = any(phase.covers(event.occurred_at) for phase in enrolled)
                    nowhere[event.id] = (
                        Kept.TOO_MANY_NAMES if covered and event.event_name else Kept.NO_EXPERIMENT
                    )
                for item in items:
                    key = UnitKey(item.phase_id, participant_id, event.subject, item.block)
                    self.fresh[key].append(item)
        else:
            nowhere = {event.id: Kept.NO_EXPERIMENT for event in events}
        self._tell_late(participant_id, nowhere)
        for item in self._judge_again(participant_id, enrolled, touched):
            key = UnitKey(item.phase_id, participant_id, item.event.subject, item.block)
            self.again[key][item.event.id] = item
        for phase in enrolled:
            self.rules[phase.phase_id, phase.block] = phase.several
        return nowhere

    def _tell_late(self, participant_id: bytes, nowhere: dict[bytes, Kept]) -> None:
        """Events that belong to phases that count nothing more say so."""
        homeless = (
            [event for event in self.happened[participant_id] if event.id in nowhere] if nowhere else []
        )
        over = self.store.over(participant_id) if homeless else []
        for event in homeless:
            moment = event.occurred_at
            if any(start <= moment and (end is None or moment < end) for start, end in over):
                nowhere[event.id] = Kept.TOO_LATE

    def _admit(self, item: Attributed) -> bool:
        """Whether the phase counts conversions of this name: the first so many names it meets."""
        name = item.event.event_name
        if item.event.kind is EventKind.IMPRESSION:
            return True
        if item.phase_id not in self.names:
            self.names[item.phase_id] = (set(self.store.event_names(item.phase_id)), set())
        known, new = self.names[item.phase_id]
        if name in known or name in new:
            return True
        if len(known) + len(new) >= MAX_EVENT_NAMES:
            return False
        new.add(name)
        return True

    def _count_units(self) -> None:
        """Every unit that the batch is about is counted; all are read together and written together."""
        keys = sorted(set(self.fresh) | set(self.again))
        states = self.store.units(keys)
        standing: list[tuple[bytes, Attributed]] = []
        changed: list[tuple[UnitKey, UnitState, UnitState]] = []
        for key in keys:
            several = self.rules[key.phase_id, key.block]
            before = states[key]
            after = UnitState(before.assigned, before.delivered, before.other)
            after, stands = self._count_unit(
                key, after, self.fresh.get(key, ()), self.again.get(key, {}), several
            )
            changed.append((key, before, after))
            standing += [(key.participant_id, item) for item in stands]
        self.store.change_units(changed)
        self.store.put_attributed(standing)

    def _count_unit(
        self,
        key: UnitKey,
        state: UnitState,
        fresh: Sequence[Attributed],
        again: Mapping[bytes, Attributed],
        several: Several | None,
    ) -> tuple[UnitState, list[Attributed]]:
        """The unit's new events, and those judged again, are counted: its state, what stands otherwise than stored."""
        quick = None if again else judge(state, fresh, several)
        before: list[Attributed] = []
        if quick is not None and advance(state, key, quick, self.tallies):
            after = quick
        else:
            before = self.store.attributed_of(key)
            after = judge_all([*(again.get(item.event.id, item) for item in before), *fresh], several)
            state = recount(key, before, after, self.tallies)
        for item in before:
            self._stand(item, -1)
        for item in after:
            self._stand(item, 1)
        if not before:
            return state, after
        stored = set(before)
        return state, [item for item in after if item not in stored]

    def _touched(self, participant_id: bytes) -> Sequence[Attributed]:
        """Stored events of which a view or receipt of this batch may tell otherwise."""
        return self.store.attributed_between(participant_id, min(self.seen[participant_id]), None)

    def _judge_again(
        self, participant_id: bytes, enrolled: Sequence[Enrolled], touched: Sequence[Attributed]
    ) -> list[Attributed]:
        """Those of which this batch does tell otherwise, as they stand by themselves."""
        phases = {(phase.phase_id, phase.block): phase for phase in enrolled}
        if not touched or not phases:
            return []
        low = min(self.seen[participant_id])
        moments = [item.event.occurred_at for item in touched]
        timelines = self._timelines({participant_id: (enrolled, [low, *moments])})[participant_id]
        pairs = [
            (as_by_itself(item), with_views(item, phases[item.phase_id, item.block], timelines))
            for item in touched
            if (item.phase_id, item.block) in phases
        ]
        return [new for old, new in pairs if old != new]

    def _timelines(
        self, about: Mapping[bytes, tuple[Sequence[Enrolled], Sequence[int]]]
    ) -> Mapping[bytes, dict[str, Timeline]]:
        """By participant and path, what was on disk and loaded at these moments."""
        asked: list[tuple[bytes, str, int, int]] = []
        receipts: dict[tuple[bytes, str], list[Seen]] = {}
        for participant_id, (enrolled, moments) in about.items():
            settle = max((phase.settle for phase in enrolled), default=0)
            low, high = min(moments) - settle, max(moments)
            asking = {path for phase in enrolled if phase.loaded for path in phase.digests}
            for path in sorted({path for phase in enrolled for path in phase.digests}):
                said = self.store.receipts(participant_id, path, low=low, high=high) if path in asking else []
                # From the first receipt on: whether anything else was on disk since is what decides.
                since = min([low, *(receipt.from_at for receipt in said[:1])])
                receipts[participant_id, path] = said
                asked.append((participant_id, path, since, high))
        timelines: defaultdict[bytes, dict[str, Timeline]] = defaultdict(dict)
        for (participant_id, path), views in self.store.views(asked).items():
            timelines[participant_id][path] = Timeline(views, receipts[participant_id, path])
        return timelines

    def _stand(self, item: Attributed, change: int) -> None:
        self.standings[item.phase_id, item.assigned, item.delivered] += change

    def _standings(self) -> dict[tuple[bytes, str, str], int]:
        """(phase, population, standing) → how many events more."""
        changes: defaultdict[tuple[bytes, str, str], int] = defaultdict(int)
        for (phase_id, assigned, delivered), change in self.standings.items():
            changes[phase_id, "assigned", assigned.value] += change
            changes[phase_id, "delivered", delivered.value] += change
        return changes

    def _add_activity(self) -> None:
        activity: defaultdict[tuple[bytes, str, str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
        for participant_id, events in self.happened.items():
            for event in events:
                key = (participant_id, event.path, event.event_name, utc_day(event.occurred_at))
                count, value = activity[key]
                activity[key] = (count + 1, value + (event.value_micros or 0))
        self.store.add_activity(activity)


def _happening(record_id: bytes, event: Event) -> Happening:
    return Happening(
        record_id,
        event.kind,
        event.event_name,
        event.subject,
        event.path,
        event.digest,
        event.value_micros,
        event.occurred_at,
    )


_TABLE = {Event: "event", View: "view", Loaded: "receipt", Unseen: "unseen", Loss: "loss"}
