"""Use cases hold on every database there is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builders import ENGINES, engine


@pytest.fixture(autouse=True, params=ENGINES)
def _engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Worlds are on this engine."""
    with engine(request.param):
        yield
    if request.param == "postgres":
        from tests.support import postgres

        postgres.drop(tmp_path)
