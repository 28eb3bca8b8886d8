"""Faults of a host's disks that the whole apply meets: other file systems on the way, and power that is cut."""

import asyncio
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.model import OfferAction, Result
from tests.support.crashing import NEW, OLD, reload_command
from tests.support.host import make_end, make_offer, running_host
from tests.support.privileged import mounted, run_or_skip
from tests.support.schedule import size
from tests.support.waiting import PATIENCE


@pytest.mark.fault(19)
async def test_a_target_on_another_file_system_is_written_there(tmp_path: Path) -> None:
    """Its directory is a mount of its own, so nothing could be renamed into it from elsewhere."""
    (tmp_path / "root" / "config").mkdir(parents=True)
    with mounted("-t", "tmpfs", "-o", "size=64k", "none", at=tmp_path / "root" / "config"):
        async with running_host(tmp_path) as host:
            (host.root / "config" / "soul.md").write_text("mine")
            outcome = await host.apply(make_offer({"soul.md": "A", "config/soul.md": "B"}))
            assert outcome.result is Result.APPLIED
            assert (host.text("soul.md"), host.text("config/soul.md"), host.leftovers()) == ("A", "B", [])
            assert (host.root / "soul.md").stat().st_dev != (host.root / "config" / "soul.md").stat().st_dev
            await host.apply(make_end(OfferAction.RESTORE, "soul.md", "config/soul.md", revision=2))
            assert (host.text("soul.md"), host.text("config/soul.md")) == (None, "mine")


# -- power cuts

IMAGE_BYTES = 8 << 20


@contextmanager
def filesystem(image: Path, at: Path) -> Iterator[None]:
    """The image is mounted, its journal committed only where somebody asks for it."""
    at.mkdir(exist_ok=True)
    with mounted("-o", "loop,commit=300", image, at=at):
        yield


@pytest.fixture(scope="module")
def empty_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 file system on which a host with a baseline is durable."""
    folder = tmp_path_factory.mktemp("power")
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    run_or_skip("mkfs.ext4", "-q", "-F", image)
    with filesystem(image, folder / "mount"):
        (folder / "mount" / "root").mkdir()
        (folder / "mount" / "root" / "soul.md").write_text(OLD)
        os.sync()
    return image


def cut(image: Path, tmp_path: Path, name: str) -> Path:
    """What a power cut at this moment leaves of the disk."""
    copy = tmp_path / name
    shutil.copyfile(image, copy)
    return copy


def all_old_or_all_new(root: Path, *, new: bool | None = None) -> None:
    """The files beneath a root are the baseline or the order, as a set, if the host has recovered."""
    found = {path: (root / path).read_text() if (root / path).exists() else None for path in NEW}
    assert found in ({"soul.md": OLD, "deep/er/new.md": None}, dict(NEW)), found
    assert new is None or (found == dict(NEW)) is new


@pytest.mark.fault(2)
async def test_power_cut_at_any_step_of_an_apply(
    tmp_path: Path, empty_image: Path, crasher: asyncio.subprocess.Process
) -> None:
    """What the disk holds at that step is whole content, old or new; the next start makes one set of it.

    FAULTS_CUTS says at how many of the steps, spread over all of them.
    """
    _, steps = await steps_until(crasher, tmp_path, empty_image, 0)
    points = sorted(
        random.Random(2).sample(range(1, steps + 1), min(steps, size("CUTS", small=10, large=1_000)))
    )
    assert steps > 30
    for point in points:
        after, _ = await steps_until(crasher, tmp_path, empty_image, point)
        with filesystem(after, tmp_path / "after"):
            for path, old in (("soul.md", OLD), ("deep/er/new.md", None)):
                target = tmp_path / "after" / "root" / path
                text = target.read_text() if target.exists() else None
                assert text in (old, NEW[path]), f"{path} is torn at step {point}: {text!r}"
            async with running_host(tmp_path / "after", reload=reload_command(tmp_path)) as host:
                assert host.reconciler.conditions() == ()
                assert host.leftovers() == []
                all_old_or_all_new(host.root)
        after.unlink()


@pytest.mark.fault(2)
async def test_power_cut_right_after_applied_was_said(
    tmp_path: Path, empty_image: Path, crasher: asyncio.subprocess.Process
) -> None:
    """The order is on the disk, the next start knows it, and the baseline is there to be restored."""
    after, _ = await steps_until(crasher, tmp_path, empty_image, 0)
    with filesystem(after, tmp_path / "after"):
        all_old_or_all_new(tmp_path / "after" / "root", new=True)
        async with running_host(tmp_path / "after", reload=reload_command(tmp_path)) as host:
            assert [(slot.revision, slot.result) for slot in host.reconciler.slots()] == [(1, Result.APPLIED)]
            outcome = await host.apply(make_end(OfferAction.RESTORE, *NEW, revision=2))
            assert outcome.result is Result.APPLIED
            all_old_or_all_new(host.root, new=False)


async def steps_until(
    crasher: asyncio.subprocess.Process, tmp_path: Path, image: Path, point: int
) -> tuple[Path, int]:
    """(the disk as a power cut at that step leaves it, steps made); the whole apply for point 0."""
    used = cut(image, tmp_path, f"used-{point}")
    mount = tmp_path / f"mount-{point}"
    with filesystem(used, mount):
        assert crasher.stdin is not None
        assert crasher.stdout is not None
        crasher.stdin.write(f"{mount} write {point}\n".encode())
        async with asyncio.timeout(PATIENCE):
            word, status, steps = (await crasher.stdout.readline()).decode().split()
        assert (word, int(status)) == ("end", 0 if point == 0 else -signal.SIGKILL)
        after = cut(used, tmp_path, f"after-{point}")
    used.unlink()
    return after, int(steps)


def test_a_power_cut_takes_what_nobody_synced(tmp_path: Path, empty_image: Path) -> None:
    """That the two tests above can fail: without fsync and rename, content is not there afterwards."""
    used = cut(empty_image, tmp_path, "used")
    with filesystem(used, tmp_path / "mount"):
        (tmp_path / "mount" / "root" / "new.md").write_text("unsynced")
        after = cut(used, tmp_path, "left")
    with filesystem(after, tmp_path / "after"):
        assert not (tmp_path / "after" / "root" / "new.md").exists()
