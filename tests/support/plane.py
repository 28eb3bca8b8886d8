"""A real control plane inside the test's event loop, on free ports, with clients that trust it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from google.protobuf.message_factory import GetMessageClass

from agent.channel import OPTIONS
from control_plane import app
from control_plane.config import Settings
from shared import tls
from shared.clock import Clock, SystemClock
from shared.ids import NewId, new_id
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from shared.pb.variantd.operator.v1 import operator_pb2
from shared.ticket import ticket_from_token
from tests.support.waiting import eventually


@dataclass(frozen=True)
class Answer:
    """What REST answered."""

    status: int
    body: Any
    headers: Mapping[str, str]


@dataclass
class Plane:
    """A running control plane and clients of it."""

    data: Path
    addresses: dict[str, str]
    key: str
    http: aiohttp.ClientSession
    operator: grpc.aio.Channel

    async def rest(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, **headers: str
    ) -> Answer:
        """What REST answers the operator (or the holder of another `key`)."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        secret = self.key if key is None else key
        if secret:
            named["Authorization"] = f"Bearer {secret}"
        options: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
        if body is None:
            options = {}
        url = f"http://{self.addresses['http']}{path}"
        async with self.http.request(method, url, headers=named, **options) as response:
            text = await response.text()
            shaped = response.content_type in ("application/json", "application/problem+json")
            parsed = json.loads(text) if text and shaped else text
            return Answer(response.status, parsed, response.headers)

    async def made(self, path: str, body: Any, **headers: str) -> Any:
        """The resource that POST made."""
        answer = await self.rest("POST", path, body, **headers)
        assert answer.status in (200, 201), answer.body
        return answer.body

    def call(self, rpc: str) -> grpc.aio.UnaryUnaryMultiCallable[Any, Any]:
        """The gRPC method `Service.Method`."""
        service, method = rpc.split(".")
        found = operator_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method]
        return self.operator.unary_unary(
            f"/{found.containing_service.full_name}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(found.output_type).FromString,
        )

    async def grpc(self, rpc: str, *, key: str | None = None, **fields: Any) -> Any:
        """What gRPC answers the operator."""
        service, method = rpc.split(".")
        found = operator_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method]
        request = GetMessageClass(found.input_type)(**fields)
        return await self.call(rpc)(request, metadata=[("authorization", f"Bearer {key or self.key}")])

    async def token(self, **fields: Any) -> str:
        """A fresh enrollment token."""
        answer = await self.made("/v1/enrollment-tokens", fields)
        return str(answer["token"])

    async def enroll(self, token: str, *, name: str = "host") -> "Identity":
        """An agent's identity for a token."""
        key = tls.new_key()
        ticket = ticket_from_token(token)
        request = pb.EnrollRequest(
            secret=ticket.secret, signing_request=tls.new_signing_request(key, name), name=name, hostname=name
        )
        answer = await agent_pb2_grpc.EnrollmentServiceStub(self.operator).Enroll(request)  # type: ignore[no-untyped-call, misc]
        return Identity(
            uid=answer.agent_uid,
            key=tls.key_to_pem(key),
            certificate=tls.der_to_pem(answer.certificate),
            ca=b"".join(map(tls.der_to_pem, answer.ca_certificates)),
            address=answer.addresses[0],
        )


@dataclass(frozen=True)
class Identity:
    """What an enrolled agent holds."""

    uid: bytes
    key: bytes
    certificate: bytes
    ca: bytes
    address: str

    def channel(self) -> grpc.aio.Channel:
        """A mutual TLS channel to the agent listener, with the options of agents."""
        credentials = grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)
        return grpc.aio.secure_channel(self.address, credentials, options=OPTIONS)


@asynccontextmanager
async def running_plane(
    data: Path, *, clock: Clock | None = None, ids: NewId = new_id, **more: Any
) -> AsyncIterator[Plane]:
    """A control plane over `data`, up, with `more` settings; stopped and drained at the end."""
    stop = asyncio.Event()
    free = "127.0.0.1:0"
    settings = Settings(data_dir=data, http=free, operator=free, agents=free, **more)
    server = asyncio.create_task(app.run(settings, clock or SystemClock(), ids, stop))

    def ready() -> bool:
        if server.done():
            server.result()
        return (data / "addresses.json").exists()

    try:
        await eventually(ready, what="the control plane is ready")
        addresses = json.loads((data / "addresses.json").read_text())
        credentials = grpc.ssl_channel_credentials((data / "ca" / "ca.pem").read_bytes())
        async with (
            aiohttp.ClientSession() as http,
            grpc.aio.secure_channel(addresses["operator"], credentials) as channel,
        ):
            key = (data / "operator.api-key").read_text().strip()
            yield Plane(data=data, addresses=addresses, key=key, http=http, operator=channel)
    finally:
        stop.set()
        await server
