"""Somebody else writes a target file: what the host does about it, end to end."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.model import digest, show_digest
from tests.support.fleet import Fleet, Host, run, running_fleet
from tests.support.waiting import eventually

A, B = "As agreed.\n", "The other one.\n"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path) as running:
        yield running


async def applied(fleet: Fleet, *participants: str) -> dict[str, bytes]:
    """A running experiment `tone` whose files are in place; the content by variant key."""
    variants = [
        {"name": "A", "key": "a", "content": A, "weight": 50, "isControl": True},
        {"name": "B", "key": "b", "content": B, "weight": 50},
    ]
    values = {
        "name": "Tone",
        "targetFile": "soul.md",
        "variants": variants,
        "participantIds": list(participants),
    }
    await fleet.plane.post("/v1/experiments", values)
    await fleet.plane.post("/v1/experiments/tone/start")

    async def done() -> bool:
        return set((await fleet.states("tone")).values()) == {"applied"}

    await eventually(done, what="every file is in place")
    return {"a": A.encode(), "b": B.encode()}


async def file_state(fleet: Fleet, participant: str) -> str:
    """How the control plane knows the participant's file to stand."""
    files = (await fleet.plane.get(f"/v1/participants/{participant}"))["files"]
    return str(files[0]["state"])


async def logged_in(fleet: Fleet) -> dict[str, str]:
    """The environment of a shell that variantctl was told the control plane in."""
    home = {"HOME": str(fleet.folder / "home"), "XDG_CONFIG_HOME": str(fleet.folder / "home")}
    await run("variantctl", "login", "--data-dir", str(fleet.plane.data), **home)
    return home


async def status(host: Host) -> Any:
    """The JSON of /status."""
    _, out, _ = await run("variant-agent", "status", "--state-dir", str(host.state), "--json")
    return json.loads(out)


@pytest.mark.fault(23, 25)
async def test_a_drifted_file_is_repaired_until_it_is_a_war(fleet: Fleet) -> None:
    """Edited and removed, it is back within moments; the fourth time it stays, and the operator is told."""
    host = await fleet.add_host("one", "bot-1", drift='"repair"')
    contents = await applied(fleet, "bot-1")
    wanted = contents[(await fleet.assigned("tone"))["bot-1"]]
    target = host.file("bot-1")
    for change in (lambda: target.write_text("mine"), target.unlink, lambda: target.write_text("mine")):
        change()
        await eventually(lambda: target.read_bytes() == wanted, what="the file is back")

    async def known() -> bool:
        return await file_state(fleet, "bot-1") == "applied"

    await eventually(known)
    target.write_text("mine again")

    async def told() -> bool:
        codes = [condition["code"] for condition in (await status(host))["conditions"]]
        return "DRIFT_WAR" in codes and await file_state(fleet, "bot-1") == "drifted"

    await eventually(told, what="the drift war is known")
    assert target.read_text() == "mine again"
    assert set((await fleet.states("tone")).values()) == {
        "applied"
    }  # of the deployment; the view is the file's


async def test_a_held_file_is_written_over_by_the_operator_s_word_only(fleet: Fleet) -> None:
    """A deployment is refused with its remedy; with --overwrite-drift it is applied; restoring works after it."""
    host = await fleet.add_host("one", "bot-1", drift='"hold"')
    await applied(fleet, "bot-1")
    target = host.file("bot-1")
    target.write_text("a person's edit")

    async def drifted() -> bool:
        return await file_state(fleet, "bot-1") == "drifted"

    await eventually(drifted, what="the drift is known")
    assert target.read_text() == "a person's edit"
    (file,) = (await fleet.plane.get("/v1/participants/bot-1"))["files"]
    assert file["drift"]["kind"] == "changed"
    assert file["drift"]["observedDigest"] == show_digest(digest(b"a person's edit"))
    target.unlink()

    async def missing() -> bool:
        (file,) = (await fleet.plane.get("/v1/participants/bot-1"))["files"]
        return (file["drift"] or {}).get("kind") == "missing" and file["drift"]["observedDigest"] is None

    await eventually(missing, what="that it is gone is known")
    target.write_text("a person's edit")
    await eventually(drifted, what="the drift is known")
    home = await logged_in(fleet)
    deploy = ("variantctl", "deploy", "tone", "-p", "bot-1", "-v", "b", "--wait", "--timeout", "20")
    code, out, err = await run(*deploy, ok=False, **home)
    assert code == 3
    assert "HELD" in out + err
    assert target.read_text() == "a person's edit"
    await run(*deploy, "--overwrite-drift", **home)
    assert target.read_text() == B
    await fleet.plane.post("/v1/experiments/tone/complete", {"then": "restore"})
    await run("variantctl", "experiments", "wait", "tone", **home)
    assert target.read_bytes() == host.baseline("bot-1")


async def test_a_host_on_hold_writes_nothing_until_it_is_over(fleet: Fleet) -> None:
    """Offers are refused HELD, a restart changes nothing, and the end of the hold applies what waits."""
    host = await fleet.add_host("one", "bot-1", "bot-2")
    at = ("--state-dir", str(host.state))
    _, out, _ = await run("variant-agent", "hold", "on", *at)
    assert "hold off" in out
    values = {
        "name": "Tone",
        "targetFile": "soul.md",
        "variants": [
            {"name": "A", "content": A, "weight": 100, "isControl": True},
            {"name": "B", "content": B, "weight": 0},
        ],
        "participantIds": ["bot-1", "bot-2"],
    }
    await fleet.plane.post("/v1/experiments", values)
    await fleet.plane.post("/v1/experiments/tone/start")

    async def states(wanted: str) -> bool:
        return set((await fleet.states("tone")).values()) == {wanted}

    await eventually(lambda: states("refused"), what="both are refused")
    page = await fleet.plane.get("/v1/experiments/tone/deployments?limit=100")
    assert {item["reason"]["code"] for item in page["entities"]} == {"HELD"}
    assert await host.process.stop() == 0
    await host.start()

    async def waiting() -> bool:
        found = await status(host)
        assert [condition["code"] for condition in found["conditions"]] == ["HOST_HELD"]
        return bool(found["hold"]["waitingOffers"] == 2)

    await eventually(waiting, what="both are offered again")
    assert [host.file(name).read_bytes() for name in host.participants] == [
        host.baseline(name) for name in host.participants
    ]
    _, out, _ = await run("variant-agent", "hold", "off", *at)
    assert "2 offers" in out
    await eventually(lambda: states("applied"), what="both are applied")
    assert [host.file(name).read_text() for name in host.participants] == [A, A]
    assert (await status(host))["hold"] is None
