"""The door for clients of Stamn that go by its envelope, at `/stamn/v1/experiments`.

Stamn's calls are our own API's, field for field, so there is no mapping: the same handler answers, and what it answers
is put into `{success, data}`, or a failure into `{success, error, message}`. Two things are otherwise than in our own
API: a list is whole, since none of its clients knows of pages, and what is under way can be deleted, since none knows
that it has to be completed first.
"""

from dataclasses import replace
from typing import Any

from control_plane.api.errors import faults_of
from control_plane.api.operations import Operation
from control_plane.services import foreign
from shared.errors import Error

PREFIX = "/stamn"
LIST = "ExperimentService.ListExperiments"
CALLS = {
    LIST: "experiments of the key's project; a page of them, under `/stamn` all of them",
    "ExperimentService.CreateExperiment": "with variants and planned assignments",
    "ExperimentService.GetExperiment": "with its variants",
    "ExperimentService.UpdateExperiment": "what was not sent stays; structure changes in draft",
    "ExperimentService.DeleteExperiment": (
        "a draft is gone, a completed one archived, anything else refused; under `/stamn` that is completed first,"
        " and files stay as they are"
    ),
    "ExperimentService.AddVariant": "to a draft",
    "ExperimentService.UpdateVariant": "of a draft",
    "ExperimentService.DeleteVariant": "of a draft",
    "ExperimentService.TransitionExperiment": "running, paused or completed",
    "DeploymentService.CreateDeployment": "to a participant, whether its agent is connected or not",
}
"""The ten calls, by the operations that they are."""


def is_at(path: str) -> bool:
    """Whether a path is this door's."""
    return path.startswith(PREFIX + "/")


def told(error: Error, status: int) -> tuple[int, Any]:
    """`{success, error, message}`: one sentence, and as many as there are faults."""
    faults = [f"{fault['field']}: {fault['message']}" for fault in faults_of(error)]
    return status, {"success": False, "error": error.message, "message": faults or error.message}


def operation(found: Operation) -> Operation:
    """A call as it is behind this door."""
    if found.rpc == "ExperimentService.DeleteExperiment":
        return replace(found, use_case=foreign.delete)
    return found


def enveloped(body: Any) -> Any:
    """An answer as Stamn's clients expect it."""
    return {"success": True, "data": body}
