"""Every step of the apply machine × (an error, a kill) × (what was there before can be put back, or not).

In each cell the file is one of the two accepted contents, the journal goes on from where it was, the outcome says
what became of it, and a reload that is owed is run. A step without a row fails.
"""

import asyncio
import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from shared.model import Loaded, Offer, OfferAction, OfferedFile, Outcome, ReasonCode, Result, Step, digest
from tests.support.application import Application, application
from tests.support.clock import FakeClock
from tests.support.forking import forking
from tests.support.host import Host, make_end, make_offer, running_host
from tests.support.stepping import rules
from tests.support.waiting import PATIENCE, eventually, ticked

B = digest(b"B")
AGAIN, REFUSED, BACK, STUCK = Result.IN_PROGRESS, Result.REFUSED, Result.ROLLED_BACK, Result.STUCK


@dataclass(frozen=True, kw_only=True)
class Row:
    """What becomes of an error right after the step, where the content before can be put back and where not;

    and whether a kill there leaves the new content to be judged by the next start.
    """

    code: ReasonCode | None
    possible: Result
    impossible: Result
    swapped: bool


ROWS = {
    Step.RECEIVED: Row(code=ReasonCode.IO_ERROR, possible=AGAIN, impossible=AGAIN, swapped=False),
    Step.FETCHED: Row(
        code=ReasonCode.NOT_A_REGULAR_FILE, possible=REFUSED, impossible=REFUSED, swapped=False
    ),
    Step.ALLOWED: Row(code=ReasonCode.NO_SPACE, possible=AGAIN, impossible=AGAIN, swapped=False),
    Step.STAGED: Row(code=ReasonCode.CHECK_FAILED, possible=REFUSED, impossible=REFUSED, swapped=False),
    Step.CHECKED: Row(code=ReasonCode.IO_ERROR, possible=AGAIN, impossible=AGAIN, swapped=False),
    Step.SWAPPED: Row(code=ReasonCode.RELOAD_FAILED, possible=AGAIN, impossible=STUCK, swapped=True),
    Step.RELOAD_OWED: Row(code=ReasonCode.RELOAD_FAILED, possible=BACK, impossible=STUCK, swapped=True),
    Step.RELOADED: Row(code=ReasonCode.PROBE_FAILED, possible=BACK, impossible=STUCK, swapped=True),
    Step.LOADED: Row(code=ReasonCode.PROBE_FAILED, possible=BACK, impossible=STUCK, swapped=True),
    Step.CONFIRMED: Row(code=None, possible=Result.CONFIRMED, impossible=Result.CONFIRMED, swapped=True),
}


def test_every_step_has_its_row() -> None:
    """A step that is added to the machine is added here."""
    assert set(ROWS) == set(Step)


class Disk:
    """Renames over targets fail once `swaps` of them have been made; everything fails to sync where `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.swaps: int | None = None
        self.full = False
        rename, fsync = os.rename, os.fsync

        def watched_rename(*args: Any, **values: Any) -> None:
            if "src_dir_fd" in values and self.swaps is not None:  # the journal's renames name no directory
                if self.swaps == 0:
                    raise OSError(5, "Input/output error")
                self.swaps -= 1
            rename(*args, **values)

        def watched_fsync(fd: Any) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            fsync(fd)

        monkeypatch.setattr(os, "rename", watched_rename)
        monkeypatch.setattr(os, "fsync", watched_fsync)


def told(host: Host, after: int) -> Outcome | None:
    """The first end, or failed try, that the host told after so many outcomes; not what is merely on its way."""
    found = [one for one in host.outcomes[after:] if one.reason or one.result is Result.CONFIRMED]
    return found[0] if found else None


def fault_at(step: Step, host: Host, app: Application, disk: Disk, *, possible: bool) -> Offer:
    """What goes wrong once the step is reached; the offer that meets it."""
    offer = make_offer({"soul.md": "B"}, revision=2)
    if not possible:
        disk.swaps = 1
    match step:
        case Step.RECEIVED:
            return replace(offer, files=(OfferedFile(path="soul.md", digest=B, size=1),))
        case Step.FETCHED:
            (host.root / "config" / "dir.md").mkdir(parents=True)
            return make_offer({"soul.md": "B", "config/dir.md": "B"}, revision=2)
        case Step.ALLOWED:
            disk.full = True
        case Step.STAGED:
            return make_offer({"soul.md": "bad"}, revision=2)
        case Step.CHECKED:
            disk.swaps = 0
        case Step.SWAPPED:
            (host.root.parent / "hook").unlink()
        case Step.RELOAD_OWED:
            (host.root.parent / "unwell").touch()
        case Step.RELOADED | Step.LOADED:
            app.status = 500
        case Step.CONFIRMED:
            pass  # the journal cannot be written at the end, see below
    return offer


@pytest.mark.fault(49, 50)
@pytest.mark.parametrize("possible", [True, False], ids=["possible", "impossible"])
@pytest.mark.parametrize("step", list(Step))
async def test_an_error_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step, possible: bool
) -> None:
    """Whatever it is, the file is whole, the reason is told, and a later offer is applied once it is over."""
    row, clock = ROWS[step], FakeClock()
    disk = Disk(monkeypatch)
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\n{rules(tmp_path)['reload'][2]}\n")
    hook.chmod(0o755)
    own = {**rules(tmp_path), "reload": (str(hook),)}
    async with (
        application() as app,
        running_host(tmp_path, clock=clock, probe=app.probe(10.0), **own) as host,
    ):
        await host.apply(make_offer({"soul.md": "A"}))
        await ticked(clock, 1.0, lambda: host.outcomes[-1].result is Result.CONFIRMED)
        before, runs = len(host.outcomes), (tmp_path / "reloads").read_text().count("run")
        offer = fault_at(step, host, app, disk, possible=possible)
        host.reconciler.offer(offer)
        if step in (Step.LOADED, Step.CONFIRMED):
            await eventually(lambda: len(host.outcomes) > before)
        if step is Step.LOADED:
            host.reconciler.loaded(
                Loaded(participant="bot-1", path="soul.md", digest=B, loaded_at=clock.now())
            )
            await eventually(lambda: host.outcomes[-1].step is Step.LOADED)
        disk.full = disk.full or step is Step.CONFIRMED
        await ticked(clock, 0.25, lambda: told(host, before))
        ended = told(host, before)
        assert ended is not None
        assert ended.result is (row.possible if possible else row.impossible)
        if row.code is not None and ended.result is not STUCK:
            assert ended.reason is not None
            assert ended.reason.code is row.code
        stays = ended.result in (STUCK, Result.CONFIRMED)
        assert host.text("soul.md") == ("B" if stays else "A")
        assert host.leftovers() == []
        ran = (tmp_path / "reloads").read_text().count("run") - runs
        assert ran >= (row.swapped and step is not Step.SWAPPED)
        # It is over.
        disk.swaps, disk.full, app.status = None, False, 200
        hook.write_text("#!/bin/sh\n")
        hook.chmod(0o755)
        await host.reconciler.catch_up()
    async with application() as app, running_host(tmp_path, clock=clock, probe=app.probe(1.0)) as host:
        assert host.text("soul.md") in ("A", "B")
        assert (await host.apply(make_offer({"soul.md": "C"}, revision=3))).result is Result.APPLIED
        assert host.text("soul.md") == "C"


@pytest.fixture
async def stepper() -> AsyncIterator[Process]:
    """The process that forks the ones that die."""
    async with forking("tests.support.stepping") as process:
        yield process


@pytest.mark.fault(1, 47, 49, 50)
@pytest.mark.parametrize("step", list(Step))
async def test_killed_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stepper: Process, step: Step
) -> None:
    """The next start finds an application that does not take the content, and puts back what it can."""
    row = ROWS[step]
    for possible in (True, False):
        directory = tmp_path / str(possible)
        (directory / "root").mkdir(parents=True)
        (directory / "root" / "soul.md").write_text("mine")
        assert stepper.stdin is not None
        assert stepper.stdout is not None
        stepper.stdin.write(f"{directory} {step.value}\n".encode())
        async with asyncio.timeout(PATIENCE):
            assert (await stepper.stdout.readline()).decode().split() == ["end", str(-signal.SIGKILL)]
        assert (directory / "root" / "soul.md").read_text() == ("B" if row.swapped else "A")
        runs = (directory / "reloads").read_text().count("run")
        (directory / "unwell").touch()
        with monkeypatch.context() as patched:
            disk = Disk(patched)
            disk.swaps = None if possible else 0
            await restarted(directory, row, runs=runs, possible=possible)
            disk.swaps = None
            (directory / "unwell").unlink()
            async with running_host(directory) as host:
                outcome = await host.apply(make_end(OfferAction.RESTORE, "soul.md", revision=9))
                assert (outcome.result, host.text("soul.md")) == (Result.APPLIED, "mine")


async def restarted(directory: Path, row: Row, *, runs: int, possible: bool) -> None:
    """The journal is gone on from, and everything it promised is done or told."""
    clock = FakeClock()
    async with application() as app:
        app.status = 500
        async with running_host(directory, clock=clock, probe=app.probe(), **rules(directory)) as host:
            if row.swapped:
                await ticked(clock, 1.0, lambda: host.outcomes)
                assert host.outcomes[-1].result is (BACK if possible else STUCK)
                assert host.outcomes[-1].revision == 2
                assert (directory / "reloads").read_text().count("run") > runs
            else:
                assert host.outcomes == []
            assert host.text("soul.md") == ("B" if row.swapped and not possible else "A")
            assert host.leftovers() == []
            assert all(slot.result is not Result.IN_PROGRESS for slot in host.reconciler.slots())
