"""Several servers over one PostgreSQL: `make bench BENCH=replicas`.

What `ingest` and `fanout` measure, with 1, 2 and 4 servers over one database each, in turn within each round: reports
of the same hosts, shared out among the servers, and a change of 2 KiB to a fleet that enrolled in equal parts at each,
until the last outcome is in the database. Writers take turns, so no more a second is to be expected of more servers;
what is looked at is that a record and a delivery cost no more processor time of all servers together, and that none is
lost. What PostgreSQL's own processes took stands beside it, and what a delivery by as many bare grpc.aio servers takes,
with a durable write on each host and no database. Nothing is asserted.
"""

import argparse
import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.bare import Bare, bare_fleet
from tests.bench.beside import durable
from tests.bench.reporting import Cost, Side, costing, side
from tests.bench.simulated import APPLIED, CLOSED, FANOUT_BYTES, draft, fleet, token
from tests.bench.stage import median, pass_on, ratio, tell, until
from tests.support import postgres

BATCH = 500
PARTS = 4  # of a fleet: as many processes simulate it however many servers there are
GIVE_UP_SECONDS = 600.0  # what is not in the database by then is lost


@dataclass
class Contender:
    """So many servers over one database, the hosts that report to them and, once it has joined, their fleet."""

    size: int
    side: Side
    agents: int = 0
    idle: float = 0.0
    """Processor seconds of all servers a second, while nothing changes."""
    stored: int = 0
    """Outcomes of changes that are in the database."""
    bare: list[Bare] = field(default_factory=list)
    """As many bare servers, with as many streams in all."""

    async def join(self, stack: AsyncExitStack, folder: Path, agents: int) -> None:
        """A fleet of so many agents is connected, each to the server at which it enrolled."""
        share = agents // PARTS
        for part in range(PARTS):
            server = self.side.servers[part % self.size]
            async with server.operator() as operator:
                ticket = await token(operator, share)
            own = folder / f"fleet-{part}"
            await stack.enter_async_context(fleet(server, own, ticket, share, first=1 + part * share))
        self.agents = share * PARTS
        beside = [
            await stack.enter_async_context(bare_fleet(folder / f"bare-{number}"))
            for number in range(self.size)
        ]
        for part in range(PARTS):
            bare, hosts = beside[part % self.size]
            await bare.connect(hosts, share)
        self.bare = [bare for bare, _ in beside]

    async def rest(self, seconds: float) -> None:
        """It is known what nothing costs."""
        with costing(self.side.servers, self.side.there, 1) as cost:
            await asyncio.sleep(seconds)
        self.idle = cost().cpu / seconds

    async def changed(self, key: str) -> Cost:
        """What a delivery cost, from the answer to `start` to the last outcome; then everything is over again."""
        operator = self.side.operator
        await operator.made("/v1/experiments", draft(key))
        await operator.made(f"/v1/experiments/{key}/start", {})
        with costing(self.side.servers, self.side.there, self.agents) as cost:
            self.stored += await self._until(APPLIED, key)
        await operator.made(f"/v1/experiments/{key}/complete", {"then": "keep"})
        await self._until(CLOSED, key)
        return cost()

    async def changed_barely(self) -> float:
        """Processor seconds of a delivery by the bare servers."""
        found = await asyncio.gather(*(bare.fan_out(FANOUT_BYTES, durable=True) for bare in self.bare))
        return sum(cpu for _, cpu in found) / self.agents

    async def _until(self, sql: str, key: str) -> int:
        """How many there are, when everybody is there or it has been too long."""
        with suppress(TimeoutError):
            await until(lambda: self.side.there.counted(sql, key) >= self.agents, within=GIVE_UP_SECONDS)
        return self.side.there.counted(sql, key)


async def measure(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the table."""
    async with AsyncExitStack() as stack:
        stack.enter_context(durable())
        contenders = []
        for size in map(int, given.replicas.split(",")):
            own = folder / str(size)
            contenders.append(Contender(size, await stack.enter_async_context(_served(own, size, given))))
        return [
            *await _reports(contenders, given),
            *await _deliveries(folder, contenders, given),
        ]


@asynccontextmanager
async def _served(folder: Path, size: int, given: argparse.Namespace) -> AsyncIterator[Side]:
    """So many servers over a database of their own, and the hosts that report."""
    folder.mkdir()
    config = folder / "variantd.toml"
    config.write_text(f'ca_key_file = "{folder / "authority.pem"}"\n')
    words = ("--config", str(config), "--database", postgres.url_of(folder))
    async with side(folder, given.participants, *words, replicas=size) as made:
        yield made


async def _reports(contenders: list[Contender], given: argparse.Namespace) -> list[dict[str, Any]]:
    found: dict[int, list[Cost]] = {one.size: [] for one in contenders}
    for number in range(given.rounds + 1):
        for one in contenders:
            cost = await one.side.take(given.records, BATCH, 0)
            _pass_on("reports", one, number, cost)
            if number:  # the first round warms up
                found[one.size].append(cost)
    kept = "select (select count(*) from event) + (select count(*) from view)"
    return [
        {
            **_row("reports", one, found),
            "lost": one.side.sent - one.side.there.counted(kept),
        }
        for one in contenders
    ]


async def _deliveries(
    folder: Path, contenders: list[Contender], given: argparse.Namespace
) -> list[dict[str, Any]]:
    found: dict[int, list[Cost]] = {one.size: [] for one in contenders}
    bare: dict[int, list[float]] = {one.size: [] for one in contenders}
    async with AsyncExitStack() as stack:
        for one in contenders:
            await one.join(stack, folder / str(one.size), given.agents)
        for one in contenders:
            await one.rest(given.quiet)
        for number in range(given.rounds + 1):
            for one in contenders:
                cost, least = await one.changed(f"round-{number}"), await one.changed_barely()
                _pass_on("deliveries", one, number, cost)
                if number:
                    found[one.size].append(cost)
                    bare[one.size].append(least)
    return [
        {
            **_row("deliveries", one, found),
            "agents": one.agents,
            "idleMillisEachSecond": round(one.idle * 1e3, 1),
            "beyondIdleMicros": median(((it.cpu - one.idle * it.seconds) * 1e6 for it in found[one.size]), 1),
            "bareMicros": median((least * 1e6 for least in bare[one.size]), 1),
            "bareOfOne": ratio(zip(bare[one.size], next(iter(bare.values())), strict=True)),
            "lost": one.agents * (given.rounds + 1) - one.stored,
        }
        for one in contenders
    ]


def _pass_on(of: str, one: Contender, number: int, cost: Cost) -> None:
    pass_on(
        f"{of}, {one.size} servers, {f'round {number}' if number else 'to warm up'}",
        perSecond=1 / cost.seconds,
        cpuMicros=cost.cpu * 1e6,
        postgresMicros=cost.postgres * 1e6,
    )


def _row(of: str, one: Contender, found: dict[int, list[Cost]]) -> dict[str, Any]:
    costs, first = found[one.size], next(iter(found.values()))
    pairs = list(zip(costs, first, strict=True))
    own = [cost.postgres * 1e6 for cost in costs]
    return {
        "of": of,
        "replicas": one.size,
        "rounds": len(costs),
        "perSecond": median((1 / cost.seconds for cost in costs), 0),
        "rateOfOne": ratio((b.seconds, a.seconds) for a, b in pairs),
        "cpuMicros": median((cost.cpu * 1e6 for cost in costs), 1),
        "cpuOfOne": ratio((a.cpu, b.cpu) for a, b in pairs),
        "postgresMicros": median(own, 1) if any(own) else None,
        "postgresOfOne": ratio((a.postgres, b.postgres) for a, b in pairs) if any(own) else None,
    }


def main() -> None:
    """The table, then the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=20_000, help="of each contender in a round")
    parser.add_argument("--participants", type=int, default=100, help="of the hosts that report")
    parser.add_argument("--agents", type=int, default=200, help="of the fleet that is changed")
    parser.add_argument("--replicas", default="1,2,4", help="sizes with commas between them")
    parser.add_argument(
        "--quiet", type=float, default=10.0, metavar="SECONDS", help="before the first change"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rows = asyncio.run(measure(Path(folder), given))
    columns = {
        "of": "of",
        "replicas": "replicas",
        "perSecond": "per second",
        "rateOfOne": "rate × one",
        "cpuMicros": "CPU µs each",
        "cpuOfOne": "CPU × one",
        "beyondIdleMicros": "beyond idle",
        "postgresMicros": "PostgreSQL's CPU µs",
        "postgresOfOne": "PostgreSQL's × one",
        "bareMicros": "bare CPU µs",
        "bareOfOne": "bare × one",
        "lost": "lost",
    }
    tell("replicas", columns, rows, rounds=given.rounds, records=given.records, agents=given.agents)


if __name__ == "__main__":
    main()
