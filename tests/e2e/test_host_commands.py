"""What a host's administrator tells the running agent, and how the control plane hears of it."""

import signal
from pathlib import Path

from tests.support.fleet import Fleet, Host, run, running_fleet
from tests.support.waiting import eventually


async def known(fleet: Fleet) -> dict[str, str]:
    """Drift policy by participant, as the control plane knows them."""
    page = await fleet.plane.get("/v1/participants?limit=100")
    return {item["id"]: item["driftPolicy"] for item in page["entities"]}


def rewrite(host: Host, *participants: str, **settings: str) -> None:
    """Another agent.toml."""
    host.participants, host.settings = list(participants), settings
    host.write_config()


async def test_a_changed_agent_toml_reaches_the_control_plane(tmp_path: Path) -> None:
    """By the command and by SIGHUP, without a restart; a file with a fault changes nothing anywhere."""
    async with running_fleet(tmp_path) as fleet:
        host = await fleet.add_host("one", "bot-1")
        at = ("--state-dir", str(host.state))

        async def is_known(**wanted: str) -> bool:
            return await known(fleet) == wanted

        await eventually(lambda: is_known(**{"bot-1": "report"}))
        rewrite(host, "bot-1", "bot-2", drift='"hold"')
        _, out, _ = await run("variant-agent", "reload", *at)
        assert out == "participants added bot-2; changed bot-1\n"
        await eventually(lambda: is_known(**{"bot-1": "hold", "bot-2": "hold"}))

        rewrite(host, "bot-1", "bot-2", drift='"never"')
        code, _, err = await run("variant-agent", "reload", *at, ok=False)
        assert code == 1
        assert "participants[0].drift" in err

        rewrite(host, "bot-1", "bot-2", drift='"repair"')
        assert host.process.child is not None
        host.process.child.send_signal(signal.SIGHUP)
        await eventually(lambda: is_known(**{"bot-1": "repair", "bot-2": "repair"}))
        assert host.process.running()


async def running_experiment(fleet: Fleet, *participants: str, key: str = "tone") -> None:
    """An experiment whose variants are in place."""
    variants = [
        {"name": "A", "content": "A\n", "weight": 50, "isControl": True},
        {"name": "B", "content": "B\n", "weight": 50},
    ]
    values = {"name": "Tone", "key": key, "targetFile": "soul.md", "variants": variants}
    await fleet.plane.post("/v1/experiments", {**values, "participantIds": list(participants)})
    await fleet.plane.post(f"/v1/experiments/{key}/start")

    async def applied() -> bool:
        return set((await fleet.states(key)).values()) == {"applied"}

    await eventually(applied, what="every file is in place")


async def test_the_status_has_a_line_for_each_file_that_is_held(tmp_path: Path) -> None:
    """With the reason where something was refused; experiments that are over there have none any more."""
    async with running_fleet(tmp_path) as fleet:
        host = await fleet.add_host("one", "bot-1")

        async def files() -> list[str]:
            _, out, _ = await run("variant-agent", "status", "--state-dir", str(host.state))
            return [
                line.removeprefix("file ").strip() for line in out.splitlines() if line.startswith("file ")
            ]

        async def none() -> bool:
            return await files() == []

        async def refused() -> bool:
            (line,) = await files()
            return "refused: DRIFTED: 'soul.md' holds" in line and "; look at the change, then" in line

        for key in ("first", "second"):
            await running_experiment(fleet, "bot-1", key=key)
            (line,) = await files()
            assert line.startswith("bot-1:soul.md  applied  sha256:")
            assert line.endswith("  revision 1 applied")
            if key == "second":
                host.file("bot-1").write_text("a person's edit")
            await fleet.plane.post(f"/v1/experiments/{key}/complete", {"then": "restore"})
            await eventually(refused if key == "second" else none, what="the host has answered")


async def test_a_host_leaves_as_it_came(tmp_path: Path) -> None:
    """Baselines are back byte for byte, the agent has ended, and one that is started again writes nothing."""
    async with running_fleet(tmp_path) as fleet:
        host = await fleet.add_host("one", "bot-1", "bot-2")
        at = ("--state-dir", str(host.state))
        await running_experiment(fleet, *host.participants)
        host.file("bot-2").write_text("a person's edit")
        code, _, err = await run("variant-agent", "leave", "--restore", *at, ok=False)
        assert code == 1
        assert "bot-2: 'soul.md' holds" in err
        assert host.process.running()
        assert host.file("bot-1").read_bytes() == host.baseline("bot-1")
        assert host.file("bot-2").read_text() == "a person's edit"

        _, out, _ = await run("variant-agent", "leave", *at)
        assert "files that stay as they are: 1\n  bot-2:soul.md  drifted" in out
        assert host.process.child is not None
        assert await host.process.child.wait() == 0

        await host.start()

        async def state() -> bool:
            files = (await fleet.plane.get("/v1/participants/bot-1"))["files"]
            return [file["state"] for file in files] == ["unmanaged"]

        await eventually(state, what="the control plane knows the file is the host's own")
        assert host.file("bot-1").read_bytes() == host.baseline("bot-1")
        _, out, _ = await run("variant-agent", "status", *at)
        assert "HOST_HELD" in out
