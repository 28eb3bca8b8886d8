"""What needs no server: statistics on numbers at hand, planning, and A/A on one's own past.

The functions are the control plane's own, so they need what it needs; nothing of them is imported before.
"""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from control_plane.cli import show
from control_plane.cli.connection import Failure
from control_plane.cli.contents import name_of, read_text
from control_plane.cli.session import Session
from control_plane.domain.fields import parse
from shared.errors import Invalid
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

if TYPE_CHECKING:
    from control_plane.domain.sizing import Sized


def analyze(
    session: Session,
    *,
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON; - is standard input.")],
) -> None:
    """Analyse numbers you already have: JSON in, JSON out, without a server.

    Variants as counts, participants or values; a list of p_values to adjust; or what `results --inputs` wrote, which
    is checked and gives the very answer the server gave. docs/statistics.md has an example of each.
    """
    _installed()
    from control_plane.domain.analyze import analyze as answered

    given = _json(file)
    try:
        found = answered(given)
    except Invalid as error:
        raise Failure(error.message, reason=error.reason, faults=error.faults) from None
    print(json.dumps(found), file=session.out.file)


def sample_size(
    session: Session,
    *,
    baseline: Annotated[float, typer.Option("--baseline", help="Rate of the control, 0 to 1.")],
    effect: Annotated[
        float, typer.Option("--effect", help="Relative change worth finding; 0.1 is 10 %.")
    ] = 0.1,
    power: Annotated[float, typer.Option("--power", help="Chance to find it.")] = 0.8,
    alpha: Annotated[float, typer.Option("--alpha", help="Level, divided among the variants.")] = 0.05,
    variants: Annotated[int, typer.Option("--variants", help="With the control.")] = 2,
    impressions: Annotated[
        float, typer.Option("--impressions", help="Impressions of each participant.")
    ] = 1.0,
    icc: Annotated[
        float,
        typer.Option("--icc", help="How alike a participant's outcomes are, 0 to 1; `results` shows it."),
    ] = 0.0,
    participants: Annotated[
        int | None, typer.Option("--participants", help="What can so many in each variant find?")
    ] = None,
) -> None:
    """How many participants each variant needs, or what those you have can find. Needs no server."""
    _installed()
    from control_plane.domain.sizing import SampleSize, size

    values = {
        "baseline": baseline,
        "minimumDetectableEffect": effect,
        "power": power,
        "alpha": alpha,
        "variants": variants,
        "impressionsEach": impressions,
        "icc": icc,
        "participants": participants,
    }
    try:
        found = size(parse(SampleSize, {name: value for name, value in values.items() if value is not None}))
    except Invalid as error:
        raise Failure(error.message, reason=error.reason, faults=error.faults) from None
    if session.json:
        show.print_json(
            session.out,
            {
                "participants": found.participants,
                "impressions": found.impressions,
                "designEffect": found.design_effect,
                "level": found.level,
                "detectable": found.detectable,
                "detectableAtMost": found.detectable_at_most,
            },
        )
        return
    for line in _sized(found):
        show.say(session.out, line)


def _sized(found: "Sized") -> Iterator[str]:
    """What it takes, in sentences."""
    asked = found.asked
    each, before = asked.impressions_each, 100 * asked.baseline
    yield (
        f"each variant needs {found.participants} participants with {each:g}"
        f" {'impression' if each == 1 else 'impressions'} each"
        f" ({found.impressions} in all, design effect {found.design_effect:.2f}) to find a change from"
        f" {before:g} to {before * (1 + asked.minimum_detectable_effect):g} % in {100 * asked.power:g} % of experiments"
    )
    if asked.participants is not None:
        said = "nothing" if found.detectable is None else f"{100 * found.detectable:.2f} points"
        most = "nothing" if found.detectable_at_most is None else f"{100 * found.detectable_at_most:.2f}"
        yield f"{asked.participants} in each variant find {said} and more; with any number of impressions {most}"


def aa(
    session: Session,
    *,
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Id or key, or a file of inputs.")],
    runs: Annotated[int, typer.Option("--runs", min=20, max=100_000, help="How many replays.")] = 200,
) -> None:
    """Replay A/A on your own past data: how often is something decided where nothing can differ?

    The sums stay as they were at each look; who was in which variant is drawn again. Compare the share with alpha.
    """
    _installed()
    from control_plane.domain.exported import exported
    from control_plane.domain.sham import replay

    given = _json(experiment) if Path(experiment).is_file() else _inputs(session, experiment)
    try:
        evidence = exported(given)
        with Progress(console=session.err, transient=True, disable=not session.err.is_terminal) as progress:
            task = progress.add_task("replaying", total=runs)
            found = replay(evidence, runs=runs, told=lambda run: progress.update(task, completed=run))
    except Invalid as error:
        raise Failure(error.message, reason=error.reason, faults=error.faults) from None
    if session.json:
        show.print_json(
            session.out,
            {
                "runs": found.runs,
                "looks": found.looks,
                "alpha": found.alpha,
                "decided": found.decided,
                "share": found.decided / found.runs,
                "shareInterval": {"low": found.share.low, "high": found.share.high},
                "peeking": found.peeking,
                "peekingShare": found.peeking / found.runs,
            },
        )
        return
    show.say(
        session.out,
        f"{found.decided} of {found.runs} replays over {found.looks} looks were decided:"
        f" {100 * found.decided / found.runs:.1f} % ({100 * found.share.low:.1f} … {100 * found.share.high:.1f} %),"
        f" at alpha {100 * found.alpha:g} %",
    )
    show.say(
        session.out,
        f"a Welch test at every look, stopped at the first p below alpha: {100 * found.peeking / found.runs:.1f} %",
    )


def _inputs(session: Session, experiment: str) -> Any:
    request = pb.GetResultsRequest(id=experiment, include="inputs")
    return json.loads(session.call(session.results.GetResults, request).inputs)


def _json(file: str) -> Any:
    """What a file or standard input holds, - being standard input. Raises Failure where that is not one JSON value."""
    name, text = name_of(file), read_text(file)
    if not text.strip():
        raise Failure(f"{name} is empty")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError of its own
        raise Failure(f"{name} is not JSON: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; a name that is there twice would drop the first in silence."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} is there twice in one object")
        found[name] = value
    return found


def _installed() -> None:
    """Raises Failure where what statistics need is not there."""
    if find_spec("scipy") is None:
        raise Failure("statistics need the extra `control-plane`: pip install 'variantd[control-plane]'")
