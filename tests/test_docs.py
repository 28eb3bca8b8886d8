"""The reference pages follow from the code, and the code says a sentence about everything they list."""

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from agent import __main__ as agent_main
from agent import config as agent_config
from agent import status as agent_status
from control_plane import __main__ as server_main
from control_plane.api import errors
from control_plane.cli import app as cli_app
from control_plane.config import Settings
from control_plane.domain.analyze import analyze
from control_plane.services.events import Kept
from shared.model import ReasonCode

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
GENERATE = [sys.executable, "docs/generate.py", "--check"]


def generated(root: Path) -> subprocess.CompletedProcess[str]:
    """What the generator says of the pages of a tree."""
    return subprocess.run(
        GENERATE, cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )


def test_the_reference_pages_are_what_the_code_says() -> None:
    """`make generate` would change nothing."""
    done = generated(ROOT)
    assert done.returncode == 0, done.stderr


def test_a_page_that_is_not_fresh_is_named(tmp_path: Path) -> None:
    """A line that was edited by hand, or a part that lost its marks, fails with what to do."""
    for name in ("agent", "control_plane", "shared", "protos", "tests", "docs"):
        (tmp_path / name).symlink_to(ROOT / name) if name != "docs" else None
    subprocess.run(["cp", "-r", ROOT / "docs", tmp_path / "docs"], check=True)
    page = tmp_path / "docs" / "reference" / "codes.md"
    fresh = page.read_text()
    page.write_text(fresh.replace("| `not_found` |", "| `gone` |"))
    assert "codes.md: not what the code says; run `make generate`" in generated(tmp_path).stderr
    page.write_text(fresh.replace("<!-- end -->", ""))
    assert "has no part" in generated(tmp_path).stderr


# -- everything listed has a sentence


def reasons_in_the_code() -> set[str]:
    """Every literal `reason="…"` that the control plane gives an error."""
    found = set()
    for source in (ROOT / "control_plane").rglob("*.py"):
        if "cli" in source.parts:
            continue  # the command line's own failures are told on standard error, in words
        for node in ast.walk(ast.parse(source.read_text())):
            if (
                isinstance(node, ast.keyword)
                and node.arg == "reason"
                and isinstance(node.value, ast.Constant)
            ):
                found.add(str(node.value.value))
    return {name for name in found if re.fullmatch(r"[A-Z_]+", name)}


def test_every_reason_of_an_error_has_its_line() -> None:
    """None is missing from errors.REASONS, and none of them is nobody's."""
    assert sorted(reasons_in_the_code() - set(errors.REASONS)) == []
    elsewhere = {"DATABASE_UNAVAILABLE", "MALFORMED_MESSAGE", "MALFORMED_TOKEN", "TOO_LARGE"}
    assert sorted(set(errors.REASONS) - reasons_in_the_code() - elsewhere) == []


def test_every_code_setting_and_metric_has_its_sentence() -> None:
    """Reason codes, kept reasons, settings of both sides, and the agent's metrics."""
    sentences = {
        **{code: code.meaning for code in ReasonCode},
        **{kept: kept.meaning for kept in Kept},
        **{name: field.description for name, field in Settings.model_fields.items()},
        **{f"agent {name}": key.meaning for name, key in agent_config.AGENT_KEYS.items()},
        **{f"participants {name}": key.meaning for name, key in agent_config.PARTICIPANT_KEYS.items()},
        **{name: text for name, (_, text, _) in agent_status.METRICS.items()},
        **errors.REASONS,
    }
    assert [name for name, text in sentences.items() if not text] == []


def test_the_defaults_of_agent_toml_are_the_ones_it_has(tmp_path: Path) -> None:
    """A file with nothing in it comes to what the page says."""
    (tmp_path / "agent.toml").write_text('[[participants]]\nid = "p"\nroot = "."\ntargets = ["a"]\n')
    found = agent_config.load(tmp_path / "agent.toml")
    own = found.participants[0]
    shown = {
        "local_http": found.local_http,
        "socket": str(found.socket),
        "log_level": found.log_level,
        "spool_full": found.spool_full.value,
        "drift": own.drift.value,
        "symlinks": "follow-within-root" if own.follow_symlinks else "refuse",
        "max_bytes": str(own.max_bytes),
        "exposure": own.exposure.value,
        "share_content": str(own.share_content).lower(),
    }
    told = {**agent_config.AGENT_KEYS, **agent_config.PARTICIPANT_KEYS}
    for name, value in shown.items():
        assert told[name].default == value, name
    # A key with a default that is not compared here would be told and not held to.
    assert {name for name, key in told.items() if key.default} <= set(shown) | {"transport", "adopt"}


def options(command: Any, name: str) -> Iterator[tuple[str, str]]:
    """(option as it is typed, its help) of every command below."""
    for part, found in getattr(command, "commands", {}).items():
        yield from options(found, f"{name} {part}")
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            yield f"{name} {parameter.opts[0]}", parameter.help or ""
    yield name, command.help or ""


def arguments(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, str]]:
    """The same of an argparse program."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part, found in action.choices.items():
                yield from arguments(found, f"{name} {part}")
        else:
            yield f"{name} {(action.option_strings or [action.dest])[-1]}", action.help or ""
    yield name, parser.description or ""


@pytest.mark.parametrize(
    "found",
    [
        [*options(get_command(cli_app), "variantctl")],
        [*arguments(server_main._parser(), "variantd")],
        [*arguments(agent_main._parser(), "variant-agent")],
    ],
    ids=["variantctl", "variantd", "variant-agent"],
)
def test_every_command_and_option_says_what_it_does(found: list[tuple[str, str]]) -> None:
    """No help text is empty, and there is something to look at."""
    assert len(found) > 10
    assert [name for name, text in found if not text] == []


def test_help_breaks_its_lines_where_the_terminal_does() -> None:
    """No paragraph of `variantctl --help` has a line's end of its own."""
    found = [*options(get_command(cli_app), "variantctl")]
    assert [name for name, text in found if re.search(r"\S\n\S", text)] == []


def test_every_message_and_field_of_the_protocols_is_on_its_page() -> None:
    """A word of a .proto file that the page's maker does not understand would be missing."""
    for page, source in (("grpc.md", "operator"), ("protocol.md", "agent")):
        text = (DOCS / "reference" / page).read_text()
        proto = (ROOT / "protos" / "variantd" / source / "v1" / f"{source}.proto").read_text()
        for name in re.findall(r"^(?:service|message|enum) (\w+)", proto, re.MULTILINE):
            assert re.search(rf"^## \w+ {name}$", text, re.MULTILINE), name
        for name in re.findall(r"^\s+(?:rpc (\w+)|[\w.<>, ]+ (\w+) = \d+;)", proto, re.MULTILINE):
            assert f"| `{name[0] or name[1]}` |" in text, name


def test_every_link_leads_somewhere() -> None:
    """No page links to a file that is not there."""
    for page in [*DOCS.rglob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)


# -- what can be run is run

RUN_BY = {
    "README.md": "tests/e2e/test_readme.py",
    "docs/statistics.md": "tests/cli/test_offline.py",
    "docs/tutorial.md": "tests/e2e/test_newcomer.py",
    "docs/howto/first-host.md": "tests/e2e/test_first_host.py",
    "docs/howto/debian.md": "tests/deploy/test_debian.py",
    "docs/howto/postgres.md": "tests/e2e/test_postgres.py",
    "docs/howto/replicas.md": "tests/e2e/test_replicas.py",
    "deploy/docker/README.md": "tests/deploy/test_docker.py",
}
"""Which test runs a page's commands; a how-to that goes on from the README is run by tests/e2e/test_howtos.py."""


def test_every_page_with_commands_is_run_by_a_test() -> None:
    """A page with a block that can be executed, which no test executes, fails; so does a test that forgot its page."""
    found = [ROOT / "README.md", *DOCS.rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    for page in found:
        text, name = page.read_text(), str(page.relative_to(ROOT))
        if not re.search(r"^```(bash|sh|python|js|console)$", text, re.MULTILINE):
            continue
        if "go on from the README" in text and name.startswith("docs/howto/"):
            continue
        assert name in RUN_BY, f"{name} has commands that no test runs"
        assert page.name in (ROOT / RUN_BY[name]).read_text(), name


def test_every_test_that_a_page_names_is_there() -> None:
    """What is said to show something exists."""
    for page in DOCS.rglob("*.md"):
        for name in re.findall(r"`(tests/[\w/{},]+\.py)`", page.read_text()):
            head, _, tail = name.partition("{")
            inner, _, end = tail.partition("}")
            for part in inner.split(",") if inner else [""]:
                assert (ROOT / f"{head}{part}{end}").is_file(), (page.name, name)


def test_every_name_in_an_answer_of_analyze_is_on_its_page() -> None:
    """Of counts, participants, values, looks and p-values; reasons aside."""
    page = (ROOT / "docs" / "reference" / "analyze.md").read_text()
    people = [[10, 3], [10, 4], [12, 5]]
    questions: list[dict[str, Any]] = [
        {"variants": {"a": {"conversions": 4, "impressions": 9}, "b": {"conversions": 5, "impressions": 9}}},
        {
            "variants": {"a": {"participants": people}, "b": {"participants": people}},
            "tuning": 9,
            "weights": [1, 1],
        },
        {"variants": {"a": {"values": [1, 2, 3]}, "b": {"values": [2, 3, 5]}}, "decision": "path_test"},
        {"p_values": [0.2, 0.01]},
    ]

    def names(answer: Any) -> Iterator[str]:
        for name, value in answer.items() if isinstance(answer, dict) else ():
            yield name
            if name not in ("reasons", "expected", "observed", "prior"):
                yield from names(value)
        for one in answer if isinstance(answer, list) else ():
            yield from names(one)

    told = {
        name
        for asked in questions
        for name in names(analyze({"control": "a", **asked} if "variants" in asked else asked))
    }
    assert {name for name in told if f"`{name}`" not in page and f'"{name}"' not in page} == set()
