"""`variant-agent check`: what an agent.toml means on a host, told by the code that would write."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.__main__ import run
from agent.inspection import Report, inspect
from shared.errors import Invalid
from tests.support.privileged import immutable
from tests.support.workspaces import OTHER, USER, being, public_directory, workspace


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory other users can enter."""
    with public_directory() as made:
        yield made


def config(
    directory: Path, *participants: str, agent: str = 'socket = "/run/variant-agent/agent.sock"'
) -> Path:
    """An agent.toml with these tables."""
    path = directory / "agent.toml"
    path.write_text(f"[agent]\n{agent}\n" + "".join(f"\n[[participants]]\n{p}\n" for p in participants))
    path.chmod(0o644)
    return path


def bot(root: Path, *targets: str, more: str = "", name: str = "bot") -> str:
    """One participant's table."""
    return f'id = "{name}"\nroot = "{root}"\ntargets = {json.dumps(targets)}\n{more}'


def report(path: Path, *, user: str | None = "root" if os.geteuid() == 0 else None) -> Report:
    """The report alone."""
    return inspect(path, user=user)[0]


def problems(found: Report, severity: str) -> dict[str, str]:
    """What is wrong, by field; without what every path of a test is told for being below /tmp."""
    return {
        problem.field: problem.message
        for problem in found.problems
        if problem.severity == severity and "is below /tmp" not in problem.message
    }


def files(found: Report) -> dict[str, str]:
    """The code each file would be refused with, empty where it would be written."""
    return {file.path: file.code for participant in found.participants for file in participant.files}


def test_it_tells_what_may_be_written_and_what_may_be_made(tmp_path: Path) -> None:
    """Present files with size and owner, a file that is not there yet, a glob nothing matches."""
    root = workspace(tmp_path / "bot", "SOUL.md", "config/tone.md", "other.md")
    found = report(config(tmp_path, bot(root, "SOUL.md", "config/*.md", "NEW.md", "prompts/*.txt")))
    assert found.ok
    assert files(found) == {"SOUL.md": "", "config/tone.md": "", "NEW.md": ""}
    assert "'prompts/*.txt' matches no file" in problems(found, "warning")["participants[0].targets"]
    lines = "\n".join(found.lines())
    assert "may write      SOUL.md  17 bytes, of " in lines
    assert "may make       NEW.md" in lines
    assert "would write    prompts/*.txt  nothing there matches" in lines
    assert "other.md" not in lines


def test_nothing_is_written(tmp_path: Path) -> None:
    """Not even a temporary file: no directory changed."""
    root = workspace(tmp_path / "bot", "SOUL.md", "config/tone.md")
    path = config(tmp_path, bot(root, "SOUL.md", "config/*.md", "new/deep.md"))
    before = {entry: entry.stat().st_mtime_ns for entry in (tmp_path, *tmp_path.rglob("*"))}
    report(path)
    assert {entry: entry.stat().st_mtime_ns for entry in (tmp_path, *tmp_path.rglob("*"))} == before


def test_a_link_is_told_with_the_policy_that_refuses_it(tmp_path: Path) -> None:
    """An error where the glob allows nothing else, a warning where it is one of several."""
    root = workspace(tmp_path / "bot", "AGENTS.md", "config/a.md")
    (root / "CLAUDE.md").symlink_to("AGENTS.md")
    (root / "config" / "b.md").symlink_to("a.md")
    found = report(config(tmp_path, bot(root, "CLAUDE.md", "config/*.md")))
    assert files(found) == {
        "CLAUDE.md": "SYMLINK_REFUSED",
        "config/a.md": "",
        "config/b.md": "SYMLINK_REFUSED",
    }
    assert 'set symlinks = "follow-within-root"' in problems(found, "error")["participants[0].targets"]
    assert "'config/b.md'" in problems(found, "warning")["participants[0].targets"]
    assert not found.ok
    followed = report(
        config(tmp_path, bot(root, "CLAUDE.md", "config/b.md", more='symlinks = "follow-within-root"'))
    )
    assert set(files(followed).values()) == {""}


def test_links_out_directories_and_sizes_are_refused_as_the_agent_would(tmp_path: Path) -> None:
    """Each with the agent's own code."""
    root = workspace(tmp_path / "bot", "big.md", "dir.md/x")
    (root / "out.md").symlink_to("../../etc/passwd")
    more = 'symlinks = "follow-within-root"\nmax_bytes = 4'
    found = report(config(tmp_path, bot(root, "big.md", "dir.md", "out.md", more=more)))
    assert files(found) == {
        "big.md": "TOO_LARGE",
        "dir.md": "NOT_A_REGULAR_FILE",
        "out.md": "PATH_ESCAPES_ROOT",
    }


def test_an_immutable_file_is_told(tmp_path: Path) -> None:
    """Root may do anything but this."""
    root = workspace(tmp_path / "bot", "SOUL.md")
    with immutable(root / "SOUL.md"):
        assert files(report(config(tmp_path, bot(root, "SOUL.md")))) == {"SOUL.md": "IMMUTABLE"}


def test_a_root_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """Of this participant; the others are told all the same."""
    there = workspace(tmp_path / "bot", "SOUL.md")
    found = report(config(tmp_path, bot(tmp_path / "absent", "SOUL.md"), bot(there, "SOUL.md", name="other")))
    assert "no such file or directory" in problems(found, "error")["participants[0].root"]
    assert files(found) == {"SOUL.md": ""}


def test_a_users_agent_is_judged_by_that_users_rights(public: Path) -> None:
    """A file and a folder of somebody else's, and a root that cannot be entered."""
    root = workspace(public / "bot", "SOUL.md", "theirs/a.md", "AGENTS.md", owner=USER)
    workspace(root / "theirs", "a.md", owner=OTHER)
    os.chown(root / "AGENTS.md", 0, 0)
    closed = workspace(public / "closed", "SOUL.md", owner=OTHER)
    closed.chmod(0o700)
    path = config(
        public,
        bot(root, "SOUL.md", "AGENTS.md", "theirs/*.md", "theirs/new.txt"),
        bot(closed, "SOUL.md", name="closed"),
        agent=f'socket = "/run/variant-agent-{USER}/agent.sock"',
    )
    found = report(path, user=USER)
    assert (found.unit.name, found.unit.user) == (f"variant-agent@{USER}.service", USER)
    assert files(found) == {
        "SOUL.md": "",
        "AGENTS.md": "PERMISSION_DENIED",
        "theirs/a.md": "PERMISSION_DENIED",
        "theirs/new.txt": "PERMISSION_DENIED",
    }
    assert "permission denied" in problems(found, "error")["participants[1].root"]
    assert os.geteuid() == 0
    as_root = report(path, user="root")
    assert set(files(as_root).values()) == {""}


def test_one_users_roots_are_judged_as_that_user_unless_told(public: Path) -> None:
    """The unit that `init` would name; --user says otherwise; only root may ask for another."""
    path = config(public, bot(workspace(public / "bot", "SOUL.md", owner=USER), "SOUL.md"))
    assert report(path, user=None).unit.user == USER
    assert report(path, user="root").unit.user == "root"
    with pytest.raises(Invalid, match="no such user"):
        report(path, user="nobody-of-that-name")
    with being(OTHER):
        assert report(path, user=None).unit.is_user_unit
        with pytest.raises(Invalid, match="only root"):
            report(path, user=USER)


def test_a_config_in_the_wrong_hands_is_told(public: Path) -> None:
    """Who may change it decides what is written; the agent's user has to read it."""
    path = config(public, bot(workspace(public / "bot", "SOUL.md", owner=USER), "SOUL.md"))
    assert "--config" not in problems(report(path), "warning")
    path.chmod(0o664)
    assert "can be changed by others" in problems(report(path), "warning")["--config"]
    path.chmod(0o600)
    assert f"cannot be read by {USER}" in problems(report(path, user=USER), "error")["--config"]


def test_a_socket_elsewhere_than_the_units_is_told(tmp_path: Path) -> None:
    """Under systemd nothing else can be listened in."""
    root = workspace(tmp_path / "bot", "SOUL.md")
    found = report(config(tmp_path, bot(root, "SOUL.md"), agent='socket = "agent.sock"'))
    assert "agent.socket" in problems(found, "warning")


@pytest.mark.parametrize(
    ("hook", "severity", "message"),
    [
        ('reload = ["/bin/true"]', "", ""),
        ('reload = ["true"]', "", ""),
        ('reload = ["./hooks/run"]', "warning", "runs as root and can be changed by others"),
        ('reload = ["./SOUL.md"]', "error", "is no program that"),
        ('reload = ["no-such-program-anywhere"]', "error", "is no program that"),
        ('reload = ["/usr"]', "error", "is no program that"),
    ],
)
def test_a_hook_has_to_be_a_program(tmp_path: Path, hook: str, severity: str, message: str) -> None:
    """Found where systemd looks, or relative to the root as the agent starts it."""
    if severity == "warning" and os.geteuid() != 0:
        pytest.skip("needs root: nobody else's agent runs hooks as root")
    root = workspace(tmp_path / "bot", "SOUL.md", "hooks/run")
    (root / "hooks" / "run").chmod(0o777)
    found = report(config(tmp_path, bot(root, "SOUL.md", more=hook)))
    said = {**problems(found, "error"), **problems(found, "warning")}
    assert message in said.get("participants[0].reload", "")
    assert bool(severity) == ("participants[0].reload" in said)
    assert found.ok == (severity != "error")


def test_a_check_is_told_the_file_and_users_exist(tmp_path: Path) -> None:
    """A check without {staged} checks nothing new; a user nobody has keeps the agent from starting."""
    root = workspace(tmp_path / "bot", "SOUL.md")
    more = 'check = ["/bin/true", "SOUL.md"]\nallow_users = ["nobody-of-that-name"]'
    found = report(config(tmp_path, bot(root, "SOUL.md", more=more)))
    assert "which file to check" in problems(found, "warning")["participants[0].check"]
    assert "no user 'nobody-of-that-name'" in problems(found, "error")["participants[0].allow_users"]


def test_one_file_of_two_participants_is_an_error(tmp_path: Path) -> None:
    """As at the start of an agent."""
    root = workspace(tmp_path / "bot", "config/SOUL.md")
    found = report(config(tmp_path, bot(root, "config/*.md"), bot(root / "config", "SOUL.md", name="inner")))
    assert (
        "is the same file as 'config/SOUL.md' of 'bot'" in problems(found, "error")["participants[1].targets"]
    )


def test_every_fault_of_the_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there as well; never a traceback."""
    path = config(tmp_path, 'id = "a b"\nroot = "x"\ntargets = []')
    assert run(["check", "--config", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "participants[0].id" in printed
    assert "participants[0].targets allows no file" in printed
    assert run(["check", "--config", str(tmp_path / "absent.toml")]) == 1
    assert "No such file" in capsys.readouterr().out


def test_json_has_it_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For whoever checks many hosts."""
    root = workspace(tmp_path / "bot", "SOUL.md")
    assert run(["check", "--json", "--config", str(config(tmp_path, bot(root, "SOUL.md", "NEW.md")))]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    (participant,) = answer["participants"]
    assert (participant["id"], participant["root"]) == ("bot", str(root))
    assert [(file["path"], file["size"], file["code"]) for file in participant["files"]] == [
        ("SOUL.md", 17, ""),
        ("NEW.md", None, ""),
    ]
    assert {problem["severity"] for problem in answer["problems"]} <= {"warning"}


def test_units_prints_the_drop_in_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong goes to standard error, and into the exit code; a missing root does not stop the unit."""
    if os.geteuid() != 0:
        pytest.skip("needs root: another user's unit is not confined to paths")
    there = workspace(tmp_path / "a bot", "SOUL.md")
    path = config(
        tmp_path,
        bot(there, "SOUL.md"),
        bot(Path("/home/variantd-nobody/50%"), "SOUL.md", name="absent"),
    )
    assert run(["check", "--units", "--user", "root", "--config", str(path)]) == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[1:4] == [
        "[Service]",
        "BindPaths=-/home/variantd-nobody/50%%",
        f'ReadWritePaths="-{there}"',
    ]
    assert f"ExecStart=variant-agent run --config {path} --state-dir /var/lib/variant-agent" in lines
    assert "participants[1].root" in printed.err
    assert run(["check", "--units", "--user", USER, "--config", str(path)]) == 1
    assert "ReadWritePaths=-/home/variantd-nobody/50%%" in capsys.readouterr().out


def test_a_root_no_unit_can_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be another setting there."""
    if os.geteuid() != 0:
        pytest.skip("needs root: another user's unit is not confined to paths")
    root = workspace(tmp_path / "a\nExecStart=b", "SOUL.md")
    path = config(tmp_path, bot(Path(str(root).replace("\n", "\\n")), "SOUL.md"))
    assert run(["check", "--units", "--user", "root", "--config", str(path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "cannot stand in a unit" in printed.err


def test_a_user_of_their_own_needs_no_drop_in(
    public: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their unit may write what they may; it has to be told of an agent.toml that is not where it looks."""
    path = config(public, bot(workspace(public / "bot", "SOUL.md", owner=USER), "SOUL.md"))
    monkeypatch.setenv("HOME", str(public))
    usual = public / ".config" / "variant-agent" / "agent.toml"
    usual.parent.mkdir(parents=True)
    usual.write_text(path.read_text())
    with being(USER):
        assert run(["check", "--units"]) == 0
        assert "[Service]" not in capsys.readouterr().out
        assert run(["check", "--units", "--config", str(path)]) == 0
    start = f"variant-agent run --config {path} --state-dir {public}/.local/state/variant-agent"
    assert capsys.readouterr().out.splitlines()[1:] == ["[Service]", "ExecStart=", f"ExecStart={start}"]
