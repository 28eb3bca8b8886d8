"""Faults in a random order, from a seed: made, played on real processes, and made smaller while they still fail.

A schedule is a list of events with a time each, so that any part of it is a schedule too. The same seed gives the
same schedule; what the machine makes of it differs, so a failure found once may need several runs to show again.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.support.arena import Trial, reroute, trial_on
from tests.support.fleet import Fleet, Process, running_fleet
from tests.support.network import DOWN, UP, Network, proxied
from tests.support.waiting import eventually

HOSTS = 2
SPACING = 0.5  # seconds between two events, on average

KINDS = {
    "order": 4,
    "hold": 2,
    "hold up": 1,
    "hold down": 1,
    "half-open": 1,
    "reset": 1,
    "slow": 1,
    "cut": 1,
    "corrupt": 1,
    "kill agent": 2,
    "stop agent": 1,
    "kill server": 1,
    "stop server": 1,
}
"""Every kind of event, and how often it is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens at a moment (seconds) to a host (by number), for so many seconds."""

    at: float
    kind: str
    host: int
    lasts: float

    def __str__(self) -> str:
        return f"{self.at:.2f} s: {self.kind}, host {self.host}, for {self.lasts:.2f} s"


def size(name: str, *, small: int, large: int) -> int:
    """How much of something is tried: FAULTS_name, or `large` where FAULTS is `large`, as `make faults` has it."""
    told = os.environ.get(f"FAULTS_{name}")
    return int(told) if told else large if os.environ.get("FAULTS") == "large" else small


def drawn(seed: int, count: int) -> list[Event]:
    """The schedule of a seed."""
    random = Random(seed)
    kinds = [kind for kind, times in KINDS.items() for _ in range(times)]
    return [
        Event(
            at=round((number + random.random()) * SPACING, 3),
            kind=random.choice(kinds),
            host=random.randrange(HOSTS),
            lasts=round(random.uniform(0.1, 2.0), 3),
        )
        for number in range(count)
    ]


async def smaller(
    events: Sequence[Event], fails: Callable[[Sequence[Event]], Awaitable[bool]], *, tries: int
) -> list[Event]:
    """A part of `events` that still `fails`, from which no further piece could be dropped within so many tries."""
    kept, piece = list(events), max(1, len(events) // 2)
    while tries > 0:
        start = 0
        while start < len(kept) and tries > 0:
            without = kept[:start] + kept[start + piece :]
            tries -= 1
            if without and await fails(without):
                kept = without
            else:
                start += piece
        if piece == 1:
            break
        piece //= 2
    return kept


@dataclass
class Stage:
    """A fleet with a network for each host, on which events happen."""

    fleet: Fleet
    trial: Trial
    networks: list[Network]
    _turns: defaultdict[int, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def play(self, events: Sequence[Event]) -> None:
        """Everything happened, reports kept coming in, and all faults are over."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            applications = [group.create_task(self._application(number, stop)) for number in range(HOSTS)]
            faults = [group.create_task(self._happen(event)) for event in events]
            await asyncio.gather(*faults)
            for network in self.networks:
                network.heal()
            stop.set()
            await asyncio.gather(*applications)

    async def _application(self, number: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with suppress(asyncio.TimeoutError):
                await self.trial.try_report(self.fleet.hosts[number])
            await asyncio.sleep(0.03)

    async def _happen(self, event: Event) -> None:
        await asyncio.sleep(event.at)
        host, network = self.fleet.hosts[event.host], self.networks[event.host]
        kind = event.kind
        if kind == "order":
            await self._order(event.host)
        elif kind.startswith("hold"):
            network.hold(*{"hold": (), "hold up": (UP,), "hold down": (DOWN,)}[kind])
            await asyncio.sleep(event.lasts)
            network.let_go()
        elif kind == "half-open":
            network.half_open()
        elif kind == "reset":
            network.reset()
        elif kind == "slow":
            network.delay, network.rate = 0.02, 200_000.0
            await asyncio.sleep(event.lasts)
            network.delay, network.rate = 0.0, None
        elif kind == "cut":
            network.cut_present(DOWN, int(event.lasts * 1_000))
        elif kind == "corrupt":
            network.corrupt_present(int(event.lasts * 1_000))
        elif kind.endswith("agent"):
            await self._process(host.process, kind, event.lasts, host.start)
        else:
            with self.trial.oracle.excused():
                await self._process(self.fleet.plane.process, kind, event.lasts, self.fleet.plane.start)

    async def _order(self, number: int) -> None:
        """The order is given, again and again until the control plane has taken it."""
        async with self._turns[number]:
            await self.trial.order_until_taken(self.fleet.hosts[number])

    async def _process(
        self, process: Process, kind: str, lasts: float, start: Callable[[], Awaitable[None]]
    ) -> None:
        async with self._turns[id(process)]:
            if kind.startswith("kill"):
                await process.kill()
                await asyncio.sleep(lasts)
                await start()
            else:
                process.pause()
                await asyncio.sleep(lasts)
                process.resume()


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    """Two hosts that hold the first version, each behind a network of its own."""
    async with running_fleet(folder, quick=True) as fleet, AsyncExitStack() as stack:
        networks = []
        for number in range(HOSTS):
            host = await fleet.add_host(f"host-{number}", f"bot-{number}", starts=False)
            network = await stack.enter_async_context(proxied(fleet.plane.addresses["agents"]))
            reroute(host.state, network.address)
            networks.append(network)
            await host.start()
        trial = trial_on(fleet, versions=60)
        yield Stage(fleet=fleet, trial=trial, networks=networks)


async def played(folder: Path, events: Sequence[Event]) -> None:
    """The schedule was played on processes of its own, and the oracle is content."""
    folder.mkdir()
    async with staged(folder) as stage:
        trial, fleet = stage.trial, stage.fleet

        async def operator() -> int:
            status, _ = await fleet.plane.rest("GET", "/v1/experiments?limit=1")
            return status

        async with trial.oracle.watching(operator):
            await trial.begin()
            await trial.oracle.converged()
            await stage.play(events)
            for host in fleet.hosts:
                await trial.shown(host, "connected")
            await trial.settled()
        trial.oracle.answered(failing=0.02)
        await eventually(lambda: len(trial.oracle.accepted) > 0)
