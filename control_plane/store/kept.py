"""What clients of other systems sent of projects, holdouts and metrics that means nothing for files, by door."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from control_plane.store.database import Tx


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The fields of one resource, as they were sent; and who sent them last."""

    fields: dict[str, Any]
    created_at: int
    updated_at: int
    updated_by: str


class KeptStore:
    """Kept fields, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def get(self, project_id: bytes, door: str, resource: str, resource_id: bytes) -> Kept | None:
        """What is kept; None where nothing was ever sent."""
        row = self._tx.one(
            "select * from kept_field where project_id = ? and door = ? and resource = ? and resource_id = ?",
            (project_id, door, resource, resource_id),
        )
        if row is None:
            return None
        return Kept(
            fields=json.loads(row["fields"]),
            created_at=row["created_at"],
            updated_at=row["updated_at"],
            updated_by=row["updated_by"],
        )

    def put(
        self,
        project_id: bytes,
        door: str,
        resource: str,
        resource_id: bytes,
        fields: Mapping[str, Any],
        *,
        actor: str,
        now: int,
    ) -> None:
        """The fields are kept, in place of those that were."""
        self._tx.run(
            "insert into kept_field (project_id, door, resource, resource_id, fields, created_at, updated_at,"
            " updated_by) values (?, ?, ?, ?, ?, ?, ?, ?) on conflict (project_id, door, resource, resource_id)"
            " do update set fields = excluded.fields, updated_at = excluded.updated_at,"
            " updated_by = excluded.updated_by",
            (project_id, door, resource, resource_id, json.dumps(dict(fields)), now, now, actor),
        )

    def drop(self, project_id: bytes, door: str, resource: str, resource_id: bytes) -> None:
        """Nothing is kept."""
        self._tx.run(
            "delete from kept_field where project_id = ? and door = ? and resource = ? and resource_id = ?",
            (project_id, door, resource, resource_id),
        )
