"""The one vocabulary of failure, for both sides and every transport.

A `Code` says what a caller may do about a failure; the class docstring is the default message. Which
gRPC or HTTP status a code becomes is decided in `control_plane.api.errors` and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Code(StrEnum):
    """What kind of failure; `retryable` is a property of the code, never of a call site."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    CONFLICT = "conflict"
    FAILED_PRECONDITION = "failed_precondition"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"

    @property
    def retryable(self) -> bool:
        """The same request may succeed later, unchanged."""
        return self in (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong with one field: where, what, and what to do."""

    field: str
    message: str
    remedy: str = ""


class Error(Exception):
    """The request failed."""

    code = Code.INTERNAL

    def __init__(
        self,
        message: str = "",
        *,
        reason: str = "",
        faults: Sequence[Fault] = (),
        details: dict[str, Any] | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.reason = reason or self.code.name
        self.faults = tuple(faults)
        self.details = details or {}
        super().__init__(self.message)


class Invalid(Error):
    """The request is not valid."""

    code = Code.INVALID


class Unauthenticated(Error):
    """The caller is not known; send a valid API key as `Authorization: Bearer sk_…`."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(Error):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED


class NotFound(Error):
    """There is no such resource."""

    code = Code.NOT_FOUND


class AlreadyExists(Error):
    """A resource of this name exists already."""

    code = Code.ALREADY_EXISTS


class Conflict(Error):
    """The resource changed meanwhile; read it again and repeat the request."""

    code = Code.CONFLICT


class FailedPrecondition(Error):
    """The resource is not in a state that allows this."""

    code = Code.FAILED_PRECONDITION


class ResourceExhausted(Error):
    """Too many requests; try again later."""

    code = Code.RESOURCE_EXHAUSTED


class Unavailable(Error):
    """The service cannot answer now; try again later."""

    code = Code.UNAVAILABLE
