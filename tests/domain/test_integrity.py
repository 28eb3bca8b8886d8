"""Whether arms can be compared is asked of what was drawn, participant or cluster."""

from typing import Any

import pytest
from scipy import stats

from control_plane.domain.evidence import Arm, Evidence, Excluded, Measure, Member, Settings, Sums
from control_plane.domain.integrity import integrity, shown


def evidence(silent: set[str], *, clustered: bool, **more: Any) -> Evidence:
    """Eight hosts an arm with ten participants each, of which those on `silent` hosts have no impression."""
    members = [
        Member(
            participant=f"{arm}{host}-{n}",
            arm=arm,
            block="x",
            stratum="x",
            cluster=f"{arm}{host}" * clustered,
        )
        for arm in "ab"
        for host in range(8)
        for n in range(10)
    ]
    impressions = tuple(0 if item.participant.split("-")[0] in silent else 5 for item in members)
    none = (0,) * len(members)
    fields: dict[str, Any] = {
        "about": {},
        "measure": Measure(name="done"),
        "primary": True,
        "population": "assigned",
        "settings": Settings(alpha=0.05, decision="sequence"),
        "seed": "00",
        "arms": tuple(Arm(id=key, key=key, name=key, is_control=key == "a", weight=50) for key in "ab"),
        "members": tuple(members),
        "sums": Sums(impressions=impressions, conversions=none, values=none, denominators=none),
    }
    return Evidence(**fields | more)


def test_a_host_that_falls_silent_is_one_loss() -> None:
    """Two of eight hosts of one arm: no verdict is suppressed, though they were 20 of 80 participants."""
    whole = integrity(evidence({"b0", "b1"}, clustered=True))
    assert whole.losses["without_data"] == pytest.approx(stats.fisher_exact([[2, 6], [0, 8]]).pvalue)
    assert whole.broken == whole.doubtful == []
    alone = integrity(evidence({"b0", "b1"}, clustered=False))
    assert alone.losses["without_data"] == pytest.approx(stats.fisher_exact([[20, 60], [0, 80]]).pvalue)
    assert alone.broken


def test_who_is_left_out_is_counted_by_what_was_drawn() -> None:
    """Records that do not say so are of participants."""

    def lost(units: int | None) -> float:
        out = Excluded(arm="b", reason="refused", participants=20, impressions=0, units=units)
        return integrity(evidence(set(), clustered=True, exclusions=(out,))).losses["refused"]

    assert lost(2) == pytest.approx(stats.fisher_exact([[2, 6], [0, 8]]).pvalue)
    assert lost(None) == pytest.approx(stats.fisher_exact([[8, 0], [0, 8]]).pvalue)


def test_hosts_drawn_by_hash_are_tested_as_hosts() -> None:
    """Twelve hosts of sixteen in one arm is chance; 120 participants of 160 would not be."""

    def told(*, clustered: bool) -> Any:
        given = evidence(set(), clustered=clustered, hashed=True)
        moved = tuple(
            item.model_copy(update={"arm": "a"}) if item.participant[1] in "0123" else item
            for item in given.members
        )
        given = given.model_copy(update={"members": moved})
        return shown(given, integrity(given))

    hosts, people = told(clustered=True), told(clustered=False)
    assert hosts["pValue"] == pytest.approx(stats.chisquare([12, 4]).pvalue)
    assert people["pValue"] == pytest.approx(stats.chisquare([120, 40]).pvalue)
    assert (hosts["detected"], people["detected"]) == (False, True)
    assert hosts["largestDeviation"] == people["largestDeviation"] == pytest.approx(0.25)
    assert (hosts["observed"], hosts["expected"]) == ({"a": 120, "b": 40}, {"a": 80.0, "b": 80.0})
