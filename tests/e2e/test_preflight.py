"""Real hosts of which some refuse a variant: nobody there gets any, and everybody is told why."""

import json
import sys
from pathlib import Path

from tests.support.fleet import Fleet, Host, run, running_fleet
from tests.support.waiting import eventually

NO_ATS = "import sys; sys.exit('@' in open(sys.argv[1]).read())"
CHECK = json.dumps([sys.executable, "-c", NO_ATS, "{staged}"])
KIND, MAIL = "Be kind.\n" * 3, "Be kind, write to us@example.org.\n"
LONG = "Be very, very kind.\n" * 3_000  # does not travel inside a question
VARIANTS = [
    {"name": "Control", "key": "control", "content": KIND, "weight": 34, "isControl": True},
    {"name": "Mail", "key": "mail", "content": MAIL, "weight": 33},
    {"name": "Long", "key": "long", "content": LONG, "weight": 33},
]


async def hosts(fleet: Fleet) -> dict[str, Host]:
    """One host that takes everything, on a stream and in polls, one with a check, and one that takes little."""
    return {
        "plain": await fleet.add_host("plain", "plain-1", "plain-2"),
        "polls": await fleet.add_host("polls", "polls-1", "polls-2", transport="poll"),
        "checks": await fleet.add_host("checks", "checks-1", "checks-2", check=CHECK),
        "small": await fleet.add_host("small", "small-1", transport="poll", max_bytes="100"),
    }


async def test_whoever_refuses_one_variant_gets_none(tmp_path: Path) -> None:
    """Too large here, refused by the host's check there: out of every arm, in start, preview and findings alike."""
    async with running_fleet(tmp_path) as fleet:
        found = await hosts(fleet)
        everybody = [name for host in found.values() for name in host.participants]
        takes_all = {"plain-1", "plain-2", "polls-1", "polls-2"}
        values = {
            "name": "Tone",
            "targetFile": "soul.md",
            "variants": VARIANTS,
            "participantIds": [*everybody, "away"],
            "requirePreflight": True,
        }
        await fleet.plane.post("/v1/experiments", values)
        home = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "home")}
        await run("variantctl", "login", "--data-dir", str(fleet.plane.data), **home)
        _, out, _ = await run("variantctl", "experiments", "preview", "tone", **home)
        lines = out.splitlines()
        assert lines[0].startswith("a start would write soul.md on 4 participants"), out
        left_out = [line for line in lines if line.startswith("left out: ")]
        assert [line.rpartition(" ")[2] for line in left_out] == ["(PREFLIGHT_REFUSED)"] * 2 + [
            "(PREFLIGHT_UNKNOWN)"
        ]
        assert "checks-1, checks-2: takes part in no variant: its host refuses mail: the host's check" in out
        assert "small-1: takes part in no variant: its host refuses long: 'soul.md' would have" in out
        assert "left out: away: its host has not said that it takes every variant" in out

        await run("variantctl", "experiments", "start", "tone", "--json", **home)
        assert set(await fleet.assigned("tone")) == takes_all

        async def applied() -> bool:
            return set((await fleet.states("tone")).values()) == {"applied"}

        await eventually(applied, what="everybody who takes part has a variant")
        for host in found.values():
            for name in set(host.participants) - takes_all:
                assert host.file(name).read_bytes() == host.baseline(name)
                assert [path.name for path in host.root(name).iterdir()] == ["soul.md"]
        body = await fleet.plane.get("/v1/experiments/tone/findings")
        [finding] = [item for item in body["findings"] if item["code"] == "PREFLIGHT_REFUSED"]
        assert finding["evidence"] == {
            "participants": ["checks-1", "checks-2", "small-1"],
            "byReason": {"CHECK_FAILED": 2, "TOO_LARGE": 1},
        }
        for log in tmp_path.glob("*.log"):
            assert "example.org" not in log.read_text(), log


async def test_a_reloaded_policy_is_heard_before_the_next_start(tmp_path: Path) -> None:
    """What the host said before its agent.toml changed counts no more; who joins late is heard first."""
    async with running_fleet(tmp_path) as fleet:
        host = await fleet.add_host("one", "bot-1", "bot-2", max_bytes="20")
        label = {"labels": {"role": "support"}}

        async def labelled() -> bool:
            return {
                (await fleet.plane.rest("PATCH", f"/v1/participants/{name}", label))[0]
                for name in host.participants
            } == {200}

        await eventually(labelled, what="the host has declared its participants")
        two = [{**item, "weight": 50} for item in VARIANTS[:2]]
        values = {"name": "Tone", "targetFile": "soul.md", "variants": two, "participants": label}
        await fleet.plane.post("/v1/experiments", values)
        status, _ = await fleet.plane.rest("POST", "/v1/experiments/tone/start")
        assert status == 409
        host.settings["max_bytes"] = "4000"
        host.own["bot-2"] = {"check": CHECK}
        host.write_config()
        await run("variant-agent", "reload", "--state-dir", str(host.state))

        async def heard() -> bool:
            shown = await fleet.plane.post("/v1/experiments/tone/assignments:preview")
            return {item["participantId"]: item["code"] for item in shown["findings"]} == {
                "bot-2": "PREFLIGHT_REFUSED"
            }

        await eventually(heard, what="the new policy was heard")
        await fleet.plane.post("/v1/experiments/tone/start")
        assert set(await fleet.assigned("tone")) == {"bot-1"}
        # Somebody mends the check's objection; without a start or a look, it comes in by itself.
        host.own["bot-2"] = {}
        host.write_config()
        await run("variant-agent", "reload", "--state-dir", str(host.state))

        async def joined() -> bool:
            return set(await fleet.assigned("tone")) == {"bot-1", "bot-2"}

        await eventually(joined, what="who takes every variant now has come in")
