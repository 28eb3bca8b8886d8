"""What a host allows: globs, paths that try to escape, sizes."""

from pathlib import Path

import pytest

from agent.config import ParticipantConfig
from agent.policy import TEMP_PREFIX, Refused, allow
from shared.model import ReasonCode


def participant(*targets: str, max_bytes: int = 1000) -> ParticipantConfig:
    return ParticipantConfig(id="bot-1", root=Path("/srv/bot-1"), targets=targets, max_bytes=max_bytes)


def refusal(config: ParticipantConfig, path: str, *, size: int | None = None) -> ReasonCode | None:
    try:
        allow(config, path, size=size)
    except Refused as refused:
        assert refused.reason.message
        assert refused.reason.remedy
        return refused.reason.code
    return None


@pytest.mark.parametrize(
    ("glob", "path"),
    [
        ("SOUL.md", "SOUL.md"),
        ("config/*.md", "config/soul.md"),
        ("config/*", "config/soul.md"),
        ("*/soul.md", "config/soul.md"),
        ("so*l*.md", "soul.md"),
        ("**/*.md", "soul.md"),
        ("**/*.md", "a/b/c/soul.md"),
        ("prompts/**", "prompts/a/b.txt"),
        ("prompts/**/system.txt", "prompts/system.txt"),
        ("prompts/**/system.txt", "prompts/x/y/system.txt"),
        (".cursor/rules/*.md", ".cursor/rules/a.md"),
        (".env*", ".env.local"),
        ("a+b(c).md", "a+b(c).md"),
        ("prompts/größe.md", "prompts/größe.md"),
    ],
)
def test_a_glob_allows_what_it_describes(glob: str, path: str) -> None:
    """`*` stays within a segment, `**` crosses any number of them, everything else is literal."""
    assert refusal(participant("other.md", glob), path) is None


@pytest.mark.parametrize(
    ("glob", "path"),
    [
        ("SOUL.md", "soul.md"),
        ("SOUL.md", "SOUL.md.bak"),
        ("SOUL.md", "config/SOUL.md"),
        ("config/*.md", "config/a/soul.md"),
        ("config/*.md", "config/.md"),
        ("*", "config/soul.md"),
        ("*", ".bashrc"),
        ("*.md", ".hidden.md"),
        ("**", ".ssh/authorized_keys"),
        ("**/*", "a/.git/config"),
        ("a+b", "aab"),
        ("a?c", "abc"),
        ("[ab].md", "a.md"),
        ("", "a"),
    ],
)
def test_a_glob_allows_nothing_else(glob: str, path: str) -> None:
    """A name beginning with a dot has to be written out; there are no other wildcards."""
    assert refusal(participant(glob), path) is ReasonCode.TARGET_NOT_ALLOWED


@pytest.mark.parametrize("glob", ["*", ".*", "**", f"{TEMP_PREFIX}*", f"{TEMP_PREFIX}1.tmp"])
def test_a_temporary_name_matches_no_glob(glob: str) -> None:
    """What the agent leaves beside a target for a moment can never be a target itself."""
    assert refusal(participant(glob), f"{TEMP_PREFIX}1.tmp") is ReasonCode.TARGET_NOT_ALLOWED


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "//etc/passwd",
        "..",
        "../x.md",
        "a/../../x.md",
        "a/..",
        ".",
        "./a.md",
        "a/./b.md",
        "a//b.md",
        "a/",
        "a\\b.md",
        "..\\x.md",
        "C:\\x.md",
        "a\x00.md",
        "a\n.md",
        "a\x1b[2J.md",
        "a\u202e.md",
        "a\udcff.md",
        "x" * 256,
        "/".join(["x" * 200] * 6),
    ],
)
def test_a_path_that_is_not_a_plain_relative_one_is_refused_whatever_the_globs(path: str) -> None:
    """No glob, however wide, lets a path leave the root or mean two things."""
    assert refusal(participant("**", "*", path or "x"), path) is ReasonCode.PATH_ESCAPES_ROOT


def test_content_over_the_limit_is_refused_and_the_limit_itself_is_not() -> None:
    """`max_bytes` is inclusive."""
    config = participant("*.md", max_bytes=10)
    assert refusal(config, "a.md", size=10) is None
    assert refusal(config, "a.md", size=11) is ReasonCode.TOO_LARGE
    assert refusal(config, "a.txt", size=11) is ReasonCode.TARGET_NOT_ALLOWED
