"""Who this host is to the control plane, and what of its sessions outlives the process.

Hides the layout of the state directory: `identity/` (0600 key, certificate, authorities, addresses,
incarnation) is replaced as a whole, so key and certificate always belong together, and everything is
durable before it counts; a candidate lies beside it until it is committed or another takes its place.
Imports no `cryptography`: a daemon at rest does without.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from ssl import PEM_cert_to_DER_cert

from agent.durable import sync_directory, write_durably
from shared.errors import FailedPrecondition, PermissionDenied
from shared.moment import SECOND

_END = "-----END CERTIFICATE-----"
_LIFE = 30 * 86_400 * SECOND  # of certificates stored by versions that did not note their beginning


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What enrollment gave this host; key and certificates in PEM, moments in microseconds.

    `addresses` are where agents connect, `operators` where the host enrolled; none: a version that did not
    note them stored the identity.
    """

    uid: str
    key: bytes
    certificate: bytes
    ca: bytes
    addresses: tuple[str, ...]
    incarnation: bytes
    not_before: int
    not_after: int
    operators: tuple[str, ...] = ()

    @property
    def authorities(self) -> list[bytes]:
        """The certificate authorities in DER."""
        blocks = self.ca.decode().split(_END)[:-1]
        return [PEM_cert_to_DER_cert(block.strip() + "\n" + _END + "\n") for block in blocks]


@contextmanager
def hold(state_dir: Path) -> Iterator[None]:
    """The state directory exists, is private (0700), and is this process's alone meanwhile.

    Raises FailedPrecondition where another process has it, PermissionDenied where it cannot be used.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if state_dir.stat().st_mode & 0o077:
            state_dir.chmod(0o700)
        fd = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PermissionDenied(
            f"{state_dir}: {error.strerror}; `--state-dir` names a directory this user may write to"
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise FailedPrecondition(
            f"another variant-agent is running on {state_dir}; stop it first, or use another --state-dir",
            reason="STATE_DIR_IN_USE",
        ) from None
    try:
        yield
    finally:
        os.close(fd)


def load(state_dir: Path) -> Identity | None:
    """The identity in the state directory; None where the host never enrolled.

    Raises FailedPrecondition where it is there and cannot be read.
    """
    directory, _, _ = _places(state_dir)
    _mend(state_dir)
    if not directory.exists():
        return None
    try:
        addresses = json.loads((directory / "addresses.json").read_text())
        about = json.loads((directory / "about.json").read_text())
        return Identity(
            uid=str(about["uid"]),
            key=(directory / "key.pem").read_bytes(),
            certificate=(directory / "certificate.pem").read_bytes(),
            ca=(directory / "ca.pem").read_bytes(),
            addresses=tuple(map(str, addresses["agents"])),
            incarnation=bytes.fromhex((directory / "incarnation").read_text().strip()),
            not_before=int(about.get("notBefore", int(about["notAfter"]) - _LIFE)),
            not_after=int(about["notAfter"]),
            operators=tuple(map(str, addresses.get("operators", ()))),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FailedPrecondition(
            f"{directory} cannot be read ({error}); restore it, or remove it and enroll again with a new token",
            reason="IDENTITY_DAMAGED",
        ) from None


def store(state_dir: Path, identity: Identity) -> None:
    """`identity` is durable and replaces the one before as a whole."""
    stage(state_dir, identity)
    commit(state_dir)


def stage(state_dir: Path, identity: Identity) -> None:
    """`identity` is durable beside the present one, which stays; a candidate staged before is gone."""
    _, old, new = _places(state_dir)
    _mend(state_dir)
    for leftover in (old, new):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(mode=0o700)
    write_durably(new / "key.pem", identity.key)
    write_durably(new / "certificate.pem", identity.certificate)
    write_durably(new / "ca.pem", identity.ca)
    addresses = {"agents": identity.addresses, "operators": identity.operators}
    write_durably(new / "addresses.json", json.dumps(addresses).encode())
    write_durably(new / "incarnation", identity.incarnation.hex().encode())
    about = {"uid": identity.uid, "notBefore": identity.not_before, "notAfter": identity.not_after}
    write_durably(new / "about.json", json.dumps(about).encode())
    sync_directory(state_dir)


def commit(state_dir: Path) -> None:
    """What was staged last is the identity; a process that ends meanwhile leaves the one or the other."""
    directory, old, new = _places(state_dir)
    with suppress(FileNotFoundError):
        directory.rename(old)
    new.rename(directory)
    sync_directory(state_dir)
    shutil.rmtree(old, ignore_errors=True)


def adopt(state_dir: Path, incarnation: bytes) -> None:
    """The identity follows another incarnation of the control plane's database, durably."""
    write_durably(state_dir / "identity" / "incarnation", incarnation.hex().encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """`epoch`: sessions this directory has opened; `attempt`: failures since the last that lasted."""

    epoch: int = 0
    attempt: int = 0


def load_session_state(state_dir: Path, *, now: int) -> SessionState:
    """What is known of earlier sessions. A damaged file gives an epoch above any that was ever used."""
    try:
        stored = json.loads((state_dir / "session.json").read_text())
        return SessionState(epoch=int(stored["epoch"]), attempt=int(stored["attempt"]))
    except FileNotFoundError:
        return SessionState()
    except (OSError, ValueError, KeyError, TypeError):
        return SessionState(epoch=now)


def save_session_state(state_dir: Path, state: SessionState) -> None:
    """`state` is durable."""
    stored = {"epoch": state.epoch, "attempt": state.attempt}
    write_durably(state_dir / "session.json", json.dumps(stored).encode())


def _mend(state_dir: Path) -> None:
    """There is an identity where one was: `commit` may have ended or failed between its two renames."""
    directory, old, new = _places(state_dir)
    if not directory.exists() and old.exists():
        # The new one was durable before the first rename.
        (new if new.exists() else old).rename(directory)
        sync_directory(state_dir)


def _places(state_dir: Path) -> tuple[Path, Path, Path]:
    return state_dir / "identity", state_dir / "identity.old", state_dir / "identity.new"
