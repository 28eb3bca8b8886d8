"""Whom rules on labels mean."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.fields import parse
from control_plane.domain.targeting import TargetingRules, visible
from shared.errors import Invalid


def rules(*found: tuple[str, str, str | None]) -> TargetingRules:
    """Rules as a caller writes them."""
    listed = [
        {"key": key, "operator": operator} | ({} if value is None else {"value": value})
        for key, operator, value in found
    ]
    return parse(TargetingRules, {"labels": listed})


LABELS = {"role": "support-eu", "tier": "gold"}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (("tier", "equals", "gold"), True),
        (("tier", "equals", "Gold"), False),
        (("absent", "equals", ""), False),
        (("tier", "not_equals", "gold"), False),
        (("absent", "not_equals", "gold"), True),
        (("role", "contains", "port-"), True),
        (("absent", "contains", ""), False),
        (("role", "exists", None), True),
        (("absent", "exists", None), False),
        (("role", "not_exists", None), False),
        (("absent", "not_exists", None), True),
        (("role", "regex", "^support-(eu|us)$"), True),
        (("role", "regex", "eu"), True),
        (("role", "regex", "^eu"), False),
        (("absent", "regex", ".*"), False),
    ],
)
def test_each_operator(rule: tuple[str, str, str | None], expected: bool) -> None:
    """What each operator says of a label that is there, and of one that is not."""
    assert rules(rule).match(LABELS) is expected


def test_all_rules_must_hold_and_none_mean_everybody() -> None:
    """Rules add up; an empty list keeps nobody out."""
    both = rules(("tier", "equals", "gold"), ("role", "contains", "support"))
    assert both.match(LABELS)
    assert not both.match({"tier": "gold"})
    assert rules().match({})


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"key": "a", "operator": "equals"}, "needs a value"),
        ({"key": "a", "operator": "exists", "value": "x"}, "takes no value"),
        ({"key": "a", "operator": "regex", "value": "("}, "not an RE2 expression: missing"),
        ({"key": "a", "operator": "regex", "value": r"(a)\1"}, "not an RE2 expression"),
        ({"key": "a", "operator": "like", "value": "x"}, "operator"),
        ({"key": "", "operator": "exists"}, "key"),
        ({"key": "a", "operator": "regex", "value": "a" * 513}, "512"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(rule: dict[str, Any], why: str) -> None:
    """The field and the reason are named."""
    with pytest.raises(Invalid, match=why):
        parse(TargetingRules, {"labels": [rule]})


def test_an_expression_cannot_stall_the_control_plane() -> None:
    """What takes a backtracking engine longer than the universe has lasted is linear here."""
    evil = rules(("a", "regex", "(a*)*(a*)*(a*)*(a*)*(a*)*b$"))
    assert not evil.match({"a": "a" * 250})


@given(
    st.dictionaries(st.sampled_from("abc"), st.text(max_size=3)), st.sampled_from("abc"), st.text(max_size=3)
)
def test_an_operator_and_its_opposite_share_the_world(labels: dict[str, str], key: str, value: str) -> None:
    """Exactly one of a pair holds, whatever the labels."""
    for one, other, compared in (("equals", "not_equals", value), ("exists", "not_exists", None)):
        assert rules((key, one, compared)).match(labels) != rules((key, other, compared)).match(labels)


def test_a_host_cannot_choose_its_own_variant() -> None:
    """What a host says of itself is seen only where the experiment allows it, and never over the API's word."""
    host = {"host.tier": "gold"}
    assert visible({"a": "1"}, host, allow_host_labels=False) == {"a": "1"}
    assert visible({"a": "1"}, host, allow_host_labels=True) == {"a": "1", "host.tier": "gold"}
    assert visible({"host.tier": "api"}, host, allow_host_labels=True) == {"host.tier": "api"}
