"""What the host's own administrator tells the running agent, over its socket and by nobody else.

Hides who may: root and the user the agent runs as, by the kernel's word; the local token opens none of this.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from agent.peer import commands_the_agent, is_on_socket, uid_of
from shared.errors import Fault, Invalid, PermissionDenied

Answer = Mapping[str, object]


class Admin:
    """The routes under /v1/admin; each answers with what its function returns."""

    def __init__(
        self,
        *,
        hold: Callable[[], Awaitable[Answer]],
        release: Callable[[], Awaitable[Answer]],
        reload: Callable[[], Awaitable[Answer]],
        leave: Callable[..., Awaitable[Answer]],
        adopt: Callable[[str], Awaitable[Answer]],
    ) -> None:
        self._hold, self._release, self._reload, self._leave = hold, release, reload, leave
        self._adopt = adopt

    def routes(self) -> list[web.RouteDef]:
        """For the local API to serve; failures leave as its problems do."""
        return [
            web.post("/v1/admin/hold", self._post_hold),
            web.post("/v1/admin/reload", self._post_reload),
            web.post("/v1/admin/leave", self._post_leave),
            web.post("/v1/admin/adopt", self._post_adopt),
        ]

    async def _post_hold(self, request: web.Request) -> web.Response:
        order = await _order(request, "held")
        return web.json_response(await (self._hold() if order["held"] else self._release()))

    async def _post_reload(self, request: web.Request) -> web.Response:
        await _order(request)
        return web.json_response(await self._reload())

    async def _post_leave(self, request: web.Request) -> web.Response:
        order = await _order(request, "restore")
        return web.json_response(await self._leave(restore=order["restore"]))

    async def _post_adopt(self, request: web.Request) -> web.Response:
        order = await _order(request, texts=("incarnation",))
        return web.json_response(await self._adopt(order["incarnation"]))


async def _order(request: web.Request, *flags: str, texts: tuple[str, ...] = ()) -> dict[str, Any]:
    """Flags and texts of an order from somebody who may give it. Raises PermissionDenied or Invalid."""
    if not is_on_socket(request) or not commands_the_agent(uid_of(request)):
        raise PermissionDenied(
            "only root and the agent's own user may say this, on the agent's socket", reason="NOT_ADMIN"
        )
    if request.content_type != "application/json":
        raise Invalid("send the order as Content-Type: application/json", reason="NOT_JSON")
    try:
        body: Any = json.loads(await request.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Invalid("the order is not a JSON object", reason="NOT_JSON")
    faults = [
        Fault(field=key, message="is not a field") for key in sorted(set(body) - set(flags) - set(texts))
    ]
    faults += [
        Fault(field=flag, message="must be true or false")
        for flag in flags
        if not isinstance(body.get(flag), bool)
    ]
    faults += [
        Fault(field=text, message="must be a text") for text in texts if not isinstance(body.get(text), str)
    ]
    if faults:
        listed = "; ".join(f"{fault.field} {fault.message}" for fault in faults)
        raise Invalid(f"the order is not valid: {listed}", reason="INVALID_FIELDS", faults=faults)
    return body
