"""Whatever is sent, the answer is a refusal that says why: never a 500, never a traceback."""

from pathlib import Path
from random import Random
from typing import Any

import pytest

from control_plane.api.admission import Bucket
from control_plane.api.doors import ROUTES
from control_plane.api.operations import OPERATIONS, Operation
from tests.support import postgres
from tests.support.builders import ENGINES
from tests.support.plane import Plane, running_plane

LEAVES: list[Any] = [
    None, True, False, 0, -1, 1.5, 1e308, 2**63, 2**70, "", "x", "\x00", "ü" * 5000, "../..", "/", "sk_", [], {}, [[]],
]  # fmt: skip


def nonsense(random: Random, depth: int = 0) -> Any:
    """A JSON value nobody meant."""
    kind = random.random()
    if depth > 2 or kind < 0.5:
        return random.choice(LEAVES)
    if kind < 0.75:
        return [nonsense(random, depth + 1) for _ in range(random.randint(0, 3))]
    return {
        random.choice(["a", "id", "ids", "labels", "primary"]): nonsense(random, depth + 1) for _ in range(2)
    }


def body_for(operation: Operation, random: Random) -> dict[str, Any]:
    """Some of the operation's own fields with nonsense in them."""
    fields = [field.alias or name for name, field in operation.request.model_fields.items()]
    chosen = random.sample(fields, random.randint(0, len(fields)))
    return {field: nonsense(random) for field in chosen}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.rpc)
async def test_nonsense_is_refused(plane: Plane, operation: Operation) -> None:
    """Forty seeded bodies and paths per operation: each answer is below 500 and is JSON."""
    random = Random(operation.rpc)
    await plane.made("/v1/experiments", {"name": "Tone", "targetFile": "a.md", "key": "tone"})
    for _ in range(40):
        path = operation.path
        for name in ("{id}", "{variantId}"):
            path = path.replace(
                name, random.choice(["tone", "x", "%00", "..%2f", "01a1fc04-0c05-7232-8ad5-b189d7015a12"])
            )
        if operation.method == "GET":
            query = "&".join(f"{key}={str(value)[:50]}" for key, value in body_for(operation, random).items())
            answer = await plane.rest("GET", f"{path}?{query.replace('#', '')}")
        else:
            answer = await plane.rest(operation.method, path, body_for(operation, random))
        assert answer.status < 500, (path, answer.body)


async def test_no_database_is_asked_to_hold_nul(tmp_path: Path) -> None:
    """PostgreSQL has no room for U+0000 in a text: that is a refusal, in a filter as well."""
    async with running_plane(tmp_path / "data", database=postgres.url_of(tmp_path)) as plane:
        for body in ({"name": "a\0"}, {"name": "a", "labels": {"team\0": "x"}}):
            answer = await plane.rest("POST", "/v1/experiments", body)
            assert (answer.status, answer.body["reason"]) == (400, "INVALID_FIELDS"), body
        for query in (
            "experiments?search=%00",
            "experiments?label.a=%00",
            "participants?cursor=00",
            "metrics/%00",
        ):
            answer = await plane.rest("GET", f"/v1/{query}")
            assert (answer.status, answer.body["reason"]) == (400, "INVALID_FIELDS"), query
        # What is stored as JSON may say it, and is found again.
        deep = {"name": "Deep", "key": "deep", "metadata": {"a\0": "\0\0", "path": "c:\\u0000"}}
        assert (await plane.made("/v1/experiments", deep))["metadata"] == deep["metadata"]
        for name, found in (("deep", ["deep"]), ("tone", [])):
            answer = await plane.rest("GET", f"/v1/audit-log?resourceId={name}")
            assert [item["after"]["key"] for item in answer.body["entities"]] == found, answer.body
    postgres.drop(tmp_path)


@pytest.mark.parametrize("name", ["a\0", "a\x1fPT1H"])
async def test_a_metric_is_of_a_name_that_can_be_reported(plane: Plane, name: str) -> None:
    """What no event is called no metric counts: it would stand in statements over the database."""
    asked = {"name": "Tone", "metrics": {"primary": {"eventName": name}}}
    for path, body in (("experiments", asked), ("metrics", {"name": "m", "eventName": name})):
        answer = await plane.rest("POST", f"/v1/{path}", body)
        assert (answer.status, answer.body["reason"]) == (400, "INVALID_FIELDS"), answer.body


@pytest.mark.parametrize("engine", ENGINES)
async def test_where_there_is_nothing_every_list_is_empty(tmp_path: Path, engine: str) -> None:
    """Whatever has no name in its path is read of a project without anything, on each database."""
    every = [one for one in (*OPERATIONS, *ROUTES.values()) if one.method == "GET"]
    paths = [one.path.replace("{project}", "@current") for one in every if set(one.named) <= {"project"}]
    more: dict[str, Any] = {"database": postgres.url_of(tmp_path)} if engine == "postgres" else {}
    async with running_plane(tmp_path / "data", **more) as plane:
        answers = {path: await plane.rest("GET", path) for path in paths}
    assert {path: answer.body for path, answer in answers.items() if answer.status >= 500} == {}
    assert answers["/v1/events"].body["entities"] == []
    if more:
        postgres.drop(tmp_path)


def test_a_bucket_lets_through_its_rate() -> None:
    """A burst at once, then the rate, whatever the clock's start."""
    bucket = Bucket(rate=2.0, burst=3.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(100.5), bucket.take(100.5)] == [True, False]
    assert [bucket.take(900.0) for _ in range(4)] == [True, True, True, False]
