"""A preview says what a start will do, and does nothing."""

import sqlite3
from typing import Any

from shared.ids import show_id
from tests.support.builders import make_hello
from tests.support.plane import Plane
from tests.support.stream import session

PAIR = [
    {"name": "A", "content": "a", "weight": 50, "isControl": True},
    {"name": "B", "content": "b", "weight": 50},
]


async def drafted(plane: Plane, name: str, *participants: str, **fields: Any) -> str:
    """The path of a draft."""
    values = {"name": name, "targetFile": "soul.md", "variants": PAIR, "participantIds": participants}
    made = await plane.made("/v1/experiments", {**values, **fields})
    return f"/v1/experiments/{made['id']}"


def stored(plane: Plane) -> list[str]:
    """Everything in the database, but for presence, which a lease renews by itself."""
    with sqlite3.connect(f"file:{plane.data / 'variantd.db'}?mode=ro", uri=True) as database:
        return [line for line in database.iterdump() if not line.startswith('INSERT INTO "agent"')]


def seats(assignments: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Where each participant came to be."""
    names = ("variantId", "stratum", "block", "position")
    return {item["participantId"]: tuple(item[name] for name in names) for item in assignments}


async def test_a_start_assigns_what_the_preview_said(plane: Plane) -> None:
    """The very same seats, in balance; neither audit nor anything else in the database has changed before."""
    ids = [f"bot-{number}" for number in range(10)]
    path = await drafted(plane, "Tone", *ids)
    before = stored(plane)
    shown = await plane.made(f"{path}/assignments:preview", None)
    assert stored(plane) == before
    assert [(item["stratum"], item["count"]) for item in shown["balance"]] == [("never_seen", 5)] * 2
    assert (shown["canDecide"], shown["warnings"]) == (True, [])
    assert round(shown["smallestReachableP"], 4) == 0.0079
    assert shown["neededP"] == 0.05
    assert {item["code"] for item in shown["findings"]} == {"NEVER_SEEN"}
    await plane.made(f"{path}/start", None)
    started = (await plane.rest("GET", f"{path}/assignments?limit=100")).body["entities"]
    assert seats(started) == seats(shown["assignments"])
    assert (await plane.rest("POST", f"{path}/assignments:preview")).status == 409


async def test_what_stands_in_the_way_is_named(plane: Plane) -> None:
    """The holder of a file, a retired host, a rule that does not mean a participant, an agent that is away."""
    gone = await plane.enroll(await plane.token(), name="gone")
    async with session(gone, make_hello("retired")):
        pass
    await plane.made(f"/v1/agents/{show_id(gone.uid)}:retire", None)
    away = await plane.enroll(await plane.token(), name="away")
    async with session(away, make_hello("held", "away")):
        pass
    for name in ("held", "away", "retired"):
        await plane.rest("PATCH", f"/v1/participants/{name}", {"labels": {"tier": "gold"}})
    first = await drafted(plane, "First", "held")
    await plane.made(f"{first}/start", None)
    rules = {"labels": [{"key": "tier", "operator": "equals", "value": "gold"}]}
    second = await drafted(plane, "Second", "held", "away", "retired", "other", targetingRules=rules)
    shown = await plane.made(f"{second}/assignments:preview", None)
    said = {(item["participantId"], item["code"], item["severity"]) for item in shown["findings"]}
    assert said == {
        ("held", "CLAIM_CONFLICT", "error"),
        ("held", "OFFLINE", "info"),
        ("away", "OFFLINE", "info"),
        ("retired", "RETIRED", "warning"),
        ("other", "NOT_TARGETED", "warning"),
    }
    assert "soul.md is held by experiment first" in {item["message"] for item in shown["findings"]}
    assert set(seats(shown["assignments"])) == {"held", "away"}
    assert shown["canDecide"] is False
    assert [item["code"] for item in shown["warnings"]] == ["DESIGN_CANNOT_DECIDE"]
    assert (await plane.rest("POST", f"{second}/start")).status == 409
