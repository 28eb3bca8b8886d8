"""A control plane and hosts that report to it, as the benchmarks of reports use both.

Each host is a process of its own with its certificate, whose spool is made up: what it sends is made beforehand, and
sent over mutual TLS as fast as it is acknowledged.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from control_plane.services.sessions import MAX_PARTICIPANTS
from shared.model import digest
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from tests.bench.beside import Beside, file, server
from tests.bench.stage import Child, Served, child, served
from tests.support.builders import make_hello
from tests.support.plane import Identity, Plane
from tests.support.stream import session

CLIENTS = 4
LABELS = {"fleet": "reporting"}
PAGE = 100
CONTENT = {"a": "As agreed.\n", "b": "The other one.\n"}


class Cost(NamedTuple):
    """Of one record; `postgres` is what the database's own processes took, where they are known."""

    seconds: float
    cpu: float
    postgres: float = 0.0


@dataclass
class Side:
    """A control plane, of one server or several over one database, and its hosts, which have sent so many records."""

    servers: list[Served]
    operator: Plane
    hosts: list[Child]
    there: Beside
    started: Cost
    """What `start` took, of each participant."""
    sent: int = 0

    async def looked(self) -> Cost:
        """What results of the experiment cost."""
        with costing(self.servers, self.there, 1) as cost:
            page = await self.operator.rest("GET", "/v1/experiments/tone/results")
        assert page.status == 200, page.body
        return cost()

    async def take(self, records: int, batch: int, repeated: int) -> Cost:
        """What a record cost all servers together."""
        part = max(batch, records // len(self.hosts) // batch * batch)
        await asyncio.gather(
            *(host.ask(prepare=True, records=part, batch=batch, repeated=repeated) for host in self.hosts)
        )
        with costing(self.servers, self.there, part * len(self.hosts)) as cost:
            await asyncio.gather(*(host.ask(send=True) for host in self.hosts))
        self.sent += part * len(self.hosts)
        return cost()


@contextmanager
def costing(servers: Sequence[Served], there: Beside, units: int) -> Iterator[Callable[[], Cost]]:
    """What each of so many units cost all servers together and the database, once they are done."""
    found: list[Cost] = []
    cpu, own, began = sum(server.cpu for server in servers), there.cpu, time.perf_counter()
    yield found.pop
    seconds = time.perf_counter() - began
    cpu, own = sum(server.cpu for server in servers) - cpu, there.cpu - own
    found.append(Cost(seconds / units, cpu / units, own / units))


@asynccontextmanager
async def side(
    folder: Path,
    people: int,
    *words: str,
    module: str = "control_plane",
    replicas: int = 1,
) -> AsyncIterator[Side]:
    """A control plane with a running experiment, and hosts of so many participants that take part.

    The hosts are shared out among the replicas.
    """
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(served(folder / str(number), *words, module=module))
            for number in range(replicas)
        ]
        for other in servers[1:]:  # the first operator's key is where the database was made
            shutil.copy(servers[0].data / "operator.api-key", other.data)
        operator = await stack.enter_async_context(servers[0].operator())
        url = words[words.index("--database") + 1] if "--database" in words else ""
        there = stack.enter_context(server(url) if url else file(servers[0].data / "variantd.db"))
        identities, names = await _joined(operator, people)
        await _drafted(operator)
        with costing(servers, there, people) as started:
            await operator.made("/v1/experiments/tone/start", {})
        variants = await _assigned(operator)
        hosts = []
        for number, (identity, part) in enumerate(zip(identities, names, strict=True)):
            host = await stack.enter_async_context(child("tests.bench.contenders", "host"))
            await host.ask(
                key=identity.key.decode(),
                certificate=identity.certificate.decode(),
                ca=identity.ca.decode(),
                address=(servers[number % replicas].addresses or {})["agents"],
                people=part,
                seed=number,
                held={name: digest(CONTENT[variants[name]].encode()).hex() for name in part},
            )
            hosts.append(host)
        yield Side(servers, operator, hosts, there, started())


async def _joined(operator: Plane, people: int) -> tuple[list[Identity], list[list[str]]]:
    """Hosts, as few as may be, and the participants of each."""
    hosts = max(CLIENTS, -(-people // MAX_PARTICIPANTS))
    token = await operator.token(name="bench", maxUses=hosts, labels=LABELS)
    identities = [await operator.enroll(token, name=f"host-{at}") for at in range(hosts)]
    names = [[f"bot-{at}-{number}" for number in range(people // hosts)] for at in range(hosts)]
    for identity, part in zip(identities, names, strict=True):
        async with session(identity, make_hello(*part)) as stream:
            await stream.send(goodbye=pb.Goodbye(reason="stop"))
    return identities, names


async def _drafted(operator: Plane) -> None:
    """An experiment on everybody, which has not begun."""
    variants = [
        {"name": key, "key": key, "content": body, "weight": 50, "isControl": key == "a"}
        for key, body in CONTENT.items()
    ]
    draft = {
        "name": "Tone",
        "targetFile": "soul.md",
        "variants": variants,
        "participants": {"labels": LABELS},
        "metrics": {"primary": {"eventName": "done"}},
        "exposureCriteria": {"settleSeconds": 0},
    }
    await operator.made("/v1/experiments", draft)


async def _assigned(operator: Plane) -> dict[str, str]:
    """Everybody's variant."""
    shown = (await operator.rest("GET", "/v1/experiments/tone")).body
    keys = {variant["id"]: variant["key"] for variant in shown["variants"]}
    found: dict[str, str] = {}
    cursor = ""
    while cursor is not None:
        page = await operator.rest("GET", f"/v1/experiments/tone/assignments?limit={PAGE}&cursor={cursor}")
        for item in page.body["entities"]:
            found[item["participantId"]] = keys[item["variantId"]]
        cursor = page.body["pagination"]["nextCursor"]
    return found
