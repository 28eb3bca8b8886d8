"""The days of an experiment: counted from tallies, clamped to what was measured, the same as a ledger of events."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from control_plane.domain.series import MAX_DAYS, Counts, Window, date_of, day_of, days, window
from shared.clock import SystemClock
from shared.errors import Invalid
from shared.moment import SECOND, utc_day
from tests.support.clock import FakeClock
from tests.support.plane import Plane, running_plane
from tests.support.waiting import eventually

DAY = 86_400
AT = "/v1/experiments/tone"
PEOPLE = [f"p{number}" for number in range(8)]
VARIANTS = [
    {"name": "A", "content": "a", "weight": 50, "isControl": True},
    {"name": "B", "content": "b", "weight": 50},
]


@pytest.fixture
def clock() -> FakeClock:
    """08:00 UTC of a day ten days ago: certificates made then are good for clients that have the real time."""
    return FakeClock(now=(utc_day(SystemClock().now()) - 10) * DAY * SECOND + 8 * 3_600 * SECOND)


@pytest.fixture
async def plane(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Plane]:
    """A control plane whose days a test makes pass."""
    async with running_plane(tmp_path / "data", clock=clock) as made:
        yield made


def on(clock: FakeClock, days: int) -> str:
    """The date of so many days from now."""
    return (moment(clock) + timedelta(days=days)).date().isoformat()


def moment(clock: FakeClock) -> datetime:
    """Now."""
    return datetime.fromtimestamp(clock.now() / SECOND, UTC)


async def running(plane: Plane, **fields: Any) -> dict[str, str]:
    """Variant key by participant, of a running experiment `tone`."""
    draft = {
        "name": "Tone",
        "targetFile": "soul.md",
        "variants": VARIANTS,
        "participantIds": PEOPLE,
        "exposureCriteria": {"settleSeconds": 0},
        **fields,
    }
    await plane.made("/v1/experiments", draft)
    started = (await plane.made(f"{AT}/start", None))["experiment"]
    keys = {item["id"]: item["key"] for item in started["variants"]}
    seats = (await plane.rest("GET", f"{AT}/assignments?limit=100")).body["entities"]
    return {item["participantId"]: keys[item["variantId"]] for item in seats}


class Ledger:
    """Every event as it was reported, for an oracle that shares no code with what it checks."""

    def __init__(self, plane: Plane, clock: FakeClock) -> None:
        self._plane, self._clock, self._number = plane, clock, 0
        self.events: list[tuple[str, str, str]] = []  # (date, participant, conversion's name or '')

    async def report(self, *events: tuple[str, str]) -> None:
        """(participant, conversion's name or empty) happened now, each of them."""
        now, batch = moment(self._clock), []
        for participant, name in events:
            self._number += 1
            self.events.append((now.date().isoformat(), participant, name))
            kind = {"kind": "conversion", "eventName": name} if name else {"kind": "impression"}
            batch.append(
                {
                    **kind,
                    "participantId": participant,
                    "eventId": str(self._number),
                    "occurredAt": now.isoformat(),
                }
            )
        await self._plane.made("/v1/events:batch", {"events": batch})

    def of(self, people: set[str], name: str, last: str) -> dict[str, Any]:
        """What is counted of these people up to the end of a day."""
        heard = [item for item in self.events if item[0] <= last and item[1] in people]
        impressions = [item for item in heard if not item[2]]
        conversions = [item for item in heard if item[2] == name]
        return {
            "impressions": len(impressions),
            "conversions": len(conversions),
            "conversionRate": len(conversions) / len(impressions) if impressions else None,
            "participants": len({person for _, person, _ in impressions}),
        }


async def series(plane: Plane, query: str = "", status: int = 200) -> Any:
    """What REST answers."""
    answer = await plane.rest("GET", f"{AT}/results-time-series{query}")
    assert answer.status == status, answer.body
    return answer.body


async def test_every_day_is_what_a_ledger_of_the_events_says(plane: Plane, clock: FakeClock) -> None:
    """Counts of each day, newcomers, and what it comes to by then; over gRPC the same; the last day is `results`."""
    chance, ledger = Random(3), Ledger(plane, clock)
    variants = await running(plane, metrics={"primary": {"eventName": "done", "goal": "increase"}})
    for day in range(5):
        met = [person for person in PEOPLE if chance.random() < 0.6] if day != 2 else []
        done = [person for person in met if chance.random() < 0.5]
        if met:
            await ledger.report(*[(p, "") for p in met * 2], *[(p, "done") for p in done], (met[0], "other"))
        clock.jump(DAY)
    found = await series(plane)
    assert (found["startDate"], found["endDate"]) == (on(clock, -5), on(clock, 0))
    dates = sorted({date for date, _, _ in ledger.events})
    assert [item["date"] for item in found["days"]] == dates
    assert len(dates) == 4
    before = "0000-00-00"
    for item in found["days"]:
        for arm in item["variants"]:
            people = {person for person, key in variants.items() if key == arm["key"]}
            now, then = ledger.of(people, "done", item["date"]), ledger.of(people, "done", before)
            assert arm["cumulative"] == now
            assert arm["impressions"] == now["impressions"] - then["impressions"]
            assert arm["conversions"] == now["conversions"] - then["conversions"]
            assert arm["newParticipants"] == now["participants"] - then["participants"]
            rate = arm["conversions"] / arm["impressions"] if arm["impressions"] else None
            assert arm["conversionRate"] == rate
        before = item["date"]
    whole = (await plane.rest("GET", f"{AT}/results")).body
    for arm, last in zip(whole["variants"], found["days"][-1]["variants"], strict=True):
        assert arm["conversions"] == last["cumulative"]["conversions"]
        assert arm["participantsExposed"] == last["cumulative"]["participants"]
    told = await plane.grpc("ResultsService.GetTimeSeries", id="tone")
    assert [day.date for day in told.days] == dates
    assert (
        told.days[-1].variants[1].cumulative.impressions
        == found["days"][-1]["variants"][1]["cumulative"]["impressions"]
    )
    other = await series(plane, "?eventName=other")
    assert sum(arm["conversions"] for item in other["days"] for arm in item["variants"]) == 4
    delivered = await series(plane, "?population=delivered&fillGaps=true")
    assert sum(arm["impressions"] for item in delivered["days"] for arm in item["variants"]) == 0


async def test_raw_events_are_not_read(plane: Plane, clock: FakeClock) -> None:
    """Without any raw event left the answer is the same."""
    await running(plane)
    await Ledger(plane, clock).report(*[(person, "") for person in PEOPLE], (PEOPLE[0], "done"))
    before = await series(plane, "?eventName=done")
    assert before["days"]
    with closing(sqlite3.connect(plane.data / "variantd.db")) as database:
        database.execute("delete from attributed_event")
        database.execute("delete from event")
        database.commit()
    assert await series(plane, "?eventName=done") == before


async def test_the_window_is_clamped_and_shown(plane: Plane, clock: FakeClock) -> None:
    """To the phase and to today; nothing measured within is no day and no date; after the end it goes no further."""
    await plane.made(
        "/v1/experiments",
        {"name": "T", "key": "draft", "targetFile": "a.md", "variants": VARIANTS, "participantIds": ["x"]},
    )
    draft = (await plane.rest("GET", "/v1/experiments/draft/results-time-series?fillGaps=true")).body
    assert (draft["startDate"], draft["endDate"], draft["phaseId"], draft["days"]) == (None, None, None, [])
    await running(plane)
    clock.jump(3 * DAY)
    dates = [on(clock, days) for days in (-3, -2, -1, 0)]
    wide = await series(plane, f"?startDate={on(clock, -183)}&endDate={on(clock, 182)}&fillGaps=true")
    assert (wide["startDate"], wide["endDate"]) == (dates[0], dates[3])
    assert [item["date"] for item in wide["days"]] == dates
    inner = await series(plane, f"?startDate={dates[1]}&endDate={dates[2]}&fillGaps=true")
    assert [item["date"] for item in inner["days"]] == dates[1:3]
    outside = await series(plane, f"?endDate={on(clock, -4)}&fillGaps=true")
    assert (outside["startDate"], outside["endDate"], outside["days"]) == (None, None, [])
    await plane.made(f"{AT}/complete", {})
    clock.jump(10 * DAY)
    assert (await series(plane))["endDate"] == dates[3]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("?startDate=2026-01-01&endDate=2027-01-02", "startDate"),
        ("?startDate=2027-01-16&endDate=2027-01-15", "startDate"),
        ("?startDate=2027-1-16", "startDate"),
        ("?endDate=20270116", "endDate"),
        ("?endDate=2027-02-30", "endDate"),
        ("?metric=a&eventName=b", "metric"),
    ],
)
async def test_what_cannot_be_asked_is_refused_by_field(plane: Plane, query: str, field: str) -> None:
    """A span of 367 days, the wrong way round, no date, two names."""
    await running(plane)
    refused = await series(plane, query, status=400)
    assert [item["field"] for item in refused["errors"]] == [field]


async def test_a_metric_is_named_by_its_key(plane: Plane, clock: FakeClock) -> None:
    """One of the experiment or a saved one; a key there is not is not found; several events have to be told apart."""
    await plane.made("/v1/metrics", {"name": "Escalated", "key": "escalations", "eventName": "escalated"})
    await plane.made("/v1/metrics", {"name": "Solved", "key": "solved", "eventName": "resolved"})
    await running(plane, metrics={"secondary": [{"key": "solved"}]})
    await Ledger(plane, clock).report((PEOPLE[0], ""), (PEOPLE[0], "resolved"), (PEOPLE[0], "escalated"))
    for key, name in (("solved", "resolved"), ("escalations", "escalated")):
        found = await series(plane, f"?metric={key}")
        assert (found["eventName"], sum(arm["conversions"] for arm in found["days"][0]["variants"])) == (
            name,
            1,
        )
    assert (await series(plane, "?metric=none", status=404))["reason"] == "METRIC_NOT_FOUND"
    assert [item["field"] for item in (await series(plane, status=400))["errors"]] == ["eventName"]


def test_a_window_has_at_most_366_days() -> None:
    """366 are, 367 are not; a bound that was not said gives way, the later days first."""
    year = Window(first=1_000, last=2_000)
    start, end = date_of(1_500), date_of(1_500 + MAX_DAYS - 1)
    assert window(year, start, end) == Window(first=1_500, last=1_500 + MAX_DAYS - 1)
    with pytest.raises(Invalid, match="startDate: is 367 days from endDate"):
        window(year, start, date_of(1_500 + MAX_DAYS))
    assert window(year, "", "") == Window(first=2_000 - MAX_DAYS + 1, last=2_000)
    assert window(year, "", date_of(1_100)) == Window(first=1_000, last=1_100)
    assert window(year, date_of(900), "") == Window(first=1_000, last=1_000 + MAX_DAYS - 1)
    assert window(year, date_of(2_001), "") is None
    assert day_of(date_of(20_000)) == 20_000


def test_days_before_the_window_are_in_what_it_comes_to() -> None:
    """A window moves nothing: cumulative counts begin with the phase."""
    counted = {1: {b"a": Counts(4, 2, 1)}, 3: {b"a": Counts(6, 1, 2)}}
    found = list(days(counted, (b"a", b"b"), Window(first=2, last=3)))
    assert [(item.day, item.counts[b"a"], item.so_far[b"a"]) for item in found] == [
        (2, Counts(), Counts(4, 2, 1)),
        (3, Counts(6, 1, 2), Counts(10, 3, 3)),
    ]
    assert {item.so_far[b"b"].rate for item in found} == {None}


async def test_an_excluded_variant_is_in_no_day(plane: Plane, clock: FakeClock) -> None:
    """As it is in no result."""
    third = {"name": "C", "content": "c", "weight": 0}
    await running(plane, variants=[*VARIANTS, third], analysis={"excludedVariantIds": ["c"]})
    await Ledger(plane, clock).report(("p1", ""))
    (day,) = (await series(plane))["days"]
    assert [arm["key"] for arm in day["variants"]] == ["a", "b"]
    told = (await plane.rest("GET", f"{AT}/results")).body
    assert [arm["key"] for arm in told["variants"]] == ["a", "b"]


async def test_days_are_computed_anew_in_the_background(plane: Plane, clock: FakeClock) -> None:
    """202 for a job that is made, 200 for one under way; once it has had its turn every day has its counts."""
    post, get = f"{AT}/recalculate-timeseries", f"{AT}/timeseries-results"
    await running(plane, metrics={"primary": {"eventName": "done", "goal": "increase"}})
    ledger = Ledger(plane, clock)
    await ledger.report((PEOPLE[0], ""), (PEOPLE[0], "done"), (PEOPLE[1], ""))
    clock.jump(2 * DAY)
    made = await plane.rest("POST", post, {"metric": "done"})
    assert (made.status, made.body["accepted"], made.body["status"]) == (202, True, "pending")
    again = await plane.rest("POST", post, {"metric": "done", "fingerprint": made.body["fingerprint"]})
    assert (again.status, again.body["id"], again.body["accepted"]) == (200, made.body["id"], False)
    assert (await series(plane))["fingerprint"] == made.body["fingerprint"]
    waiting = (await plane.rest("GET", get)).body
    assert (waiting["status"], waiting["computedAt"], len(waiting["days"])) == ("pending", None, 3)
    assert {len(day["variants"]) for day in waiting["days"]} == {0}

    async def done() -> Any:
        await clock.advance(1.0)
        found = (await plane.rest("GET", get)).body
        return found if found["status"] == "completed" else None

    found = await eventually(done, what="the days are computed")
    whole = (await series(plane, "?fillGaps=true"))["days"]
    assert [day["date"] for day in found["days"]] == [day["date"] for day in whole]
    for day, other in zip(found["days"], whole, strict=True):
        for arm, told in zip(day["variants"], other["variants"], strict=True):
            assert {**told["cumulative"], "id": told["id"], "key": told["key"]} == arm
    assert found["recalculation"]["status"] == "completed"
    told = await plane.grpc("ResultsService.GetRecalculation", id="tone", metric="done")
    assert (told.status, len(told.days), told.current) == ("completed", 3, True)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({}, 400, "INVALID_FIELDS"),
        ({"metric": "none"}, 404, "METRIC_NOT_FOUND"),
        ({"metric": "done", "fingerprint": "short"}, 400, "INVALID_FIELDS"),
        ({"metric": "done", "fingerprint": "0" * 64}, 409, "FINGERPRINT_CHANGED"),
    ],
)
async def test_what_cannot_be_computed_is_refused(
    plane: Plane, body: dict[str, str], status: int, reason: str
) -> None:
    """No metric, one there is not, and a fingerprint that is not the present one, which is told."""
    await running(plane, metrics={"primary": {"eventName": "done", "goal": "increase"}})
    refused = await plane.rest("POST", f"{AT}/recalculate-timeseries", body)
    assert (refused.status, refused.body["reason"]) == (status, reason)
    if status == 409:
        assert refused.body["fingerprint"] == (await series(plane))["fingerprint"]
