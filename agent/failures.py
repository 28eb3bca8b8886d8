"""What a failure means for the next try: another one soon, never again by itself, or when somebody asks.

Pure. What may pass by itself (no space, a busy file, an input or output error, a command that gave no verdict) is
tried again a few times. What the host judged (policy, its check, its health probe) is quarantined: the same content
at the same place is refused until somebody says otherwise. Everything else is refused, and tried when it is offered.
"""

from collections.abc import Iterable
from dataclasses import replace

from agent.policy import Refused, show
from agent.slots import Condemned, Slot
from shared.model import Digest, Reason, ReasonCode

ATTEMPTS = 3
"""Tries of one revision while its failures are in passing; after the last one it is stuck."""

BACK_OFF = (5.0, 30.0)
"""Seconds before the second and the third try."""

MAX_CONDEMNED = 64
"""Quarantined contents of one slot; beyond that the oldest are forgotten, and would be judged anew."""

_IN_PASSING = frozenset({ReasonCode.NO_SPACE, ReasonCode.BUSY_MOUNT, ReasonCode.IO_ERROR})
_JUDGED = frozenset(
    {
        ReasonCode.TARGET_NOT_ALLOWED,
        ReasonCode.PATH_ESCAPES_ROOT,
        ReasonCode.TOO_LARGE,
        ReasonCode.CHECK_FAILED,
        ReasonCode.PROBE_FAILED,
    }
)


def in_passing(reason: Reason, *, inconclusive: bool) -> bool:
    """Whether the failure may be over the next time; `inconclusive`: a command of the host's gave no verdict."""
    return inconclusive or reason.code in _IN_PASSING


def is_judgement(reason: Reason, *, inconclusive: bool) -> bool:
    """Whether the host found fault with the content, or with its place."""
    return reason.code in _JUDGED and not inconclusive


def given_up(reason: Reason) -> Reason:
    """The reason once it has been tried often enough."""
    return Reason(
        code=reason.code,
        message=f"{reason.message}; tried {ATTEMPTS} times",
        remedy=reason.remedy or "find out why on the host, then deploy again",
    )


def ended_by_reload() -> Reason:
    """Why a reload is not run any more: nobody saw it end, start after start."""
    return Reason(
        code=ReasonCode.RELOAD_FAILED,
        message=f"the agent was stopped {ATTEMPTS} times before the host's reload command had ended",
        remedy="find out what stops the agent; the reload command must not",
    )


def condemned(slot: Slot, suspects: Iterable[tuple[str, Digest]], code: ReasonCode) -> Slot:
    """The slot with these (path, digest) in quarantine."""
    fresh = {(path, value): Condemned(path=path, digest=value, code=code) for path, value in suspects}
    others = tuple(one for one in slot.quarantined if (one.path, one.digest) not in fresh)
    return replace(slot, quarantined=(*others, *fresh.values())[-MAX_CONDEMNED:])


def refuse_condemned(slots: Iterable[Slot], path: str, value: Digest | None) -> None:
    """Raises Refused QUARANTINED for what any of the participant's slots has in quarantine."""
    for slot in slots:
        for one in slot.quarantined:
            if (one.path, one.digest) == (path, value):
                raise Refused(
                    ReasonCode.QUARANTINED,
                    f"this content of {show(path)} failed on this host before ({one.code.value});"
                    " it is not tried again",
                    "correct the content, or once the host has changed, deploy again with retry or run"
                    " `variant-agent reload` there",
                )


def forgiven(slot: Slot, pairs: Iterable[tuple[str, Digest | None]] | None) -> Slot:
    """The slot without these (path, digest) in quarantine; None: without any."""
    gone = None if pairs is None else set(pairs)
    left = () if gone is None else tuple(o for o in slot.quarantined if (o.path, o.digest) not in gone)
    return slot if left == slot.quarantined else replace(slot, quarantined=left)
