"""What was on disk when, as hosts saw it, and what applications said they loaded of it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from control_plane.domain.attribution import Seen
from control_plane.store.database import Tx, asked
from shared.model import Loaded, Unseen, View


class Span(NamedTuple):
    """What is asked of a target file: what it was from `low` to `high`."""

    participant_id: bytes
    path: str
    low: int
    high: int


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

    def views(self, spans: Sequence[Span]) -> dict[tuple[bytes, str], list[Seen]]:
        """By participant and path: views from low to high, and the last one before."""
        return self._between(spans, "view", "from_at")

    def _between(self, spans: Sequence[Span], table: str, at: str) -> dict[tuple[bytes, str], list[Seen]]:
        found: dict[tuple[bytes, str], list[Seen]] = {(span.participant_id, span.path): [] for span in spans}
        for row in asked(
            self._tx,
            "with asked (participant_id, path, low, high) as (values {})"  # noqa: S608
            f" select v.participant_id, v.path, v.{at} as at, v.id, v.digest from asked a cross join {table} v"
            f" where v.participant_id = a.participant_id and v.path = a.path and v.{at} <= a.high"
            f" and v.{at} >= coalesce((select max(b.{at}) from {table} b where"
            f" b.participant_id = a.participant_id and b.path = a.path and b.{at} <= a.low), 0)",
            spans,
        ):
            seen = Seen(from_at=row["at"], id=row["id"], digest=row["digest"])
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

    def receipts(self, spans: Sequence[Span]) -> dict[tuple[bytes, str], list[Seen]]:
        """By participant and path: receipts from low to high, and the last one before."""
        return self._between(spans, "receipt", "at")

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
