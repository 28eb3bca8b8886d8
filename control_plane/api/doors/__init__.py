"""Doors: clients of other systems' experiment APIs come in here and find what they know.

A door only translates (`mapping`): what it asks for runs through the same services as a call of our own API, with the
same checks, tenancy, scopes, idempotency and audit, in one transaction each.
"""

import re
from collections.abc import Awaitable, Callable

from aiohttp import web

from control_plane.api import bodies
from control_plane.api.door import Door
from control_plane.api.doors import breakground, ours, posthog, stamn
from control_plane.api.doors.mapping import Facade, Route, wrong
from control_plane.api.errors import Told

DOORS: tuple[Facade, ...] = (ours.DOOR, breakground.DOOR, posthog.DOOR)
"""Every door."""

ROUTES: dict[str, Route] = {route.rpc: route for found in DOORS for route in found.routes}
"""Every call of a door by its name in the audit log."""


def told(path: str) -> Told | None:
    """How failures at a path are told; None where they are told as everywhere."""
    if stamn.is_at(path):
        return stamn.told
    return next((found.told for found in DOORS if found.is_at(path)), None)


def add(app: web.Application, door: Door) -> None:
    """The application answers every call of every door, with and without a slash at its end."""
    for found in DOORS:
        for route in found.routes:
            methods = ("GET", "HEAD") if route.method == "GET" else (route.method,)
            handler = _handler(door, found, route)
            for path in filter(None, (route.path, route.alias)):
                pattern = re.sub(r"\{(\w+)\}", r"{\1:[^/]+}", path)
                for method in methods:
                    app.router.add_route(method, pattern, handler)
                    app.router.add_route(method, pattern + "/", handler)


def _query(request: web.Request) -> dict[str, str]:
    """The query. Raises Invalid for what is there twice."""
    for name in request.query:
        if len(request.query.getall(name)) > 1:
            raise wrong(name, "is given twice", "give it once")
    return dict(request.query)


def _handler(door: Door, found: Facade, route: Route) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        caller = await door.admitted(request.headers.get("Authorization", ""))
        names = {name: found.named(text) for name, text in request.match_info.items()}
        body = await bodies.read(request) if route.method != "GET" else {}
        values = {**names, "query": _query(request), "body": body}
        if route.method == "GET":
            # Put together, not parsed: a Host header has any characters, and is nobody's business here.
            values["at"] = f"{request.scheme}://{request.host}{request.rel_url.raw_path}"
        key = request.headers.get("Idempotency-Key", "")
        answer = await door.run(route, caller, values, request_id=key)
        status = answer["status"] or route.status
        return web.Response(status=204) if status == 204 else web.json_response(answer["body"], status=status)

    return handle
