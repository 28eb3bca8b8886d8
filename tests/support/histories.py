"""One control plane and one host as a model sees them: real parts on both sides, everything between them simulated.

Real: the services over SQLite, the session that speaks for the control plane, the reconciler and the spool over files.
Simulated: the network (a session's messages wait until they are delivered, out of order, twice, or never), the disk
(the host dies at any call that changes a file, and nothing it would have done afterwards happens), and the clock.
"""

import asyncio
import os
import threading
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

from agent.reconciler import Reconciler
from agent.spool import Spool
from control_plane.api.sessions import Session, Sessions
from control_plane.api.witness import witness
from control_plane.domain import requests
from control_plane.services import deployments, lifecycle
from control_plane.services.sessions import open_session
from control_plane.services.work import Joining, Services
from control_plane.store.store import Store
from shared import wire
from shared.model import (
    Event,
    EventKind,
    Outcome,
    ParticipantState,
    View,
)
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from tests.support.builders import TERMS, Ids, World, make_hello, make_variant, make_world
from tests.support.host import make_config, make_participant
from tests.support.oracle import Oracle
from tests.support.waiting import PATIENCE

T = TypeVar("T")

BOTS = ("bot-1", "bot-2")
PATH = "soul.md"
EVERYTHING = replace(TERMS, withdraw_limit=100)
CHANGES = ("open", "write", "fsync", "fdatasync", "rename", "replace", "unlink", "mkdir", "rmdir", "link")


class Died(BaseException):
    """The host's process ended here."""


class Disk:
    """The calls of `os` by which a host's threads change files; at the one it is told, the process dies."""

    def __init__(self) -> None:
        self.dies_after: int | None = None  # calls from now on
        self.dead = False

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The calls of this process go through here, those of asyncio's own threads that is."""
        real = {name: getattr(os, name) for name in CHANGES}

        def through(name: str) -> Any:
            def call(*arguments: Any, **named: Any) -> Any:
                if threading.current_thread().name.startswith("asyncio"):
                    self._step()
                return real[name](*arguments, **named)

            return call

        for name in CHANGES:
            setattr(os, name, through(name))
        try:
            yield
        finally:
            for name, call in real.items():
                setattr(os, name, call)

    def _step(self) -> None:
        if self.dies_after is not None:
            self.dies_after -= 1
            self.dead = self.dead or self.dies_after < 0
        if self.dead:
            raise Died


@dataclass(eq=False)
class Line:
    """One session: what the control plane says and hears, and what is on its way."""

    session: Session
    up: list[pb.SyncRequest] = field(default_factory=list)
    down: list[pb.SyncResponse] = field(default_factory=list)


@dataclass
class History:
    """The two sides and what is between them; `step` runs anything asynchronous of it."""

    folder: Path
    disk: Disk
    loop: asyncio.AbstractEventLoop
    stack: AsyncExitStack
    world: World
    services: Services
    sessions: Sessions
    uid: bytes
    experiment: Any
    oracle: Oracle
    lines: list[Line] = field(default_factory=list)
    epoch: int = 0
    told: dict[tuple[str, bytes], int] = field(default_factory=dict)
    """By slot: the highest revision that was said to be applied."""
    reconciler: Reconciler | None = None
    spool: Spool | None = None
    running: "asyncio.Task[None] | None" = None
    unanswered: list[Any] = field(default_factory=list)

    def step(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(_bounded(work))

    def file(self, bot: str) -> Path:
        return self.folder / bot / PATH

    # -- the host

    async def start_host(self) -> None:
        """The host's process runs, over whatever the one before left."""
        self.disk.dead, self.disk.dies_after = False, None
        self.reconciler = Reconciler(
            config=make_config(self.folder, *(make_participant(self.folder / bot, bot) for bot in BOTS)),
            state_dir=self.folder / "state",
            clock=self.world.clock,
            new_id=self.world.new_id,
            record_view=self._view,
            fetch=self._fetch,
            on_outcome=self._outcome,
            on_change=lambda: None,
        )
        if self.spool is None:
            spool_dir = self.folder / "state" / "spool"
            self.spool = Spool(spool_dir, clock=self.world.clock, new_id=self.world.new_id)
        await self.reconciler.start()
        self.running = asyncio.ensure_future(self.reconciler.run())

    def _view(self, view: View) -> None:
        if not self.disk.dead and self.spool is not None:
            self.spool.record(view)

    async def _fetch(self, digest: bytes, size: int) -> bytes:
        raise OSError("contents are inline")

    def _outcome(self, outcome: Outcome) -> None:
        if not self.disk.dead and self.lines:
            self._say(outcome)

    def _say(self, outcome: Outcome) -> None:
        self.lines[-1].up.append(pb.SyncRequest(outcome=wire.outcome_to_pb(outcome)))
        if outcome.result.holds:
            key = (outcome.participant, outcome.slot_id)
            self.told[key] = max(self.told.get(key, 0), outcome.revision)

    async def end_host(self, *, clean: bool) -> None:
        """The process has ended, by itself or because it died; its spool is closed only where it is `clean`."""
        assert self.running is not None
        assert self.spool is not None
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        if clean or self.disk.dead:
            await asyncio.to_thread(_unhindered, self.disk, self.spool.close)
            self.spool = None
        self.reconciler = self.running = None
        for line in self.lines:
            line.session.end()

    async def settle(self) -> None:
        """The host has done what it was offered, or died."""
        assert self.reconciler is not None
        while not self.disk.dead and not self.reconciler.settled():
            await asyncio.sleep(0)
            assert self.running is not None
            if self.running.done():
                break
            await asyncio.sleep(0.0005)
        if self.disk.dead:
            await self.end_host(clean=False)
            await self.start_host()

    # -- the network

    async def connect(self) -> None:
        """A session is open; everything the host owes goes up in it."""
        assert self.reconciler is not None
        assert self.spool is not None
        self.epoch += 1
        slots = self.reconciler.slots()
        for slot in slots:
            key = (slot.participant, slot.slot_id)
            assert slot.revision >= self.told.get(key, 0), "what was applied is forgotten, or went back"
        hello = make_hello(
            session_epoch=self.epoch,
            participants=tuple(ParticipantState(participant=bot, targets=("*.md",)) for bot in BOTS),
            slots=slots,
            spool=self.spool.state(),
        )
        now = self.world.clock.now()
        opened = await self.world.database.write(
            lambda tx: open_session(
                Store(tx), self.uid, hello, terms=EVERYTHING, new_id=self.world.new_id, now=now
            )
        )
        line = Line(Session(self.services, self.sessions, opened, hello))
        self.sessions.enter(line.session)
        self.lines.append(line)
        for outcome in self.reconciler.unacknowledged():
            self._say(outcome)

    async def gather(self, line: Line) -> None:
        """What the control plane has to say in the session is on its way."""
        if line.session.over:
            return
        await line.session.look()
        line.down += list(line.session.sayings())
        await line.session.store()

    async def deliver_down(self, line: Line, index: int, *, again: bool) -> None:
        """One message reaches the host, whichever; `again`: and stays on its way as well."""
        message = line.down[index] if again else line.down.pop(index)
        assert self.reconciler is not None
        kind = message.WhichOneof("message")
        if kind == "offer":
            self.reconciler.offer(wire.offer_from_pb(message.offer))
        elif kind == "outcome_ack":
            self.reconciler.acknowledged(wire.outcome_ack_from_pb(message.outcome_ack))
        await self.settle()

    async def deliver_up(self, line: Line, index: int, *, again: bool) -> None:
        """One message reaches the control plane, and what it says is stored."""
        message = line.up[index] if again else line.up.pop(index)
        line.session.heard(message)
        await line.session.store()
        await self.gather(line)

    # -- reports

    async def report(self, bot: str, event: str) -> None:
        """An impression was accepted."""
        assert self.spool is not None
        body = Event(
            participant=bot,
            kind=EventKind.IMPRESSION,
            occurred_at=self.world.clock.now(),
            event_id=event,
        )
        await self.spool.append(body)
        self.oracle.accepted.append(event)

    async def upload(self, *, answered: bool) -> bool:
        """Whether there was a batch: it is stored, and the host hears of it where that is `answered`."""
        assert self.spool is not None
        batch = await self.spool.next_batch(5, 100_000)
        if batch is None:
            return False
        receipt = await self.world.send(self.uid, batch)
        if answered:
            await self.spool.acknowledge(batch.epoch, receipt.through_seq)
        return True

    # -- the end

    async def heal(self) -> None:
        """Nothing fails any more: one session, everything delivered in order, every report uploaded."""
        self.disk.dies_after = None
        self.lines.clear()
        for _ in range(3):  # the host may learn of something only by a later Hello
            await self.connect()
            line = self.lines[-1]
            await self.gather(line)
            while line.up or line.down:
                while line.down:
                    await self.deliver_down(line, 0, again=False)
                while line.up:
                    await self.deliver_up(line, 0, again=False)
        while await self.upload(answered=True):
            pass

    async def verb(self, name: str, **fields: Any) -> Any:
        """The experiment after the verb. Raises FailedPrecondition for one that does not fit."""
        use_case, kind = _VERBS[name]
        return await self.world.do(use_case, requests.parse(kind, {"id": "test", **fields}))


_VERBS: dict[str, tuple[Any, Any]] = {
    "start": (lifecycle.start, requests.ById),
    "pause": (lifecycle.pause, requests.Pause),
    "resume": (lifecycle.resume, requests.ById),
    "stop": (lifecycle.stop, requests.ById),
    "complete": (lifecycle.complete, requests.Complete),
    "ship": (lifecycle.ship, requests.Ship),
    "reset": (lifecycle.reset, requests.Reset),
    "deploy": (deployments.create, requests.CreateDeployment),
}


def _unhindered(disk: Disk, work: Any) -> None:
    dead, disk.dead, disk.dies_after = disk.dead, False, None
    work()
    disk.dead = dead


async def _bounded(work: Awaitable[T]) -> T:
    async with asyncio.timeout(PATIENCE):
        return await work


def begun(folder: Path, loop: asyncio.AbstractEventLoop) -> History:
    """A host that runs and was never connected, and a draft of two variants for both of its participants."""
    stack, disk = AsyncExitStack(), Disk()
    stack.enter_context(disk.in_place())

    async def begin() -> History:
        world = await stack.enter_async_context(make_world(folder))
        uid = await world.agent(*BOTS)
        experiment = await world.experiment(*BOTS)
        sessions = Sessions(CollectorRegistry(), new_id=Ids(11), clock=world.clock)
        services = Services(
            database=world.database,
            clock=world.clock,
            new_id=world.new_id,
            wake=sessions.wake,
            hosts=sessions.reads,
            witness=witness,
            joining=Joining(addresses=("127.0.0.1:1",), ca_certificate=b""),
        )
        for bot in BOTS:
            (folder / bot).mkdir()
            (folder / bot / PATH).write_text(f"I am {bot}.")
        (folder / "state").mkdir(mode=0o700)
        history = History(
            folder=folder,
            disk=disk,
            loop=loop,
            stack=stack,
            world=world,
            services=services,
            sessions=sessions,
            uid=uid,
            experiment=experiment,
            oracle=Oracle(database=folder / "variantd.db"),
        )
        await history.start_host()
        return history

    return loop.run_until_complete(begin())


def content_of(variant: str) -> bytes:
    """What a variant of the experiment writes."""
    return str(make_variant(variant)["content"]).encode()
