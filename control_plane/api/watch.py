"""Streams of what changes, for REST (server-sent events) and gRPC alike.

A stream says `reset`, lists everything page by page (`present`), says `listed`, and from then on tells what is
`changed` or `removed`. It tells states, not messages: what changed twice between two looks is told once, as it is
then. Nothing is queued for a consumer, whatever it does: a page is read once the one before it was written, and a
write that takes too long ends the stream (SLOW_CONSUMER). After an interruption there is nothing to resume: the
next stream begins with `reset` and lists everything again.

Each stream compares digests of what it showed last with what is stored. That is one read of its kind per look, at
most one a second, and 32 bytes a resource. It stops being cheap beyond some ten thousand resources of a kind in a
project, or some dozen streams; then a look has to begin at what changed since the last one.
"""

import asyncio
import hashlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from aiohttp import web

from control_plane.api import errors
from control_plane.api.door import Door
from control_plane.api.operations import WATCHES, Listed, Watch
from control_plane.domain import requests
from control_plane.services.changes import Changes
from control_plane.services.work import require
from shared import logs
from shared.errors import Error, Fault, Invalid, PermissionDenied, ResourceExhausted, Unavailable

_log = logs.get(__name__)

Json = dict[str, Any]

MAX_STREAMS = 64
LOOK_SECONDS = 1.0
"""At most one look in so many seconds."""
UNHINTED_SECONDS = 10.0
"""A look without a hint: hosts are lost by the passing of time, and replicas hint at little."""
WRITE_SECONDS = 20.0
_PAGE = 100
_QUIET = frozenset({"lastSeenAt", "spool"})
"""What changes all the time and is no news by itself."""


class Watchers:
    """The streams of this process."""

    def __init__(self, door: Door, changes: Changes) -> None:
        self.door, self._changes = door, changes
        self._streams = 0

    async def follow(
        self, watches: Sequence[Watch], authorization: str
    ) -> AsyncIterator[tuple[str, Json] | None]:
        """(name of the watch, event), and None after a while with nothing to tell.

        Raises the error of whoever may not read this (also later, once the key is revoked), ResourceExhausted
        where there are too many streams, and Unavailable when the process stops.
        """
        if self._streams >= MAX_STREAMS:
            raise ResourceExhausted(
                f"{MAX_STREAMS} streams are open already; poll instead", reason="TOO_MANY_STREAMS"
            )
        self._streams += 1
        known: dict[tuple[str, str, str], bytes] = {}
        try:
            with self._changes.listen() as hint:
                may = await self.door.admitted(authorization)
                for watch in watches:
                    require(may, watch.scope)
                for watch in watches:
                    yield watch.name, {"type": "reset"}
                async for event in self._look(watches, authorization, known, word="present"):
                    yield event
                for watch in watches:
                    yield watch.name, {"type": "listed"}
                while True:
                    yield None
                    with suppress(TimeoutError):
                        async with asyncio.timeout(UNHINTED_SECONDS):
                            await hint.wait()
                    if self._changes.ended.is_set():
                        raise Unavailable("the control plane is stopping; connect again", reason="STOPPING")
                    hint.clear()
                    async for event in self._look(watches, authorization, known, word="changed"):
                        yield event
                    with suppress(TimeoutError):  # further hints wait; only the end does not
                        async with asyncio.timeout(LOOK_SECONDS):
                            await self._changes.ended.wait()
        finally:
            self._streams -= 1

    async def _may(self, watches: Sequence[Watch], authorization: str) -> Any:
        caller = await self.door.caller(authorization)
        for watch in watches:
            require(caller, watch.scope)
        return caller

    async def _look(
        self,
        watches: Sequence[Watch],
        authorization: str,
        known: dict[tuple[str, str, str], bytes],
        *,
        word: str,
    ) -> AsyncIterator[tuple[str, Json]]:
        """What is not as it was `known`, which is brought up to date."""
        caller = await self._may(watches, authorization)
        for watch in watches:
            for listed in watch.lists:
                seen: set[tuple[str, str, str]] = set()
                async for resource in self._all(caller, watch, listed):
                    key = (watch.name, listed.resource, str(resource["id"]))
                    seen.add(key)
                    digest = _digest(resource)
                    if known.get(key) != digest:
                        yield watch.name, {"type": word, listed.resource: resource}
                        known[key] = digest
                for key in [key for key in known if key[:2] == (watch.name, listed.resource)]:
                    if key not in seen:
                        del known[key]
                        yield watch.name, {"type": "removed", "removedId": key[2]}

    async def _all(self, caller: Any, watch: Watch, listed: Listed) -> AsyncIterator[Json]:
        cursor = ""
        while True:
            request = requests.parse(listed.request, {"limit": _PAGE, "cursor": cursor})
            page = await self.door.services.ask(caller, watch.scope, listed.use_case, request, listed.render)
            for resource in page["entities"]:
                yield resource
            cursor = page["pagination"]["nextCursor"] or ""
            if not cursor:
                return

    # -- server-sent events

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/watch`: refused like every request until it has begun, afterwards by an `error` event."""
        authorization = request.headers.get("Authorization", "")
        watches = await self._asked(request, authorization)
        if request.method == "HEAD":
            return web.Response(content_type="text/event-stream")
        events = self.follow(watches, authorization)
        first = await anext(events)
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )
        await response.prepare(request)
        number = 0
        try:
            await self._write(response, "retry: 1000\n\n" + _text(first, number))
            async for event in events:
                number += event is not None
                await self._write(response, _text(event, number))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as failure:
            await self._tell_end(request, response, failure)
        finally:
            await events.aclose()  # type: ignore[attr-defined]  # it is a generator
        return response

    async def _asked(self, request: web.Request, authorization: str) -> list[Watch]:
        caller = await self.door.caller(authorization)
        strange = sorted(set(request.query) - {"kinds"})
        names = [name for name in request.query.get("kinds", "").split(",") if name]
        by_name = {watch.name: watch for watch in WATCHES}
        wrong = [name for name in names if name not in by_name]
        if strange or wrong:
            field = strange[0] if strange else "kinds"
            said = "is not a known field" if strange else f"there is no {wrong[0]!r}"
            fault = Fault(
                field=field, message=said, remedy=f"kinds has some of {', '.join(by_name)}, by commas"
            )
            raise Invalid(f"{field}: {said}", reason="INVALID_FIELDS", faults=[fault])
        if names:
            return [by_name[name] for name in dict.fromkeys(names)]
        allowed = [watch for watch in WATCHES if caller.may(watch.scope)]
        if not allowed:
            raise PermissionDenied("this needs a key that may read something", reason="MISSING_SCOPE")
        return allowed

    async def _write(self, response: web.StreamResponse, text: str) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await response.write(text.encode())
        except TimeoutError:
            raise slow() from None

    async def _tell_end(self, request: web.Request, response: web.StreamResponse, failure: Exception) -> None:
        error = errors.explain(failure, "GET /v1/watch", peer=request.remote)
        if error.reason == "SLOW_CONSUMER":
            _cut(request)
            return
        said = json.dumps({"reason": error.reason, "detail": error.message})
        with suppress(ConnectionError, Error):
            await self._write(response, f"event: error\ndata: {said}\n\n")


def slow() -> ResourceExhausted:
    """What a consumer that does not read is told, if it ever reads that."""
    return ResourceExhausted("the stream was not read in time", reason="SLOW_CONSUMER")


def _cut(request: web.Request) -> None:
    """The connection is gone at once: what was not read would otherwise be waited for."""
    _log.info("watch.cut", peer=request.remote)
    if request.transport is not None:
        # A reset: the system would keep what is under way, and the connection, for as long as nobody reads.
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()


def _digest(resource: Json) -> bytes:
    plain = {name: value for name, value in resource.items() if name not in _QUIET}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).digest()


def _text(event: tuple[str, Json] | None, number: int) -> str:
    if event is None:
        return ": alive\n\n"
    name, told = event
    data = json.dumps({"kind": name, **told}, ensure_ascii=False)
    return f"id: {number}\nevent: {told['type']}\ndata: {data}\n\n"
