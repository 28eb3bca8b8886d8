"""Results, as the one function of the evidence gives them."""

from control_plane.api.resources.shown import Json
from control_plane.domain.inference import answer
from control_plane.domain.sizing import Sized
from control_plane.services.results import Results
from control_plane.services.work import Work


def results(work: Work, found: Results) -> Json:
    """What the numbers say, with what they were computed from where that was asked for."""
    inputs = found.evidence.model_dump_json(by_alias=True) if found.with_inputs else None
    return {**answer(found.evidence), "inputs": inputs}


def sample_size(work: Work, found: Sized) -> Json:
    """What a plan needs and can find."""
    return {
        "participants": found.participants,
        "impressions": found.impressions,
        "designEffect": found.design_effect,
        "level": found.level,
        "detectable": found.detectable,
        "detectableAtMost": found.detectable_at_most,
        "formula": "Fleiss, Levin, Paik 2003; impressions times 1 + (m - 1) ICC",
    }
