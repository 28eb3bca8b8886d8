"""What a start would touch, for a person and for a program, of a draft and of what would be one."""

from pathlib import Path

from tests.cli.conftest import Run
from tests.support.builders import make_hello
from tests.support.plane import Plane
from tests.support.stream import session


async def test_a_draft_is_previewed_with_hosts_obstacles_and_decision(
    plane: Plane, ctl: Run, manifest: Path
) -> None:
    """Which host has whom, who holds a file already, who waits, and what the design can reach; nothing is changed."""
    away = await plane.enroll(await plane.token(), name="host-2")
    async with session(away, make_hello("bot-2")):
        pass
    identity = await plane.enroll(await plane.token(), name="host-1")
    async with session(identity, make_hello("bot-1")):
        pair = [
            {"name": "A", "content": "a", "weight": 50, "isControl": True},
            {"name": "B", "content": "b", "weight": 50},
        ]
        other = {
            "name": "Other",
            "targetFile": "config/soul.md",
            "variants": pair,
            "participantIds": ["bot-1"],
        }
        await plane.made("/v1/experiments", other)
        await plane.made("/v1/experiments/other/start", None)
        trial = await ctl("apply", "-f", str(manifest), "--dry-run")
        assert (await ctl("apply", "-f", str(manifest))).code == 0
        before = (await plane.rest("GET", "/v1/experiments/soul-tone")).body
        said = await ctl("experiments", "preview", "soul-tone")
        again = await ctl("apply", "-f", str(manifest), "--dry-run")
        shown = (await ctl("apply", "-f", str(manifest), "--dry-run", "--json")).json
        plain = (await ctl("experiments", "preview", "soul-tone", "--json")).json
    assert said.code == 0, said.err
    obstacles = [
        "a start would write config/soul.md on 2 participants: friendly 1, concise 1",
        "  host-1 (connected): bot-1",
        "  host-2 (lost): bot-2",
        "stands in the way: bot-1: config/soul.md is held by experiment other (CLAIM_CONFLICT)",
        "waits: bot-2: its agent is not connected; its deployment waits until it is (OFFLINE)",
    ]
    unheard = "not heard: bot-1: its host has not said that it takes every variant (PREFLIGHT_UNKNOWN)"
    decision = "the design cannot decide: the smallest p it can reach is 1, a decision needs 0.05"
    lines = said.out.splitlines()
    assert lines[:7] == [*obstacles, unheard, decision]
    assert lines[7].split() == ["STRATUM", "friendly".upper(), "concise".upper()]
    assert {line.split()[0] for line in lines[8:]} == {"host-1", "host-2"}
    assert again.out.splitlines()[1:8] == [*obstacles, unheard, decision]
    assert [line for line in trial.out.splitlines() if line in obstacles] == obstacles
    assert "the design cannot decide" in trial.out.splitlines()
    touches = shown["touches"]
    assert touches["hosts"] == [
        {"name": "host-1", "presence": "connected", "participantIds": ["bot-1"]},
        {"name": "host-2", "presence": "lost", "participantIds": ["bot-2"]},
    ]
    assert (touches["canDecide"], touches["neededP"]) == (False, 0.05)
    assert {item["participantId"] for item in plain["assignments"]} == {"bot-1", "bot-2"}
    assert (await plane.rest("GET", "/v1/experiments/soul-tone")).body == before


async def test_a_large_fleet_is_previewed_in_few_lines(plane: Plane, ctl: Run, manifest: Path) -> None:
    """So many hosts and strata are listed, the largest strata first, and the others counted; JSON has all."""
    identity = await plane.enroll(await plane.token(labels={"fleet": "large"}), name="host-many")
    hosts = {"host-many": ["many-1", "many-2", "many-3"]}
    names = [f"host-{number:02}" for number in range(52)]
    for name in names:
        hosts[name] = [f"{name}-bot"]
    token = await plane.token(labels={"fleet": "large"}, maxUses=len(names))
    for name in names:
        async with session(await plane.enroll(token, name=name), make_hello(*hosts[name])):
            pass
    manifest.write_text(manifest.read_text().replace("[bot-1, bot-2]", "{labels: {fleet: large}}"))
    async with session(identity, make_hello(*hosts["host-many"])):
        assert (await ctl("apply", "-f", str(manifest))).code == 0
        said = await ctl("experiments", "preview", "soul-tone")
        plain = (await ctl("experiments", "preview", "soul-tone", "--json")).json
    lines = said.out.splitlines()
    assert sum(line.startswith("  host-") for line in lines) == 50
    assert "  and 3 more hosts, 2 not connected: 5 participants" in lines
    table = [line.split() for line in lines[lines.index(next(x for x in lines if "STRATUM" in x)) + 1 :]]
    assert (len(table), table[0][0], sum(map(int, table[0][1:]))) == (51, "host-many", 3)
    assert (table[-1][:2], sum(map(int, table[-1][2:]))) == (["3", "more"], 3)
    assert len(plain["assignments"]) == 55


async def test_a_started_experiment_has_no_preview(running: Run, manifest: Path) -> None:
    """It is told so as a conflict, and a dry run of what it is already shows no plan."""
    said = await running("experiments", "preview", "soul-tone")
    assert said.code == 4
    assert "running" in said.err
    shown = (await running("apply", "-f", str(manifest), "--dry-run", "--json")).json
    assert (shown["action"], shown["touches"]) == ("none", None)


async def test_a_draft_in_which_nobody_takes_part(plane: Plane, ctl: Run, manifest: Path) -> None:
    """Whoever is held out counts in the dry run of a change and in the preview: nobody left is what stands in the
    way, and the draft stays as it is."""
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    await plane.made("/v1/holdouts", {"name": "All", "key": "all", "share": 100})
    with manifest.open("a") as more:
        more.write("holdoutId: all\n")
    (manifest.parent / "concise.md").write_text("be very concise\n")
    before = (await plane.rest("GET", "/v1/experiments/soul-tone")).body
    said = await ctl("apply", "-f", str(manifest), "--dry-run")
    assert said.code == 0, said.err
    assert (
        "a start would write config/soul.md on 0 participants: friendly 0, concise 0\n"
        "stands in the way: nobody would take part\n"
        "the design cannot decide\n" in said.out
    ), said.out
    assert (await plane.rest("GET", "/v1/experiments/soul-tone")).body == before
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    shown = await ctl("experiments", "preview", "soul-tone")
    assert (shown.code, "stands in the way: nobody would take part\n" in shown.out) == (0, True), shown.err
    assert "nothing stands in the way" not in said.out + shown.out
