"""Where temporary files of interrupted applies can be, and that they go.

A workspace is its user's: how deep it goes, and what has names like ours, is not for us to say.
"""

import os

from agent.beneath import closing, open_directory
from agent.policy import TEMP_PREFIX, matches


def reachable(root: int, at: tuple[str, ...], globs: list[str], found: set[tuple[str, ...]]) -> None:
    """Adds to `found` every existing directory on the way of the directory part of a glob."""
    todo = [(at, globs)]
    while todo:  # not by recursion: how deep it goes is decided by whoever writes there
        at, globs = todo.pop()
        try:
            directory = open_directory(root, at)
        except OSError:
            continue
        with closing(directory):
            found.add(at)
            if not globs:
                continue
            head, rest = globs[0], globs[1:]
            names = [head]
            if "*" in head:
                with os.scandir(directory) as entries:
                    names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        if head == "**":
            todo.append((at, rest))
            rest = globs
        wanted = "*" if head == "**" else head
        todo += [((*at, name), rest) for name in names if "*" not in head or matches(wanted, (name,))]


def sweep(root: int, parts: tuple[str, ...]) -> int:
    """What an interrupted apply left in the directory is gone; how many files that was."""
    with closing(open_directory(root, parts)) as directory:
        with os.scandir(directory) as entries:
            names = [
                e.name
                for e in entries
                if e.name.startswith(TEMP_PREFIX)
                and e.name.endswith(".tmp")
                and e.is_file(follow_symlinks=False)
            ]
        for name in names:
            os.unlink(name, dir_fd=directory)
        return len(names)
