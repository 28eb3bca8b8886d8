"""What somebody else does to a target file is noticed: soon by the kernel's word, always by looking."""

import asyncio
import errno
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from asyncinotify import Inotify

from agent.config import AgentConfig
from agent.opens import Opens
from agent.repair import MAX_REPAIRS
from agent.watch import REHASH_SECONDS, Watch
from shared.clock import Clock
from shared.model import DriftPolicy, OfferAction, ReasonCode, View, ViewState, digest
from tests.support.clock import FakeClock
from tests.support.host import Host, make_config, make_end, make_offer, running_host
from tests.support.waiting import eventually


@asynccontextmanager
async def watching(host: Host, clock: Clock) -> AsyncIterator[Watch]:
    """A watch over the host's reconciler, stopped at the end."""

    async def append(records: object) -> None:
        raise AssertionError("nothing is counted here")

    opens = Opens(
        config=make_config(host.state_dir),
        append=append,
        holding=host.reconciler.view_of,
        alive=host.state_dir / "opens",
        clock=clock,
    )
    watch = Watch(reconciler=host.reconciler, clock=clock, opens=opens)
    running = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def seen(host: Host, text: str | None, state: ViewState) -> View:
    """The last view, once it says this."""

    def last() -> View | None:
        view = host.views[-1]
        wanted = None if text is None else digest(text.encode())
        return view if (view.digest, view.state) == (wanted, state) else None

    found = await eventually(last, what=f"a view {text!r} {state}")
    assert found is not None
    return found


@pytest.mark.fault(23)
async def test_a_change_is_told_by_the_kernel(tmp_path: Path) -> None:
    """Edited, replaced, truncated, removed and put back, while the clock stands still."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock) as host:
        target = host.root / "config" / "soul.md"
        await host.apply(make_offer({"config/soul.md": "A"}))
        async with watching(host, clock) as watch:
            target.write_text("edited")
            await seen(host, "edited", ViewState.DRIFTED)
            (host.root / "config" / "soul.md~").write_text("replaced")
            (host.root / "config" / "soul.md~").rename(target)
            await seen(host, "replaced", ViewState.DRIFTED)
            os.truncate(target, 0)
            await seen(host, "", ViewState.DRIFTED)
            target.unlink()
            await seen(host, None, ViewState.MISSING)
            target.write_text("A")
            await seen(host, "A", ViewState.APPLIED)
            assert watch.conditions() == ()


async def test_a_new_target_is_watched_once_it_is_told_of(tmp_path: Path) -> None:
    """And what happened to it before its watch began is seen as well."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock) as host, watching(host, clock) as watch:
        await host.apply(make_offer({"soul.md": "A"}))
        (host.root / "soul.md").write_text("at once")
        watch.changed()
        await seen(host, "at once", ViewState.DRIFTED)
        (host.root / "soul.md").write_text("later")
        await seen(host, "later", ViewState.DRIFTED)
        over = make_offer({"soul.md": "B"}, revision=2, overwrite_drift=True)
        await host.apply(over)
        await host.apply(make_end(OfferAction.CLOSE, "soul.md", revision=3))
        views = len(host.views)
        watch.changed()
        (host.root / "soul.md").write_text("nobody's business")
        await clock.advance(REHASH_SECONDS * 2)
        assert len(host.views) == views


@pytest.mark.fault(24)
async def test_a_directory_put_in_the_place_of_another_is_watched_again(tmp_path: Path) -> None:
    """The kernel's watch stays with the old one; the periodic look notices."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock) as host:
        await host.apply(make_offer({"config/soul.md": "A"}))
        async with watching(host, clock):
            (host.root / "config").rename(host.root / "aside")
            shutil.copytree(host.root / "aside", host.root / "config")
            (host.root / "config" / "soul.md").write_text("x")
            await eventually(lambda: clock.sleeping)
            await clock.advance(REHASH_SECONDS)
            await seen(host, "x", ViewState.DRIFTED)
            (host.root / "config" / "soul.md").write_text("y")
            await seen(host, "y", ViewState.DRIFTED)


async def test_a_directory_that_two_participants_know_by_two_names_is_watched_for_both(
    tmp_path: Path,
) -> None:
    """The kernel has one watch for it; once one of them has nothing there any more, the other is told still."""
    (tmp_path / "name").symlink_to("root")

    def with_another(config: AgentConfig) -> AgentConfig:
        [one] = config.participants
        other = replace(one, id="bot-2", root=tmp_path / "name")
        return replace(config, participants=(one, other))

    clock = FakeClock()
    async with running_host(tmp_path, clock=clock, configure=with_another) as host:
        await host.apply(make_offer({"one.md": "A"}))
        await host.apply(make_offer({"other.md": "B"}, participant="bot-2"))
        async with watching(host, clock) as watch:  # time stands still: nobody looks around
            for name in ("one.md", "other.md"):
                (host.root / name).write_text(f"changed {name}")
                await seen(host, f"changed {name}", ViewState.DRIFTED)
            await host.apply(make_end(OfferAction.CLOSE, "other.md", revision=2, participant="bot-2"))
            watch.changed()
            (host.root / "one.md").write_text("again")
            await seen(host, "again", ViewState.DRIFTED)


@pytest.mark.fault(24)
@pytest.mark.parametrize(
    ("call", "number"),
    [("add_watch", errno.ENOSPC), ("__init__", errno.EMFILE)],  # max_user_watches, max_user_instances
)
async def test_without_the_kernel_s_watch_the_periodic_look_goes_on_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """The condition says so while it lasts, and goes once the watch works again."""
    clock = FakeClock()

    def no_watches_left(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Inotify, call, no_watches_left)
    async with running_host(tmp_path, clock=clock) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        async with watching(host, clock) as watch:
            await eventually(watch.conditions)
            [condition] = watch.conditions()
            assert condition.code == "WATCH_DEGRADED"
            (host.root / "soul.md").write_text("x")
            await eventually(lambda: clock.sleeping)
            await clock.advance(REHASH_SECONDS)
            await seen(host, "x", ViewState.DRIFTED)
            monkeypatch.undo()
            await eventually(lambda: clock.sleeping)
            await clock.advance(REHASH_SECONDS)
            await eventually(lambda: not watch.conditions())
            (host.root / "soul.md").write_text("y")
            await seen(host, "y", ViewState.DRIFTED)


@pytest.mark.fault(24)
async def test_notices_that_the_kernel_dropped_are_made_up_for_at_once(tmp_path: Path) -> None:
    """Every target is looked at, and the condition says so until nothing was dropped for a while."""
    clock = FakeClock()
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if most > 100_000:
        pytest.skip("this host queues too many notices to fill the queue in a test")
    async with running_host(tmp_path, clock=clock) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        async with watching(host, clock) as watch:
            (host.root / "soul.md").write_text("watched")
            await seen(host, "watched", ViewState.DRIFTED)
            other = host.root / "other"
            for _ in range(most // 2 + 100):  # each one two notices, while nobody reads them
                other.touch()
                other.unlink()
            (host.root / "soul.md").write_text("dropped")
            await seen(host, "dropped", ViewState.DRIFTED)
            [condition] = watch.conditions()
            assert (condition.code, condition.severity) == ("WATCH_DEGRADED", "warning")
            assert "dropped" in condition.message
            for _ in range(2):
                await eventually(lambda: clock.sleeping)
                await clock.advance(REHASH_SECONDS)
            await eventually(lambda: not watch.conditions())


@pytest.mark.fault(23)
async def test_each_change_is_told_once_and_as_what_it_is(tmp_path: Path) -> None:
    """Whatever tool made it; what leaves the content alone is no change."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock) as host:
        target = host.root / "soul.md"
        await host.apply(make_offer({"soul.md": "A\n"}))
        async with watching(host, clock) as watch:
            for command, text in (
                ("sed -i s/A/B/ soul.md", "B\n"),
                ("echo C > soul.md", "C\n"),
                ("echo D >> soul.md", "C\nD\n"),
                ("cp other soul.md", "other\n"),
                ("mv other soul.md", None),  # the same content by another name: nothing to tell
                (": > soul.md", ""),
                ("truncate -s 3 soul.md", "\0\0\0"),
                ("rm soul.md", "gone"),
                ("mkdir soul.md", "odd"),
                ("rmdir soul.md; mkfifo soul.md", None),
                ("rm soul.md; ln -s /etc/hostname soul.md", None),
                ("rm soul.md; printf 'A\n' > soul.md", "A\n"),
                ("chmod 600 soul.md; touch soul.md", None),
            ):
                (host.root / "other").write_text("other\n")
                count = len(host.views)
                process = await asyncio.create_subprocess_shell(command, cwd=host.root)
                assert await process.wait() == 0
                if text is None:
                    await host.reconciler.observed("bot-1", "soul.md")
                    assert len(host.views) == count, command
                    continue
                state = {"A\n": ViewState.APPLIED, "gone": ViewState.MISSING}.get(text, ViewState.DRIFTED)
                await seen(host, None if text in ("gone", "odd") else text, state)
                told = host.views[count:]
                assert all(view.state is not ViewState.APPLIED for view in told[:-1]), command
                # A shell empties a file before it writes it: both are told where both were seen, never one twice.
                assert len(told) <= 2, (command, told)
            assert watch.conditions() == ()
            assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.fault(25)
async def test_a_write_war_ends_in_a_hold_that_says_so(tmp_path: Path) -> None:
    """Another process that writes the file again and again: three repairs, then it is left and told."""
    clock = FakeClock()
    async with running_host(tmp_path, clock=clock, drift=DriftPolicy.REPAIR) as host:
        target = host.root / "soul.md"
        await host.apply(make_offer({"soul.md": "A"}))
        war = "while sleep 0.01; do grep -q mine soul.md || echo mine > soul.md; done"
        async with watching(host, clock):
            other = await asyncio.create_subprocess_shell(war, cwd=host.root, start_new_session=True)
            try:

                def told() -> bool:
                    return [c.code for c in host.reconciler.conditions()] == ["DRIFT_WAR"]

                await eventually(told)
                await host.reconciler.observed(
                    "bot-1", "soul.md"
                )  # behind the last repair, if that is under way
                await eventually(lambda: target.read_text() == "mine\n")
                await host.reconciler.observed("bot-1", "soul.md")
            finally:
                os.killpg(other.pid, signal.SIGKILL)
                await other.wait()
            repaired = [view for view in host.views[1:] if view.state is ViewState.APPLIED]
            # One less for each repair that was overwritten again before it was looked at.
            assert len(repaired) <= MAX_REPAIRS
            refused = await host.apply(make_offer({"soul.md": "B"}, revision=2))
            assert refused.reason is not None
            assert refused.reason.code is ReasonCode.HELD
            assert target.read_text() == "mine\n"
