"""The examples of every operation, told over REST in their order, by whoever's key."""

import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlencode

from control_plane.api.examples import AGENT, API_KEY, DEPLOYMENT, EXAMPLES
from control_plane.api.operations import OPERATIONS, Operation
from tests.support.builders import make_hello
from tests.support.plane import Answer, Identity, Plane
from tests.support.stream import sharing
from tests.support.twins import queried

BY_RPC = {operation.rpc: operation for operation in OPERATIONS}
HOST_FILE = b"You are friendly, on the host.\n"


class Story:
    """The examples with the ids of this run; `host` is the one that the story speaks of."""

    def __init__(self, plane: Plane, host: Identity) -> None:
        self._plane, self._host = plane, host
        self.ids: dict[str, str] = {}
        self.secrets: list[str] = []

    async def begin(self) -> None:
        """The host is known."""
        self.ids[AGENT] = (await self._plane.rest("GET", "/v1/agents")).body["entities"][0]["id"]

    def values(self, rpc: str) -> dict[str, Any]:
        """The operation's example."""
        return {
            name: self.ids.get(value, value) if isinstance(value, str) else value
            for name, value in EXAMPLES[rpc].items()
        }

    def path(self, rpc: str) -> str:
        """The operation's path in the story, with a query where it reads."""
        operation, values = BY_RPC[rpc], self.values(rpc)
        asked = {name: value for name, value in values.items() if name not in operation.named}
        query = "?" + urlencode(queried(asked)) if operation.method == "GET" and asked else ""
        return re.sub(r"\{(\w+)\}", lambda name: str(values[name[1]]), operation.path) + query

    def sent(self, rpc: str, **more: Any) -> Mapping[str, Any] | None:
        """The operation's body; None where it has none."""
        operation: Operation = BY_RPC[rpc]
        values = {**self.values(rpc), **more}
        rest = {name: value for name, value in values.items() if name not in operation.named}
        return None if operation.method == "GET" else rest or None

    async def tell(
        self, rpc: str, *, connected: bool = True, request_id: str = "", key: str | None = None, **more: Any
    ) -> Answer:
        """What the example comes to, with what `more` says otherwise; a host that is asked answers if `connected`."""
        operation = BY_RPC[rpc]
        headers = {"Idempotency_Key": request_id} if request_id else {}
        async with AsyncExitStack() as hosts:
            if operation.asks_host and connected:
                files = {EXAMPLES[rpc]["path"]: HOST_FILE}
                await hosts.enter_async_context(sharing(self._host, make_hello("bot-1"), files))
            answer = await self._plane.rest(
                operation.method, self.path(rpc), self.sent(rpc, **more), key=key, **headers
            )
        known = {"DeploymentService.CreateDeployment": DEPLOYMENT, "AccessService.CreateApiKey": API_KEY}
        if rpc in known and answer.status == operation.status:
            self.ids[known[rpc]] = answer.body["id"]
        if isinstance(answer.body, dict):
            self.secrets += [answer.body[name] for name in ("secret", "token") if answer.body.get(name)]
        return answer
