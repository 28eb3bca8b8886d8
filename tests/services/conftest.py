"""Use cases hold on every database there is.

Every test here runs on SQLite and on PostgreSQL. Parameters of a test change what is in its statements, seldom the
statements: on PostgreSQL a test runs with the first of its parameters, and with all of them where it is marked
`every_engine`, which a test needs whose parameters choose the SQL.
"""

from collections.abc import Iterator

import pytest

from tests.support.builders import ENGINES, engine


@pytest.fixture(autouse=True, params=ENGINES)
def _engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Worlds are on this engine."""
    with engine(request.param):
        yield
    if request.param == "postgres":
        from tests.support import postgres

        postgres.give_back()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Parameters that change no statement are for one engine."""
    met: set[tuple[str, str]] = set()
    spared = []
    for item in items:
        if isinstance(item, pytest.Function) and _parameters(item).get("_engine") == "postgres":
            test = (str(item.path), item.originalname)
            if test in met and not item.get_closest_marker("every_engine"):
                spared.append(item)
            met.add(test)
    if spared:
        config.hook.pytest_deselected(items=spared)
        items[:] = [item for item in items if item not in set(spared)]


def _parameters(item: pytest.Function) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}
