"""The live view over a real host: what somebody does to a file is on the screen, and so is what is reported."""

from pathlib import Path

from tests.support.fleet import BIN, Ledger, run, running_fleet
from tests.support.terminal import Screen, on_a_terminal

DRAFT = {
    "name": "Tone",
    "key": "tone",
    "targetFile": "soul.md",
    "participantIds": ["bot-1", "bot-2"],
    "metrics": {"primary": {"eventName": "done", "goal": "increase"}},
    "exposureCriteria": {"settleSeconds": 0},
    "variants": [
        {"name": "Friendly", "key": "friendly", "content": "friendly\n", "isControl": True, "weight": 50},
        {"name": "Concise", "key": "concise", "content": "concise\n", "weight": 50},
    ],
}


async def test_a_file_is_followed_by_the_name_of_what_is_on_it(tmp_path: Path) -> None:
    """Variants by name, a foreign edit as drift, a deleted file as missing, reports as they are counted."""
    async with running_fleet(tmp_path) as fleet:
        host = await fleet.add_host("host-1", "bot-1", "bot-2")
        env = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
        await run("variantctl", "login", "--data-dir", str(fleet.plane.data), **env)
        await fleet.plane.post("/v1/experiments", DRAFT)
        await fleet.plane.post("/v1/experiments/tone/start")
        command = (str(BIN / "variantctl"), "watch", "tone", "--interval", "200ms")
        async with on_a_terminal(*command, width=80, height=24, env=env) as terminal:

            async def shows(*words: str) -> Screen:
                return await terminal.until(
                    lambda screen: all(word in screen.text for word in words), what=f"{words} are shown"
                )

            await shows("Friendly  host-1  applied", "Concise   host-1  applied", "● host-1 connected")
            soul = host.root("bot-1") / "soul.md"
            soul.write_text("somebody was here\n")
            await shows("≠ bot-1", "something else", "bot-1 soul.md: applied → drifted")
            soul.unlink()
            await shows("✗ bot-1", "no file", "bot-1 soul.md: drifted → missing")
            ledger = Ledger()
            for participant in ("bot-1", "bot-2"):
                await ledger.report(host, participant, convert=participant == "bot-2")
            await shows("├", "●", "┤", "P(best)")
            await shows("impression", " since the last look", "done (increase)")
            await fleet.plane.post("/v1/experiments/tone/complete", {"then": "keep"})
            assert await terminal.ended() == 0
            assert "Tone (tone) · completed" in terminal.screen.text
            assert (terminal.screen.wrapped, terminal.screen.scrolled) == (0, 0)
