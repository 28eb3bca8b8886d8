"""Ingest over a real database: exactly once, in any order, nothing lost silently."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import permutations
from random import Random

import pytest

from control_plane.domain import requests
from control_plane.services import lifecycle
from control_plane.services.spools import Sent, Verdict, report
from control_plane.store.database import Parameters, Row, Tx
from control_plane.store.store import Store
from shared.model import Batch, Loss, Record
from tests.support.builders import Spooled, World, content_digest, seconds


async def running(world: World, *participants: str, settle: int = 0) -> tuple[bytes, dict[str, str]]:
    """(agent, variant key by participant) of a running experiment."""
    uid = await world.agent(*participants)
    started = await world.start(await world.experiment(*participants, settle=settle))
    return uid, await world.assigned(started)


async def tallies(world: World) -> list[tuple[object, ...]]:
    """Every tally, by an oracle's own SQL."""
    rows = await world.rows(
        "select v.key, p.public_id, t.event_name, t.day, t.assigned_count, t.assigned_units, t.assigned_value,"
        " t.delivered_count, t.delivered_units, t.delivered_value from tally t"
        " join variant v on v.id = t.variant_id join participant p on p.id = t.participant_id"
        " where t.assigned_count + t.delivered_count + t.assigned_units + t.delivered_units > 0"
        " order by 1, 2, 3, 4"
    )
    return [tuple(row.values()) for row in rows]


def facts(world: World, variant: str, now: int) -> dict[str, Record]:
    """A view, then an impression on it, then a conversion."""
    return {
        "view": world.view("p", content_digest(variant), at=now + seconds(1)),
        "impression": world.impression("p", at=now + seconds(2)),
        "conversion": world.conversion("p", at=now + seconds(3), value_micros=2_500_000),
    }


@pytest.mark.parametrize("order", list(permutations(["view", "impression", "conversion"])))
@pytest.mark.parametrize("split", [True, False], ids=["three batches", "one batch"])
async def test_every_order_of_arrival_gives_the_same_tallies(
    world: World, order: tuple[str, ...], split: bool
) -> None:
    """View, impression and conversion count the same in all six orders, in one batch or three."""
    uid, assigned = await running(world, "p")
    variant = assigned["p"]
    records = facts(world, variant, world.clock.now())
    groups = [[name] for name in order] if split else [list(order)]
    for group in groups:
        await world.report(uid, *(records[name] for name in group))
    day = world.clock.now() // 86_400_000_000
    assert await tallies(world) == [
        (variant, "p", "", day, 1, 1, 0, 1, 1, 0),
        (variant, "p", "done", day, 1, 1, 2_500_000, 1, 1, 2_500_000),
    ]


async def test_a_late_view_takes_back_what_was_counted_as_delivered(world: World) -> None:
    """A view that arrives late and says other content moves its events out of `delivered`, not of `assigned`."""
    uid, assigned = await running(world, "p")
    variant, now = assigned["p"], world.clock.now()
    await world.report(uid, *facts(world, variant, now).values())
    await world.report(uid, world.view("p", content_digest("other"), at=now + seconds(1.5)))
    day = now // 86_400_000_000
    assert await tallies(world) == [
        (variant, "p", "", day, 1, 1, 0, 0, 0, 0),
        (variant, "p", "done", day, 1, 1, 2_500_000, 0, 0, 0),
    ]


async def test_a_batch_sent_twice_counts_once(world: World) -> None:
    """The acknowledgement may be lost; the same batch again changes nothing and answers the same mark."""
    uid, assigned = await running(world, "p")
    spool = Spooled(epoch=world.new_id())
    batch = spool.batch(*facts(world, assigned["p"], world.clock.now()).values())
    first = await world.send(uid, batch)
    before = await tallies(world)
    again = await world.send(uid, batch)
    assert (first.through_seq, again.through_seq) == (3, 3)
    assert await tallies(world) == before


class Counted:
    """A transaction, and how often it was asked."""

    def __init__(self, tx: Tx) -> None:
        self._tx, self.asked = tx, 0

    def one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        self.asked += 1
        return self._tx.one(sql, parameters)

    def all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        self.asked += 1
        return self._tx.all(sql, parameters)

    def run(self, sql: str, parameters: Parameters = ()) -> int:
        self.asked += 1
        return self._tx.run(sql, parameters)

    def many(self, sql: str, rows: Iterable[Parameters]) -> None:
        self.asked += 1
        self._tx.many(sql, rows)


async def test_a_batch_asks_no_more_for_many_participants_than_for_one(world: World) -> None:
    """Neither more events, nor more participants, nor ids of the application make more statements."""
    names = [f"p{number}" for number in range(20)]
    uid, _ = await running(world, *names)
    now, spool = world.clock.now(), Spooled(epoch=world.new_id())

    async def asked(*records: Record) -> int:
        sent = Sent(project_id=world.caller.project_id, agent_uid=uid, batch=spool.batch(*records))

        def work(tx: Tx) -> int:
            counted = Counted(tx)
            report(Store(counted).events, [sent], now=now)
            return counted.asked

        return await world.database.write(work)

    first = await asked(world.impression("p0", at=now, subject="s", event_id="first"))
    many = [world.impression(name, at=now, subject="s", event_id=f"of {name}") for name in names]
    assert await asked(*many) <= first
    assert (await world.rows("select count(*) as n from event"))[0]["n"] == 21


async def test_batches_of_many_agents_ask_no_more_than_that_of_one(world: World) -> None:
    """Views with events that they change, receipts, losses and events of many hosts make no more statements."""
    names = [f"p{number}" for number in range(20)]
    uids = [await world.agent(name) for name in names]
    await world.start(await world.experiment(*names, settle=0))
    spools = {uid: Spooled(epoch=world.new_id()) for uid in uids}
    now = world.clock.now()

    def batch(uid: bytes, name: str, at: int) -> Sent:
        records = [
            world.view(name, content_digest("other"), at=at),
            world.loaded(name, content_digest("other"), at=at),
            world.impression(name, at=at, subject="s", event_id=f"{name} {at}"),
            Record(id=world.new_id(), recorded_at=at, body=Loss(reason="full", count=1)),
        ]
        return Sent(project_id=world.caller.project_id, agent_uid=uid, batch=spools[uid].batch(*records))

    async def asked(*batches: Sent) -> int:
        def work(tx: Tx) -> int:
            counted = Counted(tx)
            report(Store(counted).events, batches, now=now)
            return counted.asked

        return await world.database.write(work)

    await asked(*(batch(uid, name, now + 1) for uid, name in zip(uids, names, strict=True)))
    alone = await asked(batch(uids[0], names[0], now))
    assert (
        await asked(*(batch(uid, name, now) for uid, name in zip(uids[1:], names[1:], strict=True))) <= alone
    )
    assert (await world.rows("select sum(count) as n from spool_loss"))[0]["n"] == 40


@pytest.mark.parametrize("seed", range(6))
async def test_batches_in_one_transaction_count_as_one_after_the_other(world: World, seed: int) -> None:
    """Whatever they hold and however they are put together: records sent twice, views after what they tell of."""
    random = Random(seed)
    names = [f"p{number}" for number in range(4)]
    uids = {name: await world.agent(name) for name in names}
    await world.start(await world.experiment(*names, settle=1))
    begun = world.clock.now()

    def record(name: str) -> Record:
        at = begun + seconds(random.randrange(20))
        kinds: list[Callable[[], Record]] = [
            lambda: world.view(name, content_digest(random.choice("abc")), at=at),
            lambda: world.loaded(name, content_digest(random.choice("ab")), at=at),
            lambda: world.impression(
                name, at=at, subject=random.choice("xy"), event_id=random.choice(["", "k"])
            ),
            lambda: world.conversion(name, at=at, subject=random.choice("xy")),
        ]
        return random.choice(kinds)()

    made = {name: [record(name) for _ in range(12)] for name in names}

    def stored(batches: Sequence[Sent], tx: Tx) -> None:
        report(Store(tx).events, batches, now=begun + seconds(60))

    async def counted(groups: Iterable[int]) -> list[list[object]]:
        """What is stored once every host has sent its records, and some again, so many batches in a transaction."""
        spools = {name: Spooled(epoch=world.new_id()) for name in names}
        sent = []
        for at in range(0, 12, 3):
            for name in names:
                again = random.sample(made[name][: at + 1], 1)
                records = [*made[name][at : at + 3], *again]
                sent.append(
                    Sent(
                        project_id=world.caller.project_id,
                        agent_uid=uids[name],
                        batch=spools[name].batch(*records),
                    )
                )
        for size in groups:
            group, sent = sent[:size], sent[size:]
            if group:
                await world.database.write(partial(stored, group))
        assert not sent
        found = [
            [tuple(row.values()) for row in await world.rows(sql)]
            for sql in (
                "select event_id, phase_id, assigned, delivered from attributed_event order by 1, 2",
                "select * from unit order by 1, 2, 3, 4, 5",
                "select * from tally where assigned_count + delivered_count <> 0 order by 1, 2, 3, 4, 5, 6",
                "select * from standing where count <> 0 order by 1, 2, 3",
                "select * from activity order by 1, 2, 3, 4",
                "select id, reason from event order by 1",
                "select id from view order by 1",
            )
        ]
        await world.database.write(forget)
        return found

    def forget(tx: Tx) -> None:
        for table in (
            *("attributed_event", "unit", "tally", "standing", "activity", "event", "view", "receipt"),
            *("event_key", "phase_event_name"),
        ):
            tx.run(f"delete from {table}")

    alone = await counted([1] * 16)
    assert alone[0]
    assert await counted([16]) == alone
    assert await counted([3, 5, 1, 7]) == alone


async def test_an_overlapping_batch_adds_only_what_is_new(world: World) -> None:
    """A batch that begins below the mark is taken from the mark on."""
    uid, _ = await running(world, "p")
    now = world.clock.now()
    records = [world.impression("p", at=now + seconds(n)) for n in range(4)]
    whole = Spooled(epoch=world.new_id()).batch(*records)
    head = Batch(epoch=whole.epoch, first_seq=1, chain=whole.chain, records=whole.records[:2], tail_seq=2)
    await world.send(uid, head)
    report = await world.send(uid, whole)
    assert report.through_seq == 4
    assert [row["assigned_count"] for row in await world.rows("select * from tally")] == [4]


async def test_the_same_records_under_a_new_epoch_count_once(world: World) -> None:
    """After EPOCH_DIVERGED an agent re-sends under a new epoch; record ids dedupe."""
    uid, _ = await running(world, "p")
    records = [world.impression("p", at=world.clock.now() + seconds(n)) for n in range(3)]
    await world.send(uid, Spooled(epoch=world.new_id()).batch(*records[:2]))
    report = await world.send(uid, Spooled(epoch=world.new_id()).batch(*records))
    assert report.verdict is Verdict.OK
    assert [row["assigned_count"] for row in await world.rows("select * from tally")] == [3]


async def test_a_declared_loss_under_a_new_epoch_counts_once(world: World) -> None:
    """What a host declared and sends again after EPOCH_DIVERGED is the same loss."""
    uid, _ = await running(world, "p")
    now = world.clock.now()
    loss = Record(
        id=world.new_id(), recorded_at=now, body=Loss(reason="spool_full", count=7, epoch=bytes(16))
    )
    await world.send(uid, Spooled(epoch=world.new_id()).batch(loss))
    await world.send(uid, Spooled(epoch=world.new_id()).batch(loss, world.impression("p", at=now)))
    assert await world.rows("select reason, count from spool_loss") == [{"reason": "spool_full", "count": 7}]
    assert len(await world.rows("select * from event")) == 1


async def test_another_history_of_an_epoch_is_told_apart(world: World) -> None:
    """A chain hash that does not fit answers EPOCH_DIVERGED and stores nothing."""
    uid, _ = await running(world, "p")
    now = world.clock.now()
    epoch = world.new_id()
    await world.send(uid, Spooled(epoch=epoch).batch(world.impression("p", at=now)))
    other = Spooled(epoch=epoch)
    other.batch(world.impression("p", at=now + 1))
    report = await world.send(uid, other.batch(world.impression("p", at=now + 2)))
    assert report.verdict is Verdict.EPOCH_DIVERGED
    assert len(await world.rows("select * from event")) == 1


@pytest.mark.fault(37)
async def test_a_restored_server_declares_what_it_forgot(world: World) -> None:
    """A batch above the mark records the exact difference as lost and goes on."""
    uid, _ = await running(world, "p")
    now = world.clock.now()
    spool = Spooled(epoch=world.new_id())
    spool.batch(*(world.impression("p", at=now + n) for n in range(5)))
    report = await world.send(uid, spool.batch(world.impression("p", at=now + 9)))
    assert report.through_seq == 6
    losses = await world.rows("select reason, count from spool_loss")
    assert losses == [{"reason": "lost_by_restore", "count": 5}]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no experiment", "NO_ACTIVE_EXPERIMENT"),
        ("not bound", "PARTICIPANT_NOT_BOUND"),
        ("far future", "OCCURRED_IN_FUTURE"),
        ("duplicate", "DUPLICATE_EVENT_ID"),
    ],
)
async def test_what_cannot_count_is_kept_with_its_reason(world: World, kind: str, reason: str) -> None:
    """An accepted event is never dropped: it is stored with why it counts nowhere."""
    uid = await world.agent("p", "q")
    now = world.clock.now()
    if kind != "no experiment":
        await world.start(await world.experiment("p"))
    records = {
        "no experiment": [world.impression("q", at=now)],
        "not bound": [world.impression("stranger", at=now)],
        "far future": [world.impression("p", at=now + seconds(3600))],
        "duplicate": [world.impression("p", at=now, event_id="e") for _ in range(2)],
    }[kind]
    await world.report(uid, *records)
    kept = [row["reason"] for row in await world.rows("select reason from event where reason is not null")]
    assert kept == [reason]


async def test_a_record_nobody_can_read_is_counted(world: World) -> None:
    """One malformed record does not stop the batch; it is counted as such."""
    uid, _ = await running(world, "p")
    spool = Spooled(epoch=world.new_id())
    good = spool.batch(world.impression("p", at=world.clock.now()))
    batch = Batch(
        epoch=good.epoch, first_seq=1, chain=good.chain, records=(b"\xff\xff", *good.records), tail_seq=2
    )
    report = await world.send(uid, batch)
    assert report.through_seq == 2
    assert await world.rows("select reason, count from spool_loss") == [{"reason": "malformed", "count": 1}]
    assert len(await world.rows("select * from event")) == 1


async def test_events_stay_within_their_phase(world: World) -> None:
    """What happens after completion belongs to no phase; what happened before still counts when it is late."""
    uid, assigned = await running(world, "p")
    before = world.impression("p", at=world.clock.now() + 1)
    world.clock.jump(10)
    await world.do(lifecycle.complete, requests.Complete(id="test"))
    await world.report(uid, before, world.impression("p", at=world.clock.now() + 1))
    found = await world.answer(eventName="done")
    counts = {arm["key"]: arm["impressions"] for arm in found["variants"]}
    assert counts == {"a": 0, "b": 0} | {assigned["p"]: 1}


async def test_results_count_what_waits_and_why(world: World) -> None:
    """A conversion without an impression is shown as pending, an early one as settling."""
    uid, _ = await running(world, "p", settle=60)
    now = world.clock.now()
    await world.report(
        uid,
        world.impression("p", at=now + seconds(1)),
        world.conversion("p", at=now + seconds(100)),
    )
    found = await world.answer(eventName="done")
    assert found["rejected"] == [{"reason": "pending", "count": 1}, {"reason": "settling", "count": 1}]
