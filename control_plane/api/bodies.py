"""What a request over HTTP brings: one JSON object, or a refusal that says what was there instead."""

import asyncio
import json
from typing import Any

from aiohttp import web

from shared.errors import Invalid, ResourceExhausted

BODY_SECONDS = 300.0
"""For the longest body over a slow line; who stops within one is not waited for."""


async def read(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object, empty where there is none.

    Raises Invalid saying what else it is, ResourceExhausted where it does not come in time.
    """
    if (request.content_length or 0) > request.client_max_size:
        raise _too_large(request)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await request.read()
    except TimeoutError:
        raise ResourceExhausted(
            f"the body did not come within {BODY_SECONDS:g} s of its head", reason="DEADLINE"
        ) from None
    except web.HTTPRequestEntityTooLarge:  # chunked, or compressed: known only while it is read
        raise _too_large(request) from None
    except web.RequestPayloadError:
        raise Invalid("the body is not as its Content-Encoding says", reason="NOT_JSON") from None
    if not raw.strip():
        return {}
    if request.content_type != "application/json":
        raise Invalid(
            f"the body is {request.content_type}; send Content-Type: application/json",
            reason="UNSUPPORTED_MEDIA_TYPE",
        )
    try:
        values = json.loads(raw, parse_constant=_refuse_constant, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}", reason="NOT_JSON") from None
    if not isinstance(values, dict):
        raise Invalid("the body is not a JSON object", reason="NOT_JSON")
    return values


def _too_large(request: web.Request) -> Invalid:
    return Invalid(
        f"the body is longer than {request.client_max_size} bytes, which http_max_body allows",
        reason="BODY_TOO_LARGE",
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a field is there twice")
    return values
