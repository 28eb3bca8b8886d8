"""Attribution depends on which facts there are, never on the order they arrived in."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.attribution import (
    Attributed,
    Enrolled,
    Happening,
    Seen,
    Standing,
    Tallies,
    Timeline,
    UnitKey,
    UnitState,
    advance,
    attribute,
    recount,
)
from shared.model import EventKind, digest

A, B = digest(b"a"), digest(b"b")
PHASE, VARIANT, PARTICIPANT = b"p" * 16, b"v" * 16, b"u" * 16
DAY = 86_400_000_000


def make_enrolled(*, from_at: int = 100, to_at: int | None = None, settle: int = 10) -> Enrolled:
    return Enrolled(
        phase_id=PHASE, variant_id=VARIANT, digests={"f": A}, from_at=from_at, to_at=to_at, settle=settle
    )


def make_event(at: int, *, name: str = "", digest_used: bytes | None = None, path: str = "") -> Happening:
    return Happening(
        id=at.to_bytes(16, "big"),
        kind=EventKind.CONVERSION if name else EventKind.IMPRESSION,
        event_name=name,
        subject="",
        path=path,
        digest=digest_used,
        value_micros=None,
        occurred_at=at,
    )


def standing(
    event: Happening, *views: tuple[int, bytes | None], **enrolled: int | None
) -> tuple[str, str] | None:
    timeline = Timeline(Seen(from_at=at, id=bytes(16), digest=value) for at, value in views)
    found = attribute(event, [make_enrolled(**enrolled)], {"f": timeline})  # type: ignore[arg-type]
    return (found[0].assigned.value, found[0].delivered.value) if found else None


@pytest.mark.parametrize(
    ("event", "views", "expected"),
    [
        (make_event(50), [], None),
        (make_event(105), [(0, A)], ("settling", "settling")),
        (make_event(110), [(0, A)], ("eligible", "eligible")),
        (make_event(110), [], ("eligible", "unknown_content")),
        (make_event(200), [(0, B), (195, A)], ("eligible", "in_transition")),
        (make_event(205), [(0, B), (195, A)], ("eligible", "eligible")),
        (make_event(200), [(0, A), (195, A)], ("eligible", "eligible")),
        (make_event(200), [(0, A), (150, B)], ("eligible", "other_content")),
        (make_event(200), [(0, A), (150, None)], ("eligible", "other_content")),
        (make_event(200, digest_used=A), [(0, B)], ("eligible", "eligible")),
        (make_event(200, digest_used=B), [(0, A)], ("eligible", "other_content")),
        (make_event(200, digest_used=A), [(0, B), (195, A)], ("eligible", "eligible")),
        (make_event(200, path="g"), [(0, A)], None),
    ],
)
def test_where_an_event_stands(
    event: Happening, views: list[tuple[int, bytes | None]], expected: tuple[str, str] | None
) -> None:
    """Too soon, on other content, or outside the phase: each has its standing."""
    assert standing(event, *views) == expected


def test_an_assignment_ends_before_its_end() -> None:
    """The interval is half open: an event at its end belongs to the next phase."""
    assert standing(make_event(199), (0, A), to_at=200) is not None
    assert standing(make_event(200), (0, A), to_at=200) is None


def test_a_view_said_again_is_no_swap() -> None:
    """The first views of a new epoch repeat what is known; they start no new settling time."""
    timeline = Timeline([Seen(from_at=at, id=bytes(16), digest=A) for at in (0, 500, 900)])
    assert timeline.at(950) == (0, A)


happenings = st.builds(
    make_event,
    st.integers(min_value=1, max_value=40).map(lambda step: step * DAY // 10),
    name=st.sampled_from(["", "", "x", "y"]),
)
standings = st.sampled_from([Standing.ELIGIBLE, Standing.ELIGIBLE, Standing.OTHER_CONTENT])


@st.composite
def attributed_events(draw: st.DrawFn) -> list[Attributed]:
    events = draw(st.lists(happenings, max_size=12, unique_by=lambda event: event.id))
    return [
        Attributed(
            phase_id=PHASE,
            variant_id=VARIANT,
            event=event,
            assigned=Standing.ELIGIBLE,
            delivered=draw(standings),
        )
        for event in events
    ]


def whole(events: list[Attributed]) -> tuple[dict[object, object], UnitState]:
    tallies = Tallies()
    state = recount(UnitKey(PHASE, PARTICIPANT, ""), [], events, tallies)
    return shown(tallies), state


def shown(tallies: Tallies) -> dict[object, object]:
    found: dict[object, object] = {}
    for side, cells in (("assigned", tallies.assigned), ("delivered", tallies.delivered)):
        for cell, sums in cells.items():
            if sums.count or sums.units or sums.value:
                found[(side, cell)] = (sums.count, sums.units, sums.value)
    return found


@given(attributed_events(), st.randoms(use_true_random=False), st.data())
def test_batches_in_any_order_give_the_same_tallies(
    events: list[Attributed], random: object, data: st.DataObject
) -> None:
    """However the events are split and ordered, quick way or recount, sums and firsts are those of the whole."""
    order = data.draw(st.permutations(events))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=4)))
    batches = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    key, tallies = UnitKey(PHASE, PARTICIPANT, ""), Tallies()
    state, seen = UnitState(assigned={}, delivered={}), list[Attributed]()
    for batch in batches:
        if not advance(state, key, batch, tallies):
            state = recount(key, seen, [*seen, *batch], tallies)
        seen += batch
    expected_tallies, expected_state = whole(events)
    assert shown(tallies) == expected_tallies
    assert state == expected_state


def test_a_conversion_waits_for_its_impression() -> None:
    """In all orders of arrival, a conversion counts if and only if its unit has an earlier impression."""
    early, late = make_event(1000), make_event(3000)
    conversion = make_event(2000, name="x")
    for order in permutations([early, conversion, late]):
        assert (
            whole([eligible(event) for event in order])[0]
            == whole([eligible(event) for event in (early, conversion, late)])[0]
        )
    alone, _ = whole([eligible(conversion), eligible(late)])
    assert [cell.event_name for _, cell in alone] == ["", ""]  # type: ignore[misc, attr-defined]


def eligible(event: Happening) -> Attributed:
    return Attributed(
        phase_id=PHASE,
        variant_id=VARIANT,
        event=event,
        assigned=Standing.ELIGIBLE,
        delivered=Standing.ELIGIBLE,
    )
