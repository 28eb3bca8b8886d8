"""What results cost beside one SQL read of the same tallies: `make bench BENCH=results`.

A real database with an experiment of many variants, participants and days; its tallies and looks are written
directly, as if so many events had been counted. Three of them: 10⁶ events and 10⁷ events, with a row for each, and
10⁶ events without, so that it shows whether anything but tallies is read. Besides, the probabilities to be best
beside 100,000 random draws. Contenders take turns within each round; figures are medians of the pairs of a round.
Nothing is asserted.
"""

import argparse
import asyncio
import json
import shutil
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from control_plane.domain import inference, requests
from control_plane.domain.statistics.bayes import Beliefs, beliefs
from control_plane.domain.statistics.proportions import ArmSums
from control_plane.services import results
from control_plane.services.work import Caller, Joining, Work
from control_plane.store.database import Tx
from control_plane.store.sqlite import SqliteDatabase
from control_plane.store.store import Store
from shared.moment import SECOND, utc_day
from tests.bench.stage import keep, median
from tests.support.builders import Ids, make_variant, make_world

DAY = 86_400
DRAWS = 100_000
HORIZON = 14
BARE = (
    "select variant_id, participant_id, event_name, sum(assigned_count), sum(assigned_units), sum(assigned_value),"
    " sum(delivered_count), sum(delivered_units), sum(delivered_value) from tally where phase_id = ?"
    " group by variant_id, participant_id, event_name"
)


@dataclass(frozen=True)
class Size:
    """How large the experiment is."""

    variants: int
    participants: int
    days: int


@dataclass(frozen=True)
class Made:
    """A database with the experiment."""

    path: Path
    caller: Caller
    now: int
    phase: bytes


# -- what is measured on


async def prepare(folder: Path, size: Size) -> Made:
    """A running experiment of that size, without an event."""
    async with make_world(folder) as world:
        world.clock.jump(DAY - world.clock.now() // SECOND % DAY)
        people = [f"p{number:04}" for number in range(size.participants)]
        await world.agent(*people)
        shares = [100 // size.variants + (at < 100 % size.variants) for at in range(size.variants)]
        variants = [make_variant(f"v{at}", control=not at, weight=share) for at, share in enumerate(shares)]
        draft = await world.experiment(*people, variants=variants, metrics={"primary": {"eventName": "done"}})
        started = await world.start(draft)
        now = world.clock.now() + size.days * DAY * SECOND
        return Made(folder / "variantd.db", world.caller, now, started.phase.id)


def fill(made: Made, size: Size, *, events: int, raw: bool) -> int:
    """So many events are in the tallies, and a look on every day; with `raw` each is a row too. The number of rows."""
    first, random = utc_day(made.now) - size.days, Random(1)
    cells = size.participants * size.days
    with closing(sqlite3.connect(made.path)) as database, database:
        seats = database.execute(
            "select a.variant_id, a.participant_id, p.public_id from assignment a"
            " join participant p on p.id = a.participant_id where a.phase_id = ?",
            (made.phase,),
        ).fetchall()
        seen = [[events // len(seats)] * 3] * len(seats)
        snapshot = {
            "participants": [[public, variant.hex()] for variant, _, public in seats],
            "sums": {of: {"": seen, "done": seen} for of in ("assigned", "delivered")},
        }
        kept = zlib.compress(json.dumps(snapshot).encode())
        rows = []
        for variant, participant, _ in seats:
            for day in range(first, first + size.days):
                # Two of three events are impressions.
                m = max(1, round(2 * events / 3 / cells + random.random() - 0.5))
                c = min(m, round(events / 3 / cells + random.random() - 0.5))
                rows.append((made.phase, variant, participant, "", day, m, m, m, m))
                if c:
                    rows.append((made.phase, variant, participant, "done", day, c, c, c, c))
        database.executemany(
            "insert into tally (phase_id, variant_id, participant_id, event_name, day, assigned_count,"
            " assigned_units, delivered_count, delivered_units) values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        database.executemany(
            "insert into look (phase_id, number, day, cut_off, at, decisions, snapshot) values (?, ?, ?, ?, ?, ?, ?)",
            [(*_look(made, size, first, number), kept) for number in range(size.days)],
        )
        if raw:
            each = max(1, events // len(seats))
            database.execute(
                "with recursive n(i) as (select 1 union all select i + 1 from n where i < ?) insert into"
                " attributed_event (phase_id, participant_id, subject, occurred_at, event_id, variant_id, kind,"
                " event_name, assigned, delivered) select a.phase_id, a.participant_id, 's' || n.i, n.i,"
                " randomblob(16), a.variant_id, 'impression', '', 'counted', 'counted' from assignment a, n"
                " where a.phase_id = ?",
                (each, made.phase),
            )
    return len(rows)


def _look(made: Made, size: Size, first: int, number: int) -> tuple[Any, ...]:
    """A look of its day, but for its snapshot: comparisons up to the horizon, as they are recorded."""
    compared = [
        {
            "variant": f"v{at}",
            "statistic": 0.5,
            "critical": 3.5,
            "alphaSpent": 0.001,
            "difference": 0.01,
            "interval": {"low": -0.1, "high": 0.12},
            "lift": 0.02,
            "liftInterval": {"low": -0.2, "high": 0.24},
            "pValue": 0.5,
            "pValueAdjusted": 1.0,
            "crossed": False,
            "decided": False,
            "reasons": {},
        }
        for at in range(1, size.variants if number < HORIZON else 1)
    ]
    metric = {"eventName": "done", "kind": "proportion", "goal": "increase", "denominatorEventName": None}
    primary = {"metric": metric, "day": number + 1.0, "assigned": compared, "delivered": compared}
    decisions = {"standings": {}, "lost": 0, "exclusions": [], "primary": primary, "guardrails": []}
    end = (first + number + 1) * DAY * SECOND
    return (made.phase, number + 1, first + number, end, end, json.dumps(decisions))


# -- measuring


def gather(made: Made) -> Callable[[Tx], Any]:
    """The evidence, as the server gathers it."""
    asked = requests.parse(requests.GetResults, {"id": "test"})

    def work(tx: Tx) -> Any:
        item = Work(
            store=Store(tx),
            caller=made.caller,
            now=made.now,
            new_id=Ids(9),
            joining=Joining(addresses=(), ca_certificate=b""),
        )
        return results.get(item, asked).evidence

    return work


async def timed_of(database: SqliteDatabase, made: Made) -> dict[str, float]:
    """Seconds of the bare statement, of gathering and of answering, on warm pages."""
    began = time.perf_counter()
    await database.read(lambda tx: tx.all(BARE, (made.phase,)))
    read = time.perf_counter()
    evidence = await database.read(gather(made))
    gathered = time.perf_counter()
    inference.answer(evidence)
    return {"bare": read - began, "gather": gathered - read, "answer": time.perf_counter() - gathered}


async def compare(folder: Path, size: Size, rounds: int, events: int) -> list[dict[str, Any]]:
    """The rows about results."""
    (folder / "empty").mkdir()
    empty = await prepare(folder / "empty", size)
    kinds = {
        "few": (f"{events:.0e} events", events, True),
        "many": (f"{10 * events:.0e} events", 10 * events, True),
        "none": (f"{events:.0e} events, tallies alone", events, False),
    }
    opened: dict[str, tuple[SqliteDatabase, Made]] = {}
    rows: dict[str, int] = {}
    seen: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    try:
        for kind, (_, count, raw) in kinds.items():
            path = folder / kind / "variantd.db"
            path.parent.mkdir()
            shutil.copy(empty.path, path)
            made = Made(path, empty.caller, empty.now, empty.phase)
            rows[kind] = fill(made, size, events=count, raw=raw)
            opened[kind] = SqliteDatabase.open(path), made
        for number in range(rounds + 1):
            for kind, (database, made) in opened.items():
                took = await timed_of(database, made)
                if number:  # the first round warms up
                    seen[kind].append(took)
    finally:
        for database, _ in opened.values():
            await database.close()
    return [
        {
            "of": kinds[kind][0],
            "tallies": rows[kind],
            "rounds": rounds,
            "ratio": _median([(one["gather"] + one["answer"]) / one["bare"] for one in found]),
            "toFew": _median(
                [
                    (one["gather"] + one["answer"]) / (few["gather"] + few["answer"])
                    for one, few in zip(found, seen["few"], strict=True)
                ]
            ),
            **{
                f"{name}Ms": _median([1e3 * one[name] for one in found])
                for name in ("bare", "gather", "answer")
            },
        }
        for kind, found in seen.items()
    ]


def probabilities(rounds: int) -> list[dict[str, Any]]:
    """The rows about probabilities: all beliefs of 2 to 10 arms beside the share of draws in which each is best."""
    found = []
    for count in range(2, 11):
        random = Random(count)
        arms = [
            ArmSums(
                key=str(at),
                trials=[20] * 50,
                successes=[random.randrange(4, 10) + (at == 1) for _ in range(50)],
            )
            for at in range(count)
        ]
        pairs, deviation = [], 0.0
        for number in range(rounds + 1):
            began = time.perf_counter()
            exact = beliefs(arms, control="0", alpha=0.05)
            between = time.perf_counter()
            assert isinstance(exact, Beliefs)
            drawn = best_of_draws(exact, seed=number)
            if number:
                pairs.append((between - began, time.perf_counter() - between))
            shares = zip(exact.arms, drawn, strict=True)
            deviation = max(deviation, *(abs(arm.probability_to_be_best - share) for arm, share in shares))
        found.append(
            {
                "arms": count,
                "rounds": rounds,
                "ratio": _median([ours / draws for ours, draws in pairs]),
                "deviation": round(deviation, 5),
                "exactMs": _median([1e3 * ours for ours, _ in pairs]),
                "drawsMs": _median([1e3 * draws for _, draws in pairs]),
            }
        )
    return found


def best_of_draws(exact: Beliefs, *, seed: int) -> list[float]:
    """In which share of draws from the same posteriors each arm is the best."""
    generator = np.random.default_rng(seed)
    drawn = np.stack([generator.beta(arm.posterior.a, arm.posterior.b, DRAWS) for arm in exact.arms])  # type: ignore[union-attr]
    counts = np.bincount(drawn.argmax(axis=0), minlength=len(exact.arms))
    return [float(count) / DRAWS for count in counts]


def _median(values: list[float]) -> float:
    return median(values, 3)


def main() -> None:
    """The tables, then the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", type=int, default=10)
    parser.add_argument("--participants", type=int, default=1000)
    parser.add_argument("--days", type=int, default=366)
    parser.add_argument(
        "--events", type=int, default=1_000_000, help="that are there, with their tallies; and ten times that"
    )
    given = parser.parse_args()
    size = Size(given.variants, given.participants, given.days)
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(compare(Path(folder), size, given.rounds, given.events))
    print(
        f"{'results':34}{'× SQL':>8}{'× first':>9}{'SQL ms':>9}{'gather ms':>11}{'answer ms':>11}{'tallies':>10}"
    )
    for row in rows:
        print(
            f"{row['of']:34}{row['ratio']:>8}{row['toFew']:>9}{row['bareMs']:>9.0f}{row['gatherMs']:>11.0f}"
            f"{row['answerMs']:>11.0f}{row['tallies']:>10}"
        )
    beside = probabilities(given.rounds)
    print(f"{'probabilities':34}{'× draws':>8}{'deviation':>11}{'exact ms':>10}{'draws ms':>10}")
    for row in beside:
        print(
            f"{row['arms']:>2} arms{'':27}{row['ratio']:>8}{row['deviation']:>11}{row['exactMs']:>10.2f}"
            f"{row['drawsMs']:>10.2f}"
        )
    keep("results", rounds=given.rounds, results=rows, probabilities=beside)


if __name__ == "__main__":
    main()
