"""`variantctl apply`: an experiment becomes what its manifest says, or is what it says already.

Hides in which calls a difference is made. Nothing is sent before the whole plan is known to be allowed.
"""

import re
from dataclasses import replace
from typing import Annotated, Any

import typer
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from control_plane.cli import show, specs
from control_plane.cli.comparison import Pair, Plan, plan_of, refuse_locked
from control_plane.cli.manifest import Manifest, Metric, load
from control_plane.cli.preview import Touched, planned, print_touched, touched_by
from control_plane.cli.session import Session, request_id
from shared.pb.variantd.operator.v1 import operator_pb2 as pb


def apply(
    session: Session,
    *,
    file: Annotated[str, typer.Option("--file", "-f", help="The manifest; - is standard input.")],
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the plan, and what a start would touch; change nothing."),
    ] = False,
) -> None:
    """Make an experiment what a manifest says.

    Creates the experiment of that key, or changes what differs, or does nothing; applying twice is the same
    as once. What the manifest leaves out has its default, the project's where it has one. A draft may change
    in everything, a started experiment only in its name, description, labels and metadata (and its
    variants'): anything else is exit code 4. `contentFile` is relative to the manifest.
    """
    manifest = load(file)
    plan = plan_of(session, manifest)
    refuse_locked(plan)
    if not session.json:
        _show_plan(session, plan)
    touched = None
    if dry_run:
        outcome, touched = _tried(session, plan)
    elif plan.present is None:
        outcome = create(session, manifest)
    else:
        outcome = plan.present if plan.action == "none" else carry_out(session, plan)
    if session.json:
        answer = {
            "action": plan.action,
            "dryRun": dry_run,
            "changes": plan.to_json(),
            "experiment": show.to_json(outcome),
            "touches": touched.to_json() if touched else None,
        }
        show.print_json(session.out, answer)
    elif dry_run:
        if touched is not None:
            print_touched(session, touched)
        show.say(session.out, "nothing was changed: --dry-run")
    elif plan.action != "none":
        show.say(session.out, f"{outcome.key} is {show.word(outcome, 'status')}; {planned(outcome)}")


def _tried(session: Session, plan: Plan) -> tuple[pb.Experiment, Touched | None]:
    """The experiment as it is, or would be made, and what its start would touch; None where it has started."""
    if plan.present is None:
        draft = create(session, plan.manifest, validate_only=True)
        return draft, touched_by(session, draft, exists=False)
    if plan.present.status != pb.EXPERIMENT_STATUS_DRAFT:
        return plan.present, None
    if plan.action == "none":
        return plan.present, touched_by(session, plan.present, exists=True)
    # A draft cannot be changed on trial; another one of the same design, under a key that is free, can be made so.
    changed = create(session, replace(plan.manifest, key=""), validate_only=True)
    return plan.present, touched_by(session, changed, exists=False)


def _show_plan(session: Session, plan: Plan) -> None:
    words = {"create": "will be created", "update": "will be changed", "none": "nothing to do"}
    show.say(session.out, f"{plan.manifest.key}: {words[plan.action]}")
    for change in plan.changes:
        show.say(session.out, change.line())


# -- carrying it out


def create(session: Session, manifest: Manifest, *, validate_only: bool = False) -> pb.Experiment:
    """The draft the manifest makes, or with `validate_only` would make; its warnings are told."""
    request = _create(manifest)
    request.validate_only = validate_only
    answer = session.call(session.experiments.CreateExperiment, request)
    _warn(session, answer)
    return answer


def carry_out(session: Session, plan: Plan) -> pb.Experiment:
    """The experiment as the manifest says. A call that fails leaves the earlier ones done: apply again."""
    assert plan.present is not None
    experiment_id = plan.present.id
    own = {change.name for change in plan.changes if change.variant is None}
    at_last = own & {"analysis"}  # it may exclude variants that are to be added
    if own - at_last:
        _change_own(session, plan, own - at_last)
        if "factors" in own:  # variants may have come and gone with them
            plan = plan_of(session, plan.manifest)
    # Removals first: a key that is used again must be free.
    for pair in sorted(plan.pairs, key=lambda pair: pair.wanted is not None):
        fields = {change.name.partition("[")[0] for change in plan.changes if change.variant is pair}
        if fields:
            _change_variant(session, experiment_id, pair, fields)
    if at_last:
        _change_own(session, plan, at_last)
    return session.experiment(experiment_id)


def _change_own(session: Session, plan: Plan, fields: set[str]) -> None:
    assert plan.present is not None
    request = _update(plan.manifest, plan.present, fields)
    _warn(session, session.call(session.experiments.UpdateExperiment, request))


def _warn(session: Session, experiment: pb.Experiment) -> None:
    for warning in experiment.warnings:
        show.say(session.err, f"variantctl: warning: {warning.message} ({warning.code})")


def _create(manifest: Manifest) -> pb.CreateExperimentRequest:
    request = pb.CreateExperimentRequest(
        name=manifest.name,
        key=manifest.key or None,
        description=manifest.description,
        type=manifest.type,
        target_file=manifest.target_file,
        factors=specs.factors(manifest),
        switchback=specs.switchback(manifest),
        variants=[
            pb.VariantSpec(
                key=item.key,
                name=item.name,
                description=item.description,
                is_control=item.is_control,
                weight=item.weight,
                files=specs.files(item),
                targeting_rules=specs.rules(item) if item.rules else None,
                levels=item.levels,
                config=_struct(item.config) if item.config else None,
                metadata=_struct(item.metadata) if item.metadata else None,
            )
            for item in manifest.variants
        ],
        participants=_selector(manifest),
        metrics=_metrics(manifest),
        exposure_criteria=specs.exposure(manifest),
        analysis=specs.analysis(manifest),
        labels=manifest.labels,
        metadata=_struct(manifest.metadata) if manifest.metadata else None,
        request_id=request_id(),
    )
    return ParseDict(manifest.intake, request)


def _update(manifest: Manifest, present: pb.Experiment, fields: set[str]) -> pb.UpdateExperimentRequest:
    request = pb.UpdateExperimentRequest(
        id=present.id,
        name=manifest.name if "name" in fields else None,
        description=manifest.description if "description" in fields else None,
        factors=specs.factors(manifest) if "factors" in fields else None,
        switchback=specs.switchback(manifest) if "switchback" in fields else None,
        target_file=manifest.target_file if "targetFile" in fields else None,
        participants=_selector(manifest) if "participants" in fields else None,
        metrics=_metrics(manifest) if "metrics" in fields else None,
        exposure_criteria=specs.exposure(manifest) if "exposureCriteria" in fields else None,
        analysis=specs.analysis(manifest) if "analysis" in fields else None,
        labels=manifest.labels if "labels" in fields else None,
        metadata=_struct(manifest.metadata) if "metadata" in fields and manifest.metadata else None,
        update_mask=_mask(fields),
        request_id=request_id(),
    )
    return ParseDict({name: value for name, value in manifest.intake.items() if name in fields}, request)


def _mask(fields: set[str]) -> FieldMask:
    """What an update names, so that it also says what is to be empty."""
    return FieldMask(paths=[re.sub("[A-Z]", lambda at: "_" + at[0].lower(), name) for name in sorted(fields)])


def _change_variant(session: Session, experiment_id: str, pair: Pair, fields: set[str]) -> None:
    wanted, present = pair.wanted, pair.present
    if wanted is None:
        assert present is not None
        gone = pb.DeleteVariantRequest(id=experiment_id, variant_id=present.id, request_id=request_id())
        session.call(session.experiments.DeleteVariant, gone)
        return
    if present is None:
        added = pb.AddVariantRequest(
            id=experiment_id,
            key=wanted.key,
            name=wanted.name,
            description=wanted.description,
            is_control=wanted.is_control,
            weight=wanted.weight,
            files=specs.files(wanted),
            targeting_rules=specs.rules(wanted) if wanted.rules else None,
            levels=wanted.levels,
            config=_struct(wanted.config) if wanted.config else None,
            metadata=_struct(wanted.metadata) if wanted.metadata else None,
            request_id=request_id(),
        )
        session.call(session.experiments.AddVariant, added)
        return
    changed = pb.UpdateVariantRequest(
        id=experiment_id,
        variant_id=present.id,
        name=wanted.name if "name" in fields else None,
        description=wanted.description if "description" in fields else None,
        is_control=wanted.is_control if "isControl" in fields else None,
        weight=wanted.weight if "weight" in fields else None,
        files=specs.files(wanted) if "files" in fields else None,
        targeting_rules=specs.rules(wanted) if "targetingRules" in fields and wanted.rules else None,
        levels=wanted.levels if "levels" in fields else None,
        config=_struct(wanted.config) if "config" in fields and wanted.config else None,
        metadata=_struct(wanted.metadata) if "metadata" in fields and wanted.metadata else None,
        update_mask=_mask(fields),
        request_id=request_id(),
    )
    session.call(session.experiments.UpdateVariant, changed)


def _selector(manifest: Manifest) -> pb.ParticipantSelector:
    return pb.ParticipantSelector(ids=manifest.participant_ids, labels=manifest.participant_labels)


def _metrics(manifest: Manifest) -> pb.Metrics:
    return pb.Metrics(
        primary=_goal(manifest.primary) if manifest.primary else None,
        secondary=[_goal(item) for item in manifest.secondary],
        guardrail=[_goal(item) for item in manifest.guardrail],
    )


def _goal(metric: Metric) -> pb.Metric:
    fields = {re.sub("[A-Z]", lambda at: "_" + at[0].lower(), k): v for k, v in metric.fields.items()}
    if "goal" in fields:
        fields["goal"] = pb.GOAL_DECREASE if fields["goal"] == "decrease" else pb.GOAL_INCREASE
    return pb.Metric(**fields)


def _struct(values: dict[str, Any]) -> Struct:
    return ParseDict(values, Struct())
