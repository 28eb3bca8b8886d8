"""Where measurements take place: processes whose time is their own, a control plane among them, and what is told.

Hides how contenders are started and spoken to, how a process is weighed, and the form of every benchmark's answer: a
table, one line of JSON after it, and the same in `bench/results/NAME.json`.
"""

import asyncio
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc

from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.support.plane import Plane

RESULTS = Path("bench/results")
LINE_BYTES = 64 * 1_048_576
START_SECONDS, STOP_SECONDS = 120.0, 60.0
ASKED_AGAIN_SECONDS = 0.01
PATIENCE_SECONDS = 3_600.0  # for what is measured: a fleet takes what it takes
ENVIRONMENT = {
    **os.environ,
    "GRPC_VERBOSITY": "NONE",
    # As where a package was installed: nobody's start is spent on compiling.
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "variantd-bench-bytecode"),
}


# -- processes


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads, by its own clock (Linux: clock ids of processes)."""
    return time.clock_gettime((~pid << 3) | 2)


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in the machine's, shared pages of libraries with it.

    Counted page by page: what `statm` says may be off by 64 pages for each thread.
    """
    return 1024 * int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("Rss:")[2].split()[0])


def processors() -> tuple[set[int], set[int]]:
    """Those that there are in two halves: a server's, and its hosts'. Raises ValueError where there is only one."""
    there = sorted(os.sched_getaffinity(0))
    if len(there) < 2:
        raise ValueError("there is one processor only; hosts cannot have others than the server (--apart)")
    return set(there[: len(there) // 2]), set(there[len(there) // 2 :])


@contextmanager
def kept_to(places: set[int]) -> Iterator[None]:
    """This process and all that it starts meanwhile run on these processors; what was started keeps to them."""
    before = os.sched_getaffinity(0)
    _keep_to(places)
    try:
        yield
    finally:
        _keep_to(before)


def _keep_to(places: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), places)


class Child:
    """A contender in a process of its own: what it is told is a line of JSON, and so is what it answers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu(self) -> float:
        return cpu_seconds(self.pid)

    async def ask(self, **question: Any) -> dict[str, Any]:
        """What it answers, when it is done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contender ended with {await self._process.wait()}")
        return dict(json.loads(line))

    async def kill(self) -> None:
        """It is gone without a chance to say anything."""
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        """It has ended."""
        if self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


@asynccontextmanager
async def child(module: str, *words: str) -> AsyncIterator[Child]:
    """`python -m module words`, which reads questions until there are none."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=ENVIRONMENT,
        limit=LINE_BYTES,
        start_new_session=True,  # a share of the cores of its own, as every server and every process of hosts has
    )
    started = Child(process)
    try:
        yield started
    finally:
        await started.stop()


def questions() -> Iterable[dict[str, Any]]:
    """In a contender: what it is asked, until the end."""
    for line in sys.stdin:
        yield json.loads(line)


def answer(**said: Any) -> None:
    """In a contender: what it says."""
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


async def until(condition: Callable[[], bool], *, within: float = PATIENCE_SECONDS) -> None:
    """The condition holds. Raises TimeoutError where it does not within so many seconds.

    Asking takes a twentieth of a processor at most: what is measured has to do with the rest.
    """
    async with asyncio.timeout(within):
        while True:
            began = time.perf_counter()
            if condition():
                return
            await asyncio.sleep(max(ASKED_AGAIN_SECONDS, 20 * (time.perf_counter() - began)))


# -- the control plane


@dataclass
class Served:
    """A control plane that can be killed and started again on the same ports."""

    folder: Path
    module: str
    words: tuple[str, ...]
    process: asyncio.subprocess.Process | None = None
    addresses: Mapping[str, str] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def cpu(self) -> float:
        return cpu_seconds(self.pid)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    async def start(self) -> None:
        """Serving, with every listener open; on the ports of before, when whoever took one meanwhile is gone."""
        await eventually(self._start, within=START_SECONDS, what="the server listens")
        self.addresses = json.loads((self.data / "addresses.json").read_text())

    async def _start(self) -> bool:
        """Serving; False where a port was taken."""
        (self.data / "addresses.json").unlink(missing_ok=True)
        at = self.addresses or dict.fromkeys(("http", "operator", "agents"), "127.0.0.1:0")
        ports = [word for name, address in at.items() for word in (f"--{name}", address)]
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    self.module,
                    "serve",
                    "--data-dir",
                    str(self.data),
                    *ports,
                    *self.words,
                ),
                stdout=log,
                stderr=log,
                env=ENVIRONMENT,
                start_new_session=True,
            )

        process = self.process

        def settled() -> bool:
            return (self.data / "addresses.json").exists() or process.returncode is not None

        await eventually(settled, within=START_SECONDS, what="the server is ready")
        if process.returncode is None:
            return True
        said = (self.folder / "log").read_text()[-2000:]
        if "cannot listen on" not in said.strip().rpartition("\n")[2]:
            raise RuntimeError(f"the server did not start: {said}")
        return False

    async def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """The process is gone."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(how)
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()

    @asynccontextmanager
    async def operator(self) -> AsyncIterator["Plane"]:
        """An operator's clients of it."""
        # Contenders import this module too, and the control plane takes seconds to import.
        from tests.support.plane import Plane

        assert self.addresses is not None
        credentials = grpc.ssl_channel_credentials((self.data / "ca" / "ca.pem").read_bytes())
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS)) as http,
            grpc.aio.secure_channel(self.addresses["operator"], credentials) as channel,
        ):
            key = (self.data / "operator.api-key").read_text().strip()
            yield Plane(data=self.data, addresses=dict(self.addresses), key=key, http=http, operator=channel)


@asynccontextmanager
async def served(folder: Path, *words: str, module: str = "control_plane") -> AsyncIterator[Served]:
    """A control plane over an empty directory, serving."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Served(folder, module, words)
    try:
        await server.start()
        yield server
    finally:
        await server.end()


# -- what is told


def median(values: Iterable[float], digits: int = 2) -> float:
    """Their median, short enough to be read: with two figures at least, however small it is."""
    found = statistics.median(values)
    return round(found, digits) or float(f"{found:.2g}")


def ratio(pairs: Iterable[tuple[float, float]]) -> float:
    """The median of the ratios of pairs, each of one round."""
    return median(ran / max(least, 1e-12) for ran, least in pairs)


def pass_on(of: str, **figures: Any) -> None:
    """A part of a long run is over: a line on standard error for who waits, and for one that never comes to its end."""
    shown = ", ".join(f"{name} {_shown(value) or 'unknown'}" for name, value in figures.items())
    print(f"{time.strftime('%H:%M:%S')} {of}: {shown}", file=sys.stderr, flush=True)


def tell(name: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """The table on standard output, then the same with `more` as a line of JSON, and in a file.

    `columns`: heading by key of a row; what a row has besides is in the JSON alone, and None is not known.
    """
    cells = [list(columns.values())]
    cells += [[_shown(row.get(key)) for key in columns] for row in rows]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    for line in cells:
        first, *others = (
            text.ljust(width) if not at else text.rjust(width)
            for at, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join((first, *others)))
    keep(name, rows=list(rows), **more)


def keep(name: str, **told: Any) -> None:
    """What was found is a line of JSON on standard output, and a file."""
    whole = {"benchmark": name, "machine": _machine(), **told}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps(whole), flush=True)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and abs(value) < 100:
        return f"{value:.2f}"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "kernel": platform.release(),
    }
