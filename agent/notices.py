"""What the kernel says of files in watched directories: changes, and who is done reading.

Hides inotify. Directories are watched, never files: a watch on a file dies at the first atomic replace. What is
told is a hint to look, except that every reading told of has happened; the kernel says one where two alike
came together, so that readings are a lower bound.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from asyncinotify import Event, Inotify, Mask, Watch

Identity = tuple[int, int]
"""Device and inode: what tells a directory from another put in its place."""

MAX_AT_ONCE = 4096
"""Notices handed out together; more wait in the kernel."""

_CHANGES = (
    Mask.MODIFY | Mask.CLOSE_WRITE | Mask.CREATE | Mask.DELETE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.ATTRIB
)
_LOST = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.IGNORED | Mask.UNMOUNT
_READINGS = Mask.OPEN | Mask.CLOSE_NOWRITE  # both, so that two readings in a row are not merged into one


class What(StrEnum):
    """What happened to a path."""

    CHANGED = "changed"
    OPENED = "opened"
    READ = "read"
    """Closed by somebody that had not opened it for writing."""
    WRITTEN = "written"
    """Closed by somebody that had."""
    LOST = "lost"
    """The directory is not watched any more: it was moved, deleted or unmounted."""
    OVERFLOW = "overflow"
    """The kernel dropped notices of any path."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that happened; `path` is absolute, a directory for LOST and of no meaning for OVERFLOW."""

    what: What
    path: Path


class Notices:
    """One inotify instance; a context manager. Making it raises OSError where there are none left."""

    def __init__(self) -> None:
        self._inotify = Inotify(cache_size=64, sync_timeout=0.0)
        self._watches: dict[Path, tuple[Watch, Identity, bool]] = {}
        self._names: dict[
            Watch, list[Path]
        ] = {}  # of its directory: the kernel has one watch for all of them
        self.is_empty = True
        """Nothing was left in the kernel when `waiting` was last asked."""

    def __enter__(self) -> "Notices":
        return self

    def __exit__(self, *_: object) -> None:
        self._inotify.close()

    def watch(self, wanted: Mapping[Path, tuple[Identity, bool]]) -> dict[Path, OSError]:
        """Exactly these directories are watched, of those with True readings too; the errors of the others.

        Of a directory by several names, readings are told where one of them has True: it has one watch.
        """
        for path in self._watches.keys() - wanted.keys():
            self._forget(path)
        read = {identity for identity, readings in wanted.values() if readings}
        failed: dict[Path, OSError] = {}
        for path, (identity, _) in wanted.items():
            known, readings = self._watches.get(path), identity in read
            if known is not None and known[1:] == (identity, readings):
                continue
            if known is not None and known[1] != identity:
                self._forget(path)
            mask = _CHANGES | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ONLYDIR
            try:
                watch = self._inotify.add_watch(path, mask | _READINGS if readings else mask)
            except OSError as error:
                failed[path] = error
            else:
                self._drop(path)  # a watch that ended without a word yet
                self._watches[path] = (watch, identity, readings)
                self._names.setdefault(watch, []).append(path)
        return failed

    def _forget(self, path: Path) -> None:
        watch = self._drop(path)
        if watch is None or watch in self._names:
            return  # it is watched under another name
        try:
            self._inotify.rm_watch(watch)
        except OSError:
            return  # it was gone already

    def _drop(self, path: Path) -> Watch | None:
        """The watch that the path had; what is told of it is not of this path any more."""
        watch, _, _ = self._watches.pop(path, (None, None, None))
        if watch is not None:
            self._names[watch].remove(path)
            if not self._names[watch]:
                del self._names[watch]
        return watch

    async def next(self) -> list[Notice]:
        """What has happened since, at least one thing. Cancelling it loses nothing."""
        first = await self._inotify.get()
        return [*self._read(first), *self.waiting()]

    def waiting(self) -> list[Notice]:
        """What has happened up to this moment and was not handed out yet."""
        found: list[Notice] = []
        self.is_empty = False
        while len(found) < MAX_AT_ONCE:
            event = self._inotify.sync_get()
            if event is None:
                self.is_empty = True
                break
            found += self._read(event)
        return found

    def _read(self, event: Event) -> Iterator[Notice]:
        if Mask.Q_OVERFLOW in event.mask:
            yield Notice(What.OVERFLOW, Path())
            return
        directories = (
            list(self._names.get(event.watch, ())) if event.watch else []
        )  # none: of a watch that is over
        for directory in directories:
            if event.name is not None:
                yield from _told(event, directory / event.name)
            elif event.mask & _LOST:
                self._drop(directory)
                yield Notice(What.LOST, directory)


def _told(event: Event, path: Path) -> Iterator[Notice]:
    if Mask.CLOSE_WRITE in event.mask:
        yield Notice(What.WRITTEN, path)
    if event.mask & _CHANGES:
        yield Notice(What.CHANGED, path)
    elif Mask.OPEN in event.mask:
        yield Notice(What.OPENED, path)
    elif Mask.CLOSE_NOWRITE in event.mask:
        yield Notice(What.READ, path)
