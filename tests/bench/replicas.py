"""Reports taken in by several servers over one PostgreSQL: `make bench BENCH=replicas`.

The hosts of `ingest`, shared out among 1, 2 and 4 servers over one database each, in turn within each round. Writers
take turns, so no more records a second are to be expected of more servers; what is looked at is that a record costs no
more processor time of all servers together, and that none is lost. Nothing is asserted.
"""

import argparse
import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg

from tests.bench.ingest import CLIENTS, Side, side
from tests.bench.stage import median, ratio, tell
from tests.support import postgres

BATCH = 500


async def measure(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the table."""
    sizes = [int(size) for size in given.replicas.split(",")]
    sides: dict[int, tuple[Side, str]] = {}
    costs: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    async with AsyncExitStack() as stack:
        stack.callback(postgres.end)
        postgres.be_durable()
        for size in sizes:
            own = folder / str(size)
            own.mkdir()
            url = postgres.url_of(own)
            config = own / "variantd.toml"
            config.write_text(f'ca_key_file = "{own / "authority.pem"}"\n')
            words = ("--config", str(config), "--database", url)
            sides[size] = (
                await stack.enter_async_context(side(own, given.participants, *words, replicas=size)),
                url,
            )
        for number in range(given.rounds + 1):
            for size in sizes:
                cost = await sides[size][0].take(given.records, BATCH, 0)
                if number:  # the first round warms up
                    costs[size].append(cost)
        sent = (given.rounds + 1) * max(BATCH, given.records // CLIENTS // BATCH * BATCH) * CLIENTS
        kept = {size: _kept(url) for size, (_, url) in sides.items()}
    first = costs[sizes[0]]
    return [
        {
            "replicas": size,
            "rounds": given.rounds,
            "perSecond": median((1 / seconds for seconds, _ in costs[size]), 0),
            "cpuMicros": median((cpu * 1e6 for _, cpu in costs[size]), 1),
            "cpuOfOne": ratio((own[1], one[1]) for own, one in zip(costs[size], first, strict=True)),
            "rateOfOne": ratio((one[0], own[0]) for own, one in zip(costs[size], first, strict=True)),
            "lost": sent - kept[size],
        }
        for size in sizes
    ]


def _kept(url: str) -> int:
    with psycopg.connect(url) as database:
        found = database.execute(
            "select (select count(*) from event) + (select count(*) from view)"
        ).fetchone()
        return int(found[0]) if found else 0


def main() -> None:
    """The table, then the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=20_000, help="of each contender in a round")
    parser.add_argument("--participants", type=int, default=100)
    parser.add_argument("--replicas", default="1,2,4", help="sizes with commas between them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rows = asyncio.run(measure(Path(folder), given))
    columns = {
        "replicas": "replicas",
        "perSecond": "per second",
        "rateOfOne": "rate × one",
        "cpuMicros": "CPU µs",
        "cpuOfOne": "CPU × one",
        "lost": "lost",
    }
    tell("replicas", columns, rows, rounds=given.rounds, records=given.records)


if __name__ == "__main__":
    main()
