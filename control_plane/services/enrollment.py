"""How a host gets its certificate, the next one, and one in place of an expired one.

Hides what a host has to prove. A certificate says who a host is and nothing else; what it may do is asked of
the database at every stream and call, so an older certificate of an agent does no harm beside a newer one.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from control_plane.domain.fleet import Agent
from control_plane.services.access import hash_secret
from control_plane.store.access import EnrollmentToken
from control_plane.store.store import Store
from shared import tls
from shared.errors import Invalid, PermissionDenied, Unauthenticated
from shared.ids import NewId
from shared.model import digest
from shared.moment import SECOND

RECOVERABLE = 30 * 86_400 * SECOND
"""An expired certificate is replaced for so long, microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollRequest:
    """What a host sends to get an identity; see EnrollRequest of the agent protocol."""

    secret: bytes
    signing_request: bytes
    name: str
    hostname: str
    previous_certificate: bytes
    previous_signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """An identity: uid, certificate (PEM), its serial, its end (microseconds), and which authority issued it."""

    agent_uid: bytes
    certificate: bytes
    serial: str
    not_after: int
    authority: bytes


def enroll(
    store: Store, authority: tls.Authorities, request: EnrollRequest, *, new_id: NewId, now: int
) -> Enrolled:
    """The host has an identity and the token one use less.

    A host that proves the key of its previous certificate keeps its uid, unless it was retired: then it is a
    new agent. Raises Unauthenticated in one and
    the same way for a token that is unknown, expired, used up, or not for this name, and Invalid for a
    malformed request.
    """
    token = store.access.enrollment_token(hash_secret(request.secret))
    if (
        token is None
        or now >= token.expires_at
        or token.uses >= token.max_uses
        or (token.name_pattern is not None and not fnmatchcase(request.name, token.name_pattern))
    ):
        raise Unauthenticated(
            "the enrollment token is unknown, expired, used up, or not for this host",
            reason="BAD_ENROLLMENT_TOKEN",
        )
    if not 1 <= len(request.name) <= 128 or len(request.hostname) > 253:
        raise Invalid("name: 1 to 128 characters, hostname: at most 253", reason="INVALID_FIELDS")
    previous = _previous(store, authority, request, token.project_id)
    uid = previous.uid if previous else new_id()
    issued = _issue(authority, request.signing_request, project_id=token.project_id, uid=uid, now=now)
    store.access.use_enrollment_token(token.id)
    if not previous:
        store.fleet.add_agent(_new_agent(token, request, issued, now=now))
    _note(store, issued)
    return issued


def _previous(
    store: Store, authority: tls.Authorities, request: EnrollRequest, project_id: bytes
) -> Agent | None:
    """The agent whose key the host proves, if it does and may come back."""
    if not request.previous_certificate:
        return None
    try:
        pem = tls.der_to_pem(request.previous_certificate)
        ours = authority.issued(request.previous_certificate)
    except ValueError:
        raise Invalid("previous_certificate: is not a certificate", reason="INVALID_FIELDS") from None
    identity = tls.identity(pem)
    proven = tls.signed_by(request.previous_certificate, request.previous_signature, request.signing_request)
    if not ours or identity is None or not proven or identity.project_id != project_id:
        return None
    agent = store.fleet.agent(identity.agent_uid)
    if agent is not None and agent.banned_at is not None:
        raise Unauthenticated("this agent is banned", reason="BANNED")
    return None if agent is None or agent.retired_at is not None else agent


def _new_agent(token: EnrollmentToken, request: EnrollRequest, issued: Enrolled, *, now: int) -> Agent:
    return Agent(
        uid=issued.agent_uid,
        project_id=token.project_id,
        name=request.name,
        hostname=request.hostname,
        labels=token.labels,
        host_labels={},
        participant_patterns=token.participants,
        generation=0,
        version="",
        capabilities=(),
        platform=None,
        session_id=None,
        session_epoch=0,
        boot_id=None,
        connected_at=None,
        last_seen_at=None,
        lease_until=0,
        certificate_serial=issued.serial,
        certificate_not_after=issued.not_after,
        spool=None,
        conditions=(),
        enrolled_at=now,
        banned_at=None,
    )


def renew(
    store: Store, authority: tls.Authorities, agent_uid: bytes, signing_request: bytes, *, now: int
) -> Enrolled:
    """The agent has its next certificate; the present one stays valid until its own end.

    `agent_uid` is from the certificate the caller presented. Raises PermissionDenied for an agent that is
    banned, retired or not known, Invalid for a malformed request.
    """
    project_id = store.fleet.may_speak(agent_uid)
    if project_id is None:
        raise PermissionDenied("this agent is banned, retired or not known; enroll it again", reason="BANNED")
    issued = _issue(authority, signing_request, project_id=project_id, uid=agent_uid, now=now)
    _note(store, issued)
    return issued


def recover(
    store: Store, authority: tls.Authorities, certificate: bytes, signing_request: bytes, *, now: int
) -> Enrolled:
    """The agent has a certificate in place of its expired one (DER), for the same key and the same uid.

    Repeated, it gives a further one: an answer that got lost costs nothing. Raises Unauthenticated in one and
    the same way where the certificate is not ours, no agent's, not expired, expired for too long, or its
    agent banned, retired or not known, and where the request is malformed or by another key: who cannot prove to be
    the agent learns nothing about it.
    """
    refusal = Unauthenticated(
        "this certificate is not replaced; enroll the host again with a token of `variantctl agents token`",
        reason="NOT_RECOVERABLE",
    )
    try:
        identity = tls.identity(tls.der_to_pem(certificate)) if authority.issued(certificate) else None
        if (
            identity is None
            or not identity.not_after < now <= identity.not_after + RECOVERABLE
            or store.fleet.may_speak(identity.agent_uid) != identity.project_id
            or not tls.requested_by(certificate, signing_request)
        ):
            raise refusal
        uid, project_id = identity.agent_uid, identity.project_id
        issued = _issue(authority, signing_request, project_id=project_id, uid=uid, now=now)
    except (ValueError, Invalid):
        raise refusal from None
    _note(store, issued)
    return issued


def _issue(
    authority: tls.Authorities, signing_request: bytes, *, project_id: bytes, uid: bytes, now: int
) -> Enrolled:
    try:
        certificate = authority.issuing.issue_agent(
            signing_request, project_id=project_id, agent_uid=uid, now=now
        )
    except ValueError as error:
        raise Invalid(f"signing_request: {error}", reason="INVALID_FIELDS") from None
    identity = tls.identity(certificate)
    assert identity is not None
    return Enrolled(
        agent_uid=uid,
        certificate=certificate,
        serial=f"{identity.serial:x}",
        not_after=identity.not_after,
        authority=fingerprint(authority.issuing),
    )


def fingerprint(authority: tls.Authority) -> bytes:
    """Which authority it is: SHA-256 of its certificate."""
    return digest(authority.der)


def follows(known: tuple[bytes, ...], own: tuple[bytes, ...]) -> bool:
    """Whether a server with its `own` authorities (fingerprints) may serve where these are known.

    They are the same, or own are one step further: the next one was introduced, or the former retired.
    """
    introduced = len(own) == 2 and own[:1] == known
    retired = len(known) == 2 and own == known[1:]
    return not known or own == known or introduced or retired


def _note(store: Store, issued: Enrolled) -> None:
    store.fleet.set_certificate(
        issued.agent_uid, serial=issued.serial, not_after=issued.not_after, authority=issued.authority
    )
