"""What it costs to take reports in, durably, each once, attributed and counted: `make bench BENCH=ingest`.

Four processes, each an enrolled host with its certificate, send batches over mutual TLS as fast as they are
acknowledged; what they send is made beforehand. Beside it, in turn within each round: bare batch inserts of the same
rows with one counter into SQLite (`synchronous` FULL too) and into PostgreSQL, each from one process without a network;
all rows that a record has, inserted into the tables that the control plane has on SQLite; the bytes parsed and nothing
else; and the same control plane with `synchronous=NORMAL`, which it never has outside of here. Figures are medians over
rounds, ratios those of the pairs of a round; processor time of the server's process, and beside it what PostgreSQL's
own processes took. Nothing is asserted.

With `--grow 100000,1000000` instead: what a record costs when the database holds so many events. `SEED` of them came in
the same way; the others are copies of their rows with earlier moments and other ids, made within the database.

With `--people 1000,10000` instead: what `start`, a record and results cost with so many participants of four hosts, or
of as few as may have so many.
"""

import argparse
import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from shared.moment import SECOND
from tests.bench.beside import Beside, durable
from tests.bench.reporting import Cost, side
from tests.bench.stage import Child, child, median, pass_on, ratio, tell

BATCHES = (100, 500)
REPEATED = 10  # percent, where there are repeats
SEED = 20_000
APART = 3_600 * SECOND  # copies of the same records
ALL_ROWS = "bare SQLite, all rows"
COPIED = {"event": "id", "attributed_event": "event_id"}
"""Tables that have a row for each event, and its id in them."""


@dataclass
class Found:
    """What a record cost in each round."""

    label: str
    batch: int
    repeated: int = 0
    costs: list[Cost] = field(default_factory=list)


async def measure(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the table."""
    batches, records = BATCHES, given.records
    found: list[Found] = []
    turns = []

    def turn(label: str, batch: int, take: Any, repeated: int = 0) -> None:
        found.append(Found(label, batch, repeated))
        turns.append((found[-1], take))

    async with AsyncExitStack() as stack:
        full = await stack.enter_async_context(side(folder / "full", given.participants))
        normal = await stack.enter_async_context(
            side(folder / "normal", given.participants, module="tests.bench.contenders")
        )
        bare = await stack.enter_async_context(
            child("tests.bench.contenders", "sqlite", str(folder / "bare.db"))
        )
        every = await stack.enter_async_context(
            child("tests.bench.contenders", "rows", str(folder / "rows.db"))
        )
        parse = await stack.enter_async_context(child("tests.bench.contenders", "parse"))
        for batch in batches:
            turn("parsing alone", batch, partial(_asked, parse, records, batch))
            turn("bare SQLite", batch, partial(_asked, bare, records, batch))
            turn(ALL_ROWS, batch, partial(_asked, every, records, batch))
            turn("variantd, SQLite", batch, partial(full.take, records, batch, 0))
            turn("variantd, SQLite", batch, partial(full.take, records, batch, REPEATED), REPEATED)
            turn("variantd, NORMAL", batch, partial(normal.take, records, batch, 0))
        if given.postgres:
            from tests.support import postgres

            stack.enter_context(durable())
            url = postgres.url_of(folder)
            other = await stack.enter_async_context(
                child("tests.bench.contenders", "postgres", postgres.url_of(folder / "bare"))
            )
            ours = await stack.enter_async_context(
                side(folder / "postgres", given.participants, "--database", url)
            )
            for batch in batches:
                turn("bare PostgreSQL", batch, partial(_asked, other, records, batch, ours.there))
                turn("variantd, PostgreSQL", batch, partial(ours.take, records, batch, 0))
                turn("variantd, PostgreSQL", batch, partial(ours.take, records, batch, REPEATED), REPEATED)
        for number in range(given.rounds + 1):
            for item, take in turns:
                cost = await take()
                pass_on(
                    f"{item.label}, batches of {item.batch}, {f'round {number}' if number else 'to warm up'}",
                    perSecond=1 / cost.seconds,
                    cpuMicros=cost.cpu * 1e6,
                )
                if number:  # the first round warms up
                    item.costs.append(cost)
    return [_row(item, found) for item in found]


async def _asked(contender: Child, records: int, batch: int, there: Beside | None = None) -> Cost:
    before = there.cpu if there else 0.0
    said = await contender.ask(records=records, batch=batch)
    own = there.cpu - before if there else 0.0
    return Cost(said["seconds"] / records, said["cpu"] / records, own / records)


def _row(item: Found, found: list[Found]) -> dict[str, Any]:
    of = {(other.label, other.batch, other.repeated): other.costs for other in found}

    def beside(label: str, part: int, repeated: int = 0) -> float | None:
        other = of.get((label, item.batch, repeated))
        if other is None or other is item.costs:
            return None
        pairs = zip(item.costs, other, strict=True)
        # Of rates for seconds: how much of the other's it reaches; of processor time: how much more it takes.
        return ratio(((b[0], a[0]) if not part else (a[1], b[1])) for a, b in pairs)

    engine = "SQLite" if item.label == ALL_ROWS else item.label.removeprefix("variantd, ")
    engine = engine.replace("NORMAL", "SQLite")
    ours = item.label.startswith("variantd")
    return {
        "of": item.label + (f", {item.repeated} % again" if item.repeated else ""),
        "batch": item.batch,
        "repeated": item.repeated,
        "rounds": len(item.costs),
        **_figures(item.costs),
        "ofBare": beside(f"bare {engine}", 0),
        "ofRows": beside(ALL_ROWS, 0) if ours and engine == "SQLite" else None,
        "ofFresh": beside(item.label, 0) if item.repeated else None,
        "cpuOfBare": beside(f"bare {engine}", 1),
        "cpuOfRows": beside(ALL_ROWS, 1) if ours and engine == "SQLite" else None,
        "cpuOfParsing": beside("parsing alone", 1) if ours else None,
        "ofNormal": beside("variantd, NORMAL", 0)
        if item.label == "variantd, SQLite" and not item.repeated
        else None,
    }


def _figures(costs: list[Cost]) -> dict[str, Any]:
    """Rate and processor time, PostgreSQL's own where it is known."""
    own = [cost.postgres * 1e6 for cost in costs]
    return {
        "perSecond": median((1 / cost.seconds for cost in costs), 0),
        "cpuMicros": median((cost.cpu * 1e6 for cost in costs), 1),
        "postgresMicros": median(own, 1) if any(own) else None,
    }


# -- by what is there


async def grown(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """What a record costs by how many events there are already; batches of 500, none of them repeated."""
    found = []
    sizes = sorted(map(int, given.grow.split(",")))
    with _engines(given) as engines:
        for label, words_for in engines.items():
            async with side(folder / label, given.participants, *words_for(folder)) as one:
                await one.take(min(SEED, *sizes), BATCHES[-1], 0)
                one.there.run(
                    *(f"create temporary table seed_{name} as select * from {name}" for name in COPIED)
                )
                seeds, copies = one.there.counted("select count(*) from seed_event"), 0
                for size in sizes:
                    while one.sent + (copies + 1) * seeds <= size:
                        copies += 1
                        _copy(one.there, copies)
                    one.there.settle()
                    await one.take(given.records, BATCHES[-1], 0)  # warms up
                    held = one.sent + copies * seeds
                    costs = [await one.take(given.records, BATCHES[-1], 0) for _ in range(given.rounds)]
                    row = {
                        "of": f"variantd, {label}",
                        "events": held,
                        "rounds": given.rounds,
                        **_figures(costs),
                        "bytes": round(one.there.bytes / (one.sent + copies * seeds)),
                    }
                    pass_on(**row)
                    found.append(row)
    return found


def _copy(database: Beside, number: int) -> None:
    """The seeds are there once more, so many times `APART` before."""
    before = number * APART
    for table, key in COPIED.items():
        changed = {
            key: database.earlier(key, before // 1_000),
            "arrival": f"arrival - {number * SEED}",
            **{name: f"{name} - {before}" for name in ("occurred_at", "recorded_at", "received_at")},
        }
        columns = database.columns(table)
        values = ", ".join(changed.get(name, name) for name in columns)
        database.run(
            f"insert into {table} ({', '.join(columns)}) select {values} from seed_{table} order by {key}"
        )


async def peopled(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """What costs how much by how many participants there are, each time over a database of its own."""
    found = []
    with _engines(given) as engines:
        for size in map(int, given.people.split(",")):
            for label, words_for in engines.items():
                own = folder / f"{label}-{size}"
                async with side(own, size, *words_for(own)) as one:
                    await one.take(
                        max(size, given.records), BATCHES[-1], 0
                    )  # what everybody has is told first
                    costs = [await one.take(given.records, BATCHES[-1], 0) for _ in range(given.rounds)]
                    await one.looked()  # warms up
                    looks = [await one.looked() for _ in range(given.rounds)]
                row = {
                    "of": f"variantd, {label}",
                    "participants": size,
                    "hosts": len(one.hosts),
                    "rounds": given.rounds,
                    "startSeconds": median([one.started.seconds * size]),
                    "startMicros": median([one.started.cpu * 1e6], 0),
                    "startPostgresMicros": median([one.started.postgres * 1e6], 0) or None,
                    **_figures(costs),
                    "resultsSeconds": median((look.seconds for look in looks), 3),
                    "resultsMillis": median((look.cpu * 1e3 for look in looks), 1),
                }
                pass_on(**row)
                found.append(row)
    return found


@contextmanager
def _engines(given: argparse.Namespace) -> Iterator[dict[str, Callable[[Path], tuple[str, ...]]]]:
    """The databases there are to be, and what tells a server to have one of the folder's own."""
    if not given.postgres:
        yield {"SQLite": lambda _: ()}
        return
    from tests.support import postgres

    with durable():
        yield {"SQLite": lambda _: (), "PostgreSQL": lambda folder: ("--database", postgres.url_of(folder))}


def main() -> None:
    """The table, then the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=20_000, help="of each contender in a round")
    parser.add_argument("--participants", type=int, default=100)
    parser.add_argument("--grow", metavar="N,…", help="measure when there are so many events instead")
    parser.add_argument("--people", metavar="N,…", help="measure with so many participants instead")
    parser.add_argument("--no-postgres", dest="postgres", action="store_false")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        work = grown if given.grow else peopled if given.people else measure
        found = asyncio.run(work(folder, given))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sizes = {"rounds": given.rounds, "records": given.records, "participants": given.participants}
    rates = {"perSecond": "per second", "cpuMicros": "CPU µs", "postgresMicros": "PostgreSQL's CPU µs"}
    if given.grow:
        columns = {"of": "records into", "events": "events there", **rates, "bytes": "bytes an event"}
        tell("ingest-grown", columns, found, **sizes)
        return
    if given.people:
        columns = {
            "of": "records into",
            "participants": "participants",
            "startSeconds": "start, s",
            "startMicros": "start, CPU µs each",
            "startPostgresMicros": "PostgreSQL's",
            **rates,
            "resultsSeconds": "results, s",
            "resultsMillis": "results, CPU ms",
        }
        tell("ingest-people", columns, found, **sizes)
        return
    columns = {
        "of": "records into",
        "batch": "batch",
        **rates,
        "ofBare": "rate × bare",
        "cpuOfBare": "CPU × bare",
        "ofRows": "rate × all rows",
        "cpuOfRows": "CPU × all rows",
        "cpuOfParsing": "CPU × parsing",
        "ofFresh": "rate × without repeats",
        "ofNormal": "rate × NORMAL",
    }
    tell("ingest", columns, found, **sizes)


if __name__ == "__main__":
    main()
