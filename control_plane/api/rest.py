"""HTTP: the operations as `/v1` routes, and the process's own `/healthz /readyz /metrics`."""

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from control_plane.api import errors
from control_plane.api.door import Door
from control_plane.api.operations import Operation
from shared.errors import Fault, Invalid

MAX_BODY_BYTES = 64 * 1_048_576  # 200 variants of files do not come near; a flood does


def application(
    door: Door,
    operations: Sequence[Operation],
    *,
    ready: Callable[[], Awaitable[str | None]],
    registry: CollectorRegistry,
) -> web.Application:
    """The HTTP application. `ready` answers why the process is not ready, or None."""
    app = web.Application(middlewares=[errors.middleware], client_max_size=MAX_BODY_BYTES)
    for operation in operations:
        path = re.sub(r"\{(\w+)\}(?=:)", r"{\1:[^/:]+}", operation.path)
        app.router.add_route(operation.method, path, _handler(door, operation))

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        why = await ready()
        return web.json_response(
            {"status": "ok"} if why is None else {"status": "unready", "reason": why},
            status=200 if why is None else 503,
        )

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


def _handler(door: Door, operation: Operation) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        caller = await door.caller(request.headers.get("Authorization", ""))
        values = await _values(request, operation)
        key = request.headers.get("Idempotency-Key", "")
        answer = await door.run(operation, caller, values, request_id=key)
        if operation.status == 204:
            return web.Response(status=204)
        headers = {}
        if operation.location:
            headers["Location"] = re.sub(r"\{(\w+)\}", lambda name: str(answer[name[1]]), operation.location)
        return web.json_response(answer, status=operation.status, headers=headers)

    return handle


async def _values(request: web.Request, operation: Operation) -> dict[str, Any]:
    """Body or query, with the path's names. Raises Invalid where they are not usable."""
    named: Mapping[str, Any] = request.match_info
    given = _query(request) if operation.method == "GET" else await _body(request)
    twice = sorted(set(named) & set(given))
    if twice:
        fault = Fault(field=twice[0], message="is in the path already", remedy="leave it out of the body")
        raise Invalid(f"{fault.field}: {fault.message}", reason="INVALID_FIELDS", faults=[fault])
    return {**given, **named}


def _query(request: web.Request) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in request.query.items():
        # The one number in any query; a text that is none is refused by the request's own check.
        values[name] = int(text) if name == "limit" and re.fullmatch(r"-?\d{1,9}", text) else text
    return values


async def _body(request: web.Request) -> dict[str, Any]:
    raw = await request.read()
    if not raw.strip():
        return {}
    if request.content_type != "application/json":
        raise Invalid(
            f"the body is {request.content_type}; send Content-Type: application/json", reason="NOT_JSON"
        )
    try:
        values = json.loads(raw, parse_constant=_refuse_constant, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}", reason="NOT_JSON") from None
    if not isinstance(values, dict):
        raise Invalid("the body is not a JSON object", reason="NOT_JSON")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a field is there twice")
    return values
