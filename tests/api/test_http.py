"""What HTTP has for every route alike: tags and conditions, request ids, bounds, bytes saved, who may call."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from control_plane import app
from control_plane.api import bodies, conditions, exchange
from control_plane.api.examples import EXAMPLES
from control_plane.api.operations import OPERATIONS
from control_plane.config import load
from shared.clock import SystemClock
from shared.errors import Invalid
from shared.pb.variantd.operator.v1 import operator_pb2 as pb
from tests.support.clock import FakeClock
from tests.support.plane import Plane, running_plane
from tests.support.waiting import PATIENCE

BY_RPC = {operation.rpc: operation for operation in OPERATIONS}
EXPERIMENT = EXAMPLES["ExperimentService.CreateExperiment"]


@pytest.fixture
async def at(plane: Plane) -> str:
    """The path of an experiment in draft."""
    await plane.made(
        BY_RPC["FleetService.CreateParticipant"].path, EXAMPLES["FleetService.CreateParticipant"]
    )
    made = await plane.made("/v1/experiments", EXPERIMENT)
    return f"/v1/experiments/{made['id']}"


async def audited(plane: Plane) -> int:
    """How many changes are on record."""
    return len((await plane.rest("GET", "/v1/audit-log?limit=100")).body["entities"])


# -- tags and conditions


async def test_a_resource_is_changed_only_as_it_was_seen(plane: Plane, at: str) -> None:
    """With the tag of what was read a change is made, once; then the tag is old, and nothing happens by it."""
    seen = (await plane.rest("GET", at)).headers["ETag"]
    assert not seen.startswith("W/")
    changed = await plane.rest("PATCH", at, {"name": "Mine"}, If_Match=seen)
    assert changed.status == 200
    before = await audited(plane)
    for method, path, body in (
        ("PATCH", at, {"name": "Yours"}),
        ("DELETE", at, None),
        ("POST", f"{at}/start", None),
        ("PATCH", f"{at}/status", {"status": "running"}),
        ("POST", f"{at}/variants", {"name": "Another"}),
    ):
        refused = await plane.rest(method, path, body, If_Match=seen)
        assert (refused.status, refused.body["status"], refused.body["reason"]) == (412, 412, "STALE"), path
    assert await audited(plane) == before
    now = await plane.rest("GET", at)
    assert (now.body["name"], now.body["status"]) == ("Mine", "draft")
    assert refused.body["etag"] == now.headers["ETag"].replace("-gzip", "")
    assert changed.headers["ETag"].replace("-gzip", "") == refused.body["etag"]
    assert (await plane.rest("POST", f"{at}/start", If_Match=now.headers["ETag"])).status == 200


async def test_of_two_who_saw_the_same_one_changes_it(plane: Plane, at: str) -> None:
    """Sent at once, one of many changes goes through: what is compared is read where it is changed."""
    seen = (await plane.rest("GET", at)).headers["ETag"]
    sent = [plane.rest("PATCH", at, {"name": f"Name {index}"}, If_Match=seen) for index in range(8)]
    assert sorted(answer.status for answer in await asyncio.gather(*sent)) == [200, *[412] * 7]


async def test_what_tags_a_condition_takes(plane: Plane, at: str) -> None:
    """One of several tags and `*` are enough; a weak tag, another one and what is no tag are not."""
    for text, status in (
        ("*", 200),
        ('"other", TAG', 200),
        ("W/TAG", 412),
        ('"other"', 412),
        ('TAG"', 412),
        ("TAG-", 412),
        ("", 412),
    ):
        seen = (await plane.rest("GET", at)).headers["ETag"]
        answer = await plane.rest("PATCH", at, {}, If_Match=text.replace("TAG", seen))
        assert answer.status == status, text
    assert (await plane.rest("PATCH", "/v1/experiments/none", {}, If_Match="*")).status == 404
    anywhere = await plane.rest("POST", "/v1/participants", {"id": "bot-9"}, If_Match="*")
    assert (anywhere.status, anywhere.body["reason"]) == (412, "STALE")
    assert (await plane.rest("GET", "/v1/participants/bot-9")).status == 404


async def test_a_repeated_request_is_answered_whatever_changed(plane: Plane, at: str) -> None:
    """The tag that a request has made old does not keep its repetition from its answer."""
    seen = (await plane.rest("GET", at)).headers["ETag"]
    for _ in range(2):
        answer = await plane.rest("PATCH", at, {"name": "Mine"}, If_Match=seen, Idempotency_Key="k")
        assert (answer.status, answer.body["name"]) == (200, "Mine")


async def test_what_is_known_is_not_sent_again(plane: Plane, at: str) -> None:
    """304 without a body while nothing changed, compressed or not, and the whole of it afterwards."""
    for path in (at, "/v1/fleet", "/v1/participants/" + EXPERIMENT["participantIds"][0]):
        first = await plane.rest("GET", path)
        for known in (first.headers["ETag"], "W/" + first.headers["ETag"], "*"):
            again = await plane.rest("GET", path, If_None_Match=known)
            assert (again.status, again.body) == (304, "")
            assert again.headers["ETag"] == first.headers["ETag"]
            assert again.headers["X-Request-Id"]
    tag = (await plane.rest("GET", at)).headers["ETag"]
    await plane.rest("PATCH", at, {"name": "New"})
    changed = await plane.rest("GET", at, If_None_Match=tag)
    assert (changed.status, changed.body["name"]) == (200, "New")
    assert changed.headers["ETag"] != tag


async def test_conditions_are_the_same_over_grpc(plane: Plane, at: str) -> None:
    """`etag` of an answer and `if-match` of a request are metadata, and the tags are those of REST."""
    key = ("authorization", f"Bearer {plane.key}")
    get = plane.call("ExperimentService.GetExperiment")(
        pb.GetExperimentRequest(id=at.rpartition("/")[2]), metadata=[key]
    )
    await get
    tag = dict(await get.trailing_metadata() or ())["etag"]
    assert tag == (await plane.rest("GET", at)).headers["ETag"].replace("-gzip", "")
    request = pb.UpdateExperimentRequest(id=at.rpartition("/")[2], name="Mine")
    change = plane.call("ExperimentService.UpdateExperiment")
    done = change(request, metadata=[key, ("if-match", tag)])
    await done
    after = dict(await done.trailing_metadata() or ())["etag"]
    assert after == (await plane.rest("GET", at)).headers["ETag"].replace("-gzip", "") != tag
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await change(request, metadata=[key, ("if-match", tag)])
    assert refused.value.code() is grpc.StatusCode.ABORTED
    assert dict(refused.value.trailing_metadata() or ())["reason"] == "STALE"


def test_every_change_knows_what_it_is_about() -> None:
    """Only what adds to a collection of the project, or acts on nothing shown, has no resource to compare."""
    none = {o.rpc.partition(".")[2] for o in OPERATIONS if o.changes and conditions.subject(o) is None}
    assert {name for name in none if not name.startswith("Create")} == {"ReportServerEvents"}
    for (
        operation
    ) in OPERATIONS:  # a key limited to labels learns nothing by a condition that it could not read
        found = conditions.subject(operation) if operation.changes and operation.labelled else None
        assert found is None or found.labelled, operation.rpc
    about = {o.rpc.partition(".")[2]: conditions.subject(o) for o in OPERATIONS if o.changes}
    paths = {name: found.path for name, found in about.items() if found}
    assert paths["StartExperiment"] == paths["UnforceAssignment"] == "/v1/experiments/{id}"
    assert paths["DeleteVariant"] == "/v1/experiments/{id}/variants/{variantId}"
    assert (paths["BanAgent"], paths["FreezeFleet"]) == ("/v1/agents/{id}", "/v1/fleet")


# -- request ids


def lines_of(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """The lines that the log has of an event."""
    lines = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [line for line in lines if line["event"] == event]


async def test_a_request_keeps_its_id(plane: Plane, caplog: pytest.LogCaptureFixture) -> None:
    """The caller's id is in the answer, in a problem, and in every line that the log has of the request."""
    fine = await plane.rest("GET", "/v1/experiments", X_Request_Id="mine-1")
    assert fine.headers["X-Request-Id"] == "mine-1"
    for path in ("/v1/experiments/none", "/v1/nothing", "/healthz/no"):
        problem = await plane.rest("GET", path, X_Request_Id="mine-2")
        assert problem.headers["X-Request-Id"] == problem.body["requestId"] == "mine-2"
    caplog.clear()
    await plane.rest("GET", "/v1/experiments", key="sk_wrong", X_Request_Id="mine-3")
    assert [line["request_id"] for line in lines_of(caplog, "request.refused")] == ["mine-3"]


@pytest.mark.parametrize("given", [None, "", "has space", "x" * 129, "-x", "ü", "a;b"])
async def test_an_id_is_made_where_none_is_usable(plane: Plane, given: str | None) -> None:
    """What could not be told again is not repeated; two requests do not get the same."""
    headers = {} if given is None else {"X_Request_Id": given}
    made = [(await plane.rest("GET", "/healthz", **headers)).headers["X-Request-Id"] for _ in range(2)]
    assert len({given, *made}) == 3
    assert all(len(name) == 36 for name in made)


async def test_a_call_keeps_its_id(plane: Plane, caplog: pytest.LogCaptureFixture) -> None:
    """Over gRPC the id is metadata of the request and trailing metadata of its answer or refusal."""
    call = plane.call("ExperimentService.ListExperiments")
    key = ("authorization", f"Bearer {plane.key}")
    fine = call(pb.ListExperimentsRequest(), metadata=[key, ("x-request-id", "mine-1")])
    await fine
    assert dict(await fine.trailing_metadata() or ())["x-request-id"] == "mine-1"
    caplog.clear()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(pb.ListExperimentsRequest(), metadata=[("x-request-id", "mine-2")])
    assert dict(refused.value.trailing_metadata() or ())["x-request-id"] == "mine-2"
    assert [line["request_id"] for line in lines_of(caplog, "request.refused")] == ["mine-2"]
    unnamed = call(pb.ListExperimentsRequest(), metadata=[key])
    await unnamed
    assert len(dict(await unnamed.trailing_metadata() or ())["x-request-id"]) == 36


# -- bodies


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Plane]:
    """A control plane that takes small bodies."""
    async with running_plane(tmp_path / "small", http_max_body=4_096) as running:
        yield running


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    """The body in pieces, so that nobody knows its length."""
    for start in range(0, len(body), 1_000):
        yield body[start : start + 1_000]


async def posted(plane: Plane, data: Any, **headers: str) -> tuple[int, Any]:
    """What POST of an experiment comes to with these very bytes."""
    named = {"Authorization": f"Bearer {plane.key}", "Content-Type": "application/json"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"http://{plane.addresses['http']}/v1/experiments"
    async with plane.http.post(url, data=data, headers=named) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_a_body_has_an_end(small: Plane) -> None:
    """Announced, in chunks or compressed: what is longer than allowed is 413, what is as long is read."""
    fits = json.dumps({"name": "Tone"}).encode().ljust(4_096)
    status, body = await posted(small, chunks(fits))
    assert status == 201, body
    for data, headers in (
        (fits + b" ", {}),
        (chunks(fits + b" "), {}),
        (gzip.compress(b" " * 1_000_000), {"Content_Encoding": "gzip"}),
    ):
        status, body = await posted(small, data, **headers)
        assert (status, body["status"], body["reason"]) == (413, 413, "BODY_TOO_LARGE")
    assert len((await small.rest("GET", "/v1/experiments")).body["entities"]) == 1


async def test_who_is_not_known_is_refused_before_a_body_is_read(small: Plane) -> None:
    """A long announcement without a key is 401, not 413: nothing was waited for."""
    host, port = small.addresses["http"].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(b"POST /v1/experiments HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("header", "status"), [(b"Authorization: Bearer sk_\xff", 401), (b"Idempotency-Key: \xff", 400)]
)
async def test_a_header_of_any_bytes_is_refused(plane: Plane, header: bytes, status: int) -> None:
    """What is no UTF-8 in a header is a wrong key, and no failure of the server."""
    host, port = plane.addresses["http"].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    key = b"" if status == 401 else f"Authorization: Bearer {plane.key}\r\n".encode()
    try:
        writer.write(
            b"POST /v1/fleet:freeze HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n" + key + header + b"\r\n\r\n"
        )
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readline()).startswith(f"HTTP/1.1 {status} ".encode())
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "header",
    [
        b"Authorization: Bearer sk_secret\0",
        b"Authorization : Bearer sk_secret",
        b"a: sk_secret" + b"x" * 9_000,
    ],
)
async def test_what_is_no_http_is_logged_without_it(
    plane: Plane, caplog: pytest.LogCaptureFixture, header: bytes
) -> None:
    """A key in a header that cannot be read is in no log; it is a line of the peer's mistake."""
    host, port = plane.addresses["http"].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(b"GET /v1/agents HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readline()).startswith(b"HTTP/1.0 400 ")
    finally:
        writer.close()
        await writer.wait_closed()
    assert [record.levelname for record in caplog.records if record.name == "aiohttp.server"] == ["WARNING"]
    assert "sk_secret" not in caplog.text


async def test_a_body_is_json_and_says_so(plane: Plane) -> None:
    """415 for every other type and for none; a call without a body needs no type."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""):
        status, body = await posted(plane, b'{"name": "Tone"}', Content_Type=kind)
        assert (status, body["status"], body["reason"]) == (415, 415, "UNSUPPORTED_MEDIA_TYPE"), kind
    status, _ = await posted(plane, b'{"name": "Tone"}', Content_Type="application/json; charset=utf-8")
    assert status == 201
    assert (await plane.rest("POST", "/v1/experiments/tone/archive")).status == 200


async def test_a_body_that_is_not_as_it_is_encoded_is_refused(plane: Plane) -> None:
    """What says it is compressed and is not, is the caller's mistake and no failure of the server."""
    status, body = await posted(plane, b'{"name": "Tone"}', Content_Encoding="gzip")
    assert (status, body["reason"]) == (400, "NOT_JSON")


# -- answers


async def raw(plane: Plane, path: str, **headers: str) -> tuple[dict[str, str], bytes]:
    """Headers and bytes of an answer as they were sent."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    host, port = plane.addresses["http"].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n".encode())
        async with asyncio.timeout(PATIENCE):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    pairs = (line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    return {name.lower(): value for name, value in pairs}, body


async def test_long_answers_are_compressed_for_who_reads_that(plane: Plane) -> None:
    """gzip where it is accepted and worth it; the bytes are the same again, and caches are told."""
    plain, body = await raw(plane, "/openapi.json", Accept_Encoding="identity")
    assert "content-encoding" not in plain
    packed, less = await raw(plane, "/openapi.json", Accept_Encoding="br, gzip;q=0.5")
    assert packed["content-encoding"] == "gzip"
    assert plain["vary"] == packed["vary"] == "Accept-Encoding"
    assert gzip.decompress(less) == body
    assert len(less) * 5 < len(body)
    short, _ = await raw(plane, "/healthz", Accept_Encoding="gzip")
    assert "content-encoding" not in short


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True),
        ("GZIP;q=1.0, br", True),
        ("*", True),
        ("br, *;q=0.1", True),
        ("", False),
        ("br", False),
        ("gzip;q=0", False),
        ("*, gzip; q=0.000", False),
        ("x-gzipped", False),
    ],
)
def test_who_accepts_gzip(header: str, accepted: bool) -> None:
    """The quality of the exact name decides, else that of everything."""
    assert exchange.accepts_gzip(header) is accepted


async def test_the_same_in_other_bytes_has_another_tag(plane: Plane, at: str) -> None:
    """Strong tags of compressed and plain answers differ; a condition takes either."""
    key = f"Bearer {plane.key}"
    plain, _ = await raw(plane, at, Authorization=key)
    packed, _ = await raw(plane, at, Authorization=key, Accept_Encoding="gzip")
    assert (packed["content-encoding"], packed["etag"]) == ("gzip", plain["etag"][:-1] + '-gzip"')
    for tag in (plain["etag"], packed["etag"]):
        assert (await plane.rest("GET", at, If_None_Match=tag)).status == 304
    assert (await plane.rest("PATCH", at, {}, If_Match=packed["etag"])).status == 200
    plain, _ = await raw(plane, at, Authorization=key)
    assert (await plane.rest("PATCH", at, {}, If_Match=plain["etag"])).status == 200


async def test_head_is_get_without_its_body(plane: Plane, at: str) -> None:
    """On every route that reads: the same headers, no body; on others 405 that names what there is."""
    for path in (at, "/v1/experiments", f"{at}/assignments", "/healthz", "/openapi.json"):
        whole, head = await plane.rest("GET", path), await plane.rest("HEAD", path)
        assert (head.status, head.body) == (200, "")
        for name in ("Content-Type", "ETag", "Content-Encoding"):
            assert head.headers.get(name) == whole.headers.get(name)
    stream = await plane.rest("HEAD", "/v1/watch")
    assert (stream.status, stream.headers["Content-Type"]) == (200, "text/event-stream")
    assert (await plane.rest("HEAD", at, key="")).status == 401
    assert (await plane.rest("HEAD", f"{at}/start")).headers["Allow"] == "POST"
    refused = await plane.rest("PUT", at, {})
    assert refused.status == 405
    assert set(refused.headers["Allow"].split(",")) == {"DELETE", "GET", "HEAD", "PATCH"}


async def test_a_list_tells_how_long_its_pages_are(plane: Plane, at: str) -> None:
    """The limit in force is in the answer, clamped; where everything is in one page, it is null."""
    for asked, told in (("", 25), ("?limit=7", 7), ("?limit=0", 1), ("?limit=-3", 1), ("?limit=999", 100)):
        for path in ("/v1/experiments", "/v1/participants", "/v1/audit-log", f"{at}/assignments"):
            answer = await plane.rest("GET", path + asked)
            assert answer.body["pagination"]["limit"] == told, path
    assert (await plane.rest("GET", f"{at}/variants")).body["pagination"]["limit"] is None


# -- who else's pages


ORIGIN = "https://console.example.org"


async def test_pages_of_others_read_nothing_unless_told(plane: Plane) -> None:
    """Without the setting no answer has a header of CORS, and a browser that asks first is refused."""
    asks = {"Origin": ORIGIN, "Access_Control_Request_Method": "GET"}
    for method, status in (("GET", 200), ("OPTIONS", 405)):
        answer = await plane.rest(method, "/v1/experiments", **asks)
        assert answer.status == status
        assert not [name for name in answer.headers if name.startswith("Access-Control")]


async def test_pages_of_named_origins_may_call(tmp_path: Path) -> None:
    """Exactly the named origin may ask first and read, refusals too; every other one as if there were none."""
    async with running_plane(tmp_path / "data", cors_origins=(ORIGIN,)) as plane:
        first = await plane.rest(
            "OPTIONS", "/v1/experiments", key="", Origin=ORIGIN, Access_Control_Request_Method="PATCH"
        )
        assert first.status == 204
        assert first.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "PATCH" in first.headers["Access-Control-Allow-Methods"]
        assert "If-Match" in first.headers["Access-Control-Allow-Headers"]
        for key, status in ((plane.key, 200), ("", 401)):
            answer = await plane.rest("GET", "/v1/experiments", key=key, Origin=ORIGIN)
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (status, ORIGIN)
            assert "ETag" in answer.headers["Access-Control-Expose-Headers"]
            assert "Access-Control-Allow-Credentials" not in answer.headers
            assert "Origin" in answer.headers["Vary"]
        for other in ("https://example.org", ORIGIN + ".evil.org", "http://console.example.org", "null"):
            for method in ("GET", "OPTIONS"):
                answer = await plane.rest(
                    method, "/v1/experiments", Origin=other, Access_Control_Request_Method="GET"
                )
                assert "Access-Control-Allow-Origin" not in answer.headers
                assert "Origin" in answer.headers["Vary"]


def test_an_origin_is_written_as_browsers_send_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no browser sends would never match, so it is refused by name; the environment has commas."""
    monkeypatch.setenv("VARIANTD_CORS_ORIGINS", f"{ORIGIN}, http://localhost:3000")
    assert load(None, {}).cors_origins == (ORIGIN, "http://localhost:3000")
    for wrong in ("*", "null", ORIGIN + "/", ORIGIN + ":443", ORIGIN.upper(), "console.example.org"):
        with pytest.raises(Invalid, match="cors_origins"):
            load(None, {"cors_origins": wrong})


# -- rates


async def test_a_key_sends_as_much_as_it_may(tmp_path: Path) -> None:
    """One bucket for both transports; past it 429 with the seconds to wait, and not for another key."""
    clock = FakeClock(now=SystemClock().now())  # certificates are of the present
    async with running_plane(tmp_path / "data", clock=clock, rate_limit=0.5, rate_burst=4) as plane:
        other = (await plane.made("/v1/api-keys", {"name": "other"}))["secret"]
        assert (await plane.rest("GET", "/v1/experiments")).status == 200
        await plane.grpc("ExperimentService.ListExperiments")
        assert (await plane.rest("GET", "/v1/experiments")).status == 200
        refused = await plane.rest("GET", "/v1/experiments")
        assert (refused.status, refused.body["reason"]) == (429, "RATE_LIMITED")
        assert (refused.headers["Retry-After"], refused.body["retryAfterSeconds"]) == ("2", 2)
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await plane.grpc("ExperimentService.ListExperiments")
        assert told.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing = dict(told.value.trailing_metadata() or ())
        assert (trailing["reason"], trailing["retry-after"]) == ("RATE_LIMITED", "2")
        assert (await plane.rest("GET", "/v1/watch")).status == 429
        assert (await plane.rest("GET", "/v1/experiments", key=other)).status == 200
        assert (await plane.rest("GET", "/healthz", key="")).status == 200
        await clock.advance(2.0)
        assert (await plane.rest("GET", "/v1/experiments")).status == 200
        assert (await plane.rest("GET", "/v1/experiments")).status == 429


async def test_nothing_holds_a_key_back_unless_told(tmp_path: Path) -> None:
    """Without the setting a key may send more than any burst while no time passes."""
    async with running_plane(tmp_path / "data", clock=FakeClock()) as plane:
        for _ in range(150):
            assert (await plane.rest("HEAD", "/v1/fleet")).status == 200


async def test_who_says_nothing_or_half_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection without a request is closed in time, and a body that does not come is answered."""
    monkeypatch.setattr(app, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.3)
    async with running_plane(tmp_path / "data") as plane, asyncio.timeout(PATIENCE):
        host, _, port = plane.addresses["http"].rpartition(":")
        head = f"POST /v1/experiments HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {plane.key}\r\n"
        for said in ("", head):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(said.encode())
            assert await reader.read() == b""
            writer.close()
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{".encode())
        answer = await reader.readuntil(b"}")
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"DEADLINE" in answer
        writer.close()
