"""What a Hello means: which session is opened, who is bound to it, and what about the host cannot be right.

Everything the control plane itself finds wrong with an agent is found here, each time anew, and stored as its
findings. Hides how two processes that pass for one agent are told from one that was started again, and how a
database that was restored, with or without saying so, meets hosts that know more than it does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from control_plane.domain.fleet import (
    LEASE_SECONDS,
    MAX_RETURNS,
    Agent,
    Participant,
    Telemetry,
    Turn,
    is_mass,
    recent,
    returns,
)
from control_plane.store.access import Incarnation
from control_plane.store.deployments import Revisions
from control_plane.store.fleet import host_labels
from control_plane.store.store import Store
from shared.errors import FailedPrecondition, PermissionDenied
from shared.ids import NewId, show_id
from shared.model import Condition, Hello, OfferAction, ParticipantState
from shared.moment import SECOND

LEASE = LEASE_SECONDS * SECOND
MAX_PARTICIPANTS = 10_000
"""Of one agent, over all its Hellos."""

DUPLICATE_SESSION = "DUPLICATE_SESSION"
WITHDRAWALS_HELD = "WITHDRAWALS_HELD"
WITHDRAW_LIMIT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What sessions are opened under: this life of the database, and how much of a host it may withdraw, in percent."""

    incarnation: Incarnation
    withdraw_limit: int = WITHDRAW_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A live session: whose, which, and the public ids it may not serve because another agent does.

    `generation` is the agent's as the session begins; `took_over`: its session before was alive, here or elsewhere.
    `goes_on`: it was opened by an earlier poll. `ahead`: the host knows more than this database, and gets no offers.
    `behind`: it has an earlier revision of something that it once was done with.
    `quarantined`: there is no session; the agent is kept out from now on. `findings`: what is wrong with the host,
    which it is told.
    """

    id: bytes
    agent_uid: bytes
    taken: tuple[str, ...]
    generation: int = 0
    took_over: bool = False
    goes_on: bool = False
    ahead: bool = False
    behind: bool = False
    quarantined: bool = False
    findings: tuple[Condition, ...] = ()


Finding = dict[str, Any]


def refusal(agent: Agent | None) -> PermissionDenied | None:
    """Why the agent may not speak; None where it may."""
    if agent is not None and agent.retired_at is not None:
        return PermissionDenied("this agent is retired; enroll the host again", reason="RETIRED")
    if agent is None or agent.banned_at is not None:
        return PermissionDenied("this agent is banned or not known; enroll it again", reason="BANNED")
    if agent.quarantined_at is not None:
        return PermissionDenied(
            "two processes pass for this agent, so neither may: stop the copy and remove its state directory, then"
            f" `variantctl agents release {show_id(agent.uid)}`; enroll the copy as a host of its own",
            reason=DUPLICATE_SESSION,
        )
    return None


def require_speaker(store: Store, agent_uid: bytes) -> bytes:
    """The project of the agent. Raises PermissionDenied for one that may not speak, telling it why."""
    project_id = store.fleet.may_speak(agent_uid)
    if project_id is None:
        raise refusal(store.fleet.agent(agent_uid)) or PermissionDenied()
    return project_id


def open_session(
    store: Store,
    agent_uid: bytes,
    hello: Hello,
    *,
    terms: Terms,
    new_id: NewId,
    now: int,
    polled: Telemetry | None = None,
) -> Opened:
    """The agent is connected; what its Hello declares is bound to it, created where nobody knew it.

    A participant that another agent is bound to, or that the enrollment token does not allow, stays as it is
    and is listed in `taken`. Where the host knew another life of this database, what its slots want overtakes what
    the host has; where it knows more of this very life, it gets no offers until there is another. `polled` are
    the host's conditions told in a poll: then the session that has the Hello's boot id, epoch and process goes on.
    Raises PermissionDenied for an agent that may not speak, FailedPrecondition for a poll that a newer session
    has overtaken.
    """
    require_speaker(store, agent_uid)
    agent = store.fleet.agent(agent_uid)
    assert agent is not None
    going_on = None if polled is None else _going_on(agent, hello, now=now)
    turns = _turns(agent, hello, now=now)
    if returns(turns) >= MAX_RETURNS:
        store.fleet.turn(agent_uid, turns, quarantined_at=now)
        store.fleet.find(agent_uid, [_duplicate(agent, turns, quarantined=True)])
        store.fleet.grow([agent_uid])
        return Opened(id=bytes(16), agent_uid=agent_uid, taken=(), quarantined=True)
    if turns != agent.turns:
        store.fleet.turn(agent_uid, turns, quarantined_at=None)
    taken, refused = _bind(store, agent, hello, new_id=new_id, now=now)
    known = store.deployments.revisions(agent.uid)
    ahead, halted = _compare(store, agent, hello, known, terms, {*taken, *refused}, now=now)
    session_id, connected_at = going_on or (new_id(), now)
    store.fleet.open_session(
        agent_uid, hello, session_id=session_id, lease_until=now + LEASE, connected_at=connected_at, now=now
    )
    if polled is not None:
        store.fleet.observe(agent_uid, polled)
    findings = [
        *_taken_findings(taken, now=now),
        *([_too_many(refused, now=now)] if refused else []),
        *([_duplicate(agent, turns)] if returns(turns) else []),
        *([_regressed(agent, hello, now=now)] if going_on is None and _is_older(agent, hello) else []),
        *ahead,
        *halted,
    ]
    found = _since(agent.findings, findings)
    store.fleet.find(agent_uid, found)
    return Opened(
        id=session_id,
        agent_uid=agent_uid,
        taken=(*taken, *refused),
        generation=agent.generation,
        took_over=going_on is None and agent.session_id is not None and now < agent.lease_until,
        goes_on=going_on is not None,
        ahead=any(finding["code"] == "HOST_AHEAD" for finding in ahead),
        behind=_is_behind(hello, known),
        findings=tuple(
            Condition(
                code=item["code"],
                severity=item["severity"],
                since_at=item["sinceAt"],
                message=item["message"],
            )
            for item in found
        ),
    )


def _going_on(agent: Agent, hello: Hello, *, now: int) -> tuple[bytes, int] | None:
    """(id, connected since) of the session this poll belongs to; None where it is the first of one."""
    if agent.session_id is None or agent.connected_at is None or agent.lease_until <= now:
        return None
    if agent.boot_id != hello.boot_id or agent.instance != hello.spool.epoch:
        return None
    if agent.session_epoch > hello.session_epoch:
        raise FailedPrecondition("a newer session of this agent is open", reason="SUPERSEDED")
    return (agent.session_id, agent.connected_at) if agent.session_epoch == hello.session_epoch else None


# -- one process or two


def _turns(agent: Agent, hello: Hello, *, now: int) -> tuple[Turn, ...]:
    """How the session changed hands lately, this time among them."""
    known = recent(agent.turns, now=now)
    alive = agent.session_id is not None and now < agent.lease_until
    if not alive or agent.instance == hello.spool.epoch:
        return known
    return (*known, Turn(instance=hello.spool.epoch, former=agent.instance, at=now))


def _is_older(agent: Agent, hello: Hello) -> bool:
    """Another process opens a session that this agent had before: its state directory is an older copy."""
    return (
        agent.session_id is not None
        and agent.instance != hello.spool.epoch
        and hello.session_epoch <= agent.session_epoch
    )


def _duplicate(agent: Agent, turns: Sequence[Turn], *, quarantined: bool = False) -> Finding:
    said = (
        f"two processes pass for this agent; the session changed hands {len(turns)} times within ten minutes"
    )
    if quarantined:
        remedy = (
            "both are kept out: stop the copy and remove its state directory, then `variantctl agents release"
            f" {show_id(agent.uid)}`; enroll the copy as a host of its own"
        )
    else:
        remedy = (
            "the newest holds the session; a state directory belongs to one host: stop and remove the copy"
        )
    severity = "error" if quarantined else "warning"
    return _finding(DUPLICATE_SESSION, severity, f"{said}; {remedy}", turns[-1].at)


def _regressed(agent: Agent, hello: Hello, *, now: int) -> Finding:
    message = (
        f"the host began session {hello.session_epoch} after session {agent.session_epoch}: its state directory was"
        " restored from an older copy, or another host has one; what it reports twice is counted once"
    )
    return _finding("SESSION_REGRESSED", "warning", message, now)


# -- who is bound


def _bind(
    store: Store, agent: Agent, hello: Hello, *, new_id: NewId, now: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(public ids that are another's or not allowed, those that are too many); the others are the agent's."""
    taken, refused = [], []
    room = MAX_PARTICIPANTS - store.fleet.bound(agent.uid)
    for state in hello.participants:
        participant = store.fleet.participant(agent.project_id, state.participant)
        owner = participant.agent_uid if participant else None
        if owner not in (None, agent.uid) or not agent.may_serve(state.participant):
            taken.append(state.participant)
            continue
        if owner is None:
            if room <= 0:
                refused.append(state.participant)
                continue
            room -= 1
        participant_id = participant.id if participant else new_id()
        if participant is None:
            store.fleet.add_participant(
                participant_id, project_id=agent.project_id, public_id=state.participant, labels={}, now=now
            )
        if participant is None or not _is_as_declared(participant, agent.uid, state):
            store.fleet.bind(participant_id, agent.uid, state, now=now)
    return tuple(taken), tuple(refused)


def _is_as_declared(participant: Participant, uid: bytes, state: ParticipantState) -> bool:
    """Binding it would change nothing: a fleet that comes back must not look like one that changed."""
    return (
        participant.agent_uid == uid
        and participant.retired_at is None
        and participant.host_labels == host_labels(state)
        and participant.targets == tuple(state.targets)
        and participant.drift_policy == state.drift.value
        and participant.exposure == state.exposure.value
        and participant.policy == state.policy
    )


def _taken_findings(taken: Sequence[str], *, now: int) -> list[Finding]:
    return [
        _finding(
            "PARTICIPANT_TAKEN",
            "error",
            f"{public_id} belongs to another agent, or the enrollment token does not allow it",
            now,
        )
        for public_id in taken[:MAX_TOLD]
    ]


MAX_TOLD = 32
"""Findings of one kind; a host that declares thousands of another's is not listed in full."""


def _too_many(refused: Sequence[str], *, now: int) -> Finding:
    message = (
        f"an agent serves at most {MAX_PARTICIPANTS} participants; {len(refused)} more were declared, {refused[0]}"
        " among them: delete those that are gone"
    )
    return _finding("TOO_MANY_PARTICIPANTS", "error", message, now)


# -- whose history is the longer


def _is_behind(hello: Hello, known: Mapping[tuple[str, bytes], Revisions]) -> bool:
    """The host once reported that it was done with what it has an earlier revision of now, as from an older copy."""
    return any(
        (here := known.get((slot.participant, slot.slot_id))) is not None
        and here.settled
        and slot.revision < here.wanted
        for slot in hello.slots
    )


def _compare(
    store: Store,
    agent: Agent,
    hello: Hello,
    known: Mapping[tuple[str, bytes], Revisions],
    terms: Terms,
    not_its_own: set[str],
    *,
    now: int,
) -> tuple[list[Finding], list[Finding]]:
    """What the host's slots say of this database: (where the host is ahead or alone, what is not withdrawn)."""
    declared = {state.participant for state in hello.participants} - not_its_own
    newer, unknown = {}, 0
    for slot in hello.slots:
        here = known.get((slot.participant, slot.slot_id))
        if here is None:
            unknown += slot.participant in declared and not slot.closed and bool(slot.files)
        elif slot.revision > here.reported:
            newer[slot.participant, slot.slot_id] = replace(here, reported=slot.revision)
    store.deployments.note_revisions(newer.values())
    known = {**known, **newer}
    beyond = {key: here for key, here in known.items() if here.reported > here.wanted}
    found = [_unknown(unknown, len(hello.slots), now=now)] if unknown else []
    own = terms.incarnation.id
    if hello.incarnation and hello.incarnation != own:
        return found, _overtake(store, agent, hello, terms, list(beyond.values()), now=now)
    if hello.incarnation == own and agent.diverged_in != own and beyond:
        made = {key: store.deployments.made(agent.project_id, *key) for key in beyond}
        if all(here.reported <= made[key] for key, here in beyond.items()):
            # Made here, for a participant of that name that was deleted since.
            store.deployments.overtake(beyond.values(), own, halted_at=None)
        else:
            store.fleet.diverge(agent.uid, own)
            return [*found, _ahead(len(beyond), now=now)], []
    if agent.diverged_in == own:
        return [*found, _ahead(len(beyond), now=now)], []
    return found, _held(agent, known.values())


def _overtake(
    store: Store, agent: Agent, hello: Hello, terms: Terms, slots: Sequence[Revisions], *, now: int
) -> list[Finding]:
    """What this database wants of the slots is newer than what the host has; the finding, where that is held back.

    A restored row that asks for the baseline contradicts what the host was told later than that row, by an order that
    this database does not know. A few of them may be right; where they are many, the backup was the wrong one.
    """
    own, limit = terms.incarnation.id, terms.withdraw_limit
    withdrawn = [slot for slot in slots if slot.action is OfferAction.RESTORE]
    others = [slot for slot in slots if slot.action is not OfferAction.RESTORE]
    held = sum(not slot.closed for slot in hello.slots)
    already, all_slots = store.deployments.withdrawals(agent.project_id, own)
    mass = bool(withdrawn) and (
        is_mass(len(withdrawn), max(held, len(withdrawn)), limit=limit)
        or is_mass(already + len(withdrawn), max(all_slots, 1), limit=limit)
    )
    store.deployments.overtake(others, own, halted_at=None)
    store.deployments.overtake(withdrawn, own, halted_at=now if mass else None)
    if not mass:
        return _held(agent, store.deployments.revisions(agent.uid).values())
    message = (
        f"the restored database would withdraw {len(withdrawn)} of {held} slots that this host was given later"
        f" ({limit} % at once is the limit); nothing is withdrawn: restore a newer backup, deploy anew, or"
        " `variantctl release-withdrawals` where it is right"
    )
    return [_finding(WITHDRAWALS_HELD, "error", message, now)]


def _held(agent: Agent, slots: Iterable[Revisions]) -> list[Finding]:
    """What was said of held withdrawals before, while there are any."""
    if not any(slot.halted for slot in slots):
        return []
    return [finding for finding in agent.findings if finding["code"] == WITHDRAWALS_HELD]


def _ahead(count: int, *, now: int) -> Finding:
    message = (
        f"the host took up newer revisions of {count} slots than this database ever made: the database was put back"
        " without saying so; the host gets no offers. Stop the server, run `variantd admin new-incarnation`, start it"
    )
    return _finding("HOST_AHEAD", "error", message, now)


def _unknown(count: int, all_slots: int, *, now: int) -> Finding:
    message = (
        f"the host holds {count} of its {all_slots} slots for experiments that this database does not know; their"
        " files stay as they are: restore a newer backup, or `variant-agent leave --restore` on the host"
    )
    return _finding("SLOTS_UNKNOWN", "warning", message, now)


# -- findings


def _finding(code: str, severity: str, message: str, since: int) -> Finding:
    return {"code": code, "severity": severity, "sinceAt": since, "message": message}


def _since(known: Sequence[Finding], findings: Sequence[Finding]) -> list[Finding]:
    """The findings, each since it was first found."""
    before = {(item["code"], item["message"]): item["sinceAt"] for item in known}
    codes = {item["code"]: item["sinceAt"] for item in known if item["code"] != "PARTICIPANT_TAKEN"}
    return [
        {**f, "sinceAt": before.get((f["code"], f["message"]), codes.get(f["code"], f["sinceAt"]))}
        for f in findings
    ]
