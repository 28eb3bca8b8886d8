"""Several comparisons at once: p-values adjusted so that they can be compared with one level.

The verdict uses Bonferroni, because its intervals say the same as its p-values; Holm and Benjamini-Hochberg
are for secondary metrics, and labelled.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from shared.errors import Fault, Invalid

Correction = Literal["none", "bonferroni", "holm", "benjamini_hochberg"]


def adjusted(p_values: Sequence[float], correction: Correction) -> list[float]:
    """The p-values after the correction, in their order. Raises Invalid for one outside 0 … 1."""
    faults = [
        Fault(field=f"p_values[{index}]", message=f"is {value}, must be between 0 and 1")
        for index, value in enumerate(p_values)
        if not 0 <= value <= 1  # NaN is not
    ]
    if faults:
        raise Invalid("; ".join(f"{fault.field} {fault.message}" for fault in faults), faults=faults)
    return _CORRECTIONS[correction](p_values)


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """min(1, m p): whatever the dependence, at most alpha false rejections of any."""
    return [min(1.0, len(p_values) * value) for value in p_values]


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down Bonferroni (Holm 1979): the same guarantee, never less power."""
    highest = 0.0
    found = [0.0] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        found[index] = highest
    return found


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Step-up (Benjamini & Hochberg 1995): the share of false ones among the rejected is at most alpha.

    For independent or positively dependent comparisons.
    """
    count = len(p_values)
    lowest = 1.0
    found = [0.0] * count
    for rank, index in sorted(
        enumerate(sorted(range(count), key=lambda i: p_values[i]), start=1), reverse=True
    ):
        lowest = min(lowest, p_values[index] * count / rank)
        found[index] = lowest
    return found


_CORRECTIONS: Mapping[Correction, Callable[[Sequence[float]], list[float]]] = {
    "none": list,
    "bonferroni": bonferroni,
    "holm": holm,
    "benjamini_hochberg": benjamini_hochberg,
}
