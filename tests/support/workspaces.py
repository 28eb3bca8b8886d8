"""Workspaces of several users, and this process as one of them."""

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import units

USER = "daemon"  # every Linux has it
OTHER = "bin"


@contextmanager
def public_directory() -> Iterator[Path]:
    """A directory that other users can enter too, unlike pytest's; gone at the end."""
    made = Path(tempfile.mkdtemp(prefix="variantd-test-"))
    try:
        made.chmod(0o755)
        yield made
    finally:
        shutil.rmtree(made)


def workspace(at: Path, *files: str, owner: str | None = None) -> Path:
    """A workspace with these files, all of it `owner`'s; skips where only root could make it."""
    if owner is not None and os.geteuid() != 0:
        pytest.skip("needs root to give files away")
    at.mkdir(parents=True, exist_ok=True)
    for file in files:
        path = at / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"This is {file}.\n")
    if owner is not None:
        for path in (at, *at.rglob("*")):
            os.chown(path, *ids(owner), follow_symlinks=False)
    return at


def ids(user: str) -> tuple[int, int]:
    """Uid and gid of a user."""
    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


@contextmanager
def being(user: str) -> Iterator[None]:
    """This process is the user's; skips where it cannot become so."""
    if os.geteuid() != 0:
        pytest.skip("needs root to be another user")
    with units.acting_as(units.fitting((), user=user)):
        yield
