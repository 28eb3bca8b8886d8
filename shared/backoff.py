"""Full-jitter delays, as "Exponential Backoff and Jitter" (Brooker, 2015) describes them."""

from dataclasses import dataclass
from math import inf
from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How delays grow: attempt n waits uniformly within 0 … min(cap, base · factor^n) seconds."""

    base: float = 1.0
    factor: float = 2.0
    cap: float = 300.0

    def delay(self, attempt: int, random: Random, *, most: float = inf) -> float:
        """Seconds to wait before retry number `attempt`, from 0; not above `most`, or the base where that is less."""
        ceiling = self.cap if attempt > 64 else min(self.cap, self.base * self.factor**attempt)
        return random.uniform(0.0, min(ceiling, max(self.base, most)))
