"""What a Hello means: processes that pass for one agent, databases that were put back, hosts that know more."""

import itertools
from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.domain.fleet import Agent
from control_plane.services import access, deployments, fleet, lifecycle, sessions
from control_plane.store.access import Incarnation
from control_plane.store.store import Store
from shared.errors import PermissionDenied
from shared.ids import show_id
from shared.model import FileState, OfferAction, Result, SlotState, SpoolState, Step, digest
from tests.support.builders import TERMS, World

OWN = TERMS.incarnation.id
NEWER = sessions.Terms(incarnation=Incarnation(id=b"a newer one there", ancestors=(OWN, b"the first of all")))


_EPOCHS = itertools.count(2)


async def process(world: World, uid: bytes, name: str, *participants: str) -> Any:
    """A session of one process of the agent, told from others by the epoch of its spool."""
    spool = SpoolState(epoch=name.encode().ljust(16))
    return await world.session(uid, *participants, spool=spool, session_epoch=next(_EPOCHS))


async def known(world: World, uid: bytes) -> Agent:
    """The agent as it is stored."""
    agent: Agent = await world.ask(lambda store: store.fleet.agent(uid))
    return agent


async def codes(world: World, uid: bytes) -> list[str]:
    """What the control plane found wrong with the agent."""
    return [finding["code"] for finding in (await known(world, uid)).findings]


async def offers(world: World, uid: bytes) -> dict[str, tuple[OfferAction, int]]:
    """What the agent may be offered, by participant."""
    found = await world.ask(lambda store: store.offers.wanted([uid]))
    return {item.participant: (item.action, item.revision) for item in found}


def holds(participant: str, slot_id: bytes, revision: int, **fields: Any) -> SlotState:
    """A slot as a host says it."""
    return SlotState(
        participant=participant,
        slot_id=slot_id,
        revision=revision,
        files=(FileState(path="soul.md", digest=digest(b"a")),),
        step=Step.SWAPPED,
        result=Result.APPLIED,
        **fields,
    )


# -- one process or two


@pytest.mark.fault(35)
async def test_a_process_that_comes_back_is_found_and_the_third_time_both_are_kept_out(world: World) -> None:
    """Newest wins until then; the finding says what to do, and releasing is the way back."""
    uid = await world.agent("p")
    await process(world, uid, "one", "p")
    await process(world, uid, "two", "p")
    assert await codes(world, uid) == []
    for name in ("one", "two"):
        world.clock.jump(5)
        assert not (await process(world, uid, name, "p")).quarantined
        assert await codes(world, uid) == ["DUPLICATE_SESSION"]
    assert (await process(world, uid, "one", "p")).quarantined
    [finding] = (await known(world, uid)).findings
    assert finding["severity"] == "error"
    assert f"variantctl agents release {show_id(uid)}" in finding["message"]
    assert await world.ask(lambda store: store.fleet.may_speak(uid)) is None
    for name in ("one", "two", "three"):
        with pytest.raises(PermissionDenied, match="two processes") as refused:
            await process(world, uid, name, "p")
        assert refused.value.reason == "DUPLICATE_SESSION"
    released = await world.do(fleet.release_agent, requests.ById(id=show_id(uid)))
    assert (released.quarantined_at, released.findings) == (None, ())
    assert not (await process(world, uid, "one", "p")).quarantined
    assert await codes(world, uid) == []


async def test_alternations_count_within_ten_minutes_only(world: World) -> None:
    """Four in an hour are told each time, and keep nobody out."""
    uid = await world.agent("p")
    for name in ("one", "two", "one", "two", "one", "two", "one"):
        opened = await process(world, uid, name, "p")
        assert not opened.quarantined
        world.clock.jump(400)
        lease = (uid, opened.id, world.clock.now(), None)
        await world.database.write(
            lambda tx: Store(tx).fleet.renew_leases([lease], until=world.clock.now() + 30_000_000)  # noqa: B023
        )
    assert await codes(world, uid) == ["DUPLICATE_SESSION"]


async def test_a_process_that_was_killed_and_started_again_is_no_duplicate(world: World) -> None:
    """However often: each start is another process, and none comes back. Nor does one that resumes itself."""
    uid = await world.agent("p")
    for start in range(8):
        await process(world, uid, f"start {start}", "p")
        await world.session(
            uid,
            "p",
            spool=SpoolState(epoch=f"start {start}".encode().ljust(16)),
            session_epoch=2,
            resumes=True,
        )
    assert "DUPLICATE_SESSION" not in await codes(world, uid)
    assert (await known(world, uid)).quarantined_at is None


async def test_after_a_goodbye_another_process_may_come(world: World) -> None:
    """A session that ended is nobody's to take: two hosts that take turns properly are not told apart from one."""
    uid = await world.agent("p")
    for name in ("one", "two") * 4:
        opened = await process(world, uid, name, "p")
        await world.database.write(
            lambda tx: Store(tx).fleet.end_session(uid, opened.id, now=world.clock.now())  # noqa: B023
        )
    assert "DUPLICATE_SESSION" not in await codes(world, uid)


@pytest.mark.fault(36)
async def test_an_older_state_directory_is_told(world: World) -> None:
    """Another process that begins a session of a number that was had is told as such, until it is past it."""
    uid = await world.agent("p")
    await world.session(uid, "p", session_epoch=7, spool=SpoolState(epoch=b"first".ljust(16)))
    await world.session(uid, "p", session_epoch=5, spool=SpoolState(epoch=b"second".ljust(16)))
    assert await codes(world, uid) == ["SESSION_REGRESSED"]
    await world.session(uid, "p", session_epoch=8, spool=SpoolState(epoch=b"second".ljust(16)))
    assert await codes(world, uid) == []


# -- whose history is the longer


@pytest.mark.fault(37)
async def test_a_host_that_is_ahead_gets_no_offers_until_there_is_another_incarnation(world: World) -> None:
    """Not even newer ones; the incarnation after makes what it wants newer than what the host has."""
    uid = await world.agent("p", "q")
    started = await world.start(await world.experiment("p", "q"))
    slots = (holds("p", started.id, 5), holds("q", started.id, 1))
    opened = await world.session(uid, "p", "q", incarnation=OWN, slots=slots)
    assert opened.ahead
    [finding] = (await known(world, uid)).findings
    assert (finding["code"], finding["severity"]) == ("HOST_AHEAD", "error")
    assert "variantd admin new-incarnation" in finding["message"]
    values = {"id": started.key, "participantId": "p", "variantId": "a"}
    await world.do(deployments.create, requests.parse(requests.CreateDeployment, values))
    assert (await offers(world, uid))["p"] == (OfferAction.WRITE, 6), "max(own, reported) + 1"
    assert (await world.session(uid, "p", "q", incarnation=OWN, slots=slots)).ahead
    again = await world.session(uid, "p", "q", incarnation=OWN, slots=slots, terms=NEWER)
    assert not again.ahead
    assert await codes(world, uid) == []
    assert await offers(world, uid) == {"p": (OfferAction.WRITE, 6), "q": (OfferAction.WRITE, 1)}


async def test_what_a_deleted_participant_of_that_name_had_is_not_ahead(world: World) -> None:
    """The revisions were made here: the new participant's slot goes on above them."""
    uid = await world.agent("p", "q")
    started = await world.start(await world.experiment("p", "q"))
    slots = (holds("p", started.id, 1),)
    old = await world.rows("select * from slot")
    await world.database.write(
        lambda tx: [
            tx.run("update slot set revision = 0"),
            tx.run("update slot set reported_revision = 0"),
        ]
    )
    assert len(old) == 2
    assert not (await world.session(uid, "p", "q", incarnation=OWN, slots=slots)).ahead
    assert (await offers(world, uid))["p"][1] == 2


async def test_every_restored_life_names_those_before_it(world: World) -> None:
    """So that a host that was away over several finds its way; each pair is a succession."""
    first = await world.ask(lambda store: store.access.incarnation())
    for _ in range(2):
        await world.database.write(
            lambda tx: access.succeed(Store(tx), new_id=world.new_id, now=world.clock.now())
        )
    last = await world.ask(lambda store: store.access.incarnation())
    assert last.ancestors[-1] == first.id
    assert last.predecessor == last.ancestors[0] != first.id
    assert last.successions == [(last.id, last.predecessor), (last.predecessor, first.id)]
    assert first.successions == [(first.id, b"")]


async def test_whatever_life_the_host_knew_another_one_overtakes_it(world: World) -> None:
    """One, two or unknown lives back: what is wanted becomes newer than what the host has, once."""
    uid = await world.agent("p")
    started = await world.start(await world.experiment("p"))
    for life in (OWN, b"the first of all", b"of another story"):
        slots = (holds("p", started.id, 7),)
        for _ in range(2):
            await world.session(uid, "p", incarnation=life, slots=slots, terms=NEWER)
            assert await offers(world, uid) == {"p": (OfferAction.WRITE, 8)}


# -- withdrawals


async def withdrawing(world: World, count: int) -> tuple[bytes, Any, tuple[SlotState, ...]]:
    """A host with ten slots, of which a restored database wants `count` withdrawn; (agent, experiment, slots)."""
    names = [f"p{number}" for number in range(10)]
    uid = await world.agent(*names)
    started = await world.start(await world.experiment(*names))
    await world.database.write(
        lambda tx: tx.run(
            "update deployment set action = 'restore' where participant_id in (select id from participant"
            " order by public_id limit ?)",
            (count,),
        )
    )
    return uid, started, tuple(holds(name, started.id, 3) for name in names)


@pytest.mark.fault(38)
async def test_withdrawals_above_the_limit_are_held_back_until_somebody_says_they_are_right(
    world: World,
) -> None:
    """3 of 10 at a limit of 20 %: none goes out, what is to be written does; releasing lets them out."""
    uid, _, slots = await withdrawing(world, 3)
    names = [slot.participant for slot in slots]
    await world.session(uid, *names, incarnation=OWN, slots=slots, terms=NEWER)
    assert set((await offers(world, uid)).values()) == {(OfferAction.WRITE, 4)}
    assert await codes(world, uid) == ["WITHDRAWALS_HELD"]
    assert (await world.do(fleet.get_fleet, requests.Nothing())).withdrawals_held == 3
    await world.session(uid, *names, incarnation=NEWER.incarnation.id, slots=slots, terms=NEWER)
    assert await codes(world, uid) == ["WITHDRAWALS_HELD"]
    released = await world.do(fleet.release_withdrawals, requests.Nothing())
    assert released.withdrawals_held == 0
    wanted = list((await offers(world, uid)).values())
    assert wanted.count((OfferAction.RESTORE, 4)) == 3
    assert await codes(world, uid) == []
    await world.session(uid, *names, incarnation=NEWER.incarnation.id, slots=slots, terms=NEWER)
    assert await codes(world, uid) == []


async def test_a_few_withdrawals_go_out(world: World) -> None:
    """2 of 10 are within the limit."""
    uid, _, slots = await withdrawing(world, 2)
    await world.session(uid, *(s.participant for s in slots), incarnation=OWN, slots=slots, terms=NEWER)
    assert list((await offers(world, uid)).values()).count((OfferAction.RESTORE, 4)) == 2
    assert await codes(world, uid) == []


async def test_an_order_of_this_life_is_not_held_back(world: World) -> None:
    """Whoever completes with `restore` says so himself, for all of them at once, also over what was held."""
    uid, started, slots = await withdrawing(world, 10)
    names = [slot.participant for slot in slots]
    await world.session(uid, *names, incarnation=OWN, slots=slots, terms=NEWER)
    assert await offers(world, uid) == {}
    await world.database.write(lambda tx: tx.run("update deployment set action = 'write'"))
    values = {"id": started.key, "then": "restore"}
    await world.do(lifecycle.complete, requests.parse(requests.Complete, values))
    assert set((await offers(world, uid)).values()) == {(OfferAction.RESTORE, 5)}


@pytest.mark.fault(38)
async def test_rows_that_are_gone_withdraw_nothing(world: World) -> None:
    """A slot nobody knows is left alone, and told; one that the host closed long ago is not worth a word."""
    uid = await world.agent("p")
    started = await world.start(await world.experiment("p"))
    await world.database.write(lambda tx: tx.run("delete from slot"))
    slots = (holds("p", started.id, 1), holds("p", b"some older thing", 4, closed=True))
    await world.session(uid, "p", incarnation=OWN, slots=slots)
    assert await offers(world, uid) == {}
    [finding] = (await known(world, uid)).findings
    assert finding["code"] == "SLOTS_UNKNOWN"
    assert "1 of its 2 slots" in finding["message"]
    assert "stay as they are" in finding["message"]


# -- how much an agent may claim


@pytest.mark.fault(52)
async def test_an_agent_serves_no_more_than_its_share(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all its Hellos: what is beyond is told and not made, what it has stays its own."""
    monkeypatch.setattr("control_plane.services.sessions.MAX_PARTICIPANTS", 3)
    uid = await world.agent("a", "b")
    opened = await world.session(uid, "c", "d", "e")
    assert opened.taken == ("d", "e")
    assert await codes(world, uid) == ["TOO_MANY_PARTICIPANTS"]
    names = await world.rows("select public_id from participant order by public_id")
    assert [row["public_id"] for row in names] == ["a", "b", "c"]
    await world.session(uid, "a", "b", "c")
    assert await codes(world, uid) == []
