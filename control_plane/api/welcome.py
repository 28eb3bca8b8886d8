"""What a session begins with: which life of the database this is, why to believe it, and under which limits."""

from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.api.spacing import Spacing
from control_plane.services import spools
from control_plane.services.sessions import Terms
from control_plane.store.access import Incarnation
from shared import tls, wire
from shared.model import MAX_INLINE_BYTES, Condition
from shared.pb.variantd.agent.v1 import agent_pb2 as pb

MAX_BATCH_BYTES = 2 * 1_048_576
STREAM_BATCH_BYTES = 16_384
"""A hundred records or so: what takes longer on the way than an offer may wait for goes beside the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which life of the database this is, as agents are told: what sessions are opened under, and why to believe it.

    `lineage` are the signed successions that led here, the newest first.
    """

    terms: Terms
    lineage: tuple[pb.Succession, ...]


def origin(incarnation: Incarnation, authority: tls.Authority, *, withdraw_limit: int) -> Origin:
    """The incarnation, signed so that agents may adopt it by themselves."""
    lineage = tuple(
        pb.Succession(
            incarnation=newer,
            predecessor=older,
            signature=tls.sign(authority.key, b"variantd incarnation" + newer + older),
        )
        for newer, older in incarnation.successions
    )
    return Origin(terms=Terms(incarnation=incarnation, withdraw_limit=withdraw_limit), lineage=lineage)


def welcome(
    own: Origin,
    session_id: bytes,
    *,
    spacing: Spacing,
    findings: Sequence[Condition] = (),
    renew: bool = False,
) -> pb.Welcome:
    """The session is admitted, by which life of the database, under which limits; what is wrong with the host."""
    heartbeat_ms, reconnect_window_ms = spacing.in_ms()
    newest, *earlier = own.lineage
    return pb.Welcome(
        session_id=session_id,
        incarnation=newest.incarnation,
        predecessor=newest.predecessor,
        incarnation_signature=newest.signature,
        lineage=earlier,
        renew_certificate=renew,
        heartbeat_interval_ms=heartbeat_ms,
        reconnect_window_ms=reconnect_window_ms,
        findings=wire.conditions_to_pb(findings),
        limits=pb.Limits(
            inline_bytes=MAX_INLINE_BYTES,
            batch_records=spools.MAX_RECORDS,
            batch_bytes=MAX_BATCH_BYTES,
            stream_batch_bytes=STREAM_BATCH_BYTES,
        ),
    )
