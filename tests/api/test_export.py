"""Exports over both transports: the same rows, streamed, for whoever may see them; cut short where they fail."""

import asyncio
import json
import sqlite3
from contextlib import closing
from typing import Any

import aiohttp
import grpc
import pytest

from control_plane.api import export
from shared.pb.variantd.operator.v1 import operator_pb2 as pb
from shared.pb.variantd.operator.v1 import operator_pb2_grpc as rpc
from tests.api.test_tenancy import key_of_another_project
from tests.support.plane import Plane
from tests.support.waiting import PATIENCE, eventually

AT = "/v1/experiments/tone"
DRAFT = {
    "name": "Tone",
    "targetFile": "soul.md",
    "variants": [
        {"name": "A", "content": "a", "weight": 50, "isControl": True},
        {"name": "B", "content": "b", "weight": 50},
    ],
    "participantIds": ["p", "q"],
    "exposureCriteria": {"settleSeconds": 0},
}


async def running(plane: Plane, events: int) -> list[str]:
    """A running experiment of which so many events were reported; their ids."""
    await plane.made("/v1/experiments", DRAFT)
    await plane.made(f"{AT}/start", None)
    ids = [f"e{number}" for number in range(events)]
    for start in range(0, events, 1_000):
        batch = [
            {
                "kind": "impression",
                "participantId": "p" if number % 3 else "q",
                "eventId": f"e{number}",
                "subject": f"chat {number}",
                "value": number / 4,
                "properties": {"number": number, "text": "ä\n"},
            }
            for number in range(start, min(events, start + 1_000))
        ]
        await plane.made("/v1/events:batch", {"events": batch})
    return ids


async def lines(plane: Plane, query: str = "", *, key: str | None = None) -> list[str]:
    """The lines that REST answers."""
    answer = await plane.rest("GET", f"{AT}/export{query}", key=key)
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.body == "" or answer.body.endswith("\n")
    return str(answer.body).splitlines()


async def rows(plane: Plane, **fields: str) -> list[str]:
    """The rows that gRPC answers."""
    stub: Any = rpc.EventServiceStub(plane.operator)  # type: ignore[no-untyped-call]
    call = stub.ExportEvents(
        pb.ExportEventsRequest(**fields), metadata=[("authorization", f"Bearer {plane.key}")]
    )
    return [row async for message in call for row in message.rows]


async def test_every_event_is_there_once_on_both_transports(plane: Plane) -> None:
    """Over several pages; line by line the same; exact values, subjects and properties."""
    ids = await running(plane, 2_345)
    found = await lines(plane)
    events = {item["eventId"]: item for item in map(json.loads, found)}
    assert (len(found), set(events)) == (2_345, set(ids))
    assert events["e7"]["value"] == 1.75
    assert events["e7"]["properties"] == {"number": 7, "text": "ä\n"}
    assert (events["e7"]["subject"], events["e7"]["participantId"]) == ("chat 7", "p")
    assert (events["e7"]["assigned"], events["e7"]["delivered"]) == ("counted", "unknown_content")
    assert await rows(plane, id="tone") == found
    tallies = [json.loads(line) for line in await lines(plane, "?what=tallies")]
    assert sum(item["assignedCount"] for item in tallies) == 2_345
    assert await rows(plane, id="tone", what="assignments") == await lines(plane, "?what=assignments")


async def test_subjects_and_properties_need_a_scope(plane: Plane) -> None:
    """A key without `content:read` gets every row, and null in their place."""
    await running(plane, 3)
    made = await plane.made("/v1/api-keys", {"name": "r", "scopes": ["experiment:read"]})
    events = [json.loads(line) for line in await lines(plane, key=made["secret"])]
    assert len(events) == 3
    assert {(item["subject"], item["properties"]) for item in events} == {(None, None)}
    other = await plane.made("/v1/api-keys", {"name": "f", "scopes": ["fleet:read", "content:read"]})
    assert (await plane.rest("GET", f"{AT}/export", key=other["secret"])).status == 403


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/v1/experiments/none/export", 404, "EXPERIMENT_NOT_FOUND"),
        (f"{AT}/export?what=secrets", 400, "INVALID_FIELDS"),
        (f"{AT}/export?wat=1", 400, "INVALID_FIELDS"),
    ],
)
async def test_what_is_refused_is_refused_before_it_begins(
    plane: Plane, path: str, status: int, reason: str
) -> None:
    """As every request is: a status, a problem, and over gRPC the same."""
    await running(plane, 1)
    answer = await plane.rest("GET", path)
    assert (answer.status, answer.body["reason"]) == (status, reason)
    assert (await plane.rest("GET", path, key="sk_wrong")).status == 401
    if "wat=" not in path:
        what = path.partition("what=")[2]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await rows(plane, id="none" if status == 404 else "tone", what=what)
        assert dict(refused.value.trailing_metadata() or ())["reason"] == reason


async def test_a_head_and_a_compressed_answer(plane: Plane) -> None:
    """HEAD has the type and no row; gzip is there for those who take it, with the same lines inside."""
    await running(plane, 50)
    plain = await lines(plane)
    head = await plane.rest("HEAD", f"{AT}/export")
    assert (head.status, head.headers["Content-Type"], head.body) == (200, "application/x-ndjson", "")
    url = f"http://{plane.addresses['http']}{AT}/export"
    headers = {"Authorization": f"Bearer {plane.key}", "Accept-Encoding": "gzip"}
    async with plane.http.get(url, headers=headers) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert (await response.text()).splitlines() == plain


async def test_an_export_that_fails_has_no_end(plane: Plane) -> None:
    """Whoever stops reading stops the export; what fails afterwards breaks the transfer, and never looks whole."""
    await running(plane, 1)
    path = plane.data / "variantd.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < 100000)"
            " insert into tally (phase_id, variant_id, participant_id, event_name, day)"
            " select phase_id, variant_id, participant_id, 'x', 100000 + i from n, (select * from tally limit 1)"
        )
        database.commit()
    url = f"http://{plane.addresses['http']}{AT}/export?what=tallies"
    headers = {"Authorization": f"Bearer {plane.key}", "Accept-Encoding": "identity"}
    read = 0
    async with plane.http.get(url, headers=headers) as response:
        assert response.status == 200
        read += len(await response.content.readline())
        with closing(sqlite3.connect(path)) as database:
            database.execute("update experiment set key = 'other'")
            database.commit()
        with pytest.raises(aiohttp.ClientPayloadError):
            async for line in response.content:
                read += len(line)
    assert read < 100_000 * 200


async def test_who_reads_too_late_is_told_so(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the very first message was not read in time: it comes, and after it the end."""
    monkeypatch.setattr(export, "WRITE_SECONDS", 0.5)
    await running(plane, 1_000)
    trusted = grpc.ssl_channel_credentials((plane.data / "ca" / "ca.pem").read_bytes())
    few = [
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 5),
    ]  # what may be sent before anything is read
    async with grpc.aio.secure_channel(plane.addresses["operator"], trusted, options=few) as channel:
        stub: Any = rpc.EventServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.ExportEvents(
            pb.ExportEventsRequest(id="tone"), metadata=[("authorization", f"Bearer {plane.key}")]
        )
        await eventually(lambda: "export.cut" in caplog.text)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(grpc.aio.AioRpcError) as late:
                async for message in call:
                    assert len(message.rows) == 1_000
    assert dict(late.value.trailing_metadata() or ())["reason"] == "SLOW_CONSUMER"


async def test_nobody_reaches_beyond_what_the_key_may_see(plane: Plane) -> None:
    """A key limited to labels finds only what carries them; a key of another project finds nothing."""
    await running(plane, 2)
    within = {"name": "x", "scopes": ["admin"], "labels": {"team": "x"}}
    limited = (await plane.made("/v1/api-keys", within))["secret"]
    foreign = await key_of_another_project(plane)
    for key in (limited, foreign):
        answer = await plane.rest("GET", f"{AT}/export", key=key)
        assert (answer.status, answer.body["reason"]) == (404, "EXPERIMENT_NOT_FOUND")
    assert (await plane.rest("PATCH", AT, {"labels": {"team": "x"}})).status == 200
    assert len(await lines(plane, key=limited)) == 2
    assert (await plane.rest("GET", f"{AT}/export", key=foreign)).status == 404
