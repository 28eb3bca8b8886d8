"""Real processes: a control plane, agents, and applications that report, with an exact ledger."""

import asyncio
import itertools
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.waiting import PATIENCE, eventually

BIN = Path(sys.executable).parent
# Importing the agent quiets gRPC in this process; what we start decides for itself.
INHERITED = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
ENVIRONMENT = {**INHERITED, "VARIANT_AGENT_RECONNECT_JITTER": "0.1", "PYTHONUNBUFFERED": "1"}


def program(name: str, *, quick: bool) -> list[str]:
    """How a console script is run; `quick`: with its waits shortened."""
    return (
        [sys.executable, "-P", str(Path(__file__).with_name("quick.py")), name]
        if quick
        else [str(BIN / name)]
    )


@dataclass
class Process:
    """One of our console scripts, running."""

    command: list[str]
    log: Path
    child: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """The process runs; its output goes to its log."""
        with self.log.open("ab") as log:
            self.child = await asyncio.create_subprocess_exec(
                *self.command, stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True
            )

    async def kill(self) -> None:
        """The process is gone without a chance to say goodbye."""
        assert self.child is not None
        self.child.send_signal(signal.SIGKILL)
        await self.child.wait()

    def pause(self) -> None:
        """The process stands still until `resume`."""
        assert self.child is not None
        self.child.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """The process goes on where it was."""
        assert self.child is not None
        self.child.send_signal(signal.SIGCONT)

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    async def stop(self) -> int:
        """The process was asked to stop and has; its exit code."""
        if self.child is None:
            return 0
        if self.child.returncode is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(PATIENCE):
                    await self.child.wait()
            except TimeoutError:
                self.child.kill()
                await self.child.wait()
                raise AssertionError(f"did not stop: {self.log.read_text()[-2000:]}") from None
        return self.child.returncode or 0

    def running(self) -> bool:
        assert self.child is not None
        assert self.child.returncode is None, self.log.read_text()[-3000:]
        return True


async def run(*command: str, stdin: str = "", ok: bool = True, **env: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a console script run to its end."""
    child = await asyncio.create_subprocess_exec(
        str(BIN / command[0]),
        *command[1:],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**ENVIRONMENT, **env},
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await child.communicate(stdin.encode())
    code = child.returncode or 0
    assert "Traceback" not in err.decode(), err.decode()
    if ok:
        assert code == 0, err.decode()
    return code, out.decode(), err.decode()


@dataclass
class ControlPlane:
    """`variantd serve` over a data directory."""

    data: Path
    process: Process
    http: aiohttp.ClientSession
    addresses: dict[str, str] = field(default_factory=dict)

    async def start(self) -> None:
        """Serving; after the first start, on the same ports again."""
        (self.data / "addresses.json").unlink(missing_ok=True)
        await self.process.start()
        await eventually(lambda: self.process.running() and (self.data / "addresses.json").exists())
        self.addresses = json.loads((self.data / "addresses.json").read_text())
        words = self.process.command
        command = words[: words.index("--data-dir") + 2] if "--data-dir" in words else list(words)
        for name, address in self.addresses.items():
            command += [f"--{name}", address]
        self.process.command = command

    async def rest(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """(status, body) of a REST call by the operator; a header's name has `_` for `-`."""
        key = (self.data / "operator.api-key").read_text().strip()
        url = f"http://{self.addresses['http']}{path}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named["Authorization"] = f"Bearer {key}"
        async with self.http.request(method, url, json=body, headers=named) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None

    async def get(self, path: str) -> Any:
        status, body = await self.rest("GET", path)
        assert status == 200, body
        return body

    async def post(self, path: str, body: Any = None, **headers: str) -> Any:
        status, answer = await self.rest("POST", path, body, **headers)
        assert status in (200, 201), answer
        return answer

    async def results(
        self, experiment: str, event: str, population: str = "assigned"
    ) -> dict[str, tuple[int, int]]:
        """(impressions, conversions) by variant key."""
        path = f"/v1/experiments/{experiment}/results?eventName={event}&population={population}"
        body = await self.get(path)
        return {v["key"]: (v["impressions"], v["conversions"]) for v in body["variants"]}


@dataclass
class Host:
    """A host with one agent and some workspaces."""

    folder: Path
    name: str
    participants: list[str]
    process: Process
    settings: dict[str, str] = field(default_factory=dict)
    own: dict[str, dict[str, str]] = field(default_factory=dict)
    transport: str = "stream"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def socket(self) -> str:
        return str(self.folder / "agent.sock")

    def root(self, participant: str) -> Path:
        return self.folder / "roots" / participant

    def file(self, participant: str, path: str = "soul.md") -> Path:
        return self.root(participant) / path

    def baseline(self, participant: str) -> bytes:
        return f"I am {participant}, as I always was.\n".encode()

    def write_config(self, *, targets: str = '["*.md"]') -> None:
        """agent.toml and the workspaces are there."""
        lines = [
            "[agent]",
            f'name = "{self.name}"',
            'local_http = "127.0.0.1:0"',
            f'socket = "{self.socket}"',
            f'transport = "{self.transport}"',
        ]
        for participant in self.participants:
            self.root(participant).mkdir(parents=True, exist_ok=True)
            if not self.file(participant).exists():
                self.file(participant).write_bytes(self.baseline(participant))
            lines += ["[[participants]]", f'id = "{participant}"', f'root = "{self.root(participant)}"']
            settings = {"targets": targets, **self.settings, **self.own.get(participant, {})}
            lines += [f"{key} = {value}" for key, value in settings.items()]
        (self.folder / "agent.toml").write_text("\n".join(lines))

    async def enroll(self, token: str) -> None:
        """The host has an identity."""
        await run(
            "variant-agent", "enroll", "--token-file", "-", "--state-dir", str(self.state), "--name", self.name,
            stdin=token,
        )  # fmt: skip

    async def start(self) -> None:
        """The agent runs and answers."""
        (self.state / "addresses.json").unlink(missing_ok=True)
        await self.process.start()
        await eventually(lambda: self.process.running() and (self.state / "addresses.json").exists())

    @asynccontextmanager
    async def local(self) -> AsyncIterator[aiohttp.ClientSession]:
        """A client of the local API over the socket."""
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=self.socket)) as client:
            yield client


@dataclass
class Ledger:
    """What an application was promised: every report here was answered 202, once."""

    impressions: Counter[str] = field(default_factory=Counter)
    conversions: Counter[str] = field(default_factory=Counter)
    _ids: "itertools.count[int]" = field(default_factory=itertools.count)

    async def report(
        self, host: Host, participant: str, *, convert: bool, within: float = PATIENCE, event: str = "done"
    ) -> None:
        """One impression and perhaps a conversion are accepted, repeated under the same event id until they are."""
        await self._accept(host, "/v1/impressions", {"participantId": participant}, within)
        self.impressions[participant] += 1
        if convert:
            await self._accept(
                host, "/v1/conversions", {"participantId": participant, "eventName": event}, within
            )
            self.conversions[participant] += 1

    async def _accept(self, host: Host, path: str, body: dict[str, Any], within: float) -> None:
        body = {**body, "eventId": f"e{next(self._ids)}"}

        async def accepted() -> bool:
            async with host.local() as client:
                try:
                    async with client.post(f"http://agent{path}", json=body) as answer:
                        assert answer.status == 202, await answer.text()
                        return True
                except aiohttp.ClientError:
                    return False

        await eventually(accepted, within=within, what=f"{host.name} accepts {path}")

    def sums(self, assigned: dict[str, str]) -> dict[str, tuple[int, int]]:
        """(impressions, conversions) by variant, from the promises alone."""
        totals = {variant: [0, 0] for variant in assigned.values()}
        for participant, variant in assigned.items():
            totals[variant][0] += self.impressions[participant]
            totals[variant][1] += self.conversions[participant]
        return {variant: (m, c) for variant, (m, c) in totals.items()}


@dataclass
class Fleet:
    """A control plane and its hosts."""

    folder: Path
    plane: ControlPlane
    hosts: list[Host] = field(default_factory=list)
    quick: bool = False

    async def add_host(
        self,
        name: str,
        *participants: str,
        targets: str = '["*.md"]',
        own: dict[str, dict[str, str]] | None = None,
        transport: str = "stream",
        starts: bool = True,
        **settings: str,
    ) -> Host:
        """An enrolled agent that serves these participants, running unless told otherwise."""
        folder = self.folder / name
        folder.mkdir()
        command = [*program("variant-agent", quick=self.quick), "run", "--config", str(folder / "agent.toml")]
        command += ["--state-dir", str(folder / "state")]
        process = Process(command=command, log=self.folder / f"{name}.log")
        host = Host(
            folder=folder,
            name=name,
            participants=list(participants),
            process=process,
            settings=settings,
            own=own or {},
            transport=transport,
        )
        host.write_config(targets=targets)
        token = (await self.plane.post("/v1/enrollment-tokens", {"name": name}))["token"]
        await host.enroll(token)
        self.hosts.append(host)
        if starts:
            await host.start()
        return host

    async def connected(self, *participants: str) -> None:
        """Their hosts are connected, as the control plane has it; a host that runs need not be yet."""

        async def are() -> bool:
            return all(
                [
                    (await self.plane.get(f"/v1/participants/{name}"))["presence"] == "connected"
                    for name in participants
                ]
            )

        await eventually(are, what=f"{', '.join(participants)} connected")

    async def assigned(self, experiment: str) -> dict[str, str]:
        """Variant key by participant."""
        variants = {
            v["id"]: v["key"] for v in (await self.plane.get(f"/v1/experiments/{experiment}"))["variants"]
        }
        page = await self.plane.get(f"/v1/experiments/{experiment}/assignments?limit=100")
        return {item["participantId"]: variants[item["variantId"]] for item in page["entities"]}

    async def states(self, experiment: str) -> dict[str, str]:
        """State of the newest deployment by participant."""
        page = await self.plane.get(f"/v1/experiments/{experiment}/deployments?limit=100")
        newest: dict[str, str] = {}
        for item in page["entities"]:
            newest.setdefault(item["participantId"], item["state"])
        return newest


@asynccontextmanager
async def running_fleet(
    folder: Path, *options: str, quick: bool = False, server: Sequence[str] = ()
) -> AsyncIterator[Fleet]:
    """A control plane, up, with these options; every process of the fleet is stopped at the end.

    `quick`: they wait for less long. `server` is how the control plane is run, if not by its console script.
    """
    data = folder / "data"
    command = [*(server or program("variantd", quick=quick)), "serve", *options, "--data-dir", str(data)]
    command += ["--http", "127.0.0.1:0", "--operator", "127.0.0.1:0", "--agents", "127.0.0.1:0"]
    process = Process(command=command, log=folder / "variantd.log")
    async with aiohttp.ClientSession() as http:
        fleet = Fleet(folder=folder, plane=ControlPlane(data=data, process=process, http=http), quick=quick)
        try:
            await fleet.plane.start()
            yield fleet
        finally:
            stopped = await asyncio.gather(
                *(host.process.stop() for host in fleet.hosts), process.stop(), return_exceptions=True
            )
        assert [code for code in stopped if code != 0] == [], "a process did not stop cleanly"
        for log in folder.glob("*.log"):
            assert "Traceback" not in log.read_text(), log.read_text()[-4000:]
