"""Opens what lies beneath a directory without ever crossing a symbolic link.

Hides `openat2`, which the standard library does not offer, and the walk of `O_NOFOLLOW` steps that stands in
for it where the kernel or a sandbox lacks it. Paths come as tuples of plain names; errors are OSError: ELOOP
for a link, EXDEV for a way out. Everything here blocks.
"""

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

_SYS_OPENAT2 = 437  # the same number on every architecture
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_EAGAIN_TRIES = 128

_libc = ctypes.CDLL(None, use_errno=True)


Key = tuple[int, int, str]
"""A name in a directory: device and inode of the directory, and the name."""


class Reading:
    """One time that this process opened a file to read it."""

    def __init__(self, key: Key) -> None:
        self.key, self.is_over = key, False


class OwnReads:
    """Which opens of watched names were this process's own; safe from any thread.

    The kernel does not say who opened a file, so who counts others' opens takes these out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: frozenset[Key] = frozenset()
        self._readings: list[Reading] = []

    def watch(self, keys: Iterable[Key]) -> None:
        """Readings of exactly these names are remembered from now on."""
        with self._lock:
            self._watched = frozenset(keys)
            self._readings = [reading for reading in self._readings if reading.key in self._watched]

    @contextmanager
    def reading(self, directory: int, name: str) -> Iterator[None]:
        """The file of that name is opened and closed within."""
        if not self._watched:
            yield
            return
        status = os.fstat(directory)
        reading = Reading((status.st_dev, status.st_ino, name))
        with self._lock:
            if reading.key in self._watched:
                self._readings.append(reading)
        try:
            yield
        finally:
            reading.is_over = True

    def consume(self, key: Key) -> Reading | None:
        """A reading of that name that was ours, which is taken as told; None where there is none."""
        with self._lock:
            for index, reading in enumerate(self._readings):
                if reading.key == key:
                    return self._readings.pop(index)
        return None

    def over(self) -> list[Reading]:
        """Readings that have ended, so that the kernel has said of them whatever it will say."""
        with self._lock:
            return [reading for reading in self._readings if reading.is_over]

    def forget(self, readings: Iterable[Reading]) -> None:
        """Nothing more will be told of these: the kernel said one notice for several of them."""
        gone = set(map(id, readings))
        with self._lock:
            self._readings = [reading for reading in self._readings if id(reading) not in gone]


OWN = OwnReads()
"""Of the whole process, as opens are."""


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """The descriptor, closed at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def _openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    number = errno.EAGAIN
    # A rename elsewhere on the path makes the kernel give up; it means "again".
    for _ in range(_EAGAIN_TRIES):
        fd: int = _libc.syscall(
            _SYS_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
        )
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number), path)


def open_directory(root: int, parts: Sequence[str]) -> int:
    """A descriptor of a directory beneath `root`, reached without crossing a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    if not parts:
        return os.open(".", flags | os.O_CLOEXEC, dir_fd=root)
    try:
        return _openat2(root, "/".join(parts), flags, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS)
    except OSError as error:
        # ENOSYS: an old kernel; EPERM: a sandbox that answers so for system calls it does not know.
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    fd = os.dup(root)
    for name in parts:
        try:
            following = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        except NotADirectoryError:
            # Linux says so of a link too where a directory was asked for.
            is_link = stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
            raise OSError(errno.ELOOP if is_link else errno.ENOTDIR, name) from None
        finally:
            os.close(fd)
        fd = following
    return fd


def deepest(root: int, parts: tuple[str, ...]) -> tuple[int, int]:
    """How many of `parts` exist as directories, and a descriptor of the last one that does."""
    for depth in range(len(parts), 0, -1):
        with suppress(FileNotFoundError):
            return depth, open_directory(root, parts[:depth])
    return 0, open_directory(root, ())


def read_link(root: int, directory: list[str], name: str) -> str | None:
    """Where the link leads; None where there is no link, or nothing, of that name."""
    try:
        with closing(open_directory(root, directory)) as fd:
            return os.readlink(name, dir_fd=fd)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            return None
        raise


def present(directory: int, name: str) -> os.stat_result | None:
    """The regular file of that name, None where there is none.

    Raises OSError for anything else: ELOOP a link, EISDIR a directory, ENXIO a FIFO, socket or device.
    """
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISREG(found.st_mode):
        return found
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, name)
    if stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EISDIR, name)
    raise OSError(errno.ENXIO, name)


ACL = "system.posix_acl_access"


def acl_of(directory: int, name: str) -> bytes | None:
    """The access list of the file of that name, where it has one: without it, its mode says something else."""
    if present(directory, name) is None:
        return None
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
    with OWN.reading(directory, name), closing(os.open(name, flags, dir_fd=directory)) as fd:
        try:
            return os.getxattr(fd, ACL)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ENOTSUP):
                return None
            raise


@contextmanager
def open_regular(root: int, parts: Sequence[str]) -> Iterator[int | None]:
    """A descriptor of the regular file there, None where there is none; never blocks."""
    try:
        directory = open_directory(root, parts[:-1])
    except FileNotFoundError:
        yield None
        return
    with closing(directory):
        if present(directory, parts[-1]) is None:
            yield None
            return
        # What was a file a moment ago may be a FIFO now: O_NONBLOCK does not wait for its writer.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
        with OWN.reading(directory, parts[-1]), closing(os.open(parts[-1], flags, dir_fd=directory)) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.ENXIO, parts[-1])
            yield fd


def is_mount_point(directory: int, name: str) -> bool:
    """Something is mounted on `name`; False too where the kernel cannot tell."""
    try:
        os.close(_openat2(directory, name, os.O_PATH | os.O_NOFOLLOW, _NO_XDEV))
    except OSError as error:
        return error.errno == errno.EXDEV
    return False
