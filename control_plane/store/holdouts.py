"""Holdouts of a project."""

import json
from dataclasses import dataclass

from control_plane.domain.intake import Holdout
from control_plane.store.database import Row, Tx, number
from shared.ids import parse_id, show_id


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredHoldout:
    """A holdout with its name; `rule` is what decides who is in it."""

    id: bytes
    project_id: bytes
    key: str
    name: str
    description: str
    rule: Holdout
    created_at: int
    updated_at: int
    number: int


class HoldoutStore:
    """Holdouts, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def put(self, item: StoredHoldout) -> None:
        """The holdout is as given, new or changed. Raises IntegrityViolation where its key is taken."""
        self._tx.run(
            "insert into holdout (id, project_id, key, name, description, share, seed, created_at, updated_at, number)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict (id) do update set name = excluded.name,"
            " description = excluded.description, share = excluded.share, updated_at = excluded.updated_at",
            (
                item.id,
                item.project_id,
                item.key,
                item.name,
                item.description,
                item.rule.share,
                item.rule.seed,
                item.created_at,
                item.updated_at,
                item.number,
            ),
        )

    def find(self, project_id: bytes, name: str) -> StoredHoldout | None:
        """The project's holdout with this id, key or number."""
        row = self._tx.one(
            "select * from holdout where project_id = ? and (id = ? or key = ? or number = ?)",
            (project_id, parse_id(name), name, number(name)),
        )
        return _holdout(row) if row else None

    def page(self, project_id: bytes, *, after: str, limit: int) -> list[StoredHoldout]:
        """Holdouts of the project by key, from `after` up."""
        rows = self._tx.all(
            "select * from holdout where project_id = ? and key > ? order by key limit ?",
            (project_id, after, limit),
        )
        return [_holdout(row) for row in rows]

    def all(self, project_id: bytes) -> list[StoredHoldout]:
        """Every holdout of the project, by key."""
        rows = self._tx.all("select * from holdout where project_id = ? order by key", (project_id,))
        return [_holdout(row) for row in rows]

    def keys(self, project_id: bytes) -> set[str]:
        """Every key taken in the project."""
        return {
            row["key"] for row in self._tx.all("select key from holdout where project_id = ?", (project_id,))
        }

    def delete(self, holdout_id: bytes) -> None:
        """The holdout is gone."""
        self._tx.run("delete from holdout where id = ?", (holdout_id,))

    def named_by(self, item: StoredHoldout, *, started: bool) -> list[str]:
        """Keys of experiments that name the holdout; with `started`, only of those under way."""
        rows = self._tx.all(
            "select key, status, design from experiment where project_id = ? order by key", (item.project_id,)
        )
        wanted = show_id(item.id)
        return [
            row["key"]
            for row in rows
            if json.loads(row["design"]).get("holdoutId") == wanted
            and (not started or row["status"] in ("running", "paused", "stopped"))
        ]


def _holdout(row: Row) -> StoredHoldout:
    return StoredHoldout(
        id=row["id"],
        project_id=row["project_id"],
        key=row["key"],
        name=row["name"],
        description=row["description"],
        rule=Holdout(seed=row["seed"], share=row["share"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        number=row["number"],
    )
