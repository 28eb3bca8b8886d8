"""One control plane for each module of tests, and a project of its own for each test."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.clock import FakeClock
from tests.support.plane import Plane, running_plane
from tests.support.tenant import Tenant, make_tenant


@pytest.fixture(scope="module")
def clock() -> FakeClock:
    """The time of the module's control plane."""
    return FakeClock()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_plane(tmp_path_factory: pytest.TempPathFactory, clock: FakeClock) -> AsyncIterator[Plane]:
    """The module's control plane."""
    async with running_plane(tmp_path_factory.mktemp("plane") / "data", clock=clock) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def tenant(shared_plane: Plane, clock: FakeClock) -> Tenant:
    """A fresh project."""
    return await make_tenant(shared_plane, clock)
