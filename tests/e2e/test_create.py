"""From a file on a host, through a person's editor, to an experiment that runs there."""

from pathlib import Path

from tests.support.fleet import BIN, run, running_fleet
from tests.support.terminal import on_a_terminal


async def test_the_file_on_a_host_is_edited_into_an_experiment(tmp_path: Path) -> None:
    """Control is what is on disk, the other is what the editor left, and both are on the hosts' files at the end."""
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho "And I am brief." >> "$1"\n')
    editor.chmod(0o755)
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "VISUAL": str(editor)}
    async with running_fleet(tmp_path) as fleet:
        host = await fleet.add_host("host-1", "bot-1", "bot-2", share_content="true")
        other = await fleet.add_host("host-2", "bot-3")
        await run("variantctl", "login", "--data-dir", str(fleet.plane.data), **env)
        create = ("variantctl", "experiments", "create", "--edit", "--key", "brief", "--metric", "done")

        code, out, err = await run(*create, "--from", "bot-3:soul.md", "-p", "bot-3", ok=False, **env)
        assert (code, out) == (1, "")
        assert "share_content" in err
        code, out, err = await run(*create, "--from", "bot-1:none.md", "-p", "bot-1", ok=False, **env)
        assert (code, out) == (1, "")
        assert "bot-1 has no none.md" in err
        assert (await fleet.plane.get("/v1/experiments"))["entities"] == []

        present = host.file("bot-1").read_text()
        command = (str(BIN / create[0]), *create[1:], "--from", "bot-1:soul.md", "-p", "bot-1,bot-2")
        async with on_a_terminal(*command, width=100, height=30, env=env) as terminal:
            for question, reply in (("Name [Edit of soul.md]:", "Brief"), ("Start it now? [y/N]:", "y")):
                await terminal.until(lambda screen: question in screen.text, what=question)  # noqa: B023
                terminal.type(f"{reply}\n")
            assert await terminal.ended() == 0, terminal.screen.text
            assert "\x1b[32m+And I am brief.\x1b[0m" in terminal.written
            assert "  host-1 (connected): bot-1, bot-2" in terminal.screen.text
            assert "brief is running" in terminal.screen.text
        await run("variantctl", "experiments", "wait", "brief", "--timeout", "30s", **env)
        souls = {host.file(name).read_text() for name in ("bot-1", "bot-2")}
        assert souls == {present, f"{present}And I am brief.\n"}
        assert other.file("bot-3").read_bytes() == other.baseline("bot-3")
