"""Live views: what is on files, how deployments stand, what the numbers say, as it changes.

On a terminal the view fills the screen and is drawn again in place, also when the terminal's size changes; its last
picture stays when it ends. Elsewhere each change is one line, or with --json one JSON object a line. It is
polled: what a view shows is at most `--interval` old.
"""

import asyncio
import json
import signal
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from control_plane.cli import show
from control_plane.cli.connection import Unreachable
from control_plane.cli.session import Session, duration

Interval = Annotated[
    str, typer.Option("--interval", metavar="DURATION", help="How often to ask, such as 500ms or 5s.")
]

_BLINK = 0.1
"""Seconds within which a changed size is seen."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that can change: what it is about (`key`), as JSON, and as a sentence."""

    key: str
    value: dict[str, Any]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a picture is drawn for; `away`: the control plane does not answer now."""

    width: int
    height: int
    away: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """A view at one moment: its picture, what it says, and whether nothing can change any more."""

    draw: Callable[[Shape], Sequence[Text]]
    facts: tuple[Fact, ...]
    over: bool


def follow(session: Session, ask: Callable[[], Frame], *, interval: str) -> None:
    """The view is shown until it is over or the person interrupts; a restarting server is waited for."""
    pause = max(0.1, duration(interval))
    if session.out.is_terminal and not session.out.is_dumb_terminal and not session.json:
        with suppress(KeyboardInterrupt):
            _draw_in_place(session, ask, pause)
    else:
        with until_interrupted():
            _print_changes(session, ask, pause)


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM end what is within, which is no error."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _draw_in_place(session: Session, ask: Callable[[], Frame], pause: float) -> None:
    frame: Frame | None = None
    away = False

    def picture() -> list[Text]:
        width, height = session.out.size
        if frame is None:
            return [Text("waiting for the control plane"[:width])] if away else []
        rows = list(frame.draw(Shape(width=width, height=height, away=away)))
        if len(rows) > height:
            rows = [*rows[: height - 1], Text(f"… {len(rows) - height + 1} more rows"[:width])]
        return rows if session.out.encoding.startswith("utf") else [_ascii(row) for row in rows]

    def draw() -> tuple[int, int]:
        # Before it is drawn: a size that changes meanwhile is another one than this, and seen.
        size = session.out.size
        live.update(Group(*picture()), refresh=True)
        return size

    try:
        with (
            _between_pictures() as interruptible,
            _typing_is_not_shown(),
            asyncio.Runner() as runner,
            Live(
                console=session.out,
                screen=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            ) as live,
        ):
            while frame is None or not frame.over:
                try:
                    with interruptible():
                        frame, away = ask(), False
                except Unreachable:
                    away = True  # the last frame stays
                size = draw()
                end = session.clock.monotonic() + pause
                while (frame is None or not frame.over) and (left := end - session.clock.monotonic()) > 0:
                    with interruptible():
                        runner.run(session.clock.sleep(min(_BLINK, left)))
                    if session.out.size != size:  # another than was drawn for: drawn again at once
                        size = draw()
    finally:
        for row in picture():
            session.out.print(row, no_wrap=True, crop=True)


@contextmanager
def _between_pictures() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt within what it yields, once, and nowhere else.

    A picture that is half written, or a screen that is being given back, is not left so: what writes it does not
    survive an interrupt. A second signal changes nothing, until the process has ended: Ctrl-C reaches the view and
    its parent, which then ends the view as well. An interrupt that is dropped by what it was raised in, as in a
    destructor, is raised again by the next `interruptible`.
    """
    told = raises = False

    def interrupt(*_: object) -> None:
        nonlocal told, raises
        told = True
        if raises:
            raises = False
            raise KeyboardInterrupt

    @contextmanager
    def interruptible() -> Iterator[None]:
        nonlocal raises
        raises = True
        try:
            if told:
                raise KeyboardInterrupt
            yield
        finally:
            raises = False

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruptible
    finally:
        for number, handler in before.items():
            # Not a function: an interpreter that ends takes its functions back, and a late signal would be death.
            signal.signal(number, signal.SIG_IGN if told else handler)


@contextmanager
def _typing_is_not_shown() -> Iterator[None]:
    """What is typed meanwhile, Ctrl-C too, does not stand in the picture."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = termios.tcgetattr(sys.stdin)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _ascii(row: Text) -> Text:
    made = Text(show.plain(row.plain), style=row.style)
    made.spans = list(row.spans)
    return made


def _print_changes(session: Session, ask: Callable[[], Frame], pause: float) -> None:
    known: dict[str, dict[str, Any]] = {}
    while True:
        with suppress(Unreachable):
            frame = ask()
            for fact in frame.facts:
                if known.get(fact.key) == fact.value:
                    continue
                known[fact.key] = fact.value
                line = json.dumps(fact.value, ensure_ascii=False) if session.json else show.clean(fact.text)
                print(line, file=session.out.file, flush=True)
            if frame.over:
                return
        asyncio.run(session.clock.sleep(pause))
