"""Changes of what slots should hold, and how what a host reports moves them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shared.model import Digest, Outcome, Result


class State(StrEnum):
    """How a deployment stands."""

    PENDING = "pending"
    OFFERED = "offered"
    APPLYING = "applying"
    APPLIED = "applied"
    CONFIRMED = "confirmed"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"
    STUCK = "stuck"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"

    @property
    def ended(self) -> bool:
        """The host is done with it."""
        return self not in (State.PENDING, State.OFFERED, State.APPLYING)


class Origin(StrEnum):
    """Why a deployment was made."""

    START = "start"
    LATE_JOIN = "late_join"
    SWITCHBACK = "switchback"
    PHASE = "phase"
    FORCED = "forced"
    UNFORCED = "unforced"
    MANUAL = "manual"
    PAUSE = "pause"
    RESUME = "resume"
    SHIP = "ship"
    RESTORE = "restore"
    ROLLBACK = "rollback"
    CLOSE = "close"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentFile:
    """One file: what it should hold, what it held as last reported, what was last attempted."""

    path: str
    desired: Digest | None
    size: int
    running: Digest | None = None
    attempted: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One change of a slot's desired state; `reason` is JSON-shaped, `participant` the public id."""

    id: bytes
    experiment_id: bytes
    variant_id: bytes | None
    phase_id: bytes | None
    participant: str
    agent_uid: bytes | None
    slot_id: bytes
    revision: int
    origin: Origin
    action: str
    state: State
    attempts: int
    reason: dict[str, Any] | None
    connected: bool
    requested_by: str
    created_at: int
    offered_at: int | None
    applied_at: int | None
    confirmed_at: int | None
    updated_at: int
    files: tuple[DeploymentFile, ...] = ()
    confirming: bool = False

    @property
    def by_hand(self) -> bool:
        """Somebody put a variant onto this one participant; no verb of the experiment did."""
        return self.origin in (Origin.MANUAL, Origin.FORCED)


_FROM_RESULT = {
    Result.IN_PROGRESS: State.APPLYING,
    Result.APPLIED: State.APPLIED,
    Result.CONFIRMED: State.CONFIRMED,
    Result.REFUSED: State.REFUSED,
    Result.ROLLED_BACK: State.ROLLED_BACK,
    Result.STUCK: State.STUCK,
}


def state_after(state: State, outcome: Outcome, *, latest_attempt: int) -> State:
    """The state once `outcome` is known.

    Outcomes may arrive twice or out of order: an older attempt, or progress of an attempt that ended,
    changes nothing. A superseded deployment stays superseded: what its slot holds is the newer one's story. A
    withdrawn one stays withdrawn: nobody is asked for it any more.
    """
    if state in (State.SUPERSEDED, State.WITHDRAWN) or outcome.attempt < latest_attempt:
        return state
    if outcome.result is Result.IN_PROGRESS and state.ended and outcome.attempt == latest_attempt:
        return state
    if state is State.CONFIRMED and outcome.result is Result.APPLIED:
        return state
    return _FROM_RESULT[outcome.result]
