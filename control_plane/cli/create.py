"""`variantctl experiments create`: from a file and an edited copy of it to a draft, and on to its start.

What can be known to be wrong is asked of the control plane before
anybody edits anything, and nothing is there before the edit is done and differs.
"""

import enum
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli import show
from control_plane.cli.difference import print_difference
from control_plane.cli.editor import edited
from control_plane.cli.preview import planned, print_touched, touched_by
from control_plane.cli.session import Failure, Session, request_id
from control_plane.cli.specs import file_spec
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

_NOTHING = "nothing was created"


class Way(enum.StrEnum):
    """Which way the metric should move."""

    INCREASE = "increase"
    DECREASE = "decrease"


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Everything of the draft but its two contents."""

    name: str
    key: str | None
    target: str
    participants: pb.ParticipantSelector
    metric: pb.Metric
    variant_name: str

    def request(self, *contents: bytes) -> pb.CreateExperimentRequest:
        """Control and the other variant with these contents; without any, a draft without variants."""
        names = ("Control", self.variant_name)
        return pb.CreateExperimentRequest(
            name=self.name,
            key=self.key,
            target_file=self.target,
            variants=[
                pb.VariantSpec(
                    name=name, is_control=not index, weight=50, files=[file_spec(self.target, content)]
                )
                for index, (name, content) in enumerate(zip(names, contents, strict=False))
            ],
            participants=self.participants,
            metrics=pb.Metrics(primary=self.metric),
            request_id=request_id(),
        )


def create(
    session: Session,
    *,
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="PARTICIPANT:FILE", help="A file on a host as it is now: control's content."
        ),
    ] = None,
    control: Annotated[
        Path | None, typer.Option("--control", metavar="FILE", help="A local file with it, instead.")
    ] = None,
    variant: Annotated[
        Path | None, typer.Option("--variant", metavar="FILE", help="A local file with the other content.")
    ] = None,
    edit: Annotated[
        bool, typer.Option("--edit", help="Make the other content in $VISUAL or $EDITOR, from a copy.")
    ] = False,
    target: Annotated[
        str | None, typer.Option("--target", metavar="PATH", help="The target file; default: --from's.")
    ] = None,
    participants: Annotated[
        list[str] | None,
        typer.Option("--participants", "-p", metavar="IDS", help="Who takes part, separated by commas."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", "-l", metavar="NAME=VALUE", help="All with these labels take part, instead."
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="EVENT", help="The conversion that is measured.")
    ] = None,
    goal: Annotated[Way, typer.Option("--goal", help="Which way it should move.")] = Way.INCREASE,
    name: Annotated[str | None, typer.Option("--name", help="Default: made from the target file.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="Default: made from the name.")] = None,
    variant_name: Annotated[
        str, typer.Option("--variant-name", help="Name of the other variant.")
    ] = "Edited",
    start: Annotated[bool, typer.Option("--start", help="Start it as well; asks before.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Make a draft of two contents of one file, the second perhaps by editing the first; start it once confirmed.

    --from takes the file as it is on a host, which has to share it (share_content in its agent.toml).
    What flags leave open is asked for on a terminal. An editor that fails, an unchanged and an empty copy end the
    command with nothing created. Without a terminal only --start --yes starts the draft.
    """
    if (source is None) == (control is None):
        raise typer.BadParameter("say either --from PARTICIPANT:FILE or --control FILE: control's content")
    if edit == (variant is not None):
        raise typer.BadParameter("say either --edit or --variant FILE: where the other content comes from")
    participant, path = _parts(source) if source is not None else ("", "")
    target = target or path
    if not target:
        raise typer.BadParameter("say --target PATH, such as config/soul.md")
    before = _read(control) if control is not None else _present(session, participant, path)
    asking = _asking(session, yes=yes)
    design = Design(
        name=name or (_ask("Name", default=f"Edit of {target}") if asking else f"Edit of {target}"),
        key=key,
        target=target,
        participants=_selector(participants or [], labels or [], asking=asking),
        metric=_metric(metric, goal, asking=asking),
        variant_name=variant_name,
    )
    trial = design.request()
    trial.validate_only = True
    session.call(session.experiments.CreateExperiment, trial)
    after = edited(before, target, undone=_NOTHING) if variant is None else _read(variant)
    _refuse_same(before, after, edited=variant is None)
    _show_difference(session, design, before, after)
    made = session.call(session.experiments.CreateExperiment, design.request(before, after))
    for warning in made.warnings:
        show.say(session.err, f"variantctl: warning: {warning.message} ({warning.code})")
    _go_on(session, made, start=start, yes=yes, asking=asking)


def _asking(session: Session, *, yes: bool) -> bool:
    return session.out.is_terminal and sys.stdin.isatty() and not session.json and not yes


def _ask(what: str, default: str | None = None) -> str:
    return str(typer.prompt(what, default=default, err=True)).strip()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}") from None


def _parts(source: str) -> tuple[str, str]:
    participant, _, path = source.partition(":")
    if not participant or not path:
        raise typer.BadParameter(f"{source!r} is not PARTICIPANT:FILE, such as bot-7:config/soul.md")
    return participant, path


def _present(session: Session, participant: str, path: str) -> bytes:
    """The file as it is on the host now. Raises Failure where the host does not share it, or has none."""
    found = session.call(session.fleet.ReadFile, pb.ReadFileRequest(id=participant, path=path))
    if found.absent:
        raise Failure(f"{participant} has no {path}; nothing was created")
    return found.content.encode() if found.HasField("content") else found.content_base64


def _selector(ids: Sequence[str], labels: Sequence[str], *, asking: bool) -> pb.ParticipantSelector:
    if ids and labels:
        raise typer.BadParameter("say either --participants or --labels")
    given = [*ids, *labels]
    if not given and asking:
        given = [_ask("Participants, ids or NAME=VALUE labels, separated by commas")]
    if not given:
        raise typer.BadParameter("say --participants or --labels: who takes part")
    words = [word.strip() for text in given for word in text.split(",") if word.strip()]
    if labels or (not ids and all("=" in word for word in words)):
        pairs = [word.partition("=") for word in words]
        if not all(name and sign for name, sign, _ in pairs):
            raise typer.BadParameter(f"{', '.join(labels)} is not NAME=VALUE, such as role=support")
        return pb.ParticipantSelector(labels={name: value for name, _, value in pairs})
    return pb.ParticipantSelector(ids=words)


def _metric(metric: str | None, goal: Way, *, asking: bool) -> pb.Metric:
    event = metric or (_ask("Conversion that is measured, such as resolved") if asking else "")
    if not event:
        raise typer.BadParameter("say --metric EVENT: the conversion that is measured")
    way = pb.GOAL_DECREASE if goal is Way.DECREASE else pb.GOAL_INCREASE
    return pb.Metric(event_name=event, goal=way)


# -- the edit


def _refuse_same(before: bytes, after: bytes, *, edited: bool) -> None:
    what = "the edited copy" if edited else "the content of --variant"
    if not after.strip():
        raise Failure(f"{what} is empty; nothing was created")
    if after == before:
        raise Failure(f"{what} is the same as control; nothing was created")


def _show_difference(session: Session, design: Design, before: bytes, after: bytes) -> None:
    onto = session.err if session.json else session.out
    names = (f"{design.target} (Control)", f"{design.target} ({design.variant_name})")
    try:
        print_difference(onto, before.decode(), after.decode(), names)
    except UnicodeDecodeError:
        show.say(onto, f"{len(before)} and {len(after)} bytes differ; they are not text")


# -- the start


def _go_on(session: Session, made: pb.Experiment, *, start: bool, yes: bool, asking: bool) -> None:
    """It is started where that was confirmed, and else told how to."""
    if not session.json:
        show.say(session.out, f"{made.key} is a draft; {planned(made)}")
    if asking:
        print_touched(session, touched_by(session, made, exists=True))
    if (start and yes) or (asking and typer.confirm("Start it now?", default=start, err=True)):
        request = pb.StartExperimentRequest(id=made.id, request_id=request_id())
        answer = session.call(session.experiments.StartExperiment, request)
        session.show(
            answer.experiment, f"{made.key} is {show.word(answer.experiment, 'status')}; {planned(made)}"
        )
    elif session.json:
        show.print_json(session.out, show.to_json(made))
    else:
        show.say(session.out, f"start it with: variantctl experiments start {made.key}")
