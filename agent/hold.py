"""Whether this host takes offers: what `variant-agent hold` says stays so across restarts.

Hides the file in the state directory. One that cannot be read counts as a hold: writing nothing is the error
that can be undone.
"""

import json
from pathlib import Path

from agent.durable import sync_directory, write_durably
from shared.model import Condition
from shared.moment import to_rfc3339


class Hold:
    """The hold of the host whose state is in `state_dir`; `now` stands in for a moment that was lost."""

    def __init__(self, state_dir: Path, *, now: int) -> None:
        self._path = state_dir / "hold.json"
        self.since: int | None = None
        """Microseconds; None where the host takes offers."""
        try:
            self.since = int(json.loads(self._path.read_bytes())["sinceUs"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError):
            self.since = now

    def begin(self, now: int) -> None:
        """The host is on hold, durably; one that is already stays so. Raises OSError. Blocks."""
        if self.since is None:
            write_durably(self._path, json.dumps({"sinceUs": now}).encode())
            self.since = now

    def end(self) -> None:
        """The host takes offers, durably. Idempotent; raises OSError. Blocks."""
        self._path.unlink(missing_ok=True)
        sync_directory(self._path.parent)
        self.since = None

    def conditions(self) -> tuple[Condition, ...]:
        """HOST_HELD while the hold lasts."""
        if self.since is None:
            return ()
        message = f"held on the host since {to_rfc3339(self.since)}; `variant-agent hold off` ends it"
        return (Condition(code="HOST_HELD", severity="warning", since_at=self.since, message=message),)
