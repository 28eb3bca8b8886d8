"""Which test injects which fault is read from the source; this holds that reading to what pytest collects."""

import pytest

from tests.support.faults import FAULTS, TESTS, injected


def test_marked_faults_exist() -> None:
    """Every number that a test names is a fault of the list, which counts from 1 without a hole."""
    assert set(injected()) <= set(FAULTS)
    assert list(FAULTS) == list(range(1, len(FAULTS) + 1))


def test_markers_read_from_the_source_are_those_pytest_sees(request: pytest.FixtureRequest) -> None:
    """For every test of this run."""
    read = {(number, test) for number, tests in injected().items() for test in tests}
    for item in request.session.items:
        assert isinstance(item, pytest.Function)
        path = item.path.relative_to(TESTS.parent).as_posix()
        for marker in item.iter_markers("fault"):
            for number in marker.args:
                assert {(number, path), (number, f"{path}::{item.originalname}")} & read, item.nodeid
