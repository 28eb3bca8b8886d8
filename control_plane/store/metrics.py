"""Saved metrics of a project."""

import json
from dataclasses import dataclass
from typing import Any

from control_plane.store.database import Row, Tx, number
from shared.ids import parse_id, show_id


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMetric:
    """A saved metric; `definition` is JSON-shaped and whole."""

    id: bytes
    project_id: bytes
    key: str
    name: str
    definition: dict[str, Any]
    created_at: int
    updated_at: int
    number: int


class MetricStore:
    """Saved metrics, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def put(self, item: StoredMetric) -> None:
        """The metric is as given, new or changed. Raises IntegrityViolation where its key is taken."""
        self._tx.run(
            "insert into metric (id, project_id, key, name, definition, created_at, updated_at, number)"
            " values (?, ?, ?, ?, ?, ?, ?, ?) on conflict (id) do update set name = excluded.name,"
            " definition = excluded.definition, updated_at = excluded.updated_at",
            (
                item.id,
                item.project_id,
                item.key,
                item.name,
                json.dumps(item.definition),
                item.created_at,
                item.updated_at,
                item.number,
            ),
        )

    def find(self, project_id: bytes, name: str) -> StoredMetric | None:
        """The project's metric with this id, key or number."""
        row = self._tx.one(
            "select * from metric where project_id = ? and (id = ? or key = ? or number = ?)",
            (project_id, parse_id(name), name, number(name)),
        )
        return _metric(row) if row else None

    def page(self, project_id: bytes, *, after: str, limit: int) -> list[StoredMetric]:
        """Metrics of the project by key, from `after` up."""
        rows = self._tx.all(
            "select * from metric where project_id = ? and key > ? order by key limit ?",
            (project_id, after, limit),
        )
        return [_metric(row) for row in rows]

    def keys(self, project_id: bytes) -> set[str]:
        """Every key taken in the project."""
        return {
            row["key"] for row in self._tx.all("select key from metric where project_id = ?", (project_id,))
        }

    def delete(self, metric_id: bytes) -> None:
        """The metric is gone."""
        self._tx.run("delete from metric where id = ?", (metric_id,))

    def named_by(self, item: StoredMetric) -> list[str]:
        """Keys of the drafts that name the metric; whatever has started holds a copy."""
        rows = self._tx.all(
            "select key, metrics from experiment where project_id = ? and status = 'draft' order by key",
            (item.project_id,),
        )
        wanted = show_id(item.id)
        return [row["key"] for row in rows if wanted in _named(json.loads(row["metrics"]))]


def _named(metrics: dict[str, Any]) -> set[str]:
    every = [metrics.get("primary"), *metrics.get("secondary", []), *metrics.get("guardrail", [])]
    return {item["id"] for item in every if item and "eventName" not in item}


def _metric(row: Row) -> StoredMetric:
    return StoredMetric(
        id=row["id"],
        project_id=row["project_id"],
        key=row["key"],
        name=row["name"],
        definition=json.loads(row["definition"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        number=row["number"],
    )
