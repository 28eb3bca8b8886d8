"""How far apart hosts do what all of them do, by how many there are: heartbeats, and coming back."""

from dataclasses import dataclass
from typing import Self

HEARTBEAT_SECONDS, LONGEST_HEARTBEAT_SECONDS = 10.0, 30.0
HEARTBEATS_PER_SECOND = 100.0
"""Above that, sessions beat less often. A host whose network is gone is noticed by the transport within
40 s all the same; it is one that hangs behind a live connection which is missed later."""
RETURNS_PER_SECOND = 125.0
"""Hosts that come back after a loss, above that over longer: they take less than half a core, and leave the rest to
whoever asks meanwhile."""
OWN_WINDOW_SECONDS = 10.0
"""Over which hosts come back by themselves; a shorter one is not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spacing:
    """Seconds: between two heartbeats, and over how long hosts come back; 0: over as long as they do by themselves."""

    heartbeat: float
    reconnect_window: float

    @classmethod
    def of(cls, hosts: int) -> Self:
        """What is fair for so many."""
        fair, window = hosts / HEARTBEATS_PER_SECOND, hosts / RETURNS_PER_SECOND
        return cls(
            heartbeat=max(HEARTBEAT_SECONDS, min(fair, LONGEST_HEARTBEAT_SECONDS)),
            reconnect_window=window if window > OWN_WINDOW_SECONDS else 0.0,
        )

    def wider(self, than: Self) -> Self:
        """The wider of both, each by itself.

        A host that is in a pause as long as it was asked for would be taken for silent if a shorter one held.
        """
        return type(self)(
            heartbeat=max(self.heartbeat, than.heartbeat),
            reconnect_window=max(self.reconnect_window, than.reconnect_window),
        )

    def in_ms(self) -> tuple[int, int]:
        """Both, as messages have them."""
        return round(self.heartbeat * 1000), round(self.reconnect_window * 1000)
