"""Results on a screen: the verdict and why, counts, rates with their intervals as bars, and why a number is absent."""

from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from control_plane.cli import show
from control_plane.cli.session import Session
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

BAR_CELLS = 25

_MEANING = {
    "assigned": "everything an assigned participant did, whatever was on disk",
    "delivered": "only while the assigned variant was on disk",
}
_REASONS = {
    "NO_IMPRESSIONS": "no impressions yet",
    "TOO_FEW_PARTICIPANTS": "fewer than two participants with impressions",
    "TOO_FEW_DATA": "fewer than ten conversions (more by unequal variants), or five participants in a variant",
    "NO_VARIATION": "its participants do not differ",
    "ONE_IMPRESSION_EACH": "every participant has one impression",
    "CONVERSIONS_EXCEED_IMPRESSIONS": "more conversions than impressions",
    "NO_CONTROL": "there is no control to compare with",
    "NO_BASELINE": "control cannot be told from 0",
    "NO_LOOK_YET": "the first look is taken once the first UTC day is closed",
    "NO_ALPHA_YET": "too early in the horizon for any level to be spent",
    "ALPHA_SPENT": "earlier phases have spent all of alpha; a reset begins anew",
    "OUT_OF_RANGE": "too large or too small to be told",
    "NOT_OF_THIS_KIND": "told of proportions only",
    "ALTERNATING": "everybody had every variant",
    "NO_CYCLE_YET": "no cycle of blocks is over",
    "TOO_FEW_CYCLES": "fewer than two cycles of a participant are over",
    "NO_CONTRAST": "everybody had the same variant at the same time, as the calendar did",
}
_QUIET = {"IS_CONTROL", "IS_A_PROPORTION", "NO_LOOK_YET", "OF_ONE_PHASE", "ALTERNATING"}
"""Reasons that go without saying: the headline has them."""
_UNCOMPARED = {
    "NOT_RANDOMIZED": "rules chose the variants, so they are not compared: who has which differs in more than it",
}


def print_results(session: Session, found: pb.Results, *, beside: pb.Results | None = None) -> None:
    """Everything that is known, for a person; `beside`: the other population."""
    _headline(session, found)
    for line in verdict_lines(found):
        show.say(session.out, line)
    _counts(session, found)
    _bars(session, found)
    further = (*factors(found), *secondary(found), *guardrails(found), *left_out(found))
    for line in (*differences(found), *carried_over(found), *pooled(found), *further):
        show.say(session.out, line)
    for line in absent(found):
        show.say(session.out, line)
    if beside is not None:
        _beside(session, beside)
    for line in not_counted(found):
        show.say(session.out, line)


def print_groups(session: Session, found: pb.Results) -> None:
    """Counts by the value of a label."""
    show.print_table(
        session.out,
        (found.group_by, "variant", "participants", "impressions", "conversions", "rate"),
        (
            (
                (group.value if group.HasField("value") else "(none)") if not place else "",
                item.key,
                item.participants,
                item.impressions,
                item.conversions,
                percent(item.conversion_rate) if item.HasField("conversion_rate") else None,
            )
            for group in found.groups
            for place, item in enumerate(group.variants)
        ),
        empty="nobody is assigned",
        right=("participants", "impressions", "conversions", "rate"),
    )


def _headline(session: Session, found: pb.Results) -> None:
    of = f" of {found.metric.of}" if found.metric.of else ""
    metric = f"{found.metric.event_name}{of} ({show.word(found.metric, 'goal')})"
    past = f"; as of {found.as_of}" if found.HasField("as_of") else ""
    show.say(session.out, f"{found.key} is {show.word(found, 'status')}; {metric}; {population(found)}{past}")


def population(found: pb.Results) -> str:
    """Whose events count, and what that means."""
    return f"{found.population}: {_MEANING.get(found.population, '')}".rstrip(": ")


def _counts(session: Session, found: pb.Results) -> None:
    of = found.metric.of if found.metric.of != "impressions" else ""
    comes_to = "rate" if _rate(found) else "value"
    show.print_table(
        session.out,
        (
            "variant",
            "exposed",
            "impressions",
            "conversions",
            *([f"{of} converted"] if of else []),
            comes_to,
            "P(best)",
        ),
        (
            (
                _name(item),
                f"{item.participants_exposed} of {item.participants}",
                item.impressions,
                item.conversions,
                *([f"{item.converted_units} of {item.units}"] if of else []),
                outcome(found, item),
                chance(item.probability_to_be_best) if item.HasField("probability_to_be_best") else None,
            )
            for item in found.variants
        ),
        empty="there are no variants yet",
        right=("exposed", "impressions", "conversions", f"{of} converted", comes_to, "P(best)"),
    )


def _bars(session: Session, found: pb.Results) -> None:
    scale = scale_of(found.variants)
    if scale is None:
        return
    show.print_table(
        session.out,
        (f"{level(found)} credible", _axis(found, scale), ""),
        (
            (_name(item), Text(bar(item, scale)), _interval(found, item.credible_interval))
            for item in found.variants
            if item.HasField("credible_interval")
        ),
        empty="",
    )


def _name(item: pb.VariantResult) -> str:
    return f"{item.name} (control)" if item.is_control else item.name


def level(found: pb.Results) -> str:
    """How sure every interval is."""
    return f"{100 * (1 - found.alpha):g} %"


def verdict_lines(found: pb.Results) -> Iterator[str]:
    """What it says, in words: the status, the facts behind it, and when that may change."""
    if not found.HasField("verdict"):
        return
    said = found.verdict
    name = f" {said.variant}" if said.HasField("variant") else ""
    facts = "; ".join(reason.message for reason in said.reasons)
    yield (
        f"verdict: {said.status.replace('_', ' ')}{name}: {facts}"
        if facts
        else f"verdict: {said.status}{name}"
    )
    if said.HasField("decidable_at") and said.status in ("undecided", "insufficient_data"):
        yield f"next look: {show.moment(said, 'decidable_at')}"


def why(found: pb.Results) -> Iterator[str]:
    """Every fact behind the verdict, with its formula and what went into it, and what is no part of it."""
    for name, meaning in sorted(found.explanations.items()):
        yield f"{name}: {meaning}"
    method = found.method
    if method.HasField("switchback"):
        yield within_cycles(method.switchback)
    if not found.HasField("verdict"):
        yield "there is no verdict: it is given on the primary metric, over everybody who was assigned"
        return
    yield (
        f"decided by: {method.decision}; alpha {found.alpha:g} over {method.horizon_days:g} days,"
        f" {method.correction} over the variants; power {method.power:g} for a change of"
        f" {100 * method.minimum_detectable_effect:g} %; variance {method.variance}"
    )
    if method.HasField("history_days"):
        yield (
            f"taken out: what the {method.history_days} days before the first start predict;"
            f" {method.without_history} have no history and count as their stratum"
        )
    if method.HasField("winsorize_at"):
        yield f"values above the {method.winsorize_at:g}th percentile count as much as it"
    for reason in found.verdict.reasons:
        yield f"{reason.code}: {reason.message}"
        if reason.formula:
            yield f"  {reason.formula}"
        for key, value in sorted(show.to_json(reason).get("inputs", {}).items()):
            yield f"  {key} = {spelled(value)}"
    if found.HasField("srm"):
        kept = "" if not found.srm.HasField("replays") else (
            "; the draw, repeated, gives the record" if found.srm.replays else "; the draw, repeated, differs"
        )  # fmt: skip
        yield f"comparable: p = {found.srm.with_data_p_value:.3f} that having data is no matter of the variant{kept}"
        for lost, p in sorted(found.srm.loss_p_values.items()):
            if lost != "without_data":
                yield f"comparable: p = {p:.3f} that it is no matter of the variant who is {lost.replace('_', ' ')}"
    for look in found.looks:
        for item in look.comparisons:
            limit = f"{item.critical:.3f}" if item.HasField("critical") else "none yet"
            seen = f"{item.statistic:.3f}" if item.HasField("statistic") else "none"
            crossed = " crossed" if item.crossed else ""
            yield f"look {look.number}, day {look.day:.2f}: {item.variant} {seen}, critical {limit}{crossed}"


def spelled(value: object) -> str:
    """What went into a formula, as people read it."""
    if isinstance(value, Mapping):
        if set(value) == {"low", "high"}:
            return f"{spelled(value['low'])} … {spelled(value['high'])}"
        # Whose it is comes first; a Struct keeps no order.
        named = sorted(value.items(), key=lambda item: (not isinstance(item[1], str), item[0]))
        return ", ".join(f"{name} {spelled(own)}" for name, own in named)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(map(spelled, value))
    if value is None:
        return "not known"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def differences(found: pb.Results) -> Iterator[str]:
    """Each variant against control, in a sentence with as much as is known."""
    control = next((item.name for item in found.variants if item.is_control), "control")
    for item in found.variants:
        if item.is_control or not item.HasField("difference"):
            continue
        text = f"{item.name} against {control}: {_change(found, item.difference)}"
        if item.HasField("lift"):
            text += f", {100 * item.lift:+.1f} %"
        if item.HasField("difference_interval"):
            text += f" ({level(found)}: {_span(found, item.difference_interval)})"
        if item.HasField("p_value_adjusted"):
            p = item.p_value_adjusted
            text += ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"
        if not item.HasField("difference_interval") and item.HasField("sequential"):
            text += f" (at any moment: {_span(found, item.sequential.difference_interval)})"
        yield text


def pooled(found: pb.Results) -> Iterator[str]:
    """What each of the phases has to do with it, where they are pooled."""
    if found.phases:
        yield "phases pooled: no rates and no verdict, for their variants may be split otherwise in each"
    for phase in found.phases:
        for item in phase.variants:
            own = _change(found, item.difference) if item.HasField("difference") else "nothing to say"
            yield f"phase {phase.number}, {100 * item.share:.0f} % of the weight: {item.variant} {own}"


def within_cycles(method: pb.SwitchbackMethod) -> str:
    """What a switchback compares with what."""
    return (
        f"compared within cycles: {method.participants} participants with themselves, {method.cycles} cycles of blocks"
        f" of {method.block_days:g} days without the first {method.washout_seconds:g} s; {method.witnesses_over} of"
        f" {method.witnesses} differences are there, the redraws flip their signs by {method.flips};"
        f" {'the mean of each block of time was subtracted' if method.calendar_means else 'nothing was subtracted'}"
    )


def carried_over(found: pb.Results) -> Iterator[str]:
    """The effect by the variant in the block before: alike, unless that one lasts."""
    for item in found.carry_over:
        if item.HasField("difference"):
            yield (
                f"{item.variant} after {item.previous}: {_change(found, item.difference)}"
                f" ({item.blocks} blocks, not tested)"
            )


CORRECTIONS = {"holm": "Holm", "benjamini_hochberg": "Benjamini-Hochberg"}


def secondary(found: pb.Results) -> Iterator[str]:
    """Each variant on each secondary metric, with the p that is corrected for their number."""
    over = f"{CORRECTIONS.get(found.secondary.correction, '')} over {len(found.secondary.metrics)} metrics"
    for metric in found.secondary.metrics:
        for item in metric.variants:
            if not item.HasField("difference"):
                continue
            own = (
                f"{100 * item.difference:+.1f} points"
                if metric.kind == "proportion"
                else f"{item.difference:+.4g}"
            )
            p = f", p = {item.p_value_corrected:.3g} ({over})" if item.HasField("p_value_corrected") else ""
            yield f"secondary {metric.name or metric.metric}: {item.variant} {own}{p}"


def factors(found: pb.Results) -> Iterator[str]:
    """What each level does by itself, and where two do more or less than their sum."""
    for item in found.main_effects:
        if not item.HasField("difference"):
            continue
        text = f"factor {item.factor}: {item.level} against {item.baseline} {_change(found, item.difference)}"
        if item.HasField("interval"):
            text += f" (at any moment, {level(found)}: {_span(found, item.interval)})"
        if item.HasField("p_value_adjusted"):
            text += f", p = {item.p_value_adjusted:.3g}"
        yield text + (", as far as effects add up" if item.additive else "")
    for both in found.interactions:
        pair = " with ".join(
            f"{factor} {name}" for factor, name in zip(both.factors, both.levels, strict=True)
        )
        error = _change(found, both.standard_error).lstrip("+")
        yield f"together {pair}: {_change(found, both.difference)} beyond the sum of both (error {error}; not decided)"


def guardrails(found: pb.Results) -> Iterator[str]:
    """How each variant stands on each guardrail."""
    for item in found.guardrails:
        yield f"guardrail {item.metric}: {item.variant} {item.state.replace('_', ' ')}"


def left_out(found: pb.Results) -> Iterator[str]:
    """Who does not count as delivered, and whether the variants lost alike."""
    for item in found.exclusions:
        yield (
            f"left out of delivered: {item.participants} of {item.variant}, {item.reason.replace('_', ' ')}"
            f" ({item.impressions} impressions)"
        )
    if found.HasField("srm") and found.srm.detected:
        yield "the variants did not lose alike, so they cannot be compared"


def percent(rate: float) -> str:
    """A rate to a tenth of a per cent."""
    return f"{100 * rate:.1f} %"


def chance(probability: float) -> str:
    """A probability, never rounded into a certainty."""
    if 0.0 < probability < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if 0.999 < probability < 1.0 else percent(probability)


def _change(found: pb.Results, value: float) -> str:
    return f"{100 * value:+.1f} points" if _rate(found) else f"{value:+.4g}"


def _span(found: pb.Results, interval: pb.Interval) -> str:
    ends = (interval.low, interval.high)
    return " … ".join(f"{100 * end:+.1f}" if _rate(found) else f"{end:+.4g}" for end in ends)


def _rate(found: pb.Results) -> bool:
    return found.metric.kind in ("", "proportion")


def _interval(found: pb.Results, interval: pb.Interval) -> str:
    return f"{_end(found, interval.low)} … {_end(found, interval.high)}{' %' if _rate(found) else ''}"


def _end(found: pb.Results, of: float) -> str:
    return f"{100 * of:.1f}" if _rate(found) else f"{of:.4g}"


def outcome(found: pb.Results, item: pb.VariantResult) -> str | None:
    """What the metric comes to: a proportion in per cent, any other kind in its own unit; None where it is absent."""
    if not _rate(found):
        return f"{item.mean:.4g}" if item.HasField("mean") else None
    return percent(item.conversion_rate) if item.HasField("conversion_rate") else None


def end(found: pb.Results, of: float) -> str:
    """An end of a scale of such values."""
    return percent(of) if _rate(found) else f"{of:.4g}"


def scale_of(variants: Sequence[pb.VariantResult]) -> tuple[float, float] | None:
    """What the bars span: from the lowest to the highest end of any interval."""
    given = [item.credible_interval for item in variants if item.HasField("credible_interval")]
    if not given:
        return None
    low, high = min(interval.low for interval in given), max(interval.high for interval in given)
    return (low, high) if low < high else (low, low + 1e-9)


def _axis(found: pb.Results, scale: tuple[float, float]) -> str:
    low, high = (_end(found, of) for of in scale)
    return f"{low}{high:>{BAR_CELLS - len(low)}}"


def bar(item: pb.VariantResult, scale: tuple[float, float], width: int = BAR_CELLS) -> str:
    """The credible interval as a bar on `scale`, the rate (or the mean, of what has one) as a dot on it."""
    cells = [" "] * width
    low = _cell(item.credible_interval.low, scale, width)
    high = _cell(item.credible_interval.high, scale, width)
    cells[low : high + 1] = "─" * (high - low + 1)
    cells[low], cells[high] = "├", "┤"
    for name in ("mean", "conversion_rate"):
        if item.HasField(name):
            cells[_cell(getattr(item, name), scale, width)] = "●"
            break
    return "".join(cells)


def _cell(value: float, scale: tuple[float, float], width: int) -> int:
    share = (value - scale[0]) / (scale[1] - scale[0])
    return min(width - 1, max(0, round(share * (width - 1))))


def absent(found: pb.Results) -> Iterator[str]:
    """What is not told of a variant, and why."""
    codes = {code for item in found.variants for code in item.reasons.values()}
    for code in sorted(codes & _UNCOMPARED.keys()):
        yield f"counts only: {_UNCOMPARED[code]} ({code})"
    for item in found.variants:
        by_reason: dict[str, list[str]] = {}
        for name, code in sorted(item.reasons.items()):
            if code not in _QUIET and code not in _UNCOMPARED:
                by_reason.setdefault(code, []).append(name)
        for code, names in sorted(by_reason.items()):
            yield f"{item.name}: no {', '.join(names)}: {_REASONS.get(code, 'not defined')} ({code})"


def _beside(session: Session, beside: pb.Results) -> None:
    rates = [
        f"{item.name} {item.conversions}/{item.impressions}"
        + (f" = {came_to}" if (came_to := outcome(beside, item)) is not None else "")
        for item in beside.variants
    ]
    show.say(session.out, f"{population(beside)}: {', '.join(rates)}")


def not_counted(found: pb.Results) -> Iterator[str]:
    """Events that take part in nothing, and records that are gone."""
    if found.rejected:
        counts = ", ".join(f"{item.count} {item.reason}" for item in found.rejected)
        yield f"not counted: {counts}"
    if found.lost.count:
        yield f"lost on hosts: {found.lost.count} records"
