"""What every exchange over HTTP has, whatever its route: an id, fewer bytes, and who else's pages may read it.

Hides the headers of that: routes answer what they answer and know of none of it.
"""

import re
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from control_plane.api import request_ids
from control_plane.api.conditions import GZIPPED, names

GZIP_FROM_BYTES = 1_024
"""Shorter answers fit a packet anyway."""

_ALLOWED = "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, X-Request-Id"
_EXPOSED = "ETag, Location, Retry-After, X-Request-Id"
_METHODS = "GET, HEAD, POST, PATCH, DELETE"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def enclose(app: web.Application, *, origins: frozenset[str]) -> None:
    """Every answer of the application has what every exchange has; pages of these origins may read them."""
    app.middlewares.insert(0, _middleware(origins))

    async def name(request: web.Request, response: web.StreamResponse) -> None:
        if request_ids.current():  # a stream, whose headers are sent within its handler
            response.headers[request_ids.HEADER] = request_ids.current()
        if origins:
            _vary(response, "Origin")
            if request.headers.get(hdrs.ORIGIN) in origins:
                response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = request.headers[hdrs.ORIGIN]
                response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED

    app.on_response_prepare.append(name)


def _middleware(origins: frozenset[str]) -> Middleware:
    @web.middleware
    async def exchange(request: web.Request, handler: Handler) -> web.StreamResponse:
        with request_ids.under(request.headers.get(request_ids.HEADER)) as name:
            response = _may_ask() if _asks_first(request, origins) else await handler(request)
        if not response.prepared:
            response.headers[request_ids.HEADER] = name
        if isinstance(response, web.Response) and not response.prepared:
            _compress(request, response)
            return _unless_known(request, response)
        return response

    return exchange


def _asks_first(request: web.Request, origins: frozenset[str]) -> bool:
    return (
        request.method == hdrs.METH_OPTIONS
        and request.headers.get(hdrs.ORIGIN) in origins
        and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    )


def _may_ask() -> web.Response:
    headers = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: _METHODS,
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _ALLOWED,
        hdrs.ACCESS_CONTROL_MAX_AGE: "600",
    }
    return web.Response(status=204, headers=headers)


def _compress(request: web.Request, response: web.Response) -> None:
    if not isinstance(response.body, bytes) or len(response.body) < GZIP_FROM_BYTES:
        return
    _vary(response, "Accept-Encoding")
    if not accepts_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, "")):
        return
    response.enable_compression(web.ContentCoding.gzip)
    if hdrs.ETAG in response.headers:
        response.headers[hdrs.ETAG] = response.headers[hdrs.ETAG][:-1] + GZIPPED + '"'


def accepts_gzip(header: str) -> bool:
    """Whether an `Accept-Encoding` names gzip, or everything, and not with a quality of nothing."""
    found: dict[str, bool] = {}
    for part in header.lower().split(","):
        coding, _, quality = part.partition(";")
        found[coding.strip()] = re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", quality) is None
    return found.get("gzip", found.get("*", False))


def _unless_known(request: web.Request, response: web.Response) -> web.Response:
    tag = response.headers.get(hdrs.ETAG, "").replace(GZIPPED, "")
    known = request.headers.get(hdrs.IF_NONE_MATCH, "")
    reads = request.method in (hdrs.METH_GET, hdrs.METH_HEAD) and response.status == 200
    if not (tag and known and reads and names(known, tag, weak=True)):
        return response
    kept = (hdrs.ETAG, hdrs.VARY, request_ids.HEADER)
    return web.Response(
        status=304, headers={name: response.headers[name] for name in kept if name in response.headers}
    )


def _vary(response: web.StreamResponse, name: str) -> None:
    given = response.headers.get(hdrs.VARY)
    response.headers[hdrs.VARY] = f"{given}, {name}" if given else name
