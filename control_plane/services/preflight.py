"""What to ask hosts about contents before anything is assigned, what they answered, and what an operator is told."""

from collections.abc import Container, Iterator
from dataclasses import dataclass

from control_plane.domain import requests
from control_plane.domain.experiment import Experiment
from control_plane.domain.fleet import Participant, Presence
from control_plane.domain.lifecycle import Status
from control_plane.domain.preflight import Content, Refusal, contents, due, judge
from control_plane.services.experiments import find
from control_plane.services.seating import Eligible, applicants, judged, latecomers, selected
from control_plane.services.work import Work

NAMED = 10
"""So many participants of a warning are named; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be asked about a participant: the contents, with their sizes."""

    agent_uid: bytes
    project_id: bytes
    participant_id: bytes
    participant: str
    contents: dict[Content, int]


def can_say(participant: Participant, *, now: int) -> bool:
    """Its host is connected, and its agent judges content beforehand."""
    return bool(participant.policy) and participant.presence(now) is Presence.CONNECTED


def wanting(work: Work, request: requests.ById, *, since: int | None = None) -> list[Wanted]:
    """Whom to ask what about the experiment now: a draft's participants, or who may join a running one late.

    `since` an operator looks at it, refusals from before are asked again.
    """
    experiment = find(work, request.id)
    if experiment.status is Status.DRAFT:
        meant = selected(work, experiment.selector)
    elif experiment.status is Status.RUNNING and experiment.phase is not None:
        meant = latecomers(work, experiment, experiment.phase)
    else:
        return []
    needed = contents(experiment)
    if not needed or not meant:
        return []
    chosen = {item.public_id: item for item in meant}
    said = work.store.preflights.said(digest for _, digest in needed)
    found = []
    for applicant in applicants(experiment, chosen.values()):
        item = chosen[applicant.participant]
        if item.agent_uid is None or not can_say(item, now=work.now):
            continue
        wanted = due(needed, said.get(item.id, {}), now=work.now, since=since)
        if wanted:
            found.append(
                Wanted(
                    agent_uid=item.agent_uid,
                    project_id=work.project_id,
                    participant_id=item.id,
                    participant=item.public_id,
                    contents={content: needed[content][0] for content in wanted},
                )
            )
    return found


def drafted(work: Work, request: requests.ById) -> bool:
    """There is such a draft, so that its start has something to find out."""
    return find(work, request.id).status is Status.DRAFT


def warnings(found: Eligible, seated: Container[str]) -> Iterator[tuple[str, str]]:
    """What whoever starts should know of hosts that keep somebody out, or were not heard of who is seated."""
    for name in found.kept_out:
        refusals = found.judgements[name].refusals
        if refusals:
            listed = "; ".join(str(refusal) for refusal in refusals)
            yield "PREFLIGHT_REFUSED", f"{name} takes part in no variant: its host refuses {listed}"
    silent = [name for name in found.kept_out if not found.judgements[name].refusals]
    if silent:
        yield (
            "PREFLIGHT_UNKNOWN",
            f"{_listed(silent)} take part in no variant: nobody knows whether their hosts take every one",
        )
    unheard = [name for name in found.unknown if name in seated]
    if unheard:
        yield (
            "PREFLIGHT_UNKNOWN",
            f"{_listed(unheard)} take part though nobody knows whether their hosts take every variant",
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(sorted(names)[:NAMED]) + more


def kept_out(work: Work, experiment: Experiment) -> dict[str, tuple[Refusal, ...]]:
    """Who takes part in no variant because of a host, as far as it refuses something; by public id.

    Of a draft as it is now; of one that was started as it was then, and as it is now for who could join late.
    """
    phase = experiment.phase
    if phase is None:
        chosen = selected(work, experiment.selector)
        meant = {item.participant for item in applicants(experiment, chosen)}
        now = judged(work, experiment, [item for item in chosen if item.public_id in meant])
        return {name: one.refusals for name, one in sorted(now.items()) if one.refusals}
    found = work.store.preflights.kept_out(experiment.id, experiment.run)
    seated = work.store.experiments.participant_ids(phase.id)
    if experiment.status is Status.RUNNING and experiment.selector.get("labels"):
        said = work.store.preflights.said(digest for _, digest in contents(experiment))
        for item in latecomers(work, experiment, phase):
            refusals = judge(experiment, said.get(item.id, {})).refusals
            if refusals:
                found[item.public_id] = refusals
    return {name: refusals for name, refusals in sorted(found.items()) if name not in seated and refusals}
