"""Fixtures every test may use."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared import logs
from tests.support.builders import World, make_world
from tests.support.plane import Plane, running_plane


@pytest.fixture(autouse=True, scope="session")
def _logs() -> None:
    """Logs are as in the real processes."""
    logs.configure(level="info", json=True)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A control plane without its transports."""
    async with make_world(tmp_path) as made:
        yield made


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    """A real control plane on free ports."""
    async with running_plane(tmp_path / "data") as running:
        yield running
