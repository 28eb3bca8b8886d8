"""Fixtures every test may use.

A test that injects a fault of the list in tests/support/faults.py, and checks what has to hold, carries its
number: `@pytest.mark.fault(11, 14)`. docs/faults.md is written from these.
"""

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from shared import logs
from tests.support import postgres
from tests.support.builders import World, make_world
from tests.support.plane import Plane, running_plane

# What a shell without job control starts in the background ignores Ctrl-C, and hands that on to all it starts: programs
# that a test ends by SIGINT would run for ever. What is a function here is the default there.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is, and nothing about what is tested.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="session")
def _logs() -> None:
    """Logs are as in the real processes."""
    logs.configure(level="info", json=True)


@pytest.fixture(autouse=True, scope="session")
def _servers() -> Iterator[None]:
    """What tests started for all of them ends with them."""
    yield
    postgres.end()


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
