"""A terminal of a given size with a program in it: what a person would see, and what did not fit."""

import asyncio
import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from rich.cells import cell_len

from tests.support.waiting import PATIENCE, eventually

_CONTROL = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z])|\x1b\](?:[^\x07\x1b]*)(?:\x07|\x1b\\)|\x1b[=>]")


@dataclass
class Screen:
    """Rows of cells, as a terminal keeps them; counts where a program wrote over an edge.

    A screen knows what our programs use. Anything else is an error, so that nothing is missed in silence.
    """

    width: int
    height: int
    rows: list[list[str]] = field(default_factory=list)
    alternate: bool = False
    cursor: bool = True
    wrapped: int = 0
    scrolled: int = 0
    drawn: int = 0
    _kept: list[list[str]] = field(default_factory=list)
    _x: int = 0
    _y: int = 0
    _rest: str = ""

    def __post_init__(self) -> None:
        self.resize(self.width, self.height)

    @property
    def text(self) -> str:
        """What is on the screen."""
        return "\n".join("".join(row).rstrip() for row in self.rows)

    @property
    def whole(self) -> bool:
        """A picture that fills the screen was written to its last cell: nothing of it is still on the way."""
        return (self._x, self._y) == (self.width, self.height - 1)

    def resize(self, width: int, height: int) -> None:
        """What is outside is gone; a program that does not draw again leaves what is inside as it was."""
        self.width, self.height = width, height
        rows = [(row + [" "] * width)[:width] for row in self.rows[:height]]
        self.rows = rows + [[" "] * width for _ in range(height - len(rows))]
        self._x, self._y = min(self._x, width), min(self._y, height - 1)

    def feed(self, text: str) -> None:
        """The program wrote this."""
        text, at = self._rest + text, 0
        while at < len(text):
            if text[at] != "\x1b":
                self._put(text[at])
                at += 1
                continue
            found = _CONTROL.match(text, at)
            if found is None:
                break
            if found[3]:
                self._control(found[1] + found[3], found[2])
            at = found.end()
        self._rest = text[at:]
        assert len(self._rest) < 64, f"not a sequence that is known: {self._rest!r}"

    def _put(self, character: str) -> None:
        if character == "\r":
            self._x = 0
        elif character == "\n":
            self._line_feed()
        elif cells := cell_len(character):
            if self._x + cells > self.width:
                self.wrapped += 1
                self._x = 0
                self._line_feed()
            self.rows[self._y][self._x : self._x + cells] = [character, *[""] * (cells - 1)]
            self._x += cells

    def _line_feed(self) -> None:
        if self._y < self.height - 1:
            self._y += 1
            return
        self.scrolled += 1
        self.rows = [*self.rows[1:], [" "] * self.width]

    def _control(self, what: str, numbers: str) -> None:
        first = int(numbers.partition(";")[0] or 0)
        if what == "H":
            assert not numbers
            self._x = self._y = 0
            self.drawn += 1
        elif what == "A":
            self._y = max(0, self._y - max(1, first))
        elif what == "K":
            end = self.width if first != 1 else self._x
            self.rows[self._y][self._x if first == 0 else 0 : end] = [" "] * (
                end - (self._x if first == 0 else 0)
            )
        elif what in ("?h", "?l"):
            self._mode(first, on=what == "?h")
        else:
            assert what == "m", f"{what} is not known"

    def _mode(self, number: int, *, on: bool) -> None:
        if number == 25:
            self.cursor = on
        elif number == 1049 and on:
            self.alternate, self._kept = True, self.rows
            self.rows = [[" "] * self.width for _ in range(self.height)]
        elif number == 1049:
            self.alternate, self.rows = False, self._kept
            self.resize(self.width, self.height)
            self._x, self._y = 0, next((y for y, row in enumerate(self.rows) if not "".join(row).strip()), 0)


@dataclass
class Terminal:
    """A program on a terminal."""

    process: asyncio.subprocess.Process
    screen: Screen
    descriptor: int
    written: str = ""
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")()
    )

    def read(self) -> Screen:
        """The screen with everything that was written until now."""
        with suppress(BlockingIOError, OSError):  # EIO: nobody holds the other end any more
            while data := os.read(self.descriptor, 65536):
                text = self._decoder.decode(data)
                self.written += text
                self.screen.feed(text)
        return self.screen

    async def until(self, shown: Callable[[Screen], bool], *, what: str, within: float = PATIENCE) -> Screen:
        """`shown` holds of the screen."""
        try:
            await eventually(lambda: shown(self.read()), within=within, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.screen.text}") from None
        return self.screen

    def type(self, text: str) -> None:
        """A person types this."""
        os.write(self.descriptor, text.encode())

    def resize(self, width: int, height: int) -> None:
        """The window has another size, and the program is told."""
        self.screen.resize(width, height)
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGWINCH)

    async def ended(self, *, within: float = PATIENCE) -> int:
        """The program's exit code; everything it wrote was read."""
        ending = asyncio.ensure_future(self.process.wait())
        await eventually(lambda: self.read() and ending.done(), within=within, what="the program ends")
        self.read()
        return ending.result()


@asynccontextmanager
async def on_a_terminal(
    *command: str, width: int, height: int, env: dict[str, str] | None = None
) -> AsyncIterator[Terminal]:
    """The program runs on a terminal of that size, which is its controlling one; it is ended with the block."""
    parent, child = pty.openpty()
    fcntl.ioctl(parent, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    os.set_blocking(parent, False)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    environment |= {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **(env or {})}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(child)
    terminal = Terminal(process=process, screen=Screen(width, height), descriptor=parent)
    try:
        yield terminal
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(parent)
