"""The composition root: opens, wires, serves, stops. Tests use this very one on port 0."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import gethostname
from ssl import PROTOCOL_TLS_SERVER, SSLContext

# One event loop per process touches gRPC, and nothing forks after it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from control_plane.api.admission import Rates
from control_plane.api.door import Door
from control_plane.api.oidc import Tokens
from control_plane.api.operations import OPERATIONS
from control_plane.api.replication import Replication
from control_plane.api.rest import application
from control_plane.api.rpc import EnrollmentServicer, add_operator_services
from control_plane.api.sessions import Sessions
from control_plane.api.sync import AgentServicer
from control_plane.api.watch import Watchers
from control_plane.api.welcome import Origin, origin
from control_plane.api.witness import witness
from control_plane.config import Settings, is_wildcard
from control_plane.data import DataDir, agreed_authorities, note_kind, open_database, write_private
from control_plane.services import access
from control_plane.services.changes import Announcing, Changes
from control_plane.services.due import Timers
from control_plane.services.replicas import Alone, Replica
from control_plane.services.retention import Retention
from control_plane.services.work import Joining, Services
from control_plane.store.access import Incarnation
from control_plane.store.database import Database, Tx
from control_plane.store.store import Store
from shared import VERSION, lifecycle, logs, tls
from shared.clock import Clock
from shared.errors import FailedPrecondition
from shared.ids import NewId
from shared.moment import SECOND
from shared.pb.variantd.agent.v1 import agent_pb2, agent_pb2_grpc

_log = logs.get(__name__)

STOP_GRACE_SECONDS = 3.0
IDLE_SECONDS = 75.0  # of an HTTP connection without a request, or with half a head
HAND_OVER_SECONDS = 60.0  # for calls under way while agents leave for another replica
_CERTIFICATE_DAYS = 90

_SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),  # a second server on the same port is refused, not mixed in
    ("grpc.max_receive_message_length", 4 * 1_048_576),
    ("grpc.max_send_message_length", 4 * 1_048_576),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # without it a stopped peer is noticed only after a minute
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.server.max_pending_requests", 16_384),  # a returning fleet gets Busy from us, not a reset
]


async def run(settings: Settings, clock: Clock, new_id: NewId, stop: asyncio.Event) -> None:
    """Serves until `stop` is set, then drains: agents are asked to leave before the listeners close."""
    data = DataDir(settings.data_dir, settings.ca_key_file)
    data.prepare()
    lock = data.lock()
    try:
        database = open_database(data, settings.database)
        try:
            note_kind(data, settings.database)
            authority = await agreed_authorities(data, database, clock)
            await _serve(settings, data, authority, database, clock, new_id, stop)
        finally:
            await database.close()
    finally:
        data.addresses.unlink(missing_ok=True)
        os.close(lock)


async def _serve(
    settings: Settings,
    data: DataDir,
    authority: tls.Authorities,
    database: Database,
    clock: Clock,
    new_id: NewId,
    stop: asyncio.Event,
) -> None:
    tokens = None
    if settings.oidc is not None:
        tokens = Tokens(settings.oidc, keep=data.jwks, clock=clock)
        await tokens.start()
    first = await database.write(lambda tx: _first_start(tx, data, clock, new_id))
    certificates = _Certificates(authority, _names(settings), clock)
    operator, agents = (grpc.aio.server(options=_SERVER_OPTIONS) for _ in range(2))
    operator_port = _listen(operator, settings.operator, certificates.credentials(clients=False))
    agents_port = _listen(agents, settings.agents, certificates.credentials(clients=True))

    changes = Changes()
    database = Announcing(database, changes)
    registry = CollectorRegistry()
    sessions = Sessions(registry, new_id=new_id, clock=clock)
    replica, replication = None, None
    if database.hints is not None:
        replica = Replica(
            database, clock=clock, replica_id=new_id(), name=gethostname(), incarnation=first.incarnation.id
        )
        replication = Replication(
            database.hints, replica, sessions=sessions, changes=changes, registry=registry
        )
    services = Services(
        database=database,
        clock=clock,
        new_id=new_id,
        wake=replication.wake if replication else sessions.wake,
        hosts=replication.elsewhere if replication else sessions.reads,
        settle=replication.settle if replication else sessions.preflights.settle,
        witness=witness,
        joining=Joining(
            addresses=settings.advertise_operator or _reached_at(settings, settings.operator, operator_port),
            ca_certificate=authority.first.der,
        ),
    )
    rates = Rates(rate=settings.rate_limit, burst=settings.rate_burst)
    door = Door(services, registry, rates=rates, tokens=tokens)
    watchers = Watchers(door, changes)
    agents_at = settings.advertise_agents or _reached_at(settings, settings.agents, agents_port)
    healths = [
        _add_agent_service(
            agents,
            services,
            sessions,
            origin(first.incarnation, authority.first, withdraw_limit=settings.withdraw_limit),
            authority,
        ),
        _add_operator_services(operator, door, watchers, authority, agents_at, first.incarnation),
    ]

    app = application(
        door,
        OPERATIONS,
        ready=lambda: _unready(sessions, replica, database),
        registry=registry,
        watchers=watchers,
        max_body=settings.http_max_body,
        origins=frozenset(settings.cors_origins),
    )
    async with _http(app, settings) as http:
        await agents.start()
        await operator.start()
        addresses = {
            "http": http,
            "operator": _with_port(settings.operator, operator_port),
            "agents": _with_port(settings.agents, agents_port),
        }
        try:
            data.write_addresses(addresses)
        except OSError as error:
            # A full disk refuses writes and nothing else: whoever knows where this server is can read, and hosts stay.
            data.addresses.unlink(missing_ok=True)  # a killed server's, which may have listened elsewhere
            _log.warning("addresses.unwritten", file=str(data.addresses), error=error.strerror)
        _log.info("control_plane.ready", version=VERSION, **addresses)
        lifecycle.sd_notify("READY=1")
        await lifecycle.run_until(
            stop,
            lambda: sessions.keep_leases(services),
            lambda: sessions.preflights.run(services),
            Timers(services, clock, replica or Alone()).run,
            *([replica.run] if replica else []),
            *([lambda: replication.run(services)] if replication else []),
            Retention(database, clock, replica or Alone(), keep_days=settings.keep_events_days).run,
        )
        lifecycle.sd_notify("STOPPING=1")
        _log.info("control_plane.stopping")
        for servicer in healths:
            await servicer.enter_graceful_shutdown()
        changes.end()
        await _let_go(agents, operator, sessions, replica)
        if tokens is not None:
            await tokens.stop()


async def _unready(sessions: Sessions, replica: Replica | None, database: Database) -> str | None:
    """Why nobody should be sent here now."""
    if sessions.draining:
        return "stopping"
    if replica is not None and replica.cut_off:
        return "cut off from the database"
    await database.read(lambda tx: tx.one("select 1"))
    return None


async def _let_go(
    agents: grpc.aio.Server, operator: grpc.aio.Server, sessions: Sessions, replica: Replica | None
) -> None:
    """Nobody is served here any more; where other replicas go on, every agent has a session there first."""
    handing_over = replica is not None and replica.others > 0
    if replica is not None:
        await replica.leave()
    # A next session comes while the present one is open: it must not come here.
    closing = asyncio.ensure_future(agents.stop(HAND_OVER_SECONDS)) if handing_over else None
    await sessions.drain(hand_over=handing_over)
    await asyncio.gather(closing or agents.stop(STOP_GRACE_SECONDS), operator.stop(STOP_GRACE_SECONDS))


def _add_agent_service(
    server: grpc.aio.Server,
    services: Services,
    sessions: Sessions,
    own: Origin,
    authority: tls.Authorities,
) -> health.HealthServicer:
    servicer = AgentServicer(services, sessions, own, authority)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(servicer, server)
    return _add_health(server, [agent_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name])


def _add_operator_services(
    server: grpc.aio.Server,
    door: Door,
    watchers: Watchers,
    authority: tls.Authorities,
    agents_at: tuple[str, ...],
    incarnation: Incarnation,
) -> health.HealthServicer:
    enrollment = EnrollmentServicer(door, authority, addresses=agents_at, incarnation=incarnation.id)
    agent_pb2_grpc.add_EnrollmentServiceServicer_to_server(enrollment, server)
    names = add_operator_services(server, door, OPERATIONS, watchers)
    return _add_health(server, [*names, agent_pb2.DESCRIPTOR.services_by_name["EnrollmentService"].full_name])


def _first_start(tx: Tx, data: DataDir, clock: Clock, new_id: NewId) -> access.FirstStart:
    first = access.initialise(Store(tx), new_id=new_id, now=clock.now())
    if first.operator_key is not None:
        # Before the commit: a crash in between makes a fresh key next time, never a database nobody can enter.
        write_private(data.operator_key, first.operator_key.encode() + b"\n")
        _log.info("operator_key.written", file=str(data.operator_key))
    return first


def _listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    try:
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        raise FailedPrecondition(
            f"cannot listen on {address}; is another server there?", reason="ADDRESS_IN_USE"
        ) from None


def _add_health(server: grpc.aio.Server, services: list[str]) -> health.HealthServicer:
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in [*services, ""]:
        servicer._server_status[name] = health_pb2.HealthCheckResponse.SERVING
    names = [*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    return servicer


@asynccontextmanager
async def _http(app: web.Application, settings: Settings) -> AsyncIterator[str]:
    """The HTTP listener, up; yields HOST:PORT."""
    context = None
    if settings.http_tls:
        context = SSLContext(PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(settings.http_tls.certificate, settings.http_tls.key)
        except OSError as error:  # ssl.SSLError is one
            raise FailedPrecondition(
                f"cannot use http_tls {settings.http_tls.certificate} and {settings.http_tls.key}:"
                f" {error.strerror or error}; both are PEM files that this user can read",
                reason="BAD_CONFIG",
            ) from None
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=IDLE_SECONDS)
    await runner.setup()
    try:
        host, _, port = settings.http.rpartition(":")
        site = web.TCPSite(runner, host.strip("[]"), int(port), ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            raise FailedPrecondition(
                f"cannot listen on {settings.http}: {error.strerror}", reason="ADDRESS_IN_USE"
            ) from None
        yield _with_port(settings.http, runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _with_port(address: str, port: int) -> str:
    return f"{address.rpartition(':')[0]}:{port}"


def _names(settings: Settings) -> list[str]:
    """What the listeners' certificate names: what is advertised, where they listen, and this machine."""
    listening = [
        address.rpartition(":")[0].strip("[]")
        for address in (settings.operator, settings.agents)
        if not is_wildcard(address)
    ]
    told = [
        address.rpartition(":")[0].strip("[]")
        for address in (*settings.advertise_operator, *settings.advertise_agents)
    ]
    return [*settings.advertise, *told, *listening, "localhost", "127.0.0.1", "::1", gethostname()]


def _reached_at(settings: Settings, address: str, port: int) -> tuple[str, ...]:
    """Under which addresses hosts reach a listener."""
    names = (f"[{name}]" if ":" in name else name for name in settings.advertise)
    return tuple(f"{name}:{port}" for name in names) or (_with_port(address, port),)


class _Certificates:
    """The gRPC listeners' certificate, issued by our own authority and renewed at two thirds of its life.

    Also where the clock was set back behind the moment it was issued: nobody takes one that is not valid yet.
    """

    def __init__(self, authority: tls.Authorities, names: list[str], clock: Clock) -> None:
        self._authority = authority
        self._names = list(dict.fromkeys(names))
        self._clock = clock
        self._issued_at = self._renew_at = 0
        self._current = self._issue()

    def _issue(self) -> tuple[bytes, bytes]:
        now = self._issued_at = self._clock.now()
        self._renew_at = now + _CERTIFICATE_DAYS * 86_400 * SECOND * 2 // 3
        return self._authority.first.issue_server(self._names, now=now, days=_CERTIFICATE_DAYS)

    def credentials(self, *, clients: bool) -> grpc.ServerCredentials:
        """Server credentials; with `clients`, only peers with a certificate of ours get in."""
        given = self._configuration(clients)
        last = self._current

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal last
            if not self._issued_at <= self._clock.now() < self._renew_at:
                self._current = self._issue()
            if self._current is last:
                return None
            last = self._current
            return self._configuration(clients)

        return grpc.dynamic_ssl_server_credentials(given, fetch, require_client_authentication=clients)  # type: ignore[arg-type]  # None: unchanged

    def _configuration(self, clients: bool) -> grpc.ServerCertificateConfiguration:  # noqa: FBT001  private
        certificate, key = self._current
        roots = self._authority.bundle if clients else None
        return grpc.ssl_server_certificate_configuration([(key, certificate)], roots)
