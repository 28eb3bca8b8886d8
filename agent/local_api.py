"""Where applications on the host report what happened, and operators ask how the agent is.

Hides who may call what: on the socket the kernel says whose process it is; on loopback HTTP a bearer token
does, and without one only health is served. A web page can reach neither: `Origin`, a foreign `Host` and any
content type but JSON are refused. A report is answered only after it is durable.
"""

import asyncio
import hmac
import pwd
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from agent import callers, reports
from agent.config import AgentConfig, ParticipantConfig
from agent.doors import is_loopback, listen_on_loopback, listen_on_socket, reached_at
from agent.peer import commands_the_agent, is_on_socket, uid_of
from agent.policy import Refused, allow
from agent.reconciler import Reconciler
from agent.reports import Receipt, Report
from agent.room import Bucket
from agent.spool import Spool
from shared import logs
from shared.clock import Clock
from shared.errors import (
    Code,
    Error,
    Fault,
    Invalid,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from shared.ids import NewId, show_id
from shared.model import EventKind, show_digest
from shared.moment import to_rfc3339

_log = logs.get(__name__)

MAX_BODY = 64 * 1024
BODY_SECONDS = 30.0
RATE, BURST = 1_000.0, 5_000.0  # reports per second and participant

_HTTP = {
    Code.INVALID: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.FAILED_PRECONDITION: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNAVAILABLE: 503,
    Code.INTERNAL: 500,
}


_REASONS = {
    404: "there is nothing at this path; reports go to /v1/impressions, /v1/conversions, /v1/events:batch,"
    " /v1/loaded",
    413: f"a request has at most {MAX_BODY} bytes; send fewer events at once",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls: `uid` by the kernel's word, or None for the bearer of the local token."""

    uid: int | None


class LocalApi:
    """Serves on the socket and on loopback once started.

    `status` gives the JSON of /status, `metrics` the text of /metrics, `unready` what is not ready;
    `admin` are further routes, that judge their callers themselves.
    """

    def __init__(
        self,
        *,
        config: AgentConfig,
        spool: Spool,
        reconciler: Reconciler,
        status: Callable[[], Mapping[str, object]],
        metrics: Callable[[], tuple[bytes, str]],
        unready: Callable[[], tuple[str, ...]],
        clock: Clock,
        new_id: NewId,
        admin: Iterable[web.RouteDef] = (),
        rate: float = RATE,
        burst: float = BURST,
    ) -> None:
        self._config, self._spool, self._reconciler = config, spool, reconciler
        self._status, self._metrics, self._unready = status, metrics, unready
        self._clock, self._new_id, self._admin = clock, new_id, tuple(admin)
        self._participants = {participant.id: participant for participant in config.participants}
        self._allowed = _allowed_users(config)
        self._buckets: defaultdict[str, Bucket] = defaultdict(lambda: Bucket(rate=rate, burst=burst))
        self._token = _read_token(config.local_token_file)
        self._runner: web.AppRunner | None = None
        self._socket: tuple[int, int] | None = None  # device and inode of ours
        self.accepted = dict.fromkeys((*map(str, EventKind), "loaded"), 0)
        self.refused: dict[int, int] = {}

    def reconfigure(self, config: AgentConfig) -> None:
        """Reports are taken for the participants of `config`. Raises Invalid; then nothing has changed."""
        self._allowed = _allowed_users(config)
        self._participants = {participant.id: participant for participant in config.participants}

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> dict[str, str]:
        """Serving; {"http": "127.0.0.1:PORT", "socket": PATH}. Raises Invalid where it cannot listen."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._explain])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/status", self._get_status),
                web.get("/metrics", self._get_metrics),
                web.post("/v1/impressions", self._impressions),
                web.post("/v1/conversions", self._conversions),
                web.post("/v1/events:batch", self._batch),
                web.post("/v1/loaded", self._loaded),
                web.get("/v1/content", self._content),
                *self._admin,
            ]
        )
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=5.0,
            keepalive_timeout=callers.IDLE_SECONDS,
        )
        await self._runner.setup()
        listener = listen_on_socket(self._config.socket)
        at = self._config.socket.stat()
        self._socket = (at.st_dev, at.st_ino)
        await callers.Site(self._runner, listener, refused=self._refused).start()
        loopback = listen_on_loopback(self._config.local_http)
        host, port = loopback.getsockname()[:2]
        await callers.Site(self._runner, loopback, refused=self._refused).start()
        shown = f"[{host}]" if ":" in host else host
        return {"http": f"{shown}:{port}", "socket": reached_at(self._config.socket)}

    async def stop(self) -> None:
        """No longer serving; requests under way were answered. Repeating it changes nothing."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        await runner.cleanup()
        with suppress(OSError):
            at = self._config.socket.stat()
            if (at.st_dev, at.st_ino) == self._socket:
                self._config.socket.unlink()

    # -- every request ---------------------------------------------------------------------------

    @web.middleware
    async def _explain(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Every failure leaves as problem+json; what is unexpected is logged and told by its id only."""
        try:
            _refuse_web_pages(request)
            return await handler(request)
        except web.HTTPException as error:
            status, failure = (
                error.status,
                Error(_REASONS.get(error.status, error.reason), reason=f"HTTP_{error.status}"),
            )
            failure.code = next((code for code, http in _HTTP.items() if http == status), Code.INVALID)
        except Error as error:
            status, failure = _HTTP[error.code], error
        except Exception as error:
            log_id = show_id(self._new_id())
            _log.error("local_api.failed", path=request.path, log_id=log_id, exc_info=error)
            status, failure = 500, Error(f"something went wrong in the agent; its log has it under {log_id}")
        self._refused(status)
        return _problem(status, failure)

    def _refused(self, status: int = 503) -> None:
        self.refused[status] = self.refused.get(status, 0) + 1

    def _caller(self, request: web.Request) -> Caller:
        """Who calls. Raises PermissionDenied or Unauthenticated on loopback without the right token."""
        if is_on_socket(request):
            return Caller(uid=uid_of(request))
        if self._token is None:
            raise PermissionDenied(
                f"reports are taken on the socket {self._config.socket}; "
                "set `local_token_file` in agent.toml to open this door too",
                reason="NO_LOCAL_TOKEN",
            )
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token):
            raise Unauthenticated("send the token of `local_token_file` as `Authorization: Bearer …`")
        return Caller(uid=None)

    def _participant(self, caller: Caller, name: str | None, where: str = "") -> ParticipantConfig:
        """The participant named, or the only one the caller can mean; the caller may speak for it."""
        if name is None:
            mine = [p for p in self._participants.values() if self._owns(caller, p)]
            if not mine and self._is_trusted(caller):
                mine = list(self._participants.values())
            if len(mine) != 1:
                message = f"is needed: {len(mine)} participants could be meant"
                fault = Fault(field=f"{where}participantId", message=message)
                raise Invalid(f"{fault.field} {message}", reason="PARTICIPANT_NEEDED", faults=[fault])
            return mine[0]
        participant = self._participants.get(name)
        if participant is None:
            raise NotFound("this agent serves no such participant", reason="PARTICIPANT_UNKNOWN")
        if not self._is_trusted(caller) and not self._owns(caller, participant):
            _log.warning("local_api.refused", uid=caller.uid, participant=participant.id)
            raise PermissionDenied(
                f"uid {caller.uid} neither owns the root of {participant.id} nor is in its `allow_users`",
                reason="NOT_YOUR_PARTICIPANT",
            )
        return participant

    def _is_trusted(self, caller: Caller) -> bool:
        return caller.uid is None or commands_the_agent(caller.uid)

    def _owns(self, caller: Caller, participant: ParticipantConfig) -> bool:
        if caller.uid is None:
            return False
        if caller.uid in self._allowed[participant.id]:
            return True
        try:
            return participant.root.stat().st_uid == caller.uid
        except OSError:
            return False

    # -- reports ---------------------------------------------------------------------------------

    async def _impressions(self, request: web.Request) -> web.Response:
        return await self._one(request, EventKind.IMPRESSION)

    async def _conversions(self, request: web.Request) -> web.Response:
        return await self._one(request, EventKind.CONVERSION)

    async def _one(self, request: web.Request, kind: EventKind) -> web.Response:
        caller = self._caller(request)
        report = reports.parse_one(await _json_body(request), kind, now=self._clock.now())
        (record_id,) = await self._keep(caller, [report])
        return web.json_response({"id": record_id}, status=202)

    async def _batch(self, request: web.Request) -> web.Response:
        caller = self._caller(request)
        parsed = reports.parse_batch(await _json_body(request), now=self._clock.now())
        return web.json_response({"ids": await self._keep(caller, parsed)}, status=202)

    async def _keep(self, caller: Caller, parsed: list[Report]) -> list[str]:
        """The ids of the reports' records, all of them durable; none is kept where it raises."""
        participants = [self._participant(caller, report.participant, report.where) for report in parsed]
        self._admit(list(zip(parsed, participants, strict=True)))
        events = [report.event(p.id) for report, p in zip(parsed, participants, strict=True)]
        records = await self._spool.append_all(events)
        for event in events:
            self.accepted[event.kind.value] += 1
        return [show_id(record.id) for record in records]

    def _admit(self, parsed: Sequence[tuple[Report | Receipt, ParticipantConfig]]) -> None:
        """Raises Invalid for targets that are none, ResourceExhausted where a participant says too much."""
        faults = [fault for report, participant in parsed for fault in _target_faults(participant, report)]
        if faults:
            listed = "; ".join(f"{fault.field} {fault.message}" for fault in faults)
            raise Invalid(f"the report is not valid: {listed}", reason="BAD_REPORT", faults=faults)
        now = self._clock.monotonic()
        names = [participant.id for _, participant in parsed]
        for name in sorted(set(names)):
            if not self._buckets[name].take(names.count(name), now):
                raise ResourceExhausted(
                    f"{name} reports faster than the agent takes it", reason="RATE_LIMITED"
                )

    async def _loaded(self, request: web.Request) -> web.Response:
        """What the application says it loaded is durable as said, whatever is on disk."""
        caller = self._caller(request)
        receipt = reports.parse_loaded(await _json_body(request), now=self._clock.now())
        participant = self._participant(caller, receipt.participant)
        self._admit([(receipt, participant)])
        loaded = receipt.loaded(participant.id, now=self._clock.now())
        record = await self._spool.append(loaded)
        self.accepted["loaded"] += 1
        self._reconciler.loaded(loaded)
        return web.json_response({"id": show_id(record.id)}, status=202)

    # -- questions -------------------------------------------------------------------------------

    async def _content(self, request: web.Request) -> web.Response:
        """What a target holds, as the agent last saw it; never the content itself."""
        caller = self._caller(request)
        unknown = sorted(set(request.query) - {"target", "participantId"})
        target = request.query.get("target")
        if unknown or not target:
            faults = [Fault(field=key, message="is not a parameter") for key in unknown]
            faults += [] if target else [Fault(field="target", message="is needed")]
            listed = "; ".join(f"{fault.field} {fault.message}" for fault in faults)
            raise Invalid(f"the question is not valid: {listed}", faults=faults)
        participant = self._participant(caller, request.query.get("participantId"))
        holding = self._reconciler.view_of(participant.id, target)
        if holding is None:
            raise NotFound("no experiment or deployment holds this target", reason="TARGET_NOT_HELD")
        return web.json_response(
            {
                "participantId": participant.id,
                "target": target,
                "path": str(participant.root / target),
                "digest": show_digest(holding.digest),
                "desiredDigest": show_digest(holding.desired),
                "state": holding.state.value,
                "loadedDigest": show_digest(holding.loaded.digest if holding.loaded else None),
                "loadedAt": to_rfc3339(holding.loaded.loaded_at) if holding.loaded else None,
                "slotId": show_id(holding.slot_id),
            }
        )

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def _readyz(self, _request: web.Request) -> web.Response:
        unready = self._unready()
        body = {"ready": not unready, "unready": list(unready)}
        return web.json_response(body, status=503 if unready else 200)

    async def _get_status(self, _request: web.Request) -> web.Response:
        return web.json_response(dict(self._status()))

    async def _get_metrics(self, _request: web.Request) -> web.Response:
        text, content_type = self._metrics()
        return web.Response(body=text, headers={"Content-Type": content_type})


# -- requests ------------------------------------------------------------------------------------------


def _refuse_web_pages(request: web.Request) -> None:
    if "Origin" in request.headers:
        raise PermissionDenied("requests of web pages are not served", reason="ORIGIN_REFUSED")
    if not is_on_socket(request) and not is_loopback(_host_name(request.headers.get("Host", ""))):
        raise PermissionDenied("this address is served under its own name only", reason="HOST_REFUSED")


def _host_name(host: str) -> str:
    try:
        return urlsplit("//" + host).hostname or ""
    except ValueError:
        return ""


async def _json_body(request: web.Request) -> bytes:
    if request.content_type != "application/json":
        raise Invalid("send the report as Content-Type: application/json", reason="NOT_JSON")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise ResourceExhausted(
            f"the body did not come within {BODY_SECONDS:g} s of its head", reason="DEADLINE"
        ) from None


def _target_faults(participant: ParticipantConfig, report: Report | Receipt) -> list[Fault]:
    if not report.target:
        return []
    try:
        allow(participant, report.target, size=None)
    except Refused as refused:
        reason = refused.reason
        return [Fault(field=f"{report.where}target", message=reason.message, remedy=reason.remedy)]
    return []


def _problem(status: int, error: Error) -> web.Response:
    body: dict[str, Any] = {
        "type": f"urn:variantd:problem:{error.code.value}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "reason": error.reason,
        "errors": [{"field": f.field, "message": f.message, "remedy": f.remedy} for f in error.faults],
    }
    headers = {"Retry-After": "1"} if error.code.retryable else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response(body, status=status, content_type="application/problem+json", headers=headers)


# -- start ---------------------------------------------------------------------------------------------


def _allowed_users(config: AgentConfig) -> dict[str, set[int]]:
    """Per participant the uids in `allow_users`. Raises Invalid that lists every name nobody has."""
    found: dict[str, set[int]] = {}
    faults = []
    for index, participant in enumerate(config.participants):
        uids = found[participant.id] = set()
        for name in participant.allow_users:
            try:
                uids.add(int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid)
            except KeyError:
                field = f"participants[{index}].allow_users"
                faults.append(Fault(field=field, message=f"there is no user {name!r} on this host"))
    if faults:
        listed = "; ".join(f"{fault.field} {fault.message}" for fault in faults)
        raise Invalid(f"agent.toml: {listed}", reason="BAD_CONFIG", faults=faults)
    return found


def _read_token(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise Invalid(f"agent.local_token_file {path}: {error.strerror}", reason="BAD_CONFIG") from None
    if len(token) < 16:
        raise Invalid(
            f"agent.local_token_file {path}: a token has at least 16 characters", reason="BAD_CONFIG"
        )
    return token
