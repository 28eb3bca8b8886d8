"""What PostHog's clients do with an experiment: each verb with the states it fits, as that API has them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from control_plane.api.doors import posthog_writing as writing
from control_plane.api.doors.mapping import Answered, Call, Json, Shape, ours, wrong
from control_plane.api.doors.posthog_fields import CONCLUSIONS, EXPERIMENT, slug
from control_plane.api.doors.posthog_reading import answered, here, state_of, told
from control_plane.api.doors.posthog_writing import NAME, kept_of
from control_plane.domain import requests
from control_plane.domain.experiment import Experiment
from control_plane.domain.lifecycle import Status
from control_plane.services import experiments, foreign, lifecycle
from control_plane.services.experiments import View
from control_plane.services.work import Work
from shared.errors import FailedPrecondition, PermissionDenied
from shared.ids import show_id

Asked = TypeVar("Asked", bound=requests.ById)

ENDING = Shape(
    ours("conclusion", f"one of {', '.join(CONCLUSIONS)}", example="won"),
    ours("conclusion_comment", "what was learnt", native="conclusionComment", example="Bold it is"),
)


def _everyone(value: Any) -> Json:
    if value:
        raise wrong(
            "release_to_everyone", "only participants of the experiment have its file", "leave it out"
        )
    return {}


SHIPPING = ENDING.and_(
    ours("variant_key", "which variant everybody gets", native="variantId", required=True, into=lambda k: {
        "variantId": slug(k)}, example="test"),
    ours("release_to_everyone", "false, as it is anyway: participants of the experiment get it", into=_everyone),
)  # fmt: skip
DUPLICATE = Shape(
    ours("name", "its name; `X (Copy)` unless it is sent", example="Second try"),
    ours("feature_flag_key", "a key of its own; made of the name unless it is sent", native="key",
         into=lambda value: {"key": slug(value)} if value else {}, example="second-try"),
)  # fmt: skip


_NOTHING = Shape()
_UNDER_WAY = ("running", "paused", "exposure_frozen")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """A verb: the states it fits, what its body may say, and what is done with that."""

    name: str
    states: tuple[str, ...]
    says: str
    does: Callable[[Work, Experiment, Json], View]
    takes: Shape = _NOTHING
    starts: bool = False

    @property
    def rpc(self) -> str:
        """Its name in the audit log."""
        words = [*self.name.split("_"), "experiment"][:2]
        return "".join(word.capitalize() for word in words)

    def __call__(self, work: Work, call: Call) -> Answered:
        """The verb is done. Raises FailedPrecondition naming the state where it does not fit."""
        values = self.takes.read(call.body, verb="create").values
        experiment = here(experiments.find(work, call.id))
        state = state_of(work, experiment)
        if state not in self.states:
            raise FailedPrecondition(
                f"{self.name}: the experiment is {state}, and not {' or '.join(self.states)}",
                reason="WRONG_STATE",
                details={"state": state},
            )
        with EXPERIMENT.told(), self.takes.told():
            return answered(work, self.does(work, experiment, values))


def _asked(model: type[Asked], experiment: Experiment, values: Json) -> Asked:
    return requests.parse(model, {"id": show_id(experiment.id), **values})


def _ship(work: Work, experiment: Experiment, values: Json) -> View:
    if values["variantId"] not in {variant.key for variant in experiment.variants}:
        raise wrong("variant_key", "names no variant", "send the key of one")
    return lifecycle.ship(work, _asked(requests.Ship, experiment, values))


def _unfreeze(work: Work, experiment: Experiment, values: Json) -> View:
    if experiment.status is Status.STOPPED:
        raise FailedPrecondition(
            "unfreeze_exposure: the experiment is exposure_frozen for good: it was stopped elsewhere, or its end"
            " date has come; duplicate it",
            reason="WRONG_STATE",
            details={"state": "exposure_frozen"},
        )
    return lifecycle.resume(work, _asked(requests.ById, experiment, values))


def _reset(work: Work, experiment: Experiment, values: Json) -> View:
    if experiment.archived:
        lifecycle.unarchive(work, _asked(requests.ById, experiment, {}))
    return lifecycle.reset(work, _asked(requests.Reset, experiment, values))


VERBS: tuple[Verb, ...] = (
    Verb(
        name="launch",
        states=("draft",),
        says="a draft",
        does=lambda work, e, values: lifecycle.begin(work, _asked(requests.Start, e, values)),
        starts=True,
    ),
    Verb(
        name="pause",
        states=("running",),
        says="a running one; files are what they were before, until it is resumed",
        does=lambda work, e, values: lifecycle.pause(work, _asked(requests.Pause, e, {"onPause": "revert"})),
    ),
    Verb(
        name="resume",
        states=("paused",),
        says="a paused one; with the same variants",
        does=lambda work, e, values: lifecycle.resume(work, _asked(requests.ById, e, values)),
    ),
    Verb(
        name="freeze_exposure",
        states=("running",),
        says="a running one: nobody further takes part; files stay, and it is measured on. Our own API pauses it",
        does=lambda work, e, values: lifecycle.pause(work, _asked(requests.Pause, e, {"onPause": "hold"})),
    ),
    Verb(
        name="unfreeze_exposure",
        states=("exposure_frozen",),
        says="a frozen one: intake is open again; refused where our own API has stopped it, which is for good",
        does=_unfreeze,
    ),
    Verb(
        name="end",
        states=_UNDER_WAY,
        says="one under way; files stay as they are",
        takes=ENDING,
        does=lambda work, e, values: lifecycle.complete(work, _asked(requests.Complete, e, values)),
    ),
    Verb(
        name="ship_variant",
        states=(*_UNDER_WAY, "stopped"),
        says="every participant gets the variant; one under way ends",
        takes=SHIPPING,
        does=_ship,
    ),
    Verb(
        name="archive",
        states=("stopped",),
        says="one that has ended",
        does=lambda work, e, values: lifecycle.archive(work, _asked(requests.ById, e, values)),
    ),
    Verb(
        name="unarchive",
        states=("archived",),
        says="an archived one",
        does=lambda work, e, values: lifecycle.unarchive(work, _asked(requests.ById, e, values)),
    ),
    Verb(
        name="reset",
        states=(*_UNDER_WAY, "stopped", "archived"),
        says="any but a draft is a draft again; files stay, what was measured counts no more",
        does=_reset,
    ),
)
"""The verbs that change where an experiment is in its life."""


# -- copies


def duplicate(work: Work, call: Call) -> Answered:
    """There is a draft like it, with metric uuids and a key of its own."""
    source = here(experiments.find(work, call.id))
    if any(kept_of(source).get(name) for name in ("filters", "secondary_metrics")):
        raise FailedPrecondition(
            "an experiment with legacy metrics cannot be duplicated", reason="WRONG_STATE"
        )
    used = {name: value for name, value in call.body.items() if name in ("name", "feature_flag_key")}
    EXPERIMENT.read({k: v for k, v in call.body.items() if k not in used}, verb="update")
    values = DUPLICATE.read(used, verb="create").values
    with DUPLICATE.told():
        copy = experiments.duplicate(work, _asked(requests.Duplicate, source, values)).experiment
    lists = told(work, experiments.view_of(work, source))
    body: Json = {"saved_metrics_ids": lists["saved_metrics_ids"]}
    for name, order in writing.ORDERS.items():
        fresh = {uuid: show_id(work.new_id()) for uuid in lists[order]}
        body[name] = [{**item, "uuid": fresh[item["uuid"]]} for item in lists[name]]
        body[order] = [fresh[uuid] for uuid in lists[order]]
    measured, kept_metrics = writing.metrics(work, body, {})
    without = {"holdoutId": None} if copy.design.holdout_id else {}
    writing.update(work, copy, {"metrics": measured, **without})
    keep = {
        **kept_metrics,
        "feature_flag_key": call.body.get("feature_flag_key") or copy.key,
        "deleted": False,
    }
    return answered(work, foreign.keep(work, copy.id, NAME, keep))


def copy_to_project(work: Work, call: Call) -> Answered:
    """Refused: whatever the target is, the key is not of it."""
    here(experiments.find(work, call.id))
    if call.body.get("target_team_id") is None:
        raise wrong(
            "target_team_id", "is required", "duplicate the experiment to have a copy in this project"
        )
    raise PermissionDenied(
        "a key is of one project and reaches no other; make the copy there, with a key of that project"
    )
