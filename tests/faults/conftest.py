"""Fixtures of the tests that inject faults."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import quick

HERE = Path(__file__).resolve().parents[2]


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What both sides wait for in this process is shortened."""
    quick.shorten(monkeypatch.setattr, times=(*quick.SERVER, *quick.AGENT))
    monkeypatch.setenv("VARIANT_AGENT_RECONNECT_JITTER", "0.1")


@pytest.fixture
async def crasher() -> AsyncIterator[Process]:
    """The process that forks the ones that die."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.crashing",
        cwd=HERE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    yield process
    os.killpg(process.pid, signal.SIGKILL)  # a child that a failed test left waiting as well
    await process.wait()
