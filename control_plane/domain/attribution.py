"""Which events count, in which phase, for which population: the truth about exposure.

Everything here depends on *sets* of facts (views, events, assignments), never on the order they arrived
in: a late view or a late impression gives the same tallies as an early one. Moments are microseconds.

An event of a participant belongs to every phase whose assignment covers the moment it happened.
- *assigned*: it happened at or after assignment + settle. The same window in all arms, whatever was on
  disk (intention to treat).
- *delivered*: besides, the digest in use (or else the digest on disk by the views) was the assigned
  variant's for every target file concerned, and, where the event does not say its own digest, the swap to
  it was at least `settle` ago. Where content has to be *loaded*, what is on disk may not have been read: the event's
  own digest says so, or else the application's last receipt since that content came onto the disk.

A unit is (phase, block, participant, subject). Its first exposure is its earliest impression; a conversion
counts from the first exposure on. A conversion without an earlier impression is pending, and counted once
such an impression arrives. Where a metric has a window, conversions within it of the first exposure are counted
under a name of their own besides (`windowed`), so that one event serves metrics with and without.

A unit that met several variants (an impression on another variant's content, and it is none of a switchback, whose
units all do) has crossed: nothing of it is *delivered*; or, by `Several.FIRST_SEEN`, only where the other variant was
the first that it met.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from shared.model import NAME_ENDS, Digest, EventKind
from shared.moment import SECOND, utc_day


class Standing(StrEnum):
    """Whether an event may count for a population, and if not, why."""

    ELIGIBLE = "eligible"
    SETTLING = "settling"  # too soon after the assignment
    IN_TRANSITION = "in_transition"  # too soon after the swap
    OTHER_CONTENT = "other_content"  # something else was in use or on disk
    OTHER_VARIANT = "other_variant"  # and that was another variant's content
    UNKNOWN_CONTENT = "unknown_content"  # no view says what was on disk
    NOT_LOADED = (
        "not_loaded"  # nobody said that the content was in use, neither event nor receipt, and has to
    )
    CROSSED = "crossed"  # on the assigned content, but of a unit that met several variants


class Several(StrEnum):
    """What becomes of a unit that met several variants of a phase."""

    EXCLUDE = "exclude"
    FIRST_SEEN = "first_seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A view: from `from_at` on, the file held `digest`. Of a receipt: from then on the application worked with it."""

    from_at: int
    id: bytes
    digest: Digest | None


class Timeline:
    """What a target file held, by its views, and what was loaded, by receipts; in any order, repeated or not."""

    def __init__(self, views: Iterable[Seen], receipts: Iterable[Seen] = ()) -> None:
        ordered = sorted(views, key=lambda view: (view.from_at, view.id))
        self._since: list[int] = []
        self._digests: list[Digest | None] = []
        for view in ordered:
            if self._digests and self._digests[-1] == view.digest:
                continue  # said again, not changed
            self._since.append(view.from_at)
            self._digests.append(view.digest)
        self._receipts = sorted(receipts, key=lambda receipt: (receipt.from_at, receipt.id))

    def loaded(self, since: int, moment: int) -> Digest | None:
        """What the application said last that it loaded, from `since` to `moment`; None: it said nothing."""
        index = bisect_right(self._receipts, moment, key=lambda receipt: receipt.from_at) - 1
        found = self._receipts[index] if index >= 0 else None
        return found.digest if found is not None and found.from_at >= since else None

    def at(self, moment: int) -> tuple[int, Digest | None] | None:
        """(since when, digest) on disk at `moment`; None before the first view."""
        index = bisect_right(self._since, moment) - 1
        return None if index < 0 else (self._since[index], self._digests[index])


Windows = Mapping[str, tuple[int, ...]]
"""For how long after its unit's first exposure each conversion counts for some metric, microseconds, by event name."""


def windowed(event_name: str, window: int | None) -> str:
    """The name under which a conversion is counted that came within `window` microseconds; None: at any time."""
    return event_name if window is None else f"{event_name}{NAME_ENDS}{window}"


def unwindowed(name: str) -> tuple[str, float | None]:
    """(event name, window in seconds or None) behind what a conversion is counted as."""
    own, _, window = name.partition(NAME_ENDS)
    return own, int(window) / SECOND if window else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """An assignment as attribution needs it: the interval, the variant's digests by path, settle time.

    Of a switchback it is one time block, and a washout that is longer is its settle time. `others` are the other
    variants' digests by path, and `several` the rule for who met them; both are empty for a time block.
    """

    phase_id: bytes
    variant_id: bytes
    digests: Mapping[str, Digest]
    from_at: int
    to_at: int | None
    settle: int
    block: int = 0
    loaded: bool = False
    others: Mapping[str, Collection[Digest]] = field(default_factory=dict)
    several: Several | None = None
    windows: Windows = field(default_factory=dict)

    def covers(self, moment: int) -> bool:
        """The assignment was in force at `moment`."""
        return self.from_at <= moment and (self.to_at is None or moment < self.to_at)


# What is made once or more for every event is a tuple: a frozen dataclass takes several times as long to make and to
# hash, which was a third of what an event costs.


class Happening(NamedTuple):
    """An event as attribution needs it; `path` is empty where it is about the participant as such."""

    id: bytes
    kind: EventKind
    event_name: str
    subject: str
    path: str
    digest: Digest | None
    value_micros: int | None
    occurred_at: int


class Attributed(NamedTuple):
    """An event within a phase, with its standing in both populations."""

    phase_id: bytes
    variant_id: bytes
    event: Happening
    assigned: Standing
    delivered: Standing
    block: int = 0
    windows: tuple[int, ...] = ()
    """Of the metrics of the phase that count this conversion."""

    @property
    def possible_names(self) -> list[str]:
        """Everything the conversion may count as."""
        own = self.event.event_name
        return [own, *(windowed(own, window) for window in self.windows)]

    def names(self, exposure: int) -> list[str]:
        """What the event counts as in a unit that was first exposed then; '' is an impression."""
        if self.event.kind is EventKind.IMPRESSION:
            return [""]
        waited = self.event.occurred_at - exposure
        own = self.event.event_name
        return [own, *(windowed(own, window) for window in self.windows if waited <= window)]


def attribute(
    event: Happening, enrolled: Iterable[Enrolled], timelines: Mapping[str, Timeline]
) -> list[Attributed]:
    """The event in every phase it belongs to; `timelines` by path."""
    moment, path = event.occurred_at, event.path
    is_conversion = event.kind is EventKind.CONVERSION
    found = []
    for phase in enrolled:
        if not phase.covers(moment) or (path and path not in phase.digests):
            continue
        assigned = delivered = _settled(event, phase)
        if assigned is Standing.ELIGIBLE:
            delivered = _content(event, phase, timelines)
        windows = phase.windows.get(event.event_name, ()) if is_conversion else ()
        found.append(
            Attributed(phase.phase_id, phase.variant_id, event, assigned, delivered, phase.block, windows)
        )
    return found


def _settled(event: Happening, phase: Enrolled) -> Standing:
    return Standing.ELIGIBLE if event.occurred_at >= phase.from_at + phase.settle else Standing.SETTLING


def _content(event: Happening, phase: Enrolled, timelines: Mapping[str, Timeline]) -> Standing:
    """What speaks against the assigned content having been in use; the first reason found."""
    paths = [event.path] if event.path else sorted(phase.digests)
    for path in paths:
        if event.digest is not None and (event.path or len(paths) == 1):
            if event.digest != phase.digests[path]:
                return _other(event.digest, path, phase)
            continue
        speaks = (_loading if phase.loaded else _on_disk)(event.occurred_at, path, phase, timelines.get(path))
        if speaks is not None:
            return speaks
    return Standing.ELIGIBLE


def _on_disk(moment: int, path: str, phase: Enrolled, timeline: Timeline | None) -> Standing | None:
    """What speaks against it by the views."""
    seen = timeline.at(moment) if timeline is not None else None
    if seen is None:
        return Standing.UNKNOWN_CONTENT
    since, digest = seen
    if digest != phase.digests[path]:
        return _other(digest, path, phase)
    return Standing.IN_TRANSITION if moment < since + phase.settle else None


def _loading(moment: int, path: str, phase: Enrolled, timeline: Timeline | None) -> Standing | None:
    """What speaks against it by receipts: one says what was loaded until something else comes onto the disk.

    No settling time: it is the application itself that says from when on.
    """
    seen = timeline.at(moment) if timeline is not None else None
    loaded = timeline.loaded(seen[0], moment) if timeline is not None and seen is not None else None
    if seen is None or loaded is None:
        return Standing.NOT_LOADED
    if loaded != phase.digests[path]:
        return _other(loaded, path, phase)
    return None if seen[1] == loaded else Standing.OTHER_CONTENT


def _other(digest: Digest | None, path: str, phase: Enrolled) -> Standing:
    return Standing.OTHER_VARIANT if digest in phase.others.get(path, ()) else Standing.OTHER_CONTENT


def settle(seconds: int) -> int:
    """A settle time in microseconds."""
    return seconds * SECOND


# -- units and tallies -----------------------------------------------------------------------------


class UnitKey(NamedTuple):
    """A unit within a batch: phase, participant (internal id), subject (empty: none), time block (0: none)."""

    phase_id: bytes
    participant_id: bytes
    subject: str
    block: int = 0


class Cell(NamedTuple):
    """A tally row: phase, variant, participant, event name (empty: impressions), UTC day, time block."""

    phase_id: bytes
    variant_id: bytes
    participant_id: bytes
    event_name: str
    day: int
    block: int = 0


@dataclass(slots=True)
class Sums:
    """What a tally row holds for one population; `units` are first-exposed or first-converted units."""

    count: int = 0
    units: int = 0
    value: int = 0


Firsts = dict[str, int | None]
"""First moment by event name, '' for the first exposure; None: seen, none counted."""


@dataclass(slots=True)
class UnitState:
    """A unit's first exposure and first conversions for both populations.

    `other`: it has crossed, and this was its first impression on another variant's content.
    """

    assigned: Firsts
    delivered: Firsts
    other: int | None = None


class Tallies:
    """The change a batch makes to tallies, both populations."""

    def __init__(self) -> None:
        self.assigned: defaultdict[Cell, Sums] = defaultdict(Sums)
        self.delivered: defaultdict[Cell, Sums] = defaultdict(Sums)

    def cells(self) -> list[Cell]:
        """Every row that changes, in a fixed order, so that concurrent writers lock alike."""
        touched = set(self.assigned) | set(self.delivered)
        return sorted(
            touched, key=lambda c: (c.phase_id, c.variant_id, c.participant_id, c.block, c.event_name, c.day)
        )


def advance(state: UnitState, key: UnitKey, events: Sequence[Attributed], tallies: Tallies) -> bool:
    """`state` and `tallies` include `events`, or nothing changed and False is returned.

    The quick way, for events that arrive in order: it handles whatever cannot change the standing of an
    earlier event of the unit. False asks for `recount`.
    """
    assigned, delivered = dict(state.assigned), dict(state.delivered)
    ordered = events
    if len(events) > 1:
        ordered = sorted(events, key=lambda item: (item.event.occurred_at, item.event.id))
    scratch: list[tuple[defaultdict[Cell, Sums], Cell, int, int, int]] = []
    for item in ordered:
        sides = ((assigned, tallies.assigned, item.assigned), (delivered, tallies.delivered, item.delivered))
        for firsts, sums, standing in sides:
            change = _advance_one(firsts, item, standing)
            if change is None:
                return False
            for name, day, count, units, value in change:
                cell = Cell(item.phase_id, item.variant_id, key.participant_id, name, day, key.block)
                scratch.append((sums, cell, count, units, value))
    state.assigned, state.delivered = assigned, delivered
    for sums, cell, count, units, value in scratch:
        _add(sums[cell], count, units, value)
    return True


def judge(state: UnitState, events: Sequence[Attributed], several: Several | None) -> list[Attributed] | None:
    """The events as they stand in their unit, `state.other` with them; None: ask `judge_all`.

    The quick way, where none of them can change how an earlier event of the unit stands.
    """
    others = [item.event.occurred_at for item in events if _is_other(item)]
    exposed = state.delivered.get("")
    if several is None or (exposed is None and state.other is None):
        return None if others else list(events)
    if exposed is not None:
        later = several is Several.FIRST_SEEN and all(moment > exposed for moment in others)
        return list(events) if later or not others else None
    assert state.other is not None
    if several is Several.FIRST_SEEN and any(
        item.event.kind is EventKind.IMPRESSION
        and item.delivered is Standing.ELIGIBLE
        and item.event.occurred_at <= state.other
        for item in events
    ):
        return None
    state.other = min([state.other, *others])
    return [_crossed(item) for item in events]


def judge_all(events: Sequence[Attributed], several: Several | None) -> list[Attributed]:
    """All events of a unit as they stand in it, whatever was found of some of them before."""
    plain = [as_by_itself(item) for item in events]
    met = [
        (item.event.occurred_at, item.event.id, _is_other(item))
        for item in plain
        if item.event.kind is EventKind.IMPRESSION
        and item.delivered in (Standing.ELIGIBLE, Standing.OTHER_VARIANT)
    ]
    first = min(met, default=None)
    out = any(other for *_, other in met) if several is Several.EXCLUDE else bool(first and first[2])
    return [_crossed(item) for item in plain] if out and several is not None else plain


def as_by_itself(item: Attributed) -> Attributed:
    """The event as it stands whatever else its unit met: only one that would count can have crossed."""
    return item._replace(delivered=Standing.ELIGIBLE) if item.delivered is Standing.CROSSED else item


def _crossed(item: Attributed) -> Attributed:
    return item._replace(delivered=Standing.CROSSED) if item.delivered is Standing.ELIGIBLE else item


def _is_other(item: Attributed) -> bool:
    return item.event.kind is EventKind.IMPRESSION and item.delivered is Standing.OTHER_VARIANT


_Change = list[tuple[str, int, int, int, int]]


def _advance_one(firsts: Firsts, item: Attributed, standing: Standing) -> _Change | None:
    """What one event changes (name, day, count, units, value), `firsts` advanced; None: not the quick way."""
    event, moment = item.event, item.event.occurred_at
    day = utc_day(moment)
    exposed = firsts.get("")
    if event.kind is EventKind.IMPRESSION:
        if standing is not Standing.ELIGIBLE:
            return []
        if exposed is None:
            if any(name for name in firsts):
                return None  # conversions that were waiting may count now
            firsts[""] = moment
            return [("", day, 1, 1, event.value_micros or 0)]
        return None if moment < exposed else [("", day, 1, 0, event.value_micros or 0)]
    for name in item.possible_names:
        firsts.setdefault(name, None)
    if standing is not Standing.ELIGIBLE or exposed is None or moment < exposed:
        return []
    change: _Change = []
    for name in item.names(exposed):
        first = firsts.get(name)
        if first is not None and moment < first:
            return None  # the unit's first conversion moves to another moment
        if first is None:
            firsts[name] = moment
        change.append((name, day, 1, int(first is None), event.value_micros or 0))
    return change


def _add(sums: Sums, count: int, units: int, value: int) -> None:
    sums.count += count
    sums.units += units
    sums.value += value


def recount(
    key: UnitKey, before: Sequence[Attributed], after: Sequence[Attributed], tallies: Tallies
) -> UnitState:
    """The unit's state over all of `after`; `tallies` change by what `after` adds to `before`."""
    for events, sign in ((before, -1), (after, 1)):
        for sums, side in ((tallies.assigned, "assigned"), (tallies.delivered, "delivered")):
            for cell, contribution in _contribution(key, events, side).items():
                _add(
                    sums[cell],
                    sign * contribution.count,
                    sign * contribution.units,
                    sign * contribution.value,
                )
    delivered = _firsts(after, "delivered")
    others = [item.event.occurred_at for item in after if _is_other(item)]
    return UnitState(
        assigned=_firsts(after, "assigned"),
        delivered=delivered,
        other=min(others) if others and "" not in delivered else None,
    )


def _firsts(events: Sequence[Attributed], side: str) -> Firsts:
    eligible = [item for item in events if getattr(item, side) is Standing.ELIGIBLE]
    impressions = [x.event.occurred_at for x in eligible if x.event.kind is EventKind.IMPRESSION]
    exposure = min(impressions, default=None)
    firsts: Firsts = {"": exposure} if exposure is not None else {}
    for item in events:
        if item.event.kind is EventKind.CONVERSION:
            for name in item.possible_names:
                firsts.setdefault(name, None)
    for item in eligible:
        moment = item.event.occurred_at
        if item.event.kind is EventKind.CONVERSION and exposure is not None and moment >= exposure:
            for name in item.names(exposure):
                known = firsts.get(name)
                firsts[name] = moment if known is None else min(known, moment)
    return firsts


def _contribution(key: UnitKey, events: Sequence[Attributed], side: str) -> dict[Cell, Sums]:
    firsts = _firsts(events, side)
    exposure = firsts.get("")
    cells: defaultdict[Cell, Sums] = defaultdict(Sums)
    variants: dict[str, bytes] = {}
    for item in events:
        event = item.event
        if getattr(item, side) is not Standing.ELIGIBLE:
            continue
        if event.kind is EventKind.CONVERSION and (exposure is None or event.occurred_at < exposure):
            continue
        day = utc_day(event.occurred_at)
        for name in item.names(event.occurred_at if exposure is None else exposure):
            variants[name] = item.variant_id
            cell = Cell(item.phase_id, item.variant_id, key.participant_id, name, day, key.block)
            _add(cells[cell], 1, 0, event.value_micros or 0)
    for name, first in firsts.items():
        if first is not None:
            cell = Cell(key.phase_id, variants[name], key.participant_id, name, utc_day(first), key.block)
            cells[cell].units += 1
    return dict(cells)


def with_views(item: Attributed, phase: Enrolled, timelines: Mapping[str, Timeline]) -> Attributed:
    """The same event judged again after more views arrived."""
    if item.assigned is not Standing.ELIGIBLE:
        return item
    return item._replace(delivered=_content(item.event, phase, timelines))
