"""What was on disk when, as hosts saw it, and what applications said they loaded of it."""

from collections.abc import Iterable, Sequence

from control_plane.domain.attribution import Seen
from control_plane.store.database import Tx
from shared.model import Loaded, Unseen, View

_CHUNK = 200  # of what is asked in one statement


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

    def views(self, asked: Sequence[tuple[bytes, str, int, int]]) -> dict[tuple[bytes, str], list[Seen]]:
        """(participant, path, low, high): views of each target file from low to high, and the last one before."""
        found: dict[tuple[bytes, str], list[Seen]] = {
            (participant_id, path): [] for participant_id, path, *_ in asked
        }
        for start in range(0, len(asked), _CHUNK):
            chunk = asked[start : start + _CHUNK]
            marks = ", ".join(["(?, ?, ?, ?)"] * len(chunk))
            rows = self._tx.all(
                f"with asked (participant_id, path, low, high) as (values {marks})"  # noqa: S608
                " select v.participant_id, v.path, v.from_at, v.id, v.digest from asked a cross join view v"
                " where v.participant_id = a.participant_id and v.path = a.path and v.from_at <= a.high"
                " and v.from_at >= coalesce((select max(b.from_at) from view b where"
                " b.participant_id = a.participant_id and b.path = a.path and b.from_at <= a.low), 0)",
                [part for item in chunk for part in item],
            )
            for row in rows:
                seen = Seen(from_at=row["from_at"], id=row["id"], digest=row["digest"])
                found[row["participant_id"], row["path"]].append(seen)
        return found

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
