"""Who gets which variant: a balanced, stratified, seeded draw that anybody can repeat.

The module hides the procedure `balanced-1` and promises two things of it, over the choice of the seed:
every participant's chance of an arm is exactly the arm's weight, and within a recorded block every way
to hand out the block's labels is equally likely. The second is what lets the randomisation test permute
labels inside blocks. (`docs/decisions/0001-whole-quotas.md` says why quotas are whole sets.)

The procedure, to the byte, so that another language can reproduce it. H(tag, text) is SHA-256 over
seed ‖ tag ‖ UTF-8(text), tag being one byte, compared as 32 bytes; text is taken as it is, not
normalised. Percentages are whole numbers; all arithmetic is on integers.

1. Arms of weight 0 are left out. The others are put in order of H(0x01, arm key).
2. g is the greatest common divisor of their weights w; a whole set holds u = w / g of each arm, and
   B = 100 / g participants.
3. In each stratum, its n participants are put in order of H(0x00, participant id). The first
   (n div B)·B of them are the block `stratum:NAME`: the first (n div B)·u₁ in that order get the first
   arm, the next (n div B)·u₂ the second, and so on. The n mod B after them are left over.
4. The left-over participants of all strata, R of them, are one block `rest`, in order of
   H(0x02, participant id). An arm gets q = R·w div 100 places in it and one more where the systematic
   draw says so: with F = R·w mod 100 and the sums S₀ = 0, Sₖ = Sₖ₋₁ + Fₖ over the arms in order, U is
   H(0x03, "") read as a big-endian integer, mod 100, and arm k gets one more where some U + 100·i with
   whole i ≥ 0 lies in [Sₖ₋₁, Sₖ). That is so for F of the 100 values of U, which are equally likely up to
   2⁻²⁴⁹. The places are dealt as in step 3.
5. A participant's position is its rank in its block, from 0.

Arms are dealt contiguously, not in turn: the order of the participants is already random, so both give
every division of the block the same chance, and this one is the shorter to describe.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb, gcd

from shared.errors import Fault, Invalid

ALGORITHM = "balanced-1"
"""The name of the procedure above, recorded with the phase; a changed procedure gets another name."""

REST = "rest"
"""The block of what the strata left over. No stratum can be called that: theirs are `stratum:NAME`."""

_STRATUM_ORDER, _ARM_ORDER, _REST_ORDER, _REMAINDER = b"\x00", b"\x01", b"\x02", b"\x03"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A participant (public id) to be placed, and the stratum it is balanced in (by default its agent)."""

    participant: str
    stratum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A variant's key and its weight in whole per cent."""

    key: str
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a participant came to be: its arm, and the block and position that explain it."""

    participant: str
    arm: str
    stratum: str
    block: str
    position: int


def assign(candidates: Sequence[Candidate], arms: Sequence[Arm], *, seed: bytes) -> tuple[Placement, ...]:
    """Every candidate has an arm, with a chance of exactly the arm's weight.

    The answer depends on the seed, the ids, the strata and the weights, never on the order of
    `candidates` or `arms`; it is sorted by block, then position. An arm of weight 0 gets nobody. In a
    stratum's block every arm has exactly its share; in `rest` it is within one of it.

    Raises Invalid that lists every fault by field: `seed`, `arms`, `arms[i].key`, `arms[i].weight`,
    `candidates[i].participant`.
    """
    faults = [*_faults(candidates, arms, seed)]
    if faults:
        listed = "; ".join(f"{fault.field} {fault.message}" for fault in faults)
        raise Invalid(f"cannot assign: {listed}", reason="BAD_ASSIGNMENT", faults=faults)
    drawn = in_draw_order(arms, seed=seed)
    divisor = gcd(*(arm.weight for arm in drawn))
    set_size = 100 // divisor
    strata: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        strata[candidate.stratum].append(candidate)
    placements: list[Placement] = []
    rest: list[Candidate] = []
    for stratum, members in strata.items():
        members.sort(key=lambda member: keyed_hash(seed, _STRATUM_ORDER, member.participant))
        sets = len(members) // set_size
        shares = [sets * (arm.weight // divisor) for arm in drawn]
        placements += _deal(f"stratum:{stratum}", members[: sets * set_size], drawn, shares)
        rest += members[sets * set_size :]
    rest.sort(key=lambda member: keyed_hash(seed, _REST_ORDER, member.participant))
    placements += _deal(REST, rest, drawn, places(len(rest), drawn, seed))
    return tuple(sorted(placements, key=lambda placed: (placed.block, placed.position)))


def replay(placements: Sequence[Placement], arms: Sequence[Arm], *, seed: bytes) -> bool:
    """Whether the recorded procedure gives exactly the recorded placements, in whatever order they come.

    A changed arm, block or position, another seed or weight is found. Who took part and in which stratum
    are inputs of the procedure: a record that lost a whole stratum still replays, so the number of
    participants must be compared with the one kept elsewhere.
    """
    candidates = [Candidate(participant=placed.participant, stratum=placed.stratum) for placed in placements]
    try:
        return set(assign(candidates, arms, seed=seed)) == set(placements)
    except Invalid:
        return False


def smallest_reachable_p(placements: Sequence[Placement], *, treatment: str, control: str) -> float:
    """No outcome gives the randomisation test of two arms a two-sided p below this.

    The test permutes the two labels inside the recorded blocks, so it can tell N = ∏ C(n_t + n_c, n_t)
    draws apart, and p counts the draws with a statistic as large as the real one, itself included. Where
    every block holds as many of one arm as of the other, exchanging all labels turns the statistic
    round: the real draw has a twin, and the bound is 2/N; otherwise it is 1/N. Examples: 5 + 5 in one
    block 0.0079, five blocks of two 0.0625, 4 + 4 0.029, 3 + 2 0.1. An arm without anybody: 1.
    """
    counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for placed in placements:
        if placed.arm in (treatment, control):
            counts[placed.block][placed.arm == control] += 1
    draws = 1
    for treated, untreated in counts.values():
        draws *= comb(treated + untreated, treated)
    twins = all(treated == untreated for treated, untreated in counts.values())
    return min(1.0, (2 if twins else 1) / draws)


def keyed_hash(seed: bytes, tag: bytes, text: str) -> bytes:
    """H(tag, text): the one source of chance; `tag` is one byte and each use has its own."""
    return hashlib.sha256(seed + tag + text.encode()).digest()


def in_draw_order(arms: Sequence[Arm], *, seed: bytes) -> list[Arm]:
    """The arms that get anybody, in the order of step 1."""
    return sorted((arm for arm in arms if arm.weight), key=lambda arm: keyed_hash(seed, _ARM_ORDER, arm.key))


def places(size: int, arms: Sequence[Arm], seed: bytes) -> list[int]:
    """How many of `size` each arm gets: its whole share, and one more with the chance of its remainder.

    The systematic draw of step 4; `arms` in the order of step 1. The counts sum to `size`.
    """
    start = int.from_bytes(keyed_hash(seed, _REMAINDER, "")) % 100
    places = []
    reached = 0
    for arm in arms:
        whole, remainder = divmod(size * arm.weight, 100)
        # The points start, start + 100, … below x are ceil((x - start) / 100) many.
        points_before = -(-(reached - start) // 100)
        reached += remainder
        places.append(whole + -(-(reached - start) // 100) - points_before)
    return places


def _deal(
    block: str, members: Sequence[Candidate], arms: Sequence[Arm], places: Sequence[int]
) -> Iterator[Placement]:
    keys = [arm.key for arm, count in zip(arms, places, strict=True) for _ in range(count)]
    for position, (member, key) in enumerate(zip(members, keys, strict=True)):
        yield Placement(
            participant=member.participant, arm=key, stratum=member.stratum, block=block, position=position
        )


def _faults(candidates: Sequence[Candidate], arms: Sequence[Arm], seed: bytes) -> Iterator[Fault]:
    if not seed:
        yield Fault(field="seed", message="is empty", remedy="give the phase's random bytes")
    if not arms:
        yield Fault(field="arms", message="has no arm", remedy="add a variant")
    keys: set[str] = set()
    for index, arm in enumerate(arms):
        if arm.key in keys:
            yield Fault(field=f"arms[{index}].key", message=f"{arm.key!r} is there twice")
        keys.add(arm.key)
        if not 0 <= arm.weight <= 100:
            yield Fault(field=f"arms[{index}].weight", message="must be from 0 to 100 per cent")
    total = sum(arm.weight for arm in arms)
    if arms and total != 100:
        yield Fault(field="arms", message=f"have weights that sum to {total}", remedy="make it 100")
    seen: set[str] = set()
    for index, candidate in enumerate(candidates):
        if candidate.participant in seen:
            where = f"candidates[{index}].participant"
            yield Fault(field=where, message=f"{candidate.participant!r} is there twice")
        seen.add(candidate.participant)
