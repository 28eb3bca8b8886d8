"""What an operator may order besides the main job, on real processes: each is seen on the files of the hosts."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Fleet, Host, Ledger, run, running_fleet
from tests.support.waiting import eventually

A, B = "As agreed.\n", "The other one.\n"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path) as running:
        yield running


async def start(
    fleet: Fleet, *participants: str, key: str = "tone", a: str = A, b: str = B, **fields: Any
) -> dict[str, bytes]:
    """An experiment is started; what each participant's file should hold by it."""
    contents = {"a": a, "b": b}
    values = {
        "name": key,
        "key": key,
        "targetFile": "soul.md",
        "variants": [
            {"name": name, "key": name, "content": content, "weight": 50, "isControl": name == "a"}
            for name, content in contents.items()
        ],
        "participantIds": list(participants),
        "exposureCriteria": {"settleSeconds": 0},
        **fields,
    }
    await fleet.plane.post("/v1/experiments", values)
    await fleet.plane.post(f"/v1/experiments/{key}/start")
    return {bot: contents[variant].encode() for bot, variant in (await fleet.assigned(key)).items()}


async def holds(host: Host, wanted: dict[str, bytes], path: str = "soul.md") -> None:
    """The files come to hold this."""

    def there() -> bool:
        return {bot: host.file(bot, path).read_bytes() for bot in wanted} == wanted

    await eventually(there, what=f"{host.name}'s files")


async def states(fleet: Fleet, wanted: set[str], key: str = "tone") -> None:
    """The newest deployments come to stand so."""

    async def stand() -> bool:
        return set((await fleet.states(key)).values()) == wanted

    await eventually(stand, what=f"deployments are {wanted}")


async def ordered(fleet: Fleet, *command: str) -> str:
    """What variantctl prints of a command."""
    home = {"HOME": str(fleet.folder / "home"), "XDG_CONFIG_HOME": str(fleet.folder / "home")}
    if not (fleet.folder / "home").exists():
        await run("variantctl", "login", "--data-dir", str(fleet.plane.data), **home)
    _, out, _ = await run("variantctl", *command, **home)
    return out


def baselines(host: Host, *participants: str) -> dict[str, bytes]:
    """What was there before."""
    return {bot: host.baseline(bot) for bot in participants}


@pytest.mark.parametrize("transport", ["stream", "poll"])
async def test_content_above_the_inline_limit_is_fetched(fleet: Fleet, transport: str) -> None:
    """Larger than 32 KiB, and than one chunk of 256 KiB: byte for byte on disk, and taken away again."""
    host = await fleet.add_host("one", "bot-1", "bot-2", transport=transport)
    wanted = await start(fleet, "bot-1", "bot-2", a="a much longer prompt\n" * 2_000, b="x" * 300_000)
    assert sorted(len(content) for content in wanted.values()) == [42_000, 300_000]
    await holds(host, wanted)
    await states(fleet, {"applied"})
    await fleet.plane.post("/v1/experiments/tone/complete", {"then": "restore"})
    await holds(host, baselines(host, "bot-1", "bot-2"))


async def test_a_frozen_fleet_gets_what_was_started_when_it_thaws(fleet: Fleet) -> None:
    """Hosts report and are connected all the while; what is delivered then is the newest."""
    streams = await fleet.add_host("one", "bot-1")
    polls = await fleet.add_host("two", "bot-2", transport="poll")
    await ordered(fleet, "freeze")
    wanted = await start(fleet, "bot-1", "bot-2")
    ledger = Ledger()
    for host in fleet.hosts:
        await ledger.report(host, host.participants[0], convert=True)

    async def counted() -> bool:
        counts = await fleet.plane.results("tone", "done")
        return counts == ledger.sums(await fleet.assigned("tone"))

    await eventually(counted, what="reports are counted meanwhile")
    await states(fleet, {"pending"})
    for host in fleet.hosts:
        assert host.file(host.participants[0]).read_bytes() == host.baseline(host.participants[0])
    await ordered(fleet, "unfreeze")
    await holds(streams, {"bot-1": wanted["bot-1"]})
    await holds(polls, {"bot-2": wanted["bot-2"]})
    await states(fleet, {"applied"})


async def test_a_drifted_participant_under_exclude_is_out_until_the_file_is_back(fleet: Fleet) -> None:
    """It stays in `assigned`; `delivered` counts it again once somebody undoes the edit, and the host says so."""
    host = await fleet.add_host("one", "bot-1", "bot-2", drift='"exclude"')
    wanted = await start(fleet, "bot-1", "bot-2")
    await holds(host, wanted)
    await states(fleet, {"applied"})
    variant = (await fleet.assigned("tone"))["bot-1"]
    ledger = Ledger()

    async def stand(state: str, conditions: set[str]) -> bool:
        files = (await fleet.plane.get("/v1/participants/bot-1"))["files"]
        _, out, _ = await run("variant-agent", "status", "--state-dir", str(host.state))
        return [file["state"] for file in files] == [state] and conditions == {
            code for code in ("DRIFT_EXCLUDED",) if code in out
        }

    async def counts(assigned: int, delivered: int) -> bool:
        for population, count in (("assigned", assigned), ("delivered", delivered)):
            if (await fleet.plane.results("tone", "done", population))[variant][0] != count:
                return False
        return True

    await ledger.report(host, "bot-1", convert=False)
    await eventually(lambda: counts(1, 1))
    host.file("bot-1").write_text("a person's edit")
    await eventually(lambda: stand("drifted", {"DRIFT_EXCLUDED"}), what="the drift is known")
    await ledger.report(host, "bot-1", convert=False)
    await eventually(lambda: counts(2, 1), what="assigned only")
    assert host.file("bot-1").read_text() == "a person's edit"
    host.file("bot-1").write_bytes(wanted["bot-1"])
    await eventually(lambda: stand("applied", set()), what="the file is back")
    await ledger.report(host, "bot-1", convert=False)
    await eventually(lambda: counts(3, 2), what="both again")


async def test_a_participant_moves_between_running_hosts(fleet: Fleet) -> None:
    """The new host gets what it should hold, the former one nothing more.

    What was in the file before the experiment only the former host knows, so the new one refuses to restore.
    """
    former = await fleet.add_host("one", "bot-1", "bot-2")
    wanted = await start(fleet, "bot-1", "bot-2")
    await holds(former, wanted)
    await states(fleet, {"applied"})
    latter = await fleet.add_host("two", "bot-1", transport="poll")

    async def conditions(host: Host) -> list[str]:
        agents = (await fleet.plane.get("/v1/agents"))["entities"]
        return [c["code"] for a in agents if a["name"] == host.name for c in a["conditions"]]

    async def told(host: Host) -> list[str]:
        async with host.local() as local, local.get("http://agent/status") as answer:
            return [finding["code"] for finding in (await answer.json())["findings"]]

    async def nothing_told(host: Host) -> bool:
        return await told(host) == []

    async def taken(host: Host) -> bool:
        return await conditions(host) == await told(host) == ["PARTICIPANT_TAKEN"]

    await eventually(lambda: taken(latter), what="the second host is told")
    assert latter.file("bot-1").read_bytes() == latter.baseline("bot-1")
    to = {a["name"]: a["id"] for a in (await fleet.plane.get("/v1/agents"))["entities"]}[latter.name]
    await ordered(fleet, "participants", "move", "bot-1", "--to", to)
    await holds(latter, {"bot-1": wanted["bot-1"]})
    await eventually(lambda: taken(former), what="the former host is told")
    assert await conditions(latter) == []
    await eventually(lambda: nothing_told(latter), what="nothing is wrong with the second host any more")
    _, shown, _ = await run("variant-agent", "status", "--state-dir", str(former.state))
    assert "control plane PARTICIPANT_TAKEN: bot-1 belongs to another agent" in shown
    await fleet.plane.post("/v1/experiments/tone/complete", {"then": "restore"})
    await holds(former, baselines(former, "bot-2"))

    async def refused() -> bool:
        page = await fleet.plane.get("/v1/experiments/tone/deployments?limit=100")
        newest = next(item for item in page["entities"] if item["participantId"] == "bot-1")
        return bool(newest["state"] == "refused" and newest["reason"]["code"] == "BASELINE_LOST")

    await eventually(refused, what="the restore is refused")
    assert latter.file("bot-1").read_bytes() == former.file("bot-1").read_bytes() == wanted["bot-1"]


async def test_restore_all_puts_every_file_back(fleet: Fleet) -> None:
    """Running, paused and stopped experiments end, on every host; one that is a draft stays one."""
    one = await fleet.add_host("one", "bot-1", "bot-2")
    two = await fleet.add_host("two", "bot-3", "bot-4")
    soul = await start(fleet, "bot-1", "bot-2")
    other = await start(fleet, "bot-3", "bot-4", key="other")
    await holds(one, soul)
    await holds(two, other)
    for key in ("tone", "other"):
        await states(fleet, {"applied"}, key)
    await fleet.plane.post("/v1/experiments/other/pause", {})
    out = await ordered(fleet, "restore", "--all", "--yes")
    assert "tone" in out
    assert "other" in out
    await holds(one, baselines(one, "bot-1", "bot-2"))
    await holds(two, baselines(two, "bot-3", "bot-4"))
    assert await ordered(fleet, "restore", "--all", "--yes") == "completed with restore: none\n"
