"""How a host gets its identity: an enrollment token becomes a certificate.

Runs once in the life of a host, so it may import what the daemon does without.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from socket import gethostname

import grpc

from agent import identity as identities
from agent.channel import failure, first_line, open_channel
from agent.identity import Identity
from shared import tls, wire
from shared.errors import Invalid, Unauthenticated, Unavailable
from shared.ids import show_id
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc

CALL_SECONDS = 30.0


async def enroll(token: str, state_dir: Path, *, name: str) -> Identity:
    """The host has an identity from the control plane that issued `token`, durable in `state_dir`.

    Over a live identity the agent keeps its uid, by proof of the old key. Raises Invalid for a text that is
    no token, Unauthenticated where it is refused, Unavailable where nobody proved to be its control plane.
    """
    ticket = wire.ticket_from_token(token)
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
    response = await _enrolled(request, ticket.addresses, ca)
    certificate = tls.der_to_pem(response.certificate)
    identity = Identity(
        uid=show_id(response.agent_uid),
        key=tls.key_to_pem(key),
        certificate=certificate,
        ca=b"".join(tls.der_to_pem(der) for der in response.ca_certificates) or ca,
        addresses=tuple(response.addresses) or ticket.addresses,
        incarnation=response.incarnation,
        not_after=tls.not_after(certificate),
    )
    identities.store(state_dir, identity)
    # A host that has just enrolled is told so by being connected, not after what an old refusal earned it.
    state = identities.load_session_state(state_dir, now=0)
    identities.save_session_state(state_dir, replace(state, attempt=0))
    return identity


async def _enrolled(request: pb.EnrollRequest, addresses: Iterable[str], ca: bytes) -> pb.EnrollResponse:
    unreachable = []
    for address in addresses:
        async with open_channel(address, ca=ca) as channel:
            stub: agent_pb2_grpc.EnrollmentServiceAsyncStub = agent_pb2_grpc.EnrollmentServiceStub(channel)
            try:
                return await stub.Enroll(request, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    raise Unauthenticated(
                        f"the control plane refused the token: {error.details()}; "
                        "`variantctl agents token` prints a fresh one",
                        reason="TOKEN_REFUSED",
                    ) from None
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise failure(error) from None
                unreachable.append(f"{address}: {first_line(error.details())}")
    raise Unavailable(
        "no control plane with the token's certificate authority answered ("
        + "; ".join(unreachable)
        + "); is `variantd serve` running, and reachable from here under that name?",
        reason="UNREACHABLE",
    )
