"""Hosts look, record and report together: what each is told and what is stored is what it would have been alone."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from control_plane.api import together
from control_plane.api.sessions import Session, Sessions
from control_plane.api.together import ENOUGH_RECORDS, MOST_RECORDS, Owed, Pace
from control_plane.api.witness import witness
from control_plane.domain import requests
from control_plane.services import lifecycle
from control_plane.services.sessions import open_session
from control_plane.services.work import Joining, Services
from control_plane.store.database import Tx
from control_plane.store.store import Store
from shared import wire
from shared.errors import PermissionDenied, ResourceExhausted, Unavailable
from shared.model import Batch, Offer, Outcome, Record, Result
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from tests.support.builders import TERMS, Spooled, World, content_digest, make_hello, make_world
from tests.support.stream import make_outcome
from tests.support.waiting import eventually

BOTS = ("bot-1", "bot-2", "bot-3")


class _Counting:
    """A database that counts the readings and transactions it is asked for, and that may be away."""

    def __init__(self, world: World) -> None:
        self._database, self.hints = world.database, world.database.hints
        self.readings = self.transactions = self.refused = 0
        self.away = False

    async def read(self, work: Callable[[Tx], Any]) -> Any:
        self.readings += 1
        return await self._database.read(work)

    async def write(self, work: Callable[[Tx], Any]) -> Any:
        if self.away:
            self.refused += 1
            raise Unavailable("the disk is full")
        self.transactions += 1
        return await self._database.write(work)

    async def close(self) -> None:
        raise AssertionError("it is the world's")


class _Plane:
    """A world with sessions of three hosts, all in an experiment that runs."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.database = _Counting(world)
        self._sessions = Sessions(CollectorRegistry(), new_id=world.new_id, clock=world.clock)
        self._services = Services(
            database=self.database,
            clock=world.clock,
            new_id=world.new_id,
            wake=self._sessions.wake,
            hosts=self._sessions.reads,
            witness=witness,
            joining=Joining(addresses=("127.0.0.1:1",), ca_certificate=b""),
        )
        self.sessions: dict[str, Session] = {}
        self._acknowledged: set[str] = set()

    async def begin(self) -> None:
        uids = {bot: await self.world.agent(bot) for bot in BOTS}
        await self.world.start(await self.world.experiment(*BOTS))
        for bot, uid in uids.items():
            await self.open(bot, uid)

    async def open(self, bot: str, uid: bytes) -> None:
        """The host's newest session."""
        hello, now = make_hello(bot, session_epoch=7), self.world.clock.now()
        opened = await self.world.database.write(
            lambda tx: open_session(Store(tx), uid, hello, terms=TERMS, new_id=self.world.new_id, now=now)
        )
        self.sessions[bot] = Session(self._services, self._sessions, opened, hello)

    async def offers(self) -> dict[str, Offer]:
        """What each host is told, when all look at once."""
        await asyncio.gather(*(session.look() for session in self.sessions.values()))
        return {
            bot: wire.offer_from_pb(said.offer)
            for bot, session in self.sessions.items()
            for said in session.sayings()
            if said.WhichOneof("message") == "offer"
        }

    def hear(self, bot: str, outcome: Outcome) -> None:
        """The host reported it; it is recorded soon."""
        self.sessions[bot].heard(pb.SyncRequest(outcome=wire.outcome_to_pb(outcome)))
        self.sessions[bot].owes()

    def acknowledged(self) -> set[str]:
        """The hosts that were told so far that an outcome is durable."""
        for bot, session in self.sessions.items():
            if "outcome_ack" in [said.WhichOneof("message") for said in session.sayings()]:
                self._acknowledged.add(bot)
        return self._acknowledged

    async def report(self, batches: Sequence[tuple[str, Batch]]) -> list[Any]:
        """What the hosts are answered, when all report at once; how far each is stored, or what was raised."""

        async def one(bot: str, batch: Batch) -> Any:
            return await self._sessions.reports.report(self.database, self.sessions[bot].agent_uid, batch)

        answers = await asyncio.gather(*(one(*asked) for asked in batches), return_exceptions=True)
        return [answer if isinstance(answer, BaseException) else answer.through_seq for answer in answers]

    def view(self, bot: str, content: str = "x") -> Record:
        """What a host saw of its file."""
        return self.world.view(bot, content_digest(content), at=self.world.clock.now())

    async def seen(self) -> dict[str, int]:
        """How many views of each host's are stored."""
        rows = await self.world.rows(
            "select p.public_id, count(*) as n from view v join participant p on p.id = v.participant_id"
            " group by p.public_id"
        )
        return {row["public_id"]: row["n"] for row in rows}

    async def states(self) -> dict[str, str]:
        """How the deployment of each host stands."""
        rows = await self.world.rows(
            "select p.public_id, d.state from deployment d join participant p on p.id = d.participant_id"
        )
        return {row["public_id"]: row["state"] for row in rows}


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[_Plane]:
    async with make_world(tmp_path) as world:
        plane = _Plane(world)
        await plane.begin()
        yield plane


async def test_sessions_that_are_woken_together_look_in_one_reading(plane: _Plane) -> None:
    """Each is told of its own slot only, with the content; what they were told is recorded in one transaction."""
    offers = await plane.offers()
    assert {bot: offer.participant for bot, offer in offers.items()} == {bot: bot for bot in BOTS}
    assert all(file.content is not None for offer in offers.values() for file in offer.files)
    assert plane.database.readings == 1
    for session in plane.sessions.values():
        session.owes()
    await eventually(lambda: not any(session.owing for session in plane.sessions.values()))

    async def offered() -> bool:
        return await plane.states() == dict.fromkeys(BOTS, "offered")

    await eventually(offered)
    assert plane.database.transactions == 1


async def test_a_look_answers_each_session_for_itself(plane: _Plane) -> None:
    """One whose agent was banned is refused, one that another session took the place of ends; the third is told."""
    banned, superseded, sound = (plane.sessions[bot] for bot in BOTS)
    now = plane.world.clock.now()
    await plane.world.database.write(lambda tx: Store(tx).fleet.ban(banned.agent_uid, now=now))
    await plane.open(BOTS[1], superseded.agent_uid)
    found = await asyncio.gather(banned.look(), superseded.look(), sound.look(), return_exceptions=True)
    assert isinstance(found[0], PermissionDenied)
    assert found[1:] == [None, None]
    assert (superseded.over, sound.over) == (True, False)
    assert [said.WhichOneof("message") for said in sound.sayings()] == ["offer"]


async def test_outcomes_of_many_sessions_are_stored_in_one_transaction(plane: _Plane) -> None:
    """Each is acknowledged, progress is not; what comes again in the same transaction is stored once."""
    offers = await plane.offers()
    for bot, offer in offers.items():
        done = make_outcome(offer, Result.APPLIED)
        for outcome in (replace(done, result=Result.IN_PROGRESS), done, done):
            plane.hear(bot, outcome)
    await eventually(lambda: plane.acknowledged() == set(BOTS))
    assert plane.database.transactions == 1
    assert await plane.states() == dict.fromkeys(BOTS, "applied")
    stored = await plane.world.rows("select result from outcome")
    assert [row["result"] for row in stored] == ["applied"] * len(BOTS)
    files = await plane.world.rows("select desired_digest, running_digest from deployment_file")
    assert all(row["running_digest"] == row["desired_digest"] for row in files)


async def test_what_a_host_is_done_with_is_not_read_again(plane: _Plane) -> None:
    """Closed by its host, a slot costs no look any more, of however many experiments there were; until it is news."""

    async def through() -> None:
        for bot, offer in (await plane.offers()).items():
            plane.hear(bot, make_outcome(offer, Result.APPLIED))
        await eventually(lambda: not any(session.owing for session in plane.sessions.values()))

    async def wanted() -> list[tuple[str, int]]:
        uids = [session.agent_uid for session in plane.sessions.values()]
        found = await plane.world.ask(lambda store: store.offers.wanted(uids))
        return sorted((item.participant, item.revision) for item in found)

    async def settled() -> bool:
        return await wanted() == []

    await through()
    assert await wanted() == [(bot, 1) for bot in BOTS]
    values = {"id": "test", "then": "keep"}
    await plane.world.do(lifecycle.complete, requests.parse(requests.Complete, values))
    for session in plane.sessions.values():
        session.wake()
    assert await wanted() == [(bot, 2) for bot in BOTS]
    await through()
    await eventually(settled)
    uid = plane.sessions[BOTS[0]].agent_uid
    [again] = await plane.world.ask(lambda store: store.offers.wanted([uid], behind={uid}))
    assert (again.revision, again.ended) == (2, True)
    # As a server of an earlier version orders something, which knows nothing of what is settled.
    await plane.world.database.write(lambda tx: tx.run("update slot set revision = revision + 1"))
    assert [bot for bot, _ in await wanted()] == [*BOTS]
    await plane.world.do(lifecycle.ship, requests.parse(requests.Ship, {"id": "test", "variantId": "a"}))
    assert await wanted() == [(bot, 4) for bot in BOTS]


async def test_what_cannot_be_stored_ends_the_session_that_said_it(plane: _Plane) -> None:
    """The others' outcomes of the same moment are stored all the same."""
    offers = await plane.offers()
    for bot, offer in offers.items():
        plane.hear(bot, make_outcome(offer, Result.APPLIED))
    nonsense = replace(make_outcome(offers[BOTS[0]], Result.APPLIED), attempt=2**63)
    plane.sessions[BOTS[0]].give_back(Owed(outcomes=[nonsense], told=[]))  # the wire takes no such number
    await eventually(lambda: plane.acknowledged() == set(BOTS[1:]))
    await eventually(lambda: plane.sessions[BOTS[0]].over)
    states = await plane.states()
    assert states.pop(BOTS[0]) == "pending"
    assert set(states.values()) == {"applied"}


async def test_outcomes_wait_for_a_database_that_takes_nothing(plane: _Plane) -> None:
    """Nothing is acknowledged before it is durable, and nothing is lost; the sessions stay."""
    offers = await plane.offers()
    plane.database.away = True
    for bot, offer in offers.items():
        plane.hear(bot, make_outcome(offer, Result.APPLIED))
    await eventually(lambda: plane.database.refused)
    assert not plane.acknowledged()
    plane.database.away = False
    await eventually(lambda: plane.acknowledged() == set(BOTS))
    assert not any(session.over for session in plane.sessions.values())
    assert await plane.states() == dict.fromkeys(BOTS, "applied")


async def test_a_session_that_ended_meanwhile_is_not_waited_for(plane: _Plane) -> None:
    """Its agent tells its outcome again in the next one; the others' are stored."""
    offers = await plane.offers()
    plane.database.away = True
    for bot, offer in offers.items():
        plane.hear(bot, make_outcome(offer, Result.APPLIED))
    await eventually(lambda: plane.database.refused)
    plane.sessions[BOTS[0]].end()
    plane.database.away = False
    await eventually(lambda: plane.acknowledged() == set(BOTS[1:]))
    assert (await plane.states())[BOTS[0]] == "pending"


async def test_reports_that_come_together_are_stored_in_one_transaction(plane: _Plane) -> None:
    """Two of one spool among them go on from each other, and the one that is sent again adds nothing."""
    spools = {bot: Spooled(epoch=plane.world.new_id()) for bot in BOTS}
    batches = [(bot, spool.batch(plane.view(bot))) for bot, spool in spools.items()]
    following = (BOTS[0], spools[BOTS[0]].batch(plane.view(BOTS[0], "y"), plane.view(BOTS[0], "z")))
    assert await plane.report([*batches, batches[0], following]) == [1, 1, 1, 1, 3]
    assert plane.database.transactions == 1
    assert await plane.seen() == {BOTS[0]: 3, BOTS[1]: 1, BOTS[2]: 1}


async def test_a_path_that_no_index_takes_costs_only_its_own_host(plane: _Plane) -> None:
    """What one host says of a target fails its own report at most, never those of other hosts."""
    long = "".join(map(chr, random.Random(1).choices(range(0x4E00, 0x9FA5), k=1_000)))
    batches = {bot: Spooled(epoch=plane.world.new_id()).batch(plane.view(bot)) for bot in BOTS}
    said = plane.world.impression(BOTS[1], at=plane.world.clock.now(), path=long)
    batches[BOTS[1]] = Spooled(epoch=plane.world.new_id()).batch(said)
    assert await plane.report(list(batches.items())) == [1, 1, 1]
    assert await plane.seen() == {BOTS[0]: 1, BOTS[2]: 1}
    assert await plane.world.rows("select count from spool_loss") == [{"count": 1}]


async def test_reports_of_many_records_take_several_transactions(plane: _Plane) -> None:
    """So that nobody else waits for long; a batch is never divided, and one that is too large is none."""
    spool, half = Spooled(epoch=plane.world.new_id()), MOST_RECORDS // 2
    batches = [spool.batch(*(plane.view(BOTS[0], str(at)) for at in range(half))) for _ in range(3)]
    large = Spooled(epoch=plane.world.new_id()).batch(*(plane.view(BOTS[1]) for _ in range(MOST_RECORDS + 1)))
    *through, refused = await plane.report([*((BOTS[0], batch) for batch in batches), (BOTS[1], large)])
    assert through == [half, 2 * half, 3 * half]
    assert isinstance(refused, ResourceExhausted)
    assert plane.database.transactions == 2
    assert await plane.seen() == {BOTS[0]: 3 * half}


async def test_enough_reports_are_not_kept_waiting_for_others(
    plane: _Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long others would be waited for; what is not enough alone is completed by what comes meanwhile."""
    monkeypatch.setattr(together, "GATHER_SECONDS", 1e12)
    spool, most = Spooled(epoch=plane.world.new_id()), ENOUGH_RECORDS - 1
    reports = together.Reports(clock=plane.world.clock)
    uid = plane.sessions[BOTS[0]].agent_uid
    first = reports.report(
        plane.database, uid, spool.batch(*(plane.view(BOTS[0], str(at)) for at in range(most)))
    )
    await asyncio.sleep(0)
    assert (await reports.report(plane.database, uid, spool.batch(plane.view(BOTS[0], "last")))).through_seq
    assert (await first).through_seq == most
    assert plane.database.transactions == 1
    whole = spool.batch(*(plane.view(BOTS[0], str(at)) for at in range(ENOUGH_RECORDS)))
    assert (await reports.report(plane.database, uid, whole)).through_seq == 2 * ENOUGH_RECORDS


def test_others_are_waited_for_at_the_pace_they_come() -> None:
    """Twice as long each time several came, and for a moment by who is alone."""
    pace, waits = Pace(), []
    for number in (1, 2, 3, 200, 2, 1, 2):
        waits.append(pace.seconds)
        pace.gathered(number)
    assert waits == [0.02, 0.02, 0.04, 0.08, 0.16, 0.16, 0.02]


def test_what_is_gathered_at_any_pace_is_complete_at_the_same_moments() -> None:
    """The longer is waited for, the fewer of them; nobody waits for longer than that."""
    moments = []
    for several in range(4):
        pace, found, now = Pace(), set(), 1_234.567
        for _ in range(several):
            pace.gathered(2)
        while (until := pace.until(now)) < 1_236.5:
            assert now < until <= now + pace.seconds
            found.add(round(until, 3))
            now = until + 0.000_1
        moments.append(found)
    assert [len(found) for found in moments] == [96, 48, 24, 12]
    assert moments[3] < moments[2] < moments[1] < moments[0]


async def test_a_report_that_cannot_be_stored_fails_alone(plane: _Plane) -> None:
    """One of an agent that was banned, and one that the database refuses; the other of the same moment is stored."""
    banned, unlucky, sound = BOTS
    now, uid = plane.world.clock.now(), plane.sessions[banned].agent_uid
    await plane.world.database.write(lambda tx: Store(tx).fleet.ban(uid, now=now))
    batches = {bot: Spooled(epoch=plane.world.new_id()).batch(plane.view(bot)) for bot in BOTS}
    batches[unlucky] = replace(batches[unlucky], first_seq=2**63)  # the wire takes no such number
    refused, failed, through = await plane.report(list(batches.items()))
    assert isinstance(refused, PermissionDenied)
    assert isinstance(failed, Exception)
    assert not isinstance(failed, Unavailable)
    assert through == 1
    assert await plane.seen() == {sound: 1}
    marks = await plane.world.rows("select high_seq from spool_epoch")
    assert [row["high_seq"] for row in marks] == [1]


async def test_reports_to_a_database_that_takes_nothing_are_refused(plane: _Plane) -> None:
    """Each host is told so at once, and sends again; the database is asked once for all of them."""
    batches = [(bot, Spooled(epoch=plane.world.new_id()).batch(plane.view(bot))) for bot in BOTS]
    plane.database.away = True
    assert all(isinstance(answer, Unavailable) for answer in await plane.report(batches))
    assert plane.database.refused == 1
    plane.database.away = False
    assert await plane.report(batches) == [1, 1, 1]
