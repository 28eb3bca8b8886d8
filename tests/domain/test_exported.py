"""Exports that were edited: an error that names the field, or an answer in finite numbers; never anything else.

VARIANTD_EDITS is how many edited exports are tried (150 unless set).
"""

import copy
import json
import math
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from control_plane.domain.analyze import analyze
from control_plane.domain.evidence import Alternation, Evidence, Ledgered, Sums, Turn, look, snapshot_of
from shared.errors import Invalid

EDITS = int(os.environ.get("VARIANTD_EDITS", "150"))
Json = dict[str, Any]


def sums(rows: list[tuple[int, int]]) -> Sums:
    """(impressions, conversions) of each; each conversion is worth 1.5."""
    return Sums(
        impressions=tuple(m for m, _ in rows),
        conversions=tuple(c for _, c in rows),
        values=tuple(1_500_000 * c for _, c in rows),
        denominators=tuple(m for m, _ in rows),
    )


def drawn(chance: random.Random, size: int, day: int) -> Sums:
    """Sums of so many after so many days; the second half converts more."""
    rows = []
    for at in range(size):
        rate = 0.2 if at < size // 2 else 0.5
        rows.append((20 * day, sum(chance.random() < rate for _ in range(20 * day))))
    return sums(rows)


def export(kind: str = "proportion", **more: Any) -> Evidence:
    """An experiment of eight and eight after three days, with a look at each; as it is told in an export."""
    chance, names = random.Random(5), [f"p{at:02}" for at in range(16)]
    days = [drawn(chance, 16, day) for day in (1, 2, 3)]
    half = {"effect": 0.2, "kind": kind}
    evidence = Evidence.model_validate(
        {
            "about": {"key": "test", "metric": {"eventName": "done"}},
            "measure": {"name": "done", **half},
            "primary": True,
            "population": "assigned",
            "settings": {"alpha": 0.05, "decision": "path_test", "horizonDays": 3.0},
            "seed": "00ff" * 8,
            "arms": tuple(
                {"id": key, "key": key, "name": key, "isControl": key == "a", "weight": 50,
                 "levels": {"tone": key}}
                for key in "ab"
            ),
            "members": tuple(
                {"participant": name, "arm": "a" if at < 8 else "b", "block": "x", "stratum": "x"}
                for at, name in enumerate(names)
            ),
            "sums": days[-1],
            "first": days[0],
            "exclusions": (
                {"arm": "b", "reason": "REFUSED", "participants": 1, "impressions": 20},
            ),
            "secondary": (
                {"key": "cost", "name": "Cost", "measure": {"name": "paid", "kind": "mean"}, "sums": days[-1]},
            ),
            "factors": ({"key": "tone", "levels": ("a", "b")},),
            **more,
        }
    )  # fmt: skip
    looks: list[Ledgered] = []
    shots = [
        snapshot_of(evidence, seen, day=float(day), until=None) for day, seen in enumerate(days, start=1)
    ]
    for number, seen in enumerate(days, start=1):
        found = look(evidence, shots[:number])
        state = {"metric": "hurt", "variant": "b", "state": "unproven", "interval": None, "bound": None}
        looks.append(
            Ledgered(
                number=number, at="2027-01-02T00:15:00.000Z", cut_off="2027-01-02T00:00:00.000Z",
                day=float(number), comparisons=found, guardrails=(state,), sums=seen,
            )
        )  # fmt: skip
    other = tuple(one.model_copy(update={"sums": None}) for one in looks)
    return evidence.model_copy(update={"looks": tuple(looks), "other_looks": other})


def switchback() -> Evidence:
    """Two participants in four cycles of two blocks, all over."""
    chance = random.Random(6)
    plain = export()
    turns = []
    for who in ("p00", "p08"):
        for cycle in range(1, 5):
            for place, arm in enumerate(chance.sample("ab", 2)):
                block = 2 * cycle - 1 + place
                turns.append(
                    Turn(participant=who, arm=arm, cycle=cycle, block=block, over=float(block))
                )  # fmt: skip
    done = sums([(20, 5 + 8 * (turn.arm == "b") + chance.randrange(3)) for turn in turns])
    alternation = Alternation(cycles=4, block_days=1.0, day=8.0, first_day=1.0, turns=tuple(turns), sums=done)
    return plain.model_copy(
        update={
            "alternation": alternation, "looks": (), "other_looks": (), "factors": (), "secondary": (),
            "first": done,
        }
    )  # fmt: skip


def changed() -> Evidence:
    """The first of the three looks was of another metric; the others are what they are with what it saw."""
    plain = export()
    former = plain.looks[0].model_copy(update={"comparisons": (), "guardrails": ()})
    return plain.model_copy(
        update={"looks": plain.looks[1:], "former_looks": (former,), "other_looks": plain.other_looks[1:]}
    )


def pooled() -> Evidence:
    """Two phases of the same sixteen."""
    plain, chance = export(), random.Random(7)
    stretches = tuple(
        {"id": f"phase-{number}", "number": number, "members": plain.members, "sums": drawn(chance, 16, 3)}
        for number in (1, 2)
    )
    nothing = sums([])
    document = plain.model_copy(
        update={"members": (), "sums": nothing, "first": None, "looks": (), "other_looks": (), "factors": (),
                "secondary": (), "primary": False}
    ).model_dump(by_alias=True)  # fmt: skip
    return Evidence.model_validate(document | {"pooled": stretches})


EXPORTS: dict[str, Evidence] = {
    "path test": export(),
    "ratio by a sequence": export(
        "ratio", settings={"alpha": 0.05, "decision": "sequence", "horizonDays": 3.0}
    ),
    "winsorised mean with a history": export(
        measure={"name": "paid", "kind": "mean", "winsorizeAt": 90.0},
        history=drawn(random.Random(8), 16, 2),
    ),
    "changed metric": changed(),
    "switchback": switchback(),
    "pooled": pooled(),
}
DOCUMENTS = {name: json.loads(one.model_dump_json(by_alias=True)) for name, one in EXPORTS.items()}


@pytest.mark.parametrize("name", list(EXPORTS))
def test_what_was_not_edited_is_answered(name: str) -> None:
    """Each of the exports that are edited below; its answer is JSON, and the same a second time."""
    given = json.dumps(DOCUMENTS[name])
    one, other = (json.dumps(analyze(json.loads(given)), allow_nan=False) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("name", "path", "value", "field"),
    [
        ("path test", ("seed",), "xyz", "seed"),
        ("path test", ("sums", "conversions"), [1], "sums.conversions"),
        ("path test", ("sums", "impressions", 3), -1, "sums.impressions.3"),
        ("path test", ("sums", "impressions", 3), True, "sums.impressions.3"),
        ("path test", ("sums", "impressions", 3), 10**400, "sums.impressions.3"),
        ("path test", ("first", "values"), [], "first.values"),
        ("path test", ("members", 0, "arm"), "z", "members.0.arm"),
        ("path test", ("arms", 1, "key"), "a", "arms.1.key"),
        ("path test", ("arms", 1, "weight"), -3, "arms.1.weight"),
        ("path test", ("arms", 0, "weight"), 0, None),
        ("path test", ("arms", 1, "levels"), {}, "arms.1.levels"),
        ("path test", ("settings", "alpha"), 0, "settings.alpha"),
        ("path test", ("settings", "horizonDays"), 0, "settings.horizonDays"),
        ("path test", ("settings", "prior"), [1, -1], "settings.prior.1"),
        ("path test", ("unspent",), 2, "unspent"),
        ("path test", ("uncompared",), "BECAUSE", "uncompared"),
        ("path test", ("about", "metric"), math.nan, "about.metric"),
        ("path test", ("looks", 1, "day"), 1, "looks.1.day"),
        ("path test", ("looks", 1, "sums"), None, "looks.1.sums"),
        ("path test", ("looks", 1, "sums", "conversions", 0), 17, "looks"),
        ("path test", ("looks", 1, "comparisons"), [3], "looks.1.comparisons.0"),
        ("path test", ("looks", 1, "comparisons", 0, "variant"), "z", "looks.1.comparisons.0.variant"),
        ("path test", ("looks", 1, "comparisons", 0, "difference"), 0.7, "looks"),
        ("path test", ("otherLooks", 0, "comparisons", 0, "crossed"), 1, "otherLooks.0.comparisons.0.crossed"),
        ("path test", ("looks", 0, "guardrails", 0, "state"), "fine", "looks.0.guardrails.0.state"),
        ("path test", ("secondary", 0, "sums", "values"), [], "secondary.0.sums.values"),
        ("path test", ("nonsense",), 1, "nonsense"),
        ("winsorised mean with a history", ("measure", "winsorizeAt"), 20, "measure.winsorizeAt"),
        ("winsorised mean with a history", ("history", "impressions"), [], "history.impressions"),
        ("changed metric", ("formerLooks", 0, "day"), 2.0, "formerLooks.0.day"),
        ("changed metric", ("formerLooks", 0, "sums"), None, "looks"),
        ("changed metric", ("formerLooks", 0, "sums", "values"), [], "formerLooks.0.sums.values"),
        ("changed metric", ("formerLooks",), [], "looks"),
        ("switchback", ("alternation", "cycles"), 10**12, "alternation.cycles"),
        ("switchback", ("alternation", "turns", 0, "cycle"), 9, "alternation.turns.0.cycle"),
        ("switchback", ("alternation", "turns", 0, "arm"), "z", "alternation.turns.0.arm"),
        ("switchback", ("alternation", "sums", "impressions"), [], "alternation.sums.impressions"),
        ("pooled", ("pooled", 1, "number"), 1, "pooled.1.number"),
        ("pooled", ("pooled", 1, "sums", "impressions"), [], "pooled.1.sums.impressions"),
        ("pooled", ("pooled", 1, "members", 2, "arm"), "z", "pooled.1.members.2.arm"),
    ],
)  # fmt: skip
def test_an_edit_that_cannot_be_is_named(
    name: str, path: tuple[Any, ...], value: Any, field: str | None
) -> None:
    """By where it is; a control without weight by the arms."""
    edited = copy.deepcopy(DOCUMENTS[name])
    at(edited, path[:-1])[path[-1]] = value
    with pytest.raises(Invalid) as refused:
        analyze(edited)
    assert (field or "arms") in {fault.field for fault in refused.value.faults}


def at(document: Any, path: tuple[Any, ...]) -> Any:
    """What is there."""
    for part in path:
        document = document[part]
    return document


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place but the whole, and but what is handed through."""
    if path:
        yield path
    if isinstance(document, dict):
        for name, value in document.items():
            yield from places(value, (*path, name))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from places(value, (*path, index))


STRANGE = (
    None, -1, 0, 1, 1.5, 1e308, 1e-320, 10**15, 10**30, 10**400, math.nan, math.inf, "", "x", "a", "00", True, [],
    {}, [1], {"a": 1}, "mean", "ratio", "count", "subjects", "participants", "sequence", "delta", "decrease",
)  # fmt: skip


def edit(document: Any, chance: random.Random) -> tuple[Any, ...]:
    """One place is gone, twice there, in another order, or something else."""
    path = chance.choice(list(places(document)))
    holder, last = at(document, path[:-1]), path[-1]
    value, kind = holder[last], chance.random()
    if kind < 0.15:
        del holder[last]
    elif kind < 0.3 and isinstance(value, list) and value:
        chance.choice((value.pop, value.reverse, lambda: value.append(copy.deepcopy(value[0]))))()
    elif kind < 0.5 and isinstance(value, int | float) and not isinstance(value, bool):
        holder[last] = chance.choice((-value, value + 1, 2 * value, value * 10**12, value + 0.5))
    else:
        holder[last] = copy.deepcopy(chance.choice(STRANGE))
    return path


def test_whatever_is_edited_is_answered_in_numbers_or_refused_by_field() -> None:
    """Up to three edits anywhere in an export, by the bounded number of tries; seeded."""
    chance = random.Random(20)
    refused = 0
    for tried in range(EDITS):
        name = chance.choice(list(DOCUMENTS))
        document = copy.deepcopy(DOCUMENTS[name])
        edits = [edit(document, chance) for _ in range(chance.choice((1, 1, 2, 3)))]
        try:
            json.dumps(analyze(document), allow_nan=False)
        except Invalid as error:
            refused += 1
            # An edit may leave nothing of an export; what is asked for then is told in a sentence.
            assert all(fault.field for fault in error.faults), (tried, name, edits)
            assert error.faults or "JSON object" in error.message, (tried, name, edits)
        except Exception as error:
            raise AssertionError(f"try {tried}: {name} with {edits}") from error
    assert refused > EDITS / 3
