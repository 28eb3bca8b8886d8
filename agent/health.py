"""The truth about this process: what is wrong, since when, and whether it does its work.

Hides how conditions of several parts become one answer. A control plane that cannot be reached is a
condition, never a reason to be unready: files are kept and reports are spooled without it.
"""

from collections.abc import Callable, Iterable, Mapping

from shared.clock import Clock
from shared.model import Condition

_ORDER = ("error", "warning", "info")


class Conditions:
    """What is wrong with one part, each condition since the moment it began."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, Condition] = {}

    def hold(self, code: str, severity: str, message: str) -> bool:
        """The condition holds from now on, or still; whether it is new."""
        known = self._known.get(code)
        since = known.since_at if known else self._clock.now()
        self._known[code] = Condition(code=code, severity=severity, since_at=since, message=message)
        return known is None

    def end(self, code: str) -> bool:
        """The condition holds no longer; whether it did."""
        return self._known.pop(code, None) is not None

    def now(self) -> tuple[Condition, ...]:
        """What holds now."""
        return tuple(self._known.values())


class Health:
    """What the parts of the process say, put together at the moment of asking.

    `sources` tell conditions; `checks` tell what must hold for the process to be ready, by name.
    """

    def __init__(
        self,
        *,
        sources: Iterable[Callable[[], Iterable[Condition]]],
        checks: Mapping[str, Callable[[], bool]],
    ) -> None:
        self._sources, self._checks = tuple(sources), dict(checks)

    def conditions(self) -> tuple[Condition, ...]:
        """Everything wrong on this host, errors first, then the oldest first."""
        found = [condition for source in self._sources for condition in source()]
        return tuple(sorted(found, key=lambda c: (_ORDER.index(c.severity), c.since_at, c.code)))

    def unready(self) -> tuple[str, ...]:
        """The names of the checks that fail; none: ready."""
        return tuple(name for name, check in self._checks.items() if not check())
