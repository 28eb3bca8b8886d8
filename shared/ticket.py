"""Enrollment tokens: what one carries, and the text that people copy."""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from shared.errors import Invalid
from shared.pb.variantd.agent.v1 import agent_pb2 as pb

TOKEN_PREFIX = "vt1."  # noqa: S105  a format marker, not a secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What an enrollment token carries: secret, operator addresses, CA certificate (DER)."""

    secret: bytes
    addresses: tuple[str, ...]
    ca_certificate: bytes


def ticket_to_token(ticket: Ticket) -> str:
    """The copy-paste text of a ticket."""
    message = pb.EnrollmentTicket(
        secret=ticket.secret, addresses=ticket.addresses, ca_certificate=ticket.ca_certificate
    )
    return TOKEN_PREFIX + urlsafe_b64encode(message.SerializeToString()).rstrip(b"=").decode()


def ticket_from_token(token: str) -> Ticket:
    """The ticket behind the text. Raises Invalid where it is not one."""
    body = token.strip().removeprefix(TOKEN_PREFIX)
    try:
        raw = urlsafe_b64decode(body + "=" * (-len(body) % 4))
        message = pb.EnrollmentTicket.FromString(raw)
    except (DecodeError, binascii.Error, ValueError):
        message = pb.EnrollmentTicket()
    if not token.strip().startswith(TOKEN_PREFIX) or len(message.secret) != 32 or not message.addresses:
        raise Invalid(
            "this is not an enrollment token; `variantctl agents token` prints one that starts with vt1.",
            reason="MALFORMED_TOKEN",
        )
    return Ticket(
        secret=message.secret,
        addresses=tuple(message.addresses),
        ca_certificate=message.ca_certificate,
    )
