"""An application on the host, as its health probe meets it: over HTTP, well or not as it is told."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from agent.config import Probe


@dataclass
class Application:
    """Answers `status`; 0: does not answer at all. `asked` counts."""

    status: int = 200
    asked: int = 0
    port: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    def probe(self, window: float = 60.0) -> Probe:
        """What agent.toml says of it."""
        return Probe(http=f"http://127.0.0.1:{self.port}/health", window=window)


@asynccontextmanager
async def application(port: int = 0) -> AsyncIterator[Application]:
    """One that listens, until the block is left."""
    app = Application()

    async def health(request: web.Request) -> web.Response:
        app.asked += 1
        if not app.status:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=app.status or 500, headers=app.headers)

    served = web.Application()
    served.router.add_get("/health", health)
    runner = web.AppRunner(served, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    app.port = runner.addresses[0][1]
    try:
        yield app
    finally:
        await runner.cleanup()
