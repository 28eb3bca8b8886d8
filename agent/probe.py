"""Asks an application on this host whether it is well.

Hides HTTP, and how long to wait for an answer. Redirects are not followed and no body is read, so that a probe
reaches nothing but what agent.toml names.
"""

import asyncio

import aiohttp

from shared.clock import Clock

TIMEOUT_SECONDS = 5.0
"""An answer that takes longer is none."""

MAX_INTERVAL_SECONDS = 5.0
ASKS = 5
"""A window is asked about at least so often."""

FAILURES = 3
"""So many asks in a row without a 2xx answer, and the content has failed."""


def interval(window: float) -> float:
    """Seconds between two asks of a window of so many."""
    return min(MAX_INTERVAL_SECONDS, window / ASKS)


async def ask(url: str, clock: Clock) -> str:
    """Empty where the answer is 2xx in time; else what came instead, in half a sentence, without any of the answer."""
    asking = asyncio.ensure_future(_status(url))
    limit = asyncio.ensure_future(clock.sleep(TIMEOUT_SECONDS))
    try:
        await asyncio.wait((asking, limit), return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            return f"did not answer within {TIMEOUT_SECONDS:g} seconds"
        status = asking.result()
        return "" if 200 <= status < 300 else f"answered {status}"
    except (aiohttp.ClientError, OSError) as error:
        return f"could not be asked ({type(error).__name__})"
    finally:
        limit.cancel()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def _status(url: str) -> int:
    # A session for each: nothing is kept open between two asks, and no proxy of the environment is asked.
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.get(url, allow_redirects=False, headers={"User-Agent": "variant-agent"}) as response,
    ):
        return response.status
