"""Days that are computed anew, over the death of the process that was asked for them."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import running_fleet
from tests.support.waiting import eventually

NAMES = [f"done-{number}" for number in range(12)]


@pytest.mark.fault(3)
async def test_every_job_is_finished_after_a_kill_9(tmp_path: Path) -> None:
    """What was answered with 202 is done by the next process, once, with what was reported."""
    async with running_fleet(tmp_path) as fleet:
        plane = fleet.plane
        await plane.post(
            "/v1/experiments",
            {
                "name": "Tone",
                "targetFile": "soul.md",
                "variants": [
                    {"name": "A", "content": "a", "weight": 50, "isControl": True},
                    {"name": "B", "content": "b", "weight": 50},
                ],
                "participantIds": ["p", "q"],
                "exposureCriteria": {"settleSeconds": 0},
                "metrics": {"secondary": [{"eventName": name} for name in NAMES]},
            },
        )
        await plane.post("/v1/experiments/tone/start")
        met = [{"kind": "impression", "participantId": "p", "eventId": str(n)} for n in range(5)]
        done = [
            {"kind": "conversion", "participantId": "p", "eventName": name, "eventId": name} for name in NAMES
        ]
        await plane.post("/v1/events:batch", {"events": [*met, *done]})
        asked = {}
        for name in NAMES:
            status, job = await plane.rest(
                "POST", "/v1/experiments/tone/recalculate-timeseries", {"metric": name}
            )
            assert status == 202, job
            asked[name] = job["id"]
        await plane.process.kill()
        await plane.start()

        async def computed(name: str) -> Any:
            found = await plane.get(f"/v1/experiments/tone/timeseries-results?metric={name}")
            return found if found["recalculation"]["status"] == "completed" else None

        for name in NAMES:
            found = await eventually(lambda name=name: computed(name), what=f"{name} is computed")  # type: ignore[misc]
            assert found["recalculation"]["id"] == asked[name]
            last = next(day["variants"] for day in reversed(found["days"]) if day["variants"])
            assert (sum(arm["impressions"] for arm in last), sum(arm["conversions"] for arm in last)) == (
                5,
                1,
            )
