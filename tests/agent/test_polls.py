"""A session in polls, over real mutual TLS, against a control plane that follows a script."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from shared import wire
from shared.clock import SystemClock
from shared.model import Hello, Result
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from tests.support.clock import FakeClock
from tests.support.control_plane import ScriptedControlPlane
from tests.support.link import CONTENT, configured, linked, offered
from tests.support.waiting import eventually, ticked


@pytest.fixture
async def control_plane() -> AsyncIterator[ScriptedControlPlane]:
    async with ScriptedControlPlane().running() as plane:
        yield plane


def hello_of(poll: pb.ExchangeRequest) -> Hello:
    """What the poll begins with."""
    return wire.hello_from_pb(poll.messages[0].hello)


def kinds_of(poll: pb.ExchangeRequest) -> list[str]:
    """The kinds of its messages."""
    return [str(message.WhichOneof("message")) for message in poll.messages]


async def test_every_poll_tells_the_whole_truth(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """Hello with every participant and telemetry, in one session; no stream is opened."""
    async with linked(tmp_path, control_plane, transport="poll") as host:
        await eventually(lambda: len(control_plane.polls) >= 3)
        assert host.link.connected
        assert host.link.status()["transport"] == "poll"
    for poll in control_plane.polls[:3]:
        assert kinds_of(poll)[:3] == ["hello", "observation", "heartbeat"]
        hello = hello_of(poll)
        assert [p.participant for p in hello.participants] == ["bot-1"]
        assert hello.session_epoch == 1
    assert control_plane.streams == 0


async def test_an_offer_becomes_a_file_and_an_outcome(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """The outcome is told until it is acknowledged, and the next Hello has the slot."""
    async with linked(tmp_path, control_plane, transport="poll") as host:
        control_plane.to_poll.append(pb.SyncResponse(offer=wire.offer_to_pb(offered())))
        await eventually(
            lambda: (
                control_plane.polled_outcomes and control_plane.polled_outcomes[-1].result is Result.APPLIED
            )
        )
        assert (host.root / "SOUL.md").read_bytes() == CONTENT
        await eventually(lambda: not host.reconciler.unacknowledged())
        (slot,) = hello_of(control_plane.polls[-1]).slots
        assert (slot.revision, slot.files[0].path) == (1, "SOUL.md")


async def test_an_offer_the_host_refused_is_known_all_the_same(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """A host on hold has no record of it, and says so in Hello lest it be offered with every poll."""
    async with linked(tmp_path, control_plane, transport="poll") as host:
        await host.reconciler.hold()
        control_plane.to_poll.append(pb.SyncResponse(offer=wire.offer_to_pb(offered())))
        await eventually(lambda: control_plane.polled_outcomes)
        polls = len(control_plane.polls)
        await eventually(lambda: len(control_plane.polls) > polls)
        (slot,) = hello_of(control_plane.polls[-1]).slots
        assert (slot.revision, slot.result) == (1, Result.REFUSED)


async def test_offers_and_acknowledgements_of_an_untrusted_control_plane_are_ignored(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """One that cannot prove to succeed the one before gets no outcome either."""
    async with linked(tmp_path, control_plane, transport="poll"):
        await eventually(lambda: control_plane.polls)
    control_plane.incarnation, control_plane.predecessor = bytes([1] * 16), bytes([2] * 16)
    control_plane.polled_session = bytes([3] * 16)
    async with linked(tmp_path, control_plane, transport="poll") as host:
        await eventually(lambda: "INCARNATION_CHANGED" in host.codes())
        control_plane.to_poll.append(pb.SyncResponse(offer=wire.offer_to_pb(offered())))
        await eventually(lambda: not control_plane.to_poll)
        polls = len(control_plane.polls)
        await eventually(lambda: len(control_plane.polls) > polls + 1)
        assert host.reconciler.settled()
        assert not (host.root / "SOUL.md").exists()
        assert not host.link.trusted


async def test_stop_says_goodbye_although_a_poll_is_held(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """The held poll is given up; the last one ends with Goodbye."""
    async with linked(tmp_path, control_plane, transport="poll"):
        await eventually(lambda: len(control_plane.polls) >= 1)
        control_plane.answers_polls.clear()
        polls = len(control_plane.polls)
        await eventually(lambda: len(control_plane.polls) > polls)
    assert kinds_of(control_plane.polls[-1])[-1] == "goodbye"
    assert control_plane.polls[-1].messages[-1].goodbye.reason == "stop"


async def test_stop_says_goodbye_although_the_first_poll_was_not_answered(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """The control plane may have opened the session, and would take the host for connected until its lease ends."""
    control_plane.answers_polls.clear()
    async with linked(tmp_path, control_plane, transport="poll"):
        await eventually(lambda: len(control_plane.polls) == 1)
    assert kinds_of(control_plane.polls[-1])[-1] == "goodbye"


async def test_a_reload_goes_over_to_another_transport(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Polls say Goodbye, and a stream is opened; and back."""
    async with linked(tmp_path, control_plane, transport="poll") as host:
        await eventually(lambda: host.link.connected)
        host.link.reconfigure(configured(tmp_path))
        sync = await control_plane.session()
        assert kinds_of(control_plane.polls[-1])[-1] == "goodbye"
        assert sync.hello.session_epoch == 2
        polls = len(control_plane.polls)
        host.link.reconfigure(configured(tmp_path, transport="poll"))
        await eventually(lambda: len(control_plane.polls) > polls)
        assert sync.goodbye == "reload"


async def test_a_failed_poll_is_a_lost_session(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """Not connected until a poll succeeds again; the back-off counts, and the session is a new one."""
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, transport="poll", clock=clock) as host:
        await eventually(lambda: host.link.connected)
        control_plane.instead = [(grpc.StatusCode.UNAVAILABLE, "no")] * 3
        await ticked(clock, 0.05, lambda: "UNREACHABLE" in host.codes())
        assert not host.link.connected
        await ticked(clock, 0.5, lambda: host.link.connected)
        assert host.link.status()["attempt"] == 3
        assert host.codes() == set()
        assert hello_of(control_plane.polls[-1]).session_epoch == 4


async def test_busy_comes_back_within_the_window(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """Not a failure: the back-off does not grow."""
    control_plane.instead = [pb.SyncResponse(busy=pb.Busy(retry_window_ms=40))] * 3
    async with linked(tmp_path, control_plane, transport="poll") as host:
        await eventually(lambda: host.link.connected)
        assert host.link.status()["attempt"] == 0


async def test_a_refusal_is_not_retried_quickly(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """A banned agent says so in its health, and waits."""
    control_plane.instead = [(grpc.StatusCode.PERMISSION_DENIED, "this agent is banned")] * 9
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, transport="poll", clock=clock) as host:
        await eventually(lambda: "REFUSED" in host.codes())
        await clock.advance(149)
        assert len(control_plane.polls) == 1


async def test_an_answer_without_welcome_is_no_session(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """A server that answers something else is not believed."""
    control_plane.instead = [pb.SyncResponse(ask_full=pb.AskFull())]
    async with linked(tmp_path, control_plane, transport="poll") as host:
        await eventually(lambda: "without Welcome" in str(host.link.status()["lastError"]))


async def test_streams_that_are_cut_again_and_again_are_told(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """After three in a row; one that lasts ends it, and so does going over to polls."""
    clock = FakeClock(now=SystemClock().now())
    async with linked(tmp_path, control_plane, clock=clock) as host:
        for number in (1, 2, 3):
            assert "STREAM_CUT" not in host.codes()
            await ticked(clock, 0.5, lambda number=number: len(control_plane.syncs) == number)
            await eventually(lambda: host.link.connected)
            control_plane.syncs[-1].end(grpc.StatusCode.UNAVAILABLE)
            await eventually(lambda: not host.link.connected)
        await eventually(lambda: "STREAM_CUT" in host.codes())
        (told,) = [c.message for c in host.link.conditions() if c.code == "STREAM_CUT"]
        assert 'transport = "poll"' in told
        await ticked(clock, 5, lambda: len(control_plane.syncs) == 4)
        await ticked(clock, 20, lambda: "STREAM_CUT" not in host.codes())
