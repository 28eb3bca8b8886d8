"""The reference pages name everything there is."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import click
from typer.main import get_command

from agent import config as agent_config
from control_plane.api.operations import OPERATIONS
from control_plane.cli import app as cli_app
from control_plane.config import Settings
from control_plane.services.events import Kept
from shared.errors import Code
from shared.model import ReasonCode

DOCS = Path(__file__).resolve().parent.parent / "docs" / "reference"


def test_every_operation_is_on_the_page() -> None:
    """Every route with its gRPC method, scope and status."""
    page = (DOCS / "rest.md").read_text()
    for o in OPERATIONS:
        row = f"| `{o.method} {o.path}` | `{o.rpc}` | `{o.scope.value}` | {o.status} |"
        assert row in page, row


def test_every_code_is_on_the_page() -> None:
    """Every error code, reason code and reason an event is kept for."""
    page = (DOCS / "codes.md").read_text()
    for code in [*Code, *ReasonCode, *Kept]:
        assert f"`{code.value}`" in page, code


def test_every_setting_is_on_the_page() -> None:
    """Every setting of the server and every key of agent.toml."""
    page = (DOCS / "configuration.md").read_text()
    names = [*Settings.model_fields, *agent_config._AGENT_KEYS, *agent_config._PARTICIPANT_KEYS]
    for name in names:
        assert f"`{name}`" in page, name
    assert {field.name for field in dataclasses.fields(agent_config.AgentConfig)} - {"participants"} <= set(
        names
    )


def commands(command: click.Command, name: str) -> Iterator[str]:
    """Every command below `command`, as it is typed."""
    below = getattr(command, "commands", {})
    if not below:
        yield name
    for part, found in below.items():
        yield from commands(found, f"{name} {part}")


def test_every_command_is_on_the_page() -> None:
    """Every command of variantctl, and its own options."""
    page = (DOCS / "cli.md").read_text()
    for name in commands(get_command(cli_app), "variantctl"):
        assert f"| `{name}" in page, name


def test_every_link_leads_somewhere() -> None:
    """No page links to a file that is not there."""
    for page in [*DOCS.parent.rglob("*.md"), DOCS.parent.parent / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)
