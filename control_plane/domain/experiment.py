"""What an experiment is: the nouns, what a start requires, and the assignment it would make.

Pure: functions take what they need and return new values or the list of everything that is wrong.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from control_plane.domain import switchback as switching
from control_plane.domain.assignment import Arm, Placement, smallest_reachable_p
from control_plane.domain.design import HORIZON_DAYS, Design, Type
from control_plane.domain.factors import Factor
from control_plane.domain.intake import MAX_BALANCED, Applicant, Holdout, Method, Rules, Seat, seats
from control_plane.domain.lifecycle import Status, Verb, after
from control_plane.domain.switchback import Calendar
from control_plane.domain.targeting import TargetingRules
from shared.errors import FailedPrecondition
from shared.model import Digest
from shared.moment import SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFile:
    """One file of a variant."""

    path: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One content an experiment tries.

    `targeting_rules` say for whom it is, where nothing is random; `levels` are level by factor, where there are
    factors, and its files follow from them.
    """

    id: bytes
    experiment_id: bytes
    position: int
    key: str
    name: str
    description: str
    is_control: bool
    weight: int
    files: tuple[VariantFile, ...]
    config: dict[str, Any] | None
    metadata: dict[str, Any] | None
    created_at: int
    updated_at: int
    targeting_rules: TargetingRules = field(default_factory=TargetingRules)
    levels: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)

    def digests(self) -> dict[str, Digest]:
        """Digest by path."""
        return {file.path: file.digest for file in self.files}


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of a run with fixed weights, allocation and seed; weights by variant id, per cent."""

    id: bytes
    number: int
    algorithm: str
    seed: bytes
    weights: Mapping[bytes, int]
    traffic_allocation: int
    opened_at: int
    closed_at: int | None
    events_gone_at: int | None = None
    """From when on it counts nothing more, because its raw events are deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Which variant a participant has within a phase, None for none; ids are None and `from_at` 0 while planned.

    `time_block` counts the blocks of a switchback from 1, 0: there are none.
    `retired`: the participant's host is gone for good, and no other agent has declared it since. `deleted`: the
    participant itself is gone.
    `cluster`: what it was drawn together with; empty: it was drawn by itself.
    """

    id: bytes | None
    experiment_id: bytes
    phase_id: bytes | None
    participant: str
    variant_id: bytes | None
    drawn: Method
    block: str
    stratum: str
    position: int
    from_at: int
    labels_used: Mapping[str, str] = field(default_factory=dict)
    to_at: int | None = None
    forced_by: str | None = None
    retired: bool = False
    deleted: bool = False
    time_block: int = 0
    cluster: str = ""

    @property
    def unit(self) -> str:
        """What was drawn, and is compared: the participant, or its cluster."""
        return self.cluster or self.participant

    @property
    def planned(self) -> bool:
        """Locks nothing yet."""
        return self.id is None

    @property
    def method(self) -> Method:
        """As it was drawn, or `forced` once another variant was deployed by hand."""
        return Method.FORCED if self.forced_by else self.drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An experiment with its variants; `selector`, `metrics` and `metadata` are JSON-shaped.

    `kept` is what clients of other systems sent that means nothing for files, by door (`services.foreign`).
    """

    id: bytes
    project_id: bytes
    number: int
    key: str
    name: str
    description: str
    type: Type
    status: Status
    archived: bool
    target_file: str | None
    selector: dict[str, Any]
    metrics: dict[str, Any]
    design: Design
    labels: dict[str, str]
    metadata: dict[str, Any] | None
    run: int
    seed: bytes
    created_by: str
    version: int
    created_at: int
    updated_at: int
    variants: tuple[Variant, ...] = ()
    factors: tuple[Factor, ...] = ()
    phase: Phase | None = None
    holdout: Holdout | None = None
    winner_variant_id: bytes | None = None
    conclusion: str | None = None
    conclusion_comment: str | None = None
    started_at: int | None = None
    resumed_at: int | None = None
    paused_at: int | None = None
    stopped_at: int | None = None
    completed_at: int | None = None
    archived_at: int | None = None
    analysis_fingerprint: str | None = None
    kept: Mapping[str, Any] = field(default_factory=dict)

    @property
    def alpha(self) -> float:
        """The one level of every interval, p-value and flag."""
        return self.design.analysis.alpha

    @property
    def decided_by(self) -> str:
        """`path_test` or `sequence`: as the design says, else the path test for a closed list it can deal with."""
        closed = 0 < len(self.selector.get("ids", ())) <= MAX_BALANCED or self.type is Type.SWITCHBACK
        return self.design.analysis.decision or ("path_test" if closed else "sequence")

    @property
    def horizon_days(self) -> float:
        """When the path test has spent its level: as designed, else with a switchback's last block, or 14 days."""
        said, settings = self.design.analysis.horizon_days, self.design.switchback
        if said is not None:
            return float(said)
        if self.type is Type.SWITCHBACK and settings is not None:
            return settings.length * settings.blocks / (86_400 * SECOND)
        return float(HORIZON_DAYS)

    @property
    def arms(self) -> tuple[Variant, ...]:
        """The variants that participants get and results compare: all but the excluded ones."""
        left_out = set(self.design.analysis.excluded_variant_ids)
        return tuple(variant for variant in self.variants if variant.key not in left_out)

    @property
    def weights(self) -> dict[bytes, int]:
        """Every variant's weight, per cent; 0 for one that is excluded."""
        arms = {variant.id for variant in self.arms}
        return {item.id: item.weight if item.id in arms else 0 for item in self.variants}

    @property
    def replannable(self) -> bool:
        """Whether metrics may change though it has started."""
        return self.status in (Status.RUNNING, Status.PAUSED) and not self.archived

    def fingerprint(self) -> str:
        """SHA-256, in hex, of metrics, analysis and the phase that the start opened, as canonical JSON."""
        return self.fingerprint_of({"metrics": self.metrics}, number=1, seed=self.seed)

    def fingerprint_of(self, measured: Mapping[str, Any], *, number: int, seed: bytes) -> str:
        """SHA-256, in hex, of what is measured, the analysis and a phase of this run, as canonical JSON."""
        plan = {
            **measured,
            "analysis": self.design.analysis.said(),
            "phase": {"run": self.run, "number": number, "seed": seed.hex()},
        }
        if self.type is Type.SWITCHBACK and self.design.switchback is not None:
            plan["switchback"] = self.design.switchback.model_dump(mode="json", by_alias=True)
        text = json.dumps(plan, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def plan_changed(self) -> bool:
        """Whether it would be analysed otherwise than was said at the start."""
        return self.analysis_fingerprint is not None and self.analysis_fingerprint != self.fingerprint()

    def after(self, verb: Verb) -> Status:
        """The status that follows the verb. Raises FailedPrecondition where it does not fit."""
        return after(self.status, verb, archived=self.archived)

    @property
    def target_files(self) -> list[str]:
        """Every file some variant writes, and the declared one, sorted."""
        paths = {file.path for variant in self.variants for file in variant.files}
        paths |= {factor.target_file for factor in self.factors}
        return sorted(paths | ({self.target_file} if self.target_file else set()))

    @property
    def control(self) -> Variant | None:
        """The one control, or None where there is none or several."""
        controls = [variant for variant in self.variants if variant.is_control]
        return controls[0] if len(controls) == 1 else None

    @property
    def calendar(self) -> Calendar | None:
        """When its blocks begin and end; None where there are none, or none yet."""
        return self.calendar_of(self.phase)

    def calendar_of(self, phase: Phase | None) -> Calendar | None:
        """When the blocks of a phase begin and end."""
        settings = self.design.switchback
        if self.type is not Type.SWITCHBACK or settings is None or phase is None:
            return None
        return Calendar(begins=phase.opened_at, length=settings.length, blocks=settings.blocks)

    def digests(self) -> tuple[Digest, ...]:
        """Digests of every file of every variant."""
        return tuple(sorted({file.digest for variant in self.variants for file in variant.files}))


UNTOLD: Mapping[str, Any] = {
    "winner_variant_id": None,
    "conclusion": None,
    "conclusion_comment": None,
    "started_at": None,
    "resumed_at": None,
    "paused_at": None,
    "stopped_at": None,
    "completed_at": None,
    "analysis_fingerprint": None,
}
"""What a draft has not lived through yet: fields of Experiment, as they are before a start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Somebody else holds a target file of a participant."""

    participant: str
    path: str
    holder: str


def rules_of(experiment: Experiment, *, seed: bytes) -> Rules:
    """What decides who gets which variant, with weights normalised to 100."""
    arms = experiment.arms
    weights = normalised([variant.weight for variant in arms])
    return Rules(
        arms=[Arm(key=arm.key, weight=weight) for arm, weight in zip(arms, weights, strict=True)],
        seed=seed,
        allocation=experiment.design.traffic_allocation,
        holdout=experiment.holdout,
        targeted={arm.key: arm.targeting_rules.labels for arm in arms}
        if experiment.type is Type.PERSONALIZATION
        else None,
        time_blocks=experiment.design.switchback.blocks
        if experiment.type is Type.SWITCHBACK and experiment.design.switchback
        else 0,
    )


def refuse_phase(experiment: Experiment) -> None:
    """A phase fits the experiment's type. Raises FailedPrecondition saying why it does not."""
    if experiment.type is Type.PERSONALIZATION:
        raise FailedPrecondition(
            "a personalization has no weights, allocation or seed that a phase could change: rules choose;"
            " for other rules reset or duplicate it",
            reason="NO_PHASES",
        )
    if experiment.type is Type.SWITCHBACK:
        raise FailedPrecondition(
            "the blocks of a switchback are drawn at its start, and every variant is there once per cycle;"
            " for another order or another allocation reset or duplicate it",
            reason="NO_PHASES",
        )


def plan(experiment: Experiment, applicants: Sequence[Applicant]) -> tuple[Seat, ...]:
    """The seats a start would give now, of a switchback those of the first block; empty where it could give none."""
    return tuple(seat for seat in whole_plan(_of_one_block(experiment), applicants))


def _of_one_block(experiment: Experiment) -> Experiment:
    settings = experiment.design.switchback
    if settings is None:
        return experiment
    first = settings.model_copy(update={"blocks": 1})
    return replace(experiment, design=experiment.design.model_copy(update={"switchback": first}))


def whole_plan(experiment: Experiment, applicants: Sequence[Applicant]) -> tuple[Seat, ...]:
    """The seats a start would give now, in every block; empty where it could give none."""
    if experiment.type is Type.SWITCHBACK and experiment.design.switchback is None:
        return ()
    if not experiment.arms or not applicants:
        return ()
    return seats(applicants, rules_of(experiment, seed=experiment.seed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a decision needs and what these assignments allow: the p of the most extreme outcome.

    `units` were drawn: participants, or clusters of them.
    """

    units: int
    clustered: bool
    reachable: float
    needed: float
    cycles: int | None = None

    @property
    def possible(self) -> bool:
        """Some outcome could be significant."""
        return self.reachable <= self.needed


def cannot_decide(experiment: Experiment, assignments: Sequence[Assignment]) -> str | None:
    """Why no outcome of these assignments could be significant at the experiment's level; None where one could."""
    found = decision(experiment, assignments)
    if found is None or found.possible:
        return None
    what = "clusters" if found.clustered else "participants"
    who = f"{found.units} {what}" + (f" in {found.cycles} cycles" if found.cycles is not None else "")
    more = " or blocks" if found.cycles is not None else ""
    return (
        f"{who} cannot decide: the smallest reachable p is {found.reachable:.2g},"
        f" a decision needs {found.needed:.2g}; add {what}{more}"
    )


def decision(experiment: Experiment, assignments: Sequence[Assignment]) -> Decision | None:
    """Whether these assignments could decide; None where there is nothing to compare.

    With K arms a decision needs p below alpha / (K - 1) (Bonferroni); the randomisation test cannot give any
    arm a p below what the recorded blocks allow, nor the sign-flip test of a switchback below what its cycles do.
    """
    control = experiment.control
    others = [variant for variant in experiment.arms if variant is not control]
    if (
        control not in experiment.arms
        or not others
        or not assignments
        or experiment.type is Type.PERSONALIZATION
    ):
        return None
    needed = experiment.alpha / len(others)
    clustered = experiment.design.analysis.cluster_by != "participant"
    if experiment.type is Type.SWITCHBACK:
        settings = experiment.design.switchback
        count = len({item.unit for item in assignments if item.variant_id is not None})
        if settings is None or not count:
            return None
        cycles = settings.blocks // len(experiment.arms)
        reachable = switching.smallest_reachable_p(count, cycles)
        return Decision(clustered=clustered, units=count, reachable=reachable, needed=needed, cycles=cycles)
    placements = drawn_placements(experiment, assignments)
    reachable = min(
        smallest_reachable_p(placements, treatment=variant.key, control=control.key) for variant in others
    )
    return Decision(clustered=clustered, units=len(placements), reachable=reachable, needed=needed)


def drawn_placements(experiment: Experiment, assignments: Iterable[Assignment]) -> list[Placement]:
    """What was drawn into a variant, each unit once: a participant, or a cluster by its name."""
    keys = {variant.id: variant.key for variant in experiment.variants}
    placed = {
        item.unit: Placement(
            participant=item.unit,
            arm=keys[item.variant_id],
            stratum=item.stratum,
            block=item.block,
            position=item.position,
        )
        for item in assignments
        if item.variant_id is not None and item.drawn is Method.RANDOMIZED
    }
    return list(placed.values())


def normalised(weights: Sequence[int]) -> list[int]:
    """Whole per cents in the proportion of `weights` that sum to 100 (largest remainder; all 0: equal)."""
    total = sum(weights)
    if total == 0:
        weights, total = [1] * len(weights), len(weights)
    shares = [weight * 100 // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(weights[i] * 100 % total), i))
    for index in by_remainder[: 100 - sum(shares)]:
        shares[index] += 1
    return shares


def key_from(name: str, taken: Collection[str]) -> str:
    """A key made from a name's letters without their accents, unlike every one taken."""
    letters = "".join(
        c for c in unicodedata.normalize("NFKD", name).casefold() if not unicodedata.combining(c)
    )
    stem = re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:56].strip("-")
    stem = stem if stem[:1].isalpha() else f"x-{stem}".strip("-")
    key, suffix = stem, 2
    while key in taken:
        key, suffix = f"{stem}-{suffix}", suffix + 1
    return key


def name_of_copy(name: str, taken: Collection[str]) -> str:
    """`name (Copy)`, or with the first number from 2 on that makes it unlike every name taken."""
    stem = f"{name[:380]} (Copy)"
    copy, suffix = stem, 2
    while copy in taken:
        copy, suffix = f"{stem} {suffix}", suffix + 1
    return copy
