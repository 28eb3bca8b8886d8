"""The demo keeps what it promises, by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.terminal import on_a_terminal

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent


@pytest.mark.timeout(300)
def test_the_demo_counts_exactly_and_puts_everything_back() -> None:
    """`make demo ONCE=1` ends by itself with every report counted once and every baseline restored."""
    done = subprocess.run(
        [sys.executable, ROOT / "deploy" / "demo" / "run.py", "--once"],
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=270,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert done.stderr == ""
    assert done.stdout.count("config/soul.md: plain → ") == 12
    assert "every baseline is back, byte for byte: 12 of 12\n" in done.stdout
    # 12 participants × 80 conversations, by the demo's own ledger
    assert "ledger and results are equal: 960 impressions, " in done.stdout


def test_the_demo_says_what_is_missing() -> None:
    """Without the console scripts on PATH it says so, and leaves nothing running."""
    done = subprocess.run(
        [sys.executable, ROOT / "deploy" / "demo" / "run.py", "--once"],
        env={"PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stdout == (
        "variantd, variant-agent, variantctl not found on PATH; `make demo` puts them there\n"
    )


@pytest.mark.timeout(300)
async def test_on_a_terminal_the_demo_is_a_live_view_until_ctrl_c() -> None:
    """Hosts, files, bars and events fill the screen; Ctrl-C gives it back, every file too, and the ledger agrees."""
    command = (sys.executable, str(ROOT / "deploy" / "demo" / "run.py"))
    env = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    async with on_a_terminal(*command, width=80, height=24, env=env) as terminal:
        shown = ("● host-3 connected", "bot-01", "├", "●", "┤", "P(best)", "since the last look")
        screen = await terminal.until(
            lambda screen: screen.alternate and all(word in screen.text for word in shown),
            what="the live view is there",
            within=120,
        )
        terminal.type("\x03")
        assert await terminal.ended(within=120) == 0, screen.text
        assert not screen.alternate
        assert "every baseline is back, byte for byte: 12 of 12\r\n" in terminal.written
        assert "ledger and results are equal: " in screen.text
        assert "Traceback" not in terminal.written
