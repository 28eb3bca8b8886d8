"""How two texts differ, for people: a unified diff whose signs say it, and whose colour repeats them."""

from collections.abc import Iterator
from difflib import unified_diff

from rich.console import Console
from rich.text import Text

from control_plane.cli import show

_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def print_difference(onto: Console, before: str, after: str, names: tuple[str, str]) -> None:
    """The unified diff of two texts is on `onto`: coloured on a terminal, which nothing in it can steer."""
    for line in _lines(before, after, names):
        shown = show.clean(line.expandtabs())
        onto.print(Text(shown, _STYLES.get(line[:1], "")), soft_wrap=True)


def _lines(before: str, after: str, names: tuple[str, str]) -> Iterator[str]:
    # Lines end at \n alone: what else ends one for Python is a character of the text like any other.
    sides = [[part + "\n" for part in text.split("\n")] for text in (before, after)]
    for side in sides:
        side[-1] = side[-1].removesuffix("\n")
    old, new = ([line for line in side if line] for side in sides)
    for line in unified_diff(old, new, *names):
        yield line.removesuffix("\n")
        if not line.endswith("\n"):
            yield "\\ No newline at end of file"
