"""Live views: what is on files, how deployments stand, what the numbers say, as it changes.

On a terminal the view is drawn again in place; elsewhere each change is one line, or with --json one JSON
object a line. It is polled: what a view shows is at most `--interval` old.
"""

import asyncio
import copy
import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from control_plane.cli import show
from control_plane.cli.connection import Unreachable
from control_plane.cli.session import Session, duration

Interval = Annotated[
    str, typer.Option("--interval", metavar="DURATION", help="How often to ask, such as 500ms or 5s.")
]


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that can change: what it is about (`key`), as JSON, and as a sentence."""

    key: str
    value: dict[str, Any]
    text: str


@dataclass(frozen=True, slots=True)
class Frame:
    """A view at one moment: how it is drawn, what it says, and whether nothing can change any more."""

    draw: Callable[[Session], None]
    facts: tuple[Fact, ...]
    over: bool


def follow(session: Session, ask: Callable[[], Frame], *, interval: str) -> None:
    """The view is shown until it is over or the person interrupts; a restarting server is waited for."""
    pause = max(0.1, duration(interval))
    with suppress(KeyboardInterrupt):
        if session.out.is_terminal and not session.json:
            _draw_in_place(session, ask, pause)
        else:
            _print_changes(session, ask, pause)


def _frames(session: Session, ask: Callable[[], Frame], pause: float) -> Iterator[Frame | None]:
    while True:
        try:
            frame = ask()
        except Unreachable:
            yield None
        else:
            yield frame
            if frame.over:
                return
        asyncio.run(session.clock.sleep(pause))


def _draw_in_place(session: Session, ask: Callable[[], Frame], pause: float) -> None:
    with Live(console=session.out, auto_refresh=False) as live:
        for frame in _frames(session, ask, pause):
            if frame is None:
                continue  # the last frame stays while the control plane is away
            drawn = io.StringIO()
            console = Console(file=drawn, force_terminal=True, width=session.out.width, markup=False)
            onto = copy.copy(session)  # the connection is shared
            onto.out = console
            frame.draw(onto)
            live.update(Text.from_ansi(drawn.getvalue()), refresh=True)


def _print_changes(session: Session, ask: Callable[[], Frame], pause: float) -> None:
    known: dict[str, dict[str, Any]] = {}
    for frame in _frames(session, ask, pause):
        for fact in frame.facts if frame else ():
            if known.get(fact.key) == fact.value:
                continue
            known[fact.key] = fact.value
            line = json.dumps(fact.value, ensure_ascii=False) if session.json else show.clean(fact.text)
            print(line, file=session.out.file, flush=True)
