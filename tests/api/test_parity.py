"""REST and gRPC are one API: every operation, and everything that can go wrong with it, comes to the same.

Made from the table of operations: an operation is here as soon as it is there. What it needs is an example in
`control_plane.api.examples`, at the place of the story where it works.
"""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass

from control_plane.api.examples import AGENT, API_KEY, DEPLOYMENT, EXAMPLES
from control_plane.api.operations import EXPORT, OPERATIONS, WATCHES, Operation
from control_plane.services.work import Scope
from shared.pb.variantd.operator.v1 import operator_pb2 as pb
from tests.support.builders import make_hello
from tests.support.stream import sharing
from tests.support.twins import Outcome, Refusal, Twins, Unrepresentable, asked, by_grpc, by_rest, twins

BY_RPC = {operation.rpc: operation for operation in OPERATIONS}
SERVICES = sorted({operation.rpc.partition(".")[0] for operation in OPERATIONS})
UNKNOWN = "01a1fc04-0000-7000-8000-000000000000"
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 101, 2**40, "", "x", "no such thing", "\x00", "host.os", "x" * 5000, "zz",
    [], ["x"], ["", ""], {}, {"host.os": "x"}, {"x": "y"}, {"primary": {"eventName": ""}}, {"wat": 1},
)  # fmt: skip
"""Values that some field of some request does not take; each is tried on all of them."""


@pytest.fixture
async def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Twins]:
    """Two control planes with one enrolled host each."""
    async with twins(tmp_path, monkeypatch) as made:
        before = made.chance.drawn
        for plane in (made.rest, made.grpc):
            made.chance.drawn = before
            made.hosts.append(await plane.enroll(await plane.token()))
        yield made


class Story:
    """The examples in their order, with the ids of this run in place of those that are written there."""

    def __init__(self, pair: Twins) -> None:
        self._pair = pair
        self._ids: dict[str, str] = {}

    async def begin(self) -> None:
        """The host that the story speaks of is known."""
        agents = await self._pair.agree(BY_RPC["FleetService.ListAgents"], {})
        assert isinstance(agents, dict)
        self._ids[AGENT] = agents["agents"][0]["id"]

    def values(self, rpc: str) -> dict[str, Any]:
        """The operation's example."""
        return {
            name: self._ids.get(value, value) if isinstance(value, str) else value
            for name, value in EXAMPLES[rpc].items()
        }

    async def tell(self, rpc: str, *, connected: bool = False, **how: Any) -> Outcome:
        """Both tell the example alike; with `connected`, a host answers where one is asked."""
        async with AsyncExitStack() as hosts:
            if BY_RPC[rpc].asks_host and connected:
                for identity in self._pair.hosts:
                    files = {"config/soul.md": b"You are friendly.\n"}
                    await hosts.enter_async_context(sharing(identity, make_hello("bot-1"), files))
            outcome = await self._pair.agree(BY_RPC[rpc], self.values(rpc), **how)
        if rpc == "DeploymentService.CreateDeployment" and isinstance(outcome, dict):
            self._ids[DEPLOYMENT] = outcome["id"]
        if rpc == "AccessService.CreateApiKey" and isinstance(outcome, dict):
            self._ids[API_KEY] = outcome["id"]
        return outcome


@pytest.fixture
async def story(pair: Twins) -> Story:
    """The story, about to begin."""
    made = Story(pair)
    await made.begin()
    return made


def test_every_operation_has_its_twin_and_its_example() -> None:
    """The table, the protocol and the examples name the same operations."""
    methods = {
        f"{service.name}.{method.name}"
        for service in pb.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not method.server_streaming
    }
    assert methods == set(BY_RPC) == set(EXAMPLES)
    streams = {
        f"{service.name}.{method.name}"
        for service in pb.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.server_streaming
    }
    assert streams == {watch.rpc for watch in WATCHES} | {EXPORT.rpc}
    assert len({(operation.method, operation.path) for operation in OPERATIONS}) == len(OPERATIONS)


@pytest.mark.parametrize("operation", [*OPERATIONS, EXPORT], ids=lambda operation: operation.rpc)
def test_both_requests_have_the_same_fields(operation: Operation) -> None:
    """What REST takes, the message has, and the other way round; changes have their request id and mask."""
    service, method = operation.rpc.split(".")
    message = pb.DESCRIPTOR.services_by_name[service].methods_by_name[method].input_type
    has = {field.json_name for field in message.fields}
    takes = {field.alias or name for name, field in operation.request.model_fields.items()}
    own = {"requestId", "updateMask"}
    assert has - own == {{"limit": "pageSize", "cursor": "pageToken"}.get(name, name) for name in takes}
    assert ("requestId" in has) == operation.changes
    assert ("updateMask" in has) == (operation.method == "PATCH" and method.startswith("Update"))


async def test_the_story_is_the_same_on_both(pair: Twins, story: Story) -> None:
    """Every example works, answers alike, and repeated with its request id answers as before."""
    for rpc in EXAMPLES:
        request_id = f"of {rpc}" if BY_RPC[rpc].changes else ""
        first = await story.tell(rpc, connected=True, request_id=request_id)
        assert not isinstance(first, Refusal), (rpc, first)
        if request_id:
            again = await story.tell(rpc, request_id=request_id)
            assert not isinstance(again, Refusal), (rpc, again)
            other = {**story.values(rpc), "id": "another"}
            if "id" in BY_RPC[rpc].request.model_fields:
                reused = await pair.agree(BY_RPC[rpc], other, request_id=request_id)
                assert isinstance(reused, Refusal), (rpc, reused)


async def test_told_backwards_it_is_refused_alike(pair: Twins, story: Story) -> None:
    """After the story each example is tried once more, the last first: wrong states and what is gone, alike."""
    refused: set[str] = set()
    for rpc in (*EXAMPLES, *reversed(EXAMPLES), *EXAMPLES):
        outcome = await story.tell(rpc)
        if isinstance(outcome, Refusal):
            refused.add(outcome.code)
    assert {"not_found", "failed_precondition", "already_exists"} <= refused


STATES: dict[str, tuple[str, ...]] = {
    "draft": (),
    "running": ("Start",),
    "paused": ("Start", "Pause"),
    "stopped": ("Start", "Stop"),
    "completed": ("Start", "Complete"),
    "archived": ("Archive",),
}


@pytest.mark.parametrize("state", STATES)
async def test_every_operation_on_an_experiment_in_every_state(pair: Twins, story: Story, state: str) -> None:
    """Whatever belongs to an experiment is allowed or refused alike wherever the experiment is in its life."""
    about = [
        operation
        for operation in OPERATIONS
        if operation.path.startswith("/v1/experiments/{id}") and operation.named
    ]
    create = EXAMPLES["ExperimentService.CreateExperiment"]
    for number, operation in enumerate(about):
        # By ids of participants: two experiments must not hold the same file.
        own = {"key": f"tone-{number}", "participantIds": [f"bot-{number}", f"cat-{number}"]}
        made = await pair.agree(BY_RPC["ExperimentService.CreateExperiment"], {**create, **own})
        assert isinstance(made, dict)
        for verb in STATES[state]:
            moved = await pair.agree(BY_RPC[f"ExperimentService.{verb}Experiment"], {"id": made["key"]})
            assert isinstance(moved, dict), moved
        values = {**story.values(operation.rpc), "id": made["key"]}
        if "participantId" in values:
            values["participantId"] = f"bot-{number}"
        await pair.agree(operation, values)


def _wrong(operation: Operation, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Requests with something missing, or with one field as it should not be."""
    for name in [name for name in values if name not in operation.named]:
        yield {key: value for key, value in values.items() if key != name}
    for alias in [field.alias or name for name, field in operation.request.model_fields.items()]:
        if alias in operation.named:
            yield from ({**values, alias: wrong} for wrong in (UNKNOWN, "no-such-thing", "x" * 300))
        else:
            yield from ({**values, alias: wrong} for wrong in WRONG)


@pytest.mark.parametrize("service", SERVICES)
async def test_what_is_wrong_with_a_request_is_told_alike(pair: Twins, story: Story, service: str) -> None:
    """Each field missing, empty, out of range or of another kind: both refuse the same, and the same fields.

    What protobuf has no words for (a text for a number), no gRPC client can send; REST refuses it.
    """
    for rpc in EXAMPLES:
        operation = BY_RPC[rpc]
        if rpc.startswith(service + "."):
            for values in _wrong(operation, story.values(rpc)):
                await _compare(pair, operation, values)
        await story.tell(rpc)


async def _compare(pair: Twins, operation: Operation, values: dict[str, Any]) -> None:
    if operation.method == "GET" and not all(_in_a_query(operation, *item) for item in values.items()):
        return
    try:
        await pair.agree(operation, values)
    except Unrepresentable:
        shown = await pair.only_rest(operation, values)
        if not isinstance(shown, Refusal):
            # It was taken as if nothing had been sent; that gRPC can say.
            plain = {name: value for name, value in values.items() if value or name in operation.named}
            assert len(plain) < len(values), (operation.rpc, values, "REST took what gRPC cannot say")
            told = await by_grpc(pair.grpc, operation, asked(operation, plain))
            assert shown == told, (operation.rpc, values, shown, told)


def _in_a_query(operation: Operation, name: str, value: Any) -> bool:
    """Whether a query string can hold the value; everything in it is text, but for numbers and flags."""
    if isinstance(value, str):
        return "\x00" not in value
    takes = {field.alias or own: field.annotation for own, field in operation.request.model_fields.items()}
    return type(value) in (int, bool) and type(value).__name__ in str(takes[name])


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.rpc)
def test_the_wrong_requests_are_wrong_enough(operation: Operation) -> None:
    """There is something to refuse of every operation that takes anything at all."""
    tried = list(_wrong(operation, EXAMPLES[operation.rpc]))
    assert tried or not operation.request.model_fields


async def test_who_may_not_is_refused_alike(pair: Twins, story: Story) -> None:
    """Without a key, with a wrong one, and with one that has every scope but the operation's: the same refusal."""
    create = BY_RPC["AccessService.CreateApiKey"]
    keys = {}
    for scope in sorted({operation.scope for operation in OPERATIONS}):
        others = [item.value for item in Scope if item not in (scope, Scope.ADMIN)]
        before, made = pair.chance.drawn, []
        for plane in (pair.rest, pair.grpc):
            pair.chance.drawn = before
            made.append(await plane.made(create.path, {"name": f"not {scope}", "scopes": others}))
        assert made[0]["secret"] == made[1]["secret"]
        keys[scope] = made[0]["secret"]
    for rpc, operation in BY_RPC.items():
        for key, code in ((keys[operation.scope], "permission_denied"), ("sk_wrong", "unauthenticated")):
            outcome = await pair.agree(operation, story.values(rpc), key=key)
            assert isinstance(outcome, Refusal), rpc
            assert outcome.code == code, (rpc, outcome)
        outcome = await pair.agree(operation, story.values(rpc), key="")
        assert isinstance(outcome, Refusal)
        assert (outcome.code, outcome.reason) == ("unauthenticated", "NO_API_KEY")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.rpc)
def test_a_field_nobody_knows_has_no_number_here(operation: Operation) -> None:
    """The number that the next test sends belongs to no field."""
    service, method = operation.rpc.split(".")
    message = pb.DESCRIPTOR.services_by_name[service].methods_by_name[method].input_type
    assert 999 not in message.fields_by_number


async def test_an_unknown_field_is_refused_on_both(pair: Twins, story: Story) -> None:
    """A field that this version does not have is named and refused, never ignored."""
    for rpc, operation in BY_RPC.items():
        values = story.values(rpc)
        shown = await by_rest(pair.rest, operation, {**values, "wat": "x"})
        message = asked(operation, values)
        message.MergeFromString(bytes([0xB8, 0x3E, 0x01]))  # field 999, a varint
        told = await by_grpc(pair.grpc, operation, message)
        assert isinstance(shown, Refusal), rpc
        assert isinstance(told, Refusal), rpc
        assert (shown.code, shown.reason) == (told.code, told.reason) == ("invalid", "INVALID_FIELDS"), rpc
        assert (shown.fields, told.fields) == (("wat",), ("999",)), rpc


async def test_an_unknown_field_within_is_refused(pair: Twins) -> None:
    """Also deep inside a request, where it is told by its way there."""
    spec = pb.VariantSpec(name="A")
    spec.MergeFromString(bytes([0xB8, 0x3E, 0x01]))
    message = GetMessageClass(pb.CreateExperimentRequest.DESCRIPTOR)(name="x", variants=[spec])
    told = await by_grpc(pair.grpc, BY_RPC["ExperimentService.CreateExperiment"], message)
    assert isinstance(told, Refusal)
    assert told.fields == ("variants.999",)


async def test_a_mask_empties_what_it_names(pair: Twins) -> None:
    """null (or nothing) for a masked field takes it away on both; what the mask leaves out stays."""
    update = BY_RPC["ExperimentService.UpdateExperiment"]
    values = {
        "name": "Tone", "key": "tone", "targetFile": "a.md", "labels": {"team": "x"}, "metadata": {"a": 1},
        "participantIds": ["bot-1"], "metrics": {"primary": {"eventName": "resolved"}}, "strata": ["tier"],
    }  # fmt: skip
    await pair.agree(BY_RPC["ExperimentService.CreateExperiment"], values)
    emptied: dict[str, Any] = {
        "targetFile": None, "labels": {}, "metadata": None, "participantIds": [], "metrics": None, "strata": [],
        "description": None, "analysis": None,
    }  # fmt: skip
    for name, value in emptied.items():
        outcome = await pair.agree(update, {"id": "tone", name: value})
        assert isinstance(outcome, dict), (name, outcome)
        shown = outcome.get("participants" if name == "participantIds" else name)
        assert not shown or name == "analysis", (name, shown)
    kept = await pair.agree(BY_RPC["ExperimentService.GetExperiment"], {"id": "tone"})
    assert isinstance(kept, dict)
    assert kept["name"] == "Tone"
    taken = await pair.agree(update, {"id": "tone", "name": None})
    assert isinstance(taken, Refusal)
    assert taken.fields == ("name",)


async def test_a_mask_leaves_alone_what_it_does_not_name(pair: Twins) -> None:
    """A field beside the mask is not looked at, a path that is no field is refused; without a mask, set is changed."""
    create = BY_RPC["ExperimentService.CreateExperiment"]
    await pair.agree(create, {"name": "Tone", "key": "tone", "labels": {"a": "b"}})
    request = pb.UpdateExperimentRequest(id="tone", name="Other", description="new")
    update = BY_RPC["ExperimentService.UpdateExperiment"]
    request.update_mask.paths.append("description")
    outcome = await by_grpc(pair.grpc, update, request)
    assert isinstance(outcome, dict)
    assert (outcome["name"], outcome["description"], outcome["labels"]) == ("Tone", "new", {"a": "b"})
    for path in ("wat", "id", "request_id", "metrics.primary"):
        request.update_mask.paths[:] = [path]
        refused = await by_grpc(pair.grpc, update, request)
        assert isinstance(refused, Refusal), path
        assert refused.fields == ("updateMask",)
    request.ClearField("update_mask")
    outcome = await by_grpc(pair.grpc, update, request)
    assert isinstance(outcome, dict)
    assert outcome["name"] == "Other"


def test_paths_name_fields_of_their_request() -> None:
    """Every name in a path is a field of the request, so the same request can be said in one message."""
    for operation in OPERATIONS:
        takes = {field.alias or name for name, field in operation.request.model_fields.items()}
        assert set(re.findall(r"\{(\w+)\}", operation.path)) <= takes, operation.rpc
