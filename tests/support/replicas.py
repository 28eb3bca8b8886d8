"""Several control planes over one PostgreSQL: in this process, or processes of their own behind a balancer."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import SecretStr

from tests.support import postgres
from tests.support.fleet import ControlPlane, Fleet, Process, program
from tests.support.network import Network, proxied
from tests.support.plane import Identity, Plane, running_plane


@asynccontextmanager
async def replicated(folder: Path, *names: str, **more: Any) -> AsyncIterator[list[Plane]]:
    """A control plane of each name over the folder's database, with one authority and one operator's key."""
    url = SecretStr(postgres.url_of(folder))
    try:
        async with AsyncExitStack() as stack:
            planes: list[Plane] = []
            for name in names:
                data = folder / name
                if planes:
                    data.mkdir(exist_ok=True)
                    shutil.copy(planes[0].data / "operator.api-key", data / "operator.api-key")
                entered = running_plane(data, database=url, ca_key_file=folder / "authority.pem", **more)
                planes.append(await stack.enter_async_context(entered))
            yield planes
    finally:
        postgres.drop(folder)


def at(identity: Identity, plane: Plane) -> Identity:
    """The agent, whose way leads to that control plane."""
    return replace(identity, address=plane.addresses["agents"])


# -- processes of their own


@dataclass
class Balancer:
    """A plain TCP balancer: each connection goes to the next target that takes it, and ends with either side."""

    targets: list[str] = field(default_factory=list)
    address: str = ""
    _next: int = 0
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._pass(reader, writer)
        except asyncio.CancelledError:
            pass  # the end of the test
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._next += 1
        for turn in range(len(self.targets)):
            host, _, port = self.targets[(self._next + turn) % len(self.targets)].rpartition(":")
            with suppress(OSError):
                upstream, onward = await asyncio.open_connection(host, int(port))
                break
        else:
            return
        ways = [asyncio.create_task(_pump(reader, onward)), asyncio.create_task(_pump(upstream, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            onward.transport.abort()

    async def end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def balanced() -> AsyncIterator[Balancer]:
    """A balancer that listens, with no targets yet."""
    balancer = Balancer()
    server = await asyncio.start_server(balancer.serve, "127.0.0.1", 0)
    balancer.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield balancer
    finally:
        server.close()
        await balancer.end()


@dataclass
class Cluster:
    """Replicas as real processes, behind balancers; `network` is the last one's way to the database, which is `url`."""

    url: str
    replicas: list[ControlPlane]
    fleet: Fleet
    network: Network

    async def metric(self, replica: ControlPlane, name: str) -> float:
        """What the replica counts."""
        async with self.fleet.plane.http.get(f"http://{replica.addresses['http']}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))

    async def leaders(self, *among: ControlPlane) -> list[ControlPlane]:
        """Who of them (of all) leads by its own word."""
        return [one for one in among or self.replicas if await self.metric(one, "variantd_leads")]


@asynccontextmanager
async def cluster(folder: Path, count: int = 3) -> AsyncIterator[Cluster]:
    """So many replicas, up, with shortened waits; every process is stopped at the end."""
    url = postgres.url_of(folder)
    at_, by = postgres.by_tcp(url)
    async with AsyncExitStack() as stack:
        stack.callback(postgres.drop, folder)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        doors = {name: await stack.enter_async_context(balanced()) for name in ("http", "operator", "agents")}
        network = await stack.enter_async_context(proxied(at_))
        settings = folder / "replica.toml"
        settings.write_text(
            f'ca_key_file = "{folder / "authority.pem"}"\n'
            f'advertise_operator = ["{doors["operator"].address}"]\n'
            f'advertise_agents = ["{doors["agents"].address}"]\n'
        )
        made = Cluster(
            url=url,
            replicas=[],
            fleet=Fleet(
                folder=folder,
                plane=ControlPlane(
                    data=folder / "replica-1",
                    process=Process(command=[], log=folder / "none"),
                    http=http,
                    addresses={name: door.address for name, door in doors.items()},
                ),
                quick=True,
            ),
            network=network,
        )
        stack.push_async_callback(_stop, made, folder)
        for number in range(1, count + 1):
            its_url = by.format(network.address) if number == count else url
            words = ["serve", "--config", str(settings), "--database", its_url]
            words += ["--data-dir", str(folder / f"replica-{number}")]
            words += [word for name in doors for word in (f"--{name}", "127.0.0.1:0")]
            process = Process(
                command=[*program("variantd", quick=True), *words], log=folder / f"replica-{number}.log"
            )
            replica = ControlPlane(data=folder / f"replica-{number}", process=process, http=http)
            made.replicas.append(replica)
            await replica.start()
            for name, door in doors.items():
                door.targets.append(replica.addresses[name])
        yield made


async def _stop(made: Cluster, folder: Path) -> None:
    processes = [host.process for host in made.fleet.hosts] + [one.process for one in made.replicas]
    for process in processes:
        if process.child is not None and process.child.returncode is None:
            process.resume()
    stopped = await asyncio.gather(*(one.stop() for one in processes), return_exceptions=True)
    assert [code for code in stopped if code != 0] == [], "a process did not stop cleanly"
    for log in folder.glob("*.log"):
        assert "Traceback" not in log.read_text(), log.read_text()[-4000:]
