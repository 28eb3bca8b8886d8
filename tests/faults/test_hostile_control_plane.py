"""A control plane that lies, against the real agent: nothing but what the host allows, and no more than its share."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent import identity as identities
from agent.enrollment import enroll
from shared.ids import new_id
from shared.model import Result, digest
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from tests.support.control_plane import ScriptedControlPlane
from tests.support.fleet import BIN, Process
from tests.support.hostile import BAIT, ask_for_everything, flood, lying_offers, offer
from tests.support.link import CONTENT, linked, offered
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault(51)


@pytest.fixture
async def control_plane() -> AsyncIterator[ScriptedControlPlane]:
    async with ScriptedControlPlane().running() as plane:
        yield plane


def everything(folder: Path) -> dict[str, object]:
    """Every file beneath a folder but the agent's own state: its content, or what else it is."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not name.startswith("state"):
            status = path.lstat()
            plain = path.is_file() and not path.is_symlink()
            found[name] = (path.read_bytes() if plain else "", status.st_mode, status.st_ino)
    return found


def prepared(tmp_path: Path) -> Path:
    """A workspace with every trap in it; what is outside."""
    root, outside = tmp_path / "bot-1", tmp_path / "outside"
    for folder in (root, outside):
        folder.mkdir()
    (root / "SOUL.md").write_bytes(b"the host's own\n")
    (outside / "outside.md").write_bytes(b"secret\n")
    (tmp_path / "outside.md").write_bytes(b"secret\n")
    (root / "linked").symlink_to(outside)
    (root / "link.md").symlink_to(outside / "outside.md")
    os.mkfifo(root / "fifo.md")
    (root / "directory.md").mkdir()
    return outside


async def test_no_lie_changes_a_file(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """Paths, digests, sizes, ids, actions: each is refused or not understood, and the next honest offer is applied."""
    outside = prepared(tmp_path)
    before = everything(tmp_path)
    async with linked(tmp_path, control_plane):
        sync = await control_plane.session()
        lies = list(lying_offers(outside))
        for _, lie in lies:
            await sync.send(offer=lie)
        await sync.offer(offered(slot=new_id(), revision=1))
        await eventually(lambda: any(o.result is Result.APPLIED for o in sync.outcomes))
        named = {lie.slot_id: name for name, lie in lies}
        assert [named[o.slot_id] for o in sync.outcomes if o.slot_id in named and o.result.holds] == []
        assert len(control_plane.syncs) == 1, "no lie costs the session"
    after = everything(tmp_path)
    assert (tmp_path / "bot-1" / "SOUL.md").read_bytes() == CONTENT
    assert {name: seen for name, seen in after.items() if name != "bot-1/SOUL.md"} == {
        name: seen for name, seen in before.items() if name != "bot-1/SOUL.md"
    }
    assert {o.reason.code for o in sync.outcomes if o.reason} >= {"PATH_ESCAPES_ROOT", "TARGET_NOT_ALLOWED"}


async def test_an_old_revision_is_refused_however_often(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """What was taken up once is not undone by what is older, whatever it says of retry and drift."""
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()
        await sync.offer(offered(revision=5))
        await eventually(lambda: [o.result for o in sync.outcomes] == [Result.APPLIED])
        for revision in (1, 4, 0):
            old = offer(slot_id=bytes(16), revision=revision, retry=True, overwrite_drift=True)
            await sync.send(offer=old)
            old.action = pb.OFFER_ACTION_RESTORE
            await sync.send(offer=old)
        await sync.offer(offered(b"newer\n", revision=6))
        await eventually(lambda: sync.outcomes[-1].revision == 6)
        assert {o.result for o in sync.outcomes if o.revision < 5} <= {Result.REFUSED}
        assert (host.root / "SOUL.md").read_bytes() == b"newer\n"


async def test_content_that_is_not_what_was_announced_is_not_written(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Fetched as well as inline: too long is not collected, another content is refused."""
    wanted = digest(b"wanted" * 10_000)
    async with linked(tmp_path, control_plane) as host:
        sync = await control_plane.session()
        for revision, sent in enumerate((b"x" * 60_000, b"x" * 5_000_000, b"short"), 1):
            control_plane.contents[wanted] = sent
            file = pb.OfferedFile(path="SOUL.md", digest=wanted, size=60_000)
            await sync.send(offer=offer(files=[file], slot_id=bytes(16), revision=revision))

            def ended(revision: int = revision) -> list[Result]:
                """What takes its time is told on the way; the end is what counts."""
                told = [outcome.result for outcome in sync.outcomes if outcome.revision == revision]
                return [result for result in told if result is not Result.IN_PROGRESS]

            await eventually(ended, what="the offer has ended")
            assert set(ended()) <= {Result.REFUSED, Result.STUCK}
        assert not (host.root / "SOUL.md").exists()


async def test_nothing_is_read_that_is_not_shared(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """No path, whatever it is, is answered with content."""
    prepared(tmp_path)
    async with linked(tmp_path, control_plane):
        sync = await control_plane.session()
        paths = ["SOUL.md", "/etc/passwd", "../outside.md", "link.md", "fifo.md", "", "\x00"]
        answers = await ask_for_everything(sync, paths)
        assert len(answers) == len(paths)
        assert all(answer.refused.code and not answer.content for answer in answers)
        assert control_plane.uploads == []


def mixed() -> Iterator[pb.SyncResponse]:
    """Everything a control plane can say, without end."""
    for number in itertools.count(1):
        content = str(number).encode().ljust(MAX_CONTENT, b"x")
        yield pb.SyncResponse(heartbeat_ack=pb.HeartbeatAck(sequence=number, server_time_us=2**62))
        yield pb.SyncResponse(offer=offer(f"{number}.md", content))
        yield pb.SyncResponse(offer=offer("SOUL.md", content, participant_id=f"bot-{number}"))
        yield pb.SyncResponse(read_file=pb.ReadFile(request_id=new_id(), participant_id="bot-1", path="/"))
        yield pb.SyncResponse(outcome_ack=pb.OutcomeAck(participant_id="bot-1", slot_id=new_id(), step=1))
        yield pb.SyncResponse(preflight=pb.Preflight(request_id=new_id(), participant_id="bot-1"))


MAX_CONTENT = 32_000
FLOOD_SECONDS = 2.0
MAX_GROWTH = 96 * 1024 * 1024


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) * 1024


async def test_a_flood_costs_a_bounded_amount(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """As fast as the transport takes it: memory stays within bounds, and the host goes on with honest work after it."""
    root, state = tmp_path / "bot-1", tmp_path / "state"
    root.mkdir()
    (tmp_path / "agent.toml").write_text(
        '[agent]\nlocal_http = "127.0.0.1:0"\nsocket = "agent.sock"\n'
        '[[participants]]\nid = "bot-1"\nroot = "bot-1"\ntargets = ["SOUL.md"]\n'
    )
    with identities.hold(state):
        await enroll(control_plane.token(), state, name="host-1")
    command = [
        str(BIN / "variant-agent"),
        "run",
        "--config",
        str(tmp_path / "agent.toml"),
        "--state-dir",
        str(state),
    ]
    agent = Process(command=command, log=tmp_path / "agent.log")
    await agent.start()
    try:
        sync = await control_plane.session()
        small = memory(agent.pid)
        through = await flood(sync, mixed(), seconds=FLOOD_SECONDS)
        grown = memory(agent.pid) - small
        assert agent.running()
        assert through > 500, "it was no flood"
        assert grown < MAX_GROWTH, f"{grown} bytes after {through} messages"
        sync.end()
        again = await control_plane.session(2)
        await again.offer(offered(slot=new_id(), revision=1))
        await eventually(lambda: (root / "SOUL.md").exists() and _is(root / "SOUL.md", CONTENT))
        assert sorted(path.name for path in root.iterdir()) == ["SOUL.md"]
        assert BAIT not in (tmp_path / "agent.log").read_bytes()
    finally:
        assert await agent.stop() == 0


def _is(path: Path, content: bytes) -> bool:
    return path.read_bytes() == content
