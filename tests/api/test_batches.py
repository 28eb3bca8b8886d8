"""Batches of a spool that come on the stream of a session: stored once and answered, or left to the call beside it."""

import sqlite3
from contextlib import closing

import pytest

from shared import wire
from shared.clock import SystemClock
from shared.ids import new_id
from shared.model import Batch, Event, EventKind, Record
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from tests.support.builders import Spooled, make_hello
from tests.support.plane import Plane
from tests.support.stream import Stream, session


def impression(*, properties: str = "") -> Record:
    """A report of p's, of this moment."""
    now = SystemClock().now()
    event = Event(participant="p", kind=EventKind.IMPRESSION, occurred_at=now, properties_json=properties)
    return Record(id=new_id(), recorded_at=now, body=event)


async def sent(stream: Stream, batch: Batch) -> None:
    """The batch is on its way."""
    await stream.send(batch=wire.batch_to_pb(batch))


async def answer(stream: Stream, batch: Batch) -> int | None:
    """How far the answer to the batch says that its epoch is stored; None: nothing was."""
    answer: pb.BatchAnswer = await stream.receive("batch_answer")
    assert (answer.epoch, answer.first_seq) == (batch.epoch, batch.first_seq)
    return answer.stored.through_seq if answer.HasField("stored") else None


async def kept(plane: Plane) -> int:
    """How many events there are."""
    return len((await plane.rest("GET", "/v1/events")).body["entities"])


async def test_a_batch_is_stored_once_and_answered(plane: Plane) -> None:
    """As in a call, the same batch again changes nothing; another history of the epoch is one."""
    identity, spool = await plane.enroll(await plane.token()), Spooled(epoch=new_id())
    async with session(identity, make_hello("p")) as stream:
        assert stream.welcome is not None
        assert stream.welcome.limits.stream_batch_bytes
        first, second = spool.batch(impression(), impression()), spool.batch(impression())
        for batch, through in ((first, 2), (first, 2), (second, 3)):
            await sent(stream, batch)
            assert await answer(stream, batch) == through
        assert await kept(plane) == 3
        other = Spooled(epoch=spool.epoch, next_seq=4, chain=bytes([1]) * 32).batch(impression())
        await stream.send(batch=wire.batch_to_pb(other))
        said = await stream.receive("batch_answer")
        assert said.stored.verdict == pb.SPOOL_VERDICT_EPOCH_DIVERGED
    assert await kept(plane) == 3


@pytest.mark.parametrize("fault", ["too large", "no sequence", "too many records"])
async def test_what_is_no_batch_for_a_stream_is_left_to_the_call(plane: Plane, fault: str) -> None:
    """Nothing of it is stored, and the session goes on."""
    identity, spool = await plane.enroll(await plane.token()), Spooled(epoch=new_id())
    async with session(identity, make_hello("p")) as stream:
        request = wire.batch_to_pb(spool.batch(impression()))
        if fault == "too large":
            request.records.append(bytes(20_000))
        elif fault == "no sequence":
            request.first_seq = 0
        else:
            request.records.extend([b""] * 1_001)
        await stream.send(batch=request)
        said = await stream.receive("batch_answer")
        assert not said.HasField("stored")
        fine = Spooled(epoch=new_id()).batch(impression())
        await sent(stream, fine)
        assert await answer(stream, fine) == 1
    assert await kept(plane) == 1


async def test_a_batch_at_a_time(plane: Plane) -> None:
    """While one waits for the database no other is taken; what the database refuses is left to the call."""
    identity, spool = await plane.enroll(await plane.token()), Spooled(epoch=new_id())
    async with session(identity, make_hello("p")) as stream:
        first, second = spool.batch(impression()), spool.batch(impression())
        with closing(sqlite3.connect(plane.data / "variantd.db", isolation_level=None)) as somebody:
            somebody.execute("begin immediate")
            await sent(stream, first)
            await sent(stream, second)
            assert await answer(stream, second) is None
            assert await answer(stream, first) is None
            somebody.execute("rollback")
        for batch in (first, second):
            await sent(stream, batch)
            assert await answer(stream, batch) == batch.first_seq
    assert await kept(plane) == 2
