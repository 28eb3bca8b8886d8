"""Who comes into an experiment and with which variant: holdout, targeting, allocation, then the draw.

Everything follows from the seed and the ids, so it can be repeated. What each seat records (method, block,
stratum, position) is what explains it. The procedures:

- `balanced-1`, the draw of `domain.assignment`, for a known list of up to `MAX_BALANCED`.
- `hash-1` for larger and open populations: bucket = H(0x11, id) mod 10,000, arms in order of their keys, each
  with 100 buckets per per cent. Exact in expectation, one participant at a time.
- Late joiners of a balanced phase come in permuted blocks of one whole set (100 / gcd of the weights) within
  their stratum: in block `late:PHASE:STRATUM:n` the set's places are in order of H(0x13, "PHASE/STRATUM/n/place"),
  so earlier draws stay as they are.
- Allocation: of a list of n, the first n·a/100 in order of H(0x10, id) come in, one more with the chance of the
  remainder; a late joiner, and any of `hash-1`, where H(0x10, id) mod 10,000 is below 100·a. Raising the
  allocation under the same seed keeps who was in.
- `sticky-1` for a further phase: everybody keeps the variant, except as many as an arm has too many, in order of
  H(0x12, id); they and who comes in fill the arms that have too few.
- Clusters: where applicants come in clusters, each procedure draws clusters as it would draw participants, by the
  cluster's name for the id, and every member has its cluster's seat: arm, block, stratum and position. A cluster
  whose members are of several strata is of the stratum `A|B|…` of their sorted names. Who joins a cluster that has a
  seat gets that. Holdouts and rules mean participants, as ever.

H(tag, text) is as in `domain.assignment`, mod on its big-endian integer.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import gcd

from control_plane.domain.assignment import (
    ALGORITHM,
    Arm,
    Candidate,
    assign,
    in_draw_order,
    keyed_hash,
    places,
)
from control_plane.domain.switchback import SWITCHBACK, block_name, turns
from control_plane.domain.targeting import LabelRule, holds

MAX_BALANCED = 1_000
HASHED = "hash-1"
STICKY = "sticky-1"
TARGETED = "targeted-1"
_BUCKETS = 10_000
_ENTRY, _HASHED, _LEAVING, _LATE, _HOLDOUT = b"\x10", b"\x11", b"\x12", b"\x13", b"\x14"


class Method(StrEnum):
    """How a participant came to its seat."""

    RANDOMIZED = "randomized"
    TARGETED = "targeted"
    FORCED = "forced"
    HOLDOUT = "holdout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Applicant:
    """A participant (public id) who may come in, with the labels that rules see."""

    participant: str
    stratum: str
    labels: Mapping[str, str] = field(default_factory=dict)
    cluster: str = ""
    """What it is drawn together with; empty: it is drawn by itself."""

    @property
    def unit(self) -> str:
        """What is drawn."""
        return self.cluster or self.participant


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where an applicant came to be; `arm` is None for who is on record and has no variant."""

    participant: str
    arm: str | None
    method: Method
    stratum: str
    block: str
    position: int
    time_block: int = 0
    cluster: str = ""

    @property
    def unit(self) -> str:
        """What was drawn."""
        return self.cluster or self.participant


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdout:
    """A share (per cent, two decimals) of participants that stays out of every experiment that names it."""

    seed: bytes
    share: float

    def holds_out(self, participant: str) -> bool:
        """Whether the participant is of the share; the same in every experiment."""
        return _bucket(self.seed, _HOLDOUT, participant) < round(self.share * 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What decides about applicants.

    `targeted`: each arm's rules, the first that fit wins, nothing is random. `time_blocks`: so many blocks, in
    which everybody alternates between the arms (`domain.switchback`).
    """

    arms: Sequence[Arm]
    seed: bytes
    allocation: int = 100
    holdout: Holdout | None = None
    targeted: Mapping[str, Sequence[LabelRule]] | None = None
    time_blocks: int = 0


def algorithm_for(applicants: int, rules: Rules) -> str:
    """The procedure that a phase with so many participants to begin with records."""
    if rules.targeted is not None:
        return TARGETED
    if rules.time_blocks:
        return SWITCHBACK
    return ALGORITHM if applicants <= MAX_BALANCED else HASHED


def seats(applicants: Sequence[Applicant], rules: Rules) -> tuple[Seat, ...]:
    """A seat for every applicant (one for each of its time blocks), by block and position.

    Raises Invalid where arms, weights or ids cannot be drawn with.
    """
    free = [item for item in applicants if not _held_out(item, rules)]
    taken = [_holdout_seat(item) for item in applicants if _held_out(item, rules)]
    if rules.targeted is not None:
        taken += [_targeted_seat(item, rules.targeted) for item in free]
        return _sorted(taken)
    members: defaultdict[str, list[Applicant]] = defaultdict(list)
    for item in free:
        members[item.unit].append(item)
    units = [
        Applicant(participant=unit, stratum="|".join(sorted({item.stratum for item in of})))
        for unit, of in members.items()
    ]
    drawn = _drawn(units, rules, algorithm=algorithm_for(len(applicants), rules))
    return _sorted([*taken, *(_of(item, seat) for seat in drawn for item in members[seat.participant])])


def _of(applicant: Applicant, seat: Seat) -> Seat:
    """The seat of the applicant's unit, as its own."""
    return replace(seat, participant=applicant.participant, cluster=applicant.cluster)


def _drawn(units: Sequence[Applicant], rules: Rules, *, algorithm: str) -> list[Seat]:
    if algorithm == HASHED:
        return [_hashed_seat(item, rules) for item in units]
    inside, outside = _enter(units, rules)
    if rules.time_blocks:
        return [*(seat for item in inside for seat in _turns(item, rules, first=1)), *outside]
    drawn = assign(
        [Candidate(participant=item.participant, stratum=item.stratum) for item in inside],
        rules.arms,
        seed=rules.seed,
    )
    seated = (
        Seat(
            participant=placed.participant,
            arm=placed.arm,
            method=Method.RANDOMIZED,
            stratum=placed.stratum,
            block=placed.block,
            position=placed.position,
        )
        for placed in drawn
    )
    return [*seated, *outside]


def late_seat(
    applicant: Applicant,
    rules: Rules,
    *,
    algorithm: str,
    phase: int,
    earlier: int,
    cluster: Seat | None = None,
) -> Seat:
    """The seat of who joins a phase that has begun.

    `earlier` units that joined late are in the stratum before; `cluster` is the seat of its cluster, if that has one.
    """
    if _held_out(applicant, rules):
        return _holdout_seat(applicant)
    if rules.targeted is not None:
        return _targeted_seat(applicant, rules.targeted)
    if cluster is not None:
        return _of(applicant, cluster)
    if algorithm == HASHED:
        return _hashed_seat(applicant, rules)
    if not _enters(applicant, rules):
        return _outside(applicant, earlier)
    drawn = in_draw_order(rules.arms, seed=rules.seed)
    divisor = gcd(*(arm.weight for arm in drawn))
    keys = [arm.key for arm in drawn for _ in range(arm.weight // divisor)]
    block, position = divmod(earlier, len(keys))
    name = f"{phase}/{applicant.stratum}/{block}"
    order = sorted(range(len(keys)), key=lambda place: keyed_hash(rules.seed, _LATE, f"{name}/{place}"))
    return Seat(
        participant=applicant.participant,
        arm=keys[order[position]],
        method=Method.RANDOMIZED,
        stratum=applicant.stratum,
        block=f"{late_blocks(phase)}{applicant.stratum}:{block}",
        position=position,
        cluster=applicant.cluster,
    )


def late_turns(applicant: Applicant, rules: Rules, *, first: int, cluster: Seat | None = None) -> list[Seat]:
    """The seats of who joins a switchback that has begun, from block `first` on; `cluster` as for `late_seat`."""
    if _held_out(applicant, rules):
        return [_holdout_seat(applicant)]
    if cluster is not None and cluster.arm is None:
        return [_of(applicant, cluster)]
    if cluster is None and not _enters(applicant, rules):
        return [_outside(applicant, 0)]
    return list(_turns(applicant, rules, first=first))


def _turns(applicant: Applicant, rules: Rules, *, first: int) -> Iterator[Seat]:
    keys = [arm.key for arm in rules.arms]
    for turn in turns(applicant.unit, keys, seed=rules.seed, blocks=rules.time_blocks, first=first):
        yield Seat(
            participant=applicant.participant,
            arm=turn.arm,
            method=Method.RANDOMIZED,
            stratum=applicant.stratum,
            block=block_name(turn.cycle),
            position=turn.place,
            time_block=turn.time_block,
            cluster=applicant.cluster,
        )


def late_blocks(phase: int) -> str:
    """What the blocks of a phase's late joiners begin with."""
    return f"late:{phase}:"


def reseat(present: Sequence[Seat], rules: Rules, *, number: int) -> tuple[Seat, ...]:
    """The seats of phase `number` after these: nobody is put out, and only who has to moves.

    Every arm ends up with its share of all who are in, or within one of it. Who is new in an arm is in the
    block `phase:NUMBER`; the others keep what explains them. Of a cluster everybody has what one of it has, where
    some could not come in before.
    """
    others = [seat for seat in present if seat.arm is None and seat.method is not Method.RANDOMIZED]
    members: defaultdict[str, list[Seat]] = defaultdict(list)
    for seat in present:
        if seat.arm is not None or seat.method is Method.RANDOMIZED:
            members[seat.unit].append(seat)
    units = [
        replace(max(of, key=lambda seat: seat.arm is not None), participant=unit, cluster="")
        for unit, of in members.items()
    ]
    again = _reseated(units, rules, number=number)
    return _sorted(
        [
            *(
                replace(seat, participant=item.participant, cluster=item.cluster)
                for seat in again
                for item in members[seat.participant]
            ),
            *others,
        ]
    )


def _reseated(present: Sequence[Seat], rules: Rules, *, number: int) -> list[Seat]:
    inside = [seat for seat in present if seat.arm is not None]
    waiting = [seat for seat in present if seat.arm is None]
    wanted = _entrants(len(inside) + len(waiting), rules)
    waiting.sort(key=lambda seat: keyed_hash(rules.seed, _ENTRY, seat.participant))
    entering = waiting[: max(0, wanted - len(inside))]
    drawn = in_draw_order(rules.arms, seed=rules.seed)
    quotas = dict(
        zip(
            (arm.key for arm in drawn),
            places(len(inside) + len(entering), drawn, rules.seed),
            strict=True,
        )
    )
    stay: list[Seat] = []
    moving = list(entering)
    for key in sorted({seat.arm for seat in inside if seat.arm is not None}):
        members = [seat for seat in inside if seat.arm == key]
        members.sort(key=lambda seat: keyed_hash(rules.seed, _LEAVING, seat.participant))
        kept = min(quotas.get(key, 0), len(members))
        stay += members[:kept]
        moving += members[kept:]
        if key in quotas:
            quotas[key] -= kept
    moving.sort(key=lambda seat: keyed_hash(rules.seed, _LEAVING, seat.participant))
    keys = [key for key, count in quotas.items() for _ in range(count)]
    moved = [
        replace(seat, arm=key, block=f"phase:{number}", position=position)
        for position, (seat, key) in enumerate(zip(moving, keys, strict=True))
    ]
    return [*stay, *moved, *waiting[len(entering) :]]


def _sorted(found: Sequence[Seat]) -> tuple[Seat, ...]:
    return tuple(sorted(found, key=lambda seat: (seat.block, seat.position, seat.participant)))


def _bucket(seed: bytes, tag: bytes, text: str) -> int:
    return int.from_bytes(keyed_hash(seed, tag, text)) % _BUCKETS


def _held_out(applicant: Applicant, rules: Rules) -> bool:
    return rules.holdout is not None and rules.holdout.holds_out(applicant.participant)


def _holdout_seat(applicant: Applicant) -> Seat:
    return Seat(
        participant=applicant.participant,
        arm=None,
        method=Method.HOLDOUT,
        stratum=applicant.stratum,
        block="holdout",
        position=0,
        cluster=applicant.cluster,
    )


def _targeted_seat(applicant: Applicant, targeted: Mapping[str, Sequence[LabelRule]]) -> Seat:
    fitting: Iterator[str] = (key for key, rules in targeted.items() if holds(rules, applicant.labels))
    return Seat(
        participant=applicant.participant,
        arm=next(fitting, None),
        method=Method.TARGETED,
        stratum=applicant.stratum,
        block="targeted",
        position=0,
    )


def _hashed_seat(applicant: Applicant, rules: Rules) -> Seat:
    if not _enters(applicant, rules):
        return _outside(applicant, 0)
    bucket = _bucket(rules.seed, _HASHED, applicant.unit)
    reached = 0
    for arm in sorted(rules.arms, key=lambda arm: arm.key):
        reached += arm.weight * _BUCKETS // 100
        if bucket < reached:
            break
    return Seat(
        participant=applicant.participant,
        arm=arm.key,
        method=Method.RANDOMIZED,
        stratum=applicant.stratum,
        block="hash",
        position=bucket,
        cluster=applicant.cluster,
    )


def _enters(applicant: Applicant, rules: Rules) -> bool:
    return _bucket(rules.seed, _ENTRY, applicant.unit) < rules.allocation * _BUCKETS // 100


def _entrants(size: int, rules: Rules) -> int:
    """How many of a list of `size` come in."""
    whole, remainder = divmod(size * rules.allocation, 100)
    return whole + (int.from_bytes(keyed_hash(rules.seed, _ENTRY, "")) % 100 < remainder)


def _enter(applicants: Sequence[Applicant], rules: Rules) -> tuple[list[Applicant], list[Seat]]:
    if rules.allocation == 100:
        return list(applicants), []
    order = sorted(applicants, key=lambda item: keyed_hash(rules.seed, _ENTRY, item.participant))
    count = _entrants(len(order), rules)
    return order[:count], [_outside(item, rank) for rank, item in enumerate(order[count:])]


def _outside(applicant: Applicant, position: int) -> Seat:
    return Seat(
        participant=applicant.participant,
        arm=None,
        method=Method.RANDOMIZED,
        stratum=applicant.stratum,
        block="outside",
        position=position,
        cluster=applicant.cluster,
    )
