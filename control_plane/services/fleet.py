"""Use cases of the fleet: participants, agents, and all of them together."""

from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.domain import requests
from control_plane.domain.fleet import Agent, Participant, ParticipantFile
from control_plane.services import limits
from control_plane.services.sessions import DUPLICATE_SESSION, WITHDRAWALS_HELD
from control_plane.services.work import (
    Listing,
    Question,
    Work,
    cursor_id,
    cursor_text,
    hex_of,
    listing,
    page_size,
)
from control_plane.store.fleet import Wanted
from shared.errors import FailedPrecondition, NotFound
from shared.ids import parse_id, show_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantView:
    """A participant with its target files, and the holdouts that keep it out of what names them."""

    participant: Participant
    files: tuple[ParticipantFile, ...]
    holdout_ids: tuple[bytes, ...]


# -- participants


def get_participant(work: Work, request: requests.ById) -> ParticipantView:
    """One participant."""
    participant = _find(work, request.id)
    return _views(work, [participant])[0]


def _views(work: Work, found: Sequence[Participant]) -> list[ParticipantView]:
    holdouts = work.store.holdouts.all(work.project_id)
    return [
        ParticipantView(
            participant=participant,
            files=tuple(work.store.fleet.files(participant.id)),
            holdout_ids=tuple(item.id for item in holdouts if item.rule.holds_out(participant.public_id)),
        )
        for participant in found
    ]


def list_participants(work: Work, request: requests.ListHosts) -> Listing:
    """A page of participants by public id."""
    size = page_size(request.limit)
    labels = limits.narrowed(work, request.labels)
    if labels is None:
        return Listing(items=[], next_cursor="", limit=size)
    found = work.store.fleet.participants(
        work.project_id,
        Wanted(labels=labels, presence=request.presence, now=work.now),
        after=cursor_text(request.cursor),
        limit=size + 1,
    )
    return listing(_views(work, found), size, lambda item: hex_of(item.participant.public_id))


def create_participant(work: Work, request: requests.CreateParticipant) -> ParticipantView:
    """The participant exists, before any agent declares it."""
    limits.require_labels(work, request.labels)
    work.store.fleet.add_participant(
        work.new_id(),
        project_id=work.project_id,
        public_id=request.id,
        labels=dict(request.labels),
        now=work.now,
    )
    return get_participant(work, requests.ById(id=request.id))


def update_participant(work: Work, request: requests.UpdateParticipant) -> ParticipantView:
    """If labels were sent, these are all the participant's labels from the API."""
    participant = _find(work, request.id)
    if request.given("labels"):
        work.store.fleet.set_labels(participant.id, dict(request.labels or {}), now=work.now)
        changed = work.store.fleet.participant(work.project_id, request.id)
        limits.require_labels(work, changed.labels if changed else {})
    return get_participant(work, requests.ById(id=request.id))


def delete_participant(work: Work, request: requests.ById) -> None:
    """The participant is gone and its id free. Raises FailedPrecondition naming the experiment it is in."""
    participant = _find(work, request.id)
    holders = work.store.fleet.held_by(participant.id)
    if holders:
        raise FailedPrecondition(
            f"{request.id} takes part in {', '.join(holders)}; complete it first", reason="IN_USE"
        )
    work.store.fleet.delete_participant(participant.id, now=work.now)


def move_participant(work: Work, request: requests.MoveParticipant) -> ParticipantView:
    """Another agent serves the participant from now on; both agents are told, whichever is connected.

    The former agent's next Hello is refused the participant (PARTICIPANT_TAKEN); the new one gets what its
    slots should hold once it declares it.
    """
    participant = _find(work, request.id)
    agent = get_agent(work, requests.ById(id=request.agent_id))
    if participant.agent_uid is not None:
        get_agent(
            work, requests.ById(id=show_id(participant.agent_uid))
        )  # what it leaves is to be within as well
    gone = agent.banned_at is not None or agent.retired_at is not None
    if gone or not agent.may_serve(participant.public_id):
        raise FailedPrecondition(
            f"agent {agent.name} is banned or retired, or its enrollment token does not allow {participant.public_id}",
            reason="NOT_ALLOWED",
        )
    if participant.agent_uid != agent.uid:
        work.touch([participant.id])
        work.store.fleet.move(participant.id, agent.uid, now=work.now)
        work.touch([participant.id])
    return get_participant(work, requests.ById(id=request.id))


def read_file(work: Work, request: requests.ReadFile) -> Question:
    """A target file as it is on the participant's host now, where the host's `share_content` allows it.

    Needs a host that is connected: it answers within seconds. FAILED_PRECONDITION NOT_CONNECTED where it is not,
    PERMISSION_DENIED NOT_SHARED or TARGET_NOT_ALLOWED where it does not show the file, UNAVAILABLE NO_ANSWER where
    it stays silent. A slash in `path` may be written as it is. Files up to 1 MiB. Every read is in the audit log.
    """
    participant = _find(work, request.id)
    agent = participant.agent_uid and work.store.fleet.agent(participant.agent_uid)
    if participant.retired_at is not None or (agent and agent.retired_at is not None):
        raise FailedPrecondition(
            f"the host of {request.id} was retired; enroll one that serves it, then read again",
            reason="NOT_CONNECTED",
        )
    if not agent:
        raise FailedPrecondition(
            f"no host serves {request.id} yet; declare it in an agent.toml and start the agent",
            reason="NOT_CONNECTED",
        )
    if agent.banned_at is not None:
        raise FailedPrecondition(
            f"the agent of {request.id} is banned; `variantctl participants move` gives it to another",
            reason="NOT_CONNECTED",
        )
    return Question(agent_uid=agent.uid, participant=participant.public_id, path=request.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeFleet:
    """Since when no offer goes out (None: they do), and how many withdrawals are held back."""

    frozen_at: int | None
    withdrawals_held: int


def get_fleet(work: Work, request: requests.Nothing) -> WholeFleet:
    """Since when the project's fleet is frozen, and what is held back from it."""
    store = work.store.fleet
    return WholeFleet(
        frozen_at=store.frozen_at(work.project_id), withdrawals_held=store.withdrawals_held(work.project_id)
    )


def freeze(work: Work, request: requests.Nothing) -> WholeFleet:
    """No new offer goes to any host of the project; repeated, it stays frozen since the first time."""
    work.store.fleet.freeze(work.project_id, work.store.fleet.frozen_at(work.project_id) or work.now)
    return get_fleet(work, request)


def unfreeze(work: Work, request: requests.Nothing) -> WholeFleet:
    """Offers go out again: every connected agent gets the newest of each slot."""
    work.store.fleet.freeze(work.project_id, None)
    work.wake(work.store.fleet.uids(work.project_id))
    return get_fleet(work, request)


def release_withdrawals(work: Work, request: requests.Nothing) -> WholeFleet:
    """What a restored database withdraws from hosts is offered, however much that is. Idempotent."""
    work.store.fleet.release_withdrawals(work.project_id, WITHDRAWALS_HELD)
    work.wake(work.store.fleet.uids(work.project_id))
    return get_fleet(work, request)


def _find(work: Work, public_id: str) -> Participant:
    participant = work.store.fleet.participant(work.project_id, public_id)
    if participant is None or not work.caller.sees(participant.labels):
        raise NotFound(f"there is no participant {public_id!r}", reason="PARTICIPANT_NOT_FOUND")
    return participant


# -- agents


def get_agent(work: Work, request: requests.ById) -> Agent:
    """One agent."""
    uid = parse_id(request.id)
    agent = work.store.fleet.agent(uid) if uid else None
    if agent is None or agent.project_id != work.project_id or not work.caller.sees(agent.labels):
        raise NotFound(f"there is no agent {request.id!r}", reason="AGENT_NOT_FOUND")
    return agent


def list_agents(work: Work, request: requests.ListHosts) -> Listing:
    """A page of agents, newest first."""
    size = page_size(request.limit)
    labels = limits.narrowed(work, request.labels)
    if labels is None:
        return Listing(items=[], next_cursor="", limit=size)
    found = work.store.fleet.agents(
        work.project_id,
        Wanted(labels=labels, presence=request.presence, now=work.now),
        before=cursor_id(request.cursor),
        limit=size + 1,
    )
    return listing(found, size, lambda item: hex_of(item.uid))


def ban_agent(work: Work, request: requests.ById) -> Agent:
    """The agent has no identity any more; its live session is cut once it is woken."""
    agent = get_agent(work, request)
    limits.require_served_within(work, agent)
    work.store.fleet.ban(agent.uid, now=work.now)
    work.wake([agent.uid])
    return get_agent(work, request)


def release_agent(work: Work, request: requests.ById) -> Agent:
    """An agent that was quarantined may come back, and what was found of two processes is forgotten. Idempotent.

    Where both still run it is quarantined again, after as many alternations as the first time.
    """
    agent = get_agent(work, request)
    limits.require_served_within(work, agent)
    work.store.fleet.turn(agent.uid, (), quarantined_at=None)
    work.store.fleet.find(agent.uid, [f for f in agent.findings if f["code"] != DUPLICATE_SESSION])
    return get_agent(work, request)


_RETIRED = {
    "code": "RETIRED",
    "message": "the host was retired",
    "remedy": "deploy again once another agent serves the participant",
}


def retire_agent(work: Work, request: requests.ById) -> Agent:
    """The host is gone for good: nothing waits for it, and another agent may declare its participants.

    Its identity is refused and its live session cut, as a ban does. Assignments and what was counted stay;
    what hosts had not finished is withdrawn, and no experiment holds a file there any more. Repeated, it
    changes nothing; there is no way back but to enroll again, as another agent.
    """
    agent = get_agent(work, request)
    limits.require_served_within(work, agent)
    if agent.retired_at is None:
        served = work.store.fleet.retire(agent.uid, now=work.now)
        work.store.deployments.withdraw(served, _RETIRED, now=work.now)
        work.store.experiments.release_participants(served)
        work.wake([agent.uid])
    return get_agent(work, request)
