"""Raw events that are kept long enough, deleted some at a time; sums, units and what stands beside them stay."""

from collections import defaultdict
from collections.abc import Sequence

from control_plane.store.database import Tx


class RetentionStore:
    """Deletes, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def close(self, *, before: int, now: int) -> list[bytes]:
        """Phases that were over before that moment count nothing from now on; those of which that is new."""
        rows = self._tx.all(
            "select p.id from phase p join experiment e on e.id = p.experiment_id where p.events_gone_at is null"
            " and coalesce(p.closed_at, e.completed_at) < ? order by p.id",
            (before,),
        )
        self._tx.many("update phase set events_gone_at = ? where id = ?", [(now, row["id"]) for row in rows])
        return [row["id"] for row in rows]

    def clear(self, limit: int) -> int:
        """Up to so many events of closed phases are deleted; how many were found, 0: none is left."""
        phase = self._tx.one(
            "select id from phase where events_gone_at is not null and events_cleared = 0 order by id limit 1"
        )
        if phase is None:
            return 0
        rows = self._tx.all(
            "select event_id from attributed_event where phase_id = ?"
            " order by phase_id, participant_id, block, subject, occurred_at, event_id limit ?",
            (phase["id"], limit),
        )
        event_ids = [row["event_id"] for row in rows]
        if event_ids:
            self._tx.run(
                f"delete from attributed_event where phase_id = ? and event_id in ({_marks(event_ids)})",  # noqa: S608
                (phase["id"], *event_ids),
            )
        self._drop(event_ids, unless_counted=True)
        if len(rows) < limit:
            self._tx.run("update phase set events_cleared = 1 where id = ?", (phase["id"],))
        return max(1, len(rows))

    def drop_uncounted(self, *, before: int, limit: int) -> int:
        """Up to so many events that count nowhere and came before that moment are deleted; how many."""
        rows = self._tx.all(
            "select id from event where reason is not null and received_at < ? order by received_at limit ?",
            (before, limit),
        )
        self._drop([row["id"] for row in rows], unless_counted=False)
        return len(rows)

    def drop_keys(self, *, before: int, limit: int) -> int:
        """Up to so many ids of applications that were seen last before that moment are forgotten; how many."""
        rows = self._tx.all(
            "select project_id, key from event_key where seen_at < ? order by seen_at limit ?",
            (before, limit),
        )
        keys: defaultdict[bytes, list[str]] = defaultdict(list)
        for row in rows:
            keys[row["project_id"]].append(row["key"])
        for project_id, own in keys.items():
            self._tx.run(
                f"delete from event_key where project_id = ? and key in ({_marks(own)})",  # noqa: S608
                (project_id, *own),
            )
        return len(rows)

    def drop_answers(self, *, before: int, limit: int) -> int:
        """Up to so many answers that were given before that moment are forgotten with their keys; how many."""
        rows = self._tx.all(
            "select project_id, operation, key from idempotency where created_at < ? order by created_at limit ?",
            (before, limit),
        )
        self._tx.many(
            "delete from idempotency where project_id = ? and operation = ? and key = ?",
            [(row["project_id"], row["operation"], row["key"]) for row in rows],
        )
        return len(rows)

    def _drop(self, event_ids: Sequence[bytes], *, unless_counted: bool) -> None:
        if not event_ids:
            return
        mine = f"id in ({_marks(event_ids)})"
        for row in self._tx.all(
            f"select project_id, max(arrival) as last from event where {mine} group by project_id",  # noqa: S608
            event_ids,
        ):
            self._tx.run(
                "update project set last_arrival = ? where id = ? and last_arrival < ?",
                (row["last"], row["project_id"], row["last"]),
            )
        kept = " and not exists (select 1 from attributed_event t where t.event_id = event.id)"
        self._tx.run(f"delete from event where {mine}{kept if unless_counted else ''}", event_ids)  # noqa: S608


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
