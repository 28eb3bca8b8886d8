"""`variantctl watch`: what is on files, how deployments stand, and what the numbers say, as it changes."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import typer

from control_plane.cli import show
from control_plane.cli.deploying import FAILED, HOLDS, current, is_settled
from control_plane.cli.layout import BAD, DRIFTED, GOOD, WAITING, FileRow, HostRow, Scene, picture
from control_plane.cli.live import Fact, Frame, Interval, follow
from control_plane.cli.results import result_fact
from control_plane.cli.session import Session
from shared.moment import to_rfc3339
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

KEPT_EVENTS = 200
NOTHING_YET = "nothing reported yet"
_SINCE = " since the last look"


def watch(
    session: Session,
    *,
    experiment: Annotated[
        str | None, typer.Argument(metavar="[EXPERIMENT]", help="Id or key; default: all that are started.")
    ] = None,
    interval: Interval = "2s",
) -> None:
    """Files, hosts, events and results, live, until interrupted or until the experiment has ended.

    Ctrl-C ends the view, with exit code 0, and changes nothing.
    """
    follow(session, _Watch(session, experiment).look, interval=interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What the control plane said at one moment."""

    experiments: list[pb.Experiment]
    held: list[tuple[pb.Participant, pb.ParticipantFile]]
    agents: dict[str, str]
    deployments: list[tuple[pb.Experiment, pb.Deployment]]
    results: list[pb.Results]

    def host(self, participant: pb.Participant) -> str:
        """The name of the agent that serves it."""
        return self.agents.get(participant.agent_id) or participant.hostname or "no agent yet"

    def over(self) -> bool:
        """Nothing can change any more."""
        return all(item.status == pb.EXPERIMENT_STATUS_COMPLETED for item in self.experiments) and all(
            is_settled(newest) for _, newest in self.deployments
        )


@dataclass
class _Watch:
    """A view in progress: what was known at the last look, and what has happened since the first."""

    session: Session
    wanted: str | None
    events: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_EVENTS))
    known: dict[str, Fact] = field(default_factory=dict)
    presence: dict[str, str] = field(default_factory=dict)

    def look(self) -> Frame:
        """The view as it is now."""
        seen = _see(self.session, self.wanted)
        names = {variant.id: variant.name for item in seen.experiments for variant in item.variants}
        facts = (
            *(_file_fact(p, file, names) for p, file in seen.held),
            *(_deployment_fact(item, newest) for item, newest in seen.deployments),
            *(result_fact(result) for result in seen.results),
        )
        now = _clock_of(self.session.clock.now())
        presence = {seen.host(participant): participant.presence for participant, _ in seen.held}
        if self.known:
            news = [*_moved(self.presence, presence), *_happened(self.known, facts)]
            if any(
                sentence.endswith(_SINCE) for sentence in news
            ):  # only the newest: they come at every look
                kept = [line for line in self.events if not line.endswith(_SINCE)]
                self.events = deque(kept, maxlen=KEPT_EVENTS)
            self.events.extend(f"{now}  {sentence}" for sentence in news)
        else:
            self.events.extend(_so_far(seen.deployments))
        self.known |= {fact.key: fact for fact in facts}
        self.presence = presence
        scene = _scene(seen, self.wanted, presence, time=f"{now}Z")
        return Frame(
            draw=lambda shape: picture(scene, tuple(self.events), shape),
            facts=facts,
            over=self.wanted is not None and seen.over(),
        )


def _see(session: Session, wanted: str | None) -> _Seen:
    if wanted is not None:
        found = [session.call(session.experiments.GetExperiment, pb.GetExperimentRequest(id=wanted))]
    else:
        started = (pb.EXPERIMENT_STATUS_RUNNING, pb.EXPERIMENT_STATUS_PAUSED, pb.EXPERIMENT_STATUS_STOPPED)
        found = [
            item
            for status in started
            for item in session.pages(
                session.experiments.ListExperiments, pb.ListExperimentsRequest(status=status), "experiments"
            )
        ]
    ids = {item.id for item in found}
    participants = session.pages(session.fleet.ListParticipants, pb.ListParticipantsRequest(), "participants")
    return _Seen(
        experiments=found,
        held=[(p, file) for p in participants for file in p.files if file.experiment_id in ids],
        agents={
            item.id: item.name
            for item in session.pages(session.fleet.ListAgents, pb.ListAgentsRequest(), "agents")
        },
        deployments=[(item, newest) for item in found for newest in current(session, item.id)],
        results=[
            session.call(session.results.GetResults, pb.GetResultsRequest(id=item.id))
            for item in found
            if item.status != pb.EXPERIMENT_STATUS_DRAFT
        ],
    )


# -- lines, where there is no terminal


def _file_fact(participant: pb.Participant, file: pb.ParticipantFile, names: dict[str, str]) -> Fact:
    state = file.state or NOTHING_YET
    wanted = names.get(file.variant_id, "what was there before")
    value = {
        "kind": "file",
        "participantId": participant.id,
        "path": file.path,
        "state": file.state or None,
        "variantId": file.variant_id or None,
        "runningDigest": file.running_digest or None,
        "presence": participant.presence,
    }
    text = f"{participant.id} {file.path}: {state}; wanted {wanted}; host {participant.presence}"
    return Fact(f"file {participant.id} {file.path}", value, text)


def _deployment_fact(experiment: pb.Experiment, item: pb.Deployment) -> Fact:
    why = f": {item.reason.code}: {item.reason.message}" if item.HasField("reason") else ""
    value = {
        "kind": "deployment",
        "experiment": experiment.key,
        "participantId": item.participant_id,
        "revision": str(item.revision),
        "action": item.action,
        "state": item.state,
        "reason": item.reason.code if item.HasField("reason") else None,
    }
    text = (
        f"{item.participant_id} {experiment.key} revision {item.revision} ({item.action}): {item.state}{why}"
    )
    return Fact(f"deployment {experiment.key} {item.participant_id}", value, text)


# -- events, on a terminal


def _clock_of(moment: int) -> str:
    return to_rfc3339(moment)[11:19]


def _so_far(deployments: Iterable[tuple[pb.Experiment, pb.Deployment]]) -> Iterator[str]:
    """What the first look finds has happened, by the control plane's times."""
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for experiment, item in sorted(deployments, key=lambda pair: pair[1].updated_at.ToMicroseconds()):
        time = _clock_of(item.updated_at.ToMicroseconds())
        alike[time, _deployed(_deployment_fact(experiment, item))].append(item.participant_id)
    for (time, sentence), names in alike.items():
        yield f"{time}  {show.named(names, most=3)} {sentence}"


def _happened(known: Mapping[str, Fact], facts: Iterable[Fact]) -> Iterator[str]:
    """What is different from what was known; participants of whom the same is to be said stand together."""
    alike: dict[str, list[str]] = defaultdict(list)
    for fact in facts:
        before = known.get(fact.key)
        if before is not None and before.value == fact.value:
            continue
        if fact.value["kind"] == "deployment":
            alike[_deployed(fact)].append(fact.value["participantId"])
        elif fact.value["kind"] == "file" and before and before.value["state"] != fact.value["state"]:
            was, now = (item.value["state"] or NOTHING_YET for item in (before, fact))
            alike[f"{fact.value['path']}: {was} → {now}"].append(fact.value["participantId"])
        elif fact.value["kind"] == "results":
            if before and before.value["status"] != fact.value["status"]:
                yield f"{fact.value['experiment']} is {fact.value['status']}"
            if counted := _counted(before, fact):
                yield counted
    for sentence, names in alike.items():
        yield f"{show.named(names, most=3)} {sentence}"


def _moved(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for host, presence in now.items():
        if host in before and before[host] != presence:
            yield f"{host}: {before[host]} → {presence}"


def _deployed(fact: Fact) -> str:
    value = fact.value
    why = f" ({value['reason']})" if value["reason"] else ""
    return f"{value['experiment']}: {value['action']} {value['state'].replace('_', ' ')}{why}"


def _counted(before: Fact | None, now: Fact) -> str:
    """`soul-tone: +12 impressions, +4 conversions since the last look`; empty where nothing was."""
    parts = []
    for name in ("impressions", "conversions"):
        was, is_now = (
            sum(item[name] for item in fact.value["variants"]) if fact else 0 for fact in (before, now)
        )
        parts.append(f"{is_now - was:+d} {name}" if is_now != was else "")
    counted = ", ".join(part for part in parts if part)
    return f"{now.value['experiment']}: {counted}{_SINCE}" if counted else ""


# -- the scene


def _scene(seen: _Seen, wanted: str | None, presence: Mapping[str, str], *, time: str) -> Scene:
    newest = {(item.id, deployment.participant_id): deployment for item, deployment in seen.deployments}
    contents = {
        (item.id, file.path, file.digest): variant.name
        for item in seen.experiments
        for variant in item.variants
        for file in variant.files
    }
    if wanted is None:
        count = len(seen.experiments)
        title = f"{count} started experiment{'s' * (count != 1)}"
    else:
        title = " · ".join(
            f"{item.name} ({item.key}) · {show.word(item, 'status')}" for item in seen.experiments
        )
    return Scene(
        title=title,
        time=time,
        hosts=tuple(HostRow(name=name, presence=state) for name, state in presence.items()),
        files=tuple(
            _file_row(
                seen.host(participant),
                participant,
                file,
                contents,
                newest.get((file.experiment_id, participant.id)),
            )
            for participant, file in seen.held
        ),
        results=tuple(seen.results),
    )


def _file_row(
    host: str,
    participant: pb.Participant,
    file: pb.ParticipantFile,
    contents: Mapping[tuple[str, str, str], str],
    newest: pb.Deployment | None,
) -> FileRow:
    mark, state = _standing(file, newest)
    return FileRow(
        participant=participant.id,
        path=file.path,
        host=host,
        on_disk=_on_disk(file, contents),
        mark=mark,
        state=state,
    )


def _standing(file: pb.ParticipantFile, newest: pb.Deployment | None) -> tuple[str, str]:
    """What the disk says comes first, then what became of the newest deployment."""
    if file.state in ("drifted", "missing"):
        return (DRIFTED if file.state == "drifted" else BAD), file.state
    if newest is not None and newest.state in FAILED:
        why = f": {newest.reason.code}" if newest.HasField("reason") else ""
        return BAD, newest.state.replace("_", " ") + why
    if newest is not None and not is_settled(newest):
        return WAITING, newest.state
    known = file.state or (newest.state if newest is not None and newest.state in HOLDS else "")
    return (GOOD, known) if known else (WAITING, NOTHING_YET)


def _on_disk(file: pb.ParticipantFile, contents: Mapping[tuple[str, str, str], str]) -> str:
    if file.state == "missing":
        return "no file"
    if not file.running_digest:
        return "not known yet"
    variant = contents.get((file.experiment_id, file.path, file.running_digest))
    if variant is not None:
        return variant
    return "something else" if file.state == "drifted" or file.desired_digest else "what was there before"
