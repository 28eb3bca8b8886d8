"""The data directory: what is in it, how it comes about, how it is backed up and restored.

variantd.db        the database, unless that is on a server
database           says so in that case, for whoever opens the directory without its settings
ca/ca.pem, key.pem the certificate authority; never in the database, part of every backup
ca/next-key.pem    the key of the authority that is to follow, whose certificate is the second in ca.pem
operator.api-key   the first key (0600), where this directory's server made the database
addresses.json     where the running server listens, written once it is ready

Servers over one database have a directory each and one authority: a file with its key and certificate that
`ca_key_file` names, or copies of `ca/`. Which authority that is the database knows, so that none of them begins with
another.
"""

import fcntl
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from control_plane.services import access, enrollment
from control_plane.services.replicas import BEAT_SECONDS, LEASE_SECONDS
from control_plane.store.access import Incarnation
from control_plane.store.database import Database, Tx
from control_plane.store.sqlite import SqliteDatabase, backup_database, migrate_file
from control_plane.store.store import Store
from shared import tls
from shared.clock import Clock, SystemClock
from shared.errors import FailedPrecondition, Invalid
from shared.ids import NewId, new_secret

_IN_BACKUP = ("variantd.db", "ca/ca.pem", "ca/key.pem", "operator.api-key", "ca/next-key.pem", "database")


@dataclass(frozen=True, slots=True)
class DataDir:
    """A data directory; `authority_file` holds the authority's keys and certificates, where `ca/` does not."""

    path: Path
    authority_file: Path | None = None

    @property
    def database(self) -> Path:
        """The database's file."""
        return self.path / "variantd.db"

    @property
    def ca_certificate(self) -> Path:
        """The authority's certificate, for clients to trust."""
        return self.path / "ca" / "ca.pem"

    @property
    def operator_key(self) -> Path:
        """The first API key."""
        return self.path / "operator.api-key"

    @property
    def jwks(self) -> Path:
        """The identity provider's last good keys (public ones), for a start while it is away."""
        return self.path / "oidc-jwks.json"

    @property
    def addresses(self) -> Path:
        """Where the running server listens."""
        return self.path / "addresses.json"

    @property
    def elsewhere(self) -> Path:
        """There where the database is on a server."""
        return self.path / "database"

    @property
    def restoring(self) -> Path:
        """There until a restore into the directory has ended."""
        return self.path / "restoring.db"

    def prepare(self) -> None:
        """The directory exists and only its owner can look into it."""
        authority = self.path / "ca"
        is_new = not authority.exists()
        authority.mkdir(parents=True, exist_ok=True, mode=0o700)
        if is_new:
            _hand_over(authority, like=self.path)
        self.path.chmod(0o700)

    def begin(self) -> None:
        """The database's file is there, empty at first; what SQLite makes beside it has the same owner and mode."""
        _touch(self.database)

    def require(self) -> "DataDir":
        """Itself. Raises Invalid where there is no database in it."""
        if not self.database.exists() and not self.elsewhere.exists():
            raise Invalid(f"{self.path} is not a data directory of variantd; `variantd serve` makes one")
        return self

    def lock(self) -> int:
        """A descriptor that holds the directory for this process. Raises FailedPrecondition where taken."""
        file = self.path / "lock"
        _touch(file)
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise FailedPrecondition(
                f"another variantd is using {self.path}; stop it, or name another --data-dir", reason="LOCKED"
            ) from None
        return descriptor

    def authority(self, clock: Clock) -> tls.Authority:
        """The authority that certifies the listeners, made at the first call."""
        return self.authorities(clock).first

    @property
    def has_key(self) -> bool:
        """The authority's key is in the directory."""
        return self._ca_key.exists()

    @property
    def has_authority(self) -> bool:
        """There is an authority already, so that none is made."""
        return (self.authority_file or self.ca_certificate).exists()

    def authorities(self, clock: Clock) -> tls.Authorities:
        """The certificate authority, made at the first call, and the one that is to follow it, where there is one.

        Raises FailedPrecondition where keys and certificates do not belong together.
        """
        self.require_own()
        if not self.has_authority:
            self._keep(tls.new_authority("variantd CA", now=clock.now()), None)
        paths = [self.authority_file] if self.authority_file else [self._ca_key, self._next_key]
        file = self.authority_file or self.ca_certificate
        try:
            keys = [key for path in paths if path.exists() for key in tls.keys_from_pem(path.read_bytes())]
            certificates = tls.certificates(file.read_bytes())
        except ValueError as error:
            raise FailedPrecondition(
                f"{file} does not hold the authority's key and certificate as PEM: {error}",
                reason="BAD_CONFIG",
            ) from None
        found = [
            tls.Authority(key=key, certificate=certificate)
            for certificate in certificates
            for key in keys
            if tls.belongs(key, certificate)
        ]
        if not found:
            raise FailedPrecondition(
                f"{paths[0]} is not the key of {file}; restore both from a backup", reason="BAD_CONFIG"
            )
        known = tls.Authorities(first=found[0], second=found[1] if len(found) > 1 else None)
        if self.authority_file is not None:  # for clients of this directory to trust
            write_private(self.ca_certificate, known.bundle)
        return known

    def require_own(self) -> None:
        """Raises FailedPrecondition where the authority is in `ca/` only, and `authority_file` is to have it.

        Hosts trust that one: no other takes its place because a file is missing.
        """
        if self.authority_file is not None and not self.authority_file.exists() and self.has_key:
            raise FailedPrecondition(
                f"{self.authority_file} is not there, and {self.path} has an authority, as after a restore:"
                f" `cat {self._ca_key} {self.ca_certificate} > {self.authority_file}` (mode 0600) makes it that file",
                reason="BAD_CONFIG",
            )

    def _keep(self, first: tls.Authority, second: tls.Authority | None) -> None:
        """These are the authorities; a process that ends meanwhile leaves what was there before, or these."""
        made = [first] if second is None else [first, second]
        certificates = b"".join(one.certificate for one in made)
        keys = [tls.key_to_pem(one.key) for one in made]
        if self.authority_file is not None:
            write_private(self.authority_file, b"".join(keys) + certificates)
            return
        if second is not None:
            write_private(self._next_key, keys[1])
        else:
            write_private(self._ca_key, keys[0])
        write_private(self.ca_certificate, certificates)

    @property
    def _ca_key(self) -> Path:
        return self.path / "ca" / "key.pem"

    @property
    def _next_key(self) -> Path:
        return self.path / "ca" / "next-key.pem"

    def introduce_authority(self, clock: Clock) -> None:
        """There is a next authority beside the present one, from the next start on. Raises FailedPrecondition.

        A process that ends meanwhile leaves the one authority or both.
        """
        known = self.authorities(clock)
        if known.second is not None:
            raise FailedPrecondition("there is a next authority already; `variantd admin ca retire` goes on")
        # Of another name: chains are built by name.
        self._keep(known.first, tls.new_authority(f"variantd CA {new_secret().hex()[:8]}", now=clock.now()))

    def retire_authority(self, clock: Clock) -> None:
        """The next authority is the only one, from the next start on, and the former's key is gone.

        A process that ends meanwhile leaves either of them whole; repeated, it finishes. Raises FailedPrecondition.
        """
        known = self.authorities(clock)
        if known.second is None and not self._next_key.exists():
            raise FailedPrecondition("there is no next authority; `variantd admin ca next` makes one")
        if self.authority_file is not None:
            self._keep(known.issuing, None)
            return
        write_private(self.ca_certificate, known.issuing.certificate)
        write_private(self._ca_key, tls.key_to_pem(known.issuing.key))
        self._next_key.unlink(missing_ok=True)
        sync_directory(self._next_key.parent)

    def write_addresses(self, addresses: dict[str, str]) -> None:
        """The server is ready and listens there."""
        write_private(self.addresses, json.dumps(addresses).encode())


def open_database(data: DataDir, url: SecretStr | None, *, may_change: bool = True) -> Database:
    """The control plane's database, ready for work: the one at `url`, else the directory's own file.

    Migrated where necessary, if the schema `may_change`. Raises FailedPrecondition where the directory belongs to the
    other kind, or what is needed for it is not installed; Invalid and Unavailable as the drivers do.
    """
    _check_kind(data, url)
    if url is None:
        data.begin()
        return SqliteDatabase.open(data.database, may_change=may_change)
    postgres = _postgres()
    database: Database = postgres.PostgresDatabase.open(url.get_secret_value(), may_change=may_change)
    return database


async def agreed_authorities(data: DataDir, database: Database, clock: Clock) -> tls.Authorities:
    """The authorities of the directory, which are those of every server over its database; made at the first start.

    Raises FailedPrecondition where the database's servers have, or had, others: hosts trust those.
    """
    data.require_own()
    if not data.has_authority:
        known = await database.read(lambda tx: Store(tx).access.authorities())
        if known:
            raise _other_authority(data)
    found = data.authorities(clock)
    own = tuple(enrollment.fingerprint(one) for one in (found.first, found.second) if one is not None)

    def agree(tx: Tx) -> None:
        store = Store(tx).access
        if not enrollment.follows(store.authorities(), own):
            raise _other_authority(data)
        store.note_authorities(own)

    await database.write(agree)
    return found


def _other_authority(data: DataDir) -> FailedPrecondition:
    where = data.authority_file or data.ca_certificate.parent
    return FailedPrecondition(
        f"{where} does not hold the certificate authority of this database's servers, which hosts trust; copy it from"
        " one that runs or out of a backup (ca_key_file, or the folder ca/). Where its key is lost,"
        " `variantd admin new-incarnation` lets another in, and every host is enrolled anew",
        reason="OTHER_AUTHORITY",
    )


def migrate(data: DataDir, url: SecretStr | None) -> list[str]:
    """The database has the newest schema; the names of the migrations applied now. Raises as `open_database`."""
    _check_kind(data, url)
    if url is None:
        data.begin()
        return migrate_file(data.database)
    applied: list[str] = _postgres().prepare(url.get_secret_value())
    return applied


def note_kind(data: DataDir, url: SecretStr | None) -> None:
    """Whoever opens the directory later knows where its database is."""
    if url is not None and not data.elsewhere.exists():
        write_private(data.elsewhere, b"PostgreSQL\n")


def _check_kind(data: DataDir, url: SecretStr | None) -> None:
    if data.restoring.exists():
        raise FailedPrecondition(f"a restore into {data.path} did not end; restore into a new directory")
    if url is None and data.elsewhere.exists():
        raise FailedPrecondition(
            f"the database of {data.path} is on a PostgreSQL server; name it with --database or VARIANTD_DATABASE",
            reason="DATABASE_ELSEWHERE",
        )
    if url is not None and data.database.exists():
        raise FailedPrecondition(
            f"{data.path} has a database of its own ({data.database.name}); a server's needs another --data-dir",
            reason="DATABASE_ELSEWHERE",
        )


def _postgres() -> Any:
    if find_spec("psycopg") is None:
        raise FailedPrecondition(
            "a PostgreSQL database needs the extra: pip install 'variantd[postgres]'", reason="EXTRA_MISSING"
        )
    return import_module("control_plane.store.postgres")


def write_private(path: Path, content: bytes) -> None:
    """The file is exactly this, durable, readable by its owner only; never half of it."""
    _write_private(path, [content])


def _write_private(path: Path, pieces: Iterable[bytes]) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            _hand_over(descriptor, like=path if path.exists() else path.parent)
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a write that fails names no file, the rest names the temporary one
        raise
    sync_directory(path.parent)


def _hand_over(made: int | Path, *, like: Path) -> None:
    """What root made belongs to whom `like` does: an administrator is root, the server that has to read it is not."""
    if os.geteuid() == 0:
        owner = like.stat()
        with suppress(PermissionError):  # a file system that keeps no owners
            os.chown(made, owner.st_uid, owner.st_gid, follow_symlinks=isinstance(made, int))


def _touch(path: Path) -> None:
    """The file is there; a new one is readable by its owner only."""
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _hand_over(descriptor, like=path.parent)
        finally:
            os.close(descriptor)


def sync_directory(path: Path) -> None:
    """What was renamed in the directory survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def backup(data: DataDir, target: Path) -> None:
    """`target` is a tar file with everything a restore needs, taken while the server may be running.

    A database on a server is not in it: that server's own tools copy it. A `target` that is a link is followed, and
    only a file is ever replaced.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and not target.is_file():
        raise Invalid(f"{target} is there and is no file; name one to write the backup to")
    if not data.database.exists() and not data.elsewhere.exists():
        raise Invalid(f"{data.path} is not a data directory of variantd")
    if not data.has_authority:
        raise Invalid(f"{data.path} has no authority yet; a server over it makes one", reason="BAD_CONFIG")
    found = _authority_files(data)
    with _beside(target) as folder:
        copied = folder / "variantd.db"
        if data.database.exists():
            backup_database(data.database, copied)
        archive = folder / "backup.tar"
        with tarfile.open(archive, "w") as tar:
            for name in _IN_BACKUP:
                file = copied if name == "variantd.db" else data.path / name
                if file.exists() and name not in found:
                    tar.add(file, arcname=name, recursive=False)
            for name, body in found.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(body), 0o600
                tar.addfile(member, io.BytesIO(body))
        archive.chmod(0o600)
        descriptor = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(descriptor)
        os.close(descriptor)
        archive.replace(target)
    sync_directory(target.parent)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder on the disk of `target`, gone afterwards. Raises Invalid that names `target` where that disk refuses."""
    begins = ".variantd-backup-"
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=begins) as folder:
            yield Path(folder)
    except OSError as error:
        if error.filename is None or Path(error.filename).name.startswith(begins):
            raise Invalid(f"cannot write {target}: {error.strerror}") from None
        raise


def _authority_files(data: DataDir) -> dict[str, bytes]:
    """What a backup has of authorities that are kept in a file of their own, under the names of a directory's own.

    Raises Invalid where that file was not named.
    """
    if data.authority_file is None:
        if data.has_authority and not data.has_key:
            raise Invalid(
                f"the authority's key is not in {data.path}; name its file by VARIANTD_CA_KEY_FILE",
                reason="BAD_CONFIG",
            )
        return {}
    known = data.authorities(SystemClock())
    files = {"ca/key.pem": tls.key_to_pem(known.first.key), "ca/ca.pem": known.bundle}
    return files | ({"ca/next-key.pem": tls.key_to_pem(known.second.key)} if known.second else {})


async def restore(data: DataDir, source: Path, *, new_id: NewId) -> None:
    """The directory, empty before, holds the backup as a new incarnation that agents adopt by themselves.

    Where the database is on a server, the incarnation is that database's, and nothing is done to it.
    Raises Invalid where the directory is not empty or the file is no backup.
    """
    if data.path.exists() and any(data.path.iterdir()):
        raise Invalid(f"{data.path} is not empty; restore into a new directory")
    was_there = data.path.exists()
    try:
        with _reading(source):
            tar = tarfile.open(source)  # noqa: SIM115  # closed below; what fails to open is told otherwise
        with tar:
            await _fill(data, tar, source, new_id=new_id)
    except BaseException:
        # Half of a backup, or a whole one of the former incarnation, must not pass for a data directory.
        for found in data.path.iterdir() if data.path.is_dir() else ():
            shutil.rmtree(found) if found.is_dir() else found.unlink()
        if not was_there:
            shutil.rmtree(data.path, ignore_errors=True)
        raise


async def _fill(data: DataDir, tar: tarfile.TarFile, source: Path, *, new_id: NewId) -> None:
    with _reading(source):
        members = {item.name: item for item in tar if item.name in _IN_BACKUP and item.isfile()}
    needed = ("database" if "database" in members else "variantd.db", "ca/ca.pem", "ca/key.pem")
    missing = [name for name in needed if name not in members]
    if missing:
        raise Invalid(f"{source} is not a backup of variantd: it has no {missing[0]}")
    data.prepare()
    # The database has another name until it is the new incarnation; nothing works on the directory while that is there.
    _touch(data.restoring)
    sync_directory(data.path)
    for name, member in members.items():
        if name != data.database.name:
            _write_private(data.path / name, _pieces(tar, member, source))
    if data.elsewhere.exists():
        data.restoring.unlink()
        return
    _write_private(data.restoring, _pieces(tar, members[data.database.name], source))
    database = SqliteDatabase.open(data.restoring)
    try:
        now = SystemClock().now()
        await database.write(lambda tx: access.succeed(Store(tx), new_id=new_id, now=now))
    finally:
        await database.close()
    data.restoring.replace(data.database)
    sync_directory(data.path)


def _pieces(tar: tarfile.TarFile, member: tarfile.TarInfo, source: Path) -> Iterator[bytes]:
    """The member bit by bit: a database may be larger than memory."""
    with _reading(source):
        file = tar.extractfile(member)
        while file is not None and (piece := file.read(1 << 20)):
            yield piece


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Raises Invalid that names `source` where what is done to it fails."""
    try:
        yield
    except Exception as error:  # somebody may have packed it, and every way to unpack has errors of its own
        raise Invalid(f"{source} is not a backup of variantd: {error}") from None


async def new_incarnation(
    data: DataDir, url: SecretStr | None, *, clock: Clock, new_id: NewId
) -> Incarnation:
    """The database is another incarnation from now on, named as the successor of the present one.

    For a database that was put back without `restore`: hosts that know more than it does get no offers until then.
    Servers over it may begin with another authority than before. Where one ended without a word it takes the length of
    a lease to know that. Raises Invalid where there is no database, FailedPrecondition while a server runs over it,
    or where none ever did.
    """
    held = data.require().lock()
    try:
        database = open_database(data, url)
        try:
            silent = await database.read(lambda tx: Store(tx).replicas.beats())
            until = clock.monotonic() + LEASE_SECONDS
            while silent and clock.monotonic() < until:
                await clock.sleep(BEAT_SECONDS)
                await database.read(lambda tx: _require_silence(tx, silent))

            def succeed(tx: Tx) -> Incarnation:
                _require_silence(tx, silent)
                if Store(tx).access.incarnation() is None:
                    raise FailedPrecondition(
                        "no server ran over this database yet; `variantd serve` begins it"
                    )
                Store(tx).access.note_authorities(())
                return access.succeed(Store(tx), new_id=new_id, now=clock.now())

            return await database.write(succeed)
        finally:
            await database.close()
    finally:
        os.close(held)


def _require_silence(tx: Tx, known: Mapping[bytes, int]) -> None:
    """No server gave a sign of life beyond those. Raises FailedPrecondition naming one that did."""
    replicas = Store(tx).replicas
    names = replicas.names()
    running = [names[uid] for uid, count in replicas.beats().items() if known.get(uid) != count]
    if running:
        message = f"servers run over this database, {min(running)} among them; stop them all"
        raise FailedPrecondition(message, reason="LOCKED")


async def left_behind(data: DataDir, url: SecretStr | None, clock: Clock) -> list[str]:
    """Names of the agents whose certificate is valid, or may be recovered, and not of the newest authority."""
    newest = enrollment.fingerprint(data.authorities(clock).issuing)
    since = clock.now() - enrollment.RECOVERABLE
    database = open_database(data, url, may_change=False)
    try:
        return await database.read(lambda tx: Store(tx).fleet.certified_by_others(newest, since=since))
    finally:
        await database.close()
