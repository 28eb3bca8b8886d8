"""Attribution depends on which facts there are, never on the order they arrived in."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.attribution import (
    Attributed,
    Enrolled,
    Happening,
    Seen,
    Several,
    Standing,
    Tallies,
    Timeline,
    UnitKey,
    UnitState,
    advance,
    as_by_itself,
    attribute,
    judge,
    judge_all,
    recount,
    windowed,
)
from shared.model import EventKind, digest

A, B, C = digest(b"a"), digest(b"b"), digest(b"c")
PHASE, VARIANT, PARTICIPANT = b"p" * 16, b"v" * 16, b"u" * 16
DAY = 86_400_000_000


def make_enrolled(*, from_at: int = 100, to_at: int | None = None, settle: int = 10, **rule: Any) -> Enrolled:
    return Enrolled(
        phase_id=PHASE,
        variant_id=VARIANT,
        digests={"f": A},
        from_at=from_at,
        to_at=to_at,
        settle=settle,
        **rule,
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


def standing(event: Happening, *views: tuple[int, bytes | None], **enrolled: Any) -> tuple[str, str] | None:
    timeline = Timeline(Seen(from_at=at, id=bytes(16), digest=value) for at, value in views)
    found = attribute(event, [make_enrolled(**enrolled)], {"f": timeline})
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
            windows=WINDOWS.get(event.event_name, ()),
        )
        for event in events
    ]


WINDOWS = {"x": (DAY // 5, DAY)}


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


# -- several variants


@pytest.mark.parametrize(
    ("event", "views", "expected"),
    [
        (make_event(200), [(0, A), (150, B)], "other_variant"),
        (make_event(200, digest_used=B), [(0, A)], "other_variant"),
        (make_event(200), [(0, A), (150, C)], "other_content"),
        (make_event(200), [(0, A), (150, None)], "other_content"),
        (make_event(200), [(0, A)], "eligible"),
    ],
)
def test_content_of_another_variant_is_told_apart(
    event: Happening, views: list[tuple[int, bytes | None]], expected: str
) -> None:
    """By the digest on disk, or the one that was in use."""
    assert standing(event, *views, others={"f": {B}}) == ("eligible", expected)


@pytest.mark.parametrize(
    ("views", "receipts", "expected"),
    [
        ([(0, A)], [(150, A)], "eligible"),
        ([(0, A)], [(200, A)], "eligible"),
        ([(0, A)], [(201, A)], "not_loaded"),
        ([(0, B), (195, A)], [(196, A)], "eligible"),  # the application's word needs no settling time
        ([(0, B), (195, A)], [(150, A)], "not_loaded"),  # new on disk: what was loaded before says nothing
        ([(0, A), (100, B), (150, A)], [(50, A)], "not_loaded"),
        ([(0, A), (100, A), (150, A)], [(50, A)], "eligible"),  # said again, not changed
        ([(0, A)], [(50, A), (100, B)], "other_variant"),
        ([(0, A)], [(50, B), (100, A)], "eligible"),
        ([(0, A)], [(50, A), (100, C)], "other_content"),
        ([(0, B)], [(50, B)], "other_variant"),
        ([(0, B)], [(50, A)], "other_content"),  # loaded, they say, and not on disk
        ([], [(50, A)], "not_loaded"),
    ],
)
def test_a_receipt_says_what_was_loaded(
    views: list[tuple[int, bytes]], receipts: list[tuple[int, bytes]], expected: str
) -> None:
    """From then on, until something else comes onto the disk or the application says otherwise."""
    facts = [
        [Seen(from_at=at, id=bytes(16), digest=value) for at, value in said] for said in (views, receipts)
    ]
    rule = make_enrolled(loaded=True, others={"f": {B}})
    [found] = attribute(make_event(200), [rule], {"f": Timeline(*facts)})
    assert (found.assigned.value, found.delivered.value) == ("eligible", expected)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (make_event(200), "not_loaded"),
        (make_event(200, path="f"), "not_loaded"),
        (make_event(200, digest_used=A), "eligible"),
        (make_event(200, digest_used=B), "other_content"),
    ],
)
def test_loaded_is_what_the_event_says_itself(event: Happening, expected: str) -> None:
    """What is on disk may not have been read."""
    assert standing(event, (0, A), loaded=True) == ("eligible", expected)


@st.composite
def met(draw: st.DrawFn) -> list[Attributed]:
    """Events of a unit, some at one moment, on the assigned content, on another variant's, or on something else."""
    found = []
    for number, moment in enumerate(draw(st.lists(st.integers(1, 12), max_size=12))):
        event = make_event(moment * DAY // 10, name=draw(st.sampled_from(["", "", "", "x"])))
        side = draw(
            st.sampled_from(
                [Standing.ELIGIBLE, Standing.ELIGIBLE, Standing.OTHER_VARIANT, Standing.OTHER_CONTENT]
            )
        )
        event = event._replace(id=number.to_bytes(16, "big"))
        found.append(eligible(event)._replace(delivered=side))
    return found


@given(met(), st.sampled_from(Several), st.data())
def test_who_met_several_variants_follows_from_the_events_alone(
    events: list[Attributed], several: Several, data: st.DataObject
) -> None:
    """However they are split and ordered, quick way or not: standings, sums and the unit are those of the whole."""
    order = data.draw(st.permutations(events))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=6)))
    key, tallies = UnitKey(PHASE, PARTICIPANT, ""), Tallies()
    state, seen = UnitState(assigned={}, delivered={}), list[Attributed]()
    for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True):
        quick = judge(state, order[start:end], several)
        if quick is not None and advance(state, key, quick, tallies):
            seen += quick
        else:
            before, seen = seen, judge_all([*seen, *order[start:end]], several)
            state = recount(key, before, seen, tallies)
    expected = judge_all(events, several)
    assert {item.event.id: item.delivered for item in seen} == {
        item.event.id: item.delivered for item in expected
    }
    assert (shown(tallies), state) == whole(expected)
    assert sorted((as_by_itself(item) for item in seen), key=lambda item: item.event.id) == events


def test_two_rules_for_who_met_several_variants() -> None:
    """Out altogether; or in, where the assigned one was the first."""
    assigned, other = make_event(1000), make_event(2000)
    events = [eligible(assigned), eligible(other)._replace(delivered=Standing.OTHER_VARIANT)]
    said = {several: [item.delivered.value for item in judge_all(events, several)] for several in Several}
    assert said == {"exclude": ["crossed", "other_variant"], "first_seen": ["eligible", "other_variant"]}
    swapped = [events[0]._replace(event=other), events[1]._replace(event=assigned)]
    assert [item.delivered.value for item in judge_all(swapped, Several.FIRST_SEEN)] == [
        "crossed",
        "other_variant",
    ]
    assert judge_all(events, None) == events


def test_a_window_counts_from_the_first_exposure() -> None:
    """Under a name of its own, besides; an earlier exposure that arrives late takes a conversion out again."""
    first, later, near, far = (
        eligible(make_event(1000)),
        eligible(make_event(5000)),
        eligible(make_event(1100, name="x"))._replace(windows=(100, 5000)),
        eligible(make_event(5050, name="x"))._replace(windows=(100, 5000)),
    )

    def counts(*events: Attributed) -> dict[str, int]:
        cells, _ = whole(list(events))
        return {cell.event_name: sums[0] for (side, cell), sums in cells.items() if side == "assigned"}  # type: ignore[misc, attr-defined, index]

    assert counts(later, far) == {"": 1, "x": 1, windowed("x", 100): 1, windowed("x", 5000): 1}
    assert counts(later, far, first) == {"": 2, "x": 1, windowed("x", 5000): 1}
    assert counts(first, near) == {"": 1, "x": 1, windowed("x", 100): 1, windowed("x", 5000): 1}


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
