"""What was on disk when, as hosts saw it, and what applications said they loaded of it."""

from collections.abc import Iterable

from control_plane.domain.attribution import Seen
from control_plane.store.database import Tx
from shared.model import Loaded, Unseen, View


class Sightings:
    """Views and receipts, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def add_views(self, views: Iterable[tuple[bytes, bytes, View]], *, now: int) -> None:
        """(record id, participant's internal id, view), all stored."""
        self._tx.many(
            "insert into view (participant_id, path, from_at, id, digest, state, received_at)"
            " values (?, ?, ?, ?, ?, ?, ?)",
            [
                (participant_id, view.path, view.from_at, record_id, view.digest, view.state.value, now)
                for record_id, participant_id, view in views
            ],
        )

    def views(self, participant_id: bytes, path: str, *, low: int, high: int) -> list[Seen]:
        """Views of a target file from `low` to `high`, and the last one before."""
        rows = self._tx.all(
            "select from_at, id, digest from view where participant_id = ? and path = ? and from_at <= ?"
            " and from_at >= coalesce((select max(from_at) from view where participant_id = ? and path = ?"
            " and from_at <= ?), 0) order by from_at, id",
            (participant_id, path, high, participant_id, path, low),
        )
        return [Seen(from_at=row["from_at"], id=row["id"], digest=row["digest"]) for row in rows]

    def add_receipts(self, receipts: Iterable[tuple[bytes, bytes, Loaded]], *, now: int) -> None:
        """(record id, participant's internal id, receipt), all stored."""
        self._tx.many(
            "insert into receipt (participant_id, path, at, id, digest, received_at) values (?, ?, ?, ?, ?, ?)",
            [
                (participant_id, item.path, item.loaded_at, record_id, item.digest, now)
                for record_id, participant_id, item in receipts
            ],
        )

    def receipts(self, participant_id: bytes, path: str, *, low: int, high: int) -> list[Seen]:
        """Receipts of a target file from `low` to `high`, and the last one before."""
        rows = self._tx.all(
            "select at, id, digest from receipt where participant_id = ? and path = ? and at <= ?"
            " and at >= coalesce((select max(at) from receipt where participant_id = ? and path = ?"
            " and at <= ?), 0) order by at, id",
            (participant_id, path, high, participant_id, path, low),
        )
        return [Seen(from_at=row["at"], id=row["id"], digest=row["digest"]) for row in rows]

    def add_unseen(self, unseen: Iterable[tuple[bytes, bytes, Unseen]], *, now: int) -> None:
        """(record id, participant's internal id, when opens went uncounted), all stored."""
        self._tx.many(
            "insert into unseen (participant_id, from_at, id, to_at, reason, received_at) values (?, ?, ?, ?, ?, ?)",
            [
                (participant_id, item.from_at, record_id, item.to_at, item.reason, now)
                for record_id, participant_id, item in unseen
            ],
        )

    def next_view_at(self, participant_id: bytes, path: str, moment: int) -> int | None:
        """When the first view after `moment` begins."""
        row = self._tx.one(
            "select min(from_at) as at from view where participant_id = ? and path = ? and from_at > ?",
            (participant_id, path, moment),
        )
        return row["at"] if row else None
