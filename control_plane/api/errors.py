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
from aiohttp.typedefs import Middleware

from control_plane.api import request_ids
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

REASONS = {
    "ADDRESS_IN_USE": "another server listens there",
    "AGENT_NOT_FOUND": "no agent of the project has this id",
    "API_KEY_EXPIRED": "the key is over its time",
    "API_KEY_NOT_FOUND": "no key of the project has this id",
    "API_KEY_REVOKED": "the key was revoked",
    "ASSIGNMENT_NOT_FOUND": "the participant is not assigned in the experiment",
    "BAD_ANSWER": "a host sent something else than the file it announced",
    "BAD_API_KEY": "the key is not one of this control plane, or not any more",
    "BAD_ASSIGNMENT": "participants or weights that nothing can be drawn with",
    "BAD_CONFIG": "a setting that cannot be used; the field is named",
    "BAD_ENROLLMENT_TOKEN": "the token is unknown, used up, over its time, or not for this host",
    "BAD_TOKEN": "the bearer token is not one of the issuer that is set, or lacks what it needs; the message says what",
    "BAD_UPLOAD": "an agent's upload is not what it announced, or longer than it may be",
    "BANNED": "the agent was banned, or is not known here; enroll it again",
    "BATCH_TOO_LARGE": "an agent sent more records at once than it was told",
    "BLOCKS_OVER": "the last block of the switchback has ended",
    "BODY_TOO_LARGE": "the body is longer than `http_max_body`",
    "CLAIM_CONFLICT": "another experiment holds the file; it is named",
    "CONTENT_NOT_FOUND": "no slot of the agent needs this content",
    "DATABASE_ELSEWHERE": "the data directory's database is a file and a server was named, or the other way round",
    "DATABASE_NEWER": "a newer variantd wrote this database; run that one",
    "DATABASE_OLDER": "the server that runs over the database is of an older version",
    "DATABASE_UNAVAILABLE": "the database does not answer now",
    "OTHER_AUTHORITY": "this server's certificate authority is not that of the database's other servers",
    "INCARNATION_CHANGED": "the database is another incarnation than this server began with, so it ends",
    "DATABASE_UNUSABLE": "the PostgreSQL server is too old, or its user may not make tables",
    "DEADLINE": "the peer was too slow",
    "DEPLOYMENT_NOT_FOUND": "no deployment of the project has this id",
    "DRAFT_IN_USE": "something was deployed by hand from the draft",
    "EXPERIMENT_NOT_FOUND": "no experiment of the project has this id or key",
    "EXTRA_MISSING": "a part of the installation is missing; the message names it",
    "SLOW_CONSUMER": "a stream was not read for 20 seconds; connect again, it begins with everything",
    "STOPPING": "the control plane is stopping; connect again",
    "TOO_MANY_CALLS": "too many calls of this agent are under way; send the next one when one ends",
    "TOO_MANY_STREAMS": "too many streams are open at once; close some, or poll",
    "FINGERPRINT_CHANGED": "the metric, the analysis or the phase is another by now; the present fingerprint is named",
    "FINGERPRINT_NOT_FOUND": "nothing was ever computed under this fingerprint",
    "NOT_STARTED": "the experiment has not started, so nothing was measured; `state` and `allowedVerbs` say what fits",
    "HOLDOUT_IN_USE": "experiments name the holdout; they are listed",
    "HOLDOUT_NOT_FOUND": "no holdout of the project has this id or key",
    "IDEMPOTENCY_KEY_REUSED": "the key was used for another request; use a fresh one",
    "INTERNAL": "something is wrong on our side; the log has the id that the answer names",
    "INVALID_CURSOR": "the cursor is not one that a list answered",
    "INVALID_FIELDS": "fields that are not valid; each is named with a remedy",
    "IN_USE": "the participant takes part in an experiment; it is named",
    "KEY_TAKEN": "another one of the project has this key",
    "LIMITED_KEY": "the key is limited to labels, and this concerns a whole project",
    "LOCKED": "another process has the data directory",
    "MALFORMED_MESSAGE": "an agent sent what cannot be read",
    "MALFORMED_TOKEN": "the text is no enrollment token",
    "MISSING_SCOPE": "the key does not hold the scope, which is named",
    "NOT_ALLOWED": "the agent is banned, or its token does not allow the participant",
    "NOT_AN_AGENT": "the peer's certificate is not an agent's",
    "NOT_ASKED": "an agent uploaded what nobody waits for",
    "NOT_CONNECTED": "the participant's agent is not connected",
    "NOT_JSON": "the body is not a JSON object",
    "NOT_READY": "the experiment cannot start; every fault is listed",
    "NOT_RECOVERABLE": "an expired certificate that does not prove what it has to",
    "NOT_WITHDRAWABLE": "the host is done with it, or a verb of the experiment made it; `state` and `origin` tell",
    "NO_ANSWER": "the participant's host is connected and did not answer in time",
    "NO_API_KEY": "the request carries no key",
    "NO_CONTENT": "the variant has nothing to deploy",
    "NO_DOCS": "the documentation page is not installed here",
    "METRIC_IN_USE": "drafts name the saved metric; they are listed",
    "METRIC_NOT_FOUND": "no saved metric of the project has this id or key",
    "NO_HELLO": "an agent's stream has to begin with Hello",
    "PHASE_NOT_FOUND": "the run has no such phase",
    "NO_PHASES": "the experiment's type knows no other split",
    "OUTSIDE_LABELS": "this reaches beyond the labels that the key is limited to",
    "PARTICIPANT_NOT_FOUND": "no participant of the project has this id",
    "REFUSED_BY_SETTINGS": "the project's settings do not allow a file or a content; each is named with its rule",
    "RATE_LIMITED": "the key, or the subject of the token, asks more than `rate_limit`; see `retryAfterSeconds`",
    "RETIRED": "the host was retired",
    "STALE": "the resource is not the one that If-Match names; `etag` is the present one's",
    "SUPERSEDED": "a newer session of the same agent has taken over",
    "TOKEN_EXPIRED": "the bearer token is over its time; get a fresh one",
    "TEXT_TOO_LONG": "PostgreSQL has no room for a text that long where it has to find it again; shorten it",
    "TOO_LARGE": "content above 1 MiB",
    "TOO_MANY_MESSAGES": "an agent put more messages into a poll than it was told",
    "TOO_MANY_READS": "so many files of this host are being read that another one has to wait",
    "UNSUPPORTED_MEDIA_TYPE": "the body is not sent as application/json",
    "VARIANT_NOT_FOUND": "the experiment has no variant of this id or key",
    "WRONG_STATE": "the verb does not fit the experiment's state; `state` and `allowedVerbs` say what does",
}
"""What each `reason` of an error says; an error of a kind has the kind's own name where it needs no other."""

EXACT = {"BODY_TOO_LARGE": 413, "STALE": 412, "UNSUPPORTED_MEDIA_TYPE": 415}
"""Reasons for which HTTP has a status of their own."""


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


def status_of(error: Error) -> int:
    """The HTTP status of a failure."""
    return EXACT.get(error.reason, TABLE[error.code].http)


Told = Callable[[Error, int], tuple[int, Any]]
"""How somebody else's API tells a failure that has this status here: its status there, and the body."""


def problem(error: Error, *, status: int | None = None, told: Told | None = None) -> web.Response:
    """The failure as problem+json, or as it is `told`; `status` where it is more exact than the table's."""
    status = status or status_of(error)
    headers = {}
    if error.code.retryable:
        headers["Retry-After"] = str(error.details.get("retryAfterSeconds", 1))
    if error.code is Code.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    if told is not None:
        status, body = told(error, status)
        return web.json_response(body, status=status, headers=headers)
    faults = faults_of(error)
    body = {
        "type": f"urn:variantd:problem:{error.code.value}",
        "title": TABLE[error.code].title,
        "status": status,
        "detail": error.message,
        "reason": error.reason,
        "errors": faults,
        "error": error.message,
        "details": error.details or faults,
        **error.details,
        "requestId": request_ids.current(),
    }
    return web.json_response(body, status=status, content_type="application/problem+json", headers=headers)


def faults_of(error: Error) -> list[dict[str, str]]:
    """Everything that is wrong, by field."""
    return [
        {"field": fault.field, "message": fault.message, "remedy": fault.remedy} for fault in error.faults
    ]


async def can_end(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Call it before the first message: a call of which that is given up under way can be aborted then.

    Headers that travel with a message are not known to be sent until it is, and are not taken twice; by themselves they
    wait for no reader.
    """
    await context.send_initial_metadata(())


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Error) -> None:
    """Ends the call with the failure's status and trailing metadata.

    A client refuses metadata beyond 8 KiB, and with it the very status: what repeats a long value is cut, and
    of very many faults the first are told.
    """
    trailing: list[tuple[str, str | bytes]] = [("reason", error.reason)]
    if request_ids.current():
        trailing.append((request_ids.METADATA, request_ids.current()))
    if "retryAfterSeconds" in error.details:
        trailing.append(("retry-after", str(error.details["retryAfterSeconds"])))
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


_STATUS_TEXT = {404: "there is nothing at this path; /openapi.json and the docs list what there is"}


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def middleware(told_at: Callable[[str], Told | None]) -> Middleware:
    """Every failure of a route leaves as problem+json, or as it is told at that path."""

    @web.middleware
    async def answering(request: web.Request, handler: Handler) -> web.StreamResponse:
        told = told_at(request.path)
        try:
            return await handler(request)
        except web.HTTPException as refused:  # aiohttp's own: no such route, wrong method, body too large
            by_status = {row.http: code for code, row in TABLE.items() if code is not Code.CONFLICT}
            error = Error(_STATUS_TEXT.get(refused.status, refused.reason), reason=f"HTTP_{refused.status}")
            error.code = by_status.get(refused.status, Code.INVALID)
            response = problem(error, status=refused.status, told=told)
            if "Allow" in refused.headers:
                response.headers["Allow"] = refused.headers["Allow"]
            return response
        except Exception as failure:
            return problem(
                explain(failure, f"{request.method} {request.path}", peer=request.remote), told=told
            )

    return answering
