"""What lists can be asked for, on both transports."""

from typing import Any

import pytest

from control_plane.api.operations import OPERATIONS
from tests.support.plane import Plane
from tests.support.twins import asked, by_grpc, by_rest

DEPLOYMENTS = "DeploymentService.ListDeployments"
BY_RPC = {operation.rpc: operation for operation in OPERATIONS}


async def listed(plane: Plane, rpc: str, **filters: Any) -> list[str]:
    """Who a list answers, asked both ways."""
    operation = BY_RPC[rpc]
    shown = await by_rest(plane, operation, filters)
    told = await by_grpc(plane, operation, asked(operation, filters))
    assert shown == told
    assert isinstance(shown, dict), shown
    entities = next((value for name, value in shown.items() if name != "nextPageToken"), [])
    return [item.get("key") or item.get("name") or item["id"] for item in entities]


async def test_experiments_by_what_they_are(plane: Plane) -> None:
    """Status, type, words, archive and labels; all that is asked has to hold."""
    for key, labels in (("a", {"team": "x", "tier": "1"}), ("b", {"team": "x"}), ("c", {"team": "y"})):
        await plane.made("/v1/experiments", {"name": f"Tone {key}", "key": key, "labels": labels})
    await plane.made("/v1/experiments/c/archive", None)
    experiments = "ExperimentService.ListExperiments"
    assert await listed(plane, experiments) == ["b", "a"]
    assert await listed(plane, experiments, labels={"team": "x"}) == ["b", "a"]
    assert await listed(plane, experiments, labels={"team": "x", "tier": "1"}) == ["a"]
    assert await listed(plane, experiments, labels={"team": "x"}, search="tone b") == ["b"]
    assert await listed(plane, experiments, labels={"tier": "2"}) == []
    assert await listed(plane, experiments, archived=True) == ["c"]
    assert await listed(plane, experiments, archived=True, labels={"team": "x"}) == []
    assert await listed(plane, experiments, status="draft", type="ab") == ["b", "a"]
    assert await listed(plane, experiments, status="running") == []
    assert await listed(plane, experiments, limit=-3) == ["b"]


async def test_deployments_by_how_they_stand(plane: Plane) -> None:
    """State, what slots are at, and whether hosts are done; an unknown state is refused by name."""
    bots = ["bot-1", "bot-2", "bot-3"]
    pair = [
        {"name": name, "key": name, "content": name, "weight": 50, "isControl": name == "a"} for name in "ab"
    ]
    await plane.made(
        "/v1/experiments",
        {"name": "Tone", "key": "tone", "targetFile": "soul.md", "variants": pair, "participantIds": bots},
    )
    await plane.made("/v1/experiments/tone/start", None)
    first = await listed(plane, DEPLOYMENTS, id="tone")
    again = (
        await plane.made("/v1/experiments/tone/deployments", {"participantId": "bot-2", "variantId": "b"})
    )["id"]
    (old,) = await listed(plane, DEPLOYMENTS, id="tone", state="superseded")
    waiting = [again, *(item for item in first if item != old)]
    assert (len(first), old in first) == (3, True)
    assert await listed(plane, DEPLOYMENTS, id="tone") == [again, *first]
    assert await listed(plane, DEPLOYMENTS, id="tone", current=True) == waiting
    assert await listed(plane, DEPLOYMENTS, id="tone", settled=False) == waiting
    assert await listed(plane, DEPLOYMENTS, id="tone", settled=True) == [old]
    assert await listed(plane, DEPLOYMENTS, id="tone", settled=True, current=True) == []
    assert await listed(plane, DEPLOYMENTS, id="tone", state="pending", current=True, limit=1) == [again]
    refused = await plane.rest("GET", "/v1/experiments/tone/deployments?state=done")
    assert (refused.status, "state: " in str(refused.body)) == (400, True)


async def test_hosts_by_label_and_presence(plane: Plane) -> None:
    """A participant carries its agent's labels unless it has its own; presence is of now."""
    await plane.enroll(await plane.token(labels={"role": "support", 'a"b': "'"}), name="web-1")
    await plane.made("/v1/participants", {"id": "bot-1", "labels": {"role": "sales"}})
    await plane.made("/v1/participants", {"id": "bot-2"})
    agent = (await plane.rest("GET", "/v1/agents")).body["entities"][0]["id"]
    for bot in ("bot-1", "bot-2"):
        await plane.made(f"/v1/participants/{bot}:move", {"agentId": agent})
    participants, agents = "FleetService.ListParticipants", "FleetService.ListAgents"
    assert await listed(plane, participants, labels={"role": "support"}) == ["bot-2"]
    assert await listed(plane, participants, labels={"role": "sales"}) == ["bot-1"]
    assert await listed(plane, participants, labels={"host.os": "x"}) == []
    assert await listed(plane, participants, presence="never_seen") == ["bot-1", "bot-2"]
    assert await listed(plane, participants, presence="connected") == []
    assert await listed(plane, agents, labels={"role": "support", 'a"b': "'"}) == ["web-1"]
    assert await listed(plane, agents, presence="lost") == []
    await plane.made(f"/v1/agents/{agent}:retire", None)
    assert await listed(plane, agents, presence="retired") == ["web-1"]
    assert await listed(plane, participants, presence="retired", labels={"role": "sales"}) == ["bot-1"]


@pytest.mark.parametrize(
    "query",
    ["archived=maybe", "label.=", "labels=x", "status=draft&status=running", "label.a=1&label.a=2",
     "label.a=1&labels=x", "labels=x&label.a=1", "type=bandit", "wat=1", "cursor=zz", "limit=ten"],
)  # fmt: skip
async def test_a_query_that_says_nothing_usable_is_refused(plane: Plane, query: str) -> None:
    """Unknown, repeated and malformed parameters are told by name."""
    answer = await plane.rest("GET", f"/v1/experiments?{query}")
    if query == "label.=":
        assert (answer.status, answer.body["entities"]) == (200, [])  # a label nobody has
    else:
        assert answer.status == 400, answer.body
