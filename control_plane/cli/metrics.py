"""Saved metrics: what several experiments measure, said once."""

import enum
from typing import Annotated, Any

import typer

from control_plane.cli import show
from control_plane.cli.create import Way
from control_plane.cli.session import Session, request_id
from shared.pb.variantd.operator.v1 import operator_pb2 as pb


class Kind(enum.StrEnum):
    """What is measured."""

    PROPORTION = "proportion"
    MEAN = "mean"
    COUNT = "count"
    RATIO = "ratio"


class Of(enum.StrEnum):
    """What a proportion is a share of."""

    IMPRESSIONS = "impressions"
    SUBJECTS = "subjects"
    PARTICIPANTS = "participants"


class Role(enum.StrEnum):
    """Where it usually stands."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    GUARDRAIL = "guardrail"


Key = Annotated[str, typer.Argument(metavar="METRIC", help="Its key or id.")]
Event = typer.Option("--event", help="The conversion that is counted.")
OfKind = Annotated[Kind | None, typer.Option("--kind", help="What is measured of it.")]
OfWhat = Annotated[Of | None, typer.Option("--of", help="What a proportion is a share of.")]
Goal = Annotated[Way | None, typer.Option("--goal", help="Which way it should move.")]
OfRole = Annotated[Role | None, typer.Option("--role", help="Where it usually stands.")]
Denominator = Annotated[
    str | None, typer.Option("--denominator", metavar="EVENT", help="What a ratio divides by.")
]
Window = Annotated[
    str | None,
    typer.Option("--window", metavar="DURATION", help="How long after an impression it counts, such as P7D."),
]
Margin = Annotated[
    float | None, typer.Option("--margin", help="By how much a guardrail may get worse: 0.05 is 5 %.")
]
Effect = Annotated[
    float | None, typer.Option("--minimum-effect", help="The smallest change worth finding: 0.1 is 10 %.")
]


def list_metrics(
    session: Session, *, limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 100
) -> None:
    """Saved metrics by key, with the drafts that name each."""
    found = list(session.pages(session.metrics.ListMetrics, pb.ListMetricsRequest(), "metrics", limit=limit))
    if session.json:
        show.print_json(session.out, show.page(found))
        return
    show.print_table(
        session.out,
        ("metric", "name", "event", "kind", "goal", "drafts"),
        (
            (m.key, m.name, m.event_name, m.kind, show.word(m, "goal"), ", ".join(m.experiments))
            for m in found
        ),
        empty="there is no saved metric",
    )


def get(session: Session, metric: Key) -> None:
    """One saved metric."""
    found = session.call(session.metrics.GetMetric, pb.GetMetricRequest(id=metric))
    session.show(found, _said(found))


def create(
    session: Session,
    *,
    name: Annotated[str, typer.Option("--name", help="What people call it.")],
    event: Annotated[str, Event],
    key: Annotated[str | None, typer.Option("--key", help="Default: made from the name.")] = None,
    kind: OfKind = None,
    of: OfWhat = None,
    goal: Goal = None,
    role: OfRole = None,
    denominator: Denominator = None,
    window: Window = None,
    margin: Margin = None,
    minimum_effect: Effect = None,
) -> None:
    """Save a metric; a manifest names it as `primary: {key: KEY}`.

    Drafts follow its edits. At its start an experiment takes a copy.
    """
    request = pb.CreateMetricRequest(
        name=name,
        key=key,
        event_name=event,
        request_id=request_id(),
        **_fields(kind, of, goal, role, denominator, window, margin, minimum_effect),
    )
    made = session.call(session.metrics.CreateMetric, request)
    session.show(made, _said(made))


def update(
    session: Session,
    metric: Key,
    *,
    name: Annotated[str | None, typer.Option("--name", help="Its new name.")] = None,
    event: Annotated[str | None, Event] = None,
    kind: OfKind = None,
    of: OfWhat = None,
    goal: Goal = None,
    role: OfRole = None,
    denominator: Denominator = None,
    window: Window = None,
    margin: Margin = None,
    minimum_effect: Effect = None,
) -> None:
    """Change a saved metric, also in the drafts that name it; what has started keeps its copy."""
    request = pb.UpdateMetricRequest(
        id=metric,
        name=name,
        event_name=event,
        request_id=request_id(),
        **_fields(kind, of, goal, role, denominator, window, margin, minimum_effect),
    )
    changed = session.call(session.metrics.UpdateMetric, request)
    session.show(changed, _said(changed))


def delete(session: Session, metric: Key) -> None:
    """Remove a saved metric that no draft names."""
    session.call(session.metrics.DeleteMetric, pb.DeleteMetricRequest(id=metric, request_id=request_id()))
    if not session.json:
        show.say(session.out, f"{metric} is gone")


def _fields(
    kind: Kind | None,
    of: Of | None,
    goal: Way | None,
    role: Role | None,
    denominator: str | None,
    window: str | None,
    margin: float | None,
    effect: float | None,
) -> dict[str, Any]:
    ways = {Way.INCREASE: pb.GOAL_INCREASE, Way.DECREASE: pb.GOAL_DECREASE}
    return {
        "kind": kind.value if kind else None,
        "of": of.value if of else None,
        "goal": ways[goal] if goal else None,
        "role": role.value if role else None,
        "denominator_event_name": denominator,
        "window": window,
        "margin": margin,
        "minimum_detectable_effect": effect,
    }


def _said(item: pb.SavedMetric) -> str:
    used = f"; named by {', '.join(item.experiments)}" if item.experiments else "; no draft names it"
    share = f" ({item.of})" if item.of else ""
    return f"{item.key}: {item.kind} of {item.event_name}{share}, to {show.word(item, 'goal')}{used}"
