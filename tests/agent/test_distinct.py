"""An agent.toml in which two participants can write one file is refused, with the fault by field."""

from pathlib import Path

import pytest

from agent.distinct import check_distinct
from shared.errors import Invalid
from tests.support.host import make_config, make_participant
from tests.support.privileged import mounted


def faults(tmp_path: Path, *participants: tuple[str, tuple[str, ...]], follow: bool = False) -> list[str]:
    """The faulty fields of a configuration of (root, targets)."""
    config = make_config(
        tmp_path,
        *(
            make_participant(tmp_path / root, f"bot-{number}", targets=targets, follow_symlinks=follow)
            for number, (root, targets) in enumerate(participants)
        ),
    )
    try:
        check_distinct(config)
    except Invalid as invalid:
        assert all(fault.remedy for fault in invalid.faults)
        return [fault.field for fault in invalid.faults]
    return []


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ("ws/soul.md", "soul.md"),
        ("**/*.md", "soul.md"),
        ("*/soul.md", "**"),
        ("w*/*l.md", "s*.md"),
        ("**", "config/deep/*.md"),
        ("ws/**/soul.md", "soul.md"),
    ],
)
def test_globs_that_meet_in_nested_roots_are_refused(tmp_path: Path, outer: str, inner: str) -> None:
    """Whether or not the file is there yet, and in whatever order they are written."""
    assert faults(tmp_path, (".", (outer,)), ("ws", (inner,))) == ["participants[1].targets"]
    assert faults(tmp_path, ("ws", (inner,)), (".", (outer,))) == ["participants[1].targets"]


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ("soul.md", "soul.md"),
        ("*.md", "**"),
        ("other/**", "**"),
        ("ws/*.md", "*.txt"),
        ("**", ".hidden/x.md"),
        ("ws/*", "config/soul.md"),
    ],
)
def test_globs_that_cannot_meet_are_fine(tmp_path: Path, outer: str, inner: str) -> None:
    """Nested roots are allowed where the targets are apart."""
    assert faults(tmp_path, (".", (outer,)), ("ws", (inner,))) == []


def test_roots_side_by_side_are_fine(tmp_path: Path) -> None:
    """The normal case, with a name that begins like another."""
    assert faults(tmp_path, ("bot", ("**",)), ("bot-2", ("**",)), ("bot/../other", ("**",))) == []


def test_one_root_under_two_names_is_refused(tmp_path: Path) -> None:
    """Through a link to it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")
    assert faults(tmp_path, ("real", ("a*.md",)), ("linked", ("*b.md",))) == ["participants[1].targets"]
    assert faults(tmp_path, ("real", ("a.md",)), ("linked", ("b.md",))) == []


def test_a_followed_link_into_another_participant_s_target_is_refused(tmp_path: Path) -> None:
    """Without following, the link is no way to write there."""
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "soul.md").write_text("mine")
    (tmp_path / "CLAUDE.md").symlink_to("ws/soul.md")
    nested = ((".", ("CLAUDE.md",)), ("ws", ("soul.md",)))
    assert faults(tmp_path, *nested, follow=True) == ["participants[1].targets"]
    assert faults(tmp_path, *nested) == []


def test_a_directory_mounted_into_two_roots_is_refused(tmp_path: Path) -> None:
    """A bind mount makes one file of two paths that no comparison of names finds."""
    for name in ("shared", "one/config", "two"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "shared" / "soul.md").write_text("mine")
    with mounted("--bind", tmp_path / "shared", at=tmp_path / "one" / "config"):
        apart = (("one", ("config/*.md",)), ("shared", ("*.md",)))
        assert faults(tmp_path, *apart) == ["participants[1].targets"]


def test_every_pair_is_listed(tmp_path: Path) -> None:
    """One answer for all of them; a root that is missing is none."""
    assert faults(
        tmp_path, (".", ("**",)), ("a", ("x.md",)), ("b", ("x.md",)), ("b/c", ("y.md",)), ("../gone", ("*",))
    ) == ["participants[1].targets", "participants[2].targets", "participants[3].targets"]
