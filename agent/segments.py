"""How a spool lies on disk: frames that survive the loss of their neighbours, epochs, the cursor.

Hides the byte format, the search for the next intact frame behind damage, and what stands in the place of
a record that is gone. A frame is a marker, the payload's length, a CRC32C, the record's sequence number and
the payload; the CRC covers length, sequence and payload. The sequence is what makes a loss exact: the next
intact frame says how many are missing. The marker holds bytes that UTF-8 never has, so text in a payload
cannot be taken for a frame.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c

from agent.durable import sync_directory
from shared import logs, wire
from shared.model import CHAIN_START, Loss, Record

_log = logs.get(__name__)

MARKER = b"\xf5vr\xf5"
MAX_PAYLOAD = 256 * 1024
SUFFIX = ".v1.segment"  # the version is in the name, where no flipped bit can turn it into another

_HEADER = struct.Struct("<4sIIQ")
_COVERED = struct.Struct("<IQ")
FRAME_OVERHEAD = _HEADER.size


@dataclass(frozen=True, slots=True)
class Frame:
    """An intact frame: its record and the offset just behind it."""

    seq: int
    payload: bytes
    end: int


def segment_name(epoch: bytes, first_seq: int) -> str:
    """The file name of a segment; names sort by epoch, then by sequence."""
    return f"{epoch.hex()}-{first_seq:020d}{SUFFIX}"


def parse_segment_name(name: str) -> tuple[bytes, int] | None:
    """(epoch, first sequence) of a segment's file name; None for a foreign file."""
    epoch, _, seq = name.removesuffix(SUFFIX).partition("-")
    if not name.endswith(SUFFIX) or len(epoch) != 32 or len(seq) != 20 or not seq.isdecimal():
        return None
    try:
        return bytes.fromhex(epoch), int(seq)
    except ValueError:
        return None


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


# -- epochs ------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Segment:
    """A file of an epoch; it ends where the next one begins, whatever else lies in it."""

    first_seq: int
    path: Path
    size: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """One record as it is sent, and where reading goes on behind it."""

    seq: int
    raw: bytes
    resume: tuple[int, int]
    lost: str = ""  # why the original is gone, where this is its replacement


@dataclass(slots=True, kw_only=True)
class Epoch:
    """The records of one start of the daemon: `acked` and `tail` are sequences, `chain` is after `acked`."""

    id: bytes
    segments: list[Segment] = field(default_factory=list)
    tail: int = 0
    acked: int = 0
    chain: bytes = CHAIN_START
    resume: tuple[int, int] = (0, 0)  # (segment's first sequence, offset) behind `acked`, where known

    def items(self) -> Iterator[Item]:
        """What is unacknowledged, in order, without a gap: a declared loss stands for a record that is gone."""
        expected, resume = self.acked + 1, self.resume
        for index, segment in enumerate(self.segments):
            is_last = index == len(self.segments) - 1
            until = self.tail if is_last else self.segments[index + 1].first_seq - 1
            if until < expected:
                continue
            yield from self._losses(range(expected, segment.first_seq), "missing_segment", resume)
            expected = max(expected, segment.first_seq)
            start = self.resume[1] if self.resume[0] == segment.first_seq else 0
            data = _read(segment.path, start)
            end = 0
            for frame in frames(data):
                if frame.seq > until:
                    break
                end = frame.end
                if frame.seq < expected:
                    continue
                yield from self._losses(range(expected, frame.seq), "corrupt", resume)
                resume = (segment.first_seq, start + end)
                yield Item(frame.seq, frame.payload, resume)
                expected = frame.seq + 1
            rest = data[end:]
            cause = ("torn" if is_last and is_torn(rest) else "corrupt") if rest else "missing_segment"
            yield from self._losses(range(expected, until + 1), cause, resume)
            expected = until + 1
        yield from self._losses(range(expected, self.tail + 1), "missing_segment", resume)

    def _losses(self, gone: range, reason: str, resume: tuple[int, int]) -> Iterator[Item]:
        """One declared loss in the place of each record that is gone, the same bytes every time."""
        for seq in gone:
            identity = hashlib.sha256(b"variantd loss" + self.id + seq.to_bytes(8, "big")).digest()[:16]
            moment = int.from_bytes(self.id[:6], "big") * 1000  # when the epoch began: its id is a UUIDv7
            body = Loss(reason=reason, count=1, epoch=self.id, first_seq=seq)
            raw = wire.record_to_bytes(Record(id=identity, recorded_at=moment, body=body))
            yield Item(seq, raw, resume, reason)


def find_epochs(directory: Path, cursor: "Cursor") -> list[Epoch]:
    """The epochs whose segments lie in `directory`, the oldest first; only their last segments are read."""
    epochs: dict[bytes, Epoch] = {}
    for path in sorted(directory.iterdir()):
        named = parse_segment_name(path.name)
        if named is not None:
            epoch = epochs.setdefault(named[0], Epoch(id=named[0]))
            epoch.segments.append(Segment(first_seq=named[1], path=path, size=path.stat().st_size))
        elif not path.name.startswith(CURSOR):
            _log.warning("spool.foreign_file", name=path.name)
    for epoch in epochs.values():
        last = epoch.segments[-1]
        data = _read(last.path, 0)
        end, epoch.tail = 0, last.first_seq - 1
        for frame in frames(data):
            end, epoch.tail = frame.end, max(epoch.tail, frame.seq)
        epoch.tail += records_in(data[end:])
        epoch.acked, epoch.chain = cursor.positions.get(epoch.id, (0, CHAIN_START))
        if cursor.damaged and epoch.acked + 1 < epoch.segments[0].first_seq:
            # Acknowledged and deleted, but the chain to go on with is gone: the control plane will say the
            # epoch diverged, and drops what is sent again under a new one by record id.
            epoch.acked = epoch.segments[0].first_seq - 1
        epoch.tail = max(epoch.tail, epoch.acked)
    return sorted(epochs.values(), key=lambda epoch: epoch.id)


def _read(path: Path, start: int) -> bytes:
    """What the file holds from `start` on; nothing where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read()
    except FileNotFoundError:
        return b""


# -- cursor ------------------------------------------------------------------------------------------

CURSOR = "cursor"
_BLOCK = 4096


class Cursor:
    """What is acknowledged of each epoch, and what was declared lost, durably.

    Two files are overwritten in turn, in place: a write that is cut short leaves the other one, and a full
    disk does not stop the spool from getting empty. `damaged`: one of them cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.positions: dict[bytes, tuple[int, bytes]] = {}
        self.lost: dict[str, int] = {}
        self.damaged = False
        self._paths = (directory / f"{CURSOR}.0", directory / f"{CURSOR}.1")
        self._generation = 0
        for path in self._paths:
            self._load(path)
        for path in self._paths:
            if not path.exists():
                path.write_bytes(bytes(_BLOCK))
                path.chmod(0o600)
        sync_directory(directory)

    def _load(self, path: Path) -> None:
        data = _read(path, 0).rstrip(b"\0")
        if not data:
            return
        crc, _, text = data.partition(b" ")
        try:
            if int(crc, 16) != google_crc32c.value(text):
                raise ValueError("CRC mismatch")
            stored = json.loads(text)
            positions = {
                bytes.fromhex(epoch): (int(seq), bytes.fromhex(value))
                for epoch, (seq, value) in stored["epochs"].items()
            }
            lost = {str(reason): int(count) for reason, count in stored["lost"].items()}
            generation = int(stored["generation"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            _log.error("spool.cursor_damaged", file=path.name, error=str(error))
            self.damaged = True
            return
        if generation > self._generation:
            self._generation, self.positions, self.lost = generation, positions, lost

    def save(self, epochs: Iterable[Epoch], lost: dict[str, int]) -> None:
        """The positions of `epochs` and the counts of `lost` are durable."""
        generation = self._generation + 1
        stored = {
            "generation": generation,
            "epochs": {epoch.id.hex(): (epoch.acked, epoch.chain.hex()) for epoch in epochs},
            "lost": lost,
        }
        text = json.dumps(stored).encode()
        data = b"%08x %s" % (google_crc32c.value(text), text)
        data += bytes(-len(data) % _BLOCK)
        with self._paths[generation % 2].open("r+b") as file:
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._generation = generation
        self.positions = {epoch.id: (epoch.acked, epoch.chain) for epoch in epochs}
        self.lost = dict(lost)
