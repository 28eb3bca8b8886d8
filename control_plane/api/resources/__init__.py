"""Domain → the JSON shape of each resource; gRPC shows the same.

`null` stands for unknown or not applicable, never a missing key. Content is shown only to callers that may
read it, and never in lists.
"""

from control_plane.api.resources.access import (
    api_key,
    api_keys,
    audit,
    enrollment_token,
    enrollment_tokens,
    settings,
)
from control_plane.api.resources.analysis import results, sample_size
from control_plane.api.resources.arrivals import events
from control_plane.api.resources.delivery import deployment, deployments, outcomes, taken
from control_plane.api.resources.designs import (
    assignments,
    experiment,
    experiments,
    findings,
    lifecycle,
    one_assignment,
    one_variant,
    opened_phase,
    phases,
    preview,
    variant,
    variants,
)
from control_plane.api.resources.doctor import tally_check
from control_plane.api.resources.export import exported
from control_plane.api.resources.hosts import agent, agents, participant, participants, whole_fleet
from control_plane.api.resources.plans import holdout, holdouts, saved_metric, saved_metrics
from control_plane.api.resources.series import recalculated, recalculation, time_series
from control_plane.api.resources.survey import eligible_targets, instrumentation, velocity

__all__ = [
    "agent",
    "agents",
    "api_key",
    "api_keys",
    "assignments",
    "audit",
    "deployment",
    "deployments",
    "eligible_targets",
    "enrollment_token",
    "enrollment_tokens",
    "events",
    "experiment",
    "experiments",
    "exported",
    "findings",
    "holdout",
    "holdouts",
    "instrumentation",
    "lifecycle",
    "one_assignment",
    "one_variant",
    "opened_phase",
    "outcomes",
    "participant",
    "participants",
    "phases",
    "preview",
    "recalculated",
    "recalculation",
    "results",
    "sample_size",
    "saved_metric",
    "saved_metrics",
    "settings",
    "taken",
    "tally_check",
    "time_series",
    "variant",
    "variants",
    "velocity",
    "whole_fleet",
]
