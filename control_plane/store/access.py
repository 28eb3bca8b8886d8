"""Projects, keys, enrollment tokens, idempotent answers, the audit log, and who this database is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from control_plane.domain.fields import parse
from control_plane.domain.settings import Settings
from control_plane.store.database import Row, Tx


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What a caller proves itself with; only the SHA-256 of the secret is kept."""

    id: bytes
    project_id: bytes
    name: str
    prefix: str
    secret_hash: bytes
    scopes: tuple[str, ...]
    labels: dict[str, str]
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    last_used_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What everything belongs to; nobody sees across projects."""

    id: bytes
    name: str
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentToken:
    """What lets an agent join; only the SHA-256 of the secret is kept."""

    id: bytes
    project_id: bytes
    name: str
    secret_hash: bytes
    labels: dict[str, str]
    max_uses: int
    uses: int
    name_pattern: str | None
    participants: tuple[str, ...]
    expires_at: int
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Who changed what; `before` and `after` are JSON-shaped, None where it was not there or nothing is shown of it."""

    id: bytes
    actor: str
    api_key_id: bytes | None
    operation: str
    resource_id: str
    at: int
    before: Any = None
    after: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """What of the audit log is asked for; all of it has to hold, and empty or None asks for nothing.

    `names` are what one resource may be called; moments are from `from_at` on and before `to_at`.
    """

    operation: str = ""
    names: tuple[str, ...] = ()
    actor: str = ""
    api_key_id: bytes | None = None
    from_at: int | None = None
    to_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Incarnation:
    """Which life of the database this is, and those before it, the nearest first (none: this is the first)."""

    id: bytes
    ancestors: tuple[bytes, ...] = ()

    @property
    def predecessor(self) -> bytes:
        """The one it succeeds; empty: the first."""
        return self.ancestors[0] if self.ancestors else b""

    @property
    def successions(self) -> list[tuple[bytes, bytes]]:
        """(incarnation, the one it succeeded), newest first; one at least, with an empty predecessor for the first."""
        lives = (self.id, *self.ancestors)
        return list(pairwise(lives)) or [(self.id, b"")]


MAX_ANCESTORS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSettings:
    """A project's settings; version 0 and no moment: nobody has said anything yet."""

    settings: Settings
    version: int
    updated_at: int | None
    updated_by: str | None


class AccessStore:
    """Access, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def incarnation(self) -> Incarnation | None:
        """Which life of the database this is; None before the first start."""
        rows = {row["key"]: row["value"] for row in self._tx.all("select key, value from meta")}
        if "incarnation" not in rows:
            return None
        ancestors = rows.get("ancestors", rows["predecessor"])
        return Incarnation(
            id=rows["incarnation"],
            ancestors=tuple(ancestors[start : start + 16] for start in range(0, len(ancestors), 16)),
        )

    def authorities(self) -> tuple[bytes, ...]:
        """Fingerprints of the certificate authorities of this database's servers; none: nobody noted them."""
        row = self._tx.one("select value from meta where key = 'authorities'")
        value = row["value"] if row else b""
        return tuple(value[start : start + 32] for start in range(0, len(value), 32))

    def note_authorities(self, fingerprints: Sequence[bytes]) -> None:
        """These are the certificate authorities of this database's servers."""
        self._tx.run(
            "insert into meta (key, value) values ('authorities', ?)"
            " on conflict (key) do update set value = excluded.value",
            (b"".join(fingerprints),),
        )

    def set_incarnation(self, incarnation: Incarnation) -> None:
        """This is the database's life from now on."""
        for key, value in (
            ("incarnation", incarnation.id),
            ("predecessor", incarnation.predecessor),
            ("ancestors", b"".join(incarnation.ancestors)),
        ):
            self._tx.run(
                "insert into meta (key, value) values (?, ?) on conflict (key) do update set value = excluded.value",
                (key, value),
            )

    def project(self, name: str) -> bytes | None:
        """Id of the project of that name."""
        row = self._tx.one("select id from project where name = ?", (name,))
        return row["id"] if row else None

    def add_project(self, project_id: bytes, *, name: str, now: int) -> None:
        """The project exists."""
        self._tx.run("insert into project (id, name, created_at) values (?, ?, ?)", (project_id, name, now))

    def projects(self) -> list[Project]:
        """Every project by name."""
        rows = self._tx.all("select id, name, created_at from project order by name")
        return [Project(id=row["id"], name=row["name"], created_at=row["created_at"]) for row in rows]

    def settings(self, project_id: bytes) -> StoredSettings:
        """What the project's settings are, and since when."""
        row = self._tx.one(
            "select settings, settings_version, settings_updated_at, settings_updated_by from project where id = ?",
            (project_id,),
        )
        assert row is not None
        return StoredSettings(
            settings=parse(Settings, json.loads(row["settings"] or "{}")),
            version=row["settings_version"],
            updated_at=row["settings_updated_at"],
            updated_by=row["settings_updated_by"],
        )

    def put_settings(self, project_id: bytes, settings: Settings, *, actor: str, now: int) -> None:
        """The project's settings are these; their version has grown by one."""
        self._tx.run(
            "update project set settings = ?, settings_version = settings_version + 1, settings_updated_at = ?,"
            " settings_updated_by = ? where id = ?",
            (settings.model_dump_json(by_alias=True), now, actor, project_id),
        )

    def add_api_key(self, key: ApiKey) -> None:
        """The key is valid from now on."""
        self._tx.run(
            "insert into api_key (id, project_id, name, prefix, secret_hash, scopes, labels, created_at,"
            " expires_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                key.id,
                key.project_id,
                key.name,
                key.prefix,
                key.secret_hash,
                json.dumps(key.scopes),
                json.dumps(key.labels),
                key.created_at,
                key.expires_at,
            ),
        )

    def api_key(self, secret_hash: bytes) -> ApiKey | None:
        """The key whose secret has this SHA-256."""
        row = self._tx.one("select * from api_key where secret_hash = ?", (secret_hash,))
        return _key(row) if row else None

    def api_key_of(self, project_id: bytes, key_id: bytes) -> ApiKey | None:
        """The project's key of that id."""
        row = self._tx.one("select * from api_key where project_id = ? and id = ?", (project_id, key_id))
        return _key(row) if row else None

    def api_keys(self, project_id: bytes, *, before: bytes | None, limit: int) -> list[ApiKey]:
        """Keys of the project, newest first, from `before` down; those that ended among them."""
        rows = self._tx.all(
            "select * from api_key where project_id = ? and (? is null or id < ?) order by id desc limit ?",
            (project_id, before, before, limit),
        )
        return [_key(row) for row in rows]

    def rename_api_key(self, key_id: bytes, name: str) -> None:
        """The key has that name from now on."""
        self._tx.run("update api_key set name = ? where id = ?", (name, key_id))

    def revoke_api_key(self, key_id: bytes, *, now: int) -> None:
        """The key lets nobody in from now on; the first moment at which it was revoked stays."""
        self._tx.run("update api_key set revoked_at = coalesce(revoked_at, ?) where id = ?", (now, key_id))

    def use_api_key(self, key_id: bytes, *, now: int) -> None:
        """The key was used at `now`; never moved back by somebody whose clock was read earlier."""
        self._tx.run(
            "update api_key set last_used_at = ? where id = ? and coalesce(last_used_at, 0) < ?",
            (now, key_id, now),
        )

    def add_enrollment_token(self, token: EnrollmentToken) -> None:
        """The token is valid from now on."""
        self._tx.run(
            "insert into enrollment_token (id, project_id, name, secret_hash, labels, max_uses, name_pattern,"
            " participants, expires_at, created_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                token.id,
                token.project_id,
                token.name,
                token.secret_hash,
                json.dumps(token.labels),
                token.max_uses,
                token.name_pattern,
                json.dumps(token.participants),
                token.expires_at,
                token.created_at,
            ),
        )

    def enrollment_token(self, secret_hash: bytes) -> EnrollmentToken | None:
        """The token whose secret has this SHA-256."""
        row = self._tx.one("select * from enrollment_token where secret_hash = ?", (secret_hash,))
        return _token(row) if row else None

    def use_enrollment_token(self, token_id: bytes) -> None:
        """One use more is spent; two agents that race for the last one cannot both get here."""
        self._tx.run("update enrollment_token set uses = uses + 1 where id = ?", (token_id,))

    def enrollment_tokens(
        self, project_id: bytes, *, before: bytes | None, limit: int
    ) -> list[EnrollmentToken]:
        """Tokens of the project, newest first, from `before` down."""
        rows = self._tx.all(
            "select * from enrollment_token where project_id = ? and (? is null or id < ?)"
            " order by id desc limit ?",
            (project_id, before, before, limit),
        )
        return [_token(row) for row in rows]

    def answer(self, project_id: bytes, operation: str, key: str) -> tuple[bytes, Any] | None:
        """(fingerprint of the request, answer) that was given under this idempotency key."""
        row = self._tx.one(
            "select fingerprint, response from idempotency where project_id = ? and operation = ? and key = ?",
            (project_id, operation, key),
        )
        return (row["fingerprint"], json.loads(row["response"])) if row else None

    def keep_answer(
        self, project_id: bytes, operation: str, key: str, *, fingerprint: bytes, answer: Any, now: int
    ) -> None:
        """The same key gives the same answer from now on."""
        self._tx.run(
            "insert into idempotency (project_id, operation, key, fingerprint, response, created_at)"
            " values (?, ?, ?, ?, ?, ?)",
            (project_id, operation, key, fingerprint, json.dumps(answer), now),
        )

    def add_audit(self, entry: AuditEntry, *, project_id: bytes, request: Any) -> None:
        """The change is on record; `request` holds digests instead of content."""
        self._tx.run(
            "insert into audit (id, project_id, actor, api_key_id, operation, resource_id, request, at,"
            " before, after) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.id,
                project_id,
                entry.actor,
                entry.api_key_id,
                entry.operation,
                entry.resource_id,
                json.dumps(request),
                entry.at,
                *(None if state is None else json.dumps(state) for state in (entry.before, entry.after)),
            ),
        )

    def audit(
        self, project_id: bytes, wanted: AuditFilter, *, before: bytes | None, limit: int
    ) -> list[AuditEntry]:
        """Changes in the project that are wanted, newest first, from `before` down.

        A resource is one by what the answer called it, or by what the request did.
        """
        names = json.dumps(wanted.names)
        rows = self._tx.all(
            "select id, actor, api_key_id, operation, resource_id, at, before, after from audit"
            " where project_id = ? and (? is null or id < ?) and ? in ('', operation) and ? in ('', actor)"
            " and (? is null or api_key_id = ?) and (? is null or at >= ?) and (? is null or at < ?)"
            " and (? = '[]' or exists (select 1 from json_each(?) name"
            " where name.value = resource_id"
            " or name.value = (select value from json_each(request) where key = 'id'))) order by id desc limit ?",
            (
                project_id,
                before,
                before,
                wanted.operation,
                wanted.actor,
                wanted.api_key_id,
                wanted.api_key_id,
                wanted.from_at,
                wanted.from_at,
                wanted.to_at,
                wanted.to_at,
                names,
                names,
                limit,
            ),
        )
        return [
            AuditEntry(
                id=row["id"],
                actor=row["actor"],
                api_key_id=row["api_key_id"],
                operation=row["operation"],
                resource_id=row["resource_id"],
                at=row["at"],
                before=json.loads(row["before"] or "null"),
                after=json.loads(row["after"] or "null"),
            )
            for row in rows
        ]


def _key(row: Row) -> ApiKey:
    return ApiKey(
        id=row["id"],
        project_id=row["project_id"],
        name=row["name"],
        prefix=row["prefix"],
        secret_hash=row["secret_hash"],
        scopes=tuple(json.loads(row["scopes"])),
        labels=json.loads(row["labels"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        last_used_at=row["last_used_at"],
    )


def _token(row: Row) -> EnrollmentToken:
    return EnrollmentToken(
        id=row["id"],
        project_id=row["project_id"],
        name=row["name"],
        secret_hash=row["secret_hash"],
        labels=json.loads(row["labels"]),
        max_uses=row["max_uses"],
        uses=row["uses"],
        name_pattern=row["name_pattern"],
        participants=tuple(json.loads(row["participants"])),
        expires_at=row["expires_at"],
        created_at=row["created_at"],
    )
