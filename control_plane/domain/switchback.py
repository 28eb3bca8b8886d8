"""Switchback: each participant alternates between all variants, in blocks of time and in an order drawn by lot.

A cycle is as many blocks as there are variants. The procedure `switchback-1`: in cycle c (from 1) a participant
gets the variants in order of H(0x20, "c/PARTICIPANT/KEY"), H being that of `domain.assignment`. Every variant is
there once per cycle, every order is equally likely, and every (participant, cycle) draws its own, so what a weekday
does to everybody does not look like a variant. Blocks count from 1, by a calendar that begins with the phase and
knows no pause: what is current follows from the moment alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from control_plane.domain.assignment import keyed_hash
from control_plane.domain.design import Switchback
from shared.errors import Fault

SWITCHBACK = "switchback-1"
MAX_TURNS = 100_000
"""Participants times blocks of an experiment: each is a row."""

_ORDER = b"\x20"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A participant's variant in one block; `cycle` from 1, `place` within it from 0."""

    time_block: int
    arm: str
    cycle: int
    place: int


def block_name(cycle: int) -> str:
    """What an assignment's block of the procedure is called."""
    return f"cycle:{cycle}"


def order(participant: str, cycle: int, keys: Sequence[str], *, seed: bytes) -> list[str]:
    """The variants of a cycle in the participant's order; it does not depend on the order of `keys`."""
    return sorted(keys, key=lambda key: keyed_hash(seed, _ORDER, f"{cycle}/{participant}/{key}"))


def turns(
    participant: str, keys: Sequence[str], *, seed: bytes, blocks: int, first: int = 1
) -> Iterator[Turn]:
    """The participant's turns from block `first` to the last."""
    drawn: list[str] = []
    for block in range(first, blocks + 1):
        cycle, place = divmod(block - 1, len(keys))
        if not drawn or place == 0:
            drawn = order(participant, cycle + 1, keys, seed=seed)
        yield Turn(time_block=block, arm=drawn[place], cycle=cycle + 1, place=place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """When blocks begin and end; moments and `length` in microseconds."""

    begins: int
    length: int
    blocks: int

    @property
    def end(self) -> int:
        """When the last block is over."""
        return self.begins + self.length * self.blocks

    def span(self, block: int) -> tuple[int, int]:
        """From when until when the block lasts."""
        start = self.begins + self.length * (block - 1)
        return start, start + self.length

    def at(self, moment: int) -> int | None:
        """The block that is current at the moment; None before the first and after the last."""
        block = (moment - self.begins) // self.length + 1
        return block if 1 <= block <= self.blocks else None

    def switches(self) -> list[int]:
        """Every moment at which a block ends; the last one is the end."""
        return [self.span(block)[1] for block in range(1, self.blocks + 1)]

    def next_cycle(self, moment: int, size: int) -> int | None:
        """The first block of the first cycle that has not begun; None where there is none."""
        begun = max(0, (moment - self.begins) // self.length + 1)
        block = -(-begun // size) * size + 1
        return block if block + size - 1 <= self.blocks else None


def smallest_reachable_p(participants: int, cycles: int) -> float:
    """No outcome gives the sign-flip test over cycles a two-sided p below this.

    Each of n = participants * cycles differences can have either sign: 2**n ways, and the opposite of the real
    one is as extreme, so 2/2**n. At most 1.
    """
    return min(1.0, 2.0 ** (1 - min(participants * cycles, 1000)))


def faults(settings: Switchback | None, *, variants: int, participants: int) -> Iterator[Fault]:
    """What keeps the blocks from being drawn."""
    if settings is None:
        yield Fault(
            field="switchback",
            message="says nothing of the blocks",
            remedy="set blockDuration, blocks and washout",
        )
        return
    if variants and settings.blocks % variants:
        yield Fault(
            field="switchback.blocks",
            message=f"{settings.blocks} blocks are no whole number of cycles of {variants}",
            remedy=f"make it a multiple of {variants}, the number of variants",
        )
    if settings.length <= settings.settling:
        yield Fault(
            field="switchback.washout",
            message=f"{settings.washout} of washout leaves nothing of a block of {settings.block_duration}",
            remedy="make blocks longer than the washout",
        )
    if settings.blocks * participants > MAX_TURNS:
        yield Fault(
            field="switchback.blocks",
            message=f"{participants} participants in {settings.blocks} blocks are more than {MAX_TURNS} turns",
            remedy="choose fewer blocks or participants",
        )
