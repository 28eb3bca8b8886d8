"""Each finding: what makes it true, and what nearly does and must not."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from control_plane.domain.findings import CODES, Facts, Seated, Severity, findings
from control_plane.domain.lifecycle import Status

QUIET = Facts(status=Status.RUNNING, compared=True, has_primary=True, running_seconds=10, seated=())


def people(count: int = 20, **fields: Any) -> list[Seated]:
    """So many participants in each of two arms, on hosts of their own, well and exposed."""
    base: dict[str, Any] = {
        "agent": None,
        "forced": False,
        "retired": False,
        "impressions": 5,
        "delivered": 5,
        "state": "applied",
        "deployment": "applied",
        "contents": frozenset(),
    }
    return [
        Seated(participant=f"{arm}-{n}", arm=arm, **{**base, **fields}) for arm in "ab" for n in range(count)
    ]


def facts(seated: list[Seated], **fields: Any) -> Facts:
    """The facts of these participants."""
    return Facts(**{"status": Status.RUNNING, "compared": True, "has_primary": True, "running_seconds": 10.0,
                    "seated": seated, **fields})  # fmt: skip


def change(seated: list[Seated], arm: str, count: int, **fields: Any) -> list[Seated]:
    """The first so many of an arm are otherwise."""
    left = count
    changed = []
    for item in seated:
        hit = item.arm == arm and left > 0
        left -= hit
        changed.append(replace(item, **fields) if hit else item)
    return changed


def codes(of: Facts) -> set[str]:
    """Codes of the findings."""
    return {item.code for item in findings(of)}


ONE_HOST = [replace(item, agent="h") for item in people(2)]
TWO_HOSTS = [replace(item, agent=item.arm) for item in people(2)]
SILENT = {"impressions": 0, "delivered": 0}

CASES: dict[str, tuple[Facts, Facts]] = {
    "SCHEDULE_FAILED": (facts(people(), schedule_failures=[("start", "nobody takes part")]), facts(people())),
    "PLAN_CHANGED": (facts(people(), plan_changed=True), facts(people())),
    "REWRITTEN_BY_ANOTHER_TOOL": (
        facts(change(people(), "a", 1, contested=True)),
        facts(people()),
    ),
    "MISSING_EXPOSURE_BY_ARM": (
        facts(change(people(), "b", 12, **SILENT)),
        facts(change(change(people(), "b", 6, **SILENT), "a", 6, **SILENT)),
    ),
    "EXCLUSIONS_DIFFER_BY_ARM": (
        facts(change(people(), "b", 12, delivered=1)),
        facts(change(change(people(), "b", 7, delivered=1), "a", 6, delivered=1)),
    ),
    "DRIFT": (facts(change(people(), "a", 1, state="missing")), facts(change(people(), "a", 1, state=None))),
    "DRIFT_BY_ARM": (
        facts(change(people(), "b", 12, state="drifted")),
        facts(change(change(people(), "b", 3, state="drifted"), "a", 2, state="drifted")),
    ),
    "NOT_DELIVERED": (
        facts(change(people(), "b", 1, deployment="refused")),
        facts(change(people(), "b", 1, deployment="pending")),
    ),
    "OPENS_UNSEEN": (facts(change(people(), "b", 1, unseen=("overflow",))), facts(people())),
    "SEVERAL_EXPOSURES": (
        facts(change(people(), "b", 1, contents=frozenset("ab"))),
        facts(change(people(100), "b", 1, contents=frozenset("ab"))),
    ),
    "NO_PRIMARY_METRIC": (
        facts(people(), has_primary=False),
        facts(people(), has_primary=False, compared=False),
    ),
    "ZERO_EXPOSURES": (
        facts(people(**SILENT), running_seconds=4_000),
        facts(people(**SILENT), running_seconds=3_000),
    ),
    "FORCED_PARTICIPANTS": (facts(change(people(), "a", 1, forced=True)), facts(people())),
    "RETIRED_HOSTS": (facts(change(people(), "a", 1, retired=True)), facts(people())),
    "SEVERAL_ARMS_ON_ONE_HOST": (facts(ONE_HOST), facts(TWO_HOSTS)),
    "PREFLIGHT_REFUSED": (facts(people(), kept_out={"c-1": ["TOO_LARGE"]}), facts(people(), kept_out={})),
    "COMPLETED_BUT_DEPLOYED": (
        facts(people(), status=Status.COMPLETED, open_slots=3),
        facts(people(), status=Status.STOPPED, open_slots=3),
    ),
}


@pytest.mark.parametrize("code", CODES)
def test_a_finding_is_there_when_it_is_so_and_not_otherwise(code: str) -> None:
    """Each has a case that makes it true and one that comes near; evidence and advice are never empty words."""
    so, nearly = CASES[code]
    assert code in codes(so)
    assert code not in codes(nearly)
    found = next(item for item in findings(so) if item.code == code)
    assert found.message
    assert found.advice


def test_nothing_is_said_of_what_is_well() -> None:
    """A healthy experiment, and one that has not begun, have no findings."""
    assert findings(facts(people())) == ()
    assert findings(QUIET) == ()


def test_what_matters_most_comes_first_and_grows_with_the_evidence() -> None:
    """Errors, then warnings, then information; one and the same imbalance is an error once it is beyond doubt."""
    silent = change(people(), "b", 12, **SILENT)
    found = findings(facts(silent, has_primary=False, schedule_failures=[("stop", "x")]))
    order = [item.severity for item in found]
    assert order == sorted(order, key=list(Severity).index, reverse=True)
    sharp = facts(change(people(40), "b", 30, **SILENT))
    blunt = facts(change(people(40), "b", 8, **SILENT))
    by_code = {item.code: item.severity for item in findings(sharp)}
    assert by_code["MISSING_EXPOSURE_BY_ARM"] is Severity.ERROR
    assert {item.severity for item in findings(blunt) if item.code == "MISSING_EXPOSURE_BY_ARM"} == {
        Severity.WARNING
    }


def test_equal_losses_rarely_alarm() -> None:
    """With the same 20 % silent in both arms, fewer than 1.5 % of 400 draws say otherwise."""
    alarms = 0
    for number in range(400):
        chance = Random(number)
        seated = [
            replace(item, impressions=0, delivered=0) if chance.random() < 0.2 else item
            for item in people(30)
        ]
        alarms += "MISSING_EXPOSURE_BY_ARM" in codes(facts(seated))
    assert alarms <= 6


def test_hosts_that_were_drawn_whole_are_lost_whole() -> None:
    """Two silent hosts of eight, with ten participants each, alarm nobody; twenty of 80 participants would."""
    seated = [replace(item, unit=f"{item.arm}-{int(item.participant[2:]) // 10}") for item in people(80)]
    lost = change(seated, "a", 20, impressions=0, delivered=0, state="drifted")
    alarms = {"MISSING_EXPOSURE_BY_ARM", "DRIFT_BY_ARM"}
    assert not alarms & codes(facts(lost))
    assert alarms <= codes(facts([replace(item, unit="") for item in lost]))
    every = change(seated, "a", 80, impressions=0, delivered=0)
    (found,) = [one for one in findings(facts(every)) if one.code == "MISSING_EXPOSURE_BY_ARM"]
    assert found.evidence["byVariant"]["a"] == {"participants": 80, "affected": 80}
    # One silent participant does not make its host silent.
    some = [
        replace(x, impressions=0, delivered=0) if x.arm == "a" and x.participant[-1] == "0" else x
        for x in seated
    ]
    assert "MISSING_EXPOSURE_BY_ARM" not in codes(facts(some))
