"""The times variantd waits, shortened alike on both sides: a fault that takes a minute to be noticed takes a second.

What is shortened are constants only; the code that waits is the same. `shorten` does it in this process, and
`python -m tests.support.quick variantd|variant-agent ARGUMENTS` is that program with it.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

from shared.backoff import Backoff
from shared.moment import SECOND

HEARTBEAT = 0.25
LEASE = 1.5
"""Within so many seconds a host that is gone is shown lost."""

REPLICA_LEASE = 3.0
"""Within so many seconds a replica that is gone is taken for gone."""

SERVER: tuple[tuple[str, str, Any], ...] = (
    ("control_plane.api.spacing", "HEARTBEAT_SECONDS", HEARTBEAT),
    ("control_plane.api.sync", "WRITE_DEADLINE_SECONDS", 1.0),
    ("control_plane.api.sync", "HELLO_DEADLINE_SECONDS", 2.0),
    ("control_plane.api.leases", "LOOK_SECONDS", 0.2),
    ("control_plane.api.leases", "WRITTEN_SECONDS", 0.4),
    ("control_plane.services.sessions", "LEASE", round(LEASE * SECOND)),
    ("control_plane.api.leases", "LEASE", round(LEASE * SECOND)),
    ("control_plane.api.polls", "LEASE", round(LEASE * SECOND)),
    ("control_plane.store.sqlite", "BUSY_SECONDS", 0.5),
    ("control_plane.store.postgres", "ANSWER_SECONDS", 4.0),
    ("control_plane.store.postgres", "IDLE_SECONDS", 2),
    ("control_plane.services.replicas", "BEAT_SECONDS", 0.4),
    ("control_plane.services.replicas", "LEASE_SECONDS", REPLICA_LEASE),
    ("control_plane.services.due", "LOOK_SECONDS", 0.2),
)
AGENT: tuple[tuple[str, str, Any], ...] = (
    ("agent.session", "OPENING_SECONDS", 2.0),
    ("agent.link", "BACKOFF", Backoff(base=0.1, factor=2.0, cap=0.5)),
    ("agent.calls", "CALL_SECONDS", 2.0),
    ("agent.reconciler", "CATCH_UP_SECONDS", 1.0),
    ("agent.uplink", "BACKOFF", Backoff(base=0.05, factor=2.0, cap=0.5)),
)


def shorten(replace: Callable[[object, str, Any], None], *, times: tuple[tuple[str, str, Any], ...]) -> None:
    """Every time is replaced, by `setattr` or a monkeypatch's; one that is gone raises AttributeError."""
    for module, name, value in times:
        place = importlib.import_module(module)
        getattr(place, name)
        replace(place, name, value)


def main() -> None:
    program = sys.argv.pop(1)
    if program == "variantd":
        shorten(setattr, times=SERVER)
        from control_plane.__main__ import main as run
    else:
        shorten(setattr, times=AGENT)
        from agent.__main__ import main as run
    run()


if __name__ == "__main__":
    main()
