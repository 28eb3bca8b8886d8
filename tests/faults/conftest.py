"""Fixtures of the tests that inject faults."""

import pytest

from tests.support import quick


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What both sides wait for in this process is shortened."""
    quick.shorten(monkeypatch.setattr, times=(*quick.SERVER, *quick.AGENT))
    monkeypatch.setenv("VARIANT_AGENT_RECONNECT_JITTER", "0.1")
