"""`variantctl doctor` against a real control plane, whose database somebody else has changed."""

import sqlite3
from contextlib import closing

from tests.cli.conftest import Run
from tests.support.plane import Plane


async def test_a_changed_tally_is_named_and_nothing_else(plane: Plane, running: Run) -> None:
    """Exit code 0 while nothing differs; 1 with the one row that was changed in the file, in words and as JSON."""
    await plane.made(
        "/v1/events:batch",
        {
            "events": [
                {"kind": "impression", "participantId": bot, "eventId": f"{bot} {n}", "subject": "chat"}
                for bot in ("bot-1", "bot-2")
                for n in range(3)
            ]
        },
    )
    well = await running("doctor", "tallies")
    assert (well.code, well.out) == (0, "soul-tone: nothing differs (6 events of 2 participants)\n")
    with closing(sqlite3.connect(plane.data / "variantd.db")) as database:
        database.execute(
            "update tally set assigned_count = 7 where participant_id = (select id from participant"
            " where public_id = 'bot-2')"
        )
        database.commit()
    said = await running("doctor", "tallies", "soul-tone")
    assert said.code == 1
    (line,) = said.out.splitlines()[1:]
    assert line.startswith("  tally: participant bot-2, variant ")
    assert line.endswith("assigned count: 7, by the events 3")
    told = await running("doctor", "tallies", "soul-tone", "--json")
    assert told.code == 1
    (only,) = told.json
    assert only == (await plane.rest("POST", "/v1/experiments/soul-tone/tallies:check")).body
    assert [(item["stored"], item["recomputed"]) for item in only["differences"]] == [("7", "3")]
    assert (await running("doctor", "tallies", "none")).code == 1


async def test_subjects_are_for_those_who_may_read_contents(plane: Plane, running: Run) -> None:
    """Without `content:read` a difference does not say whose chat it was."""
    event = {"kind": "impression", "participantId": "bot-1", "eventId": "1", "subject": "chat"}
    await plane.made("/v1/events:batch", {"events": [event]})
    with closing(sqlite3.connect(plane.data / "variantd.db")) as database:
        database.execute("update unit set first_assigned = null")
        database.commit()
    made = await plane.made("/v1/api-keys", {"name": "reader", "scopes": ["experiment:read"]})
    for key, subject in ((plane.key, "chat"), (made["secret"], None)):
        answer = await plane.rest("POST", "/v1/experiments/soul-tone/tallies:check", key=key)
        assert [(item["table"], item["subject"]) for item in answer.body["differences"]] == [
            ("unit", subject)
        ]
