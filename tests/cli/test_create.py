"""From a file and an edited copy to a draft: what is made, what is refused, and that an edit leaves nothing behind."""

import sys
from pathlib import Path
from typing import Any

import pytest

from shared.pb.variantd.agent.v1 import agent_pb2 as agent_pb
from tests.cli.conftest import Run
from tests.support.builders import make_hello
from tests.support.plane import Plane
from tests.support.stream import sharing
from tests.support.terminal import on_a_terminal

BIN = Path(sys.executable).parent
FLAGS = ("--target", "config/soul.md", "--participants", "bot-1, bot-2", "--metric", "resolved")


@pytest.fixture
def soul(tmp_path: Path) -> Path:
    """Control's content."""
    path = tmp_path / "soul.md"
    path.write_text("Be friendly.\nTake your time.\n")
    return path


@pytest.fixture
def edit_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the editor a shell script; `seen` in its folder has the path and mode of the copy it was given."""

    def edit_by(commands: str) -> Path:
        script = tmp_path / "editor"
        script.write_text(
            f'#!/bin/sh\nstat -c "%a %n" "$1" > {tmp_path}/seen\nstat -c %a "$(dirname "$1")" >> {tmp_path}/seen\n'
            f"{commands}\n"
        )
        script.chmod(0o755)
        monkeypatch.delenv("VISUAL", raising=False)
        monkeypatch.setenv("EDITOR", str(script))
        return tmp_path / "seen"

    return edit_by


@pytest.mark.parametrize(
    ("editor", "told"),
    [
        ("vi 'x", '$EDITOR is no command line: "vi \'x" leaves a quote open; nothing was created'),
        ("mkdir-instead", "the edited copy cannot be read: Is a directory; nothing was created"),
    ],
)
async def test_an_editor_that_cannot_be(
    ctl: Run, soul: Path, edit_by: Any, monkeypatch: pytest.MonkeyPatch, editor: str, told: str
) -> None:
    """What is no command line, and a copy that is no file any more, are told in a sentence; blanks say nothing."""
    if editor == "mkdir-instead":
        edit_by('rm "$1"; mkdir "$1"')
    else:
        monkeypatch.setenv("EDITOR", editor)
    monkeypatch.setenv("VISUAL", " ")
    said = await ctl("experiments", "create", "--control", str(soul), "--edit", *FLAGS)
    assert (said.code, said.err) == (1, f"variantctl: {told}\n")


async def test_ctrl_c_in_an_editor_is_the_editors(plane: Plane, ctl: Run, soul: Path, edit_by: Any) -> None:
    """Who presses it there, as vi takes it for Esc, goes on editing, and what comes of that is the draft."""
    edit_by("trap 'echo interrupted' INT\necho editing\nuntil read line; do :; done\necho $line >> $1")
    command = (str(BIN / "variantctl"), "experiments", "create", "--control", str(soul), "--edit", *FLAGS)
    async with on_a_terminal(*command, "--key", "tone", "--yes", width=100, height=30) as terminal:
        await terminal.until(lambda screen: "editing" in screen.text, what="the editor")
        terminal.type("\x03")
        await terminal.until(lambda screen: "interrupted" in screen.text, what="the editor's interrupt")
        terminal.type("Or not.\n")
        assert await terminal.ended() == 0, terminal.screen.text
    edited = (await plane.rest("GET", "/v1/experiments/tone")).body["variants"][1]
    assert edited["content"] == "Be friendly.\nTake your time.\nOr not.\n"


async def drafts(plane: Plane) -> list[dict[str, Any]]:
    """Every experiment there is."""
    entities: list[dict[str, Any]] = (await plane.rest("GET", "/v1/experiments")).body["entities"]
    return entities


async def test_an_edited_copy_becomes_the_other_variant(
    plane: Plane, ctl: Run, soul: Path, edit_by: Any
) -> None:
    """The draft has both contents; the diff and how to start it are told; the copy was private and is gone."""
    seen = edit_by("sed -i 's/friendly/concise/' \"$1\"")
    said = await ctl("experiments", "create", "--control", str(soul), "--edit", *FLAGS, "--key", "tone")
    assert said.code == 0, said.err
    assert said.out.splitlines() == [
        "--- config/soul.md (Control)",
        "+++ config/soul.md (Edited)",
        "@@ -1,2 +1,2 @@",
        "-Be friendly.",
        "+Be concise.",
        " Take your time.",
        "tone is a draft; 2 participants: control 1, edited 1",
        "start it with: variantctl experiments start tone",
    ]
    made = (await plane.rest("GET", "/v1/experiments/tone")).body
    assert (made["status"], made["name"]) == ("draft", "Edit of config/soul.md")
    assert [(item["isControl"], item["weight"], item["content"]) for item in made["variants"]] == [
        (True, 50, "Be friendly.\nTake your time.\n"),
        (False, 50, "Be concise.\nTake your time.\n"),
    ]
    primary = made["metrics"]["primary"]
    assert (primary["eventName"], primary["goal"], primary["kind"]) == ("resolved", "increase", "proportion")
    assert made["participants"]["ids"] == ["bot-1", "bot-2"]
    copy, folder = seen.read_text().splitlines()
    mode, path = copy.split(" ", 1)
    assert (mode, folder) == ("600", "700")
    assert path.endswith(".md")
    assert not Path(path).exists()
    assert not Path(path).parent.exists()


@pytest.mark.parametrize(
    ("commands", "why"),
    [
        ("exit 3", "ended with 3"),
        ("echo more >> \"$1\"; kill -9 $$", "ended with -9"),
        ("true", "is the same as control"),
        ('printf " \\n" > "$1"', "is empty"),
        ('rm "$1"', "the edited copy is gone"),
    ],
)  # fmt: skip
async def test_an_edit_that_is_none_leaves_nothing(
    plane: Plane, ctl: Run, soul: Path, edit_by: Any, commands: str, why: str
) -> None:
    """It is told in a sentence; no experiment and no participant is on the server, and no copy here."""
    seen = edit_by(commands)
    said = await ctl("experiments", "create", "--control", str(soul), "--edit", *FLAGS, "--start", "--yes")
    assert (said.code, said.out) == (1, "")
    assert why in said.err
    assert "nothing was created" in said.err
    assert await drafts(plane) == []
    assert (await plane.rest("GET", "/v1/participants")).body["entities"] == []
    assert not Path(seen.read_text().split()[1]).parent.exists()


async def test_an_editor_that_is_none_is_told(
    plane: Plane, ctl: Run, soul: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """$VISUAL comes before $EDITOR, and may have options."""
    monkeypatch.setenv("EDITOR", "true")
    monkeypatch.setenv("VISUAL", "/nonexistent/editor --wait")
    said = await ctl("experiments", "create", "--control", str(soul), "--edit", *FLAGS)
    assert said.code == 1
    assert "the editor '/nonexistent/editor' cannot be run: No such file or directory" in said.err
    assert await drafts(plane) == []


async def test_nobody_edits_for_nothing(plane: Plane, ctl: Run, soul: Path, edit_by: Any) -> None:
    """A key that is taken, and a target that is none, is told before the editor opens."""
    seen = edit_by("echo more >> \"$1\"")  # fmt: skip
    words = ("experiments", "create", "--control", str(soul), "--edit", *FLAGS)
    assert (await ctl(*words, "--key", "tone")).code == 0
    seen.unlink()
    said = await ctl(*words, "--key", "tone")
    assert (said.code, "KEY_TAKEN" in said.err) == (4, True)
    assert "targetFile" in (await ctl(*words, "--target", "../soul.md")).err
    assert not seen.exists()


async def test_start_and_yes_start_it(plane: Plane, ctl: Run, soul: Path, tmp_path: Path) -> None:
    """Without a terminal both are needed; --start alone stops after the draft and says how to go on."""
    other = tmp_path / "other.md"
    other.write_bytes(b"\xff not text")
    words = ("experiments", "create", "--control", str(soul), "--variant", str(other), *FLAGS)
    only = await ctl(*words, "--key", "one", "--start")
    assert only.out.splitlines()[-1] == "start it with: variantctl experiments start one"
    assert "are not text" in only.out
    both = await ctl(*words, "--key", "two", "--start", "--yes", "--goal", "decrease", "--json")
    assert both.code == 0, both.err
    assert (both.json["key"], both.json["status"]) == ("two", "running")
    assert both.json["metrics"]["primary"]["goal"] == "decrease"
    assert {item["key"]: item["status"] for item in await drafts(plane)} == {"one": "draft", "two": "running"}


async def test_the_file_on_a_host_is_control(plane: Plane, ctl: Run, edit_by: Any) -> None:
    """Its path is the target; what the host does not have, or does not share, ends the command before any editor."""
    seen = edit_by("echo 'Or not.' >> \"$1\"")
    identity = await plane.enroll(await plane.token(), name="host-1")
    refused = agent_pb.FileContent(refused=agent_pb.Reason(code="NOT_SHARED", message="it is not shared"))
    files = {"souls/me.md": b"I am.\n", "secret.md": refused}
    words = ("experiments", "create", "--edit", "-p", "bot-1", "--metric", "resolved")
    async with sharing(identity, make_hello("bot-1"), files):
        for path, why in (("none.md", "bot-1 has no none.md; nothing was created"), ("secret.md", "shared")):
            said = await ctl(*words, "--from", f"bot-1:{path}")
            assert (said.code, said.out) == (1, "")
            assert why in said.err
        assert not seen.exists()
        assert await drafts(plane) == []
        said = await ctl(*words, "--from", "bot-1:souls/me.md")
    assert said.code == 0, said.err
    (made,) = await drafts(plane)
    assert made["targetFile"] == "souls/me.md"
    made = (await plane.rest("GET", f"/v1/experiments/{made['id']}")).body
    assert [item["content"] for item in made["variants"]] == ["I am.\n", "I am.\nOr not.\n"]


async def test_labels_say_who_takes_part(plane: Plane, ctl: Run, soul: Path, edit_by: Any) -> None:
    """Instead of ids."""
    edit_by("echo more >> \"$1\"")  # fmt: skip
    words = (
        "--target",
        "soul.md",
        "--labels",
        "role=support,tier=gold",
        "--metric",
        "resolved",
        "--name",
        "Tone",
    )
    said = await ctl("experiments", "create", "--control", str(soul), "--edit", *words)
    assert said.code == 0, said.err
    (made,) = await drafts(plane)
    assert (made["name"], made["participants"]["labels"]) == ("Tone", {"role": "support", "tier": "gold"})


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--edit", *FLAGS), "either --from PARTICIPANT:FILE or --control"),
        (("--edit", "--from", "bot-1:a.md", "--control", "soul.md", *FLAGS), "either --from"),
        (("--edit", "--from", "bot-1", *FLAGS), "PARTICIPANT:FILE, such as"),
        (("--control", "soul.md", *FLAGS), "--edit or --variant"),
        (("--control", "soul.md", "--edit", "--variant", "b", *FLAGS), "--edit or --variant"),
        (("--control", "soul.md", "--edit", "--metric", "resolved", "-p", "a"), "--target"),
        (("--control", "soul.md", "--edit", "--target", "a.md", "-p", "a"), "--metric"),
        (("--control", "soul.md", "--edit", "--target", "a.md", "--metric", "m"), "--participants or --labels"),
        (("--control", "soul.md", "--edit", *FLAGS, "--labels", "a=b"), "either --participants or --labels"),
        (("--control", "soul.md", "--edit", "--target", "a.md", "--metric", "m", "-l", "a"), "NAME=VALUE"),
    ],
)  # fmt: skip
async def test_what_is_missing_is_named(
    run: Run, soul: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], why: str
) -> None:
    """As a usage error, with the flag that says it."""
    monkeypatch.chdir(soul.parent)
    said = await run("experiments", "create", *words)
    assert said.code == 2
    assert why in " ".join(said.err.replace("│", " ").split())


@pytest.mark.parametrize(("answer", "status"), [("y", "running"), ("n", "draft")])
async def test_a_terminal_is_asked_for_the_rest(
    plane: Plane, ctl: Run, soul: Path, edit_by: Any, answer: str, status: str
) -> None:
    """Name, participants and metric; then the diff in colour, what a start would touch, and whether to start."""
    edit_by("echo 'Or not.' >> \"$1\"")
    command = (str(BIN / "variantctl"), "experiments", "create", "--control", str(soul), "--edit")
    async with on_a_terminal(*command, "--target", "soul.md", width=100, height=30) as terminal:
        for question, reply in (
            ("Name [Edit of soul.md]:", "Tone"),
            ("separated by commas:", "bot-1,bot-2"),
            ("such as resolved:", "resolved"),
            ("Start it now? [y/N]:", answer),
        ):
            await terminal.until(lambda screen: question in screen.text, what=question)  # noqa: B023
            terminal.type(f"{reply}\n")
        assert await terminal.ended() == 0, terminal.screen.text
        assert "\x1b[32m+Or not.\x1b[0m" in terminal.written
        shown = terminal.screen.text
        assert "a start would write soul.md on 2 participants: control 1, edited 1" in shown
        told = "tone is running" if answer == "y" else "start it with: variantctl experiments start tone"
        assert told in shown
    assert (await plane.rest("GET", "/v1/experiments/tone")).body["status"] == status
