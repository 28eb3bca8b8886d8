"""The only code that touches target files; a target is at every instant one whole version, old or new.

Hides how Linux is made to promise that: every path is resolved beneath the participant's root without
crossing a symbolic link (`agent.beneath`),
content goes to a temporary file beside the target and is renamed over it once it is durable, and every errno
becomes a reason that says what to do. Everything here blocks: call it from a thread.
"""

import errno
import fcntl
import hashlib
import os
import stat
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agent.beneath import (
    ACL,
    OWN,
    acl_of,
    closing,
    deepest,
    is_mount_point,
    open_directory,
    open_regular,
    present,
    read_link,
)
from agent.policy import TEMP_PREFIX, Refused, matches, segments, show
from agent.sweep import reachable, sweep
from shared.model import Digest, ReasonCode, digest

DEFAULT_MODE = 0o644
"""Mode of a target file that did not exist before."""

DIRECTORY_MODE = 0o755
MAX_LINKS = 40
MOST_LOOKED_AT = 256 * 1_048_576  # bytes; nothing that was written here is a quarter as large

_FS_IOC_GETFLAGS = 0x80086601
_IMMUTABLE_OR_APPEND_ONLY = 0x10 | 0x20
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A target file: exact bytes, permission bits, owner."""

    content: bytes
    mode: int
    uid: int
    gid: int

    @property
    def digest(self) -> Digest:
        """Of the content."""
        return digest(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """New content, durable beside its target and not yet in place.

    `temp` is relative to the root, like `path`; `missing` are the directories the swap will make, outermost
    first: until then the content waits in the deepest directory that exists, so that a refusal leaves nothing.
    """

    path: str
    temp: str
    digest: Digest
    missing: tuple[str, ...] = ()


_REASONS: dict[int, tuple[ReasonCode, str, str]] = {
    errno.ENOSPC: (ReasonCode.NO_SPACE, "the disk is full", "free space (or inodes) on the host"),
    errno.EDQUOT: (ReasonCode.NO_SPACE, "the disk quota is used up", "raise the quota or free space"),
    errno.EFBIG: (ReasonCode.NO_SPACE, "the file size limit is reached", "raise the limit of file sizes"),
    errno.EROFS: (ReasonCode.READ_ONLY, "the file system is read-only", "remount it read-write"),
    errno.EACCES: (
        ReasonCode.PERMISSION_DENIED,
        "the agent may not do this",
        "give the agent's user access to the directory and the file",
    ),
    errno.EPERM: (
        ReasonCode.IMMUTABLE,
        "the file or its directory is immutable, append-only or sticky",
        "clear the attribute (lsattr, chattr -i -a), or choose another target",
    ),
    errno.EBUSY: (
        ReasonCode.BUSY_MOUNT,
        "the file is a mount point, such as a bind mount",
        "mount the directory instead of the file, so that the file can be replaced",
    ),
    errno.ELOOP: (
        ReasonCode.SYMLINK_REFUSED,
        "there is a symbolic link on the way",
        'name the real file, or set symlinks = "follow-within-root" in agent.toml',
    ),
    errno.EXDEV: (
        ReasonCode.PATH_ESCAPES_ROOT,
        "it leads out of the participant's root",
        "name a target within the root",
    ),
    errno.EISDIR: (ReasonCode.NOT_A_REGULAR_FILE, "it is a directory", "name a file"),
    errno.ENXIO: (
        ReasonCode.NOT_A_REGULAR_FILE,
        "it is a FIFO, a socket or a device",
        "name a file; variantd never replaces anything else",
    ),
    errno.ENOTDIR: (ReasonCode.NOT_A_REGULAR_FILE, "a parent of it is not a directory", "name a file"),
    errno.ENAMETOOLONG: (ReasonCode.PATH_ESCAPES_ROOT, "its name is too long", "choose a shorter name"),
}


def refusal(error: OSError, path: str) -> Refused:
    """What an error of the operating system means for `path`."""
    code, message, remedy = _REASONS.get(
        error.errno or 0,
        (ReasonCode.IO_ERROR, os.strerror(error.errno or errno.EIO).lower(), "look at the host's disk"),
    )
    return Refused(code, f"{show(path)}: {message}", remedy)


@contextmanager
def _reasons(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise refusal(error, path) from error


class ReadBack(Refused):
    """What was written, durably, is not what the file holds a moment later."""


class Workspace:
    """A participant's root. Paths are relative to it; all methods raise Refused with the reason."""

    def __init__(self, root: Path, *, follow_symlinks: bool = False) -> None:
        self.root = root
        self._follow = follow_symlinks

    def locate(self, path: str) -> str:
        """The path of the real file behind `path`; the other methods take this one.

        With `follow_symlinks`, links are read one by one, and none may leave the root. The other methods
        never cross a link, so a link that changes afterwards leads to a refusal, not elsewhere.
        """
        parts = segments(path)
        if not self._follow:
            return path
        real: list[str] = []
        todo, links = deque(parts), 0
        with _reasons(path), self._root() as root:
            while todo:
                name = todo.popleft()
                if name in ("", "."):
                    continue
                if name == "..":
                    if not real:
                        raise OSError(errno.EXDEV, path)
                    real.pop()
                    continue
                link = read_link(root, real, name)
                if link is None:
                    real.append(name)
                    continue
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, path)
                if link.startswith("/"):
                    raise OSError(errno.EXDEV, path)
                todo.extendleft(reversed(link.split("/")))
        if not real:
            raise refusal(OSError(errno.EISDIR, path), path)
        return "/".join(real)

    def read(self, real: str, *, limit: int) -> Snapshot | None:
        """The regular file at `real`, None where there is none; more than `limit` bytes are TOO_LARGE."""
        with _reasons(real), self._root() as root, open_regular(root, _parts(real)) as fd:
            if fd is None:
                return None
            found = os.fstat(fd)
            content = b""
            for chunk in _chunks(fd, found.st_size):
                content += chunk
                if len(content) > limit:
                    break
        if len(content) > limit:
            raise Refused(
                ReasonCode.TOO_LARGE,
                f"{show(real)}: what is there now has more than {limit} bytes, so it could not be put back",
                "raise `max_bytes` in agent.toml on the host",
            )
        return Snapshot(content=content, mode=stat.S_IMODE(found.st_mode), uid=found.st_uid, gid=found.st_gid)

    def digest(self, real: str) -> Digest | None:
        """Of the regular file at `real`, whatever its size; None where there is none."""
        found = self.look(real)
        return None if found is None else found[0]

    def look(self, real: str) -> tuple[Digest, os.stat_result] | None:
        """Digest and status of the regular file at `real`, whatever its size; None where there is none."""
        with _reasons(real), self._root() as root, open_regular(root, _parts(real)) as fd:
            if fd is None:
                return None
            found = os.fstat(fd)
            if found.st_size > MOST_LOOKED_AT:
                raise Refused(
                    ReasonCode.TOO_LARGE, f"{show(real)} has {found.st_size} bytes", "see what writes it"
                )
            return _digest_of(fd, size=found.st_size), found

    def examine(self, path: str) -> str:
        """The real file behind `path`, which this process could read, replace and give to its owner, or make.

        Writes nothing. Refused as `locate`, `read` and `stage` would, as far as can be told beforehand.
        """
        real = self.locate(path)
        parts = _parts(real)
        with _reasons(path), self._root() as root:
            depth, directory = deepest(root, parts[:-1])
            with closing(directory):
                found = None
                if depth == len(parts) - 1:
                    _check_replaceable(directory, parts[-1])
                    found = present(directory, parts[-1])
                if os.fstatvfs(directory).f_flag & os.ST_RDONLY:
                    raise OSError(errno.EROFS, path)
                if not os.access(".", os.W_OK | os.X_OK, dir_fd=directory):
                    raise OSError(errno.EACCES, path)
                owner = found or os.fstat(root)
                _check_ownable(directory, uid=owner.st_uid, gid=owner.st_gid)
        return real

    def fresh(self, content: bytes) -> Snapshot:
        """`content` with the default mode and the root's owner, for a target that does not exist."""
        with _reasons(str(self.root)), self._root() as root:
            owner = os.fstat(root)
        return Snapshot(content=content, mode=DEFAULT_MODE, uid=owner.st_uid, gid=owner.st_gid)

    def stage(self, real: str, snapshot: Snapshot, *, token: str) -> Staged:
        """`snapshot` is durable beside `real`, under a name made of the unique `token`.

        Refused where a swap could not succeed anyway (directory, device, mount point, immutable); a
        failure leaves no temporary file and no directory behind.
        """
        parts = _parts(real)
        temp_name = f"{TEMP_PREFIX}{token}.tmp"
        with _reasons(real), self._root() as root:
            depth, directory = deepest(root, parts[:-1])
            with closing(directory):
                is_there = depth == len(parts) - 1
                if is_there:
                    _check_replaceable(directory, parts[-1])
                acl = acl_of(directory, parts[-1]) if is_there else None
                _write_new(directory, temp_name, snapshot, acl=acl)
        return Staged(
            path=real,
            temp="/".join((*parts[:depth], temp_name)),
            digest=snapshot.digest,
            missing=tuple("/".join(parts[:end]) for end in range(depth + 1, len(parts))),
        )

    def is_staged(self, staged: Staged) -> bool:
        """The staged content is still there, whole."""
        try:
            return self.digest(staged.temp) == staged.digest
        except Refused:
            return False

    def swap(self, staged: Staged) -> None:
        """The staged content is the target file, durable and read back.

        After a failure the target is one whole version, old or new; which one, `digest` tells. The
        temporary file is gone in either case. Raises Refused, and ReadBack once the new one had been in place.
        """
        parts, temp = _parts(staged.path), _parts(staged.temp)
        try:
            with _reasons(staged.path), self._root() as root:
                for missing in staged.missing:
                    _make_directory(root, missing.split("/"))
                with (
                    closing(open_directory(root, parts[:-1])) as directory,
                    closing(open_directory(root, temp[:-1])) as source,
                ):
                    present(directory, parts[-1])
                    os.rename(temp[-1], parts[-1], src_dir_fd=source, dst_dir_fd=directory)
                    os.fsync(directory)
                    if staged.missing:
                        os.fsync(source)
        except Refused:
            self.discard(staged)
            raise
        if self.digest(staged.path) != staged.digest:
            raise ReadBack(
                ReasonCode.IO_ERROR,
                f"{show(staged.path)}: what was read back is not what was written",
                "something else writes this file, or the disk fails; look at the host",
            )

    def discard(self, staged: Staged) -> None:
        """The temporary file is gone, where that is possible; never raises."""
        temp = _parts(staged.temp)
        with (
            suppress(OSError, Refused),
            self._root() as root,
            closing(open_directory(root, temp[:-1])) as directory,
        ):
            os.unlink(temp[-1], dir_fd=directory)

    def remove(self, real: str, *, made: tuple[str, ...]) -> None:
        """There is no file at `real`, durably; directories in `made` are gone too where they are empty."""
        parts = _parts(real)
        with _reasons(real), self._root() as root:
            try:
                directory = open_directory(root, parts[:-1])
            except FileNotFoundError:
                pass
            else:
                with closing(directory):
                    if present(directory, parts[-1]) is not None:
                        os.unlink(parts[-1], dir_fd=directory)
                        os.fsync(directory)
        self.remove_directories(made)

    def remove_directories(self, made: tuple[str, ...]) -> None:
        """The directories are gone, innermost first, up to one that is not empty."""
        with _reasons("/".join(made[-1:])), self._root() as root:
            for path in sorted(made, key=len, reverse=True):
                if not _remove_directory(root, path.split("/")):
                    break

    def targets(self, globs: tuple[str, ...]) -> list[str]:
        """Every entry that a glob describes, at this moment."""
        found = []
        with self._root() as root:
            for directory in self._directories(root, globs):
                with (
                    suppress(OSError),
                    closing(open_directory(root, directory)) as fd,
                    os.scandir(fd) as entries,
                ):
                    paths = [(*directory, entry.name) for entry in entries]
                    found += ["/".join(path) for path in paths if any(matches(glob, path) for glob in globs)]
        return found

    def sweep(self, globs: tuple[str, ...]) -> int:
        """Temporary files that an interrupted agent left are gone; returns how many there were.

        Looks into the directories that `globs` can lead to, and those that a followed link leads to.
        """
        swept = 0
        with suppress(OSError, Refused), self._root() as root:
            directories = self._directories(root, globs)
            if self._follow:
                directories |= self._behind_links(root, directories)
            for directory in directories:
                swept += sweep(root, directory)
        return swept

    def _directories(self, root: int, globs: tuple[str, ...]) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()
        for glob in globs:
            names = glob.split("/")
            reachable(root, (), names if names[-1] == "**" else names[:-1], found)
        return found

    def _behind_links(self, root: int, directories: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()
        for directory in directories:
            with (
                suppress(OSError),
                closing(open_directory(root, directory)) as fd,
                os.scandir(fd) as entries,
            ):
                for entry in entries:
                    if entry.is_symlink():
                        with suppress(Refused):
                            found.add(tuple(self.locate("/".join((*directory, entry.name))).split("/")[:-1]))
        return found

    @contextmanager
    def _root(self) -> Iterator[int]:
        try:
            fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Refused(
                refusal(error, "").reason.code,
                f"the participant's root {show(str(self.root))}: {os.strerror(error.errno or errno.EIO).lower()}",
                "make the directory, or correct `root` in agent.toml on the host",
            ) from error
        with closing(fd):
            yield fd


def _parts(real: str) -> tuple[str, ...]:
    parts = tuple(real.split("/"))
    if not set(parts).isdisjoint(("", ".", "..")):
        raise refusal(OSError(errno.EXDEV, real), real)
    return parts


def _chunks(fd: int, size: int) -> Iterator[bytes]:
    """What the file holds to its end; in one piece and one call, where it is small and has this size."""
    left = size + 1  # more than there should be: what comes short of it is the end
    while chunk := os.read(fd, asked := min(left, _CHUNK)):
        yield chunk
        left -= len(chunk)
        if left == 1 and len(chunk) < asked:
            return
        left = left or _CHUNK  # it has grown meanwhile


def _digest_of(fd: int, *, size: int) -> Digest:
    running = hashlib.sha256()
    for chunk in _chunks(fd, size):
        running.update(chunk)
    return running.digest()


# -- writing -----------------------------------------------------------------------------------------


def _check_replaceable(directory: int, name: str) -> None:
    """Raises what a rename over `name` would raise, as far as can be told before."""
    _refuse_attributes(directory)
    if present(directory, name) is None:
        return
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
    with OWN.reading(directory, name), closing(os.open(name, flags, dir_fd=directory)) as fd:
        _refuse_attributes(fd)
    if is_mount_point(directory, name):  # where this cannot be told, the rename itself will
        raise OSError(errno.EBUSY, name)


def _refuse_attributes(fd: int) -> None:
    try:
        answer = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))
    except OSError:
        return  # this file system has no such attributes
    if struct.unpack_from("i", answer)[0] & _IMMUTABLE_OR_APPEND_ONLY:
        raise OSError(errno.EPERM, "immutable")


def _write_new(directory: int, name: str, snapshot: Snapshot, *, acl: bytes | None = None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        with closing(fd):
            left = memoryview(snapshot.content)
            while left:
                left = left[os.write(fd, left) :]
            _own(fd, uid=snapshot.uid, gid=snapshot.gid)
            if acl is not None:
                os.setxattr(fd, ACL, acl)
            os.fchmod(fd, snapshot.mode)  # after the owner: a change of owner clears set-id bits
            # Once: after a failure the kernel drops the dirty pages and the next fsync would lie.
            os.fsync(fd)
    except BaseException:
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)
        raise


def _own(fd: int, *, uid: int, gid: int) -> None:
    found = os.fstat(fd)
    if (found.st_uid, found.st_gid) == (uid, gid):
        return
    try:
        os.fchown(fd, uid, gid)
    except PermissionError:
        raise _not_ownable(uid=uid, gid=gid) from None


def _check_ownable(directory: int, *, uid: int, gid: int) -> None:
    """Raises what `_own` would of a file made in the directory."""
    at = os.fstat(directory)
    groups = {os.getegid(), *os.getgroups(), *({at.st_gid} if at.st_mode & stat.S_ISGID else ())}
    if os.geteuid() != 0 and (uid != os.geteuid() or gid not in groups):
        raise _not_ownable(uid=uid, gid=gid)


def _not_ownable(*, uid: int, gid: int) -> Refused:
    return Refused(
        ReasonCode.PERMISSION_DENIED,
        f"the agent may not give a file to its owner (uid {uid}, gid {gid})",
        "run the agent as root, or as the owner of the target files",
    )


def _make_directory(root: int, parts: list[str]) -> None:
    owner = os.fstat(root)
    with closing(open_directory(root, parts[:-1])) as parent:
        with suppress(FileExistsError):
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
            with closing(open_directory(root, parts)) as made:
                _own(made, uid=owner.st_uid, gid=owner.st_gid)
                os.fchmod(made, DIRECTORY_MODE)
                os.fsync(made)
        os.fsync(parent)


def _remove_directory(root: int, parts: list[str]) -> bool:
    try:
        with closing(open_directory(root, parts[:-1])) as parent:
            os.rmdir(parts[-1], dir_fd=parent)
            os.fsync(parent)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    return True
