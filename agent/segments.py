"""How a spool's records lie in a file: frames that survive the loss of their neighbours.

Hides the byte format, the search for the next intact frame behind damage, and disks that give only a part of
a file. A frame is a marker, the payload's length, a CRC32C, the record's sequence number and the payload; the
CRC covers length, sequence and payload. The sequence is what makes a loss exact: the next intact frame says
how many are missing. The marker holds bytes that UTF-8 never has, so text in a payload cannot be taken for a
frame.
"""

import errno
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

MARKER = b"\xf5vr\xf5"
MAX_PAYLOAD = 256 * 1024
VERSION = 1
SUFFIX = f".v{VERSION}.segment"  # the version is in the name, where no flipped bit can turn it into another
MAX_BAD_PAGES = 16
"""After so many pages of a file that the disk does not give, the rest is given up: each may take it seconds."""

_NAME = re.compile(r"([0-9a-f]{32})-([0-9]{20})\.v([1-9][0-9]{0,8})\.segment")
_PAGE = 4096
_HEADER = struct.Struct("<4sIIQ")
_COVERED = struct.Struct("<IQ")
FRAME_OVERHEAD = _HEADER.size

_LASTING = {
    errno.EIO,
    errno.EUCLEAN,
    errno.EBADMSG,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENXIO,
}
"""Asking again does not help; anything else, such as no free descriptor, passes."""


class Unreadable(Exception):
    """The disk does not give the file, or it is no file at all."""


@dataclass(frozen=True, slots=True)
class Frame:
    """An intact frame: its record and the offset just behind it."""

    seq: int
    payload: bytes
    end: int


@dataclass(frozen=True, slots=True)
class SegmentName:
    """What the name of a segment's file says."""

    epoch: bytes
    first_seq: int
    version: int


def segment_name(epoch: bytes, first_seq: int) -> str:
    """The file name of a segment; names sort by epoch, then by sequence."""
    return f"{epoch.hex()}-{first_seq:020d}{SUFFIX}"


def parse_segment_name(name: str) -> SegmentName | None:
    """What a segment's file name says; None for another file."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return SegmentName(bytes.fromhex(found[1]), int(found[2]), int(found[3]))


def to_frame(seq: int, payload: bytes) -> bytes:
    """The bytes of one record on disk."""
    return _HEADER.pack(MARKER, len(payload), _crc(seq, payload), seq) + payload


def frames(data: bytes) -> Iterator[Frame]:
    """Every intact frame in order, whatever lies between them; gaps show as jumps of `seq`."""
    at = 0
    while at >= 0:
        frame = _frame_at(data, at)
        if frame is None:
            at = data.find(MARKER, at + 1)
        else:
            yield frame
            at = frame.end


def records_in(damaged: bytes) -> int:
    """How many records bytes without an intact frame stand for, as far as their markers tell."""
    if not damaged:
        return 0
    return max(1, damaged.count(MARKER) + (not damaged.startswith(MARKER)))


def is_torn(damaged: bytes) -> bool:
    """Whether the bytes end before the frame they begin: a write that did not finish."""
    if len(damaged) < _HEADER.size:
        return True
    marker, length, _, _ = _HEADER.unpack_from(damaged)
    return bool(marker != MARKER or _HEADER.size + length > len(damaged))


def _frame_at(data: bytes, at: int) -> Frame | None:
    if len(data) - at < _HEADER.size:
        return None
    marker, length, crc, seq = _HEADER.unpack_from(data, at)
    end = at + _HEADER.size + length
    if marker != MARKER or length > MAX_PAYLOAD or end > len(data):
        return None
    payload = data[at + _HEADER.size : end]
    return Frame(seq, payload, end) if _crc(seq, payload) == crc else None


def _crc(seq: int, payload: bytes) -> int:
    return int(google_crc32c.value(_COVERED.pack(len(payload), seq) + payload))


# -- files -------------------------------------------------------------------------------------------


def read_from(path: Path, start: int) -> tuple[bytes, bool]:
    """(what the file holds from `start` on, whether that is all the disk gives); nothing where there is no file.

    Where the disk refuses a part, zeros stand for it. Raises Unreadable where it gives nothing, OSError where
    asking again may help. Neither waits for a FIFO nor follows a link.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return b"", True
    except OSError as error:
        raise _lasting(error) from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable("it is no regular file")
        try:
            return _read(fd, start, max(0, found.st_size - start)), True
        except OSError as error:
            refused = _lasting(error)
        return _salvaged(fd, start, found.st_size, refused), False
    finally:
        os.close(fd)


def _lasting(error: OSError) -> Unreadable:
    if error.errno not in _LASTING:
        raise error
    return Unreadable(error.strerror)


def _read(fd: int, start: int, size: int) -> bytes:
    parts = []
    while size > 0:
        part = os.pread(fd, size, start)
        if not part:
            break
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return b"".join(parts)


def _salvaged(fd: int, start: int, end: int, refused: Unreadable) -> bytes:
    """Page by page what can be read, zeros for the rest."""
    found, bad, good = bytearray(), 0, 0
    while start < end and bad < MAX_BAD_PAGES:
        size = min(end, (start // _PAGE + 1) * _PAGE) - start
        try:
            part = _read(fd, start, size)
            good += 1
        except OSError:
            part, bad = b"", bad + 1
        found += part.ljust(size, b"\0")
        start += size
    if not good:
        raise refused
    return bytes(found) + bytes(end - start)
