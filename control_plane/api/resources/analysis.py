"""Results, as the one function of the evidence gives them."""

from control_plane.api.resources.shown import Json
from control_plane.domain.inference import answer
from control_plane.services.results import Results
from control_plane.services.work import Work


def results(work: Work, found: Results) -> Json:
    """What the numbers say, with what they were computed from where that was asked for."""
    inputs = found.evidence.model_dump_json(by_alias=True) if found.with_inputs else None
    return {**answer(found.evidence), "inputs": inputs}
