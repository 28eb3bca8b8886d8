"""How far apart hosts do what all of them do."""

import pytest

from control_plane.api.spacing import Spacing


@pytest.mark.parametrize(
    ("hosts", "heartbeat", "window"),
    [
        (0, 10, 0),
        (1_000, 10, 0),
        (1_250, 12.5, 0),
        (2_000, 20, 16),
        (3_000, 30, 24),
        (5_000, 30, 40),
        (100_000, 30, 800),
    ],
)
def test_the_more_hosts_the_further_apart(hosts: int, heartbeat: float, window: float) -> None:
    """As the documentation has it; so few hosts that theirs is enough are not asked for a window."""
    assert Spacing.of(hosts) == Spacing(heartbeat=heartbeat, reconnect_window=window)


def test_the_wider_of_two_is_the_wider_of_each() -> None:
    """Whichever comes first."""
    often, seldom = Spacing(heartbeat=10, reconnect_window=40), Spacing(heartbeat=30, reconnect_window=16)
    assert often.wider(seldom) == seldom.wider(often) == Spacing(heartbeat=30, reconnect_window=40)
