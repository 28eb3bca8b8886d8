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

        await eventually(lambda: is_known(**{"bot-1": "report"}), within=20)
        rewrite(host, "bot-1", "bot-2", drift='"hold"')
        _, out, _ = await run("variant-agent", "reload", *at)
        assert out == "participants added bot-2; changed bot-1\n"
        await eventually(lambda: is_known(**{"bot-1": "hold", "bot-2": "hold"}), within=20)

        rewrite(host, "bot-1", "bot-2", drift='"never"')
        code, _, err = await run("variant-agent", "reload", *at, ok=False)
        assert code == 1
        assert "participants[0].drift" in err

        rewrite(host, "bot-1", "bot-2", drift='"repair"')
        assert host.process.child is not None
        host.process.child.send_signal(signal.SIGHUP)
        await eventually(lambda: is_known(**{"bot-1": "repair", "bot-2": "repair"}), within=20)
        assert host.process.running()
