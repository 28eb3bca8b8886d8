"""HTTP: operations as `/v1` routes, other systems' doors, and the process's own `/healthz /readyz /metrics`."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from control_plane.api import bodies, conditions, doors, errors, exchange, openapi
from control_plane.api import export as exporting
from control_plane.api.door import Door
from control_plane.api.doors import stamn
from control_plane.api.operations import EXPORT, WATCH_PATH, Operation
from control_plane.api.watch import Watchers
from control_plane.domain.fields import Request
from shared.errors import Fault, Invalid, NotFound


def application(
    door: Door,
    operations: Sequence[Operation],
    *,
    ready: Callable[[], Awaitable[str | None]],
    registry: CollectorRegistry,
    watchers: Watchers,
    max_body: int,
    origins: frozenset[str],
) -> web.Application:
    """The HTTP application. `ready` answers why the process is not ready, or None.

    A body of more than `max_body` bytes is refused unread; pages of `origins` may call from a browser.
    """
    app = web.Application(middlewares=[errors.middleware(doors.told)], client_max_size=max_body)
    exchange.enclose(app, origins=origins)
    for operation in operations:
        methods = ("GET", "HEAD") if operation.method == "GET" else (operation.method,)
        for path in filter(None, (operation.path, operation.alias)):
            for method in methods:
                app.router.add_route(method, _route(path, operations), _handler(door, operation))

    doors.add(app, door)
    _add_enveloped(app, door, operations)
    app.router.add_get(WATCH_PATH, watchers.serve)

    async def export(request: web.Request) -> web.StreamResponse:
        return await exporting.serve(door, request, await _values(request, EXPORT))

    app.router.add_get(_route(EXPORT.path, operations), export)
    _add_documents(app, operations)

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


def _add_enveloped(app: web.Application, door: Door, operations: Sequence[Operation]) -> None:
    """Stamn's calls in Stamn's envelope, besides the ones without."""
    for operation in operations:
        if operation.rpc in stamn.CALLS:
            path = stamn.PREFIX + _route(operation.path, operations)
            found = stamn.operation(operation)
            handler = (
                _whole(door, found) if found.rpc == stamn.LIST else _handler(door, found, enveloped=True)
            )
            for method in ("GET", "HEAD") if found.method == "GET" else (found.method,):
                app.router.add_route(method, path, handler)
                app.router.add_route(method, path + "/", handler)


def _whole(door: Door, operation: Operation) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Every page of a list in Stamn's envelope."""

    async def handle(request: web.Request) -> web.Response:
        caller = await door.admitted(request.headers.get("Authorization", ""))
        values = await _values(request, operation)
        every: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await door.run(operation, caller, {**values, "limit": 100, "cursor": cursor})
            every += page["entities"]
            cursor = page["pagination"]["nextCursor"]
        return web.json_response(stamn.enveloped(every))

    return handle


def _route(path: str, operations: Sequence[Operation]) -> str:
    """The path as the router takes it."""
    # No id holds a colon, so that what is asked of `{id}:verb` is never taken for an id; nor is one of the words
    # that stand in its place in a route of their own, whatever the method.
    place, _, last = path.rpartition("/")
    words = [word for before, _, word in (o.path.rpartition("/") for o in operations) if before == place]
    literal = "|".join(re.escape(word) for word in words if re.fullmatch(r"[\w-]+", word))
    ids = rf"(?!(?:{literal})$)[^/:]+" if literal and last == "{id}" else "[^/:]+"
    takes = {"path": ".+"}  # of a file: its slashes are its own
    return re.sub(r"\{(\w+)\}", lambda name: f"{{{name[1]}:{takes.get(name[1], ids)}}}", path)


def _add_documents(app: web.Application, operations: Sequence[Operation]) -> None:
    script = _redoc()

    @cache
    def described() -> str:
        return json.dumps(openapi.document(operations))

    async def document(_: web.Request) -> web.Response:
        # Made for whoever asks first, beside the loop: it takes longer than all else a start does.
        return web.Response(text=await asyncio.to_thread(described), content_type="application/json")

    async def page(_: web.Request) -> web.Response:
        if script is None:
            raise NotFound("the page is not installed here; pip install 'variantd[docs]'", reason="NO_DOCS")
        headers = {"Content-Security-Policy": _DOCS_POLICY}
        return web.Response(text=openapi.DOCS_PAGE, content_type="text/html", headers=headers)

    async def start(_: web.Request) -> web.Response:
        return web.Response(text=openapi.DOCS_START, content_type="text/javascript")

    app.router.add_get("/openapi.json", document)
    app.router.add_get("/docs", page)
    app.router.add_get("/docs/start.js", start)
    if script is not None:
        redoc = script

        async def code(_: web.Request) -> web.FileResponse:
            return web.FileResponse(redoc, headers={"Content-Type": "text/javascript"})

        app.router.add_get("/docs/redoc.js", code)


_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src 'self' data:;"
    " connect-src 'self'; font-src 'self'; worker-src blob:"
)


def _redoc() -> Path | None:
    """Redoc's script in the wheel that carries it; the package itself is not imported."""
    found = find_spec("flask_openapi3_redoc")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "templates" / "redoc" / "js" / "redoc.standalone.js"


def _handler(
    door: Door, operation: Operation, *, enveloped: bool = False
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """What answers an operation, in Stamn's envelope if it is asked for."""

    async def handle(request: web.Request) -> web.Response:
        caller = await door.admitted(request.headers.get("Authorization", ""))
        values = await _values(request, operation)
        key = request.headers.get("Idempotency-Key", "")
        condition = None
        if operation.changes and "If-Match" in request.headers:
            if_match = ",".join(request.headers.getall("If-Match"))
            condition = conditions.Condition(operation, values, if_match)
        answer = await door.run(operation, caller, values, request_id=key, condition=condition)
        if operation.status == 204:
            return web.json_response(stamn.enveloped(None)) if enveloped else web.Response(status=204)
        headers = {}
        if conditions.is_single(operation):
            headers["ETag"] = conditions.tag_of(answer)
        elif condition is not None and condition.tag and operation.status == 200:
            headers["ETag"] = condition.tag
        if operation.location:
            made = re.sub(r"\{(\w+)\}", lambda name: str(answer[name[1]]), operation.location)
            headers["Location"] = stamn.PREFIX + made if enveloped and "/experiments" in made else made
        status = operation.already if operation.already and not answer["accepted"] else operation.status
        body = stamn.enveloped(answer) if enveloped else answer
        return web.json_response(body, status=status, headers=headers)

    return handle


async def _values(request: web.Request, operation: Operation) -> dict[str, Any]:
    """Body or query, with the path's names. Raises Invalid where they are not usable."""
    named: Mapping[str, Any] = request.match_info
    if operation.method == "GET":
        given = _query(request, operation.request)
    else:
        _refuse_query(request)
        given = await bodies.read(request)
    twice = sorted(set(named) & set(given))
    if twice:
        fault = Fault(field=twice[0], message="is in the path already", remedy="leave it out of the body")
        raise Invalid(f"{fault.field}: {fault.message}", reason="INVALID_FIELDS", faults=[fault])
    return {**given, **named}


def _refuse_query(request: web.Request) -> None:
    """A write says everything in its body: what it said beside it, such as `?validateOnly=true`, would be unheard."""
    faults = [
        Fault(field=name, message="is in the query, which only GET has", remedy="say it in the body")
        for name in dict.fromkeys(request.query)
    ]
    if faults:
        raise Invalid(f"{faults[0].field}: {faults[0].message}", reason="INVALID_FIELDS", faults=faults)


def _query(request: web.Request, model: type[Request]) -> dict[str, Any]:
    """The query as JSON-shaped values; `label.NAME=value` is a label. Raises Invalid where one is there twice.

    A text that is no number or flag where one belongs stays a text: the request's own check refuses it.
    """
    kinds = {field.alias or name: str(field.annotation) for name, field in model.model_fields.items()}
    values: dict[str, Any] = {}
    for name, text in request.query.items():
        label = name.removeprefix("label.") if name.startswith("label.") and "labels" in kinds else None
        into, key = (values, name) if label is None else (values.setdefault("labels", {}), label)
        if not isinstance(into, dict) or key in into:
            fault = Fault(field=name, message="is given twice", remedy="give it once")
            raise Invalid(f"{fault.field}: {fault.message}", reason="INVALID_FIELDS", faults=[fault])
        kind = kinds.get(name, "")
        into[key] = text
        if "int" in kind and re.fullmatch(r"-?\d{1,9}", text):
            into[key] = int(text)
        elif "float" in kind and re.fullmatch(r"-?\d{1,15}(\.\d{1,17})?([eE][+-]?\d{1,3})?", text):
            into[key] = float(text)
        elif "bool" in kind and text in ("true", "false"):
            into[key] = text == "true"
    return values
