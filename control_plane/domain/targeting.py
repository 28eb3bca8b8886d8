"""Whom rules on labels mean. Expressions are RE2: linear in the text, so no rule can stall the control plane."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import re2
from pydantic import Field, model_validator

from control_plane.domain.fields import Request

Operator = Literal["equals", "not_equals", "contains", "exists", "not_exists", "regex"]

MAX_PATTERN = 512

_OPTIONS = re2.Options()
_OPTIONS.max_mem = 1 << 20
_OPTIONS.log_errors = False


class LabelRule(Request):
    """One thing that must be so of a label; `exists` and `not_exists` take no value, the others need one."""

    key: Annotated[str, Field(min_length=1, max_length=128)]
    operator: Operator
    value: Annotated[str, Field(max_length=MAX_PATTERN)] | None = None

    @model_validator(mode="after")
    def _value_fits(self) -> Self:
        if (self.value is None) != (self.operator in ("exists", "not_exists")):
            needs = "takes no value" if self.value is not None else "needs a value"
            raise ValueError(f"{self.operator} on {self.key!r} {needs}")
        if self.operator == "regex":
            try:
                re2.compile(self.value or "", _OPTIONS)
            except re2.error as error:
                why = error.args[0].decode() if error.args else "it does not parse"
                raise ValueError(f"{self.value!r} on {self.key!r} is not an RE2 expression: {why}") from None
        return self

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether it is so. A label that is not there is equal to nothing and contains nothing."""
        present = labels.get(self.key)
        wanted = self.value or ""
        if self.operator == "exists":
            return present is not None
        if self.operator == "not_exists":
            return present is None
        if self.operator == "not_equals":
            return present != wanted
        if present is None:
            return False
        if self.operator == "equals":
            return present == wanted
        if self.operator == "contains":
            return wanted in present
        return re2.compile(wanted, _OPTIONS).search(present) is not None


class TargetingRules(Request):
    """Rules that must all hold; none at all mean everybody."""

    labels: Annotated[tuple[LabelRule, ...], Field(max_length=50)] = ()

    def match(self, labels: Mapping[str, str]) -> bool:
        """Whether every rule holds for these labels."""
        return holds(self.labels, labels)


def holds(rules: Sequence[LabelRule], labels: Mapping[str, str]) -> bool:
    """Whether every rule holds for these labels."""
    return all(rule.holds(labels) for rule in rules)


def visible(
    labels: Mapping[str, str], host_labels: Mapping[str, str], *, allow_host_labels: bool
) -> dict[str, str]:
    """The labels that rules see: the API's and the token's, and what a host says of itself only where allowed.

    A host can name its labels as it likes, so where they are not allowed it cannot choose its own variant.
    """
    return {**(host_labels if allow_host_labels else {}), **labels}
