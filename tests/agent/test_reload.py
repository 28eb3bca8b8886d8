"""A changed agent.toml is taken up by the running agent, whole or not at all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent import __main__ as command_line
from agent import app
from agent import identity as identities
from agent.config import load
from agent.enrollment import enroll
from shared.model import DriftPolicy, OfferAction, ReasonCode, Result, digest
from tests.support.control_plane import ScriptedControlPlane, in_background
from tests.support.host import Host, make_config, make_end, make_offer, make_participant, running_host
from tests.support.local import call
from tests.support.waiting import PATIENCE, eventually

RESTORE = OfferAction.RESTORE


def codes(host: Host) -> list[str]:
    return [condition.code for condition in host.reconciler.conditions()]


# -- files -------------------------------------------------------------------------------------------


async def test_a_participant_s_rules_change_under_its_slots(tmp_path: Path) -> None:
    """Targets and drift policy count from then on; what it holds and what was seen stays."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        views = len(host.views)
        stricter = make_participant(host.root, targets=("soul.md",), drift=DriftPolicy.REPAIR)
        await host.reconciler.reconfigure(make_config(tmp_path, stricter))
        assert len(host.views) == views
        refused = await host.apply(make_offer({"other.md": "B"}, slot_id=bytes(16)))
        assert refused.reason is not None
        assert refused.reason.code is ReasonCode.TARGET_NOT_ALLOWED
        await host.reconciler.observed("bot-1", "soul.md")
        (host.root / "soul.md").write_text("edited")
        await host.reconciler.observed("bot-1", "soul.md")
        assert host.text("soul.md") == "A"


async def test_a_participant_comes_goes_and_comes_back(tmp_path: Path) -> None:
    """Gone, its files are left as they are and it is offered nothing; back, its baseline is still there."""
    async with running_host(tmp_path) as host:
        (host.root / "soul.md").write_text("mine")
        await host.apply(make_offer({"soul.md": "A"}))
        one = make_participant(host.root)
        two = make_participant(tmp_path / "two", "bot-2")
        await host.reconciler.reconfigure(make_config(tmp_path, two))
        assert host.text("soul.md") == "A"
        assert codes(host) == ["PARTICIPANT_UNKNOWN"]
        assert host.reconciler.slots() == ()
        assert dict(host.reconciler.watched()) == {}
        refused = await host.apply(make_offer({"soul.md": "B"}, revision=2))
        assert refused.reason is not None
        assert refused.reason.code is ReasonCode.TARGET_NOT_ALLOWED
        assert (await host.apply(make_offer({"soul.md": "C"}, participant="bot-2"))).result is Result.APPLIED
        assert (tmp_path / "two" / "soul.md").read_text() == "C"
        (host.root / "soul.md").write_text("edited meanwhile")
        await host.reconciler.reconfigure(make_config(tmp_path, one, two))
        assert codes(host) == []
        assert host.views[-1].digest == digest(b"edited meanwhile")
        over = make_end(RESTORE, "soul.md", revision=3, overwrite_drift=True)
        assert (await host.apply(over)).result is Result.APPLIED
        assert host.text("soul.md") == "mine"


async def test_what_is_being_applied_ends_by_the_rules_it_began_with(tmp_path: Path) -> None:
    """The change waits for it; what was offered behind it and not begun is refused."""
    slow = ("sh", "-c", "echo begun > ../begun; until test -e ../go; do :; done")
    async with running_host(tmp_path, reload=slow) as host:
        host.reconciler.offer(make_offer({"soul.md": "A"}))
        await eventually((tmp_path / "begun").exists)
        host.reconciler.offer(make_offer({"two.md": "B"}, slot_id=bytes(16)))
        gone = asyncio.create_task(host.reconciler.reconfigure(make_config(tmp_path)))
        (tmp_path / "go").touch()
        await asyncio.wait_for(gone, PATIENCE)
        assert [outcome.result for outcome in host.outcomes] == [Result.APPLIED, Result.REFUSED]
        assert (host.text("soul.md"), host.text("two.md")) == ("A", None)
        assert host.reconciler.settled()


# -- the whole agent ---------------------------------------------------------------------------------


def write_config(folder: Path, *names: str, agent: str = "", **values: str) -> None:
    """An agent.toml with these participants."""
    lines = ["[agent]", 'local_http = "127.0.0.1:0"', 'socket = "agent.sock"', agent]
    for name in names:
        (folder / name).mkdir(exist_ok=True)
        settings = {"id": f'"{name}"', "root": f'"{name}"', "targets": '["SOUL.md"]', **values}
        lines += ["[[participants]]", *(f"{key} = {value}" for key, value in settings.items())]
    (folder / "agent.toml").write_text("\n".join(lines) + "\n")


@asynccontextmanager
async def running(folder: Path, hangup: asyncio.Event | None = None) -> AsyncIterator[Path]:
    """The agent of a folder, ready; its socket."""
    stop, file = asyncio.Event(), folder / "agent.toml"
    agent = app.run(load(file), folder / "state", stop, read=lambda: load(file), hangup=hangup)
    async with in_background(agent) as task:
        await eventually(lambda: task.done() or (folder / "state" / "addresses.json").exists())
        if task.done():
            await task
        yield folder / "agent.sock"
        stop.set()
        await asyncio.wait_for(task, PATIENCE)


async def test_the_whole_agent_goes_by_the_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer says what changed; reports are taken, status and the next Hello tell the same."""
    monkeypatch.setenv("VARIANT_AGENT_RECONNECT_JITTER", "0.05")
    write_config(tmp_path, "bot-1", "bot-2")
    async with ScriptedControlPlane().running() as plane:
        with identities.hold(tmp_path / "state"):
            await enroll(plane.token(), tmp_path / "state", name="host-1")
        async with running(tmp_path) as socket:
            first = await plane.session()
            assert [p.participant for p in first.hello.participants] == ["bot-1", "bot-2"]
            write_config(tmp_path, "bot-2", "bot-3", drift='"hold"')
            answer = await call(socket, "/v1/admin/reload", body={})
            assert answer.body == {"added": ["bot-3"], "changed": ["bot-2"], "removed": ["bot-1"]}
            second = await plane.session(2)
            told = [(p.participant, p.drift) for p in second.hello.participants]
            assert told == [("bot-2", DriftPolicy.HOLD), ("bot-3", DriftPolicy.HOLD)]
            assert first.goodbye == "reload"
            for name, status in (("bot-1", 404), ("bot-3", 202)):
                assert (await call(socket, "/v1/impressions", body={"participantId": name})).status == status
            shown = (await call(socket, "/status")).body["participants"]
            assert [(p["id"], p["drift"]) for p in shown] == [("bot-2", "hold"), ("bot-3", "hold")]


@pytest.mark.parametrize(
    ("names", "agent", "values", "field"),
    [
        (("bot-1",), "", {"drift": '"ignore"'}, "participants[0].drift"),
        (("bot-1",), "", {"allow_users": '["nobody-at-all"]'}, "participants[0].allow_users"),
        (("bot-1",), 'name = "another"', {}, "agent.name"),
        (("bot-1", "bot-2"), "", {"root": '"bot-1"'}, "participants[1].root"),
    ],
)
async def test_a_file_with_a_fault_changes_nothing(
    tmp_path: Path, names: tuple[str, ...], agent: str, values: dict[str, str], field: str
) -> None:
    """Every fault is told, and a condition keeps telling, until a reload succeeds."""
    write_config(tmp_path, "bot-1", "bot-9")
    async with running(tmp_path) as socket:
        before = (await call(socket, "/status")).body["participants"]
        write_config(tmp_path, *names, agent=agent, **values)
        answer = await call(socket, "/v1/admin/reload", body={})
        assert answer.status == 400
        assert list(answer.faults) == [field]
        status = (await call(socket, "/status")).body
        assert status["participants"] == before
        assert "CONFIG_REFUSED" in [condition["code"] for condition in status["conditions"]]
        write_config(tmp_path, "bot-1", "bot-9")
        assert (await call(socket, "/v1/admin/reload", body={})).status == 200
        status = (await call(socket, "/status")).body
        assert "CONFIG_REFUSED" not in [condition["code"] for condition in status["conditions"]]


async def test_two_participants_never_come_to_share_a_file(tmp_path: Path) -> None:
    """What the start refuses, a reload refuses."""
    write_config(tmp_path, "bot-1", targets='["**/SOUL.md"]')
    async with running(tmp_path) as socket:
        nested = '\n[[participants]]\nid = "bot-2"\nroot = "bot-1/in"\ntargets = ["SOUL.md"]\n'
        with (tmp_path / "agent.toml").open("a") as file:
            file.write(nested)
        answer = await call(socket, "/v1/admin/reload", body={})
        assert (answer.status, list(answer.faults)) == (400, ["participants[1].targets"])
        assert len((await call(socket, "/status")).body["participants"]) == 1


async def test_a_hangup_reloads(tmp_path: Path) -> None:
    """As often as it comes; a file that is not valid stops nothing."""
    hangup = asyncio.Event()
    write_config(tmp_path, "bot-1")

    async def condition(wanted: bool) -> bool:
        found = (await call(tmp_path / "agent.sock", "/status")).body
        return ("CONFIG_REFUSED" in [c["code"] for c in found["conditions"]]) is wanted

    async with running(tmp_path, hangup) as socket:
        (tmp_path / "agent.toml").write_text("[agent")
        hangup.set()
        await eventually(lambda: condition(wanted=True))
        write_config(tmp_path, "bot-1", "bot-2")
        hangup.set()
        await eventually(lambda: condition(wanted=False))
        shown = (await call(socket, "/status")).body["participants"]
        assert [p["id"] for p in shown] == ["bot-1", "bot-2"]


async def test_reload_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what changed, or every fault by field with exit code 1."""
    state = ["--state-dir", str(tmp_path / "state")]
    write_config(tmp_path, "bot-1")
    async with running(tmp_path):
        write_config(tmp_path, "bot-1", "bot-2", drift='"repair"')
        assert await asyncio.to_thread(command_line.run, ["reload", *state]) == 0
        assert capsys.readouterr().out == "participants added bot-2; changed bot-1\n"
        assert await asyncio.to_thread(command_line.run, ["reload", *state]) == 0
        assert capsys.readouterr().out == "participants as they were\n"
        write_config(tmp_path, "bot-1", drift='"ignore"')
        assert await asyncio.to_thread(command_line.run, ["reload", *state]) == 1
        assert "participants[0].drift" in capsys.readouterr().err
