"""What an answer is made of: the evidence of one metric and population, and the looks that were recorded.

It is JSON as well, so that an export holds all that the server's answer came from.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any, Literal

from pydantic import ConfigDict, Field

from control_plane.domain.fields import Request
from control_plane.domain.metrics import Goal, Kind, Of
from control_plane.domain.statistics import decision, means, switchback
from control_plane.domain.statistics.decision import Comparison, Look
from control_plane.domain.statistics.path import Snapshot
from control_plane.domain.statistics.plan import Plan, Unit
from control_plane.domain.statistics.proportions import Interval, Undefined, Variance
from control_plane.domain.statistics.verdict import guard

Json = dict[str, Any]
Population = Literal["assigned", "delivered"]
MILLION = 1_000_000
"""Values are in millionths."""


class Part(Request):
    """A part of the evidence; our own code names its fields as they are, JSON in camelCase."""

    model_config = ConfigDict(populate_by_name=True)


class Sums(Part):
    """What each member did up to a moment, in the members' order; `values` are of the conversions, in millionths.

    `units` are its subjects with an impression and `converted` those of them with a conversion; a member that names
    none is its own subject.
    """

    impressions: tuple[int, ...]
    conversions: tuple[int, ...]
    values: tuple[int, ...]
    denominators: tuple[int, ...]
    units: tuple[int, ...] = ()
    converted: tuple[int, ...] = ()

    def pair(self, measure: "Measure") -> tuple[Sequence[int], Sequence[int]]:
        """(m, c) of each member: the metric is Σc/Σm, of a mean or ratio in millionths."""
        if measure.kind == "proportion":
            return self.shares(measure)
        if measure.kind == "ratio":
            return self.denominators, self.values
        each = (1,) * len(self.impressions)
        return each, self.conversions if measure.kind == "count" else self._cut(measure.winsorize_at)

    def _cut(self, percentile: float | None) -> Sequence[int]:
        """The values, those above the percentile of all of them set to it."""
        return (
            self.values if percentile is None else means.winsorised([self.values], percentile=percentile)[0]
        )

    def before(self, measure: "Measure") -> Sequence[tuple[int, int]]:
        """(m, c) of each member in a time without experiment; m is 0 for one without history."""
        if measure.kind == "proportion":
            return list(zip(self.impressions, self.conversions, strict=True))
        if measure.kind == "ratio":
            return list(zip(self.denominators, self.values, strict=True))
        there = [int(m > 0 or c > 0) for m, c in zip(self.impressions, self.conversions, strict=True)]
        _, values = self.pair(measure)
        return list(zip(there, values, strict=True))

    def shares(self, measure: "Measure") -> tuple[Sequence[int], Sequence[int]]:
        """(m, c) of each member's rate: of what the proportion is a share of, of other kinds impressions."""
        if measure.of == "subjects":
            return self.units, self.converted
        if measure.of == "participants":
            met = tuple(int(m > 0) for m in self.impressions)
            return met, tuple(int(m and c > 0) for m, c in zip(met, self.conversions, strict=True))
        return self.impressions, self.conversions


class Arm(Part):
    """A variant, as results show it."""

    id: str
    key: str
    name: str
    is_control: bool
    weight: int
    levels: dict[str, str] = Field(default_factory=dict)


class Member(Part):
    """An assigned participant: its arm by key, and how it was drawn.

    `planned`: it was there when the phase began, so the looks decide with it. `joined`: so many days after that it
    came, and takes part from then on; None where only who is planned does. `cluster`: it was drawn together with
    everybody of that name.
    """

    participant: str
    arm: str
    block: str
    stratum: str
    planned: bool = True
    joined: float | None = None
    cluster: str = ""

    @property
    def compared(self) -> bool:
        """It takes part in what is compared, if not from the beginning on."""
        return self.planned or self.joined is not None

    def there(self, day: float | None) -> bool:
        """It takes part in what is compared `day` days after the phase began; None: with who is planned alone."""
        return self.planned or (day is not None and self.joined is not None and self.joined <= day)


class Turn(Part):
    """A participant's turn with an arm in a block of time of a switchback; `over` so many days after the phase began.

    `cluster`: it was drawn together with everybody of that name.
    """

    participant: str
    arm: str
    cycle: int
    block: int
    over: float
    cluster: str = ""


class Alternation(Part):
    """The turns of who was there when a switchback began, and what was done in each of them, in their order.

    There are so many `cycles` by the design. `sums` are of the moment of the question, `day` days after the phase
    began; `first_day` is that of the first look. `washout` is the seconds of each block that do not count.
    """

    cycles: int
    block_days: float
    washout: float = 0.0
    day: float
    first_day: float | None = None
    turns: tuple[Turn, ...]
    sums: Sums


class Measure(Part):
    """What is measured; `guardrail` metrics carry the margin, the primary one the change worth finding."""

    name: str
    kind: Kind = "proportion"
    of: Of = "impressions"
    goal: Goal = "increase"
    margin: float | None = None
    effect: float | None = None
    winsorize_at: float | None = None


class Settings(Part):
    """How it is analysed, as fixed at the start."""

    alpha: float
    decision: Literal["path_test", "sequence"]
    horizon_days: float = 14
    power: float = 0.8
    effect: float = 0.1
    tuning: float | None = None
    variance: Variance = "jackknife"
    prior: tuple[float, float] = (1.0, 1.0)
    secondary_correction: Literal["holm", "benjamini_hochberg"] = "holm"
    history_days: int | None = None
    cluster_by: str = "participant"


class Ledgered(Part):
    """A recorded look; `sums` (of a switchback by turn) only in what is exported, to check it by.

    `open`: who had joined by then took part in it, as in every look of a sequence that was not taken before they did.
    """

    number: int
    at: str
    cut_off: str
    day: float
    comparisons: tuple[Json, ...] = ()
    guardrails: tuple[Json, ...] = ()
    open: bool = False
    sums: Sums | None = None


class Excluded(Part):
    """How many of an arm (by key) are out of `delivered`, or silent, for a reason.

    `units`: of so many that were drawn; None in records of before that was counted, where participants stand for it.
    """

    arm: str
    reason: str
    participants: int
    impressions: int
    units: int | None = None


class Factor(Part):
    """A factor of a multivariate experiment and its levels, the control's first."""

    key: str
    levels: tuple[str, ...]


class Beside(Part):
    """A secondary metric: what it is called, what it measures, and the sums of that."""

    key: str | None = None
    name: str | None = None
    measure: Measure
    sums: Sums
    first: Sums | None = None
    history: Sums | None = None


class Stretch(Part):
    """A phase of several: who was assigned in it and what they did; `first` as its first look saw it."""

    id: str
    number: int
    members: tuple[Member, ...]
    sums: Sums
    first: Sums | None = None


class Evidence(Part):
    """Everything an answer is made of; `about` is handed through.

    `sums` are of the moment of the question, `first` of the first look (of a switchback by turn), which freezes what a
    sequence aims at; `looks` are of the primary metric, `former_looks` those of what was it before, in what is
    exported: what they saw of this one counts in every look after them. `unspent` is the share of its alpha that is
    left by earlier phases. `history` is what members did before, where that is taken out. `alternation`: it is a
    switchback, and these are its turns. `uncompared`: why variants of this type are not compared. `others`: each arm's
    crossed or not in the other population, at the same looks. `pooled` are the phases, where the question is about all
    of them.
    """

    about: Json
    measure: Measure
    primary: bool
    population: Population
    settings: Settings
    seed: str
    arms: tuple[Arm, ...]
    members: tuple[Member, ...]
    sums: Sums
    first: Sums | None = None
    history: Sums | None = None
    unspent: float = 1.0
    alternation: Alternation | None = None
    looks: tuple[Ledgered, ...] = ()
    former_looks: tuple[Ledgered, ...] = ()
    other_looks: tuple[Ledgered, ...] = ()
    next_look_at: str | None = None
    replays: bool | None = None
    hashed: bool = False
    reachable: float | None = None
    exclusions: tuple[Excluded, ...] = ()
    uncompared: str | None = None
    findings: tuple[Json, ...] = Field(default=())
    pooled: tuple[Stretch, ...] = ()
    factors: tuple[Factor, ...] = ()
    secondary: tuple[Beside, ...] = ()

    @property
    def control(self) -> str | None:
        """The one control's key."""
        controls = [arm.key for arm in self.arms if arm.is_control]
        return controls[0] if len(controls) == 1 else None

    @property
    def comparable(self) -> bool:
        """Whether the control and another arm get participants; a phase may give anyone no weight."""
        weighted = [arm.key for arm in self.arms if arm.weight]
        return len(weighted) > 1 and self.control in weighted

    @property
    def scale(self) -> float:
        """What turns the sums' unit into the metric's."""
        return 1 / MILLION if self.measure.kind in ("mean", "ratio") else 1.0


# -- looks


def plan_of(evidence: Evidence, *, comparisons: int = 0, effect: float | None = None) -> Plan:
    """The plan behind the looks: who takes part, and how it is decided. Raises Invalid where nothing compares."""
    histories = _histories(evidence)
    units = [
        Unit(arm=arm, block=block, stratum=stratum, before=histories.get((name, arm)))
        for name, arm, block, stratum in clusters(evidence)
    ]
    if evidence.alternation is not None:
        units = list(_turns(evidence.alternation).values())
    return Plan(
        method=evidence.settings.decision,
        arms=tuple(arm.key for arm in evidence.arms if arm.weight),
        control=evidence.control or "",
        units=tuple(units),
        seed=bytes.fromhex(evidence.seed),
        alpha=evidence.settings.alpha,
        horizon=evidence.settings.horizon_days,
        power=evidence.settings.power,
        effect=effect or evidence.measure.effect or evidence.settings.effect,
        tuning=evidence.settings.tuning,
        variance=evidence.settings.variance,
        shares=evidence.measure.kind == "proportion",
        cycles=evidence.alternation.cycles if evidence.alternation else 0,
        comparisons=comparisons,
        unspent=evidence.unspent,
    )


def _turns(alternation: Alternation) -> dict[tuple[str, int], Unit]:
    """The turns of what was drawn, each once, by name and block; those of a cycle were drawn among themselves."""
    found: dict[tuple[str, int], Unit] = {}
    for turn in alternation.turns:
        name = turn.cluster or turn.participant
        own = switchback.Turn(participant=name, cycle=turn.cycle, time_block=turn.block, over=turn.over)
        found.setdefault(
            (name, turn.block), Unit(arm=turn.arm, block=f"{turn.cycle}/{name}", stratum="", turn=own)
        )
    return found


def clusters(evidence: Evidence) -> list[tuple[str, str, str, str]]:
    """(name, arm, block, stratum) of what was drawn and takes part, each once, in order."""
    found: dict[tuple[str, str], tuple[str, str, str, str]] = {}
    for member in evidence.members:
        if member.compared:
            name = member.cluster or member.participant
            found.setdefault((name, member.arm), (name, member.arm, member.block, member.stratum))
    return list(found.values())


def _histories(evidence: Evidence) -> dict[tuple[str, str], tuple[int, int]]:
    """What was drawn and has a history, with its sums of before."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    if evidence.history is not None:
        for member, (m, c) in zip(evidence.members, evidence.history.before(evidence.measure), strict=True):
            if member.compared and m:
                key = (member.cluster or member.participant, member.arm)
                had = found.get(key, (0, 0))
                found[key] = (had[0] + m, had[1] + c)
    return found


def historied(evidence: Evidence) -> int:
    """How many of what was drawn have a history."""
    return len(_histories(evidence))


def snapshot_of(evidence: Evidence, sums: Sums, *, day: float, until: float | None) -> Snapshot:
    """The sums of what was drawn, in the plan's order; clusters are summed up, turns count once they are over.

    Who joined within `until` days takes part; None: who was there when the phase began.
    """
    if evidence.alternation is not None:
        return _snapshot_of_turns(evidence, evidence.alternation, sums, day=day)
    places = {(name, arm): at for at, (name, arm, _, _) in enumerate(clusters(evidence))}
    trials, successes, there = [0] * len(places), [0] * len(places), [False] * len(places)
    for member, m, c in zip(evidence.members, *sums.pair(evidence.measure), strict=True):
        if member.there(until):
            at = places[member.cluster or member.participant, member.arm]
            trials[at] += m
            successes[at] += c
            there[at] = True
    return Snapshot(day=day, trials=trials, successes=successes, there=() if all(there) else there)


def _snapshot_of_turns(evidence: Evidence, alternation: Alternation, sums: Sums, *, day: float) -> Snapshot:
    units = _turns(alternation)
    places = {name: at for at, name in enumerate(units)}
    trials, successes = [0] * len(places), [0] * len(places)
    for turn, m, c in zip(alternation.turns, *sums.pair(evidence.measure), strict=True):
        if turn.over <= day:
            at = places[turn.cluster or turn.participant, turn.block]
            trials[at] += m
            successes[at] += c
    return Snapshot(day=day, trials=trials, successes=successes)


def until_now(evidence: Evidence) -> list[Snapshot]:
    """The first look, if there was one, and the moment of the question."""
    turns = evidence.alternation
    if turns is not None:
        first = None if turns.first_day is None else (evidence.first, turns.first_day)
        present = (turns.sums, turns.day)
    else:
        first = (evidence.first, 1e-9)
        present = (evidence.sums, max(evidence.looks[-1].day if evidence.looks else 0.0, 1e-9))
    found = (
        [snapshot_of(evidence, first[0], day=first[1], until=inf)] if first and first[0] is not None else []
    )
    return [*found, snapshot_of(evidence, present[0], day=present[1], until=inf)]


def look(evidence: Evidence, snapshots: Sequence[Snapshot]) -> tuple[Json, ...]:
    """The comparisons of the last of these looks, as they are recorded; none after the horizon."""
    found = decision.looks(plan_of(evidence), snapshots)
    return tuple(document(one, evidence.scale) for one in found[-1].comparisons)


def now(evidence: Evidence) -> dict[str, Comparison]:
    """What may be said at this moment of each arm against the control, however often somebody asks."""
    if not evidence.comparable:
        return {}
    sequence = plan_of(
        evidence.model_copy(
            update={"settings": evidence.settings.model_copy(update={"decision": "sequence"})}
        )
    )
    # The target is frozen at the first look; until then it is taken from what there is. It has no horizon.
    looks = decision.looks(replace(sequence, horizon=inf), until_now(evidence))
    return {one.arm: one for one in looks[-1].comparisons}


def guardrail(evidence: Evidence, snapshots: Sequence[Snapshot], *, guardrails: int) -> tuple[Json, ...]:
    """Each arm's state on one of so many guardrails after these looks, as it is recorded; watched anew in a phase."""
    others = sum(1 for arm in evidence.arms if arm.weight) - 1
    plan = plan_of(
        evidence.model_copy(
            update={"settings": evidence.settings.model_copy(update={"decision": "sequence"}), "unspent": 1.0}
        ),
        comparisons=guardrails * max(others, 1),
        effect=evidence.measure.margin,
    )
    found = guard(
        plan,
        snapshots,
        metric=evidence.measure.name,
        goal=evidence.measure.goal,
        margin=evidence.measure.margin,
    )
    return tuple(
        {
            "metric": item.metric,
            "variant": item.arm,
            "state": item.state.value,
            "interval": ends(item.interval, evidence.scale),
            "bound": None if item.bound is None else item.bound * evidence.scale,
        }
        for item in found
    )


def document(one: Comparison, scale: float) -> Json:
    return {
        "variant": one.arm,
        "statistic": one.statistic,
        "critical": one.critical,
        "alphaSpent": one.alpha_spent,
        "unspent": one.unspent,
        "difference": None if one.estimate is None else one.estimate * scale,
        "interval": ends(one.interval, scale),
        "lift": one.lift,
        "liftInterval": ends(one.lift_interval, 1.0),
        "pValue": one.p_value,
        "pValueAdjusted": one.p_adjusted,
        "crossed": one.crossed,
        "decided": one.decided,
        "reasons": {camel(name): reason.value for name, reason in sorted(one.reasons.items())},
    }


def _comparison(found: Json) -> Comparison:
    return Comparison(
        arm=found["variant"],
        statistic=found["statistic"],
        critical=found["critical"],
        alpha_spent=found["alphaSpent"],
        estimate=found["difference"],
        interval=interval_of(found["interval"]),
        lift=found["lift"],
        lift_interval=interval_of(found["liftInterval"]),
        p_value=found["pValue"],
        p_adjusted=found["pValueAdjusted"],
        crossed=found["crossed"],
        decided=found["decided"],
        reasons={name: Undefined(reason) for name, reason in found["reasons"].items()},
        unspent=found.get("unspent"),
    )


def looked(ledger: Iterable[Ledgered]) -> tuple[Look, ...]:
    return tuple(
        Look(day=item.day, comparisons=tuple(_comparison(one) for one in item.comparisons)) for item in ledger
    )


def ends(interval: Interval | None, scale: float) -> Json | None:
    return None if interval is None else {"low": interval.low * scale, "high": interval.high * scale}


def interval_of(found: Mapping[str, float] | None) -> Interval | None:
    return None if found is None else Interval(low=found["low"], high=found["high"])


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return "".join([first, *map(str.title, rest)])
