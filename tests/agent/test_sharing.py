"""What a host shows of its files, to whom, and what it refuses."""

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig
from agent.policy import Refused
from agent.sharing import MAX_CHUNK_BYTES, MAX_READS, Answer, Sharing, Wish, read
from shared.errors import Unavailable
from shared.model import MAX_INLINE_BYTES, Digest, ReasonCode, digest
from tests.support.host import make_config, make_participant
from tests.support.waiting import eventually

REQUEST = bytes(range(16))


def sharing_config(tmp_path: Path, **values: Any) -> AgentConfig:
    """A host that shares what bot-1 has in `tmp_path`/root."""
    participant = make_participant(tmp_path / "root", **{"share_content": True, **values})
    return make_config(tmp_path, participant)


def wish(path: str = "soul.md", **values: Any) -> Wish:
    return Wish(**{"request_id": REQUEST, "participant": "bot-1", "path": path, **values})


def refused(config: AgentConfig, wished: Wish) -> Refused:
    """Why the file is not shown."""
    with pytest.raises(Refused) as refusal:
        read(config, wished)
    return refusal.value


def test_the_exact_bytes_are_read(tmp_path: Path) -> None:
    """Whatever they are, text or not."""
    config = sharing_config(tmp_path)
    content = b"\xff\x00 not text\r\n"
    (tmp_path / "root" / "soul.md").write_bytes(content)
    found = read(config, wish())
    assert found is not None
    assert found.content == content


def test_a_file_that_is_not_there_is_absent(tmp_path: Path) -> None:
    """So is one in a folder that is not there."""
    config = sharing_config(tmp_path)
    assert read(config, wish()) is None
    assert read(config, wish("config/soul.md")) is None


def test_nothing_is_shown_where_the_host_does_not_share(tmp_path: Path) -> None:
    """Whether the file may be written, exists or not is not told either."""
    config = sharing_config(tmp_path, share_content=False)
    (tmp_path / "root" / "soul.md").write_text("secret")
    for path in ("soul.md", "nothing.md", "etc/passwd", "../soul.md"):
        reason = refused(config, wish(path)).reason
        assert reason.code is ReasonCode.NOT_SHARED
        assert "share_content = true" in reason.remedy
        assert "variant-agent reload" in reason.remedy
        assert path not in reason.message


def test_only_allowed_targets_of_known_participants_are_shown(tmp_path: Path) -> None:
    """What could not be written cannot be read."""
    config = sharing_config(tmp_path)
    (tmp_path / "root" / ".env").write_text("secret")
    (tmp_path / "root" / "notes.txt").write_text("secret")
    for path in (".env", "notes.txt", "config/deeper/soul.md", ".variantd-x.tmp"):
        assert refused(config, wish(path)).reason.code is ReasonCode.TARGET_NOT_ALLOWED, path
    for path in ("/etc/passwd", "../root/soul.md", "config/../soul.md", "", "a//b.md", "soul.md\0"):
        assert refused(config, wish(path)).reason.code is ReasonCode.PATH_ESCAPES_ROOT, path
    unknown = refused(config, wish(participant="bot-2")).reason
    assert unknown.code is ReasonCode.TARGET_NOT_ALLOWED


def test_a_link_is_not_crossed(tmp_path: Path) -> None:
    """Neither of a file nor of a folder, where policy refuses links."""
    config = sharing_config(tmp_path)
    root = tmp_path / "root"
    (tmp_path / "outside.md").write_text("secret")
    (root / "soul.md").symlink_to(tmp_path / "outside.md")
    (root / "config").symlink_to(tmp_path)
    for path in ("soul.md", "config/outside.md"):
        assert refused(config, wish(path)).reason.code is ReasonCode.SYMLINK_REFUSED


def test_a_followed_link_stays_within_the_root(tmp_path: Path) -> None:
    """As in writing: one that leads out is refused, one within leads to the real file."""
    config = sharing_config(tmp_path, follow_symlinks=True)
    root = tmp_path / "root"
    (tmp_path / "outside.md").write_text("secret")
    (root / "AGENTS.md").write_text("within")
    for number, target in enumerate(("AGENTS.md", "../outside.md", str(tmp_path / "outside.md"))):
        (root / f"link-{number}.md").symlink_to(target)
    found = read(config, wish("link-0.md"))
    assert found is not None
    assert found.content == b"within"
    for path in ("link-1.md", "link-2.md"):
        assert refused(config, wish(path)).reason.code is ReasonCode.PATH_ESCAPES_ROOT


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """A folder, and a FIFO that nobody writes to."""
    config = sharing_config(tmp_path)
    (tmp_path / "root" / "folder.md").mkdir()
    os.mkfifo(tmp_path / "root" / "pipe.md")
    for path in ("folder.md", "pipe.md"):
        assert refused(config, wish(path)).reason.code is ReasonCode.NOT_A_REGULAR_FILE


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    """By the host's limit or the control plane's, whichever is lower; each is told with what to do."""
    config = sharing_config(tmp_path, max_bytes=10)
    (tmp_path / "root" / "soul.md").write_bytes(b"x" * 11)
    own = refused(config, wish(max_bytes=1000)).reason
    assert (own.code, "max_bytes" in own.remedy) == (ReasonCode.TOO_LARGE, True)
    (tmp_path / "root" / "soul.md").write_bytes(b"x" * 10)
    assert read(config, wish(max_bytes=10)) is not None
    theirs = refused(config, wish(max_bytes=9)).reason
    assert (theirs.code, "max_bytes" in theirs.remedy) == (ReasonCode.TOO_LARGE, False)


# -- the way up


class Heard:
    """What went up."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.uploads: list[tuple[bytes, Digest, list[bytes]]] = []
        self.fails = False

    async def upload(self, request_id: bytes, digest: Digest, pieces: Iterable[bytes]) -> None:
        if self.fails:
            raise Unavailable
        self.uploads.append((request_id, digest, list(pieces)))


@pytest.mark.parametrize("size", [0, 1, MAX_INLINE_BYTES, MAX_INLINE_BYTES + 1, 3 * MAX_CHUNK_BYTES + 1])
async def test_small_files_are_told_and_larger_ones_uploaded(tmp_path: Path, size: int) -> None:
    """Up to the inline limit in one message, above it in pieces under the digest of the whole."""
    heard = Heard()
    sharing = Sharing(sharing_config(tmp_path), tell=heard.answers.append, upload=heard.upload)
    content = os.urandom(size)
    (tmp_path / "root" / "soul.md").write_bytes(content)
    sharing.wish(wish())
    await eventually(lambda: heard.answers or heard.uploads, what="the answer")
    if size <= MAX_INLINE_BYTES:
        [answer] = heard.answers
        assert (answer.request_id, answer.content, answer.digest) == (REQUEST, content, digest(content))
        return
    [(request_id, found, pieces)] = heard.uploads
    assert (request_id, found, b"".join(pieces)) == (REQUEST, digest(content), content)
    assert max(map(len, pieces)) <= MAX_CHUNK_BYTES


async def test_absence_and_refusal_are_told(tmp_path: Path) -> None:
    """Neither carries content."""
    heard = Heard()
    sharing = Sharing(sharing_config(tmp_path), tell=heard.answers.append, upload=heard.upload)
    sharing.wish(wish())
    sharing.wish(wish("notes.txt"))
    await eventually(lambda: len(heard.answers) == 2, what="both answers")
    by_reason = {a.refused.code if a.refused else None: a for a in heard.answers}
    assert set(by_reason) == {None, ReasonCode.TARGET_NOT_ALLOWED}
    assert all((a.content, a.digest) == (b"", None) for a in heard.answers)


async def test_a_reload_decides_what_is_shown_next(tmp_path: Path) -> None:
    """Sharing that was taken back is taken back at once."""
    heard = Heard()
    sharing = Sharing(sharing_config(tmp_path), tell=heard.answers.append, upload=heard.upload)
    (tmp_path / "root" / "soul.md").write_text("secret")
    sharing.reconfigure(sharing_config(tmp_path, share_content=False))
    sharing.wish(wish())
    await eventually(lambda: heard.answers, what="the answer")
    assert heard.answers[0].refused is not None
    assert heard.answers[0].refused.code is ReasonCode.NOT_SHARED


async def test_a_flood_of_wishes_is_bounded(tmp_path: Path) -> None:
    """Beyond the limit they are dropped; afterwards the next one is answered."""
    heard = Heard()
    sharing = Sharing(sharing_config(tmp_path), tell=heard.answers.append, upload=heard.upload)
    for _ in range(10 * MAX_READS):
        sharing.wish(wish())
    await eventually(lambda: len(heard.answers) == MAX_READS, what="as many answers as are taken")
    await asyncio.sleep(0)
    sharing.wish(wish())
    await eventually(lambda: len(heard.answers) == MAX_READS + 1, what="one more answer")


async def test_a_failed_upload_ends_there(tmp_path: Path) -> None:
    """The control plane gives up by itself; the next wish is answered."""
    heard = Heard()
    sharing = Sharing(sharing_config(tmp_path), tell=heard.answers.append, upload=heard.upload)
    (tmp_path / "root" / "soul.md").write_bytes(b"x" * (MAX_INLINE_BYTES + 1))
    heard.fails = True
    sharing.wish(wish())
    sharing.wish(wish("nothing.md"))
    await eventually(lambda: heard.answers, what="the second answer")
    await sharing.stop()
    assert heard.uploads == []
