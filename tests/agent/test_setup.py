"""`variant-agent init`: what it finds, what it writes, and which unit it names."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import setup, units
from agent.__main__ import run
from agent.config import load
from shared.errors import AlreadyExists, Invalid
from tests.support.workspaces import OTHER, USER, being, public_directory, workspace

SYSTEMD = Path(__file__).resolve().parent.parent.parent / "deploy" / "systemd"


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory other users can enter."""
    with public_directory() as made:
        yield made


def test_it_allows_what_it_found_and_nothing_else(tmp_path: Path) -> None:
    """A link is left out and said so; a folder of Markdown becomes one glob; other files stay out."""
    one = workspace(
        tmp_path / "bot-1", "SOUL.md", "AGENTS.md", "README.md", "config/tone.md", "config/a.json"
    )
    (one / "CLAUDE.md").symlink_to("AGENTS.md")
    two = workspace(tmp_path / "bot-2", "IDENTITY.md", "config/.hidden.md")
    made = setup.plan([one, two], config=tmp_path / "etc" / "agent.toml")
    setup.write(made, force=False)
    written = load(tmp_path / "etc" / "agent.toml")
    assert [(p.id, p.root, p.targets) for p in written.participants] == [
        ("bot-1", one, ("SOUL.md", "AGENTS.md", "config/*.md")),
        ("bot-2", two, ("IDENTITY.md",)),
    ]
    assert written.socket == made.unit.socket
    assert "# CLAUDE.md is left out: it is a symbolic link" in made.text
    assert (tmp_path / "etc" / "agent.toml").stat().st_mode & 0o777 == 0o644


def test_a_file_is_never_replaced_unless_told(tmp_path: Path) -> None:
    """Not even half of it; and nothing is left beside it."""
    bot = workspace(tmp_path / "bot", "SOUL.md")
    path = tmp_path / "etc" / "agent.toml"
    path.parent.mkdir()
    path.write_text("mine")
    made = setup.plan([bot], config=path)
    with pytest.raises(AlreadyExists, match="--force"):
        setup.write(made, force=False)
    assert path.read_text() == "mine"
    setup.write(made, force=True)
    assert path.read_text() == made.text
    assert list(path.parent.iterdir()) == [path]


def test_a_workspace_without_any_is_left_out_and_none_at_all_is_refused(tmp_path: Path) -> None:
    """The folder above the workspaces is a likely mistake, so the answer says what to give."""
    bot, empty = workspace(tmp_path / "bot", "SOUL.md"), workspace(tmp_path / "empty", "README.md")
    made = setup.plan([bot, empty, bot], config=None)
    assert (made.participants, made.left_out) == (("bot",), (empty,))
    with pytest.raises(Invalid, match=r"give each workspace by itself, such as bots/\*"):
        setup.plan([tmp_path], config=None)


def test_every_bad_path_is_told_at_once(tmp_path: Path) -> None:
    """A name that no unit could hold is refused before it stands in one."""
    workspace(tmp_path / 'a"b', "SOUL.md")
    workspace(tmp_path / "a\nReadWritePaths=b", "SOUL.md")
    with pytest.raises(Invalid) as caught:
        setup.plan([tmp_path / "absent", tmp_path / 'a"b', tmp_path / "a\nReadWritePaths=b"], config=None)
    assert [fault.message.split(" in its")[0] for fault in caught.value.faults] == [
        "is no directory",
        "has a quote, colon, backslash or control character",
        "has a quote, colon, backslash or control character",
    ]


def test_workspaces_that_share_a_file_are_refused(tmp_path: Path) -> None:
    """As the agent would, only before anything is written."""
    outer = workspace(tmp_path / "bot", "config/SOUL.md")
    with pytest.raises(Invalid, match="can be a target of participant"):
        setup.plan([outer, outer / "config"], config=None)


def test_ids_are_distinct_and_acceptable(tmp_path: Path) -> None:
    """From the directory's name; where that is taken, with the one above it, then with a number."""
    names = ["x/bot", "y/bot", "y.2/y-bot", "z/--é b ot", "z/äö", "q/y/bot"]
    made = setup.plan([workspace(tmp_path / name, "SOUL.md") for name in names], config=tmp_path / "a.toml")
    assert made.participants == ("bot", "y-bot", "y.2-y-bot", "b-ot", "z", "y-bot-2")
    setup.write(made, force=False)
    assert len({participant.id for participant in load(tmp_path / "a.toml").participants}) == len(names)


def test_roots_of_one_user_get_that_users_agent(public: Path) -> None:
    """Whose agent.toml is not in the user's own hands."""
    bots = [workspace(public / name, "SOUL.md", owner=USER) for name in ("one", "two")]
    made = setup.plan(bots, config=None)
    assert (made.unit.name, made.unit.user) == (f"variant-agent@{USER}.service", USER)
    assert made.config == Path(f"/etc/variant-agent/{USER}.toml")
    steps = "\n".join(made.next_steps())
    assert f"runuser -u {USER} -- variant-agent enroll" in steps
    assert f"systemctl enable --now variant-agent@{USER}.service" in steps


@pytest.mark.parametrize("owners", [(USER, OTHER), ("root", USER), ("root",)])
def test_roots_of_several_users_or_of_root_get_the_agent_of_the_host(
    public: Path, owners: tuple[str, ...]
) -> None:
    """It is the only one that may write for several."""
    bots = [workspace(public / owner, "SOUL.md", owner=owner) for owner in owners]
    made = setup.plan(bots, config=None)
    assert (made.unit.name, made.unit.user) == ("variant-agent.service", "root")
    assert made.config == Path("/etc/variant-agent/agent.toml")
    assert "  mkdir -p /etc/systemd/system/variant-agent.service.d" in made.next_steps()


def test_somebody_else_than_root_gets_an_agent_of_their_own(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the home, with nothing that root would have to do but the lingering."""
    bot = workspace(public / "bot", "SOUL.md", owner=USER)
    monkeypatch.setenv("HOME", str(public / "home"))
    (public / "home").mkdir()
    os.chmod(public / "home", 0o777)  # noqa: PTH101 - as short as it gets
    with being(USER):
        made = setup.plan([bot], config=None)
        setup.write(made, force=False)
        assert made.config == public / "home" / ".config" / "variant-agent" / "agent.toml"
        assert load(made.config).participants[0].id == "bot"
    assert made.unit.is_user_unit
    assert f"systemctl --user enable --now {made.unit.name}" in "\n".join(made.next_steps())
    assert "--units" not in "\n".join(made.next_steps())
    with being(USER):
        elsewhere = setup.plan([bot], config=public / "agent.toml")
    told = f"variant-agent check --config {public}/agent.toml --units > {made.unit.drop_ins}/paths.conf"
    assert f"  {told}" in elsewhere.next_steps()


@pytest.mark.parametrize("kind", ["host", "at", "own"])
def test_the_units_named_are_those_that_are_delivered(kind: str) -> None:
    """Program, config, state and socket are where the unit file has them."""
    if kind == "own":
        with being(USER):
            unit = units.fitting(())
    else:
        if os.geteuid() != 0:
            pytest.skip("needs root to choose")
        unit = units.fitting((), user="root" if kind == "host" else USER)
    text = (SYSTEMD / unit.file).read_text().replace("%i", unit.user).replace("%h", str(Path.home()))
    start = f"ExecStart=variant-agent run --config {unit.config} --state-dir {unit.state_dir}\n"
    assert start in text
    runtime = re.search(r"^RuntimeDirectory=(.*)$", text, re.MULTILINE)
    assert runtime is not None
    assert unit.runtime_dir.name == runtime[1]
    assert ("ProtectSystem=strict" in text) == unit.sandboxed
    assert ("ProtectHome=tmpfs" in text) == unit.homes_hidden


def test_dash_prints_the_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So that it can be piped; what comes next is told on standard error."""
    bot = workspace(tmp_path / "bot", "SOUL.md")
    assert run(["init", str(bot), "--config", "-"]) == 0
    printed = capsys.readouterr()
    (tmp_path / "agent.toml").write_text(printed.out)
    assert load(tmp_path / "agent.toml").participants[0].root == bot
    assert "Next:" in printed.err
    assert run(["init", str(tmp_path / "absent"), "--config", "-"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "absent is no directory" in printed.err


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never a traceback."""
    bot = workspace(tmp_path / "bot", "SOUL.md")
    assert run(["init", str(bot), "--config", str(bot / "SOUL.md" / "agent.toml")]) == 1
    assert "Not a directory" in capsys.readouterr().err
