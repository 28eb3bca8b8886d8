"""The table of states and verbs, over its whole cross product, and where it is told."""

import itertools
from pathlib import Path

import pytest

from control_plane.domain.lifecycle import TRANSITIONS, Status, Verb, after, allowed
from shared.errors import FailedPrecondition

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.fault(61)
@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize(("status", "verb"), [*itertools.product(Status, Verb)])
def test_a_verb_fits_or_is_refused_with_the_way_out(status: Status, verb: Verb, archived: bool) -> None:
    """Every pair of state and verb either leads somewhere or names the state and what is allowed."""
    fitting = allowed(status, archived=archived)
    if verb in fitting:
        assert after(status, verb, archived=archived) in Status
        return
    with pytest.raises(FailedPrecondition) as refused:
        after(status, verb, archived=archived)
    assert refused.value.reason == "WRONG_STATE"
    assert refused.value.details["allowedVerbs"] == [item.value for item in fitting]
    assert refused.value.details["state"] in str(refused.value)


def test_every_state_can_be_left_and_reached() -> None:
    """From any state, verbs lead to any other; only a draft starts."""
    reached = {Status.DRAFT}
    while True:
        further = {to for status in reached for to in TRANSITIONS[status].values()}
        if further <= reached:
            break
        reached |= further
    assert reached == set(Status)
    assert all(Status.DRAFT in TRANSITIONS[status].values() for status in Status)
    assert [status for status in Status if Verb.START in TRANSITIONS[status]] == [Status.DRAFT]


def test_the_page_tells_this_table() -> None:
    """The documented verbs of each state are the ones of the table."""
    page = (DOCS / "reference" / "rest.md").read_text()
    for status in Status:
        told = next(line for line in page.splitlines() if line.startswith(f"| {status} | "))
        verbs = told.split("|")[2].strip().split(", ")
        assert sorted(verbs) == sorted(allowed(status, archived=False)), status
    assert f"| archived | {', '.join(allowed(Status.DRAFT, archived=True))} |" in page
