"""Participants and agents as the control plane knows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from shared.model import Condition, Digest, SpoolState
from shared.moment import SECOND


class Presence(StrEnum):
    """Whether an agent's session is alive, by its lease."""

    CONNECTED = "connected"
    LOST = "lost"
    NEVER_SEEN = "never_seen"
    RETIRED = "retired"


LEASE_SECONDS = 30
"""A session of which its server says nothing for so long is lost."""


def presence(
    *, last_seen_at: int | None, lease_until: int, now: int, retired_at: int | None = None
) -> Presence:
    """Presence by the lease; an agent that never had a session was never seen, a retired one stays retired."""
    if retired_at is not None:
        return Presence.RETIRED
    if last_seen_at is None:
        return Presence.NEVER_SEEN
    return Presence.CONNECTED if now < lease_until else Presence.LOST


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One process of an agent took the session from another (`former`) that was alive."""

    instance: bytes
    former: bytes
    at: int


TURNS_WITHIN = 600 * SECOND
MAX_RETURNS = 3
"""So often within `TURNS_WITHIN`, and nobody knows which of two processes is the agent: neither is."""


def recent(turns: Sequence[Turn], *, now: int) -> tuple[Turn, ...]:
    """The turns that still count."""
    return tuple(turn for turn in turns if now - turn.at < TURNS_WITHIN)


def returns(turns: Sequence[Turn]) -> int:
    """How often a process came back that another had taken the session from.

    A process that was killed and started anew is another one and never comes back, so one return is proof that two
    live side by side.
    """
    replaced: set[bytes] = set()
    count = 0
    for turn in turns:
        replaced.add(turn.former)
        count += turn.instance in replaced
    return count


def is_mass(withdrawn: int, held: int, *, limit: int) -> bool:
    """`withdrawn` of the `held` slots are more than `limit` percent of them."""
    return withdrawn * 100 > held * limit


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantFile:
    """A target file of a participant: what it should hold, what it holds."""

    path: str
    desired: Digest | None
    running: Digest | None
    revision: int
    state: str | None
    experiment_id: bytes
    variant_id: bytes | None
    attempted: Digest | None = None
    seen_at: int | None = None
    """Since when the host has it so: microseconds."""
    reason: Mapping[str, Any] | None = None
    """Why what was last attempted is not what runs; JSON-shaped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """A workspace. `labels` are the API's and the enrollment token's, `host_labels` the host's own."""

    id: bytes
    public_id: str
    agent_uid: bytes | None
    binding_generation: int
    hostname: str | None
    labels: dict[str, str]
    host_labels: dict[str, str]
    targets: tuple[str, ...]
    drift_policy: str | None
    exposure: str | None
    last_seen_at: int | None
    lease_until: int
    created_at: int
    updated_at: int
    retired_at: int | None = None
    policy: bytes = b""
    """Fingerprint of what decides about content on its host; empty: its agent judges none beforehand."""

    def presence(self, now: int) -> Presence:
        """Whether its agent's session is alive; retired: its host was, and no other agent has declared it since."""
        return presence(
            last_seen_at=self.last_seen_at,
            lease_until=self.lease_until,
            now=now,
            retired_at=self.retired_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What a host reports of itself, and may be lost on the way.

    `certificate_days_left` is by the host's clock and of the certificate it holds; None of either: it did not say.
    """

    spool: SpoolState
    conditions: tuple[Condition, ...] = ()
    certificate_days_left: int | None = None
    state_free_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The daemon on a host; `platform`, `spool` and `conditions` are JSON-shaped, as last reported.

    `findings` are what the control plane itself found wrong with it, in the shape of conditions; `instance` is which
    process holds its session, `turns` how that changed lately; `diverged_in` the incarnation in which the host knew
    more than the database.
    """

    uid: bytes
    project_id: bytes
    name: str
    hostname: str
    labels: dict[str, str]
    host_labels: dict[str, str]
    participant_patterns: tuple[str, ...]
    generation: int
    version: str
    capabilities: tuple[str, ...]
    platform: dict[str, str] | None
    session_id: bytes | None
    session_epoch: int
    boot_id: str | None
    connected_at: int | None
    last_seen_at: int | None
    lease_until: int
    certificate_serial: str
    certificate_not_after: int
    spool: dict[str, int] | None
    conditions: tuple[dict[str, Any], ...]
    enrolled_at: int
    banned_at: int | None
    retired_at: int | None = None
    quarantined_at: int | None = None
    lost: int = 0
    participants: tuple[str, ...] = ()
    instance: bytes = b""
    turns: tuple[Turn, ...] = ()
    findings: tuple[dict[str, Any], ...] = ()
    diverged_in: bytes = b""
    clock_skew: int | None = None
    """Its clock less the control plane's, microseconds, the way here included."""

    def presence(self, now: int) -> Presence:
        """Whether its session is alive."""
        return presence(
            last_seen_at=self.last_seen_at,
            lease_until=self.lease_until,
            now=now,
            retired_at=self.retired_at,
        )

    def may_serve(self, participant: str) -> bool:
        """Its enrollment token allows this participant."""
        patterns = self.participant_patterns
        return not patterns or any(fnmatchcase(participant, pattern) for pattern in patterns)


def matches(labels: dict[str, str], wanted: dict[str, str]) -> bool:
    """Every wanted label is there with that value; an empty wish matches nobody."""
    return bool(wanted) and all(labels.get(name) == value for name, value in wanted.items())
