"""What is kept of an experiment, streamed: lines of JSON over REST, the same lines in messages over gRPC.

A page is read once the one before it was written, so an export needs no more memory than a page, whatever its length
and however slowly it is read; no transaction is open meanwhile. A reader that takes nothing for too long is cut.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aiohttp import web

from control_plane.api import errors
from control_plane.api.door import Door
from control_plane.api.exchange import accepts_gzip
from control_plane.api.operations import EXPORT, EXPORT_TYPE
from control_plane.domain import requests
from control_plane.services.export import Asked, Place
from shared import logs

_log = logs.get(__name__)

WRITE_SECONDS = 60.0
MESSAGE_BYTES = 1_048_576
"""A message has rows up to about so much; what many clients take at most is four times that."""


async def pages(door: Door, values: Mapping[str, Any], authorization: str) -> AsyncIterator[list[str]]:
    """Lines of JSON, page by page. Raises what a request raises, before the first page."""
    caller = await door.admitted(authorization)
    request = requests.parse(EXPORT.request, values)
    at: Place | None = Place()

    def render(work: Any, found: Any) -> tuple[list[str], Place | None]:
        return EXPORT.render(work, found), found.then

    while at is not None:
        asked = Asked(request=request, at=at)  # type: ignore[arg-type]  # the table has its own request
        lines, at = await door.services.ask(caller, EXPORT.scope, EXPORT.use_case, asked, render)
        yield lines


async def serve(door: Door, request: web.Request, values: Mapping[str, Any]) -> web.StreamResponse:
    """The export as a chunked answer: refused like every request until it has begun, afterwards cut short."""
    found = pages(door, values, request.headers.get("Authorization", ""))
    lines = await anext(found)
    if request.method == "HEAD":
        await found.aclose()  # type: ignore[attr-defined]  # it is a generator
        return web.Response(content_type=EXPORT_TYPE)
    response = web.StreamResponse(headers={"Content-Type": EXPORT_TYPE, "Cache-Control": "no-store"})
    if accepts_gzip(request.headers.get("Accept-Encoding", "")):
        response.enable_compression(web.ContentCoding.gzip)
    await response.prepare(request)
    try:
        await _write(response, lines)
        async for lines in found:
            await _write(response, lines)
        await response.write_eof()
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception as failure:
        # A chunked answer that has no end is an error to whoever reads it; a status was sent long ago.
        reason = "SLOW" if isinstance(failure, TimeoutError) else errors.explain(failure, EXPORT.rpc).reason
        _log.warning("export.cut", peer=request.remote, reason=reason)
        if request.transport is not None:
            request.transport.abort()
    finally:
        await found.aclose()  # type: ignore[attr-defined]  # it is a generator
    return response


async def _write(response: web.StreamResponse, lines: Sequence[str]) -> None:
    if lines:
        async with asyncio.timeout(WRITE_SECONDS):
            await response.write(("\n".join(lines) + "\n").encode())


def messages(lines: Sequence[str]) -> list[list[str]]:
    """The lines in portions that a message holds."""
    portions: list[list[str]] = []
    size = MESSAGE_BYTES
    for line in lines:
        if size + len(line) > MESSAGE_BYTES:
            portions.append([])
            size = 0
        portions[-1].append(line)
        size += len(line)
    return portions
