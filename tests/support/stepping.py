"""A process that applies an offer and dies when the apply machine has just reached a step.

Forks one child per line on standard input, `DIRECTORY STEP`: content `A` is applied and confirmed first, then `B`
is offered, and loaded where it gets that far. Printed at the end of each: `end STATUS`.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from agent.attempts import Attempt
from shared import logs
from shared.clock import SystemClock
from shared.model import Loaded, Result, Step, digest
from tests.support.application import application
from tests.support.host import make_offer, running_host
from tests.support.waiting import eventually


def rules(directory: Path) -> dict[str, Any]:
    """The host's commands: its check refuses `bad`, its reload leaves a line and fails once told to."""
    told = f"echo run >> {directory}/reloads; test ! -e {directory}/unwell"
    return {
        "check": ("/bin/sh", "-c", "! grep -q bad $0", "{staged}"),
        "reload": ("/bin/sh", "-c", told),
    }


def die_at(step: Step) -> None:
    """This process ends, without a word, as soon as an attempt has reached the step."""

    def watched(attempt: Attempt, name: str, value: object) -> None:
        object.__setattr__(attempt, name, value)
        if name == "step" and value is step:
            os.kill(os.getpid(), signal.SIGKILL)

    Attempt.__setattr__ = watched  # type: ignore[assignment]


async def play(directory: Path, step: Step) -> None:
    """Ends before it is through, if the step is ever reached."""
    async with (
        application() as app,
        running_host(directory, clock=SystemClock(), probe=app.probe(0.1), **rules(directory)) as host,
    ):
        await host.apply(make_offer({"soul.md": "A"}))
        await eventually(lambda: host.outcomes[-1].result is Result.CONFIRMED)
        die_at(step)
        outcome = await host.apply(make_offer({"soul.md": "B"}, revision=2))
        said = Loaded(participant="bot-1", path="soul.md", digest=digest(b"B"), loaded_at=outcome.occurred_at)
        host.reconciler.loaded(said)
        await eventually(lambda: host.outcomes[-1].result is Result.CONFIRMED)


def main() -> None:
    logs.configure(level="error")
    for line in sys.stdin:
        directory, step = line.split()
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(play(Path(directory), Step(step)))
            finally:
                os._exit(0)
        _, waited = os.waitpid(pid, 0)
        print(f"end {os.waitstatus_to_exitcode(waited)}", flush=True)


if __name__ == "__main__":
    main()
