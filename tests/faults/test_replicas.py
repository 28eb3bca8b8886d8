"""Faults of replicas: killed, cut off from the database, stopped past their lease, restarted one after another.

Three real processes over a real PostgreSQL behind a plain TCP balancer, with real agents and applications that report
all the time. What has to hold at the end is exact: every report counted once, every file as ordered last, everything
due done once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest

from shared.clock import SystemClock
from shared.moment import SECOND, to_rfc3339
from tests.support.fleet import ControlPlane, Host, Ledger
from tests.support.replicas import Cluster, cluster
from tests.support.waiting import eventually

HOSTS = {"one": ("bot-1", "bot-2"), "two": ("bot-3", "bot-4"), "three": ("bot-5", "bot-6")}
BOTS = tuple(bot for bots in HOSTS.values() for bot in bots)
PENDING = (
    "select count(*) from timer t join experiment e on e.id = t.experiment_id"
    " where e.key = %s and t.kind = 'start' and t.done_at is null"
)


class Load:
    """What goes on all the time: reports on every host, and now and then an order for everybody."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.ledger = cluster, Ledger()
        self._variants: dict[str, str] = {}
        self._order = 1

    async def begin(self) -> None:
        """One experiment is measured, another takes in newcomers, of a third variants are ordered by hand."""
        for late in ("late-1", "late-2"):
            await self.post("/v1/participants", {"id": late, "labels": {"late": "yes"}})
        bots: dict[str, Any] = {"ids": BOTS}
        for key, target, weights, meant in (
            ("tone", "soul.md", (50, 50), bots),
            ("late", "late.md", (50, 50), {"labels": {"late": "yes"}}),
            ("orders", "orders.md", (100, *[0] * 15), bots),
        ):
            variants = [
                {
                    "name": f"v{number}",
                    "key": f"v{number}",
                    "content": f"{key} {number}\n",
                    "weight": weight,
                    "isControl": number == 1,
                }
                for number, weight in enumerate(weights, start=1)
            ]
            made = await self.post(
                "/v1/experiments",
                {
                    "name": key,
                    "key": key,
                    "targetFile": target,
                    "variants": variants,
                    "participants": meant,
                    "exposureCriteria": {"settleSeconds": 0},
                },
            )
            await self.post(f"/v1/experiments/{key}/start")
            self._variants = {item["key"]: item["id"] for item in made["variants"]}
        await self.converged()

    async def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return await self.cluster.fleet.plane.post(path, body, **headers)

    async def until_taken(self, asks: Callable[[], Awaitable[Any]], what: str) -> Any:
        """What is answered at last, however often replicas are away meanwhile."""

        async def taken() -> Any:
            try:
                async with asyncio.timeout(10):
                    return [await asks()]
            except (aiohttp.ClientError, TimeoutError):
                return None

        return (await eventually(taken, what=what))[0]

    async def order(self) -> None:
        """Everybody is to hold the next version, each by one order that may be repeated."""
        self._order += 1
        for bot in BOTS:
            body = {"participantId": bot, "variantId": self._variants[f"v{self._order}"]}
            await self.until_taken(
                lambda body=body: self.post(  # type: ignore[misc]
                    "/v1/experiments/orders/deployments",
                    body,
                    Idempotency_Key=f"{body['participantId']}-{body['variantId']}",
                ),
                f"order {self._order} for {bot}",
            )

    async def converged(self) -> None:
        """Every file is as ordered last."""
        wanted = f"orders {self._order}\n".encode()
        hosts = self.cluster.fleet.hosts
        files = [host.file(bot, "orders.md") for host in hosts for bot in host.participants]
        await eventually(
            lambda: all(file.read_bytes() == wanted for file in files),
            what=f"every file holds order {self._order}",
        )

    @asynccontextmanager
    async def reporting(self) -> AsyncIterator[None]:
        """Applications on every host report meanwhile."""
        stop = asyncio.Event()

        async def application(host: Host) -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                for bot in host.participants:
                    await self.ledger.report(host, bot, convert=turn % 2 == 0)
                await asyncio.sleep(0.1)

        async with asyncio.TaskGroup() as group:
            for host in self.cluster.fleet.hosts:
                group.create_task(application(host))
            try:
                yield
            finally:
                stop.set()

    async def counted(self) -> None:
        """Results are what applications were promised: nothing lost, nothing twice."""
        assigned = await self.cluster.fleet.assigned("tone")
        promised = self.ledger.sums(assigned)

        async def same() -> bool:
            return await self.cluster.fleet.plane.results("tone", "done") == promised

        await eventually(same, what=f"results equal {promised}")

    async def connected(self, *asked: ControlPlane) -> None:
        """Every one of the replicas that are asked (of all) shows everybody connected."""

        async def shown() -> bool:
            for replica in asked or self.cluster.replicas:
                url = f"http://{replica.addresses['http']}/v1/participants?presence=connected"
                key = (self.cluster.fleet.plane.data / "operator.api-key").read_text().strip()
                headers = {"Authorization": f"Bearer {key}"}
                async with self.cluster.fleet.plane.http.get(url, headers=headers) as answer:
                    if answer.status != 200 or len((await answer.json())["entities"]) != len(BOTS):
                        return False
            return True

        await eventually(shown, what="everybody is shown connected")

    async def schedule(self, name: str, seconds: float) -> None:
        """An experiment starts by itself so many seconds from now."""
        variants = [
            {"name": key, "key": key, "content": f"{name} {key}\n", "weight": 50, "isControl": key == "a"}
            for key in ("a", "b")
        ]
        moment = to_rfc3339(SystemClock().now() + round(seconds * SECOND))
        values = {"name": name, "key": name, "targetFile": f"{name}.md", "variants": variants}
        await self.post(
            "/v1/experiments", {**values, "participantIds": BOTS, "schedule": {"startAt": moment}}
        )

    async def started_once(self, *names: str) -> None:
        """Each of these was started by a timer, and by one."""

        async def running() -> bool:
            found = [await self.cluster.fleet.plane.get(f"/v1/experiments/{name}") for name in names]
            return {item["status"] for item in found} == {"running"}

        await eventually(running, what="what is scheduled has started")
        page = await self.cluster.fleet.plane.get("/v1/audit-log?operation=Timer.start&limit=100")
        assert len(page["entities"]) == len(names), page


@pytest.mark.timeout(400)
@pytest.mark.fault(3, 5, 6, 59)
async def test_whatever_happens_to_replicas_nothing_is_lost_and_nothing_done_twice(tmp_path: Path) -> None:
    """Each is killed, one is cut off, the leader is stopped past its lease, all are restarted: exact at the end."""
    async with cluster(tmp_path) as made:
        for name, bots in HOSTS.items():
            await made.fleet.add_host(name, *bots)
        load = Load(made)
        await load.begin()
        async with load.reporting():
            await killed_each(made, load)
            await cut_off_from_the_database(made, load)
            started = await stopped_past_its_lease(made, load)
            await restarted_one_after_another(made, load)
        await load.order()
        await load.converged()
        await load.counted()
        await load.started_once(*started)


async def killed_each(made: Cluster, load: Load) -> None:
    """A replica is gone without a word; its agents are at others, orders are taken and delivered, it comes back."""
    for replica in made.replicas:
        await replica.process.kill()
        await load.order()
        await load.converged()
        await replica.start()
    await load.connected()


async def cut_off_from_the_database(made: Cluster, load: Load) -> None:
    """It says that it is not ready and keeps nobody; once the way is free it serves again."""
    last = made.replicas[-1]

    async def status() -> int:
        async with made.fleet.plane.http.get(f"http://{last.addresses['http']}/readyz") as answer:
            return answer.status

    async def alone() -> bool:
        return await status() == 503 and await made.metric(last, "variantd_sessions") == 0

    async def ready() -> bool:
        return await status() == 200

    made.network.hold()
    try:
        await eventually(alone, what="the replica that is cut off has sent its agents away")
        await load.connected(*made.replicas[:-1])
        await load.order()
        await load.converged()
    finally:
        made.network.let_go()
    await eventually(ready, what="it serves again")


async def stopped_past_its_lease(made: Cluster, load: Load) -> list[str]:
    """Another leads and does what is due; what the former one was about to do is refused. Returns what was started."""
    [leader] = await eventually(made.leaders, what="one leads")
    others = [one for one in made.replicas if one is not leader]
    before = await made.metric(leader, "variantd_fenced_writes")
    due = await stopped_about_to_start(made, load, leader)
    try:
        await eventually(lambda: made.leaders(*others), what="another leads")
        await load.until_taken(lambda: load.started_once(*due), "what is scheduled")
    finally:
        leader.process.resume()

    async def fenced() -> bool:
        return await made.metric(leader, "variantd_fenced_writes") == before + 1

    await eventually(fenced, what="the start that it had in hand is refused by its fence")
    assert len(await made.leaders()) == 1
    await load.started_once(*due)
    await load.connected()
    return due


async def stopped_about_to_start(made: Cluster, load: Load, leader: ControlPlane) -> list[str]:
    """The leader stands still over its look at what is due, with its token in hand; what was scheduled so far."""
    names: list[str] = []
    async with await psycopg.AsyncConnection.connect(made.url, autocommit=True) as looking:

        async def waits() -> bool:
            found = await looking.execute(
                "select count(*) from pg_locks l join pg_stat_activity a using (pid)"
                " where l.relation = 'timer'::regclass and not l.granted and a.query like 'select%'"
            )
            return await found.fetchone() == (1,)

        while True:
            names.append(f"due-{len(names) + 1}")
            await load.schedule(names[-1], 3.0)
            async with await psycopg.AsyncConnection.connect(made.url) as holding:
                await holding.execute("lock table timer in access exclusive mode")
                await eventually(waits, what="the leader looks at what is due")
                found = await holding.execute(PENDING, (names[-1],))
                if await found.fetchone() == (1,):  # or it was quicker than this, and another is needed
                    leader.process.pause()
                    return names


async def restarted_one_after_another(made: Cluster, load: Load) -> None:
    """Each hands its agents over and ends cleanly; orders go on being taken and delivered."""
    for replica in made.replicas:
        assert await replica.process.stop() == 0
        await load.order()
        await load.converged()
        await replica.start()
    await load.connected()
    handed_over = sum("link.handed_over" in (made.fleet.folder / f"{name}.log").read_text() for name in HOSTS)
    assert handed_over > 0
