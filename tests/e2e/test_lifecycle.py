"""What each verb of an experiment's life does to the files on a real host, and to what counts."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet, Host, Ledger, running_fleet
from tests.support.waiting import eventually

A, B = "As agreed.\n", "The other one.\n"
BOTS = ("bot-1", "bot-2")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path) as running:
        yield running


async def drafted(fleet: Fleet, key: str = "tone") -> None:
    """A draft on both participants."""
    variants = [
        {"name": "A", "key": "a", "content": A, "weight": 50, "isControl": True},
        {"name": "B", "key": "b", "content": B, "weight": 50},
    ]
    values = {
        "name": key,
        "key": key,
        "targetFile": "soul.md",
        "variants": variants,
        "participantIds": list(BOTS),
        "exposureCriteria": {"settleSeconds": 0},
    }
    await fleet.plane.post("/v1/experiments", values)


async def holds(host: Host, wanted: dict[str, bytes]) -> None:
    """Every participant's file comes to hold what it should."""

    def there() -> bool:
        return {bot: host.file(bot).read_bytes() for bot in wanted} == wanted

    await eventually(there, what=f"files hold {wanted}")


async def variants_on(fleet: Fleet) -> dict[str, bytes]:
    """What each participant's file should hold as assigned."""
    contents = {"a": A.encode(), "b": B.encode()}
    return {bot: contents[key] for bot, key in (await fleet.assigned("tone")).items()}


async def known(fleet: Fleet, wanted: dict[str, bytes]) -> None:
    """The control plane has heard that the files hold this."""

    async def told() -> bool:
        for bot, content in wanted.items():
            files = (await fleet.plane.get(f"/v1/participants/{bot}"))["files"]
            if files[0]["runningDigest"] != "sha256:" + hashlib.sha256(content).hexdigest():
                return False
        return True

    await eventually(told, what="the control plane knows")


async def test_pausing_with_revert_takes_the_variants_away_until_the_resume(fleet: Fleet) -> None:
    """Baselines are back meanwhile; what is reported then counts as assigned and not as delivered."""
    host = await fleet.add_host("one", *BOTS)
    baselines = {bot: host.baseline(bot) for bot in BOTS}
    await drafted(fleet)
    await fleet.plane.post("/v1/experiments/tone/start")
    assigned = await variants_on(fleet)
    await holds(host, assigned)

    await fleet.plane.post("/v1/experiments/tone/pause", {"onPause": "revert"})
    await holds(host, baselines)
    await known(fleet, baselines)
    ledger = Ledger()
    for bot in BOTS:
        await ledger.report(host, bot, convert=False)

    await fleet.plane.post("/v1/experiments/tone/resume")
    await holds(host, assigned)

    async def counted() -> bool:
        found = await fleet.plane.results("tone", "done")
        return sum(impressions for impressions, _ in found.values()) == 2

    await eventually(counted, what="both impressions are counted")
    delivered = await fleet.plane.results("tone", "done", population="delivered")
    assert set(delivered.values()) == {(0, 0)}
    await fleet.plane.post("/v1/experiments/tone/complete", {"then": "restore"})
    await holds(host, baselines)


async def test_the_winner_is_shipped_to_all_and_a_reset_puts_everything_back(fleet: Fleet) -> None:
    """Completing with `ship` writes one variant everywhere and frees the file; a reset restores the baselines."""
    host = await fleet.add_host("one", *BOTS)
    baselines = {bot: host.baseline(bot) for bot in BOTS}
    await drafted(fleet)
    await fleet.plane.post("/v1/experiments/tone/start")
    await holds(host, await variants_on(fleet))
    ended = await fleet.plane.post(
        "/v1/experiments/tone/complete", {"then": "ship", "winnerVariantId": "b", "conclusion": "won"}
    )
    assert (ended["publishStatus"], ended["experiment"]["conclusion"]) == ("published", "won")
    await holds(host, dict.fromkeys(BOTS, B.encode()))

    await drafted(fleet, "next")
    await fleet.plane.post("/v1/experiments/next/start")
    await fleet.plane.post("/v1/experiments/next/complete", {"then": "restore"})

    async def ended_there() -> bool:
        return set((await fleet.states("next")).values()) <= {"applied", "superseded"}

    await eventually(ended_there, what="the second experiment is put back")
    await holds(host, dict.fromkeys(BOTS, B.encode()))

    again = await fleet.plane.post("/v1/experiments/tone/reset", {"then": "restore"})
    assert (again["experiment"]["status"], again["experiment"]["run"]) == ("draft", 2)
    assert again["experiment"]["conclusion"] is None
    await holds(host, baselines)
    await fleet.plane.post("/v1/experiments/tone/start")
    await holds(host, await variants_on(fleet))


async def test_a_reset_after_keep_still_knows_the_baseline(fleet: Fleet) -> None:
    """Completed with `keep`, the file is the host's own; a reset with restore brings the original back."""
    host = await fleet.add_host("one", *BOTS)
    await drafted(fleet)
    await fleet.plane.post("/v1/experiments/tone/start")
    assigned = await variants_on(fleet)
    await holds(host, assigned)
    await fleet.plane.post("/v1/experiments/tone/complete")
    await fleet.plane.post("/v1/experiments/tone/reset", {"then": "restore"})
    await holds(host, {bot: host.baseline(bot) for bot in BOTS})
