"""Operator gRPC is REST with other words: the same operations, resources and refusals."""

import json
import math
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from control_plane.api import errors
from control_plane.api.codec import from_message, to_message
from control_plane.api.operations import EXPORT, OPERATIONS, WATCHES
from shared.errors import Code
from shared.pb.variantd.operator.v1 import operator_pb2 as pb
from tests.support.plane import Plane

VALUES: dict[str, Any] = {
    "name": "Tone",
    "target_file": "soul.md",
    "variants": [
        {"name": "A", "content": "a", "weight": 50, "is_control": True},
        {"name": "B", "content": "b", "weight": 50, "config": {"x": 1}},
    ],
    "participant_ids": ["bot-1", "bot-2"],
    "metrics": {"primary": {"event_name": "done", "goal": "GOAL_INCREASE"}},
}


def test_every_operation_is_on_both_transports() -> None:
    """The tables name every method of every operator service, once, and nothing else."""
    methods = {
        f"{service.name}.{method.name}"
        for service in pb.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    named = [row.rpc for row in (*OPERATIONS, *WATCHES, EXPORT)]
    assert sorted(named) == sorted(methods)


def test_every_code_has_its_row() -> None:
    """No failure is without a status on either transport."""
    assert set(errors.TABLE) == set(Code)


async def test_the_life_of_an_experiment(plane: Plane) -> None:
    """Create, start, read results and complete over gRPC; REST shows the very same resource."""
    made = await plane.grpc("ExperimentService.CreateExperiment", **VALUES)
    assert [item.planned for item in made.assignments] == [True, True]
    started = await plane.grpc("ExperimentService.StartExperiment", id=made.id)
    assert started.experiment.status == pb.EXPERIMENT_STATUS_RUNNING
    got = await plane.grpc("ExperimentService.GetExperiment", id="tone")
    shown = (await plane.rest("GET", "/v1/experiments/tone")).body
    assert to_message(shown, pb.Experiment) == got
    results = await plane.grpc("ResultsService.GetResults", id="tone")
    assert results.metric.event_name == "done"
    assert not results.variants[0].HasField("conversion_rate")
    assert results.variants[0].reasons["conversionRate"]
    done = await plane.grpc("ExperimentService.CompleteExperiment", id="tone", then="restore")
    assert done.experiment.status == pb.EXPERIMENT_STATUS_COMPLETED


async def test_pages_and_request_ids(plane: Plane) -> None:
    """page_size and page_token page; the same request_id answers the same."""
    for index in range(3):
        await plane.grpc("FleetService.CreateParticipant", id=f"bot-{index}", request_id=f"r{index}")
    await plane.grpc("FleetService.CreateParticipant", id="bot-0", request_id="r0")
    first = await plane.grpc("FleetService.ListParticipants", page_size=2)
    rest = await plane.grpc("FleetService.ListParticipants", page_size=2, page_token=first.next_page_token)
    assert [item.id for page in (first, rest) for item in page.participants] == ["bot-0", "bot-1", "bot-2"]
    assert rest.next_page_token == ""


@pytest.mark.parametrize(
    ("rpc", "fields", "status", "reason"),
    [
        ("ExperimentService.GetExperiment", {"id": "none"}, "NOT_FOUND", "EXPERIMENT_NOT_FOUND"),
        ("ExperimentService.CreateExperiment", {"name": ""}, "INVALID_ARGUMENT", "INVALID_FIELDS"),
        ("ExperimentService.PauseExperiment", {"id": "tone"}, "FAILED_PRECONDITION", "WRONG_STATE"),
        ("FleetService.GetAgent", {"id": "x"}, "NOT_FOUND", "AGENT_NOT_FOUND"),
        ("ExperimentService.ListExperiments", {"page_token": "zz"}, "INVALID_ARGUMENT", "INVALID_CURSOR"),
    ],
)
async def test_refusals_carry_status_reason_and_faults(
    plane: Plane, rpc: str, fields: dict[str, Any], status: str, reason: str
) -> None:
    """The status says what kind, the trailing metadata why and which field."""
    await plane.grpc("ExperimentService.CreateExperiment", **VALUES)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await plane.grpc(rpc, **fields)
    assert refused.value.code().name == status
    trailing = dict(refused.value.trailing_metadata() or ())
    assert trailing["reason"] == reason
    if reason == "INVALID_FIELDS":
        assert json.loads(trailing["errors-bin"])[0]["field"] == "name"


@pytest.mark.parametrize(
    ("rpc", "fields", "field"),
    [
        ("AccessService.ListAuditLog", {"from_at": Timestamp(seconds=2**62)}, "fromAt"),
        ("AccessService.ListAuditLog", {"to_at": Timestamp(seconds=253_402_300_800)}, "toAt"),
        ("ExperimentService.CreateExperiment", {"metadata": {"a": math.nan}}, "metadata"),
        ("ExperimentService.CreateExperiment", {"metadata": {"a": -math.inf}}, "metadata"),
        ("ExperimentService.ListExperiments", {"search": "x" * 60_000}, "search"),
    ],
)
async def test_what_nobody_can_mean_is_refused(
    plane: Plane, rpc: str, fields: dict[str, Any], field: str
) -> None:
    """A moment beyond all years, a number that is none, an endless search: the caller's mistake, not the server's."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await plane.grpc(rpc, **fields)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, refused.value.details()
    trailing = dict(refused.value.trailing_metadata() or ())
    assert json.loads(trailing["errors-bin"])[0]["field"] == field


async def test_without_a_key_nothing_is_answered(plane: Plane) -> None:
    """A missing and a wrong key are UNAUTHENTICATED."""
    for metadata in ([], [("authorization", "Bearer sk_wrong")]):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await plane.call("ExperimentService.ListExperiments")(
                pb.ListExperimentsRequest(), metadata=metadata
            )
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_health_and_reflection(plane: Plane) -> None:
    """Both gRPC listeners tell their health; the operator's lists its services."""
    stub = health_pb2_grpc.HealthStub(plane.operator)  # type: ignore[no-untyped-call]
    for service in ("", "variantd.operator.v1.ExperimentService"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_resource_with_a_field_its_message_lacks_is_a_mistake() -> None:
    """REST and gRPC cannot drift apart: the translation refuses what one of them would not show."""
    with pytest.raises(KeyError):
        to_message({"id": "x", "news": 1}, pb.Participant)


def test_unset_is_absent_and_zero_is_kept() -> None:
    """Presence survives the translation where the protocol has it."""
    assert from_message(pb.VariantSpec(name="A")) == {"name": "A"}
    assert from_message(pb.VariantSpec(name="A", weight=0)) == {"name": "A", "weight": 0}
