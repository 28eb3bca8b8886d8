"""What a start would do: files, hosts and participants it would touch, what stands in its way, whether it could decide.

Of a draft the control plane answers exactly that. What is no draft yet has no seed either: then it is told whom a
start would touch and in which numbers, and who gets what comes with the draft.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

import typer

from control_plane.cli import show
from control_plane.cli.session import Session
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

_NOBODY = "no agent yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """What a start would touch; `hosts` has presence and participants by the agent's name.

    `can_decide` is None where there is nothing to compare; the two p are None where they are not known, which
    is so before there is a draft.
    """

    files: tuple[str, ...]
    counts: str
    hosts: dict[str, tuple[str, tuple[str, ...]]]
    findings: tuple[pb.ParticipantFinding, ...]
    can_decide: bool | None
    smallest_reachable_p: float | None = None
    needed_p: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            "targetFiles": list(self.files),
            "hosts": [
                {"name": name, "presence": presence, "participantIds": list(names)}
                for name, (presence, names) in self.hosts.items()
            ],
            "findings": [show.to_json(item) for item in self.findings],
            "canDecide": self.can_decide,
            "smallestReachableP": self.smallest_reachable_p,
            "neededP": self.needed_p,
        }


def preview(
    session: Session, *, experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Id or key.")]
) -> None:
    """What a start of a draft would do now: who gets what, in balance, what stands in its way; changes nothing."""
    answer = _ask(session, experiment)
    if session.json:
        show.print_json(session.out, show.to_json(answer))
        return
    draft = session.experiment(experiment)
    print_touched(session, _of_preview(session, draft, answer))
    _print_balance(session, draft, answer)
    for warning in answer.warnings:
        show.say(session.err, f"variantctl: warning: {warning.message} ({warning.code})")


def touched_by(session: Session, draft: pb.Experiment, *, exists: bool) -> Touched:
    """What a start of the draft would touch; `exists`: it is one, and not what a manifest would make."""
    if exists:
        return _of_preview(session, draft, _ask(session, draft.id))
    names = [item.participant_id for item in draft.assignments if item.variant_id]
    found = _participants(session)
    undecided = any(item.code == "DESIGN_CANNOT_DECIDE" for item in draft.warnings)
    compared = bool(names) and len(draft.variants) > 1 and any(item.is_control for item in draft.variants)
    return Touched(
        files=tuple(draft.target_files),
        counts=planned(draft),
        hosts=_hosts(session, names, found),
        findings=tuple(_findings(session, draft, names, found)),
        can_decide=False if undecided else True if compared else None,
    )


def planned(experiment: pb.Experiment) -> str:
    """`12 participants: friendly 6, concise 6`."""
    counts = [
        f"{variant.key} {experiment.assignment_counts.get(variant.id, 0)}" for variant in experiment.variants
    ]
    return _participants_of(experiment.participant_count) + (f": {', '.join(counts)}" if counts else "")


def _participants_of(count: int) -> str:
    return f"{count} participant{'s' * (count != 1)}"


def print_touched(session: Session, touched: Touched) -> None:
    """Everything of it, for a person."""
    files = ", ".join(touched.files) or "no file"
    show.say(session.out, f"a start would write {files} on {touched.counts}")
    for name, (presence, names) in islice(touched.hosts.items(), show.LISTED):
        standing = "" if name == _NOBODY else f" ({presence.replace('_', ' ')})"
        show.say(session.out, f"  {name}{standing}: {show.named(names)}")
    if more := list(islice(touched.hosts.values(), show.LISTED, None)):
        count, away = (
            sum(len(names) for _, names in more),
            sum(presence != "connected" for presence, _ in more),
        )
        show.say(
            session.out, f"  and {len(more)} more hosts, {away} not connected: {_participants_of(count)}"
        )
    said: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for item in touched.findings:
        said[item.severity, item.code, item.message].append(item.participant_id)
    words = {"error": "stands in the way", "warning": "left out", "info": "waits"}
    for (severity, code, message), whom in sorted(said.items()):
        word = (
            "not heard"
            if (code, severity) == ("PREFLIGHT_UNKNOWN", "info")
            else words.get(severity, severity)
        )
        show.say(session.out, f"{word}: {show.named(whom)}: {message} ({code})")
    if not touched.hosts:
        show.say(session.out, "stands in the way: nobody would take part")
    elif not any(item.severity == "error" for item in touched.findings):
        show.say(session.out, "nothing stands in the way of a start")
    show.say(session.out, _decision(touched))


def _decision(touched: Touched) -> str:
    if touched.can_decide is None:
        return "there is nothing to compare, so nothing to decide"
    can = "the design can decide" if touched.can_decide else "the design cannot decide"
    if touched.smallest_reachable_p is None or touched.needed_p is None:
        return can
    reachable, needed = touched.smallest_reachable_p, touched.needed_p
    return f"{can}: the smallest p it can reach is {reachable:.2g}, a decision needs {needed:.2g}"


def _ask(session: Session, experiment: str) -> pb.PreviewAssignmentsResponse:
    request = pb.PreviewAssignmentsRequest(id=experiment)
    return session.call(session.assignments.PreviewAssignments, request)


def _of_preview(session: Session, draft: pb.Experiment, answer: pb.PreviewAssignmentsResponse) -> Touched:
    names = [item.participant_id for item in answer.assignments if item.variant_id]
    known = answer.HasField("smallest_reachable_p")
    return Touched(
        files=tuple(draft.target_files),
        counts=planned(draft),
        hosts=_hosts(session, names, _participants(session)),
        findings=tuple(answer.findings),
        can_decide=answer.can_decide if known else None,
        smallest_reachable_p=answer.smallest_reachable_p if known else None,
        needed_p=answer.needed_p if answer.HasField("needed_p") else None,
    )


def _print_balance(session: Session, draft: pb.Experiment, answer: pb.PreviewAssignmentsResponse) -> None:
    """How many of each stratum get what: the largest strata, and the others together."""
    place = {variant.id: index for index, variant in enumerate(draft.variants)}
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * len(place))
    for item in answer.balance:
        counts[item.stratum][place[item.variant_id]] = item.count
    agents = {item.id.replace("-", ""): item.name for item in _agents(session)}  # a stratum is an agent's uid
    named = sorted((-sum(row), agents.get(stratum, stratum), row) for stratum, row in counts.items())
    rows = [(name, *row) for _, name, row in named[: show.LISTED]]
    if more := [row for _, _, row in named[show.LISTED :]]:
        rows.append((f"{len(more)} more", *map(sum, zip(*more, strict=True))))
    keys = [variant.key for variant in draft.variants]
    show.print_table(session.out, ("stratum", *keys), rows, empty="nobody would take part", right=keys)


def _participants(session: Session) -> dict[str, pb.Participant]:
    request = pb.ListParticipantsRequest()
    return {item.id: item for item in session.pages(session.fleet.ListParticipants, request, "participants")}


def _agents(session: Session) -> Iterator[pb.Agent]:
    return session.pages(session.fleet.ListAgents, pb.ListAgentsRequest(), "agents")


def _hosts(
    session: Session, names: Iterable[str], found: dict[str, pb.Participant]
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Presence and participants by host, those that have none last."""
    agents = {item.id: item.name for item in _agents(session)}
    hosts: dict[str, list[str]] = defaultdict(list)
    presence: dict[str, str] = {}
    for name in sorted(names):
        item = found.get(name, pb.Participant(presence="never_seen"))
        host = agents.get(item.agent_id) or item.hostname or _NOBODY
        hosts[host].append(name)
        presence[host] = item.presence
    ordered = sorted(hosts, key=lambda host: (host == _NOBODY, host))
    return {host: (presence[host], tuple(hosts[host])) for host in ordered}


def _findings(
    session: Session, draft: pb.Experiment, names: Iterable[str], found: dict[str, pb.Participant]
) -> Iterator[pb.ParticipantFinding]:
    """What a preview would say of them, as far as it does not take a draft."""
    waits = {
        "never_seen": ("NEVER_SEEN", "no agent has declared it yet; its deployment waits until one does"),
        "lost": ("OFFLINE", "its agent is not connected; its deployment waits until it is"),
    }
    holders: dict[str, str] = {}
    for name in sorted(names):
        item = found.get(name, pb.Participant(presence="never_seen"))
        for file in item.files:
            if file.path in draft.target_files and file.experiment_id != draft.id:
                if file.experiment_id not in holders:
                    holders[file.experiment_id] = session.experiment(file.experiment_id).key
                message = f"{file.path} is held by experiment {holders[file.experiment_id]}"
                yield pb.ParticipantFinding(
                    participant_id=name, code="CLAIM_CONFLICT", severity="error", message=message
                )
        if item.presence in waits:
            code, message = waits[item.presence]
            yield pb.ParticipantFinding(participant_id=name, code=code, severity="info", message=message)
