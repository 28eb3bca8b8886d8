"""Faults that only root can make, each with the reason why a test of it is skipped elsewhere."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def run_or_skip(*command: str | Path) -> None:
    """The command succeeded; the test is skipped where this machine does not allow it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"needs {command[0]}")
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]} does not work here: {done.stderr.strip()}")


@contextmanager
def immutable(path: Path, *, attribute: str = "i") -> Iterator[None]:
    """The file or directory carries the attribute (`i` immutable, `a` append-only)."""
    run_or_skip("chattr", f"+{attribute}", path)
    try:
        yield
    finally:
        subprocess.run(["chattr", f"-{attribute}", str(path)], check=True)


@contextmanager
def mounted(*arguments: str | Path, at: Path) -> Iterator[None]:
    """`mount ARGUMENTS at` holds; unmounted at the end."""
    run_or_skip("mount", *arguments, at)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)
