"""Experiments and the steps of their life."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli import show
from control_plane.cli.comparison import holdout_key
from control_plane.cli.fleet import Carrying, labels_of
from control_plane.cli.preview import planned
from control_plane.cli.session import Session, request_id
from control_plane.cli.written import manifest_of
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

Name = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Id or key.")]


class Status(enum.StrEnum):
    """Where an experiment is in its life."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    COMPLETED = "completed"


class Then(enum.StrEnum):
    """What completing does to the files."""

    KEEP = "keep"
    RESTORE = "restore"
    SHIP = "ship"


class AfterReset(enum.StrEnum):
    """What a reset does to the files."""

    KEEP = "keep"
    RESTORE = "restore"


class OnPause(enum.StrEnum):
    """What a pause does to the files."""

    HOLD = "hold"
    REVERT = "revert"


class Found(enum.StrEnum):
    """What an experiment found."""

    WON = "won"
    LOST = "lost"
    INCONCLUSIVE = "inconclusive"
    STOPPED_EARLY = "stopped_early"
    INVALID = "invalid"


class Output(enum.StrEnum):
    """How to print a resource."""

    JSON = "json"
    YAML = "yaml"


Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")]


def list_experiments(
    session: Session,
    *,
    status: Annotated[Status | None, typer.Option("--status", help="Only these.")] = None,
    kind: Annotated[str | None, typer.Option("--type", help="Only experiments of this type.")] = None,
    search: Annotated[str, typer.Option("--search", help="Part of id, key, name or description.")] = "",
    label: Carrying = None,
    archived: Annotated[
        bool, typer.Option("--archived", help="Those that are archived, not the others.")
    ] = False,
    limit: Limit = None,
) -> None:
    """Experiments, newest first."""
    request = pb.ListExperimentsRequest(type=kind, search=search, labels=labels_of(label), archived=archived)
    if status is not None:
        request.status = pb.ExperimentStatus.Value(f"EXPERIMENT_STATUS_{status.upper()}")
    found = list(session.pages(session.experiments.ListExperiments, request, "experiments", limit=limit))
    if session.json:
        show.print_json(session.out, show.page(found))
        return
    show.print_table(
        session.out,
        ("key", "name", "status", "target", "participants", "updated"),
        (
            (
                item.key,
                item.name,
                show.word(item, "status"),
                ", ".join(item.target_files),
                planned(item),
                show.moment(item, "updated_at"),
            )
            for item in found
        ),
        empty="there is no such experiment"
        if search or status or kind or label or archived
        else "there is no experiment yet",
    )


def get(
    session: Session,
    *,
    experiment: Name,
    output: Annotated[
        Output | None,
        typer.Option("--output", "-o", help="json: the whole resource; yaml: its manifest, for apply."),
    ] = None,
    contents: Annotated[
        Path | None,
        typer.Option(
            "--contents", metavar="DIR", help="With -o yaml: write contents into files below it, not inline."
        ),
    ] = None,
) -> None:
    """One experiment with its variants; as its manifest with -o yaml."""
    if contents is not None and (session.json or output is not Output.YAML):
        raise typer.BadParameter("--contents goes with -o yaml")
    found = session.experiment(experiment)
    if session.json or output is Output.JSON:
        show.print_json(session.out, show.to_json(found))
        return
    if output is Output.YAML:
        # Elsewhere a character that the locale lacks is shown as ?; a content has to stay what it is.
        ascii_only = session.out.encoding.lower() not in ("utf-8", "utf8")
        holdout = holdout_key(session, found.holdout_id) if found.holdout_id else None
        text = manifest_of(found, holdout=holdout, folder=contents, ascii_only=ascii_only)
        print(text, end="", file=session.out.file)
        return
    _describe(session, found)


def _describe(session: Session, found: pb.Experiment) -> None:
    primary = found.metrics.primary
    ended = show.word(found, "conclusion") if found.HasField("conclusion") else None
    winner = {variant.id: variant.key for variant in found.variants}.get(found.winner_variant_id)
    facts: dict[str, object] = {
        "key": found.key,
        "name": found.name,
        "id": found.id,
        "type": found.type if found.type != "ab" else None,
        "status": show.word(found, "status"),
        "description": found.description,
        "target": ", ".join(found.target_files),
        "metric": f"{primary.event_name} ({show.word(primary, 'goal')})" if primary.event_name else None,
        "blocks": _blocks(found),
        "participants": planned(found),
        "created": f"{show.moment(found, 'created_at')} by {found.created_by}",
        "started": show.moment(found, "started_at"),
        "completed": show.moment(found, "completed_at"),
        "conclusion": ended,
        "comment": found.conclusion_comment,
        "winner": winner,
    }
    show.print_facts(session.out, {name: value for name, value in facts.items() if value})
    print(file=session.out.file)
    personal = found.type == "personalization"
    share = "for" if personal else "weight"
    show.print_table(
        session.out,
        ("variant", "name", "control", share, "file", "bytes", "digest"),
        (
            (
                variant.key,
                variant.name,
                "control" if variant.is_control else "",
                _rules(variant) if personal else variant.weight,
                file.path if file else None,
                file.size if file else None,
                file.digest[:19] + "…" if file else None,
            )
            for variant in found.variants
            for file in (variant.files or [None])
        ),
        empty="it has no variants yet",
        right=("weight", "bytes"),
    )


def _blocks(found: pb.Experiment) -> str | None:
    """The blocks of a switchback in words."""
    if not found.HasField("switchback"):
        return None
    settings = found.switchback
    return f"{settings.blocks} of {settings.block_duration}, washout {settings.washout}"


def _rules(variant: pb.Variant) -> str:
    """For whom a variant is, in words."""
    rules = [f"{rule.key} {rule.operator} {rule.value}".rstrip() for rule in variant.targeting_rules.labels]
    return " and ".join(rules) or "everybody"


# -- life


def start(
    session: Session,
    *,
    experiment: Name,
    normalize: Annotated[
        bool,
        typer.Option("--normalize", help="Make weights that do not sum to 100 do so, in their proportion."),
    ] = False,
) -> None:
    """Fix the assignments and put every participant's variant onto its file."""
    request = pb.StartExperimentRequest(id=experiment, normalize=normalize, request_id=request_id())
    _moved(session, session.call(session.experiments.StartExperiment, request))


def pause(
    session: Session,
    *,
    experiment: Name,
    on_pause: Annotated[
        OnPause,
        typer.Option("--on-pause", help="hold leaves the files, revert puts every baseline back meanwhile."),
    ] = OnPause.HOLD,
) -> None:
    """Let nobody further in for a while."""
    request = pb.PauseExperimentRequest(id=experiment, on_pause=on_pause.value, request_id=request_id())
    _moved(session, session.call(session.experiments.PauseExperiment, request))


def resume(session: Session, *, experiment: Name) -> None:
    """Let participants in again; every participant keeps its variant."""
    request = pb.ResumeExperimentRequest(id=experiment, request_id=request_id())
    _moved(session, session.call(session.experiments.ResumeExperiment, request))


def stop(session: Session, *, experiment: Name) -> None:
    """Let nobody further in for good; files stay and are measured."""
    request = pb.StopExperimentRequest(id=experiment, request_id=request_id())
    _moved(session, session.call(session.experiments.StopExperiment, request))


def complete(
    session: Session,
    *,
    experiment: Name,
    then: Annotated[
        Then,
        typer.Option(
            "--then",
            help="keep leaves the files, restore puts every baseline back, ship writes the winner everywhere.",
        ),
    ] = Then.KEEP,
    winner: Annotated[str | None, typer.Option("--winner", help="Id or key of the variant that won.")] = None,
    conclusion: Annotated[Found | None, typer.Option("--conclusion", help="What it found.")] = None,
    comment: Annotated[str | None, typer.Option("--comment", help="Why.")] = None,
) -> None:
    """End an experiment: its results are frozen, its files kept, restored, or the winner's."""
    request = pb.CompleteExperimentRequest(
        id=experiment,
        winner_variant_id=winner,
        conclusion=pb.Conclusion.Value(f"CONCLUSION_{conclusion.upper()}") if conclusion else None,
        conclusion_comment=comment,
        then=then.value,
        request_id=request_id(),
    )
    _moved(session, session.call(session.experiments.CompleteExperiment, request))


def ship(
    session: Session,
    *,
    experiment: Name,
    variant: Annotated[
        str | None,
        typer.Option("--variant", "-v", help="Id or key of the variant; default: the winner on record."),
    ] = None,
    conclusion: Annotated[Found | None, typer.Option("--conclusion", help="What it found.")] = None,
    comment: Annotated[str | None, typer.Option("--comment", help="Why.")] = None,
) -> None:
    """End an experiment with one variant on every participant."""
    request = pb.ShipExperimentRequest(
        id=experiment,
        variant_id=variant,
        conclusion=pb.Conclusion.Value(f"CONCLUSION_{conclusion.upper()}") if conclusion else None,
        conclusion_comment=comment,
        request_id=request_id(),
    )
    _moved(session, session.call(session.experiments.ShipExperiment, request))


def reset(
    session: Session,
    *,
    experiment: Name,
    then: Annotated[
        AfterReset, typer.Option("--then", help="keep leaves the files, restore puts every baseline back.")
    ] = AfterReset.KEEP,
) -> None:
    """Make a draft of an experiment again; what it measured is kept and analysed no more."""
    request = pb.ResetExperimentRequest(id=experiment, then=then.value, request_id=request_id())
    _moved(session, session.call(session.experiments.ResetExperiment, request))


def archive(session: Session, *, experiment: Name) -> None:
    """Take a draft or a completed experiment out of the lists."""
    request = pb.ArchiveExperimentRequest(id=experiment, request_id=request_id())
    answer = session.call(session.experiments.ArchiveExperiment, request)
    session.show(answer, f"{answer.experiment.key} is archived")


def unarchive(session: Session, *, experiment: Name) -> None:
    """Put an archived experiment into the lists again."""
    request = pb.UnarchiveExperimentRequest(id=experiment, request_id=request_id())
    answer = session.call(session.experiments.UnarchiveExperiment, request)
    session.show(answer, f"{answer.experiment.key} is in the lists again")


def duplicate(
    session: Session,
    *,
    experiment: Name,
    name: Annotated[str | None, typer.Option("--name", help="Name of the copy.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="Key of the copy; default: from its name.")] = None,
) -> None:
    """Make a new draft with the same design."""
    request = pb.DuplicateExperimentRequest(id=experiment, name=name, key=key, request_id=request_id())
    made = session.call(session.experiments.DuplicateExperiment, request)
    for warning in made.warnings:
        show.say(session.err, f"variantctl: warning: {warning.message} ({warning.code})")
    session.show(made, f"{made.key} is a draft; {planned(made)}")


def _moved(session: Session, answer: pb.LifecycleResponse) -> None:
    found = answer.experiment
    for warning in found.warnings:
        show.say(session.err, f"variantctl: warning: {warning.message} ({warning.code})")
    session.show(answer, f"{found.key} is {show.word(found, 'status')}; {planned(found)}")


def restore_all(
    session: Session,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every experiment that holds files.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Put every file of the project back: completes every started experiment with restore."""
    if not everything:
        raise typer.BadParameter("say --all; `experiments complete KEY --then restore` ends a single one")
    found = [
        item
        for status in (
            pb.EXPERIMENT_STATUS_RUNNING,
            pb.EXPERIMENT_STATUS_PAUSED,
            pb.EXPERIMENT_STATUS_STOPPED,
        )
        for item in session.pages(
            session.experiments.ListExperiments, pb.ListExperimentsRequest(status=status), "experiments"
        )
    ]
    keys = ", ".join(item.key for item in found) or "none"
    if found and not yes:
        typer.confirm(f"This ends {keys} and restores every file. Go on?", abort=True, err=True)
    for item in found:
        request = pb.CompleteExperimentRequest(id=item.id, then="restore", request_id=request_id())
        session.call(session.experiments.CompleteExperiment, request)
    if session.json:
        show.print_json(session.out, {"completed": [item.key for item in found]})
    else:
        show.say(session.out, f"completed with restore: {keys}")


def delete(session: Session, *, experiment: Name) -> None:
    """Remove a draft, or archive a completed experiment."""
    request = pb.DeleteExperimentRequest(id=experiment, request_id=request_id())
    session.call(session.experiments.DeleteExperiment, request)
    if not session.json:
        show.say(session.out, f"{experiment} is gone from the lists")


def show_assignments(session: Session, *, experiment: Name, limit: Limit = None) -> None:
    """Who has which variant; of a draft, who would get which."""
    request = pb.ListAssignmentsRequest(id=experiment)
    found = list(session.pages(session.assignments.ListAssignments, request, "assignments", limit=limit))
    if session.json:
        show.print_json(session.out, show.page(found))
        return
    shown = session.experiment(experiment)
    keys = {variant.id: variant.key for variant in shown.variants}
    in_turn = shown.HasField("switchback")
    show.print_table(
        session.out,
        ("participant", "variant", "method", "block", "position", "from", *(("until",) if in_turn else ())),
        (
            (
                item.participant_id,
                keys.get(item.variant_id, item.variant_id),
                "planned" if item.planned else item.method,
                item.block,
                item.position,
                show.moment(item, "from_at"),
                *((show.moment(item, "to_at"),) if in_turn else ()),
            )
            for item in found
        ),
        empty=f"nobody takes part in {experiment} yet",
        right=("position",),
    )
