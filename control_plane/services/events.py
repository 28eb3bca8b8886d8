"""Ingest: records become facts and sums, each once, in the transaction that they came in.

Record ids dedupe what an agent re-sends under another epoch; the application's own ids dedupe its repeats. Attribution
is `domain.attribution`; this module finds what it needs and applies what it says, for all records together, whoever
sent them. What is new of a spool is decided before, in `services.spools`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from control_plane.domain.attribution import (
    Attributed,
    Enrolled,
    Happening,
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
from control_plane.store.events import EventStore, Origin, StoredEvent
from control_plane.store.sightings import Span
from shared.model import Event, EventKind, Loaded, Loss, Record, Unseen, View
from shared.moment import SECOND, utc_day

FUTURE = 300 * SECOND
"""An event later than this after its arrival has a wrong clock behind it; it is kept, and counts nowhere."""
MAX_EVENT_NAMES = 100


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


class Incoming(NamedTuple):
    """A record on its way in; `seq` is its place in its spool, if it came with one."""

    origin: Origin
    seq: int | None
    record: Record


Participants = Mapping[bytes | None, Mapping[str, bytes]]
"""By agent (None: a server's own records), internal id by public id of whom it may speak of."""


def take(
    store: EventStore, records: Sequence[Incoming], participants: Participants, *, now: int
) -> dict[bytes, str | None]:
    """What is new of the records is stored and counted; by record id of the new events, why one counts nowhere."""
    kept = _Ingest(store=store, participants=participants, now=now).run(records)
    return {item.record_id: item.reason for item in kept}


@dataclass(slots=True, kw_only=True)
class _Ingest:
    """Records on their way into the store together."""

    store: EventStore
    participants: Participants
    now: int
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
    keys: set[tuple[bytes, str]] = field(default_factory=set)
    """(project, the application's own id) in this batch that are taken, and by whom those that were free."""
    taken: list[tuple[bytes, str, bytes]] = field(default_factory=list)
    rules: dict[tuple[bytes, int], Several | None] = field(default_factory=dict)
    names: dict[bytes, tuple[set[str], set[str]]] = field(default_factory=dict)
    """By phase: the conversions it knew before, and those it meets in this batch."""

    def run(self, incoming: Sequence[Incoming]) -> list[StoredEvent]:
        """What is new of the records is stored and counted; the events as they are kept."""
        known = self._known(incoming)
        self.keys = self._keys([item for item in incoming if item.record.id not in known])
        views: list[tuple[bytes, bytes, View]] = []
        receipts: list[tuple[bytes, bytes, Loaded]] = []
        unseen: list[tuple[bytes, bytes, Unseen]] = []
        losses: list[tuple[Origin, bytes, Loss]] = []
        for item in incoming:
            record, body = item.record, item.record.body
            if record.id in known:
                continue
            known.add(record.id)
            if isinstance(body, Event):
                self._hear(item, body)
                continue
            if isinstance(body, Loss):
                losses.append((item.origin, record.id, body))
                continue
            participant_id = self.participants[item.origin.agent_uid].get(body.participant)
            if participant_id is None:
                continue
            if isinstance(body, View):
                views.append((record.id, participant_id, body))
                self.seen[participant_id].append(body.from_at)
            elif isinstance(body, Loaded):
                receipts.append((record.id, participant_id, body))
                self.seen[participant_id].append(body.loaded_at)
            else:
                unseen.append((record.id, participant_id, body))
        self._lose(losses)
        self.store.add_unseen(unseen, now=self.now)
        self.store.add_views(views, now=self.now)
        self.store.add_receipts(receipts, now=self.now)
        return self._count()

    def _known(self, incoming: Sequence[Incoming]) -> set[bytes]:
        """Which of these records are stored already; what is sent again is of the kind that it was."""
        by_kind: defaultdict[str, list[bytes]] = defaultdict(list)
        for item in incoming:
            by_kind[_TABLE[type(item.record.body)]].append(item.record.id)
        return {record_id for table, ids in by_kind.items() for record_id in self.store.known(table, ids)}

    def _keys(self, incoming: Sequence[Incoming]) -> set[tuple[bytes, str]]:
        """Which of the applications' own ids in these records are taken."""
        keys = {
            (item.origin.project_id, item.record.body.event_id)
            for item in incoming
            if isinstance(item.record.body, Event) and item.record.body.event_id
        }
        return set(self.store.taken_keys(sorted(keys)))

    def _lose(self, losses: Sequence[tuple[Origin, bytes, Loss]]) -> None:
        """What a spool declares lost of its own epoch, or of the one it names, is on record."""
        self.store.note_losses([record_id for _, record_id, _ in losses])
        self.store.add_losses(
            (origin.agent_uid, loss.epoch or origin.epoch or b"", loss.reason, loss.count)
            for origin, _, loss in losses
            if origin.agent_uid is not None
        )

    def _hear(self, item: Incoming, event: Event) -> None:
        origin, record = item.origin, item.record
        participant_id = self.participants[origin.agent_uid].get(event.participant)
        key = (origin.project_id, event.event_id)
        reason: Kept | None = None
        if participant_id is None:
            reason = Kept.NOT_BOUND
        elif event.occurred_at > self.now + FUTURE:
            reason = Kept.FUTURE
        elif event.event_id and key in self.keys:
            reason = Kept.DUPLICATE
        elif event.event_id:
            self.keys.add(key)
            self.taken.append((*key, record.id))
        self.stored.append(
            StoredEvent(origin, record.id, record.recorded_at, event, participant_id, item.seq, reason)
        )
        if participant_id is not None and reason is None:
            self.happened[participant_id].append(_happening(record.id, event))

    # -- counting

    def _count(self) -> list[StoredEvent]:
        unattributed: dict[bytes, Kept] = {}
        # A view of a file that nobody has worked with since, as every change of content makes one, tells no event more.
        touched = self.store.attributed_since({one: min(since) for one, since in self.seen.items()})
        concerned = sorted({*self.happened, *touched})
        enrolled = self.store.enrolled(concerned)
        timelines = self._timelines(
            {
                one: (
                    enrolled[one],
                    [
                        *(event.occurred_at for event in self.happened.get(one, ())),
                        *(item.event.occurred_at for item in touched.get(one, ())),
                    ],
                )
                for one in concerned
            }
        )
        for one in concerned:
            unattributed |= self._attribute(one, enrolled[one], timelines[one], touched.get(one, ()))
        self._tell_late(unattributed)
        self._count_units()
        kept = [
            item._replace(reason=unattributed[item.record_id]) if item.record_id in unattributed else item
            for item in self.stored
        ]
        self.store.take_keys(self.taken, now=self.now)
        self.store.add_events(kept, now=self.now)
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
                attributed = attribute(event, enrolled, timelines)
                items = [item for item in attributed if self._admit(item)]
                if not items:
                    nowhere[event.id] = Kept.TOO_MANY_NAMES if attributed else Kept.NO_EXPERIMENT
                for item in items:
                    key = UnitKey(item.phase_id, participant_id, event.subject, item.block)
                    self.fresh[key].append(item)
        else:
            nowhere = {event.id: Kept.NO_EXPERIMENT for event in events}
        for item in self._judge_again(enrolled, timelines, touched):
            key = UnitKey(item.phase_id, participant_id, item.event.subject, item.block)
            self.again[key][item.event.id] = item
        for phase in enrolled:
            self.rules[phase.phase_id, phase.block] = phase.several
        return nowhere

    def _tell_late(self, nowhere: dict[bytes, Kept]) -> None:
        """Events that belong to phases that count nothing more say so."""
        if not nowhere:
            return
        homeless = {
            one: found
            for one, events in self.happened.items()
            if (found := [event for event in events if event.id in nowhere])
        }
        over = self.store.over(sorted(homeless))
        for one, events in homeless.items():
            for event in events:
                moment = event.occurred_at
                if any(start <= moment and (end is None or moment < end) for start, end in over[one]):
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
        if len(known) + len(new) >= MAX_EVENT_NAMES and name not in self.store.declared(item.phase_id):
            return False
        new.add(name)
        return True

    def _count_units(self) -> None:
        """Every unit that the batch is about is counted; all are read together and written together."""
        keys = sorted(set(self.fresh) | set(self.again))
        states = self.store.units(keys)
        standing: list[tuple[bytes, Attributed]] = []
        changed: list[tuple[UnitKey, UnitState, UnitState]] = []
        slow: list[UnitKey] = []
        for key in keys:
            before, fresh = states[key], self.fresh.get(key, ())
            after = UnitState(before.assigned, before.delivered, before.other)
            quick = None if key in self.again else judge(after, fresh, self._rule(key))
            if quick is None or not advance(after, key, quick, self.tallies):
                slow.append(key)
                continue
            for item in quick:
                self._stand(item, 1)
            changed.append((key, before, after))
            standing += [(key.participant_id, item) for item in quick]
        for key, stored in self.store.attributed_of(slow).items():
            after, stands = self._recount(key, stored)
            changed.append((key, states[key], after))
            standing += [(key.participant_id, item) for item in stands]
        self.store.change_units(changed)
        self.store.put_attributed(standing)

    def _rule(self, key: UnitKey) -> Several | None:
        return self.rules[key.phase_id, key.block]

    def _recount(self, key: UnitKey, before: Sequence[Attributed]) -> tuple[UnitState, list[Attributed]]:
        """All events of the unit are counted anew, with the new ones: its state, what stands otherwise than stored."""
        again = self.again.get(key, {})
        events = [*(again.get(item.event.id, item) for item in before), *self.fresh.get(key, ())]
        after = judge_all(events, self._rule(key))
        state = recount(key, before, after, self.tallies)
        for item in before:
            self._stand(item, -1)
        for item in after:
            self._stand(item, 1)
        stored = set(before)
        return state, [item for item in after if item not in stored]

    def _judge_again(
        self,
        enrolled: Sequence[Enrolled],
        timelines: Mapping[str, Timeline],
        touched: Sequence[Attributed],
    ) -> list[Attributed]:
        """Those stored events of a participant of which its new views or receipts tell otherwise, by themselves."""
        phases = {(phase.phase_id, phase.block): phase for phase in enrolled}
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
        spans: list[Span] = []
        loading: list[Span] = []
        for participant_id, (enrolled, moments) in about.items():
            settle = max((phase.settle for phase in enrolled), default=0)
            low, high = min(moments) - settle, max(moments)
            asking = {path for phase in enrolled if phase.loaded for path in phase.digests}
            for path in sorted({path for phase in enrolled for path in phase.digests}):
                (loading if path in asking else spans).append(Span(participant_id, path, low, high))
        receipts = self.store.receipts(loading)
        for span in loading:
            # From the first receipt on: whether anything else was on disk since is what decides.
            said = receipts[span.participant_id, span.path]
            spans.append(span._replace(low=min([span.low, *(receipt.from_at for receipt in said)])))
        timelines: defaultdict[bytes, dict[str, Timeline]] = defaultdict(dict)
        for (participant_id, path), views in self.store.views(spans).items():
            timelines[participant_id][path] = Timeline(views, receipts.get((participant_id, path), ()))
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
