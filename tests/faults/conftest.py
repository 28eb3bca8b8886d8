"""Fixtures of the tests that inject faults."""

from asyncio.subprocess import Process
from collections.abc import AsyncIterator

import pytest

from tests.support import quick
from tests.support.forking import forking


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What both sides wait for in this process is shortened."""
    quick.shorten(monkeypatch.setattr, times=(*quick.SERVER, *quick.AGENT))
    monkeypatch.setenv("VARIANT_AGENT_RECONNECT_JITTER", "0.1")


@pytest.fixture
async def crasher() -> AsyncIterator[Process]:
    """The process that forks the ones that die."""
    async with forking("tests.support.crashing") as process:
        yield process
