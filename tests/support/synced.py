"""What waited for the disk, by the names of files and directories."""

import os
from pathlib import Path
from typing import Any

import pytest


class Synced:
    """What was made durable from now on until the end of the test; the disk does it as well."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._paths: list[Path] = []
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, sync: Any) -> Any:
        def watched(fd: Any) -> None:
            sync(fd)
            self._paths.append(Path(f"/proc/self/fd/{fd}").readlink())

        return watched

    def taken(self, *, below: Path = Path("/")) -> list[str]:
        """The names of those below a directory since the last time, in order."""
        paths, self._paths = self._paths, []
        return [path.name for path in paths if path.is_relative_to(below)]
