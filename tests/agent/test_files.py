"""Target files: whole at every instant, never outside the root, and every fault has its reason."""

import ctypes
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import beneath
from agent.files import Snapshot, Workspace
from agent.policy import TEMP_PREFIX, Refused
from shared.model import ReasonCode, digest
from tests.support.privileged import immutable, mounted, run_or_skip

LIMIT = 1 << 20
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@pytest.fixture(params=["openat2", "walk"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root; with `walk` the kernel really answers ENOSYS, as one without openat2 does."""
    if request.param == "walk":
        monkeypatch.setattr(beneath, "_SYS_OPENAT2", 1_000_000)
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.fixture
def workspace(root: Path) -> Workspace:
    return Workspace(root)


def write(workspace: Workspace, path: str, content: bytes, *, token: str = "1") -> None:
    """`content` is at `path`, through every step of a write."""
    real = workspace.locate(path)
    present = workspace.read(real, limit=LIMIT)
    fresh = workspace.fresh(content)
    like = present or fresh
    new = Snapshot(content=content, mode=like.mode, uid=like.uid, gid=like.gid)
    workspace.swap(workspace.stage(real, new, token=token))


def entries(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@contextmanager
def refused(expected: ReasonCode, *, untouched: Path | None = None) -> Iterator[None]:
    """What is done is refused with the reason, a message and a remedy; the tree stays as it is."""
    before = entries(untouched) if untouched else []
    with pytest.raises(Refused) as caught:
        yield
    reason = caught.value.reason
    assert reason.code is expected, reason
    assert reason.message
    assert reason.remedy
    if untouched:
        assert entries(untouched) == before


# -- writing -----------------------------------------------------------------------------------------


def test_a_write_replaces_the_file_and_keeps_mode_and_owner(root: Path, workspace: Workspace) -> None:
    """A reader that had it open goes on with the whole old content."""
    target = root / "soul.md"
    target.write_bytes(b"old")
    target.chmod(0o4751)
    if os.geteuid() == 0:
        os.chown(target, 1000, 1001)
        target.chmod(0o4751)
    before = target.stat()
    with target.open("rb") as reader:
        write(workspace, "soul.md", b"new")
        assert reader.read() == b"old"
    after = target.stat()
    assert target.read_bytes() == b"new"
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert entries(root) == ["soul.md"]


def test_a_new_file_gets_the_default_mode_and_the_root_s_owner(root: Path, workspace: Workspace) -> None:
    """Whatever the umask; parents are made at the swap, and not before."""
    if os.geteuid() == 0:
        os.chown(root, 1000, 1001)
    staged = workspace.stage("a/b/soul.md", workspace.fresh(b"new"), token="1")
    assert entries(root) == [f"{TEMP_PREFIX}1.tmp"]
    old = os.umask(0o077)
    try:
        workspace.swap(staged)
    finally:
        os.umask(old)
    status, parent = (root / "a/b/soul.md").stat(), (root / "a/b").stat()
    assert (status.st_mode & 0o7777, parent.st_mode & 0o7777) == (0o644, 0o755)
    assert {(s.st_uid, s.st_gid) for s in (status, parent)} == {(root.stat().st_uid, root.stat().st_gid)}
    workspace.remove("a/b/soul.md", made=staged.missing)
    assert entries(root) == []


def test_removing_stops_at_a_directory_that_others_use(root: Path, workspace: Workspace) -> None:
    """And removing twice is removing once."""
    write(workspace, "a/b/soul.md", b"x")
    (root / "a" / "other").touch()
    for _ in range(2):
        workspace.remove("a/b/soul.md", made=("a", "a/b"))
        assert entries(root) == ["a", "a/other"]


def test_staged_content_that_is_discarded_leaves_nothing(root: Path, workspace: Workspace) -> None:
    """Discarding twice, or what is not there, does no harm."""
    staged = workspace.stage("soul.md", workspace.fresh(b"x"), token="1")
    assert workspace.is_staged(staged)
    workspace.discard(staged)
    workspace.discard(staged)
    assert not workspace.is_staged(staged)
    assert entries(root) == []


def test_a_temporary_name_is_never_reused(root: Path, workspace: Workspace) -> None:
    """Content is staged into a file of our own making only."""
    (root / f"{TEMP_PREFIX}1.tmp").write_bytes(b"planted")
    with refused(ReasonCode.IO_ERROR, untouched=root):
        write(workspace, "soul.md", b"x")
    assert (root / f"{TEMP_PREFIX}1.tmp").read_bytes() == b"planted"


def test_sweeping_finds_leftovers_wherever_a_target_could_be(root: Path) -> None:
    """In the directories of every glob and behind followed links; nothing else goes."""
    for directory in ("", "config", "skills/a", "deep/x/y", "behind", "elsewhere"):
        (root / directory).mkdir(parents=True, exist_ok=True)
        (root / directory / f"{TEMP_PREFIX}1.tmp").touch()
        (root / directory / f"{TEMP_PREFIX}kept").touch()
    (root / "CLAUDE.md").symlink_to("behind/AGENTS.md")
    workspace = Workspace(root, follow_symlinks=True)
    swept = workspace.sweep(("CLAUDE.md", "config/*.md", "skills/*/SKILL.md", "deep/**", "none/x.md"))
    assert swept == 5
    assert [path for path in entries(root) if path.endswith(".tmp")] == [f"elsewhere/{TEMP_PREFIX}1.tmp"]
    assert len([path for path in entries(root) if path.endswith("kept")]) == 6


# -- what is no target -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../out.md", "/etc/passwd", "a/../../out.md", "", "a//b", "./a", "a/"])
@pytest.mark.parametrize("follow", [False, True])
def test_paths_out_of_the_root_are_refused(root: Path, path: str, follow: bool) -> None:
    """Even where policy was not asked first."""
    (root / "a").mkdir()
    with refused(ReasonCode.PATH_ESCAPES_ROOT, untouched=root.parent):
        write(Workspace(root, follow_symlinks=follow), path, b"x")


@pytest.mark.parametrize("follow", [False, True])
def test_a_path_that_was_not_located_cannot_escape_either(root: Path, follow: bool) -> None:
    """The inner methods have a wall of their own."""
    workspace = Workspace(root, follow_symlinks=follow)
    with refused(ReasonCode.PATH_ESCAPES_ROOT, untouched=root.parent):
        workspace.stage("../out.md", workspace.fresh(b"x"), token="1")


@pytest.mark.fault(21)
@pytest.mark.parametrize("link", ["../../outside/x.md", "/etc/passwd", "../outside"])
def test_a_link_out_of_the_root_is_refused_with_and_without_following(root: Path, link: str) -> None:
    """Refusing says there is a link; following says it leads out."""
    (root.parent / "outside").mkdir()
    (root / "config").mkdir()
    (root / "config" / "soul.md").symlink_to(link if link != "../outside" else "../../outside/x.md")
    (root / "linked").symlink_to("../outside")
    for path in ("config/soul.md", "linked/soul.md"):
        with refused(ReasonCode.SYMLINK_REFUSED, untouched=root.parent):
            write(Workspace(root), path, b"x")
        with refused(ReasonCode.PATH_ESCAPES_ROOT, untouched=root.parent):
            write(Workspace(root, follow_symlinks=True), path, b"x")


def test_a_link_within_the_root_is_refused_by_default(root: Path, workspace: Workspace) -> None:
    """As the target and as a directory on the way."""
    (root / "AGENTS.md").write_text("mine")
    (root / "CLAUDE.md").symlink_to("AGENTS.md")
    (root / "real").mkdir()
    (root / "linked").symlink_to("real")
    for path in ("CLAUDE.md", "linked/soul.md"):
        with refused(ReasonCode.SYMLINK_REFUSED, untouched=root):
            write(workspace, path, b"x")
        with refused(ReasonCode.SYMLINK_REFUSED):
            workspace.digest(path)
    assert (root / "AGENTS.md").read_text() == "mine"


def test_a_followed_link_stays_and_the_file_behind_it_is_replaced(root: Path) -> None:
    """Through directories, chains and links to nothing."""
    workspace = Workspace(root, follow_symlinks=True)
    (root / "docs").mkdir()
    (root / "docs" / "AGENTS.md").write_text("mine")
    (root / "linked").symlink_to("./docs/../docs")
    (root / "config").mkdir()
    (root / "config" / "soul.md").symlink_to("../linked/AGENTS.md")
    write(workspace, "config/soul.md", b"new")
    assert workspace.locate("config/soul.md") == "docs/AGENTS.md"
    assert (root / "docs" / "AGENTS.md").read_bytes() == b"new"
    (root / "nothing.md").symlink_to("docs/later.md")
    write(workspace, "nothing.md", b"later")
    assert (root / "docs" / "later.md").read_bytes() == b"later"
    assert all((root / link).is_symlink() for link in ("linked", "config/soul.md", "nothing.md"))


@pytest.mark.parametrize("link", ["loop.md", "."])
def test_a_link_that_leads_nowhere_ends(root: Path, link: str) -> None:
    """A loop and a link to the root itself are refused."""
    (root / "loop.md").symlink_to(link)
    with pytest.raises(Refused) as caught:
        Workspace(root, follow_symlinks=True).locate("loop.md")
    assert caught.value.reason.code in (ReasonCode.SYMLINK_REFUSED, ReasonCode.NOT_A_REGULAR_FILE)


def make_special(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))
    else:
        run_or_skip(
            "mknod", path, *{"character device": ("c", "1", "5"), "block device": ("b", "7", "99")}[kind]
        )


@pytest.mark.fault(21)
@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "character device", "block device"])
def test_what_is_no_regular_file_is_refused_and_never_waited_for(
    root: Path, workspace: Workspace, kind: str
) -> None:
    """A FIFO without a writer, above all; the same before a stage, before a swap and before a removal."""
    staged = workspace.stage("soul.md", workspace.fresh(b"x"), token="early")
    make_special(root / "soul.md", kind)
    with refused(ReasonCode.NOT_A_REGULAR_FILE):
        workspace.swap(staged)
    assert entries(root) == ["soul.md"]
    with refused(ReasonCode.NOT_A_REGULAR_FILE, untouched=root):
        workspace.read("soul.md", limit=LIMIT)
    with refused(ReasonCode.NOT_A_REGULAR_FILE, untouched=root):
        workspace.stage("soul.md", workspace.fresh(b"x"), token="1")
    with refused(ReasonCode.NOT_A_REGULAR_FILE, untouched=root):
        workspace.remove("soul.md", made=())
    with refused(ReasonCode.NOT_A_REGULAR_FILE, untouched=root):
        workspace.digest("soul.md")


def test_a_parent_that_is_a_file_is_refused(root: Path, workspace: Workspace) -> None:
    """Nothing is made beneath it."""
    (root / "config").write_text("a file")
    with refused(ReasonCode.NOT_A_REGULAR_FILE, untouched=root):
        write(workspace, "config/soul.md", b"x")


def test_a_file_too_large_to_be_put_back_is_refused(root: Path, workspace: Workspace) -> None:
    """Its digest can still be told."""
    (root / "soul.md").write_bytes(b"x" * 11)
    with refused(ReasonCode.TOO_LARGE, untouched=root):
        workspace.read("soul.md", limit=10)
    assert workspace.digest("soul.md") == digest(b"x" * 11)


# -- faults of the host ------------------------------------------------------------------------------


@pytest.mark.fault(20)
@pytest.mark.parametrize("attribute", ["i", "a"])
@pytest.mark.parametrize("what", ["soul.md", "."])
def test_an_immutable_or_append_only_file_or_directory_is_refused(
    root: Path, workspace: Workspace, attribute: str, what: str
) -> None:
    """Told before anything is staged."""
    (root / "soul.md").write_text("mine")
    with immutable(root / what, attribute=attribute):
        with refused(ReasonCode.IMMUTABLE, untouched=root):
            write(workspace, "soul.md", b"x")
        with refused(ReasonCode.IMMUTABLE, untouched=root):
            workspace.remove("soul.md", made=())
    assert (root / "soul.md").read_text() == "mine"


@pytest.mark.fault(20)
def test_a_file_made_immutable_after_the_stage_is_refused_at_the_swap(
    root: Path, workspace: Workspace
) -> None:
    """The temporary file goes, the target stays."""
    (root / "soul.md").write_text("mine")
    staged = workspace.stage("soul.md", workspace.fresh(b"x"), token="1")
    with immutable(root / "soul.md"), refused(ReasonCode.IMMUTABLE):
        workspace.swap(staged)
    assert (entries(root), (root / "soul.md").read_text()) == (["soul.md"], "mine")


@pytest.mark.fault(18)
def test_a_bind_mounted_file_is_refused(root: Path, workspace: Workspace) -> None:
    """Before the stage where the kernel can tell, else by the rename; the file behind is untouched."""
    (root / "soul.md").write_text("mine")
    (root.parent / "source").write_text("source")
    with mounted("--bind", root.parent / "source", at=root / "soul.md"):
        with refused(ReasonCode.BUSY_MOUNT, untouched=root):
            write(workspace, "soul.md", b"x")
        with refused(ReasonCode.BUSY_MOUNT, untouched=root):
            workspace.remove("soul.md", made=())
    assert ((root / "soul.md").read_text(), (root.parent / "source").read_text()) == ("mine", "source")


@pytest.mark.fault(11, 14)
@pytest.mark.parametrize("options", ["size=16k", "size=1m,nr_inodes=3"])
def test_a_full_disk_is_refused_and_the_old_content_stays(
    root: Path, workspace: Workspace, options: str
) -> None:
    """Of bytes or of inodes; nothing is left behind."""
    with mounted("-t", "tmpfs", "-o", options, "none", at=root):
        (root / "soul.md").write_text("mine")
        if "nr_inodes" in options:
            (root / "filler").touch()
        with refused(ReasonCode.NO_SPACE, untouched=root):
            write(workspace, "soul.md", b"x" * 40_000)
        assert (root / "soul.md").read_text() == "mine"


@pytest.mark.fault(15)
def test_a_file_size_limit_is_refused_like_a_full_disk(root: Path, workspace: Workspace) -> None:
    """Needs no root: the limit of this very process."""
    (root / "soul.md").write_text("mine")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with refused(ReasonCode.NO_SPACE, untouched=root):
            write(workspace, "soul.md", b"x" * 40_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (root / "soul.md").read_text() == "mine"


@pytest.mark.fault(16)
def test_a_read_only_file_system_is_refused(root: Path, workspace: Workspace) -> None:
    """Mounted so after the file was there."""
    with mounted("-t", "tmpfs", "none", at=root):
        (root / "soul.md").write_text("mine")
        run_or_skip("mount", "-o", "remount,ro", root)
        with refused(ReasonCode.READ_ONLY, untouched=root):
            write(workspace, "soul.md", b"x")


def test_a_root_that_is_gone_is_a_reason_too(tmp_path: Path) -> None:
    """It names the root."""
    with refused(ReasonCode.IO_ERROR):
        Workspace(tmp_path / "gone").digest("soul.md")


WITHOUT_ROOT = """
import os, sys
from pathlib import Path
from agent.files import Workspace
from agent.policy import Refused
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for path in sys.argv[2:]:
    workspace = Workspace(Path(sys.argv[1]))
    try:
        present = workspace.read(path, limit=1000)
        workspace.swap(workspace.stage(path, present or workspace.fresh(b"x"), token="1"))
    except Refused as refused:
        print(path, refused.reason.code)
"""


def test_an_agent_without_the_right_says_permission_denied(root: Path, tmp_path: Path) -> None:
    """Of a directory it may not enter, of one it may not write, of a file it cannot give to its owner."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make files of another owner")
    if any(parent.stat().st_mode & 0o001 == 0 for parent in tmp_path.parents):
        for parent in tmp_path.parents:
            if str(parent).startswith("/tmp/"):
                parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    for directory, mode in (("closed", 0o700), ("readable", 0o755), ("shared", 0o777)):
        (root / directory).mkdir()
        (root / directory).chmod(mode)
        (root / directory / "soul.md").write_text("mine")
    here = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT_ROOT,
            root,
            *(f"{name}/soul.md" for name in ("closed", "readable", "shared")),
        ],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [
        word for name in ("closed", "readable", "shared") for word in (f"{name}/soul.md", "PERMISSION_DENIED")
    ], done.stderr
    assert not [path for path in entries(root) if TEMP_PREFIX in path]


FSYNC_FAILS = """
import sys
from pathlib import Path
from agent.files import Workspace
from agent.policy import Refused
workspace = Workspace(Path(sys.argv[1]))
try:
    workspace.swap(workspace.stage("soul.md", workspace.fresh(b"new"), token="1"))
except Refused as refused:
    print(refused.reason.code)
"""


@pytest.mark.fault(17)
@pytest.mark.parametrize(("when", "kept"), [("1", "mine"), ("2", "new")])
def test_a_failed_fsync_is_never_taken_for_success(tmp_path: Path, when: str, kept: str) -> None:
    """Neither the file's nor the directory's, even if the next one would succeed."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    (tmp_path / "soul.md").write_text("mine")
    inject = ["-e", f"inject=fsync:error=EIO:when={when}"]
    program = [sys.executable, "-c", FSYNC_FAILS, str(tmp_path)]
    done = subprocess.run(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", *inject, *program],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if "ptrace" in done.stderr.lower():
        pytest.skip(f"strace does not work here: {done.stderr.strip()}")
    assert done.stdout.strip() == "IO_ERROR", done.stderr
    assert (entries(tmp_path), (tmp_path / "soul.md").read_text()) == (["soul.md"], kept)


@pytest.mark.fault(22)
def test_a_parent_swapped_for_a_link_during_writes_never_leads_out(root: Path, workspace: Workspace) -> None:
    """A race of two threads: every write lands inside or is refused."""
    outside = root.parent / "outside"
    outside.mkdir()
    (root / "config").mkdir()
    (root / "link").symlink_to(outside)
    libc = ctypes.CDLL(None, use_errno=True)
    config, link = os.fsencode(root / "config"), os.fsencode(root / "link")
    stop = threading.Event()

    def swap_back_and_forth() -> None:
        while not stop.is_set():
            libc.renameat2(AT_FDCWD, config, AT_FDCWD, link, RENAME_EXCHANGE)

    racer = threading.Thread(target=swap_back_and_forth)
    racer.start()
    failed = set()
    try:
        for turn in range(400):
            try:
                write(workspace, "config/soul.md", str(turn).encode(), token=str(turn))
            except Refused as refusal:
                failed.add(refusal.reason.code)
    finally:
        stop.set()
        racer.join()
    assert list(outside.iterdir()) == []
    assert ReasonCode.SYMLINK_REFUSED in failed
    assert failed <= {ReasonCode.SYMLINK_REFUSED, ReasonCode.IO_ERROR, ReasonCode.NOT_A_REGULAR_FILE}
