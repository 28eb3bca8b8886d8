"""The whole agent: in this process against a scripted control plane, and as the program people run."""

import asyncio
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent import __main__ as command_line
from agent import app
from agent import identity as identities
from agent.config import load
from agent.enrollment import enroll
from agent.spool import Spool
from shared import VERSION, wire
from shared.clock import SystemClock
from shared.errors import FailedPrecondition, Invalid
from shared.ids import new_id, show_id
from shared.model import (
    Event,
    EventKind,
    EventSource,
    Loss,
    Offer,
    OfferAction,
    OfferedFile,
    Record,
    Result,
    View,
    ViewState,
    digest,
    show_digest,
)
from tests.support.control_plane import ScriptedControlPlane, in_background
from tests.support.local import call
from tests.support.waiting import PATIENCE, eventually

CONTENT = b"Be kind.\n"


def make_host(tmp_path: Path, *, participants: int = 1) -> Path:
    """An agent.toml; each participant has a root of its own."""
    lines = ["[agent]", 'name = "host-1"', 'local_http = "127.0.0.1:0"', 'socket = "agent.sock"']
    for number in range(1, participants + 1):
        (tmp_path / f"bot-{number}").mkdir()
        lines += [
            "[[participants]]",
            f'id = "bot-{number}"',
            f'root = "bot-{number}"',
            'targets = ["SOUL.md"]',
        ]
    path = tmp_path / "agent.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def offered(content: bytes = CONTENT, *, revision: int = 1) -> Offer:
    return Offer(
        deployment_id=new_id(),
        participant="bot-1",
        slot_id=bytes(15) + b"\1",
        revision=revision,
        action=OfferAction.WRITE,
        files=(OfferedFile(path="SOUL.md", digest=digest(content), size=len(content), content=content),),
    )


async def serving(state: Path) -> dict[str, str]:
    """Where the agent on a state directory listens, once it does."""
    return await eventually(lambda: json.loads((state / "addresses.json").read_text()))


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[Path]:
    """The agent of `tmp_path`, ready; its socket."""
    stop = asyncio.Event()
    async with in_background(app.run(load(tmp_path / "agent.toml"), tmp_path / "state", stop)) as task:
        ready = asyncio.create_task(serving(tmp_path / "state"))
        await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            ready.cancel()
            await task
        yield Path((await ready)["socket"])
        stop.set()
        await asyncio.wait_for(task, PATIENCE)


async def enrolled(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    with identities.hold(tmp_path / "state"):
        await enroll(control_plane.token(), tmp_path / "state", name="host-1")


@pytest.fixture(autouse=True)
def _quick_reconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VARIANT_AGENT_RECONNECT_JITTER", "0.05")


@pytest.fixture
async def control_plane() -> AsyncIterator[ScriptedControlPlane]:
    async with ScriptedControlPlane().running() as plane:
        yield plane


# -- in this process -----------------------------------------------------------------------------------


async def test_offer_and_report_go_all_the_way(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """A file is written and said to be, a report is counted, and the stop is a clean leave."""
    make_host(tmp_path)
    await enrolled(tmp_path, control_plane)
    async with running(tmp_path) as local:
        sync = await control_plane.session()
        await sync.offer(offered())
        await eventually(lambda: sync.outcomes and sync.outcomes[-1].result is Result.APPLIED)
        assert (tmp_path / "bot-1" / "SOUL.md").read_bytes() == CONTENT
        answer = await call(local, "/v1/conversions", body={"eventName": "resolved", "value": 2})
        assert answer.status == 202
        await eventually(lambda: len(control_plane.records) >= 2)
        view, event = (record.body for record in control_plane.records)
        assert isinstance(view, View)
        assert (view.digest, view.state) == (digest(CONTENT), ViewState.APPLIED)
        assert isinstance(event, Event)
        assert (event.event_name, event.value_micros) == ("resolved", 2_000_000)

        async def status() -> Any:
            found = (await call(local, "/status")).body
            return found if not found["spool"]["depth"] and found["ready"] else None

        found = await eventually(status)
        assert found["session"]["state"] == "connected"
        assert found["identity"]["enrolled"]
        assert found["slots"][0]["files"][0]["runningDigest"] == show_digest(digest(CONTENT))
        assert found["conditions"] == []
        metrics = (await call(local, "/metrics")).body
        assert 'variant_agent_reports_total{kind="conversion"} 1.0' in metrics
        assert "variant_agent_connected 1.0" in metrics
    await asyncio.wait_for(sync.ended.wait(), PATIENCE)
    assert sync.goodbye == "stop"
    assert not (tmp_path / "state" / "addresses.json").exists()


async def test_what_is_named_from_the_working_directory_is_found_from_any_other(
    tmp_path: Path, control_plane: ScriptedControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run --config agent.toml`: a check, which runs in its root, finds what is staged; a shell elsewhere the agent."""
    path = make_host(tmp_path)
    path.write_text(path.read_text() + 'check = ["grep", "-q", "kind", "{staged}"]\n')
    await enrolled(tmp_path, control_plane)
    monkeypatch.chdir(tmp_path)
    async with running(Path()):
        sync = await control_plane.session()
        await sync.offer(offered())
        await eventually(lambda: sync.outcomes and sync.outcomes[-1].result is not Result.IN_PROGRESS)
        assert sync.outcomes[-1].result is Result.APPLIED, sync.outcomes[-1].reason
        asked = await program("status", "--state-dir", tmp_path / "state", "--json", cwd=Path("/"))
        code, out, err = await asked.ended()
        assert code == 0, err
        assert json.loads(out)["participants"][0]["root"] == str(tmp_path / "bot-1")


async def test_a_socket_in_a_deep_directory_is_named_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its whole path is more than a socket can be named by; from its own directory it is reached."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    make_host(deep)
    monkeypatch.chdir(deep)
    async with running(Path()) as local:
        assert (await call(local, "/healthz")).status == 200


async def test_restart_goes_on_from_the_state_directory(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """The next Hello tells what the slot holds; the next epoch begins with a view of it."""
    make_host(tmp_path)
    await enrolled(tmp_path, control_plane)
    async with running(tmp_path):
        sync = await control_plane.session()
        await sync.offer(offered(revision=7))
        await eventually(lambda: sync.outcomes)
        await eventually(lambda: control_plane.batches)
    async with running(tmp_path):
        again = await control_plane.session(2)
        (slot,) = again.hello.slots
        assert (slot.revision, slot.files[0].digest, slot.result) == (7, digest(CONTENT), Result.APPLIED)
        assert again.hello.session_epoch == 2
        await eventually(lambda: len({batch.epoch for batch in control_plane.batches}) == 2)
        first = wire.record_from_bytes(control_plane.batches[-1].records[0])
        assert isinstance(first.body, View)
        assert control_plane.batches[-1].first_seq == 1


async def test_everything_local_works_without_a_control_plane(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Unreachable is a degradation: ready, reports taken, drift seen; all of it goes up later."""
    make_host(tmp_path)
    await enrolled(tmp_path, control_plane)
    async with running(tmp_path):
        sync = await control_plane.session()
        await sync.offer(offered())
        await eventually(lambda: control_plane.records)
    await control_plane.stop()
    async with running(tmp_path) as local:
        assert (await call(local, "/readyz")).status == 200
        assert (await call(local, "/v1/impressions", body={"subject": "offline"})).status == 202
        (tmp_path / "bot-1" / "SOUL.md").write_bytes(b"edited by hand\n")

        async def noticed() -> bool:
            found = (await call(local, "/status")).body
            codes = {condition["code"] for condition in found["conditions"]}
            return found["slots"][0]["files"][0]["state"] == "drifted" and "UNREACHABLE" in codes

        await eventually(noticed)
        await control_plane.start()

        def told() -> bool:
            bodies = [record.body for record in control_plane.records]
            drifted = [b for b in bodies if isinstance(b, View) and b.state is ViewState.DRIFTED]
            return bool(drifted) and any(isinstance(b, Event) and b.subject == "offline" for b in bodies)

        await eventually(told)


async def test_agent_that_never_enrolled_serves_and_says_so(tmp_path: Path) -> None:
    """Files are kept, reports are spooled, and the first thing an operator reads is the remedy."""
    make_host(tmp_path)
    async with running(tmp_path) as local:
        assert (await call(local, "/v1/impressions", body={})).status == 202
        found = (await call(local, "/status")).body
        assert (found["ready"], found["session"]["state"]) == (True, "not_enrolled")
        assert found["identity"] == {"enrolled": False, "agentId": None, "certificate": None}
        assert [condition["code"] for condition in found["conditions"]] == ["NOT_ENROLLED"]
        assert "variant-agent enroll" in found["conditions"][0]["message"]
        assert found["spool"]["depth"] == 1


@pytest.mark.fault(12)
async def test_full_disk_under_the_spool_stops_nothing_else(
    tmp_path: Path, control_plane: ScriptedControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are still written; the application hears 429; views that were owed go up once there is room."""
    make_host(tmp_path)
    await enrolled(tmp_path, control_plane)
    real = os.fdatasync

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", full)
    async with running(tmp_path) as local:
        sync = await control_plane.session()
        await sync.offer(offered())
        await eventually(lambda: sync.outcomes and sync.outcomes[-1].result is Result.APPLIED)
        answer = await call(local, "/v1/impressions", body={})
        assert (answer.status, answer.body["reason"]) == (429, "SPOOL_FULL")
        answer = await call(local, "/readyz")
        assert (answer.status, answer.body["unready"]) == (503, ["spool_writable"])
        found = (await call(local, "/status")).body["conditions"]
        assert {"SPOOL_FULL", "VIEWS_OWED"} <= {condition["code"] for condition in found}
        monkeypatch.setattr(os, "fdatasync", real)
        await eventually(lambda: any(isinstance(record.body, View) for record in control_plane.records))

        async def ready() -> bool:
            return (await call(local, "/readyz")).status == 200

        await eventually(ready)


async def test_opens_go_up_as_impressions(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """`exposure = "on_open"`: the application reads its file, and that is all it has to do."""
    path = make_host(tmp_path)
    path.write_text(path.read_text() + 'exposure = "on_open"\n')
    await enrolled(tmp_path, control_plane)
    async with running(tmp_path):
        sync = await control_plane.session()
        await sync.offer(offered())
        await eventually(lambda: sync.outcomes)

        def opens() -> list[Event]:
            (tmp_path / "bot-1" / "SOUL.md").read_bytes()  # until the watch is in place, and then once more
            bodies = [record.body for record in control_plane.records]
            return [body for body in bodies if isinstance(body, Event)]

        [event, *_] = await eventually(opens)
        assert (event.kind, event.source) == (EventKind.IMPRESSION, EventSource.ON_OPEN)
        assert (event.participant, event.path) == ("bot-1", "SOUL.md")
        assert event.digest in (digest(CONTENT), None)


@pytest.mark.fault(12)
async def test_a_full_spool_may_drop_and_count_instead(
    tmp_path: Path, control_plane: ScriptedControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`spool_full = "drop_newest"`: the application hears 202, and how many were dropped goes up."""
    path = make_host(tmp_path)
    path.write_text(path.read_text().replace("[agent]", '[agent]\nspool_full = "drop_newest"', 1))
    await enrolled(tmp_path, control_plane)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", full)
    async with running(tmp_path) as local:
        for _ in range(3):
            assert (await call(local, "/v1/impressions", body={})).status == 202
        assert (await call(local, "/status")).body["spool"]["dropped"] == 3
        assert "variant_agent_spool_dropped_total 3.0" in (await call(local, "/metrics")).body
        monkeypatch.undo()

        def losses() -> int:
            return sum(r.body.count for r in control_plane.records if isinstance(r.body, Loss))

        await eventually(lambda: losses() == 3)


async def test_second_agent_on_the_state_directory_is_refused(tmp_path: Path) -> None:
    """And leaves the first alone."""
    make_host(tmp_path)
    async with running(tmp_path) as local:
        with pytest.raises(FailedPrecondition, match="another variant-agent is running"):
            await app.run(load(tmp_path / "agent.toml"), tmp_path / "state", asyncio.Event())
        assert (await call(local, "/healthz")).status == 200
        assert (tmp_path / "state" / "addresses.json").exists()


async def test_two_participants_with_one_file_are_refused(tmp_path: Path) -> None:
    """Before anything is served."""
    (tmp_path / "agent.toml").write_text(
        '[agent]\nlocal_http = "127.0.0.1:0"\nsocket = "agent.sock"\n'
        '[[participants]]\nid = "a"\nroot = "r"\ntargets = ["x/SOUL.md"]\n'
        '[[participants]]\nid = "b"\nroot = "r/x"\ntargets = ["SOUL.md"]\n'
    )
    (tmp_path / "r" / "x").mkdir(parents=True)
    with pytest.raises(Invalid, match="participants"):
        await app.run(load(tmp_path / "agent.toml"), tmp_path / "state", asyncio.Event())


async def test_systemd_hears_how_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY once it serves, WATCHDOG while its loop runs, STOPPING at the end."""
    make_host(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        heard: list[str] = []

        def listen() -> list[str]:
            try:
                while True:
                    heard.append(systemd.recv(100).decode())
            except BlockingIOError:
                return heard

        async with running(tmp_path):
            await eventually(lambda: listen().count("WATCHDOG=1") >= 2)
        listen()
        assert heard[0] == "READY=1"
        assert heard[-1] == "STOPPING=1"


def test_reconnect_jitter_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten by default; what is no number is refused by name."""
    assert app.reconnect_jitter() == 0.05
    monkeypatch.delenv("VARIANT_AGENT_RECONNECT_JITTER")
    assert app.reconnect_jitter() == 10.0
    for text in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv("VARIANT_AGENT_RECONNECT_JITTER", text)
        with pytest.raises(Invalid, match="VARIANT_AGENT_RECONNECT_JITTER"):
            app.reconnect_jitter()


# -- as a program ----------------------------------------------------------------------------------------


class Program:
    """`python -m agent …` and what it said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ended(self, text: str = "") -> tuple[int, str, str]:
        """(exit code, standard output, standard error)."""
        async with asyncio.timeout(PATIENCE):
            out, err = await self.process.communicate(text.encode())
        return self.process.returncode or 0, out.decode(), err.decode()


async def program(*arguments: object, cwd: Path | None = None, **environment: str) -> Program:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agent",
        *map(str, arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        env={**os.environ, **environment},
    )
    return Program(process)


async def test_kill_after_answers_loses_none(tmp_path: Path) -> None:
    """kill -9 of the real daemon: whatever got its 202 is in the spool afterwards."""
    config = make_host(tmp_path)
    state = tmp_path / "state"
    daemon = await program("run", "--config", config, "--state-dir", state)
    local = Path((await serving(state))["socket"])
    answered: list[str] = []
    killed = asyncio.Event()

    async def reporter(name: str) -> None:
        number = 0
        while not killed.is_set():
            try:
                answer = await call(local, "/v1/impressions", body={"subject": f"{name}.{number}"})
            except (OSError, aiohttp.ClientError):
                return
            assert answer.status == 202
            answered.append(answer.body["id"])
            number += 1
            if len(answered) == 60:
                daemon.process.send_signal(signal.SIGKILL)
                killed.set()

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(reporter(name) for name in "abcd"))
    await daemon.ended()
    spool = Spool(state / "spool", clock=SystemClock(), new_id=new_id)
    try:
        kept: list[Record] = []
        while batch := await spool.next_batch(1000, 1 << 20):
            kept += map(wire.record_from_bytes, batch.records)
            await spool.acknowledge(batch.epoch, batch.first_seq + len(batch.records) - 1)
    finally:
        spool.close()
    assert len(answered) >= 60
    assert set(answered) <= {show_id(record.id) for record in kept}
    assert all(isinstance(r.body, Event) and r.body.kind is EventKind.IMPRESSION for r in kept)


async def test_program_from_token_to_goodbye(tmp_path: Path, control_plane: ScriptedControlPlane) -> None:
    """enroll from standard input, run, report and status from a shell, SIGTERM: exit 0 and Goodbye."""
    config, state = make_host(tmp_path), tmp_path / "state"
    token = control_plane.token()
    enrolling = await program("enroll", "--token-file", "-", "--state-dir", state, "--name", "host-1")
    code, out, err = await enrolling.ended(token + "\n")
    assert (code, err) == (0, "")
    assert "enrolled as host-1" in out
    again = await program("enroll", "--token-file", "-", "--state-dir", state)
    code, out, err = await again.ended(token)
    assert (code, out) == (1, "")
    assert "variantctl agents token" in err
    assert "Traceback" not in err

    daemon = await program("run", "--config", config, "--state-dir", state)
    sync = await control_plane.session()
    await serving(state)
    second = await program("run", "--config", config, "--state-dir", state)
    code, _, err = await second.ended()
    assert code == 1
    assert err.startswith("variant-agent: another variant-agent is running on")
    report = await program("report", "impression", "--subject", "u-1", "--state-dir", state)
    code, out, err = await report.ended()
    assert (code, err) == (0, "")
    await eventually(lambda: control_plane.records)
    assert wire.record_from_bytes(control_plane.batches[0].records[0]).id.hex() == out.strip().replace(
        "-", ""
    )

    daemon.process.terminate()
    code, out, err = await daemon.ended()
    assert (code, out) == (0, "")
    assert "Traceback" not in err
    assert token not in err
    await asyncio.wait_for(sync.ended.wait(), PATIENCE)
    assert sync.goodbye == "stop"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 2), (["fly"], 2), (["report", "sneeze"], 2), (["enroll"], 2), (["--version"], 0), (["--help"], 0)],
)
def test_usage(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """2 for a command line that is none; help and version are 0 and go to standard output."""
    with pytest.raises(SystemExit) as ended:
        command_line.run(arguments)
    assert ended.value.code == code
    said = capsys.readouterr()
    assert bool(said.out) == (code == 0)
    if arguments == ["--version"]:
        assert said.out == f"variant-agent {VERSION}\n"


def test_faults_of_a_configuration_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each on its line with its remedy, exit 1."""
    config = tmp_path / "agent.toml"
    config.write_text('[agent]\ncolour = "red"\n[[participants]]\nid = "a b"\nroot = "r"\n')
    assert command_line.run(["run", "--config", str(config), "--state-dir", str(tmp_path / "s")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("variant-agent: agent.toml")
    assert any("agent.colour" in line for line in lines[1:])
    assert any("participants[0].id" in line for line in lines[1:])
    assert any("participants[0].targets" in line for line in lines[1:])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "--config", "missing.toml", "--state-dir", "s"], "No such file"),
        (["enroll", "--token-file", "missing", "--state-dir", "s"], "No such file"),
        (["status", "--state-dir", "s"], "no variant-agent is running on s"),
        (["report", "impression", "--socket", "missing.sock"], "no variant-agent answers on missing.sock"),
    ],
)
def test_errors_are_sentences(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 1, one line, what to do."""
    monkeypatch.chdir(tmp_path)
    assert command_line.run(arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("variant-agent: ")
    assert told in said.err
    assert "Traceback" not in said.err


async def test_status_and_report_from_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For people and for machines; a refusal lists its fields."""
    make_host(tmp_path, participants=2)
    state = str(tmp_path / "state")
    async with running(tmp_path) as local:

        async def told(*arguments: str) -> tuple[int, str, str]:
            code = await asyncio.to_thread(command_line.run, list(arguments))
            said = capsys.readouterr()
            return code, said.out, said.err

        code, out, _ = await told("status", "--state-dir", state)
        assert code == 0
        assert "never enrolled" in out
        assert "bot-2" in out
        code, out, _ = await told("status", "--state-dir", state, "--json")
        assert json.loads(out)["name"] == "host-1"
        conversion = ["report", "conversion", "--socket", str(local), "--participant", "bot-1"]
        code, out, _ = await told(*conversion, "--event", "resolved", "--value", "1.5", "--json")
        assert (code, list(json.loads(out))) == (0, ["id"])
        code, out, err = await told(*conversion, "--value", "nan")
        assert (code, out) == (1, "")
        assert "\n  eventName " in err
        assert "\n  value must be finite" in err
        code, _, err = await told("report", "impression", "--socket", str(local))
        assert code == 1
        assert "participantId" in err


async def test_daemon_imports_little() -> None:
    """What only a control plane, a command line or an enrollment needs stays out of a process at rest."""
    script = (
        "import sys, agent.app; "
        "print(sorted({'pydantic', 'typer', 'cryptography', 'yaml', 'numpy'} & set(sys.modules)))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out.decode().strip() == "[]"
