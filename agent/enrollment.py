"""How a host gets its identity: a token becomes a certificate, a certificate the next one.

Needed once in a long while, so it may import what the daemon does without: the daemon imports it then.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from socket import gethostname
from typing import TypeVar

import grpc

from agent import identity as identities
from agent.channel import failure, first_line, open_channel
from agent.identity import Identity
from shared import tls
from shared.errors import FailedPrecondition, Invalid, Unauthenticated, Unavailable
from shared.ids import show_id
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from shared.ticket import ticket_from_token

CALL_SECONDS = 30.0

Response = TypeVar("Response")


async def enroll(token: str, state_dir: Path, *, name: str) -> Identity:
    """The host has an identity from the control plane that issued `token`, durable in `state_dir`.

    Over a live identity the agent keeps its uid, by proof of the old key. Raises Invalid for a text that is
    no token, Unauthenticated where it is refused, Unavailable where nobody proved to be its control plane.
    """
    ticket = ticket_from_token(token)
    try:
        ca = tls.der_to_pem(ticket.ca_certificate)
    except ValueError:
        raise Invalid("the token carries no certificate authority", reason="MALFORMED_TOKEN") from None
    previous = identities.load(state_dir)
    key = tls.new_key()
    request = pb.EnrollRequest(
        secret=ticket.secret,
        signing_request=tls.new_signing_request(key, name),
        name=name,
        hostname=gethostname()[:253],
    )
    if previous is not None:
        request.previous_certificate = tls.pem_to_der(previous.certificate)
        request.previous_signature = tls.sign(tls.key_from_pem(previous.key), request.signing_request)
    try:
        response = await _asked(ticket.addresses, ca, lambda stub: stub.Enroll(request, timeout=CALL_SECONDS))
    except Unauthenticated as error:
        message = f"the control plane refused the token: {error.message}; `variantctl agents token` makes a fresh one"
        raise Unauthenticated(message, reason="TOKEN_REFUSED") from None
    certificate = tls.der_to_pem(response.certificate)
    identity = Identity(
        uid=show_id(response.agent_uid),
        key=tls.key_to_pem(key),
        certificate=certificate,
        ca=b"".join(tls.der_to_pem(der) for der in response.ca_certificates) or ca,
        addresses=tuple(response.addresses) or ticket.addresses,
        incarnation=response.incarnation,
        not_before=tls.not_before(certificate),
        not_after=tls.not_after(certificate),
        operators=ticket.addresses,
    )
    identities.store(state_dir, identity)
    # A host that has just enrolled is told so by being connected, not after what an old refusal earned it.
    state = identities.load_session_state(state_dir, now=0)
    identities.save_session_state(state_dir, replace(state, attempt=0))
    return identity


async def renew(
    identity: Identity, ask: Callable[[bytes], Awaitable[tuple[bytes, tuple[bytes, ...]]]]
) -> Identity:
    """The identity after `identity`: a fresh key, certified for the same uid; stored nowhere yet.

    `ask` turns a signing request into certificate and authorities (DER). Raises what it raises, and Invalid
    for a certificate that is not this host's next one.
    """
    key = tls.new_key()
    request = tls.new_signing_request(key, identity.uid)
    certificate, authorities = await ask(request)
    return _following(identity, tls.key_to_pem(key), request, certificate, authorities)


async def recover(identity: Identity) -> Identity:
    """The identity in place of the expired `identity`, for the same key and uid; stored nowhere yet.

    Asked for where the host enrolled. Raises Unauthenticated where it is refused, FailedPrecondition where
    nobody noted where that was, Unavailable where nobody proved to be its control plane.
    """
    if not identity.operators:
        raise FailedPrecondition("this host does not know where it enrolled", reason="NO_ADDRESS")
    request = tls.new_signing_request(tls.key_from_pem(identity.key), identity.uid)
    wanted = pb.RecoverRequest(certificate=tls.pem_to_der(identity.certificate), signing_request=request)
    response = await _asked(
        identity.operators, identity.ca, lambda stub: stub.Recover(wanted, timeout=CALL_SECONDS)
    )
    return _following(identity, identity.key, request, response.certificate, response.ca_certificates)


def _following(
    identity: Identity, key: bytes, request: bytes, certificate: bytes, authorities: Iterable[bytes]
) -> Identity:
    """`identity` with the certificate that `request` was answered with. Raises Invalid where it does not fit."""
    try:
        pem = tls.der_to_pem(certificate)
        ca = b"".join(map(tls.der_to_pem, authorities)) or identity.ca
        named = tls.identity(pem)
        fits = tls.requested_by(certificate, request)
    except ValueError:
        named, fits = None, False
    if not fits or named is None or show_id(named.agent_uid) != identity.uid:
        raise Invalid("what the control plane sent is not a certificate of this host", reason="NOT_OURS")
    if named.not_after <= identity.not_after:
        raise Invalid("the certificate that was sent ends no later than the present one", reason="NO_LATER")
    return replace(
        identity,
        key=key,
        certificate=pem,
        ca=ca,
        not_before=tls.not_before(pem),
        not_after=named.not_after,
    )


async def _asked(
    addresses: Iterable[str],
    ca: bytes,
    call: "Callable[[agent_pb2_grpc.EnrollmentServiceAsyncStub], Awaitable[Response]]",
) -> Response:
    """The first answer of a control plane under `ca` (PEM). Raises one of shared.errors."""
    unreachable = []
    for address in addresses:
        async with open_channel(address, ca=ca) as channel:
            stub: agent_pb2_grpc.EnrollmentServiceAsyncStub = agent_pb2_grpc.EnrollmentServiceStub(channel)
            try:
                return await call(stub)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise failure(error) from None
                unreachable.append(f"{address}: {first_line(error.details())}")
    raise Unavailable(
        "no control plane with the certificate authority this host trusts answered ("
        + "; ".join(unreachable)
        + "); is `variantd serve` running, and reachable from here under that name?",
        reason="UNREACHABLE",
    )
