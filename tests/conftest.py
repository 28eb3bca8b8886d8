"""Fixtures every test may use."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.builders import World, make_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A control plane without its transports."""
    async with make_world(tmp_path) as made:
        yield made
