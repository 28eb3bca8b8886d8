"""A process that applies offers and dies where it is told: forks one child per line on standard input.

A line is `DIRECTORY OFFER POINT`. OFFER is `write`, `undone` (a write whose reload fails) or `restore`.
POINT is the number of the step at which the child kills itself (0: never), counting file operations as
Python announces them and both sides of each fsync; or `trace`, where the child prints the id of the one
thread that touches files, waits until the FIFO DIRECTORY/go says so, and leaves the killing to a tracer.
Printed at the end of each: `end STATUS STEPS`.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from agent.reconciler import Reconciler
from shared import logs
from shared.clock import SystemClock
from shared.ids import new_id
from shared.model import OfferAction, Outcome, View
from tests.support.host import make_config, make_end, make_offer, make_participant

OLD, NEW = "old soul", {"soul.md": "new soul", "deep/er/new.md": "new file"}
UNDONE = {"soul.md": "bad soul", "deep/er/new.md": "bad file"}
STEPS = {
    "open",
    "os.chmod",
    "os.chown",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "subprocess.Popen",
}


def reload_command(directory: Path) -> tuple[str, ...]:
    """Leaves a line per reload in `directory`/reloads, and fails on bad content."""
    return ("/bin/sh", "-c", f"echo done >> {directory}/reloads; ! grep -q bad soul.md")


class Killer:
    """Counts steps from `arm` on and ends this process, without a word, at the given one."""

    def __init__(self, point: int, count: Callable[[int], None]) -> None:
        self._point, self._steps, self._armed, self._count = point, 0, False, count
        fsync = os.fsync

        def watched(fd: Any) -> None:
            self.step()
            fsync(fd)
            self.step()

        os.fsync = watched
        sys.addaudithook(lambda event, _: self.step() if event in STEPS else None)

    def arm(self) -> None:
        self._armed = True

    def step(self) -> None:
        if self._armed:
            self._steps += 1
            self._count(self._steps)
            if self._steps == self._point:
                os.kill(os.getpid(), signal.SIGKILL)


async def play(directory: Path, offer: str, ready: Callable[[], None]) -> None:
    """One offer over `directory`, as an agent applies it; `ready` is called right before."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=1))
    done = asyncio.Event()

    def record_view(view: View) -> None:
        pass

    async def fetch(wanted: bytes, size: int) -> bytes:
        raise OSError

    def on_outcome(outcome: Outcome) -> None:
        done.set()

    participant = make_participant(directory / "root", reload=reload_command(directory))
    reconciler = Reconciler(
        config=make_config(directory, participant),
        state_dir=directory / "state",
        clock=SystemClock(),
        new_id=new_id,
        record_view=record_view,
        fetch=fetch,
        on_outcome=on_outcome,
        on_change=lambda: None,
    )
    await reconciler.start()
    done.clear()
    running = asyncio.create_task(reconciler.run())
    await asyncio.to_thread(ready)
    if offer == "restore":
        reconciler.offer(make_end(OfferAction.RESTORE, *NEW, revision=2))
    else:
        reconciler.offer(make_offer(NEW if offer == "write" else UNDONE, revision=1))
    await done.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def child(directory: Path, offer: str, point: str, report: int) -> None:
    def count(steps: int) -> None:
        os.pwrite(report, steps.to_bytes(4, "big"), 0)

    def wait_for_tracer() -> None:
        with (directory / "go").open("rb", buffering=0) as go:
            print(f"thread {threading.get_native_id()}", flush=True)
            go.read(2)

    if point == "trace":
        asyncio.run(play(directory, offer, wait_for_tracer))
    else:
        killer = Killer(int(point), count)
        asyncio.run(play(directory, offer, killer.arm))


def main() -> None:
    logs.configure(level="error")
    report = os.memfd_create("steps")
    for line in sys.stdin:
        directory, offer, point = line.split()
        os.pwrite(report, bytes(4), 0)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                child(Path(directory), offer, point, report)
                status = 0
            finally:
                sys.stdout.flush()
                os._exit(status)
        _, waited = os.waitpid(pid, 0)
        steps = int.from_bytes(os.pread(report, 4, 0), "big")
        print(f"end {os.waitstatus_to_exitcode(waited)} {steps}", flush=True)


if __name__ == "__main__":
    main()
