"""What somebody else does to a target file is noticed: soon by the kernel's word, always by looking."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent import watch as watch_module
from agent.watch import REHASH_SECONDS, Watch
from shared.clock import Clock
from shared.model import OfferAction, View, ViewState, digest
from tests.support.clock import FakeClock
from tests.support.host import OTHER_SLOT, Host, make_end, make_offer, running_host
from tests.support.waiting import eventually


@asynccontextmanager
async def watching(host: Host, clock: Clock) -> AsyncIterator[Watch]:
    """A watch over the host's reconciler, stopped at the end."""
    watch = Watch(reconciler=host.reconciler, clock=clock)
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


async def test_what_happens_between_two_watches_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new target has the watch begun anew; a change of another one at that moment is not lost."""
    clock = FakeClock()
    real, begun = watch_module.awatch, 0

    def awatch(*paths: Path, **options: Any) -> object:
        nonlocal begun
        begun += 1
        if begun == 2:
            (host.root / "soul.md").write_text("in between")
        return real(*paths, **options)

    monkeypatch.setattr(watch_module, "awatch", awatch)
    async with running_host(tmp_path, clock=clock) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        async with watching(host, clock) as watch:
            await eventually(lambda: begun == 1)
            await host.apply(make_offer({"two.md": "B"}, slot_id=OTHER_SLOT))
            watch.changed()
            await seen(host, "in between", ViewState.DRIFTED)


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


@pytest.mark.fault(24)
async def test_without_the_kernel_s_watch_the_periodic_look_goes_on_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The condition says so while it lasts, and goes once the watch works again."""
    clock = FakeClock()
    real = watch_module.awatch

    def no_watches_left(*paths: object, **options: object) -> object:
        raise OSError(28, "No space left on device")  # what the kernel says at max_user_watches

    monkeypatch.setattr(watch_module, "awatch", no_watches_left)
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
            monkeypatch.setattr(watch_module, "awatch", real)
            await clock.advance(REHASH_SECONDS)
            await eventually(lambda: not watch.conditions())
            (host.root / "soul.md").write_text("y")
            await seen(host, "y", ViewState.DRIFTED)
