"""Who holds a file, asked while an apply is under way in a thread."""

import sys
import threading
from collections.abc import Iterator

import pytest

from agent.plan import held, holder
from agent.slots import Slot
from tests.agent.test_journal import make_slot


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads take turns as often as can be."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("hurried")
def test_a_slot_that_comes_about_meanwhile_is_no_trouble() -> None:
    """The event loop asks about all slots of a participant; threads put new ones among them."""
    first = make_slot(closed=False, slot_id=bytes(16))
    slots: dict[bytes, Slot] = {bytes([0, number]): first for number in range(50)}
    ends = threading.Event()

    def applies() -> None:
        while not ends.is_set():
            for number in range(200):
                slots[bytes([1, number])] = first
            for number in range(200):
                del slots[bytes([1, number])]

    applying = threading.Thread(target=applies)
    applying.start()
    try:
        for _ in range(500):
            assert [slot for slot, _ in held(slots)] == [first]
            assert holder(slots, "real/a.md") is not None
    finally:
        ends.set()
        applying.join()
