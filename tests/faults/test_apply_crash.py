"""Killed anywhere in an apply: files whole, restart finishes or undoes, baselines come back exactly.

Promise P1, and fault 1 of the list: every step that Python sees, and every system call that strace sees.
"""

import asyncio
import os
import random
import shutil
from asyncio.subprocess import Process
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.model import OfferAction, Result
from tests.support.crashing import NEW, OLD, UNDONE, reload_command
from tests.support.host import make_end, make_offer, running_host
from tests.support.schedule import size
from tests.support.waiting import PATIENCE

OFFERS = ("write", "undone", "restore")
KILLED = -9
SAMPLE = 60
"""At most so many system calls per offer; a seeded choice beyond that."""


def prepared(directory: Path, *, applied: Path | None) -> Path:
    """A host with a baseline of one present and one absent file; or a copy of one with both applied."""
    if applied is not None:
        shutil.copytree(applied, directory)
        return directory
    (directory / "root").mkdir(parents=True)
    target = directory / "root" / "soul.md"
    target.write_text(OLD)
    target.chmod(0o640)
    return directory


async def line(process: Process) -> list[str]:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        return (await process.stdout.readline()).decode().split()


async def tell(process: Process, directory: Path, offer: str, point: object) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{directory} {offer} {point}\n".encode())
    await process.stdin.drain()


async def died(process: Process, directory: Path, offer: str, point: int) -> tuple[int, int]:
    """(exit status, steps made) of a child that was to die at a point."""
    await tell(process, directory, offer, point)
    word, status, steps = await line(process)
    assert word == "end"
    return int(status), int(steps)


def on_disk(directory: Path, new: dict[str, str]) -> tuple[str | None, str | None]:
    """Both files, each of which is old or new; raises AssertionError for anything else."""
    found = []
    for path, old in (("soul.md", OLD), ("deep/er/new.md", None)):
        target = directory / "root" / path
        text = target.read_text() if target.exists() else None
        assert text in (old, new[path]), f"{path} is torn: {text!r}"
        found.append(text)
    return found[0], found[1]


async def recovered(directory: Path, offer: str) -> None:
    """A restart leaves the set all old or all new, says which, and can restore the baseline exactly."""
    new = UNDONE if offer == "undone" else NEW
    all_old, all_new = (OLD, None), (new["soul.md"], new["deep/er/new.md"])
    on_disk(directory, new)
    async with running_host(directory, reload=reload_command(directory)) as host:
        assert host.reconciler.conditions() == ()
        assert host.leftovers() == []
        slots = host.reconciler.slots()
        assert all(slot.result is not Result.IN_PROGRESS for slot in slots)
        is_new = on_disk(directory, new) != all_old
        assert set(host.reconciler.watched()) == ({("bot-1", path) for path in NEW} if is_new else set())
        if is_new:
            assert (on_disk(directory, new), offer != "undone") == (all_new, True)
            assert slots[0].revision == 1
            assert (directory / "reloads").exists()  # the hook was owed until it ran
            again = await host.apply(make_offer(NEW, revision=1))
            assert (again.result, again.attempt) == (Result.APPLIED, 1)
        outcome = await host.apply(make_end(OfferAction.RESTORE, *NEW, revision=2))
        assert outcome.result is Result.APPLIED
        assert on_disk(directory, new) == all_old
        assert sorted(path.name for path in host.root.rglob("*")) == ["soul.md"]
        assert (host.root / "soul.md").stat().st_mode & 0o7777 == 0o640


async def applied_host(tmp_path: Path, offer: str) -> Path | None:
    """What a restore starts from; None for the others."""
    if offer != "restore":
        return None
    directory = prepared(tmp_path / "applied", applied=None)
    async with running_host(directory, reload=reload_command(directory)) as host:
        assert (await host.apply(make_offer(NEW, revision=1))).result is Result.APPLIED
    return directory


@pytest.mark.fault(1)
@pytest.mark.parametrize("offer", OFFERS)
async def test_killed_at_every_step_a_restart_finishes_or_undoes(
    tmp_path: Path, crasher: Process, offer: str
) -> None:
    """Before each file operation and on both sides of each fsync."""
    applied = await applied_host(tmp_path, offer)
    status, steps = await died(crasher, prepared(tmp_path / "whole", applied=applied), offer, 0)
    assert (status, steps > 30) == (0, True)
    for point in range(1, steps + 1):
        directory = prepared(tmp_path / str(point), applied=applied)
        status, _ = await died(crasher, directory, offer, point)
        assert status == KILLED, f"step {point} of {steps}"
        await recovered(directory, offer)
        shutil.rmtree(directory)


# -- every system call -------------------------------------------------------------------------------

CALLS = ("openat", "openat2", "write", "fsync", "rename", "renameat", "renameat2", "unlink", "unlinkat")
CALLS += ("mkdirat", "fchmod", "fchown", "close")


async def traced(crasher: Process, directory: Path, offer: str, *options: str) -> int:
    """The exit status of a child whose one thread that touches files is under strace."""
    os.mkfifo(directory / "go")
    go = os.open(directory / "go", os.O_RDWR)  # both ends, so that neither side waits for the other to open
    await tell(crasher, directory, offer, "trace")
    word, thread = await line(crasher)
    assert word == "thread"
    tracer = await asyncio.create_subprocess_exec(
        "strace", "-p", thread, *options, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    assert tracer.stderr is not None
    attached = (await tracer.stderr.readline()).decode()
    os.write(go, b"go")
    os.close(go)
    word, status, _ = await line(crasher)
    assert word == "end"
    await tracer.communicate()
    if "attached" not in attached:
        pytest.skip(f"strace cannot attach here: {attached.strip()}")
    return int(status)


@dataclass(kw_only=True)
class Whole:
    """An offer that nothing happened to: what it starts from, and the system calls it made, `made`, in order."""

    applied: Path | None
    options: list[str]
    log: Path
    made: list[str]

    def again(self) -> list[str]:
        """The system calls of the offer that was traced last."""
        return [text.split("(")[0] for text in self.log.read_text().splitlines()]


async def whole(crasher: Process, tmp_path: Path, offer: str, calls: tuple[str, ...]) -> Whole:
    """The offer under strace, which counts these calls."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    log = tmp_path / "log"
    options = ["-e", f"trace={','.join(calls)}", "-o", str(log)]
    found = Whole(applied=await applied_host(tmp_path, offer), options=options, log=log, made=[])
    directory = prepared(tmp_path / "whole", applied=found.applied)
    assert await traced(crasher, directory, offer, *options) == 0
    found.made = found.again()
    return found


@pytest.mark.fault(1)
@pytest.mark.parametrize("offer", OFFERS)
async def test_killed_at_every_system_call_a_restart_finishes_or_undoes(
    tmp_path: Path, crasher: Process, offer: str
) -> None:
    """Of those that open, write, sync, rename and remove, as the kernel counts them."""
    found = await whole(crasher, tmp_path, offer, CALLS)
    points = [(call, number) for call in CALLS for number in range(1, found.made.count(call) + 1)]
    assert {"openat2", "fsync", "unlinkat"} <= set(found.made) or offer != "restore"
    sample = random.Random(offer).sample(points, min(SAMPLE, len(points)))
    killed = 0
    for call, number in sample:
        directory = prepared(tmp_path / f"{call}-{number}", applied=found.applied)
        inject = f"inject={call}:signal=KILL:when={number}"
        status = await traced(crasher, directory, offer, *found.options, "-e", inject)
        if status == 0:
            # A call that depends on the moment, such as what waits for a command: there were fewer.
            assert found.again().count(call) < number
        else:
            assert status == KILLED, f"{call} {number} of {found.made.count(call)}"
            killed += 1
        await recovered(directory, offer)
        shutil.rmtree(directory)
    assert killed > len(sample) // 2


# -- errors that the kernel gives --------------------------------------------------------------------

FAIL = ("openat2", "write", "fsync", "rename", "renameat", "renameat2", "mkdirat", "fchmod")
ERRORS = 5
"""System calls per offer of which one fails; `make faults` tries every one, with both errors."""


@pytest.mark.fault(11, 17)
@pytest.mark.timeout(size("TIMEOUT", small=240, large=7_200))
@pytest.mark.parametrize("offer", OFFERS)
async def test_an_error_of_the_kernel_at_any_system_call_leaves_files_whole(
    tmp_path: Path, crasher: Process, offer: str
) -> None:
    """EIO or ENOSPC once: every file is old or new, nothing is left over, and the next offers are applied."""
    found = await whole(crasher, tmp_path, offer, FAIL)
    points = [
        (call, number, error)
        for call in FAIL
        for number in range(1, found.made.count(call) + 1)
        for error in ("EIO", "ENOSPC")
    ]
    assert {"openat2", "fsync"} <= {call for call, _, _ in points}
    count = size("ERRORS", small=ERRORS, large=len(points))
    for call, number, error in random.Random(offer).sample(points, min(count, len(points))):
        directory = prepared(tmp_path / f"{call}-{number}-{error}", applied=found.applied)
        inject = f"inject={call}:error={error}:when={number}"
        where = f"{error} of {call} {number} of {found.made.count(call)}"
        assert await traced(crasher, directory, offer, *found.options, "-e", inject) == 0, where
        on_disk(directory, UNDONE if offer == "undone" else NEW)
        async with running_host(directory, reload=reload_command(directory)) as host:
            assert host.leftovers() == [], where
            ended = await host.apply(make_offer(NEW, revision=3, overwrite_drift=True, retry=True))
            assert ended.result is Result.APPLIED, (where, ended.reason)
            assert on_disk(directory, NEW) == (NEW["soul.md"], NEW["deep/er/new.md"])
            ended = await host.apply(make_end(OfferAction.RESTORE, *NEW, revision=4))
            assert ended.result is Result.APPLIED, (where, ended.reason)
            assert on_disk(directory, NEW) == (OLD, None), where
        shutil.rmtree(directory)
