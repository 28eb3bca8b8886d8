"""A control plane and agents in this process, a network between them that can fail, and the oracle over both.

Everything is real but the times, which are shortened (`tests.support.quick`), and the network, which does what it
is told (`tests.support.network`). Orders are numbered contents of one target file for each participant.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Protocol

import aiohttp

from agent import app
from agent import identity as identities
from agent.config import load
from agent.enrollment import enroll
from shared.clock import Clock, SystemClock
from tests.support.control_plane import in_background
from tests.support.fleet import Fleet
from tests.support.local import call
from tests.support.network import Network, proxied
from tests.support.oracle import Oracle
from tests.support.plane import Plane, running_plane
from tests.support.waiting import PATIENCE, eventually

TARGET = "soul.md"


def content(version: int, *, size: int = 0) -> bytes:
    """What the order of that number writes."""
    return f"version {version}\n".encode().ljust(size, b".")


@dataclass
class ArenaHost:
    """A host: its files, its agent while one runs, and its way to the control plane."""

    folder: Path
    name: str
    participants: tuple[str, ...]
    network: Network
    clock: Clock

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def socket(self) -> Path:
        return self.folder / "agent.sock"

    def file(self, participant: str) -> Path:
        """The target of a participant."""
        return self.folder / participant / TARGET

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Its agent runs, and is ready; stopped cleanly at the end."""
        stop = asyncio.Event()
        config = load(self.folder / "agent.toml")
        work = app.run(config, self.state, stop, clock=self.clock, random=Random(7))
        async with in_background(work) as task:

            def ready() -> bool:
                if task.done():
                    task.result()
                return (self.state / "addresses.json").exists()

            await eventually(ready, what="the agent is ready")
            yield
            stop.set()
            await asyncio.wait_for(task, PATIENCE)

    async def status(self) -> Any:
        """What the agent says of itself."""
        return (await call(self.socket, "/status")).body

    async def connected(self) -> None:
        """A session is open."""

        async def is_connected() -> bool:
            return bool((await self.status())["session"]["state"] == "connected")

        await eventually(is_connected, what=f"{self.name} is connected")

    async def disconnected(self, *, within: float = PATIENCE) -> None:
        """The agent knows that no session is open."""

        async def is_not() -> bool:
            return bool((await self.status())["session"]["state"] != "connected")

        await eventually(is_not, within=within, what=f"{self.name} notices")


class Target(Protocol):
    """A host of either kind, as far as orders and reports go."""

    @property
    def name(self) -> str: ...
    @property
    def participants(self) -> Sequence[str]: ...
    @property
    def socket(self) -> Path | str: ...
    def file(self, participant: str) -> Path: ...


@dataclass
class Trial:
    """An experiment of numbered contents, whose orders and reports the oracle is told of."""

    oracle: Oracle
    post: Callable[..., Awaitable[Any]]
    get: Callable[[str], Awaitable[Any]]
    size: int = 0
    versions: int = 16
    targets: Sequence[Target] = ()
    experiment: dict[str, Any] = field(default_factory=dict)
    _orders: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _events: Iterator[int] = field(default_factory=itertools.count)

    async def begin(self, *others: str) -> None:
        """An experiment over all participants, and `others`, has started: everybody is to hold the first version."""
        variants = [
            {
                "name": f"v{number}",
                "key": f"v{number}",
                "content": content(number, size=self.size).decode(),
                "weight": 100 if number == 1 else 0,
                "isControl": number == 1,
            }
            for number in range(1, self.versions + 1)
        ]
        participants = [name for host in self.targets for name in host.participants]
        values = {
            "name": "Arena",
            "key": "arena",
            "targetFile": TARGET,
            "variants": variants,
            "participantIds": [*participants, *others],
            "exposureCriteria": {"settleSeconds": 0},
        }
        self.experiment = await self.post("/v1/experiments", values)
        first = next(self._orders)
        for host in self.targets:
            for name in host.participants:
                self.oracle.ordered(host.file(name), content(first, size=self.size))
        await self.post("/v1/experiments/arena/start", None)

    async def order(self, host: Target) -> int:
        """Everybody on the host is to hold the next version; its number."""
        number = next(self._orders)
        for name in host.participants:
            self.oracle.ordered(host.file(name), content(number, size=self.size))
            await self.deploy(name, number)
        return number

    async def order_until_taken(self, host: Target) -> None:
        """As `order`, under one idempotency key for each order, however often the control plane is away meanwhile."""
        number = next(self._orders)
        for name in host.participants:
            self.oracle.ordered(host.file(name), content(number, size=self.size))

            async def taken(name: str = name) -> bool:
                try:
                    await self.deploy(name, number, key=f"order-{name}-{number}")
                except aiohttp.ClientError as error:
                    raise AssertionError(repr(error)) from error
                return True

            await eventually(taken, within=120, what=f"the order of version {number} is taken")

    async def deploy(self, participant: str, version: int, *, key: str = "") -> None:
        """The participant is to hold that version; the same `key` again is the same order."""
        variant = next(v["id"] for v in self.experiment["variants"] if v["key"] == f"v{version}")
        order = {"participantId": participant, "variantId": variant}
        headers = {"Idempotency_Key": key} if key else {}
        await self.post("/v1/experiments/arena/deployments", order, **headers)

    async def report(self, host: Target, count: int) -> None:
        """So many impressions were accepted by the host's local API."""
        for _ in range(count):
            assert await self.try_report(host)

    async def try_report(self, host: Target) -> bool:
        """Whether one impression was accepted."""
        number = next(self._events)
        name = host.participants[number % len(host.participants)]
        return await self.oracle.report(host.socket, name, f"e{number}")

    async def presence(self, host: Target) -> str:
        """How the control plane shows the host."""
        return str((await self.get(f"/v1/participants/{host.participants[0]}"))["presence"])

    async def shown(self, host: Target, presence: str, *, within: float = PATIENCE) -> None:
        """The control plane shows the host so, within the bound."""

        async def is_shown() -> bool:
            return await self.presence(host) == presence

        await eventually(is_shown, within=within, what=f"{host.name} is shown {presence}")

    async def settled(self, *, within: float = PATIENCE) -> None:
        """Faults are over: files converge, every report is accounted for, everything seen was ordered."""
        await self.oracle.converged(within=within)
        await self.oracle.accounted(within=within)
        self.oracle.whole()


@dataclass
class Arena(Trial):
    """A trial on a control plane and hosts of this process."""

    plane: Plane = None  # type: ignore[assignment]
    hosts: list[ArenaHost] = field(default_factory=list)

    async def operator(self) -> int:
        """The status of one cheap question."""
        return (await self.plane.rest("GET", "/v1/experiments?limit=1")).status


def trial_on(fleet: Fleet, *, versions: int = 16) -> Trial:
    """A trial on the hosts of a fleet of real processes, as they are now."""
    made = Trial(
        oracle=Oracle(database=fleet.plane.data / "variantd.db"),
        post=fleet.plane.post,
        get=fleet.plane.get,
        targets=fleet.hosts,
        versions=versions,
    )
    for host in fleet.hosts:
        for name in host.participants:
            made.oracle.target(host.file(name))
    return made


def reroute(state: Path, address: str) -> None:
    """The enrolled agent of a state directory reaches its control plane at `address`."""
    path = state / "identity" / "addresses.json"
    addresses = json.loads(path.read_text())
    path.write_text(json.dumps({**addresses, "agents": [address]}))


def write_config(folder: Path, name: str, participants: tuple[str, ...], **settings: str) -> None:
    """agent.toml and workspaces with a baseline."""
    lines = ["[agent]", f'name = "{name}"', 'local_http = "127.0.0.1:0"', 'socket = "agent.sock"']
    for participant in participants:
        (folder / participant).mkdir(parents=True)
        (folder / participant / TARGET).write_bytes(f"I am {participant}.\n".encode())
        lines += [
            "[[participants]]",
            f'id = "{participant}"',
            f'root = "{participant}"',
            'targets = ["*.md"]',
        ]
        lines += [f"{key} = {value}" for key, value in settings.items()]
    (folder / "agent.toml").write_text("\n".join(lines) + "\n")


@asynccontextmanager
async def arena(
    folder: Path,
    *hosts: tuple[str, ...],
    clock: Clock | None = None,
    size: int = 0,
    versions: int = 16,
    **settings: Any,
) -> AsyncIterator[Arena]:
    """One enrolled host for each tuple of participants, none running yet, and no experiment.

    There are so many `versions` to order, each of `size` bytes or as few as it takes.
    """
    async with running_plane(folder / "data", clock=clock, **settings) as plane:
        oracle = Oracle(database=folder / "data" / "variantd.db")

        async def get(path: str) -> Any:
            return (await plane.rest("GET", path)).body

        made = Arena(oracle=oracle, post=plane.made, get=get, plane=plane, size=size, versions=versions)
        async with AsyncExitStack() as stack:
            for number, participants in enumerate(hosts or (("bot-1",),), start=1):
                at = folder / f"host-{number}"
                at.mkdir()
                write_config(at, f"host-{number}", participants)
                with identities.hold(at / "state"):
                    await enroll(
                        await plane.token(name=f"host-{number}"), at / "state", name=f"host-{number}"
                    )
                network = await stack.enter_async_context(proxied(plane.addresses["agents"]))
                reroute(at / "state", network.address)
                host = ArenaHost(at, f"host-{number}", participants, network, clock or SystemClock())
                for name in participants:
                    oracle.target(host.file(name))
                made.hosts.append(host)
            made.targets = made.hosts
            yield made
