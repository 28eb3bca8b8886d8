"""Which life of the control plane's database this host follows, and when it follows another one.

A database that was restored is another incarnation: what it wants is older than what hosts have. Hides how it proves
to succeed the one that is known, over as many lives as passed meanwhile, and what is left to the host's administrator.
"""

import asyncio
from dataclasses import dataclass
from enum import Enum

from agent.identity import Identity
from shared.ids import show_id
from shared.pb.variantd.agent.v1 import agent_pb2 as pb

MAX_LIVES = 64


class Standing(Enum):
    """How an incarnation stands to the one this host follows."""

    KNOWN = "the one this host follows, or the first it ever met"
    SUCCESSOR = "signed by the authority, with an unbroken line from the one this host follows"
    RELATIVE = "signed by the authority; how it follows from the one this host knows is not told"
    STRANGER = "not signed by the authority"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """An incarnation that the host's administrator may take by hand."""

    incarnation: bytes
    known: bytes
    standing: Standing

    def show(self) -> dict[str, object]:
        """Ready for JSON."""
        return {
            "incarnation": show_id(self.incarnation),
            "follows": show_id(self.known) if len(self.known) == 16 else None,
            "standing": self.standing.name.lower(),
            "meaning": self.standing.value,
        }


async def standing(identity: Identity, welcome: pb.Welcome) -> Standing:
    """How the incarnation of a Welcome stands to the one this host follows."""
    if welcome.incarnation == identity.incarnation or not identity.incarnation:
        return Standing.KNOWN
    return await asyncio.to_thread(_proven, identity, welcome)


def _proven(identity: Identity, welcome: pb.Welcome) -> Standing:
    newest = pb.Succession(
        incarnation=welcome.incarnation,
        predecessor=welcome.predecessor,
        signature=welcome.incarnation_signature,
    )
    if len(newest.incarnation) != 16 or not _is_signed(identity, newest):
        return Standing.STRANGER
    led_by = {step.incarnation: step for step in [newest, *welcome.lineage[:MAX_LIVES]]}
    step: pb.Succession | None = newest
    for _ in range(MAX_LIVES + 1):
        if step is None or not _is_signed(identity, step):
            return Standing.RELATIVE
        if step.predecessor == identity.incarnation:
            return Standing.SUCCESSOR
        step = led_by.get(step.predecessor)
    return Standing.RELATIVE


def condition(found: Standing, *, manual: bool) -> tuple[str, str, str]:
    """(code, severity, message) while an incarnation is not followed."""
    waits = "offers are refused and reports kept until then"
    if found is Standing.SUCCESSOR and manual:
        return (
            "INCARNATION_WAITS",
            "warning",
            "the control plane's database was restored and proves to succeed the one this host follows; agent.toml"
            f' says adopt = "manual": `variant-agent adopt` shows it and takes it; {waits}',
        )
    remedy = (
        "`variant-agent adopt` shows it and takes it by hand, where it is the right one"
        if found is Standing.RELATIVE
        else "restore the right one, or enroll again to accept this one"
    )
    return (
        "INCARNATION_CHANGED",
        "error",
        "the control plane's database is another one than before and cannot prove to succeed it; "
        f"{remedy}; {waits}",
    )


CODES = ("INCARNATION_WAITS", "INCARNATION_CHANGED")


def _is_signed(identity: Identity, step: pb.Succession) -> bool:
    from shared import tls  # with `cryptography`, which a daemon at rest does without

    message = b"variantd incarnation" + step.incarnation + step.predecessor
    return any(tls.signed_by(authority, step.signature, message) for authority in identity.authorities)
