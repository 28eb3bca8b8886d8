"""When what a client of Ours Privacy asks for becomes live: at once, or with the next verb that does.

There, a verb that is not published changes a draft of the whole account, and publishing makes all of that live. Here
the draft is the experiment's own: such a verb is noted, and the next one that is published does what was noted first.
Nothing is live that a client did not publish, and our own API knows only what is live.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from control_plane.api.doors.ours_fields import NAME
from control_plane.domain import requests
from control_plane.domain.experiment import Experiment
from control_plane.domain.lifecycle import Verb, allowed
from control_plane.services import foreign, lifecycle
from control_plane.services.experiments import View, view_of
from control_plane.services.work import Work
from shared.ids import show_id

_NOTED = "unpublished"
_DO: Mapping[Verb, Callable[[Work, str], View]] = {
    Verb.START: lambda work, at: lifecycle.begin(work, requests.Start(id=at)),
    Verb.PAUSE: lambda work, at: lifecycle.pause(work, requests.Pause(id=at)),
    Verb.RESUME: lambda work, at: lifecycle.resume(work, requests.ById(id=at)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The experiment after a verb, whether that is live, and how many unpublished changes it found with itself."""

    view: View
    live: bool
    changes: int


def publish(work: Work, experiment: Experiment, verb: Verb, *, now: bool) -> Asked:
    """The verb is done, after what was noted; or, not `now`, noted besides.

    Asked for again, to be published, the one that was noted last is done once.

    Raises FailedPrecondition where it does not follow upon what was noted.
    """
    noted = _noted(experiment)
    again = bool(noted) and noted[-1] is verb and now  # publishes the very thing that was noted last
    verbs = noted if again else [*noted, verb]
    _after(experiment, verbs)
    if not now:
        return Asked(view=_note(work, experiment, verbs), live=False, changes=len(verbs))
    for item in verbs:
        _DO[item](work, show_id(experiment.id))
    return Asked(view=_forget(work, experiment), live=True, changes=len(verbs))


def complete(work: Work, experiment: Experiment, asked: requests.Complete) -> Asked:
    """The experiment has ended; what was noted before is overtaken."""
    changes = 1 + len(_noted(experiment))
    lifecycle.complete(work, asked)
    return Asked(view=_forget(work, experiment), live=True, changes=changes)


def _noted(experiment: Experiment) -> list[Verb]:
    """What is noted of this run and can still be done: our own API may have done it meanwhile."""
    kept: Any = experiment.kept.get(NAME, {}).get(_NOTED) or {}
    if kept.get("of") != _run(experiment):  # a copy's, or an earlier run's
        return []
    found: list[Verb] = []
    for verb in map(Verb, kept["verbs"]):
        ahead = _after(experiment, found)
        if verb in allowed(ahead.status, archived=ahead.archived):
            found.append(verb)
    return found


def _after(experiment: Experiment, verbs: Sequence[Verb]) -> Experiment:
    for verb in verbs:
        experiment = replace(experiment, status=experiment.after(verb))
    return experiment


def _run(experiment: Experiment) -> str:
    return f"{show_id(experiment.id)} {experiment.run}"


def _note(work: Work, experiment: Experiment, verbs: Sequence[Verb]) -> View:
    said = {"of": _run(experiment), "verbs": [verb.value for verb in verbs]}
    return foreign.keep(work, experiment.id, NAME, {_NOTED: said})


def _forget(work: Work, experiment: Experiment) -> View:
    if experiment.kept.get(NAME, {}).get(_NOTED):
        return foreign.keep(work, experiment.id, NAME, {_NOTED: None})
    return view_of(work, work.store.experiments.get(experiment.id))
