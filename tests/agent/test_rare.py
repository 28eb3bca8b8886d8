"""What seldom comes together: looks at the same moment, full disks, clocks set back, files that others replace."""

import asyncio
import os
import shutil
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent import identity as identities
from agent.config import WhenFull
from agent.enrollment import enroll
from agent.journal import Journal
from agent.notices import Notice, What
from agent.opens import Opens
from agent.spool import Spool
from agent.watch import REHASH_SECONDS, Watch
from shared.ids import new_id
from shared.model import DriftPolicy, Event, Exposure, ReasonCode, Result, Unseen, View, ViewState, digest
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from tests.agent.test_reload import running, write_config
from tests.agent.test_spool import impression, opened, records
from tests.agent.test_spool_full import of
from tests.support.application import application
from tests.support.clock import FakeClock
from tests.support.control_plane import ScriptedControlPlane
from tests.support.host import (
    OTHER_SLOT,
    Host,
    bare_host,
    make_config,
    make_offer,
    make_participant,
    running_host,
)
from tests.support.link import configured, linked
from tests.support.local import call
from tests.support.privileged import mounted
from tests.support.waiting import PATIENCE, eventually, ticked

# -- opens -------------------------------------------------------------------------------------------


def on_open(host: Host, append: Callable[..., object], clock: FakeClock) -> Opens:
    return Opens(
        config=make_config(host.state_dir, make_participant(host.root, exposure=Exposure.ON_OPEN)),
        append=append,  # type: ignore[arg-type]
        holding=host.reconciler.view_of,
        alive=host.state_dir / "opens",
        clock=clock,
    )


async def test_who_settles_at_the_same_time_records_nothing_twice(tmp_path: Path) -> None:
    """On a real spool: one open, one record, and neither of the two fails."""
    async with running_host(tmp_path / "host") as host, opened(tmp_path / "spool") as spool:
        await host.apply(make_offer({"soul.md": "A"}))
        opens = on_open(host, spool.append_all, FakeClock())
        real, status = host.root / "soul.md", host.root.stat()
        opens.follow({real: ("bot-1", "soul.md")}, {host.root: (status.st_dev, status.st_ino)})
        for what in (What.OPENED, What.READ):
            opens.take(Notice(what, real))
        told = await asyncio.gather(opens.settle(), opens.settle(), return_exceptions=True)
        batch = await spool.next_batch(100, 1 << 20)
        assert (told, len(records(batch)), dict(opens.counted)) == ([None, None], 1, {"bot-1": 1})


async def test_the_periodic_look_during_an_fsync_ends_no_watch(tmp_path: Path) -> None:
    """The same by the watch's own two tasks: it lives, and one open is one impression."""
    clock, durable, begun = FakeClock(), asyncio.Event(), asyncio.Event()
    recorded: list[Event | Unseen] = []

    async def append(some: Sequence[Event | Unseen]) -> None:
        begun.set()
        await durable.wait()
        recorded.extend(some)

    async with running_host(tmp_path, clock=clock) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        opens = on_open(host, append, clock)
        watching = asyncio.create_task(Watch(reconciler=host.reconciler, clock=clock, opens=opens).run())
        try:
            await eventually(lambda: opens.following and clock.sleeping)
            (host.root / "soul.md").read_text()
            await asyncio.wait_for(begun.wait(), PATIENCE)
            alive = host.state_dir / "opens"
            await clock.advance(REHASH_SECONDS)
            await eventually(alive.exists)  # right before the periodic look settles
            await clock.advance(0)  # and now it does
            durable.set()
            (host.root / "soul.md").write_text("edited")  # a sign behind everything else
            await eventually(lambda: watching.done() or len(host.views) > 1)
            await eventually(lambda: watching.done() or not opens.waiting)
            assert not watching.done() or watching.exception() is None
            assert sum(isinstance(one, Event) for one in recorded) == 1
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def test_a_note_that_was_cut_short_is_a_stop(tmp_path: Path) -> None:
    """A full disk or a power cut leaves the file empty: that opens went unseen is told all the same."""
    async with running_host(tmp_path) as host:
        (host.state_dir / "opens").write_text("")
        told: list[Event | Unseen] = []

        async def append(some: Sequence[Event | Unseen]) -> None:
            told.extend(some)

        await on_open(host, append, FakeClock()).settle()
        assert [one.reason for one in told if isinstance(one, Unseen)] == ["not_running"]


# -- spool -------------------------------------------------------------------------------------------


async def test_what_was_reported_alone_is_no_share_later(tmp_path: Path) -> None:
    """All of it was acknowledged, the spool is empty: a second participant in agent.toml silences nobody."""
    async with opened(tmp_path, max_bytes=20_000, segment_bytes=1000) as spool:
        for _ in range(300):
            await spool.append(of("first"))
            batch = await spool.next_batch(10, 1 << 20)
            assert batch is not None
            await spool.acknowledge(batch.epoch, batch.first_seq)
        assert spool.state().depth == 0
        spool.room.share = 0.5
        await spool.append(of("first"))


async def test_drops_are_one_count_though_the_clock_was_set_back(tmp_path: Path) -> None:
    """A start whose epoch sorts before the last one's (no battery behind the clock) keeps its accounts small."""
    async with opened(tmp_path, max_bytes=5_000) as spool:
        for number in range(5):
            await spool.append(impression(str(number)))
    ids = [bytes([1]) * 16]
    spool = Spool(
        tmp_path,
        clock=FakeClock(),
        new_id=lambda: ids.pop() if ids else new_id(),
        max_bytes=400,
        when_full=WhenFull.DROP_NEWEST,
    )
    try:
        await spool.next_batch(10, 1 << 20)  # the uplink has it, and nobody to tell
        for _ in range(500):
            await spool.append(impression("dropped"))
        assert spool.dropped > 400
        assert spool.state().depth < 10
        assert max((tmp_path / f"cursor.{number}").stat().st_size for number in (0, 1)) == 16 * 1024
    finally:
        await asyncio.to_thread(spool.close)


# -- hooks -------------------------------------------------------------------------------------------


async def test_output_that_cannot_be_kept_stops_no_agent(tmp_path: Path) -> None:
    """What a check said is lost, what it decided is told, and the reconciler lives."""
    host = bare_host(tmp_path, check=("sh", "-c", "echo no; exit 1"))
    (host.state_dir / "output").write_text("no directory")
    await host.reconciler.start()
    working = asyncio.create_task(host.reconciler.run())
    host.reconciler.offer(make_offer({"soul.md": "A"}))
    try:
        await eventually(lambda: host.outcomes or working.done())
        assert not working.done()
        assert host.outcomes[-1].reason is not None
        assert host.outcomes[-1].reason.code is ReasonCode.CHECK_FAILED
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def test_a_reload_that_fails_on_a_full_disk_is_a_condition(tmp_path: Path) -> None:
    """A repair is made, its reload fails, and there is no room for what it said: nothing is raised."""
    (tmp_path / "state").mkdir()
    reload = ("sh", "-c", "test -e ../well || { echo no; exit 1; }")
    with mounted("-t", "tmpfs", "-o", "size=256k", "tmpfs", at=tmp_path / "state"):
        async with running_host(tmp_path, drift=DriftPolicy.REPAIR, reload=reload) as host:
            (tmp_path / "well").touch()
            await host.apply(make_offer({"soul.md": "A"}))
            (tmp_path / "well").unlink()
            with (
                (host.state_dir / "other").open("ab", buffering=0) as file,
                pytest.raises(OSError, match="No space"),
            ):
                while True:
                    file.write(bytes(4096))
            (host.root / "soul.md").write_text("edited")
            await host.reconciler.observed("bot-1", "soul.md")
            assert host.text("soul.md") == "A"
            assert "REPAIR_FAILED" in [one.code for one in host.reconciler.conditions()]


# -- views -------------------------------------------------------------------------------------------


def last_view(host: Host, path: str) -> View:
    return [view for view in host.views if view.path == path][-1]


async def test_a_link_that_was_replaced_is_drift(tmp_path: Path) -> None:
    """`sed -i` and editors put a file in the link's place: what lies at the path counts, not what it led to once."""
    async with running_host(tmp_path, follow_symlinks=True) as host:
        (host.root / "AGENTS.md").write_text("mine")
        (host.root / "CLAUDE.md").symlink_to("AGENTS.md")
        await host.apply(make_offer({"CLAUDE.md": "A"}))
        (host.root / "sed.tmp").write_text("edited")
        (host.root / "sed.tmp").rename(host.root / "CLAUDE.md")
        await host.reconciler.look_around()
        view = last_view(host, "CLAUDE.md")
        assert (view.digest, view.state) == (digest(b"edited"), ViewState.DRIFTED)
        [slot] = host.reconciler.slots()
        assert slot.files[0].digest == digest(b"edited")


async def test_a_file_taken_over_by_its_other_name_is_seen_by_both(tmp_path: Path) -> None:
    """Two slots, one by a link and one by the file's own name: both views say what is there now."""
    async with running_host(tmp_path, follow_symlinks=True) as host:
        (host.root / "AGENTS.md").write_text("mine")
        (host.root / "CLAUDE.md").symlink_to("AGENTS.md")
        await host.apply(make_offer({"CLAUDE.md": "A"}))
        taken = await host.apply(make_offer({"AGENTS.md": "B"}, slot_id=OTHER_SLOT))
        assert taken.result is Result.APPLIED
        await host.reconciler.look_around()
        assert (host.text("CLAUDE.md"), last_view(host, "CLAUDE.md").digest) == ("B", digest(b"B"))


async def test_views_of_a_participant_that_goes_are_still_owed(tmp_path: Path) -> None:
    """A reload takes it out of agent.toml while the spool is full."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        host.spool_full = True
        (host.root / "soul.md").write_text("edited")
        await host.reconciler.observed("bot-1", "soul.md")
        await host.reconciler.reconfigure(make_config(tmp_path))
        host.spool_full = False
        await host.reconciler.catch_up()
        assert host.views[-1].digest == digest(b"edited")


async def test_conditions_may_be_asked_while_a_thread_looks(tmp_path: Path) -> None:
    """A file's first view comes while somebody goes through those there are."""
    interval = sys.getswitchinterval()
    async with running_host(tmp_path, drift=DriftPolicy.HOLD) as host:
        await host.apply(make_offer({f"config/{number}.md": "A" for number in range(20)}))
        applier = host.reconciler._appliers["bot-1"]
        [file, *_] = (file for _, file in applier.held())

        def look() -> None:
            for number in range(3000):
                applier.views.look(replace(file, path=f"config/new{number}.md"), from_at=1)

        thread = threading.Thread(target=look)
        sys.setswitchinterval(1e-6)
        try:
            thread.start()
            while thread.is_alive():
                host.reconciler.conditions()
        finally:
            sys.setswitchinterval(interval)
            thread.join()


# -- the host's policy -------------------------------------------------------------------------------


async def test_what_is_no_target_any_more_is_not_repaired(tmp_path: Path) -> None:
    """agent.toml takes the file out of `targets`: nothing writes it from then on."""
    async with running_host(tmp_path, drift=DriftPolicy.REPAIR) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        narrower = make_participant(host.root, targets=("config/*.md",), drift=DriftPolicy.REPAIR)
        await host.reconciler.reconfigure(make_config(tmp_path, narrower))
        (host.root / "soul.md").write_text("the host's own again")
        await host.reconciler.observed("bot-1", "soul.md")
        assert host.text("soul.md") == "the host's own again"


async def test_an_access_list_is_kept(tmp_path: Path) -> None:
    """Without it the group bits of its mode, which are its mask, would let the whole group in."""
    async with running_host(tmp_path) as host:
        target = host.root / "soul.md"
        target.write_text("mine")
        nobody = 2**32 - 1
        access = [(1, 6, nobody), (2, 6, 65534), (4, 0, nobody), (16, 6, nobody), (32, 0, nobody)]
        entries = b"".join(struct.pack("<HHI", *one) for one in access)  # u::rw u:65534:rw g::- m::rw o::-
        try:
            os.setxattr(target, "system.posix_acl_access", struct.pack("<I", 2) + entries)
        except OSError as error:
            pytest.skip(f"no access lists here: {error.strerror}")
        before = os.getxattr(target, "system.posix_acl_access")
        assert (await host.apply(make_offer({"soul.md": "A"}))).result is Result.APPLIED
        assert os.listxattr(target) == ["system.posix_acl_access"]
        assert os.getxattr(target, "system.posix_acl_access") == before


@pytest.mark.parametrize("decision", ["hold", "removed"])
async def test_what_the_host_decides_while_a_window_waits_counts(tmp_path: Path, decision: str) -> None:
    """The third ask failed while another slot's reload ran: what the host says meanwhile comes before the way back."""
    clock, begun, go = FakeClock(), tmp_path / "begun", tmp_path / "go"
    reload = ("sh", "-c", "touch ../begun; until test -e ../go; do :; done")
    async with (
        application() as well,
        running_host(tmp_path, clock=clock, probe=well.probe(), reload=reload) as host,
    ):
        (host.root / "soul.md").write_text("mine")
        go.touch()
        await host.apply(make_offer({"soul.md": "A"}))
        go.unlink()
        begun.unlink()
        well.status = 500
        host.reconciler.offer(make_offer({"two.md": "B"}, slot_id=OTHER_SLOT))
        await eventually(begun.exists)
        waiters = lambda: len(host.reconciler._locks["bot-1"]._waiters or ())  # noqa: E731
        deciding: asyncio.Task[None] | None = None
        if decision == "removed":
            deciding = asyncio.create_task(host.reconciler.reconfigure(make_config(tmp_path)))
            await eventually(lambda: waiters() == 1)
        before = waiters()
        await ticked(clock, 1.0, lambda: waiters() > before)
        if decision == "hold":
            await host.reconciler.hold()
        asked = well.asked
        go.touch()
        if deciding is not None:
            await asyncio.wait_for(deciding, PATIENCE)
        await eventually(lambda: not waiters() and host.reconciler.settled())
        if decision == "hold":
            await ticked(clock, 1.0, lambda: well.asked > asked + 2 or host.text("soul.md") != "A")
        else:  # whatever it does, it does before the lock is anybody else's
            async with asyncio.timeout(PATIENCE), host.reconciler._locks["bot-1"]:
                pass
        assert host.text("soul.md") == "A"


# -- one user's workspace, and the host's other ones ---------------------------------------------------


async def test_a_root_that_is_a_loop_is_its_own_trouble(tmp_path: Path) -> None:
    """A user puts a link to itself in the place of the workspace: a hangup is survived."""
    hangup = asyncio.Event()
    write_config(tmp_path, "bot-1", "bot-2")
    async with running(tmp_path, hangup) as agent:
        (tmp_path / "bot-2").rmdir()
        (tmp_path / "bot-2").symlink_to("bot-2")
        hangup.set()
        await eventually(lambda: not hangup.is_set())
        assert (await call(agent, "/v1/admin/reload", body={})).status == 200


async def test_a_deep_workspace_is_its_own_trouble(tmp_path: Path) -> None:
    """1,500 directories within one another below a `**`: the agent starts."""
    top = tmp_path / "root" / "deep"
    top.mkdir(parents=True)
    here = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    try:
        async with running_host(tmp_path) as host:
            assert (await host.apply(make_offer({"soul.md": "A"}))).result is Result.APPLIED
    finally:
        process = await asyncio.create_subprocess_exec("rm", "-rf", str(top))
        await process.wait()


async def test_a_huge_file_is_its_own_trouble(tmp_path: Path) -> None:
    """`truncate -s 8T` costs its owner nothing: it is drift, and nobody reads it to the end."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        os.truncate(host.root / "soul.md", 8 << 40)
        looking = asyncio.create_task(host.reconciler.look_around())
        ended, _ = await asyncio.wait({looking}, timeout=10)
        os.truncate(host.root / "soul.md", 1)
        await looking
        assert ended
        assert any(view.state is ViewState.DRIFTED and view.digest is None for view in host.views)


# -- what is left behind -----------------------------------------------------------------------------


async def test_a_question_that_is_withdrawn_leaves_no_content(tmp_path: Path) -> None:
    """A newer question, a session's end or a reload cancels it at any moment, the staging included."""
    async with running_host(tmp_path, check=("true",)) as host:
        [file] = make_offer({"soul.md": "secret"}).files
        asked = asyncio.create_task(host.reconciler.judge("bot-1", file))
        await asyncio.sleep(0)  # it has begun to stage
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        assert host.leftovers() == []


async def test_damaged_content_is_kept_anew(tmp_path: Path) -> None:
    """What is asked to be kept is durable afterwards, whatever lay there under its name."""
    journal = Journal(tmp_path)
    journal.load(now=1)
    value = journal.keep(b"mine")
    (tmp_path / "contents" / value.hex()).write_bytes(b"mi\0e")
    journal.keep(b"mine")
    assert journal.content(value) == b"mine"


async def test_a_commit_that_failed_half_way_costs_no_identity(tmp_path: Path) -> None:
    """The next candidate is staged beside the identity there is, not in its place."""
    async with ScriptedControlPlane().running() as plane:
        state = tmp_path / "state"
        with identities.hold(state):
            known = await enroll(plane.token(), state, name="host-1")
        identities.stage(state, known)
        shutil.rmtree(state / "identity.new")  # so that the second rename fails
        with pytest.raises(FileNotFoundError):
            identities.commit(state)
        identities.stage(state, known)  # and the agent stops before that is proven
        assert identities.load(state) == known


# -- the link ----------------------------------------------------------------------------------------


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
