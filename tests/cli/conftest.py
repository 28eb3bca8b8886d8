"""variantctl as a person runs it, in this process, against a real control plane."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from control_plane.cli import app
from tests.support.plane import Plane


@dataclass(frozen=True)
class Said:
    """What a command printed and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which has to be JSON and nothing else."""
        return json.loads(self.out)


Run = Callable[..., Awaitable[Said]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Profiles are the test's own and no variable of the caller's shell counts."""
    for name in ("VARIANTD_SERVER", "VARIANTD_CA", "VARIANTD_API_KEY", "VARIANTD_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    return home


@pytest.fixture
def run() -> Run:
    """Runs one command line."""

    async def run(*words: str, stdin: str | None = None) -> Said:
        # In a thread: the control plane runs in this one's event loop.
        result = await asyncio.to_thread(CliRunner().invoke, app, list(words), input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Said(code=result.exit_code, out=result.stdout, err=result.stderr)

    return run


@pytest.fixture
async def ctl(plane: Plane, run: Run) -> Run:
    """Runs one command line, logged in to a real control plane."""
    said = await run("login", "--data-dir", str(plane.data))
    assert said.code == 0, said.err
    return run


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A manifest of two variants and two participants, with its contents beside it."""
    (tmp_path / "friendly.md").write_text("be friendly\n")
    (tmp_path / "concise.md").write_text("be concise\n")
    path = tmp_path / "experiment.yaml"
    path.write_text(MANIFEST)
    return path


@pytest.fixture
async def running(ctl: Run, manifest: Path) -> Run:
    """A running experiment `soul-tone` of bot-1 and bot-2."""
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    assert (await ctl("experiments", "start", "soul-tone")).code == 0
    return ctl


MANIFEST = """\
apiVersion: variantd/v1
kind: Experiment
key: soul-tone
name: Personality A/B test
description: Concise wins.
targetFile: config/soul.md
participants: [bot-1, bot-2]
metrics: {primary: {eventName: resolved, goal: increase}, guardrail: [{eventName: escalated, goal: decrease}]}
exposureCriteria: {settleSeconds: 0}
variants:
  - {name: Friendly, isControl: true, weight: 50, contentFile: friendly.md}
  - {name: Concise, weight: 50, contentFile: concise.md}
"""
