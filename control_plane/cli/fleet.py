"""Agents, what lets one join, and participants."""

import re
import sys
from typing import Annotated, Literal

import typer
from google.protobuf.field_mask_pb2 import FieldMask

from control_plane.cli import show
from control_plane.cli.session import Failure, Session, duration, request_id
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

AgentId = Annotated[str, typer.Argument(metavar="AGENT", help="Id of the agent; `agents list` shows it.")]
ParticipantId = Annotated[str, typer.Argument(metavar="PARTICIPANT", help="Public id.")]
Labels = Annotated[
    list[str] | None, typer.Option("--label", "-l", metavar="NAME=VALUE", help="May be repeated.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")]

Presence = Annotated[
    Literal["connected", "lost", "never_seen", "retired"] | None,
    typer.Option("--presence", help="Only those that are so."),
]
Carrying = Annotated[
    list[str] | None,
    typer.Option("--label", "-l", metavar="NAME=VALUE", help="Only those with this label; may be repeated."),
]

_ISO = re.compile(r"P(?=.)(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?")


def labels_of(pairs: list[str] | None) -> dict[str, str]:
    """`NAME=VALUE` texts as a mapping. Raises BadParameter."""
    labels = {}
    for pair in pairs or ():
        name, separator, value = pair.partition("=")
        if not name or not separator:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE")
        labels[name] = value
    return labels


# -- agents


def list_agents(
    session: Session, *, label: Carrying = None, presence: Presence = None, limit: Limit = None
) -> None:
    """Agents, newest first."""
    request = pb.ListAgentsRequest(labels=labels_of(label), presence=presence)
    found = list(session.pages(session.fleet.ListAgents, request, "agents", limit=limit))
    if session.json:
        show.print_json(session.out, show.page(found))
        return
    show.print_table(
        session.out,
        ("id", "name", "presence", "version", "participants", "spool", "certificate", "labels", "conditions"),
        (
            (
                item.id,
                item.name,
                "banned" if item.HasField("banned_at") and item.presence != "retired" else item.presence,
                item.version,
                len(item.participant_ids),
                item.spool.depth if item.HasField("spool") else None,
                f"{item.certificate.days_left} days" if item.HasField("certificate") else None,
                show.labels(item.labels),
                ", ".join(condition.code for condition in item.conditions),
            )
            for item in found
        ),
        empty="there is no such agent"
        if label or presence
        else "no agent has enrolled yet; `variantctl agents token` lets one join",
        right=("participants", "spool", "certificate"),
    )


def get_agent(session: Session, *, agent: AgentId) -> None:
    """One agent: what it runs, serves and holds, and what is wrong there."""
    found = session.call(session.fleet.GetAgent, pb.GetAgentRequest(id=agent))
    if session.json:
        show.print_json(session.out, show.to_json(found))
        return
    platform = found.platform
    facts: dict[str, object] = {
        "id": found.id,
        "name": found.name,
        "hostname": found.hostname,
        "presence": found.presence,
        "connected": show.moment(found, "connected_at"),
        "last seen": show.moment(found, "last_seen_at"),
        "enrolled": show.moment(found, "enrolled_at"),
        "banned": show.moment(found, "banned_at"),
        "retired": show.moment(found, "retired_at"),
        "version": found.version,
        "platform": f"{platform.os} {platform.kernel} {platform.arch}"
        if found.HasField("platform")
        else None,
        "labels": show.labels(found.labels),
        "participants": ", ".join(found.participant_ids),
        "certificate": _certificate(found),
        "disk": f"{found.state_free_bytes / 2**30:.1f} GiB free for the agent's state"
        if found.HasField("state_free_bytes")
        else None,
        "spool": f"{found.spool.depth} records waiting, {found.spool.lost} lost"
        if found.HasField("spool")
        else None,
    }
    show.print_facts(session.out, {name: value for name, value in facts.items() if value})
    for item in found.conditions:
        since = show.moment(item, "since_at")
        show.say(session.out, f"{item.severity}: {item.code} since {since}: {item.message}")


def _certificate(found: pb.Agent) -> str | None:
    """How long it lasts; and by the host's own account, where that is another (or its clock is)."""
    if not found.HasField("certificate"):
        return None
    certificate = found.certificate
    told = f"{certificate.days_left} days left"
    if certificate.HasField("host_days_left") and abs(certificate.host_days_left - certificate.days_left) > 1:
        told += f", {certificate.host_days_left} by the host's own account"
    return told


def ban_agent(session: Session, *, agent: AgentId) -> None:
    """Take an agent's identity away for good; its live session is cut."""
    found = session.call(session.fleet.BanAgent, pb.BanAgentRequest(id=agent, request_id=request_id()))
    session.show(found, f"{found.name} ({found.id}) is banned")


def retire_agent(
    session: Session,
    *,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Name or id of the agent.")],
) -> None:
    """Say that a host is gone for good: nothing waits for it, and another agent may take its participants.

    Its identity is refused from then on. Assignments and what was counted stay; what it had not finished is
    withdrawn. The way back is to enroll again, as a new agent.
    """
    request = pb.RetireAgentRequest(id=_agent_id(session, agent), request_id=request_id())
    found = session.call(session.fleet.RetireAgent, request)
    session.show(found, f"{found.name} ({found.id}) is retired; nothing waits for it any more")


def release_agent(
    session: Session,
    *,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Name or id of the agent.")],
) -> None:
    """Let an agent back in that was quarantined because two processes passed for it; remove the copy first."""
    request = pb.ReleaseAgentRequest(id=_agent_id(session, agent), request_id=request_id())
    found = session.call(session.fleet.ReleaseAgent, request)
    session.show(found, f"{found.name} ({found.id}) may come back")


def _agent_id(session: Session, id_or_name: str) -> str:
    """The agent's id. Raises Failure where no agent has the name, or several present ones do."""
    known = session.pages(session.fleet.ListAgents, pb.ListAgentsRequest(), "agents")
    named = [item for item in known if id_or_name in (item.id, item.name)]
    present = [item for item in named if item.presence != "retired"] or named[:1]
    if len(present) > 1:
        listed = ", ".join(f"{item.id} ({item.presence})" for item in present)
        raise Failure(f"several agents are called {id_or_name}: {listed}; name the id")
    if not present:
        raise Failure(f"there is no agent {id_or_name!r}; `variantctl agents list` shows them")
    return str(present[0].id)


def token(
    session: Session,
    *,
    name: Annotated[str, typer.Option("--name", help="What it is for.")] = "variantctl",
    label: Labels = None,
    ttl: Annotated[str, typer.Option("--ttl", metavar="DURATION", help="1h, 7d or ISO 8601.")] = "1h",
    max_uses: Annotated[int, typer.Option("--max-uses", min=1, help="How many agents may join.")] = 1,
    name_pattern: Annotated[
        str | None, typer.Option("--name-pattern", help="Shell pattern the agent's name must match.")
    ] = None,
    participants: Annotated[
        list[str] | None,
        typer.Option("--participants", help="Shell pattern of participants it may serve; may be repeated."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the token alone.")] = False,
) -> None:
    """Make a token that lets an agent join, and say what to run on the host.

    It is shown this once and kept as a hash. Hand it over as you would a password.
    """
    request = pb.CreateEnrollmentTokenRequest(
        name=name,
        labels=labels_of(label),
        ttl=ttl if _ISO.fullmatch(ttl) else f"PT{max(1, round(duration(ttl)))}S",
        max_uses=max_uses,
        name_pattern=name_pattern,
        participants=participants or (),
        request_id=request_id(),
    )
    made = session.call(session.fleet.CreateEnrollmentToken, request)
    if session.json:
        show.print_json(session.out, show.to_json(made))
    elif quiet:
        show.say(session.out, made.token)
    else:
        print(_on_the_host(made), file=session.out.file)


def _on_the_host(made: pb.EnrollmentToken) -> str:
    hosts = "one host" if made.max_uses == 1 else f"each of up to {made.max_uses} hosts"
    return f"""# On {hosts}, before {show.moment(made, "expires_at")}:
variant-agent enroll --token-file - --state-dir /var/lib/variant-agent <<'TOKEN'
{made.token}
TOKEN
variant-agent run --config /etc/variant-agent/agent.toml --state-dir /var/lib/variant-agent"""


# -- participants


def list_participants(
    session: Session, *, label: Carrying = None, presence: Presence = None, limit: Limit = None
) -> None:
    """Participants and what is on their files."""
    request = pb.ListParticipantsRequest(labels=labels_of(label), presence=presence)
    found = list(session.pages(session.fleet.ListParticipants, request, "participants", limit=limit))
    if session.json:
        show.print_json(session.out, show.page(found))
        return
    show.print_table(
        session.out,
        ("id", "presence", "host", "files", "labels"),
        (
            (
                item.id,
                item.presence,
                item.hostname,
                ", ".join(f"{file.path} {file.state or 'unknown'}" for file in item.files),
                show.labels(item.labels),
            )
            for item in found
        ),
        empty="there is no such participant" if label or presence else "there is no participant yet",
    )


def get_participant(session: Session, *, participant: ParticipantId) -> None:
    """One participant and its target files."""
    found = _participant(session, participant)
    if session.json:
        show.print_json(session.out, show.to_json(found))
        return
    facts: dict[str, object] = {
        "id": found.id,
        "presence": found.presence,
        "host": found.hostname,
        "agent": found.agent_id,
        "last seen": show.moment(found, "last_seen_at"),
        "labels": show.labels(found.labels),
        "targets": ", ".join(found.targets),
        "drift": found.drift_policy,
        "exposure": found.exposure,
    }
    show.print_facts(session.out, {name: value for name, value in facts.items() if value})
    print(file=session.out.file)
    show.print_table(
        session.out,
        ("file", "state", "wanted", "on disk", "revision", "experiment"),
        (
            (
                file.path,
                file.state or "unknown",
                file.desired_digest[:19] if file.HasField("desired_digest") else "the baseline",
                file.running_digest[:19],
                file.revision,
                file.experiment_id,
            )
            for file in found.files
        ),
        empty="no experiment has a file here",
        right=("revision",),
    )


def read_file(
    session: Session,
    *,
    participant: ParticipantId,
    path: Annotated[str, typer.Argument(metavar="PATH", help="Relative to the participant's root.")],
) -> None:
    """Print a target file exactly as it is on its host now, where the host shares content."""
    found = session.call(session.fleet.ReadFile, pb.ReadFileRequest(id=participant, path=path))
    if session.json:
        show.print_json(session.out, show.to_json(found))
        return
    if found.absent:
        raise Failure(f"there is no file {path} on the host of {participant}")
    content = found.content.encode() if found.HasField("content") else found.content_base64
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _participant(session: Session, public_id: str) -> pb.Participant:
    return session.call(session.fleet.GetParticipant, pb.GetParticipantRequest(id=public_id))


def create_participant(session: Session, *, participant: ParticipantId, label: Labels = None) -> None:
    """Make a participant before its agent connects."""
    request = pb.CreateParticipantRequest(id=participant, labels=labels_of(label), request_id=request_id())
    found = session.call(session.fleet.CreateParticipant, request)
    session.show(found, f"{found.id} exists; {_labelled(found)}")


def label_participant(
    session: Session,
    *,
    participant: ParticipantId,
    labels: Annotated[list[str], typer.Argument(metavar="NAME=VALUE|NAME-", help="NAME- takes one away.")],
) -> None:
    """Set and take away labels of a participant; the others stay."""
    before = _participant(session, participant)
    after = {name: value for name, value in before.labels.items() if not name.startswith("host.")}
    for change in labels:
        if "=" not in change and change.endswith("-"):
            if after.pop(change[:-1], None) is None:
                raise Failure(f"{participant} has no label {change[:-1]!r}")
        else:
            after |= labels_of([change])
    request = pb.UpdateParticipantRequest(
        id=participant, labels=after, request_id=request_id(), update_mask=FieldMask(paths=["labels"])
    )
    found = session.call(session.fleet.UpdateParticipant, request)
    session.show(found, f"{found.id} {_labelled(found)}")
    kept = sorted(change for change in labels if change.endswith("-") and change[:-1] in found.labels)
    if kept:
        raise Failure(f"{kept[0][:-1]} comes with the enrollment token of its agent and stays")


def _labelled(found: pb.Participant) -> str:
    return f"is labelled {show.labels(found.labels)}" if found.labels else "has no labels"


def delete_participant(session: Session, *, participant: ParticipantId) -> None:
    """Remove a participant that takes part in nothing."""
    request = pb.DeleteParticipantRequest(id=participant, request_id=request_id())
    session.call(session.fleet.DeleteParticipant, request)
    if not session.json:
        show.say(session.out, f"{participant} is removed")


# -- the fleet as a whole


def move_participant(
    session: Session,
    *,
    participant: ParticipantId,
    to: Annotated[
        str, typer.Option("--to", metavar="AGENT", help="Id of the agent that serves it from now on.")
    ],
) -> None:
    """Give a participant to another agent, as when a workspace moved to another host."""
    request = pb.MoveParticipantRequest(id=participant, agent_id=to, request_id=request_id())
    found = session.call(session.fleet.MoveParticipant, request)
    session.show(found, f"{found.id} is served by {found.agent_id} (binding {found.binding_generation})")


def freeze(session: Session) -> None:
    """Send no new offer to any host of the project until `unfreeze`; what is under way ends."""
    found = session.call(session.fleet.FreezeFleet, pb.FreezeFleetRequest(request_id=request_id()))
    session.show(
        found, f"frozen since {show.moment(found, 'frozen_at')}; `variantctl unfreeze` lets offers out again"
    )


def unfreeze(session: Session) -> None:
    """Send offers again, the newest of each slot."""
    found = session.call(session.fleet.UnfreezeFleet, pb.UnfreezeFleetRequest(request_id=request_id()))
    session.show(found, "offers go out again")


def release_withdrawals(session: Session) -> None:
    """Let out what a restored database withdraws from hosts and what was held back because it is too much."""
    request = pb.ReleaseWithdrawalsRequest(request_id=request_id())
    found = session.call(session.fleet.ReleaseWithdrawals, request)
    session.show(found, "withdrawals go out, however many there are")
