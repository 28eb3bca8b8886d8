"""What a spool knows beside its segments: how far it is acknowledged, what it dropped, where it ends.

Hides files that are only ever overwritten in place, in space taken when they were made: a full disk does not
stop the accounts. Everything is there twice, so one bad page, flipped bit or write cut short costs nothing.
"""

import json
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c

from agent.durable import sync_directory
from shared import logs
from shared.model import CHAIN_START

_log = logs.get(__name__)

CURSOR = "cursor"
MARK_SUFFIX = ".tail"
RESERVED = 16 * 1024
"""Bytes that each of the cursor's files has taken from the start; some hundred positions."""

_PAGE = 4096
_SLOT = struct.Struct("<4sQI")
_MAGIC = b"tail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How an epoch stands: `acked` is a sequence in its files, `chain` the hash after it.

    It is sent as the epoch `sent_as`, in which the record behind `base` has sequence 1.
    """

    acked: int
    chain: bytes
    sent_as: bytes
    base: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Everything the cursor keeps; epochs are those in the names of files.

    `drops` counts, by epoch and sequence, reports that a full spool took the place of; `lost` what was declared
    lost and acknowledged as such, by reason; `dropped` all drops there ever were.
    """

    positions: Mapping[bytes, Position] = field(default_factory=dict)
    drops: Mapping[tuple[bytes, int], int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    dropped: int = 0


class Cursor:
    """An `Account`, durably, in two files that are overwritten in turn.

    `damaged`: one of them is gone or cannot be read, so what is known may be older than what was.
    """

    def __init__(self, directory: Path) -> None:
        self.account = Account()
        self.damaged = False
        self._paths = (directory / f"{CURSOR}.0", directory / f"{CURSOR}.1")
        self._generation = 0
        fresh = not any(directory.iterdir())
        for path in self._paths:
            if not self._load(path) and not fresh:
                _log.error("spool.cursor_damaged", file=path.name)
                self.damaged = True
        missing = [path for path in self._paths if not path.exists()]
        if missing:
            for path in missing:
                path.write_bytes(bytes(RESERVED))
                path.chmod(0o600)
            sync_directory(directory)
            self.save(self.account, twice=True)

    def _load(self, path: Path) -> bool:
        """Whether the file could be read; what it says counts where it is the newer one."""
        try:
            crc, length, rest = path.read_bytes().split(b" ", 2)
            text = rest[: int(length)]
            if int(crc, 16) != google_crc32c.value(text):
                return False
            stored = json.loads(text)
            account, generation = _account_from(stored), int(stored["generation"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        if generation > self._generation:
            self._generation, self.account = generation, account
        return True

    def save(self, account: Account, *, twice: bool = False) -> None:
        """`account` is durable; `twice`: in both files. Raises OSError, and then the older one still counts."""
        for _ in range(2 if twice else 1):
            generation = self._generation + 1
            text = json.dumps({"generation": generation, **_account_to(account)}).encode()
            data = b"%08x %d %s" % (google_crc32c.value(text), len(text), text)
            # After a failed sync the same file is written anew from memory, whole; the other one is not touched.
            fd = os.open(self._paths[generation % 2], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb", buffering=0) as file:
                write_all(fd, data)
                os.fsync(file.fileno())
            self._generation, self.account = generation, account


def write_all(fd: int, data: bytes) -> None:
    """All of `data` is written. Raises OSError, having written any part of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _account_to(account: Account) -> dict[str, object]:
    return {
        "epochs": {
            epoch.hex(): (at.acked, at.chain.hex(), at.sent_as.hex(), at.base)
            for epoch, at in account.positions.items()
        },
        "drops": [(epoch.hex(), seq, count) for (epoch, seq), count in account.drops.items()],
        "lost": dict(account.lost),
        "dropped": account.dropped,
    }


def _account_from(stored: Mapping[str, object]) -> Account:
    epochs, drops, lost = stored["epochs"], stored.get("drops", []), stored["lost"]
    if not isinstance(epochs, dict) or not isinstance(drops, list) or not isinstance(lost, dict):
        raise TypeError
    positions = {}
    for epoch, (acked, chain, *sent) in epochs.items():
        sent_as, base = sent or (epoch, 0)
        positions[bytes.fromhex(epoch)] = Position(
            acked=int(acked), chain=bytes.fromhex(chain), sent_as=bytes.fromhex(sent_as), base=int(base)
        )
    return Account(
        positions=positions,
        drops={(bytes.fromhex(epoch), int(seq)): int(count) for epoch, seq, count in drops},
        lost={str(reason): int(count) for reason, count in lost.items()},
        dropped=int(str(stored.get("dropped", 0))),
    )


def start_of(epoch: bytes) -> Position:
    """How an epoch stands of which nothing is acknowledged."""
    return Position(acked=0, chain=CHAIN_START, sent_as=epoch)


class Mark:
    """How far the present epoch is durable, written after each sync and before anybody is answered.

    Not synced itself: a killed process leaves it exact, and after a power cut it may say less than what is
    there, never more. So bytes behind it that are no whole record were never answered for, and what it
    tells of and is not there was.
    """

    def __init__(self, directory: Path, epoch: bytes) -> None:
        """A mark at 0, with its space. Raises OSError, and then there is no file."""
        self.path, self._epoch = mark_path(directory, epoch), epoch
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._write(0)
            os.fsync(self._fd)
        except OSError:
            self.remove()
            raise

    def move(self, seq: int) -> None:
        """The epoch is durable through `seq`."""
        try:
            self._write(seq)
        except OSError as error:
            # One that stayed behind would pass over what it does not tell of; without one, damage at the tail
            # is declared whether or not anybody was answered.
            _log.error("spool.mark_unwritable", error=error.strerror)
            self.remove()

    def _write(self, seq: int) -> None:
        slot = _slot(self._epoch, seq)
        if self._fd >= 0:
            os.pwrite(self._fd, slot, 0)
            os.pwrite(self._fd, slot, _PAGE)

    def remove(self) -> None:
        """There is no mark any more."""
        self.close()
        with suppress(OSError):
            self.path.unlink()

    def close(self) -> None:
        """The file stays. Repeating it changes nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def mark_path(directory: Path, epoch: bytes) -> Path:
    """Where the mark of an epoch is."""
    return directory / f"{epoch.hex()}{MARK_SUFFIX}"


def parse_mark_name(name: str) -> bytes | None:
    """The epoch of a mark's file name; None for another file."""
    epoch = name.removesuffix(MARK_SUFFIX)
    if epoch == name or len(epoch) != 32:
        return None
    try:
        return bytes.fromhex(epoch)
    except ValueError:
        return None


def read_mark(directory: Path, epoch: bytes) -> int | None:
    """Through which sequence the epoch was durable, at least; None where the mark is gone or cannot be read."""
    try:
        data = mark_path(directory, epoch).read_bytes()
    except OSError:
        return None
    found = []
    for at in (0, _PAGE):
        slot = data[at : at + _SLOT.size]
        if len(slot) == _SLOT.size:
            seq = _SLOT.unpack(slot)[1]
            found += [seq] if slot == _slot(epoch, seq) else []
    return max(found, default=None)


def _slot(epoch: bytes, seq: int) -> bytes:
    return _SLOT.pack(_MAGIC, seq, google_crc32c.value(epoch + seq.to_bytes(8, "big")))
