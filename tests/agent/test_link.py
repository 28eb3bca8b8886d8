"""The conversation with the control plane, over real mutual TLS, against one that follows a script."""

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import grpc
import pytest

from agent import identity as identities
from agent.enrollment import enroll
from agent.spool import Receipt
from shared import tls
from shared.clock import SystemClock
from shared.errors import FailedPrecondition, Invalid, NotFound, Unauthenticated, Unavailable
from shared.ids import new_id, show_id
from shared.model import (
    ACKS_RIDE,
    CHAIN_START,
    Batch,
    Offer,
    Result,
    digest,
)
from shared.moment import SECOND
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.ticket import ticket_from_token, ticket_to_token
from tests.support.clock import FakeClock
from tests.support.control_plane import ScriptedControlPlane, Sync, in_background
from tests.support.link import CONTENT, Host, configured, linked, offered
from tests.support.waiting import PATIENCE, eventually, ticked


@pytest.fixture
async def control_plane() -> AsyncIterator[ScriptedControlPlane]:
    async with ScriptedControlPlane().running() as plane:
        yield plane


# -- enrollment --------------------------------------------------------------------------------------


async def test_enrollment_stores_a_private_identity(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Key 0600 in a 0700 directory, everything the daemon needs to connect, and no secret of the token."""
    state = tmp_path / "state"
    token = control_plane.token()
    with identities.hold(state):
        identity = await enroll(token, state, name="host-1")
    assert identity == identities.load(state)
    assert identity.uid == show_id(control_plane.uids[0])
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    files = {path.name: path for path in (state / "identity").iterdir()}
    assert set(files) >= {"key.pem", "certificate.pem", "ca.pem", "addresses.json", "incarnation"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files.values())
    assert json.loads(files["addresses.json"].read_text()) == {
        "agents": [control_plane.agents],
        "operators": [control_plane.operator],
    }
    assert control_plane.enrolled[0].name == "host-1"


async def test_second_enrollment_keeps_the_uid(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """The old key proves who asks; key and certificate are new."""
    state = tmp_path / "state"
    with identities.hold(state):
        first = await enroll(control_plane.token(), state, name="host-1")
        second = await enroll(control_plane.token(), state, name="host-1")
    assert second.uid == first.uid
    assert second.key != first.key
    assert identities.load(state) == second


async def test_used_token_is_refused_with_what_to_do(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """A replay leaves nothing behind and names the remedy."""
    token = control_plane.token()
    with identities.hold(tmp_path / "a"), identities.hold(tmp_path / "b"):
        await enroll(token, tmp_path / "a", name="a")
        with pytest.raises(Unauthenticated, match="variantctl agents token"):
            await enroll(token, tmp_path / "b", name="b")
    assert identities.load(tmp_path / "b") is None


async def test_text_that_is_no_token_is_refused(tmp_path: Path) -> None:
    """Nothing is contacted for it."""
    with identities.hold(tmp_path / "s"), pytest.raises(Invalid, match="not an enrollment token"):
        await enroll("sk_abc", tmp_path / "s", name="a")


async def test_foreign_server_gets_no_token(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """A server the ticket's authority did not certify never sees the secret."""
    async with ScriptedControlPlane().running() as foreign:
        ticket = replace(ticket_from_token(control_plane.token()), addresses=(foreign.operator,))
        token = ticket_to_token(ticket)
        with identities.hold(tmp_path / "s"), pytest.raises(Unavailable, match="certificate authority"):
            await enroll(token, tmp_path / "s", name="a")
        assert foreign.enrolled == []


async def test_interrupted_replacement_of_the_identity_is_finished(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Killed between the two renames, the next start has the new identity."""
    state = tmp_path / "state"
    with identities.hold(state):
        await enroll(control_plane.token(), state, name="host-1")
        second = await enroll(control_plane.token(), state, name="host-1")
    (state / "identity").rename(state / "identity.new")
    (state / "identity.old").mkdir()
    assert identities.load(state) == second


def test_damaged_identity_says_what_to_do(tmp_path: Path) -> None:
    """Half an identity is never guessed at."""
    (tmp_path / "identity").mkdir()
    with pytest.raises(FailedPrecondition, match="enroll again"):
        identities.load(tmp_path)


def test_state_directory_belongs_to_one_process(tmp_path: Path) -> None:
    """The second is refused in one clear sentence; after the first it may."""
    with (
        identities.hold(tmp_path),
        pytest.raises(FailedPrecondition, match="another variant-agent is running"),
        identities.hold(tmp_path),
    ):
        pass
    with identities.hold(tmp_path):
        pass


# -- session -----------------------------------------------------------------------------------------


async def test_hello_tells_the_whole_truth(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """Everything needed to go on from nothing is in the first message."""
    async with linked(tmp_path, control_plane):
        sync = await control_plane.session()
        hello = sync.hello
        assert (hello.session_epoch, hello.incarnation) == (1, control_plane.incarnation)
        assert hello.labels == {"role": "support"}
        (participant,) = hello.participants
        assert (participant.participant, participant.targets) == ("bot-1", ("SOUL.md",))
        assert participant.labels == {"tier": "gold"}
        assert hello.spool.depth == 3
        assert hello.slots == ()
        await eventually(lambda: "observation" in sync.kinds())


async def test_offer_becomes_a_file_and_an_outcome(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """The outcome is told on the stream, and owed no longer once acknowledged."""
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()
        await sync.offer(offered())
        await eventually(lambda: sync.outcomes and sync.outcomes[-1].result is Result.APPLIED)
        assert (host.root / "SOUL.md").read_bytes() == CONTENT
        await eventually(lambda: not host.reconciler.unacknowledged())


async def test_an_acknowledgement_may_come_with_anything(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """The host says that it takes them so; here they come with the answer to a heartbeat."""
    control_plane.acknowledges_late = True
    control_plane.heartbeat_ms = 100
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()
        assert ACKS_RIDE in sync.hello.capabilities
        await sync.offer(offered())
        await eventually(lambda: sync.outcomes and sync.outcomes[-1].result is Result.APPLIED)
        await eventually(lambda: not host.reconciler.unacknowledged())


async def test_content_above_the_inline_limit_is_fetched(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """In chunks, and taken up where a broken stream ended."""
    content = bytes(range(256)) * 200
    control_plane.contents[digest(content)] = content
    control_plane.break_fetch_after = [10_000, 7_000]
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()
        await sync.offer(offered(content, inline=False))
        await eventually(lambda: sync.outcomes)
        assert (host.root / "SOUL.md").read_bytes() == content
        assert [fetch.offset for fetch in control_plane.fetches] == [0, 10_000, 17_000]


@pytest.mark.fault(51)
async def test_content_longer_than_offered_is_not_collected(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """A hostile control plane cannot fill memory; content it does not have is told as such."""
    control_plane.contents[digest(b"x")] = b"x" * 100_000
    async with linked(tmp_path, control_plane) as host:
        await control_plane.session()
        with pytest.raises(Invalid, match="longer than the offer"):
            await host.link.calls.fetch(digest(b"x"), 500)
        with pytest.raises(NotFound):
            await host.link.calls.fetch(digest(b"y"), 500)


async def test_outcome_that_was_not_acknowledged_is_told_again(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """A session that breaks between outcome and acknowledgement loses nothing."""
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()
        sync.end(grpc.StatusCode.UNAVAILABLE)
        host.reconciler.offer(offered())
        again = await control_plane.session(2)
        await eventually(lambda: again.outcomes and again.outcomes[-1].result is Result.APPLIED)
        assert again.hello.session_epoch == 2


async def test_batches_go_up_beside_the_session(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """The receipt says what is durable; a divergence and a refusal arrive as such."""
    batch = Batch(epoch=new_id(), first_seq=1, chain=CHAIN_START, records=(b"a", b"b"), tail_seq=2)
    diverged = pb.ReportSpoolResponse(through_seq=0, verdict=pb.SPOOL_VERDICT_EPOCH_DIVERGED)
    control_plane.replies = [diverged, (grpc.StatusCode.INVALID_ARGUMENT, "no")]
    async with linked(tmp_path, control_plane) as host:
        assert (await host.link.calls.report(batch)).diverged
        with pytest.raises(Invalid):
            await host.link.calls.report(batch)
        assert (await host.link.calls.report(batch)).through_seq == 2
        assert control_plane.batches == [batch]


def reported(*records: bytes) -> Batch:
    """A batch of an epoch of its own."""
    return Batch(epoch=new_id(), first_seq=1, chain=CHAIN_START, records=records, tail_seq=len(records))


async def test_a_small_batch_goes_up_on_the_session(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Where the control plane takes it there; what is larger or is not stored there goes beside it."""
    control_plane.stream_batch_bytes = 1_000
    small, large, other = reported(b"a", b"b"), reported(bytes(1_000)), reported(b"c")
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()
        assert (await host.link.calls.report(small)).through_seq == 2
        assert (await host.link.calls.report(large)).through_seq == 1
        assert (sync.batches, control_plane.batches_asked) == ([small], 1)
        diverged = pb.ReportSpoolResponse(through_seq=0, verdict=pb.SPOOL_VERDICT_EPOCH_DIVERGED)
        control_plane.stream_replies = [diverged, None]
        control_plane.replies = [(grpc.StatusCode.INVALID_ARGUMENT, "no")]
        assert (await host.link.calls.report(other)).diverged
        with pytest.raises(Invalid):
            await host.link.calls.report(other)
        assert control_plane.batches_asked == 2
        assert control_plane.batches == [small, large]


@asynccontextmanager
async def unanswered(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> AsyncIterator[tuple[Sync, Batch, "asyncio.Task[Receipt]"]]:
    """A small batch is on the session, and waits for an answer until `answers_batches` is set."""
    control_plane.stream_batch_bytes = 1_000
    control_plane.answers_batches.clear()
    batch = reported(b"a", b"b")
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()
        reporting = asyncio.create_task(host.link.calls.report(batch))
        await eventually(lambda: sync.batches)
        yield sync, batch, reporting


async def test_an_answer_to_another_batch_is_none(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """One that comes late must not acknowledge what came after it."""
    async with unanswered(tmp_path, control_plane) as (sync, batch, reporting):
        late = pb.ReportSpoolResponse(through_seq=9, verdict=pb.SPOOL_VERDICT_OK)
        await sync.send(batch_answer=pb.BatchAnswer(epoch=new_id(), first_seq=1, stored=late))
        await sync.send(batch_answer=pb.BatchAnswer(epoch=batch.epoch, first_seq=3, stored=late))
        control_plane.answers_batches.set()
        assert (await reporting).through_seq == 2


async def test_a_batch_whose_session_ends_goes_up_with_the_next(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Nobody waits for an answer that cannot come."""
    async with unanswered(tmp_path, control_plane) as (sync, batch, reporting):
        sync.end(grpc.StatusCode.UNAVAILABLE, "killed")
        await control_plane.session(2)
        control_plane.answers_batches.set()
        assert (await asyncio.wait_for(reporting, PATIENCE / 4)).through_seq == 2
        assert control_plane.batches == [batch]


async def test_stop_says_goodbye(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """A control plane can tell leaving from dying."""
    async with linked(tmp_path, control_plane):
        sync = await control_plane.session()
    await asyncio.wait_for(sync.ended.wait(), PATIENCE)
    assert sync.goodbye == "stop"


async def test_lost_session_is_opened_again(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """The control plane crashes and comes back on the same address."""
    async with linked(tmp_path, control_plane) as host:
        await control_plane.session()
        await control_plane.stop()
        await eventually(lambda: "UNREACHABLE" in host.codes())
        await control_plane.start()
        await control_plane.session(2)
        await eventually(lambda: host.link.connected)
        assert host.codes() == set()


@pytest.mark.parametrize("transport", ["stream", "poll"])
async def test_who_waits_leaves_the_control_plane_alone(
    tmp_path: Path, control_plane: ScriptedControlPlane, transport: str
) -> None:
    """Nothing of a host knocks between two attempts: a fleet that did would all be at the door once it opens."""
    with identities.hold(tmp_path / "state"):
        await enroll(control_plane.token(), tmp_path / "state", name="host-1")
    await control_plane.stop()
    address, _, port = control_plane.agents.rpartition(":")
    clock = FakeClock(now=SystemClock().now())
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((address, int(port)))
        door.setblocking(False)

        async def knocked() -> None:
            connection, _ = await asyncio.get_running_loop().sock_accept(door)
            connection.close()

        async with linked(tmp_path, control_plane, clock=clock, transport=transport) as host:
            await eventually(lambda: "UNREACHABLE" in host.codes())
            door.listen()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(knocked(), 3)
            knocking = asyncio.create_task(knocked())
            await ticked(clock, 1, knocking.done)
            await knocking


async def test_busy_comes_back_within_the_window(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """Not a failure: the back-off does not grow."""
    control_plane.instead = [pb.SyncResponse(busy=pb.Busy(retry_window_ms=40))] * 5
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()
        assert control_plane.streams == 6
        assert sync.hello.session_epoch == 6
        assert host.link.status()["attempt"] == 0


async def test_drain_leaves_with_goodbye_and_comes_back(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Within the window, and to a new session."""
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()
        await sync.send(drain=pb.Drain(window_ms=30))
        await control_plane.session(2)
        assert sync.goodbye == "drain"
        assert host.link.status()["attempt"] == 0


@pytest.mark.fault(34)
async def test_make_before_break(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """Asked to keep the old one, the agent opens the next session first; offers, reports and outcomes go on over it."""
    async with linked(tmp_path, control_plane) as host:
        old = await control_plane.session()
        await old.send(drain=pb.Drain(window_ms=30, keep_old=True))
        new = await control_plane.session(2)
        assert (old.hello.resumes, new.hello.resumes) == (False, True)
        assert new.hello.session_epoch == old.hello.session_epoch + 1
        assert new.hello.spool.epoch == old.hello.spool.epoch
        await asyncio.wait_for(old.ended.wait(), PATIENCE)
        assert old.goodbye == "drain"
        await new.offer(offered())
        await eventually(lambda: new.outcomes)
        assert host.link.connected
        batch = Batch(epoch=new_id(), first_seq=1, chain=CHAIN_START, records=(b"a",), tail_seq=1)
        assert (await host.link.calls.report(batch)).through_seq == 1
        await new.send(drain=pb.Drain(window_ms=30, keep_old=True))
        third = await control_plane.session(3)
        await asyncio.wait_for(new.ended.wait(), PATIENCE)
    await asyncio.wait_for(third.ended.wait(), PATIENCE)
    assert third.goodbye == "stop"


async def test_a_successor_that_is_not_admitted_costs_nothing(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """The old session leaves as if nothing had been kept, and the next one is opened after it."""
    async with linked(tmp_path, control_plane) as host:
        old = await control_plane.session()
        control_plane.instead = [pb.SyncResponse(busy=pb.Busy(retry_window_ms=30))]
        await old.send(drain=pb.Drain(window_ms=30, keep_old=True))
        new = await control_plane.session(2)
        assert old.goodbye == "drain"
        assert not new.hello.resumes
        await eventually(lambda: host.link.connected)
        assert host.link.status()["attempt"] == 0


@pytest.mark.fault(51)
async def test_whoever_asks_for_session_after_session_is_not_followed_at_that_pace(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """AskFull as the first word of every session, for ten minutes: some dozens of sessions, not thousands."""
    control_plane.instead = [pb.SyncResponse(ask_full=pb.AskFull())] * 10_000
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, clock=clock, reconnect_jitter=10.0):
        await ticked(clock, 0.5, lambda: control_plane.streams >= 12)
        seen = control_plane.streams
        for _ in range(120):
            await clock.advance(5)
            # For the sockets, which no clock of ours moves: where it is too short there are fewer sessions, not more.
            await asyncio.sleep(0.005)
        assert control_plane.streams < seen + 30
        await ticked(clock, 5, lambda: control_plane.streams > seen)


@pytest.mark.fault(33)
@pytest.mark.parametrize("welcomes", [True, False], ids=["after Welcome", "at once"])
async def test_a_proxy_that_resets_every_stream_is_not_hammered(
    tmp_path: Path, control_plane: ScriptedControlPlane, *, welcomes: bool
) -> None:
    """In ten minutes of resets the agent tries some dozen times, whether the stream got as far as Welcome or not."""
    reset = (grpc.StatusCode.UNAVAILABLE, "reset by a proxy")
    clock = FakeClock(now=SystemClock().now())
    if not welcomes:
        control_plane.instead = [reset] * 10_000
    async with linked(tmp_path, control_plane, clock=clock, reconnect_jitter=10.0):

        def hit(*, times: int) -> bool:
            for sync in control_plane.syncs:
                sync.end(*reset)
            return control_plane.streams >= times

        for _ in range(300):
            await clock.advance(2)
            # For the sockets, which no clock of ours moves: where it is too short there are fewer attempts, not more.
            await asyncio.sleep(0.005)
            hit(times=0)
        assert control_plane.streams <= 30
        await ticked(clock, 2, lambda: hit(times=3))


async def test_asked_for_everything_again(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """AskFull is answered by a new Hello."""
    async with linked(tmp_path, control_plane):
        sync = await control_plane.session()
        await sync.send(ask_full=pb.AskFull())
        await control_plane.session(2)
        assert sync.goodbye == "reload"


async def test_messages_of_later_versions_are_tolerated(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """So are malformed ones: the session goes on, the next offer is applied."""
    async with linked(tmp_path, control_plane):
        sync = await control_plane.session()
        await sync.send(preflight=pb.Preflight(request_id=new_id()))
        await sync.send(read_file=pb.ReadFile())
        await sync.send(offer=pb.Offer(revision=1))
        await sync.send()
        await sync.offer(offered())
        await eventually(lambda: sync.outcomes)
        assert len(control_plane.syncs) == 1


async def test_failure_within_a_session_costs_that_session_only(
    tmp_path: Path, control_plane: ScriptedControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault nobody foresaw is logged and the next session is opened; the task lives on."""
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()

        def fails(offer: Offer) -> None:
            monkeypatch.undo()
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(host.reconciler, "offer", fails)
        await sync.offer(offered())
        again = await control_plane.session(2)
        await again.offer(offered())
        await eventually(lambda: again.outcomes)


# -- liveness, with time that a test moves ---------------------------------------------------------------


async def test_answered_heartbeats_keep_the_session(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Both directions; the session outlives any number of intervals."""
    control_plane.heartbeat_ms = 10_000
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, clock=clock) as host:
        sync = await control_plane.session()
        await eventually(lambda: host.link.trusted)  # heartbeats are watched from then on
        for number in range(1, 13):
            await clock.advance(10)
            await eventually(lambda number=number: sync.kinds().count("heartbeat") == number)  # type: ignore[misc]
            await eventually(lambda: host.link._session is not None and host.link._session._unanswered == 0)
        assert len(control_plane.syncs) == 1


@pytest.mark.parametrize(("asked", "seconds"), [(20_000, 20), (0, 10), (2**32 - 1, 60)])
async def test_the_answer_to_a_heartbeat_says_when_the_next_is_due(
    tmp_path: Path, control_plane: ScriptedControlPlane, asked: int, seconds: int
) -> None:
    """Within what a host agrees to: the session of a server that asked for more is watched all the same."""
    control_plane.heartbeat_ms, control_plane.next_heartbeat_ms = 10_000, asked
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, clock=clock) as host:
        sync = await control_plane.session()
        await eventually(lambda: host.link.trusted)  # heartbeats are watched from then on

        async def beats(number: int, *, after: float) -> None:
            await clock.advance(after - 0.5)
            assert sync.kinds().count("heartbeat") == number - 1
            assert host.link._session is not None
            assert host.link._session._unanswered == 0  # nor is it on its way
            await clock.advance(0.5)
            await eventually(lambda: sync.kinds().count("heartbeat") == number)
            await eventually(lambda: host.link._session is not None and host.link._session._unanswered == 0)

        await beats(1, after=10)
        await beats(2, after=10)  # this pause had begun before the answer came
        await beats(3, after=seconds)


async def test_unanswered_heartbeats_end_the_session(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Three without answer: the call is cut by this side, and another is opened."""
    control_plane.heartbeat_ms = 10_000
    control_plane.answers_heartbeats = False
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, clock=clock) as host:
        sync = await control_plane.session()
        await eventually(lambda: host.link.trusted)  # heartbeats are watched from then on
        for _ in range(3):
            await clock.advance(10)
        await eventually(lambda: sync.kinds().count("heartbeat") == 3)
        assert host.link.connected
        await clock.advance(10)
        await asyncio.wait_for(sync.ended.wait(), PATIENCE)
        await eventually(lambda: "UNREACHABLE" in host.codes())
        assert "heartbeats" in str(host.link.status()["lastError"])
        await ticked(clock, 1, lambda: len(control_plane.syncs) == 2)


async def test_silent_server_is_given_up(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """One that takes the stream and never says Welcome is cut after a while."""
    control_plane.welcomes = False
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, clock=clock) as host:
        sync = await control_plane.session()
        await eventually(lambda: clock.sleeping)
        await clock.advance(30)
        await asyncio.wait_for(sync.ended.wait(), PATIENCE)
        await eventually(lambda: "no answer to Hello" in str(host.link.status()["lastError"]))


def remembered(host: Host) -> int:
    """The number of failures on disk."""
    return int(json.loads((host.state / "session.json").read_text())["attempt"])


@pytest.mark.fault(33)
async def test_back_off_grows_is_remembered_and_reset_by_a_session_that_lasts(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Refusals of a stream are counted on disk, so a daemon in a crash loop does not hammer."""
    control_plane.instead = [(grpc.StatusCode.INTERNAL, "no")] * 4
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, clock=clock) as host:
        for failed in range(1, 5):
            await ticked(clock, 0.5, lambda failed=failed: control_plane.streams >= failed)
            await eventually(lambda failed=failed: host.link.status()["attempt"] == failed)
        await eventually(lambda: remembered(host) == 4)
        await ticked(clock, 0.5, lambda: host.link.connected)
        await eventually(lambda: host.link.trusted)  # no longer watched for its answer to Hello
        assert host.link.status()["attempt"] == 4
        await ticked(clock, 30, lambda: host.link.status()["attempt"] == 0)
        await eventually(lambda: remembered(host) == 0)


async def test_the_loss_of_a_session_is_on_disk_with_the_next_hello(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Nobody waits for the disk before it knows when to try again; the fourth failure is on disk at once."""
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, clock=clock, reconnect_jitter=10.0) as host:
        sync = await control_plane.session()
        await eventually(lambda: host.link.connected)
        control_plane.instead = [(grpc.StatusCode.INTERNAL, "no")] * 3
        sync.end(grpc.StatusCode.UNAVAILABLE, "killed")
        await eventually(lambda: host.link.status()["attempt"] == 1)
        assert remembered(host) == 0
        for failed in range(2, 5):
            await ticked(clock, 0.5, lambda failed=failed: control_plane.streams >= failed)
            await eventually(lambda failed=failed: host.link.status()["attempt"] == failed)
            await eventually(
                lambda failed=failed: remembered(host) == (failed if failed == 4 else failed - 1)
            )


async def waits_after(host: Host, clock: FakeClock, failed: int) -> float:
    """Seconds that the host waits for after attempt number `failed`; nothing else has it asleep for an hour or less."""

    def waits() -> list[float]:
        known = host.link.status()["attempt"] == failed
        return [wait for wait in clock.sleeping if known and wait < 3600]

    (wait,) = await eventually(waits)
    return wait


async def test_an_attempt_that_reaches_nobody_costs_the_disk_nothing(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """A fleet that has lost its control plane leaves the machine to it; a session is numbered once there is one."""
    with identities.hold(tmp_path / "state"):
        await enroll(control_plane.token(), tmp_path / "state", name="host-1")
    await control_plane.stop()
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, clock=clock) as host:
        written = (host.state / "session.json").stat()
        for failed in range(1, 3):
            await clock.advance(await waits_after(host, clock, failed))
        ends = await waits_after(host, clock, 3)
        assert host.link.status()["sessionEpoch"] == 0
        found = (host.state / "session.json").stat()
        assert (found.st_ino, found.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
        await clock.advance(ends)
        await waits_after(host, clock, 4)
        await eventually(lambda: remembered(host) == 4)


async def test_nobody_waits_for_longer_than_it_has_waited_so_far(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """However quickly failures follow each other: whoever was gone for seconds has its fleet within seconds."""
    control_plane.instead = [(grpc.StatusCode.INTERNAL, "no")] * 12
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, clock=clock) as host:
        waited = 0.0
        for failed in range(1, 13):
            wait = await waits_after(host, clock, failed)
            assert wait <= max(1.0, waited)
            waited += wait
            await clock.advance(wait)


@pytest.mark.parametrize(
    ("welcomed", "later", "seconds"),
    [
        (0, 0, (9, 10)),
        (4_000, 0, (9, 10)),
        (100_000, 0, (90, 100)),
        (20_000, 100_000, (90, 100)),
        (2**32 - 1, 0, (270, 300)),
    ],
    ids=["its own", "shorter", "longer", "grown", "beyond what a host agrees to"],
)
async def test_a_large_fleet_comes_back_over_as_long_as_it_was_asked_to(
    tmp_path: Path, control_plane: ScriptedControlPlane, welcomed: int, later: int, seconds: tuple[int, int]
) -> None:
    """At random within it, by what the newest word of the control plane was; never sooner than by itself."""
    control_plane.reconnect_window_ms, control_plane.next_reconnect_window_ms = welcomed, later
    clock, least, most = FakeClock(now=SystemClock().now()), *seconds
    async with linked(tmp_path, control_plane, clock=clock, reconnect_jitter=10.0, random=Late(7)) as host:
        sync = await control_plane.session()
        await eventually(lambda: host.link.trusted)
        await clock.advance(60)
        await eventually(lambda: "heartbeat" in sync.kinds())
        await eventually(lambda: host.link._session is not None and host.link._session._unanswered == 0)
        sync.end(grpc.StatusCode.UNAVAILABLE, "killed")
        await eventually(lambda: host.link.status()["attempt"] == 1)
        (wait,) = [wait for wait in await eventually(lambda: clock.sleeping) if wait < 3600]
        assert least <= wait <= most


@pytest.mark.parametrize(("window", "seconds"), [(0, (1.8, 2)), (100_000, (18, 20))])
async def test_who_finds_nobody_tries_again_over_a_part_of_that(
    tmp_path: Path, control_plane: ScriptedControlPlane, window: int, seconds: tuple[float, float]
) -> None:
    """Those of a large fleet that came too early are not all at the door in the second in which it opens."""
    control_plane.reconnect_window_ms = window
    clock, (least, most) = FakeClock(now=SystemClock().now()), seconds
    async with linked(tmp_path, control_plane, clock=clock, reconnect_jitter=10.0, random=Late(7)) as host:
        sync = await control_plane.session()
        await eventually(lambda: host.link.trusted)
        control_plane.instead = [(grpc.StatusCode.UNAVAILABLE, "no")]
        sync.end(grpc.StatusCode.UNAVAILABLE, "killed")

        async def waits(failed: int) -> float:
            await eventually(lambda: host.link.status()["attempt"] == failed)
            (wait,) = [wait for wait in await eventually(lambda: clock.sleeping) if wait < 3600]
            return wait

        await clock.advance(await waits(1))
        assert least <= await waits(2) <= most


async def test_a_pause_counts_from_the_loss(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """However long the host takes to write down what happened: a thousand on one machine come back when they drew."""
    control_plane.reconnect_window_ms = 100_000
    with identities.hold(tmp_path / "state"):
        await enroll(control_plane.token(), tmp_path / "state", name="host-1")
    identities.save_session_state(tmp_path / "state", identities.SessionState(epoch=1, attempt=3))
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, clock=clock, random=Late(7)) as host:

        async def waits() -> float:
            (wait,) = [wait for wait in await eventually(lambda: clock.sleeping) if wait < 3600]
            return wait

        await clock.advance(await waits())
        sync = await control_plane.session()
        await eventually(lambda: host.link.trusted)
        async with host.link._disk:
            sync.end(grpc.StatusCode.UNAVAILABLE, "killed")
            await eventually(lambda: host.link.status()["state"] == "waiting")
            await clock.advance(5)
        await eventually(lambda: remembered(host) == 4)
        assert 4 <= await waits() <= 5


class Late(Random):
    """Chance that draws the last tenth of what there is."""

    def random(self) -> float:
        return 0.9 + super().random() / 10


async def test_remembered_failures_delay_the_first_attempt(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Time stands still, so nothing is tried yet."""
    with identities.hold(tmp_path / "state"):
        await enroll(control_plane.token(), tmp_path / "state", name="host-1")
    identities.save_session_state(tmp_path / "state", identities.SessionState(epoch=41, attempt=9))
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, clock=clock):
        (left,) = [wait for wait in await eventually(lambda: clock.sleeping) if wait < 3600]
        assert 1 < left <= 300
        assert control_plane.streams == 0
        await clock.advance(left)
        sync = await control_plane.session()
        assert sync.hello.session_epoch == 42


@pytest.mark.parametrize(
    "code", ["UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "UNIMPLEMENTED"]
)
async def test_refusal_is_not_retried_quickly(
    tmp_path: Path, control_plane: ScriptedControlPlane, code: str
) -> None:
    """It goes into health with what the control plane said, and to the far end of the back-off."""
    control_plane.instead = [(grpc.StatusCode[code], "this agent is banned")] * 9
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, clock=clock) as host:
        await eventually(lambda: "REFUSED" in host.codes())
        assert "this agent is banned" in host.link.conditions()[0].message
        await clock.advance(149)
        assert control_plane.streams == 1
        await ticked(clock, 10, lambda: control_plane.streams == 2)


# -- trust -------------------------------------------------------------------------------------------


@pytest.mark.fault(51)
async def test_server_of_a_foreign_authority_is_refused(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Whoever takes over the address without the authority's key gets no Hello."""
    with identities.hold(tmp_path / "state"):
        await enroll(control_plane.token(), tmp_path / "state", name="host-1")
    await control_plane.stop()
    foreign = ScriptedControlPlane()
    foreign.agents = control_plane.agents
    async with foreign.running(), linked(tmp_path, control_plane) as host:
        await eventually(lambda: "UNREACHABLE" in host.codes())
        assert foreign.streams == 0


async def test_agent_certificate_cannot_pose_as_a_server(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """The right authority is not enough: the certificate has to be a server's, for this name."""
    state = tmp_path / "state"
    with identities.hold(state):
        identity = await enroll(control_plane.token(), state, name="host-1")
    await control_plane.stop()
    control_plane.server_certificate = (identity.certificate, identity.key)
    await control_plane.start()
    async with linked(tmp_path, control_plane) as host:
        await eventually(lambda: "UNREACHABLE" in host.codes())
        assert control_plane.streams == 0


async def test_agent_of_a_foreign_authority_is_not_let_in(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Mutual: the listener refuses a certificate it did not issue before anything is said."""
    async with ScriptedControlPlane().running() as other:
        with identities.hold(tmp_path / "state"):
            identity = await enroll(other.token(), tmp_path / "state", name="host-1")
            forged = replace(
                identity, ca=control_plane.authority.certificate, addresses=(control_plane.agents,)
            )
            identities.store(tmp_path / "state", forged)
        async with linked(tmp_path, control_plane) as host:
            await eventually(lambda: {"UNREACHABLE", "REFUSED"} & host.codes())
            assert control_plane.streams == 0


async def test_signed_successor_is_adopted(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """A restored database that names its predecessor, signed by the authority, is followed at once."""
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()
        control_plane.predecessor, control_plane.incarnation = control_plane.incarnation, new_id()
        sync.end(grpc.StatusCode.UNAVAILABLE)
        again = await control_plane.session(2)
        await again.offer(offered())
        await eventually(lambda: again.outcomes)
        adopted = identities.load(host.state)
        assert adopted is not None
        assert adopted.incarnation == control_plane.incarnation


async def test_a_line_of_successors_is_adopted(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """A host that was away over three restores finds its way by the signed steps between them."""
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()
        for _ in range(3):
            control_plane.restored()
        sync.end(grpc.StatusCode.UNAVAILABLE)
        again = await control_plane.session(2)
        await again.offer(offered())
        await eventually(lambda: again.outcomes)
        adopted = identities.load(host.state)
        assert adopted is not None
        assert adopted.incarnation == control_plane.incarnation


@pytest.mark.parametrize("broken", ["missing", "forged"])
async def test_a_broken_line_is_taken_by_hand_only(
    tmp_path: Path, control_plane: ScriptedControlPlane, broken: str
) -> None:
    """One step without its signature, or left out: nothing by itself; `adopt` of the very one is durable."""
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()
        for _ in range(3):
            control_plane.restored()
        if broken == "missing":
            del control_plane.lineage[-1]
        else:
            control_plane.lineage[-1].signature = b"garbage"
        sync.end(grpc.StatusCode.UNAVAILABLE)
        again = await control_plane.session(2)
        await eventually(lambda: "INCARNATION_CHANGED" in host.codes())
        await again.offer(offered())
        with pytest.raises(FailedPrecondition, match="does not propose"):
            await host.link.adopt(new_id())
        assert host.link.proposal is not None
        assert host.link.proposal.standing.name == "RELATIVE"
        await host.link.adopt(control_plane.incarnation)
        assert host.codes() == set()
        adopted = identities.load(host.state)
        assert adopted is not None
        assert adopted.incarnation == control_plane.incarnation
        third = await control_plane.session(3)
        assert (again.goodbye, again.outcomes) == ("reload", [])
        await third.offer(offered())
        await eventually(lambda: third.outcomes)


@pytest.mark.fault(37)
async def test_a_host_that_says_manual_waits_for_its_administrator(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """A perfect successor is not followed by itself: the condition says what to do, reports and offers wait."""
    async with linked(tmp_path, control_plane, adopt="manual") as host:
        sync = await control_plane.session()
        control_plane.restored()
        sync.end(grpc.StatusCode.UNAVAILABLE)
        again = await control_plane.session(2)
        await eventually(lambda: "INCARNATION_WAITS" in host.codes())
        await again.offer(offered())
        assert not host.link.trusted
        proposal = host.link.proposal
        assert proposal is not None
        assert proposal.show()["standing"] == "successor"
        await host.link.adopt(proposal.incarnation)
        third = await control_plane.session(3)
        assert third.hello.incarnation == control_plane.incarnation
        assert again.outcomes == []
        await eventually(lambda: host.link.trusted and host.codes() == set())


@pytest.mark.parametrize("forgery", ["unsigned", "garbage", "stranger", "no_predecessor"])
async def test_other_incarnation_is_not_believed(
    tmp_path: Path, control_plane: ScriptedControlPlane, forgery: str
) -> None:
    """Its offers are refused, reports wait, and health says why; the session stays to be seen."""
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()
        old, control_plane.incarnation = control_plane.incarnation, new_id()
        control_plane.predecessor = {"stranger": new_id(), "no_predecessor": b""}.get(forgery, old)
        control_plane.signature = b"garbage" if forgery == "garbage" else None
        if forgery == "unsigned":
            control_plane.signer = tls.new_authority("other", now=SystemClock().now())
        sync.end(grpc.StatusCode.UNAVAILABLE)
        again = await control_plane.session(2)
        await eventually(lambda: "INCARNATION_CHANGED" in host.codes())
        await again.offer(offered())
        await again.send(drain=pb.Drain(window_ms=1))
        await control_plane.session(3)
        assert not (host.root / "SOUL.md").exists()
        assert again.outcomes == []
        batch = Batch(epoch=new_id(), first_seq=1, chain=CHAIN_START, records=(b"a",), tail_seq=1)
        async with in_background(host.link.calls.report(batch)) as report:
            again = await control_plane.session(3)
            await again.send(drain=pb.Drain(window_ms=1))
            await control_plane.session(4)
            assert not report.done()
        assert control_plane.batches == []


async def test_clock_skew_is_told(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """The control plane's clock comes with every heartbeat."""
    control_plane.heartbeat_ms = 100
    clock = FakeClock(now=SystemClock().now() + 3600 * SECOND)
    async with linked(tmp_path, control_plane, clock=clock) as host:
        await ticked(clock, 0.1, lambda: "CLOCK_SKEW" in host.codes())


async def test_host_that_never_enrolled_says_so(tmp_path: Path) -> None:
    """No attempt, no failure: a condition with the remedy."""
    host = Host(tmp_path)
    async with in_background(host.link.run()):
        await eventually(lambda: "NOT_ENROLLED" in host.codes())
        assert host.link.status()["state"] == "not_enrolled"


async def test_a_reload_while_sessions_change_over_is_told(tmp_path: Path) -> None:
    """The successor has said its Hello and waits for Welcome: what changed since is told by a session of its own."""
    async with ScriptedControlPlane().running() as plane, linked(tmp_path, plane) as host:
        old = await plane.session()
        plane.welcomes = False
        await old.send(drain=pb.Drain(window_ms=1, keep_old=True))
        successor = await plane.session(2)
        host.link.reconfigure(replace(configured(tmp_path), labels={"role": "another"}))
        plane.welcomes = True
        await successor.send(welcome=plane._welcome())
        await asyncio.wait_for(old.ended.wait(), PATIENCE)
        await eventually(lambda: len(plane.syncs) > 2, within=10, what="a session that tells the change")
        assert plane.syncs[2].hello.labels == {"role": "another"}
