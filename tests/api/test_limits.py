"""Keys limited to labels: every operation tried outside and within, and the ways out that there might be.

Made from the table of operations and its examples, so an operation is tried here as soon as it is there.
"""

import sqlite3
from contextlib import closing
from typing import Any

import grpc
import pytest

from control_plane.api.examples import EXAMPLES
from control_plane.api.operations import OPERATIONS
from tests.support.plane import Answer, Identity, Plane
from tests.support.story import BY_RPC, Story
from tests.support.twins import asked

TEAM = {"team": "x"}
UNTIL = "ExperimentService.StartExperiment"
WITH = ("DeploymentService.CreateDeployment", "AccessService.CreateApiKey")
MAKES = ("ExperimentService.CreateExperiment", "FleetService.CreateParticipant")


async def limited(plane: Plane, **fields: Any) -> str:
    """A key for everything that team x has; its first use, so that it changes nothing later."""
    made = await plane.made("/v1/api-keys", {"name": "x", "scopes": ["admin"], "labels": TEAM, **fields})
    assert made["labels"] == fields.get("labels", TEAM)
    secret = str(made["secret"])
    assert (await plane.rest("GET", "/v1/experiments", key=secret)).status == 200
    return secret


def dump(plane: Plane) -> list[str]:
    """The whole database."""
    with closing(sqlite3.connect(plane.data / "variantd.db")) as seen:
        return list(seen.iterdump())


async def test_every_operation_tried_outside(plane: Plane) -> None:
    """What is named is not found, lists are empty, what concerns the project is refused; nothing has changed."""
    story = Story(plane, await plane.enroll(await plane.token(labels={"team": "y"})))
    await story.begin()
    for rpc in [*[*EXAMPLES][: [*EXAMPLES].index(UNTIL) + 1], *WITH]:
        operation = BY_RPC[rpc]
        if operation.changes and not rpc.endswith("DeleteExperiment"):
            answer = await story.tell(rpc)
            assert answer.status == operation.status, (rpc, answer.body)
    key = await limited(plane)
    before = dump(plane)
    for rpc, operation in BY_RPC.items():
        answer = await story.tell(rpc, key=key, connected=False)
        told = (answer.status, answer.body.get("reason") if isinstance(answer.body, dict) else None)
        if not operation.labelled:
            assert told == (403, "LIMITED_KEY"), (rpc, answer.body)
        elif operation.named:
            assert answer.status == 404, (rpc, answer.body)
        elif rpc in MAKES:
            assert told == (403, "OUTSIDE_LABELS"), (rpc, answer.body)
            assert answer.body["errors"][0]["field"] == "labels"
        elif "List" in rpc:
            assert answer.body["entities"] == [], rpc
        else:
            assert (rpc, answer.status) in {
                ("EventService.ReportServerEvents", 400),
                ("FleetService.GetFleet", 200),
            }
        message = asked(operation, story.values(rpc))
        call = plane.call(rpc)(message, metadata=[("authorization", f"Bearer {key}")])
        if answer.status == 200:
            await call
            continue
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        codes = {403: "PERMISSION_DENIED", 404: "NOT_FOUND", 400: "INVALID_ARGUMENT"}
        assert refused.value.code().name == codes[answer.status], rpc
    assert dump(plane) == before
    assert sum(operation.labelled for operation in OPERATIONS) > 30


async def test_every_operation_works_within(plane: Plane) -> None:
    """With the labels on everything, the story is told as by anybody."""
    story = Story(plane, await plane.enroll(await plane.token(labels=TEAM)))
    await story.begin()
    key = await limited(plane)
    await plane.made("/v1/participants", {"id": "bot-2", "labels": TEAM})
    for rpc in EXAMPLES:
        operation = BY_RPC[rpc]
        if operation.labelled:
            own = {"labels": TEAM} if "labels" in operation.request.model_fields and operation.changes else {}
            answer = await story.tell(
                rpc, key=key, **(own if rpc != "ExperimentService.UpdateExperiment" else {})
            )
            assert answer.status == operation.status, (rpc, answer.body)
            if "List" in rpc and "entities" in answer.body:
                shown = (await story.tell(rpc)).body
                assert answer.body == shown, rpc


class Teams:
    """A plane with a host, two participants and a draft for each of two teams, and a key for team x."""

    def __init__(self, plane: Plane, key: str) -> None:
        self.plane, self.key = plane, key
        self.agents: dict[str, str] = {}
        self.hosts: dict[str, Identity] = {}

    async def make(self) -> None:
        """Everything is there."""
        for team in ("x", "y"):
            token = await self.plane.token(labels={"team": team})
            self.hosts[team] = await self.plane.enroll(token, name=f"host-{team}")
            agents = (await self.plane.rest("GET", "/v1/agents")).body["entities"]
            self.agents[team] = next(item["id"] for item in agents if item["name"] == f"host-{team}")
            for number in (1, 2):
                made = {"id": f"{team}{number}", "labels": {"team": team}}
                await self.plane.made("/v1/participants", made)
            await self.plane.made("/v1/experiments", draft(team, ids=[f"{team}1", f"{team}2"]))

    async def x(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """What the key of team x is answered."""
        return await self.plane.rest(method, path, body, key=self.key, **headers)


def draft(team: str, *, key: str = "", ids: list[str] | None = None, **fields: Any) -> dict[str, Any]:
    """An experiment of a team."""
    return {
        "name": f"Tone {team}",
        "key": key or f"tone-{team}",
        "targetFile": "soul.md",
        "labels": {"team": team},
        "variants": [
            {"name": "a", "content": "a", "weight": 50, "isControl": True},
            {"name": "b", "content": "b", "weight": 50},
        ],
        **({"participantIds": ids} if ids is not None else {}),
        **fields,
    }


@pytest.fixture
async def teams(plane: Plane) -> Teams:
    """Two teams."""
    made = Teams(plane, await limited(plane))
    await made.make()
    return made


def refusal(answer: Answer) -> tuple[int, str]:
    """Status and reason."""
    return answer.status, answer.body["reason"]


OUTSIDE = (403, "OUTSIDE_LABELS")
NOBODY = (404, "PARTICIPANT_NOT_FOUND")


async def test_lists_hold_what_carries_the_labels(teams: Teams) -> None:
    """Also where other labels are asked for; asking for another team's finds nothing."""
    for path, shown in (("experiments", "tone-x"), ("agents", "host-x"), ("participants", "x1 x2")):
        for query, found in (
            ("", shown),
            ("?label.team=x", shown),
            ("?label.team=y", ""),
            ("?label.a=b", ""),
        ):
            entities = (await teams.x("GET", f"/v1/{path}{query}")).body["entities"]
            names = [item.get("key") or item.get("name") or item["id"] for item in entities]
            assert " ".join(names) == found, (path, query)


async def test_what_is_made_carries_the_labels_and_keeps_them(teams: Teams) -> None:
    """Without them, or with other ones, nothing is made; and they cannot be taken off again."""
    for labels in ({}, {"team": "y"}, {"tier": "1"}):
        assert refusal(await teams.x("POST", "/v1/participants", {"id": "new", "labels": labels})) == OUTSIDE
        bare = {**draft("x", key="new"), "labels": labels}
        assert refusal(await teams.x("POST", "/v1/experiments", bare)) == OUTSIDE
        for path in ("/v1/experiments/tone-x", "/v1/participants/x1"):
            assert refusal(await teams.x("PATCH", path, {"labels": labels})) == OUTSIDE
    more = {"labels": {**TEAM, "tier": "1"}}
    assert (await teams.x("POST", "/v1/participants", {"id": "new", **more})).status == 201
    assert (await teams.x("PATCH", "/v1/participants/x1", more)).status == 200
    assert (await teams.x("PATCH", "/v1/experiments/tone-x", more)).status == 200


async def test_an_experiment_reaches_nobody_outside(teams: Teams) -> None:
    """By ids, by labels, in a deployment, in a report: whoever is outside is not there, and neither is a new id."""
    for ids in (["y1"], ["x1", "y1"], ["never-seen"]):
        made = await teams.x("POST", "/v1/experiments", draft("x", key="new", ids=ids))
        assert refusal(made) == NOBODY
        assert refusal(await teams.x("PATCH", "/v1/experiments/tone-x", {"participantIds": ids})) == NOBODY
    for labels in ({"tier": "1"}, {"team": "y"}):
        wide = draft("x", key="new", participants={"labels": labels})
        answer = await teams.x("POST", "/v1/experiments", wide)
        assert (refusal(answer), answer.body["errors"][0]["field"]) == (OUTSIDE, "participants.labels")
    assert (
        await teams.x("POST", "/v1/experiments", draft("x", key="new", participants={"labels": TEAM}))
    ).status == 201
    assert (await teams.x("POST", "/v1/experiments/tone-x/start")).status == 200
    for name in ("y1", "nobody"):
        deployed = {"participantId": name, "variantId": "a"}
        assert refusal(await teams.x("POST", "/v1/experiments/tone-x/deployments", deployed)) == NOBODY
        event = {"eventId": f"e-{name}", "participantId": name, "kind": "impression"}
        assert (await teams.x("POST", "/v1/events:batch", {"events": [event]})).status == 400


async def test_an_experiment_that_others_let_reach_further_is_only_read(teams: Teams) -> None:
    """Neither started, scheduled, copied, previewed nor changed, however it came to reach further."""
    plane = teams.plane
    await plane.made("/v1/experiments", draft("x", key="by-id", ids=["x1", "y1"], targetFile="a.md"))
    wide = {"participants": {"labels": {"tier": "1"}}, "targetFile": "b.md"}
    await plane.made("/v1/experiments", draft("x", key="by-label", **wide))
    for key in ("by-id", "by-label"):
        at = f"/v1/experiments/{key}"
        assert (await teams.x("GET", at)).status == 200
        later = {"schedule": {"startAt": "2999-01-01T00:00:00Z"}}
        for method, path, body in (
            ("POST", "/start", None),
            ("PATCH", "", later),
            ("PATCH", "", {"participantIds": ["x1"]}),
            ("PATCH", "/status", {"status": "running"}),
            ("POST", "/duplicate", None),
            ("POST", "/assignments:preview", None),
            ("POST", "/variants", {"name": "c", "content": "c"}),
            ("DELETE", "", None),
        ):
            assert refusal(await teams.x(method, at + path, body)) == OUTSIDE, (key, method, path)
    await plane.made("/v1/experiments/by-id/start", None)
    for verb in ("pause", "stop", "complete", "ship", "reset"):
        assert refusal(await teams.x("POST", f"/v1/experiments/by-id/{verb}")) == OUTSIDE


async def test_who_has_left_the_team_is_not_reached_any_more(teams: Teams) -> None:
    """A participant that takes part gets another team's label: what would write its file is refused as a whole."""
    by_label = draft("x", key="all", participants={"labels": TEAM}, targetFile="a.md")
    assert (await teams.x("POST", "/v1/experiments", by_label)).status == 201
    assert (await teams.x("POST", "/v1/experiments/all/start")).status == 200
    moved = await teams.plane.rest("PATCH", "/v1/participants/x1", {"labels": {"team": "y"}})
    assert moved.status == 200
    for verb, body in (("ship", {"variantId": "a"}), ("complete", {"then": "restore"})):
        answer = await teams.x("POST", f"/v1/experiments/all/{verb}", body)
        assert refusal(answer) == OUTSIDE, (verb, answer.body)
    unforced = await teams.x("POST", "/v1/experiments/all/assignments/x1:unforce")
    assert refusal(unforced) == (404, "ASSIGNMENT_NOT_FOUND")
    assert (await teams.x("POST", "/v1/experiments/all/stop")).status == 200
    assert (await teams.plane.rest("POST", "/v1/experiments/all/complete", {"then": "restore"})).status == 200


async def test_hosts_are_moved_banned_and_retired_within(teams: Teams) -> None:
    """Neither to nor from another team's host, and no host that serves another team's participant."""
    x, y = teams.agents["x"], teams.agents["y"]
    to = "/v1/participants/x1:move"
    assert refusal(await teams.x("POST", to, {"agentId": y})) == (404, "AGENT_NOT_FOUND")
    assert (await teams.x("POST", to, {"agentId": x})).status == 200
    await teams.plane.made("/v1/participants/x2:move", {"agentId": y})
    taken = await teams.x("POST", "/v1/participants/x2:move", {"agentId": x})
    assert refusal(taken) == (404, "AGENT_NOT_FOUND")
    await teams.plane.made("/v1/participants/y1:move", {"agentId": x})
    for verb in ("ban", "retire"):
        assert refusal(await teams.x("POST", f"/v1/agents/{x}:{verb}")) == OUTSIDE
        assert refusal(await teams.x("POST", f"/v1/agents/{y}:{verb}")) == (404, "AGENT_NOT_FOUND")
    await teams.plane.made("/v1/participants/y1:move", {"agentId": y})
    assert (await teams.x("POST", f"/v1/agents/{x}:retire")).status == 200


async def test_what_others_were_answered_is_not_repeated(teams: Teams) -> None:
    """An Idempotency-Key is the limited key's own: guessing another's repeats nothing, its own repeats as ever."""
    once = {"Idempotency_Key": "1"}
    assert (await teams.plane.rest("POST", "/v1/experiments/tone-y/archive", **once)).status == 200
    assert (await teams.x("POST", "/v1/experiments/tone-y/archive", **once)).status == 404
    new = draft("x", key="new")
    first = await teams.x("POST", "/v1/experiments", new, **once)
    again = await teams.x("POST", "/v1/experiments", new, **once)
    assert (first.status, again.body) == (201, first.body)


async def test_a_stream_tells_what_carries_the_labels(teams: Teams) -> None:
    """Experiments, deployments and hosts of the own team, and nothing of the other's."""
    for team in ("x", "y"):
        await teams.plane.made(f"/v1/experiments/tone-{team}/start", None)
    url = f"http://{teams.plane.addresses['http']}/v1/watch"
    headers = {"Authorization": f"Bearer {teams.key}"}
    text = ""
    async with teams.plane.http.get(url, headers=headers) as stream:
        while text.count("event: listed") < 3:
            text += (await stream.content.readline()).decode()
    assert (
        text.count("event: present") == 1 + 2 + 3
    )  # the experiment, its deployments, a host and its participants
    for name in ("tone-y", "host-y", '"y1"', '"y2"'):
        assert name not in text
