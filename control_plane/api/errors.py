"""THE table: what a failure's code is on each transport; one interceptor, one middleware use it.

REST answers RFC 9457 problem+json, with `error` and `details` besides (the shape two of the spoken APIs
use). gRPC carries the reason and the field faults in trailing metadata.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import grpc
from aiohttp import web

from shared import logs
from shared.errors import Code, Error
from shared.ids import new_id, show_id

_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """One code on both transports."""

    grpc: grpc.StatusCode
    http: int
    title: str


TABLE = {
    Code.INVALID: Row(grpc.StatusCode.INVALID_ARGUMENT, 400, "The request is not valid"),
    Code.UNAUTHENTICATED: Row(grpc.StatusCode.UNAUTHENTICATED, 401, "The caller is not known"),
    Code.PERMISSION_DENIED: Row(grpc.StatusCode.PERMISSION_DENIED, 403, "The caller may not do this"),
    Code.NOT_FOUND: Row(grpc.StatusCode.NOT_FOUND, 404, "There is no such resource"),
    Code.ALREADY_EXISTS: Row(grpc.StatusCode.ALREADY_EXISTS, 409, "It exists already"),
    Code.CONFLICT: Row(grpc.StatusCode.ABORTED, 409, "It changed meanwhile"),
    Code.FAILED_PRECONDITION: Row(grpc.StatusCode.FAILED_PRECONDITION, 409, "Its state does not allow this"),
    Code.RESOURCE_EXHAUSTED: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "Too much at once"),
    Code.UNAVAILABLE: Row(grpc.StatusCode.UNAVAILABLE, 503, "Not available now"),
    Code.INTERNAL: Row(grpc.StatusCode.INTERNAL, 500, "Something is wrong with the control plane"),
}


def explain(error: BaseException, operation: str, *, peer: str | None = None) -> Error:
    """The failure as one of ours; anything unexpected is logged whole under an id and told only by it.

    Who was refused for what it is, is logged too; never what it showed to get in.
    """
    if isinstance(error, Error):
        if error.code in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED):
            _log.warning("request.refused", operation=operation, reason=error.reason, peer=peer)
        return error
    log_id = show_id(new_id())
    _log.error("request.failed", operation=operation, log_id=log_id, exc_info=error)
    return Error(f"something went wrong on our side; the log has it under {log_id}", reason="INTERNAL")


def problem(error: Error) -> web.Response:
    """The failure as problem+json."""
    row = TABLE[error.code]
    faults = [
        {"field": fault.field, "message": fault.message, "remedy": fault.remedy} for fault in error.faults
    ]
    body: dict[str, Any] = {
        "type": f"urn:variantd:problem:{error.code.value}",
        "title": row.title,
        "status": row.http,
        "detail": error.message,
        "reason": error.reason,
        "errors": faults,
        "error": error.message,
        "details": error.details or faults,
        **error.details,
    }
    headers = {"Retry-After": "1"} if error.code.retryable else {}
    if error.code is Code.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response(body, status=row.http, content_type="application/problem+json", headers=headers)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Error) -> None:
    """Ends the call with the failure's status and trailing metadata.

    A client refuses metadata beyond 8 KiB, and with it the very status: what repeats a long value is cut, and
    of very many faults the first are told.
    """
    trailing: list[tuple[str, str | bytes]] = [("reason", error.reason)]
    faults: list[dict[str, str]] = []
    for fault in error.faults:
        one = {"field": fault.field, "message": fault.message, "remedy": fault.remedy}
        faults.append({name: _cut(text, 300) for name, text in one.items()})
        if len(json.dumps(faults)) > _FAULTS_BYTES:
            faults.pop()
            break
    if faults:
        trailing.append(("errors-bin", json.dumps(faults).encode()))
    details = json.dumps(error.details).encode()
    if error.details and len(details) <= _DETAILS_BYTES:
        trailing.append(("details-bin", details))
    await context.abort(TABLE[error.code].grpc, _cut(error.message, _MESSAGE_BYTES), tuple(trailing))


_MESSAGE_BYTES = 1_800
_FAULTS_BYTES = 3_000
_DETAILS_BYTES = 1_000


def _cut(text: str, size: int) -> str:
    """The text, or as much of its beginning as takes `size` bytes when it is percent-encoded, as statuses are."""
    if len(quote(text)) <= size:
        return text
    while len(quote(text)) > size:
        text = text[: len(text) * size // len(quote(text))]
    return text + "…"


async def not_served(request: object, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    """A method of the protocol that this version does not serve."""
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this version does not serve this method")


_STATUS_TEXT = {404: "there is nothing at this path; /openapi.json and the docs list what there is"}


@web.middleware
async def middleware(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every failure of a route leaves as problem+json."""
    try:
        return await handler(request)
    except web.HTTPException as refused:  # aiohttp's own: no such route, wrong method, body too large
        by_status = {row.http: code for code, row in TABLE.items() if code is not Code.CONFLICT}
        error = Error(_STATUS_TEXT.get(refused.status, refused.reason), reason=f"HTTP_{refused.status}")
        error.code = by_status.get(refused.status, Code.INVALID)
        response = problem(error)
        response.set_status(refused.status)
        return response
    except Exception as failure:
        return problem(explain(failure, f"{request.method} {request.path}", peer=request.remote))
