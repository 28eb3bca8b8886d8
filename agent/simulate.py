"""A fleet on one machine: many agents with sessions, files and spools of their own, from few processes.

For whoever sizes a control plane, and for tests and benchmarks. Nothing is simulated but the hosts: every agent has its
certificate and its mutual-TLS session, applies what it is offered with the very apply machine, fsyncs included, and
spools what its applications would report. What a daemon has besides is missing: a local API, a watch for drift (what is
on disk is looked at whenever an offer comes, and in every Hello), renewal of certificates, hooks.

Agents are shared out among worker processes, because one event loop carries only so many; a worker is a process of its
own from the beginning (gRPC does not survive a fork), told on standard input what to do, telling on standard output how
far it is.
"""

import asyncio
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from random import Random

from agent import identity as identities
from agent.app import reconnect_jitter
from agent.config import AgentConfig, ParticipantConfig
from agent.enrollment import enroll
from agent.link import Link
from agent.reconciler import Reconciler
from agent.spool import Spool
from agent.uplink import Uplink
from shared import logs
from shared.backoff import Backoff
from shared.clock import Clock, SystemClock
from shared.errors import Error, Invalid, ResourceExhausted, Unauthenticated, Unavailable
from shared.ids import new_id, system_random
from shared.lifecycle import on_signals, run_until
from shared.model import Event, EventKind, Outcome

_log = logs.get(__name__)

MAX_AGENTS, MAX_PARTICIPANTS, MAX_PROCESSES = 10_000, 10_000, 64
AGENTS_PER_PROCESS = 200  # beyond which another process is worth its memory, if there is a core for it
PROCESSES_PER_CORE = 2  # threads of one wait for each other even where a core is free
FILES_PER_AGENT = 8  # descriptors: lock, spool, connection, and what an apply has open for a moment
ENROLLING = 16  # at once in a worker
APPLYING = 8  # likewise: who waits for a thread is not slow yet, and has nothing to say about it
PROGRESS_SECONDS = 0.5
STOP_SECONDS = 30.0
LEAVING_SECONDS = 0.05  # for each agent of a worker, where cores are shared with everything else
BASELINE = b"What this host held before any experiment.\n"
BACKOFF = Backoff(base=0.2, factor=2.0, cap=5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A fleet: `agents` numbered from `first`, each with `participants` that report at these rates.

    Reports are impressions: `reports` per participant and minute, at random moments; `conversion` of them, 0 to 1, are
    followed by a conversion `event`.
    """

    directory: str
    token: str
    name: str
    agents: int
    participants: int = 1
    first: int = 1
    target: str = "soul.md"
    reports: float = 0.0
    conversion: float = 0.1
    event: str = "done"

    def shared_out(self, processes: int) -> "list[Plan]":
        """The same fleet, in parts of nearly equal size."""
        sizes = [self.agents // processes + (at < self.agents % processes) for at in range(processes)]
        firsts = [self.first + sum(sizes[:at]) for at in range(processes)]
        return [
            replace(self, agents=size, first=first) for size, first in zip(sizes, firsts, strict=True) if size
        ]


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a fleet is. `applied` counts outcomes, a file that is written twice twice; `failed` those that are not.

    `reported` records are on the hosts' disks, `waiting` of them not yet acknowledged (with views, which are records
    too).
    """

    agents: int = 0
    enrolled: int = 0
    connected: int = 0
    applied: int = 0
    failed: int = 0
    reported: int = 0
    waiting: int = 0

    @classmethod
    def total(cls, parts: "Iterable[Progress]") -> "Progress":
        """All of them together."""
        names = [field.name for field in fields(cls)]
        columns = zip(*map(attrgetter(*names), parts), strict=True)
        return cls(**dict(zip(names, map(sum, columns), strict=False)))


# -- one host -----------------------------------------------------------------------------------------


class _Host:
    """One agent with its workspaces, beneath the plan's directory."""

    def __init__(self, plan: Plan, number: int, *, clock: Clock, random: Random) -> None:
        self._plan, self._clock, self._random = plan, clock, random
        self._name = f"{plan.name}-{number:05}"
        self._state_dir = Path(plan.directory) / self._name
        names = [f"{self._name}-{at + 1}" for at in range(plan.participants)]
        self._config = AgentConfig(
            name=self._name,
            labels={},
            local_http="",
            socket=Path(),
            local_token_file=None,
            participants=tuple(
                ParticipantConfig(id=name, root=self._state_dir / "roots" / name, targets=(plan.target,))
                for name in names
            ),
        )
        self._outcomes: Counter[bool] = Counter()
        self._reported = 0
        self._spool: Spool | None = None
        self._link: Link | None = None

    def progress(self) -> Progress:
        """This host's part."""
        return Progress(
            agents=1,
            enrolled=int(self._link is not None),
            connected=int(self._link is not None and self._link.connected),
            applied=self._outcomes[True],
            failed=self._outcomes[False],
            reported=self._reported,
            waiting=self._spool.state().depth if self._spool else 0,
        )

    async def run(self, enrolling: asyncio.Semaphore, applying: asyncio.Semaphore) -> None:
        """Serves until cancelled, then says Goodbye; takes turns with other hosts at what they share."""
        with ExitStack() as stack:
            stack.enter_context(identities.hold(self._state_dir))
            await asyncio.to_thread(self._make_workspaces)
            if identities.load(self._state_dir) is None:
                async with enrolling:
                    await self._enroll()
            spool = Spool(self._state_dir / "spool", clock=self._clock, new_id=new_id)
            stack.callback(spool.close)
            await self._serve(spool, applying)

    def _make_workspaces(self) -> None:
        for participant in self._config.participants:
            target = participant.root / self._plan.target
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.write_bytes(BASELINE)

    async def _enroll(self) -> None:
        attempt = 0
        while True:
            try:
                await enroll(self._plan.token, self._state_dir, name=self._name)
                return
            except Unauthenticated as error:
                message = f"{error.message}, with --max-uses for every host that has not enrolled yet"
                raise Unauthenticated(message, reason=error.reason) from None
            except (ResourceExhausted, Unavailable):
                await self._clock.sleep(BACKOFF.delay(attempt, self._random))
                attempt += 1

    async def _serve(self, spool: Spool, applying: asyncio.Semaphore) -> None:
        def ended(outcome: Outcome) -> None:
            self._outcomes[outcome.result.value in ("applied", "confirmed")] += 1
            link.outcome(outcome)

        reconciler = Reconciler(
            config=self._config,
            state_dir=self._state_dir,
            clock=self._clock,
            new_id=new_id,
            record_view=spool.record,
            fetch=lambda digest, size: link.calls.fetch(digest, size),
            on_outcome=ended,
            on_change=lambda: None,
            limit=applying,
        )
        link = Link(
            config=self._config,
            state_dir=self._state_dir,
            reconciler=reconciler,
            spool=spool.state,
            clock=self._clock,
            random=self._random,
            observed=lambda: (*spool.conditions(), *reconciler.conditions()),
            reconnect_jitter=reconnect_jitter(),
        )
        uplink = Uplink(
            spool=spool,
            report=link.calls.report,
            clock=self._clock,
            random=self._random,
            limits=lambda: link.limits,
        )
        await reconciler.start()
        self._spool, self._link = spool, link
        await run_until(asyncio.Event(), reconciler.run, link.run, uplink.run, lambda: self._report(spool))

    async def _report(self, spool: Spool) -> None:
        """What applications would, as long as the spool takes it."""
        per_second = self._plan.reports * len(self._config.participants) / 60
        while per_second:
            await self._clock.sleep(self._random.expovariate(per_second))
            name = self._random.choice(self._config.participants).id
            now = self._clock.now()
            events = [
                Event(participant=name, kind=EventKind.IMPRESSION, occurred_at=now, path=self._plan.target)
            ]
            if self._random.random() < self._plan.conversion:
                followed = replace(events[0], kind=EventKind.CONVERSION, event_name=self._plan.event)
                events.append(followed)
            with suppress(ResourceExhausted):  # a spool that is full blocks the application
                await spool.append_all(events)
                self._reported += len(events)


# -- a worker ------------------------------------------------------------------------------------------


async def work(plan: Plan, tell: Callable[[Progress], None], stop: asyncio.Event) -> None:
    """The plan's agents serve until `stop`; `tell` hears how far they are. Raises the first error of one of them."""
    clock, random = SystemClock(), system_random()
    hosts = [
        _Host(plan, number, clock=clock, random=random)
        for number in range(plan.first, plan.first + plan.agents)
    ]
    enrolling, applying = asyncio.Semaphore(ENROLLING), asyncio.Semaphore(APPLYING)

    def told() -> None:
        tell(Progress.total(host.progress() for host in hosts))

    async def telling() -> None:
        frozen = False
        while True:
            told()
            if not frozen and all(host.progress().connected for host in hosts):
                # No host has the objects of a thousand others, which every full collection would look through.
                gc.collect()
                gc.freeze()
                frozen = True
            await clock.sleep(PROGRESS_SECONDS)

    try:
        await run_until(stop, telling, *(lambda host=host: host.run(enrolling, applying) for host in hosts))
    except ExceptionGroup as failures:
        raise _first(failures) from None
    told()


def _first(failures: ExceptionGroup[Exception]) -> Exception:
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first


def serve_as_worker() -> int:
    """Works on the plan on standard input, a line of progress at a time on standard output; the exit code."""
    logs.configure(level="error")
    plan = Plan(**json.loads(sys.stdin.readline()))
    _raise_limit()

    def say(line: object) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    async def serve() -> None:
        stop = asyncio.Event()
        on_signals(stop)
        await work(plan, lambda progress: say(asdict(progress)), stop)

    try:
        asyncio.run(serve())
    except Error as error:
        say({"error": error.message})
        return 1
    except OSError as error:
        say({"error": f"{error.filename or plan.directory}: {error.strerror}"})
        return 1
    return 0


def _raise_limit() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# -- all of them ---------------------------------------------------------------------------------------


@asynccontextmanager
async def running(plan: Plan, processes: int, *, ended: asyncio.Event) -> "AsyncIterator[Fleet]":
    """The fleet runs, in so many processes; at the end every agent has said Goodbye.

    `ended` is set where one of the hosts fails; `Fleet.failure` says why. Raises Invalid where the machine does not let
    a process open so many files, before anything is started.
    """
    parts = plan.shared_out(processes)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(part.agents for part in parts) * FILES_PER_AGENT
    if needed > most != resource.RLIM_INFINITY:
        raise Invalid(
            f"--agents: a process would need {needed} open files and may have {most};"
            " raise the limit (`ulimit -Hn`) or use more --processes"
        )
    fleet = Fleet(parts, ended)
    try:
        await fleet.start()
        yield fleet
    finally:
        await fleet.stop()


class Fleet:
    """Worker processes and how far each is."""

    def __init__(self, parts: Sequence[Plan], ended: asyncio.Event) -> None:
        self._parts, self._ended = parts, ended
        self._workers: list[asyncio.subprocess.Process] = []
        self._readers: list[asyncio.Task[None]] = []
        self._progress = [Progress() for _ in parts]
        self.failure, self._stopping = "", False

    @property
    def progress(self) -> Progress:
        """The whole fleet's, as of a moment ago."""
        return Progress.total(self._progress)

    async def start(self) -> None:
        """Every worker has its part."""
        for at, part in enumerate(self._parts):
            worker = await asyncio.create_subprocess_exec(
                # `-m` alone looks into the working directory first, where a bot may have an agent.py of its own.
                *(sys.executable, "-P", "-m", "agent", "simulate", "--worker"),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # A Ctrl-C is for us: workers are stopped in order. They do not give way to a server beside them (nice):
                # one that is pushed aside with the interpreter in hand keeps its process waiting.
                start_new_session=True,
            )
            self._workers.append(worker)
            assert worker.stdin is not None
            worker.stdin.write(json.dumps(asdict(part)).encode() + b"\n")
            await worker.stdin.drain()
            self._readers.append(asyncio.create_task(self._read(at, worker)))

    async def _read(self, at: int, worker: asyncio.subprocess.Process) -> None:
        assert worker.stdout is not None
        async for line in worker.stdout:
            said = json.loads(line)
            if "error" in said:
                self.failure = self.failure or str(said["error"])
            else:
                self._progress[at] = Progress(**said)
        ended = await worker.wait()
        if ended and not (self._stopping and ended == -signal.SIGTERM):
            self.failure = self.failure or f"a process of the simulation ended with {worker.returncode}"
            self._ended.set()

    async def stop(self) -> None:
        """Every worker was asked to stop and has, or was killed after as long as its agents may take to leave."""
        self._stopping = True  # who is asked before it listens to signals ends by this one
        for worker in self._workers:
            with suppress(ProcessLookupError):
                worker.terminate()
        agents = max((part.agents for part in self._parts), default=0)
        if self._readers:
            await asyncio.wait(self._readers, timeout=STOP_SECONDS + agents * LEAVING_SECONDS)
        for worker, reader in zip(self._workers, self._readers, strict=False):
            if not reader.done():
                with suppress(ProcessLookupError):
                    worker.kill()
        await asyncio.gather(*self._readers)


async def simulate(
    plan: Plan, *, processes: int, seconds: float | None, tell: Callable[[Progress, float], None]
) -> None:
    """The fleet ran until a signal, or for so many seconds; `tell` heard how far it was, and after how long.

    Raises Error with what went wrong first on one of the hosts.
    """
    clock, stop = SystemClock(), asyncio.Event()
    on_signals(stop)
    began = clock.monotonic()
    async with running(plan, processes, ended=stop) as fleet:
        while not stop.is_set():
            passed = clock.monotonic() - began
            tell(fleet.progress, passed)
            if seconds is not None and passed >= seconds:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(PROGRESS_SECONDS):
                    await stop.wait()
    tell(fleet.progress, clock.monotonic() - began)
    if fleet.failure:
        raise Error(fleet.failure)


def processes_for(agents: int) -> int:
    """How many processes suit so many agents here: two for each core, more where files would not do."""
    suited = max(1, min(PROCESSES_PER_CORE * (os.cpu_count() or 1), -(-agents // AGENTS_PER_PROCESS)))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return suited
    return min(MAX_PROCESSES, max(suited, -(-agents // max(1, most // FILES_PER_AGENT))))


@asynccontextmanager
async def workspace(directory: Path | None) -> AsyncIterator[Path]:
    """Where the hosts are: `directory`, which stays, or a temporary one, which is gone afterwards."""
    if directory is not None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Invalid(f"--dir: {directory}: {error.strerror}; name a directory for the hosts") from None
        yield directory
        return
    made = Path(tempfile.mkdtemp(prefix="variant-agent-simulate-"))
    try:
        yield made
    finally:
        await asyncio.to_thread(shutil.rmtree, made, ignore_errors=True)
