"""Streams of what changes: the same on both transports, cut where they are not read, over when the server is."""

import asyncio
import json
import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from control_plane.api import watch
from control_plane.api.codec import from_message, to_message
from control_plane.api.operations import WATCHES
from shared.pb.variantd.operator.v1 import operator_pb2
from tests.support.plane import Plane, running_plane
from tests.support.waiting import PATIENCE, eventually

BY_NAME = {item.name: item for item in WATCHES}


class Events:
    """A stream, event by event, as its JSON."""

    def __init__(self, read: AsyncIterator[dict[str, Any]]) -> None:
        self._read = read

    async def next(self) -> dict[str, Any]:
        """The next event."""
        async with asyncio.timeout(PATIENCE):
            return await anext(self._read)

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """Events up to and with the first of that type."""
        found = [await self.next()]
        while found[-1]["type"] != kind:
            found.append(await self.next())
        return found


@asynccontextmanager
async def by_rest(
    plane: Plane, kinds: str, *, key: str | None = None, **headers: str
) -> AsyncIterator[Events]:
    """Server-sent events."""
    named = {"Authorization": f"Bearer {key or plane.key}", **headers}
    url = f"http://{plane.addresses['http']}/v1/watch?kinds={kinds}"
    async with plane.http.get(url, headers=named, timeout=aiohttp.ClientTimeout()) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield Events(_events(response.content))


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    async for line in content:
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))


@asynccontextmanager
async def by_grpc(plane: Plane, name: str, *, key: str | None = None) -> AsyncIterator[Events]:
    """The server stream of its own."""
    call = called(plane, name, key=key)
    try:
        yield Events(from_message(message) async for message in call)
    finally:
        call.cancel()


def called(plane: Plane, name: str, *, key: str | None = None) -> Any:
    """The open call of a watch."""
    service, method = BY_NAME[name].rpc.split(".")
    found = operator_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    open_call = plane.operator.unary_stream(
        f"/{found.containing_service.full_name}/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(found.output_type).FromString,
    )
    return open_call(
        GetMessageClass(found.input_type)(), metadata=[("authorization", f"Bearer {key or plane.key}")]
    )


def as_grpc(name: str, event: dict[str, Any]) -> dict[str, Any]:
    """The event of REST as the message shows it."""
    service, method = BY_NAME[name].rpc.split(".")
    kind = operator_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method].output_type
    plain = {key: value for key, value in event.items() if key != "kind"}
    return from_message(to_message(plain, GetMessageClass(kind)))


async def live(plane: Plane) -> None:
    """An experiment is started."""
    variants = [
        {"name": "A", "content": "a", "weight": 50, "isControl": True},
        {"name": "B", "content": "b", "weight": 50},
    ]
    values = {
        "name": "Tone",
        "key": "tone",
        "targetFile": "a.md",
        "variants": variants,
        "participantIds": ["bot-1"],
    }
    await plane.made("/v1/experiments", values)
    await plane.made("/v1/experiments/tone/start", None)


@pytest.mark.parametrize("name", sorted(BY_NAME))
async def test_both_transports_tell_the_same(plane: Plane, name: str) -> None:
    """Everything first, then what changes; each event of the one is the event of the other."""
    await live(plane)
    async with by_rest(plane, name) as shown, by_grpc(plane, name) as told:
        listed, also = await shown.until("listed"), await told.until("listed")
        assert [as_grpc(name, event) for event in listed] == also
        assert [event["type"] for event in also] == ["reset", "present", "listed"]
        if name == "experiments":
            await plane.rest("PATCH", "/v1/experiments/tone", {"description": "new"})
        elif name == "deployments":
            await plane.made("/v1/experiments/tone/complete", {"then": "restore"})
        else:
            await plane.rest("PATCH", "/v1/participants/bot-1", {"labels": {"a": "b"}})
        changed, removed = await shown.next(), {}
        assert as_grpc(name, changed) == await told.next()
        assert changed["type"] == "changed"
        if name == "deployments":
            removed = await shown.next()
            assert as_grpc(name, removed) == await told.next()
            assert (removed["type"], removed["removedId"]) == ("removed", also[1]["deployment"]["id"])


async def test_what_is_archived_or_deleted_is_removed(plane: Plane) -> None:
    """What no list shows any more is told by its id."""
    made = await plane.made("/v1/experiments", {"name": "Tone", "key": "tone"})
    async with by_rest(plane, "experiments") as events:
        await events.until("listed")
        await plane.made("/v1/experiments/tone/archive", None)
        assert (await events.next()) == {"kind": "experiments", "type": "removed", "removedId": made["id"]}
        await plane.made("/v1/experiments/tone/unarchive", None)
        assert (await events.next())["experiment"]["id"] == made["id"]
        await plane.rest("DELETE", "/v1/experiments/tone")
        assert (await events.next())["type"] == "removed"


async def test_a_stream_that_is_taken_up_again_begins_anew(plane: Plane) -> None:
    """Last-Event-ID is answered by reset and everything: nothing of the time between can be missing."""
    await plane.made("/v1/participants", {"id": "bot-1"})
    async with by_rest(plane, "fleet") as events:
        await events.until("listed")
    await plane.made("/v1/participants", {"id": "bot-2"})
    async with by_rest(plane, "fleet", **{"Last-Event-ID": "7"}) as events:
        again = await events.until("listed")
    assert [event.get("participant", {}).get("id") for event in again] == [None, "bot-1", "bot-2", None]


async def test_many_resources_come_in_pages(plane: Plane) -> None:
    """More than one page of them, each once."""
    for number in range(130):
        await plane.made("/v1/participants", {"id": f"bot-{number:03}"})
    async with by_grpc(plane, "fleet") as events:
        listed = await events.until("listed")
    ids = [event["participant"]["id"] for event in listed if "participant" in event]
    assert ids == [f"bot-{number:03}" for number in range(130)]


async def test_scopes_are_those_of_reading(plane: Plane) -> None:
    """A key sees the kinds it may read: all of them by default, a refusal where one is named that it may not."""
    reader = await plane.made("/v1/api-keys", {"name": "reader", "scopes": ["fleet:read"]})
    async with by_rest(plane, "", key=reader["secret"]) as events:
        assert {event["kind"] for event in await events.until("listed")} == {"fleet"}
    async with by_rest(plane, "") as events:
        started = [await events.next() for _ in WATCHES]
        assert {(event["kind"], event["type"]) for event in started} == {(name, "reset") for name in BY_NAME}
    refused = await plane.rest("GET", "/v1/watch?kinds=experiments", key=reader["secret"])
    assert (refused.status, refused.body["reason"]) == (403, "MISSING_SCOPE")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await called(plane, "experiments", key=reader["secret"]).read()
    assert failed.value.code() is grpc.StatusCode.PERMISSION_DENIED
    writer = await plane.made("/v1/api-keys", {"name": "writer", "scopes": ["event:write"]})
    assert (await plane.rest("GET", "/v1/watch", key=writer["secret"])).status == 403
    assert (await plane.rest("GET", "/v1/watch", key="sk_wrong")).status == 401
    for query in ("kinds=everything", "wat=1"):
        assert (await plane.rest("GET", f"/v1/watch?{query}")).status == 400


async def test_too_many_streams_are_refused(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than there may be is told to poll; once one is closed there is room again."""
    monkeypatch.setattr(watch, "MAX_STREAMS", 1)
    async with by_rest(plane, "fleet") as events:
        await events.next()
        answer = await plane.rest("GET", "/v1/watch")
        assert (answer.status, answer.body["reason"]) == (429, "TOO_MANY_STREAMS")

    async def room() -> bool:
        async with by_rest(plane, "fleet") as again:
            return (await again.next())["type"] == "reset"

    await eventually(room)


async def test_who_does_not_read_is_cut(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept for a consumer that does not read: its connection ends, and others go on."""
    monkeypatch.setattr(watch, "WRITE_SECONDS", 0.2)
    for number in range(40):
        metadata = {"x": "y" * 250_000}
        await plane.made("/v1/experiments", {"name": f"E{number}", "metadata": metadata})
    host, _, port = plane.addresses["http"].rpartition(":")
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(lazy, (host, int(port)))
        asked = f"GET /v1/watch?kinds=experiments HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {plane.key}\r\n\r\n"
        await loop.sock_sendall(lazy, asked.encode())

        look = select.poll()
        look.register(lazy, select.POLLRDHUP)
        await eventually(lambda: look.poll(0), what="the connection is cut")
    finally:
        lazy.close()
    async with by_rest(plane, "fleet") as events:
        assert (await events.next())["type"] == "reset"


async def test_who_does_not_read_over_grpc_takes_nobodys_place(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end waits behind what it does not read; its place among the streams does not."""
    monkeypatch.setattr(watch, "WRITE_SECONDS", 0.2)
    monkeypatch.setattr(watch, "MAX_STREAMS", 1)
    for number in range(40):
        await plane.made("/v1/experiments", {"name": f"E{number}", "metadata": {"x": "y" * 250_000}})
    lazy = called(plane, "experiments")
    try:
        assert await lazy.read() is not grpc.aio.EOF
        refused = await plane.rest("GET", "/v1/watch?kinds=fleet")
        assert (refused.status, refused.body["reason"]) == (429, "TOO_MANY_STREAMS")

        async def room() -> bool:
            url = f"http://{plane.addresses['http']}/v1/watch?kinds=fleet"
            async with plane.http.get(url, headers={"Authorization": f"Bearer {plane.key}"}) as answer:
                return answer.status == 200

        await eventually(room, what="there is room for a stream")
        assert await _to_the_end(lazy) == ("RESOURCE_EXHAUSTED", "SLOW_CONSUMER")
    finally:
        lazy.cancel()


async def test_streams_end_when_the_server_stops(tmp_path: Path) -> None:
    """A stop is told with its reason on both, and waits for no consumer."""
    async with aiohttp.ClientSession() as http:
        async with running_plane(tmp_path / "data") as plane:
            # The fixture's own clients leave before the server stops.
            trusted = grpc.ssl_channel_credentials((plane.data / "ca" / "ca.pem").read_bytes())
            channel = grpc.aio.secure_channel(plane.addresses["operator"], trusted)
            call = called(replace(plane, operator=channel), "fleet")
            await call.read()
            url = f"http://{plane.addresses['http']}/v1/watch?kinds=fleet"
            response = await http.get(url, headers={"Authorization": f"Bearer {plane.key}"})
            await response.content.readline()
            reading = asyncio.create_task(_to_the_end(call))
        assert b'"reason": "STOPPING"' in await response.content.read()
        assert await reading == ("UNAVAILABLE", "STOPPING")
        await channel.close()


async def _to_the_end(call: Any) -> tuple[str, str]:
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name, str(dict(error.trailing_metadata() or ())["reason"])
    raise AssertionError("the stream ended without a reason")
