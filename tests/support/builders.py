"""Builders of what tests talk about: a database on a temporary file, a project, experiments, records."""

import itertools
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control_plane.domain import inference, requests
from control_plane.domain.fleet import Agent
from control_plane.services import access, experiments, lifecycle, results, sessions
from control_plane.services.spools import Report, Sent, report
from control_plane.services.work import Caller, Joining, Scope, Work
from control_plane.store.access import Incarnation
from control_plane.store.database import Database, Tx
from control_plane.store.sqlite import SqliteDatabase
from control_plane.store.store import Store
from shared import wire
from shared.model import (
    CHAIN_START,
    Batch,
    Digest,
    Event,
    EventKind,
    Hello,
    Loaded,
    ParticipantState,
    Platform,
    Record,
    SpoolState,
    View,
    ViewState,
    chain,
    digest,
)
from shared.moment import SECOND
from tests.support.clock import FakeClock

TERMS = sessions.Terms(incarnation=Incarnation(id=b"this incarnation"))
"""What sessions are opened under, where a test does not care."""


class Ids:
    """Ids that count up, so that a failing test reads the same twice."""

    def __init__(self, prefix: int = 1) -> None:
        self._next = itertools.count(prefix << 64)

    def __call__(self) -> bytes:
        return next(self._next).to_bytes(16, "big")


@dataclass
class World:
    """A control plane without its transports: database, clock, one project, use cases run directly."""

    database: Database
    clock: FakeClock
    caller: Caller
    new_id: Ids = field(default_factory=lambda: Ids(7))
    spools: dict[bytes, "Spooled"] = field(default_factory=dict)

    async def answer(self, **asked: Any) -> dict[str, Any]:
        """Results of the one experiment, as both transports answer them."""
        found = await self.do(results.get, requests.parse(requests.GetResults, {"id": "test", **asked}))
        return inference.answer(found.evidence)

    async def do(self, use_case: Any, request: Any) -> Any:
        """What the use case returns, committed."""

        def work(tx: Tx) -> Any:
            item = Work(
                store=Store(tx),
                caller=self.caller,
                now=self.clock.now(),
                new_id=self.new_id,
                joining=Joining(addresses=("127.0.0.1:7401",), ca_certificate=b""),
            )
            return use_case(item, request)

        return await self.database.write(work)

    async def ask(self, question: Any) -> Any:
        """What `question` answers of a Store."""
        return await self.database.read(lambda tx: question(Store(tx)))

    async def rows(self, sql: str) -> list[dict[str, Any]]:
        """Rows as plain dictionaries, for oracles that must not share code with what they check."""
        return await self.database.read(lambda tx: [dict(row) for row in tx.all(sql)])

    async def agent(self, *participants: str) -> bytes:
        """The uid of a connected agent that serves these participants."""
        uid = self.new_id()
        agent = Agent(
            uid=uid,
            project_id=self.caller.project_id,
            name="host",
            hostname="host",
            labels={},
            host_labels={},
            participant_patterns=(),
            generation=0,
            version="",
            capabilities=(),
            platform=None,
            session_id=None,
            session_epoch=0,
            boot_id=None,
            connected_at=None,
            last_seen_at=None,
            lease_until=0,
            certificate_serial="1",
            certificate_not_after=0,
            spool=None,
            conditions=(),
            enrolled_at=self.clock.now(),
            banned_at=None,
        )
        hello = make_hello(*participants)

        def enter(tx: Tx) -> None:
            store = Store(tx)
            store.fleet.add_agent(agent)
            sessions.open_session(store, uid, hello, terms=TERMS, new_id=self.new_id, now=self.clock.now())

        await self.database.write(enter)
        return uid

    async def session(self, uid: bytes, *participants: str, terms: Any = TERMS, **hello: Any) -> Any:
        """A session of the agent, which says this in its Hello."""
        said, now = make_hello(*participants, **hello), self.clock.now()
        return await self.database.write(
            lambda tx: sessions.open_session(Store(tx), uid, said, terms=terms, new_id=self.new_id, now=now)
        )

    async def experiment(self, *participants: str, settle: int = 0, **fields: Any) -> Any:
        """A draft with two variants, `a` (control) and `b`."""
        values = {
            "name": "Test",
            "targetFile": "soul.md",
            "variants": [make_variant("a", control=True), make_variant("b")],
            **({} if "participants" in fields else {"participantIds": list(participants)}),
            "exposureCriteria": {"settleSeconds": settle},
            **fields,
        }
        view = await self.do(experiments.create, requests.parse(requests.CreateExperiment, values))
        return view.experiment

    async def start(self, experiment: Any) -> Any:
        """The experiment, running."""
        view = await self.do(lifecycle.start, requests.ById(id=experiment.key))
        return view.experiment

    async def assigned(self, experiment: Any) -> dict[str, str]:
        """Variant key by participant."""
        keys = {variant.id: variant.key for variant in experiment.variants}
        found = await self.ask(lambda store: store.experiments.assignments(experiment.phase.id))
        return {item.participant: keys[item.variant_id] for item in found}

    async def report(self, uid: bytes, *records: Record) -> Report:
        """The agent's next batch, stored."""
        spool = self.spools.setdefault(uid, Spooled(epoch=self.new_id()))
        return await self.send(uid, spool.batch(*records))

    async def send(self, uid: bytes, batch: Batch) -> Report:
        """The batch, stored."""
        now = self.clock.now()
        sent = Sent(project_id=self.caller.project_id, agent_uid=uid, batch=batch)
        return (await self.database.write(lambda tx: report(Store(tx).events, [sent], now=now)))[0]

    def view(self, participant: str, value: Digest | None, *, at: int, path: str = "soul.md") -> Record:
        """A view record."""
        body = View(participant=participant, path=path, digest=value, state=ViewState.APPLIED, from_at=at)
        return Record(id=self.new_id(), recorded_at=at, body=body)

    def loaded(self, participant: str, value: Digest, *, at: int, path: str = "soul.md") -> Record:
        """A receipt record."""
        body = Loaded(participant=participant, path=path, digest=value, loaded_at=at)
        return Record(id=self.new_id(), recorded_at=at, body=body)

    def impression(self, participant: str, *, at: int, **fields: Any) -> Record:
        """An impression record."""
        body = Event(participant=participant, kind=EventKind.IMPRESSION, occurred_at=at, **fields)
        return Record(id=self.new_id(), recorded_at=at, body=body)

    def conversion(self, participant: str, *, at: int, name: str = "done", **fields: Any) -> Record:
        """A conversion record."""
        body = Event(
            participant=participant, kind=EventKind.CONVERSION, event_name=name, occurred_at=at, **fields
        )
        return Record(id=self.new_id(), recorded_at=at, body=body)


@dataclass
class Spooled:
    """An agent's side of one spool epoch."""

    epoch: bytes
    next_seq: int = 1
    chain: bytes = CHAIN_START

    def batch(self, *records: Record) -> Batch:
        """The next batch with these records."""
        raws = tuple(wire.record_to_bytes(record) for record in records)
        made = Batch(
            epoch=self.epoch,
            first_seq=self.next_seq,
            chain=self.chain,
            records=raws,
            tail_seq=self.next_seq + len(raws) - 1,
        )
        for raw in raws:
            self.chain = chain(self.chain, raw)
        self.next_seq += len(raws)
        return made


ENGINES = ("sqlite", "postgres")
_engine = ContextVar("engine", default="sqlite")


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Worlds made meanwhile are on this engine, a real one."""
    token = _engine.set(name)
    try:
        yield
    finally:
        _engine.reset(token)


def open_database(folder: Path) -> Database:
    """The folder's database, made at the first call."""
    if _engine.get() == "sqlite":
        return SqliteDatabase.open(folder / "variantd.db")
    from control_plane.store.postgres import PostgresDatabase
    from tests.support import postgres

    return PostgresDatabase.open(postgres.url_of(folder))


@contextmanager
def nobody_writes(folder: Path) -> Iterator[None]:
    """Another process holds the folder's database, so that nothing is written meanwhile."""
    if _engine.get() == "sqlite":
        with closing(sqlite3.connect(folder / "variantd.db", isolation_level=None)) as other:
            other.execute("begin immediate")
            yield
        return
    from tests.support import postgres

    with postgres.writers_turn(postgres.url_of(folder)):
        yield


@asynccontextmanager
async def make_world(folder: Path) -> AsyncIterator[World]:
    """A fresh database, with the default project; on the engine that `engine` names."""
    database = open_database(folder)
    clock = FakeClock()
    try:
        await database.write(lambda tx: access.initialise(Store(tx), new_id=Ids(3), now=clock.now()))
        project_id = await database.read(lambda tx: Store(tx).access.project(access.DEFAULT_PROJECT))
        assert project_id is not None
        caller = Caller(project_id=project_id, actor="test", scopes=frozenset({Scope.ADMIN}))
        yield World(database=database, clock=clock, caller=caller)
    finally:
        await database.close()


def make_hello(*participants: str, **fields: Any) -> Hello:
    """A Hello that declares these participants."""
    values = {
        "agent_version": "0.1.0",
        "boot_id": "boot",
        "session_epoch": 1,
        "incarnation": b"",
        "hostname": "host",
        "platform": Platform(os="linux", kernel="6", arch="x86_64"),
        "participants": tuple(ParticipantState(participant=p, targets=("*.md",)) for p in participants),
        "slots": (),
        "spool": SpoolState(epoch=bytes(16)),
        **fields,
    }
    return Hello(**values)


def make_variant(key: str, *, control: bool = False, weight: int = 50) -> dict[str, Any]:
    """A variant as a caller writes it; its content is its key."""
    return {"name": key, "key": key, "content": key, "isControl": control, "weight": weight}


def content_digest(key: str) -> Digest:
    """Digest of the content of `make_variant`."""
    return digest(key.encode())


def seconds(count: float) -> int:
    """A stretch of time in the unit of every moment."""
    return round(count * SECOND)
