"""What applications may tell the agent, who may tell it, and what they hear."""

import asyncio
import json
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from agent import callers, local_api
from agent.config import parse
from agent.local_api import LocalApi
from agent.reconciler import Reconciler
from agent.spool import Spool
from shared import wire
from shared.errors import FailedPrecondition, Invalid
from shared.ids import new_id, parse_id
from shared.model import Event, EventKind, Loaded, Offer, OfferAction, OfferedFile, View, digest, show_digest
from shared.moment import SECOND, to_rfc3339
from tests.support.clock import FakeClock
from tests.support.control_plane import in_background
from tests.support.local import Answer, as_user, call
from tests.support.waiting import PATIENCE, eventually

TOKEN = "a-token-of-at-least-16"
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as another user")


class Agent:
    """The local API with a real spool and reconciler behind it."""

    def __init__(self, directory: Path, participants: dict[str, dict[str, Any]], **options: Any) -> None:
        self.clock = FakeClock()
        self.directory, self.socket = directory, directory / "s" / "agent.sock"
        agent = {"local_http": "127.0.0.1:0", "socket": str(self.socket), **options.pop("agent", {})}
        tables = []
        for name, settings in participants.items():
            root = directory / name
            root.mkdir(exist_ok=True)
            tables.append({"id": name, "root": str(root), "targets": ["SOUL.md", "config/*.md"], **settings})
        config = parse({"agent": agent, "participants": tables}, relative_to=directory)
        self.spool = Spool(
            directory / "spool", clock=self.clock, new_id=new_id, max_bytes=options.pop("max_bytes", 1 << 20)
        )
        self.reconciler = Reconciler(
            config=config,
            state_dir=directory / "state",
            clock=self.clock,
            new_id=new_id,
            record_view=self._record,
            fetch=self._fetch,
            on_outcome=lambda outcome: None,
            on_change=lambda: None,
        )
        self.unready: tuple[str, ...] = ()
        self.api = LocalApi(
            config=config,
            spool=self.spool,
            reconciler=self.reconciler,
            status=lambda: {"name": "host-1"},
            metrics=lambda: (b"up 1\n", "text/plain"),
            unready=lambda: self.unready,
            clock=self.clock,
            new_id=new_id,
            **options,
        )
        self.http = ""

    def _record(self, view: View) -> None:
        self.spool.record(view)

    async def _fetch(self, wanted: bytes, size: int) -> bytes:
        raise AssertionError("nothing is fetched here")

    async def post(self, target: str, body: object = None, **options: Any) -> Answer:
        return await call(self.socket, target, body=body, **options)

    async def events(self) -> list[Event]:
        batch = await self.spool.next_batch(1000, 1 << 20)
        bodies = [wire.record_from_bytes(raw).body for raw in batch.records] if batch else []
        return [body for body in bodies if isinstance(body, Event)]


@asynccontextmanager
async def serving(
    directory: Path, participants: dict[str, dict[str, Any]] | None = None, **options: Any
) -> AsyncIterator[Agent]:
    agent = Agent(directory, {"bot-1": {}} if participants is None else participants, **options)
    try:
        await agent.reconciler.start()
        agent.http = (await agent.api.start())["http"]
        yield agent
    finally:
        await agent.api.stop()
        await asyncio.to_thread(agent.spool.close)


# -- reports -----------------------------------------------------------------------------------------


async def test_report_is_durable_when_it_is_answered(tmp_path: Path) -> None:
    """202 with the record's id, and the very event in the spool."""
    async with serving(tmp_path) as agent:
        answer = await agent.post(
            "/v1/conversions",
            {
                "participantId": "bot-1",
                "target": "SOUL.md",
                "eventName": "resolved",
                "value": 0.1,
                "subject": "u-7",
                "digest": show_digest(digest(b"x")),
                "eventId": "e-1",
                "occurredAt": "2026-01-31T12:00:00.5+01:00",
                "properties": {"länge": [1, {"a": None}]},
            },
        )
        assert answer.status == 202
        batch = await agent.spool.next_batch(10, 1 << 20)
        assert batch is not None
        record = wire.record_from_bytes(batch.records[0])
        assert record.id == parse_id(answer.body["id"])
        assert record.body == Event(
            participant="bot-1",
            kind=EventKind.CONVERSION,
            occurred_at=1_769_857_200_500_000,
            event_name="resolved",
            subject="u-7",
            value_micros=100_000,
            digest=digest(b"x"),
            path="SOUL.md",
            event_id="e-1",
            properties_json='{"länge":[1,{"a":null}]}',
        )


async def test_least_report_says_nothing(tmp_path: Path) -> None:
    """The caller owns one participant, the moment is the agent's."""
    async with serving(tmp_path) as agent:
        assert (await agent.post("/v1/impressions", {})).status == 202
        (event,) = await agent.events()
        assert (event.participant, event.kind) == ("bot-1", EventKind.IMPRESSION)
        assert event.occurred_at == agent.clock.now()


async def test_what_was_loaded_is_durable_as_it_was_said(tmp_path: Path) -> None:
    """In its place among views and events; whatever is on disk, and a body that is wrong names every field."""
    async with serving(tmp_path) as agent:
        assert (await agent.post("/v1/impressions", {})).status == 202
        body = {"target": "SOUL.md", "digest": show_digest(digest(b"x"))}
        answer = await agent.post("/v1/loaded", body)
        assert (answer.status, list(answer.body)) == (202, ["id"])
        batch = await agent.spool.next_batch(10, 1 << 20)
        assert batch is not None
        first, second = (wire.record_from_bytes(raw) for raw in batch.records)
        assert isinstance(first.body, Event)
        assert second.id == parse_id(answer.body["id"])
        at = agent.clock.now()
        assert second.body == Loaded(participant="bot-1", path="SOUL.md", digest=digest(b"x"), loaded_at=at)
        assert agent.api.accepted == {"impression": 1, "conversion": 0, "loaded": 1}
        assert set((await agent.post("/v1/loaded", {"eventName": "x"})).faults) == {
            "eventName",
            "target",
            "digest",
        }
        assert set((await agent.post("/v1/loaded", {**body, "target": "../x"})).faults) == {"target"}
        assert (await call(agent.http, "/v1/loaded", body=body)).status == 403
        assert (await agent.post("/v1/loaded", {**body, "participantId": "bot-9"})).status == 404


async def test_batch_is_kept_in_order(tmp_path: Path) -> None:
    """One answer with an id for each."""
    async with serving(tmp_path) as agent:
        answer = await agent.post(
            "/v1/events:batch",
            {
                "events": [
                    {"kind": "impression", "subject": "a"},
                    {"kind": "conversion", "eventName": "resolved", "subject": "b", "value": 3},
                ]
            },
        )
        assert (answer.status, len(set(answer.body["ids"]))) == (202, 2)
        first, second = await agent.events()
        assert (first.subject, second.subject, second.value_micros) == ("a", "b", 3_000_000)


@pytest.mark.parametrize(
    ("value", "micros"),
    [
        (0, 0),
        (1, 1_000_000),
        (-2.5, -2_500_000),
        (0.1, 100_000),
        (1e-6, 1),
        (4e-7, 0),
        (1_125_899_906, 1_125_899_906_000_000),
    ],
)
async def test_value_is_kept_in_micro_units(tmp_path: Path, value: float, micros: int) -> None:
    """By the decimal digits that were sent, to the nearest."""
    async with serving(tmp_path) as agent:
        assert (await agent.post("/v1/impressions", {"value": value})).status == 202
        assert [event.value_micros for event in await agent.events()] == [micros]


@pytest.mark.parametrize(
    ("route", "body", "faults"),
    [
        ("impressions", {"nope": 1, "also": 2}, {"also", "nope"}),
        ("impressions", {"eventName": "resolved"}, {"eventName"}),
        ("conversions", {}, {"eventName"}),
        ("conversions", {"eventName": ""}, {"eventName"}),
        ("conversions", {"eventName": "x" * 129}, {"eventName"}),
        ("conversions", {"eventName": 7, "subject": [], "value": "3"}, {"eventName", "subject", "value"}),
        ("impressions", {"value": True}, {"value"}),
        ("impressions", {"value": 1e300}, {"value"}),
        ("impressions", {"value": 10**40}, {"value"}),
        ("impressions", {"subject": "\ud800"}, {"subject"}),
        ("impressions", {"subject": "a\0b"}, {"subject"}),
        ("impressions", {"properties": {"a": "\ud800"}}, {"properties"}),
        ("impressions", {"properties": {"a": ["\0"]}}, {"properties"}),
        ("impressions", {"properties": "a"}, {"properties"}),
        ("impressions", {"properties": {"a": "x" * 8192}}, {"properties"}),
        ("impressions", {"digest": "sha256:" + "0" * 63}, {"digest"}),
        ("impressions", {"digest": "sha256:" + "00 " * 21 + "0"}, {"digest"}),
        ("impressions", {"digest": "md5:00"}, {"digest"}),
        ("impressions", {"occurredAt": "yesterday"}, {"occurredAt"}),
        ("impressions", {"occurredAt": "2026-01-31T12:00:00"}, {"occurredAt"}),
        ("impressions", {"occurredAt": 5}, {"occurredAt"}),
        ("impressions", {"occurredAt": "1969-12-31T23:59:59Z"}, {"occurredAt"}),
        ("impressions", {"target": "/etc/passwd"}, {"target"}),
        ("impressions", {"target": "../SOUL.md"}, {"target"}),
        ("impressions", {"target": "OTHER.md"}, {"target"}),
        ("events:batch", {}, {"events"}),
        ("events:batch", {"events": []}, {"events"}),
        ("events:batch", {"events": [], "more": 1}, {"events", "more"}),
        (
            "events:batch",
            {"events": [1, {"kind": "x"}, {}]},
            {"events[0]", "events[1].kind", "events[2].kind"},
        ),
        (
            "events:batch",
            {"events": [{"kind": "impression"}, {"kind": "conversion", "no": 1}]},
            {"events[1].eventName", "events[1].no"},
        ),
        ("events:batch", {"events": [{"kind": "impression", "target": "x"}]}, {"events[0].target"}),
    ],
)
async def test_bad_report_names_every_field(
    tmp_path: Path, route: str, body: dict[str, Any], faults: set[str]
) -> None:
    """400, all faults at once, and nothing is kept of the request."""
    async with serving(tmp_path) as agent:
        answer = await agent.post(f"/v1/{route}", data=json.dumps(body).encode())
        assert answer.status == 400
        assert answer.headers["Content-Type"].startswith("application/problem+json")
        assert set(answer.faults) == faults
        assert await agent.events() == []


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
async def test_value_is_finite(tmp_path: Path, value: bytes) -> None:
    """What Python's JSON reads beyond JSON is refused all the same."""
    async with serving(tmp_path) as agent:
        answer = await agent.post("/v1/impressions", data=b'{"value": %s}' % value)
        assert (answer.status, set(answer.faults)) == (400, {"value"})


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe{", b"[" * 60_000, b'{"value": %s}' % (b"9" * 5000)]
)
async def test_body_that_is_no_object_is_refused(tmp_path: Path, body: bytes) -> None:
    """Never a 500, however it is malformed."""
    async with serving(tmp_path) as agent:
        assert (await agent.post("/v1/impressions", data=body)).status == 400


async def test_far_future_is_refused_and_the_past_is_kept(tmp_path: Path) -> None:
    """Five minutes ahead of the agent's clock is still a clock that differs."""
    async with serving(tmp_path) as agent:
        for ahead, status in [(301, 400), (299, 202), (-86_400 * 400, 202)]:
            moment = to_rfc3339(agent.clock.now() + ahead * SECOND)
            assert (await agent.post("/v1/impressions", {"occurredAt": moment})).status == status


async def test_body_has_a_limit(tmp_path: Path) -> None:
    """64 KiB, whatever is in it."""
    async with serving(tmp_path) as agent:
        body = b'{"subject": "%s"}' % (b"x" * 65_536)
        answer = await agent.post("/v1/impressions", data=body)
        assert (answer.status, answer.body["reason"]) == (413, "HTTP_413")


async def test_full_spool_and_flood_are_told(tmp_path: Path) -> None:
    """429 both times, with a word when to come back; what was answered before stays."""
    async with serving(tmp_path, max_bytes=400) as agent:
        assert (await agent.post("/v1/impressions", {})).status == 202
        answer = await agent.post("/v1/impressions", {"subject": "x" * 256, "eventId": "y" * 128})
        assert (answer.status, answer.body["reason"]) == (429, "SPOOL_FULL")
        assert answer.headers["Retry-After"] == "1"
    (tmp_path / "2").mkdir()
    async with serving(tmp_path / "2", {"bot-1": {}, "bot-2": {}}, rate=1.0, burst=3.0) as agent:
        batch = {"events": [{"kind": "impression", "participantId": "bot-1"}] * 3}
        assert (await agent.post("/v1/events:batch", batch)).status == 202
        answer = await agent.post("/v1/impressions", {"participantId": "bot-1"})
        assert (answer.status, answer.body["reason"]) == (429, "RATE_LIMITED")
        assert (await agent.post("/v1/impressions", {"participantId": "bot-2"})).status == 202
        await agent.clock.advance(1)
        assert (await agent.post("/v1/impressions", {"participantId": "bot-1"})).status == 202


async def test_participant_has_to_be_clear_and_known(tmp_path: Path) -> None:
    """With two that could be meant, the field is asked for; a stranger is 404."""
    async with serving(tmp_path, {"bot-1": {}, "bot-2": {}}) as agent:
        answer = await agent.post("/v1/impressions", {})
        assert (answer.status, set(answer.faults)) == (400, {"participantId"})
        assert (await agent.post("/v1/impressions", {"participantId": "bot-3"})).status == 404
        assert await agent.events() == []


# -- who may call --------------------------------------------------------------------------------------


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that other users can pass through; pytest keeps its own to one user."""
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@as_root
async def test_other_users_speak_for_their_own_participants_only(reachable: Path) -> None:
    """By the kernel's word on who the process is: owner of the root, or listed; everyone else 403."""
    participants: dict[str, dict[str, Any]] = {"bot-1": {}, "bot-2": {}, "bot-3": {"allow_users": ["nobody"]}}
    async with serving(reachable, participants) as agent:
        os.chown(reachable / "bot-2", 1234, 1234)
        impression = "/v1/impressions"
        assert (await as_user(agent.socket, 1234, impression, {"participantId": "bot-1"}))[0] == 403
        assert (await as_user(agent.socket, 1234, impression, {"participantId": "bot-2"}))[0] == 202
        assert (await as_user(agent.socket, 1234, impression, {}))[0] == 202
        assert (await as_user(agent.socket, NOBODY, impression, {"participantId": "bot-3"}))[0] == 202
        assert (await as_user(agent.socket, NOBODY, impression, {"participantId": "bot-2"}))[0] == 403
        assert (await as_user(agent.socket, 4321, impression, {}))[0] == 400
        target = "/v1/content?target=SOUL.md&participantId="
        assert (await as_user(agent.socket, 1234, target + "bot-1", method="GET"))[0] == 403
        assert (await as_user(agent.socket, 1234, target + "bot-2", method="GET"))[0] == 404
        mixed = {"events": [{"kind": "impression", "participantId": name} for name in ("bot-2", "bot-1")]}
        assert (await as_user(agent.socket, 1234, "/v1/events:batch", mixed))[0] == 403
        assert [event.participant for event in await agent.events()] == ["bot-2", "bot-2", "bot-3"]


async def test_unknown_user_in_the_configuration_stops_the_start(tmp_path: Path) -> None:
    """A typing error must not lock an application out silently."""
    with pytest.raises(Invalid, match="no user 'no-such-user'"):
        async with serving(tmp_path, {"bot-1": {"allow_users": ["no-such-user"]}}):
            pass


async def test_socket_is_open_to_everyone_and_goes_with_the_agent(tmp_path: Path) -> None:
    """Who may say what is decided by the peer's uid, not by the file's mode."""
    async with serving(tmp_path) as agent:
        assert agent.socket.stat().st_mode & 0o777 == 0o666
    assert not agent.socket.exists()


async def test_dead_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    """After kill -9 the next start takes over; two agents never fight for one socket."""
    async with serving(tmp_path) as agent:
        (tmp_path / "2").mkdir()
        with pytest.raises(FailedPrecondition, match="another process serves"):
            async with serving(tmp_path / "2", agent={"socket": str(agent.socket)}):
                pass
        assert (await agent.post("/v1/impressions", {})).status == 202
        agent.socket.rename(agent.socket.with_name("kept"))
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(agent.socket))
    async with serving(tmp_path) as agent:
        assert (await agent.post("/v1/impressions", {})).status == 202


async def test_loopback_takes_reports_with_the_token_only(tmp_path: Path) -> None:
    """Without a token file the door is closed; with one, the right bearer speaks for everyone."""
    async with serving(tmp_path) as agent:
        answer = await call(agent.http, "/v1/impressions", body={})
        assert (answer.status, answer.body["reason"]) == (403, "NO_LOCAL_TOKEN")
    (tmp_path / "token").write_text(TOKEN + "\n")
    async with serving(tmp_path, agent={"local_token_file": "token"}) as agent:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            answer = await call(agent.http, "/v1/impressions", body={}, headers=headers)
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert TOKEN not in json.dumps(answer.body)
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert (await call(agent.http, "/v1/impressions", body={}, headers=right)).status == 202
        assert len(await agent.events()) == 1


async def test_web_pages_are_refused(tmp_path: Path) -> None:
    """Origin, a foreign Host, and the content types a form can send."""
    (tmp_path / "token").write_text(TOKEN)
    async with serving(tmp_path, agent={"local_token_file": "token"}) as agent:
        right = {"Authorization": f"Bearer {TOKEN}"}
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Host": "[::1"}):
            answer = await call(agent.http, "/v1/impressions", body={}, headers={**right, **headers})
            assert answer.status == 403
            assert (await call(agent.http, "/status", headers=headers)).status == 403
        assert (await agent.post("/v1/impressions", {}, headers={"Origin": "null"})).status == 403
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            headers = {**right, "Content-Type": content_type}
            assert (await call(agent.http, "/v1/impressions", data=b"{}", headers=headers)).status == 400
        assert await agent.events() == []


@pytest.mark.parametrize("address", ["0.0.0.0:0", "example.com:80", "127.0.0.1", "nonsense"])
async def test_local_http_is_loopback(tmp_path: Path, address: str) -> None:
    """Anything else is refused at the start, with what to write."""
    with pytest.raises(Invalid, match=r"127\.0\.0\.1:7410"):
        async with serving(tmp_path, agent={"local_http": address}):
            pass


# -- questions -----------------------------------------------------------------------------------------


async def test_content_tells_what_a_target_holds(tmp_path: Path) -> None:
    """Path, digest and slot, never the content itself; 404 where no slot holds it."""
    async with serving(tmp_path) as agent, in_background(agent.reconciler.run()):
        target = "/v1/content?target=SOUL.md"
        assert (await call(agent.socket, target)).status == 404
        slot_id, content = new_id(), b"Be kind.\n"
        file = OfferedFile(path="SOUL.md", digest=digest(content), size=len(content), content=content)
        agent.reconciler.offer(
            Offer(
                deployment_id=new_id(),
                participant="bot-1",
                slot_id=slot_id,
                revision=1,
                action=OfferAction.WRITE,
                files=(file,),
            )
        )
        await eventually(lambda: agent.reconciler.view_of("bot-1", "SOUL.md"))
        answer = await call(agent.socket, target)
        assert answer.status == 200
        assert answer.body["path"] == str(tmp_path / "bot-1" / "SOUL.md")
        assert answer.body["digest"] == answer.body["desiredDigest"] == show_digest(digest(content))
        assert parse_id(answer.body["slotId"]) == slot_id
        assert "Be kind" not in json.dumps(answer.body)
        bad = await call(agent.socket, "/v1/content?tarket=SOUL.md")
        assert (bad.status, set(bad.faults)) == (400, {"tarket", "target"})


async def test_health_is_open_on_loopback(tmp_path: Path) -> None:
    """Alive is not ready; both are told without a token."""
    async with serving(tmp_path) as agent:
        assert (await call(agent.http, "/healthz")).body == {"alive": True}
        assert (await call(agent.http, "/readyz")).status == 200
        agent.unready = ("spool_writable",)
        answer = await call(agent.http, "/readyz")
        assert (answer.status, answer.body) == (503, {"ready": False, "unready": ["spool_writable"]})
        assert (await call(agent.http, "/status")).body == {"name": "host-1"}
        assert (await call(agent.http, "/metrics")).body == "up 1\n"


@pytest.mark.parametrize(
    ("method", "target", "status"), [("GET", "/nope", 404), ("GET", "/v1/impressions", 405)]
)
async def test_wrong_paths_are_problems_too(tmp_path: Path, method: str, target: str, status: int) -> None:
    """Every failure has the same shape."""
    async with serving(tmp_path) as agent:
        answer = await call(agent.socket, target, method=method)
        assert (answer.status, answer.body["status"]) == (status, status)


async def test_unexpected_failure_is_told_by_its_log_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fixed text: nothing of what went wrong leaves the log."""

    def broken() -> Callable[[], object]:
        raise RuntimeError("secret detail")

    async with serving(tmp_path) as agent:
        monkeypatch.setattr(agent.api, "_status", broken)
        answer = await call(agent.http, "/status")
        assert answer.status == 500
        assert "secret" not in json.dumps(answer.body)


# -- connections


def held(at: Path, count: int, said: bytes = b"") -> list[socket.socket]:
    """Connections on which so much was said."""
    connections = []
    for _ in range(count):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(at))
        connection.sendall(said)
        connection.setblocking(False)
        connections.append(connection)
    return connections


@as_root
@pytest.mark.parametrize("said", [b"", b"POST /v1/impressions HTTP/1.1\r\nContent-"], ids=["nothing", "half"])
async def test_who_holds_connections_keeps_nobody_else_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """A user has half of those there may be; who wants more is told so, and gets one once one is closed."""
    monkeypatch.setattr(callers, "MOST", 8)
    tmp_path.chmod(0o755)
    with TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        async with serving(Path(directory)) as agent:
            taken = held(agent.socket, 4, said)
            refused = await call(agent.socket, "/healthz")
            assert (refused.status, refused.body["reason"]) == (503, "TOO_MANY_CONNECTIONS")
            assert agent.api.refused[503] == 1
            assert (await as_user(agent.socket, NOBODY, "/healthz", method="GET"))[0] == 200
            assert (await call(agent.http, "/healthz")).status == 200
            taken.pop().close()

            async def taken_again() -> bool:
                return (await call(agent.socket, "/healthz")).status == 200

            await eventually(taken_again)
            for one in taken:
                one.close()


async def test_who_says_nothing_or_half_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection without a request is closed in time, and a body that does not come is answered."""
    monkeypatch.setattr(callers, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(local_api, "BODY_SECONDS", 0.3)
    loop = asyncio.get_running_loop()
    head = b"POST /v1/impressions HTTP/1.1\r\nHost: localhost\r\n"
    half = head + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    async with serving(tmp_path) as agent, asyncio.timeout(PATIENCE):
        for said in (b"", head):
            [one] = held(agent.socket, 1, said)
            assert await loop.sock_recv(one, 1000) == b""
            one.close()
        [one] = held(agent.socket, 1, half)
        answer = await loop.sock_recv(one, 1000)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"DEADLINE" in answer
        one.close()
        assert (await call(agent.socket, "/healthz")).status == 200


@contextmanager
def no_descriptor() -> Iterator[None]:
    """This process can open nothing more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(one.name) for one in Path("/proc/self/fd").iterdir())
    fill: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, before[1]))
    try:
        with suppress(OSError):
            while True:
                fill.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for one in fill:
            os.close(one)


async def test_without_a_descriptor_connections_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are taken once there is one, and the log has one line of it."""
    monkeypatch.setattr(callers, "RETRY_SECONDS", 0.01)
    async with serving(tmp_path) as agent, asyncio.timeout(PATIENCE):
        await call(agent.http, "/healthz")  # both doors are waiting for the next
        with socket.socket(socket.AF_UNIX) as one:
            one.setblocking(False)
            with no_descriptor():
                one.connect(str(agent.socket))
                await eventually(lambda: "local_api.waiting" in caplog.text)
                await asyncio.sleep(0.1)  # several tries
            one.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await asyncio.get_running_loop().sock_recv(one, 1000)).startswith(b"HTTP/1.1 200 ")
        assert caplog.text.count("'local_api.waiting'") == 1
