"""Takes connections for the local API, so that no user of the host can use up what the agent writes its files with.

Hides how many there are, and what there is when no descriptor is left: asyncio's own listeners then try a hundred
times a second, tell of each with its traceback, and of a hundred times as many a second later.
"""

import asyncio
import json
import resource
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from aiohttp import web

from agent.peer import user_of
from shared import logs

_log = logs.get(__name__)

MOST = 512
"""At once on each door, of which one user may have half; less where the agent may open fewer than 1,024 files."""
IDLE_SECONDS = 75.0
"""A connection without a request, or with half a head."""
RETRY_SECONDS = 1.0
QUIET_SECONDS = 60.0
"""Between lines in the log about connections that were not taken."""

_ROOM = 65_536
_WHY = "too many connections to the agent are open; close those that are not used, or use one again"


class Site(web.BaseSite):
    """Serves `runner` on a socket that listens; `refused` is told of every connection that was not taken."""

    def __init__(
        self, runner: web.BaseRunner, listener: socket.socket, *, refused: Callable[[], None]
    ) -> None:
        super().__init__(runner)
        listener.settimeout(0)
        self._listener, self._refused = listener, refused
        self._open: dict[asyncio.BaseTransport, int | None] = {}
        self._accepting: asyncio.Task[None] | None = None
        self._told_at = float("-inf")

    @property
    def name(self) -> str:
        """Where it listens."""
        return str(self._listener.getsockname())

    async def start(self) -> None:
        """Connections are taken from now on."""
        await super().start()
        self._accepting = asyncio.create_task(self._accept())

    async def stop(self) -> None:
        """None is taken any more; those that there are go on."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        self._listener.close()
        await super().stop()

    async def _accept(self) -> None:
        loop, serve = asyncio.get_running_loop(), self._runner.server
        assert serve is not None
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
                user = user_of(connection)
                if self._has_room(user):
                    transport, _ = await loop.connect_accepted_socket(serve, connection)
                    self._open[transport] = user
                else:
                    self._tell("local_api.full", uid=user)
                    self._refused()
                    _refuse(connection)
            except ConnectionError:
                continue  # who came has gone
            except OSError as error:
                self._tell("local_api.waiting", error=error.strerror)
                await asyncio.sleep(RETRY_SECONDS)

    def _has_room(self, user: int | None) -> bool:
        """Who has gone is forgotten once there seems to be none."""
        most = _most()
        if not _fits(self._open, user, most):
            self._open = {one: whose for one, whose in self._open.items() if not one.is_closing()}
        return _fits(self._open, user, most)

    def _tell(self, event: str, **fields: object) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told_at >= QUIET_SECONDS:
            self._told_at = now
            _log.warning(event, **fields)


def _most() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if files == resource.RLIM_INFINITY else min(MOST, files // 2)


def _fits(there: dict[asyncio.BaseTransport, int | None], user: int | None, most: int) -> bool:
    if len(there) < most // 2:
        return True
    return len(there) < most and (user is None or Counter(there.values())[user] < most // 2)


def _refuse(connection: socket.socket) -> None:
    """It is told why as far as that goes without waiting for it, and closed."""
    problem = {
        "type": "urn:variantd:problem:unavailable",
        "title": "Service Unavailable",
        "status": 503,
        "detail": _WHY,
        "reason": "TOO_MANY_CONNECTIONS",
        "errors": [],
    }
    body = json.dumps(problem).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
    )
    with connection:
        connection.settimeout(0)
        with suppress(OSError):  # what was said and not read would be a reset, and hide the answer
            connection.recv(_ROOM)
        with suppress(OSError):
            connection.send(head.encode() + body)
