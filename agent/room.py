"""How much of a spool is taken, by whom and how fast: what fits, and whose turn it is to be turned away.

Pure. Hides the reserve of views and the share that leaves room for the others on a host: without one, a single
application that reports in a loop while the control plane is away would silence all of them.
"""

from collections.abc import Mapping

VIEW_RESERVE = 8
"""Views may use 1/8 more than events: what was on disk stays known on a full spool."""

SHARE = 0.5
"""Of what earlier starts left free, for the reports of one of several participants since this start."""


class Room:
    """Accounts of bytes; `share` is what one participant may take of them."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.share = 1.0
        self._taken: dict[str, int] = {}
        self._backlog = 0

    def begin(self, backlog: int) -> None:
        """Nobody has taken anything yet, of what `backlog` bytes leave; call it with less as those go."""
        self._backlog = backlog

    def refusal(self, sizes: Mapping[str, int], used: int, *, reserved: bool) -> str:
        """Why so much more, by participant, does not fit on top of `used` bytes; empty: it does."""
        limit = self.max_bytes + (self.max_bytes // VIEW_RESERVE if reserved else 0)
        if used + sum(sizes.values()) > limit:
            return f"the spool holds {used} of at most {self.max_bytes} bytes"
        if reserved:
            return ""
        most = self.share * max(0, self.max_bytes - self._backlog)
        for whose, size in sizes.items():
            if whose and self.share < 1 and self._taken.get(whose, 0) + size > most:
                return f"{whose} has its share of the spool, {int(most)} bytes"
        return ""

    def take(self, sizes: Mapping[str, int]) -> None:
        """So much more is taken."""
        if self.share >= 1:
            return  # nobody gives anything back meanwhile either
        for whose, size in sizes.items():
            self._taken[whose] = self._taken.get(whose, 0) + size

    def give_back(self, whose: str, size: int) -> None:
        """So much less is."""
        left = self._taken.get(whose, 0) - size
        if left > 0:
            self._taken[whose] = left
        else:
            self._taken.pop(whose, None)

    def clear(self) -> None:
        """Nobody has taken anything any more."""
        self._taken.clear()


class Bucket:
    """A token bucket: `burst` at once, `rate` per second in the long run."""

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._at = burst, 0.0

    def take(self, count: int, now: float) -> bool:
        """Whether `count` were there; then they are taken. `now` in monotonic seconds."""
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < count:
            return False
        self._level -= count
        return True
