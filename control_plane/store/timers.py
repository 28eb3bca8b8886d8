"""What is to happen by itself, and what has."""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from control_plane.store.database import Row, Tx


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """Something due at a moment (microseconds); `failure` is JSON-shaped, of one that could not be done."""

    id: bytes
    project_id: bytes
    experiment_id: bytes
    kind: str
    due_at: int
    done_at: int | None = None
    failure: dict[str, Any] | None = None


class TimerStore:
    """Timers, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def ahead(self, experiment_id: bytes) -> list[Timer]:
        """What is to come for the experiment, what is due first."""
        rows = self._tx.all(
            "select * from timer where experiment_id = ? and done_at is null order by due_at, id",
            (experiment_id,),
        )
        return [_timer(row) for row in rows]

    def done_since(self, experiment_id: bytes, moment: int) -> list[tuple[str, int]]:
        """(kind, when it was due) of timers of the experiment that are done and were due after the moment."""
        rows = self._tx.all(
            "select kind, due_at from timer where experiment_id = ? and done_at is not null and due_at > ?",
            (experiment_id, moment),
        )
        return [(row["kind"], row["due_at"]) for row in rows]

    def add(self, timers: Iterable[Timer]) -> None:
        """The timers are to come."""
        self._tx.many(
            "insert into timer (id, project_id, experiment_id, kind, due_at) values (?, ?, ?, ?, ?)",
            [(timer.id, timer.project_id, timer.experiment_id, timer.kind, timer.due_at) for timer in timers],
        )

    def drop(self, timers: Iterable[Timer]) -> None:
        """The timers never come."""
        self._tx.many("delete from timer where id = ? and done_at is null", [(timer.id,) for timer in timers])

    def next(self, *, but: Collection[bytes] = ()) -> Timer | None:
        """The timer that is due first, of other experiments than these; None where nothing is to come."""
        others = ", ".join(
            "?" * (1 + len(but))
        )  # no id is empty, and a list that is, not every database knows
        row = self._tx.one(
            f"select * from timer where done_at is null and experiment_id not in ({others})"  # noqa: S608
            " order by due_at, id limit 1",
            (b"", *but),
        )
        return _timer(row) if row else None

    def take(self, timer_id: bytes, *, now: int) -> bool:
        """The timer is done; whether it was still to come."""
        return (
            self._tx.run("update timer set done_at = ? where id = ? and done_at is null", (now, timer_id)) > 0
        )

    def fail(self, timer_id: bytes, failure: dict[str, Any], *, now: int) -> None:
        """The timer is done and what it should have brought about could not be."""
        self._tx.run(
            "update timer set done_at = ?, failure = ? where id = ? and done_at is null",
            (now, json.dumps(failure), timer_id),
        )

    def failures(self, experiment_id: bytes) -> list[Timer]:
        """Timers of the experiment that could not be done, where no later one of their kind could; oldest first."""
        rows = self._tx.all(
            "select * from timer t where experiment_id = ? and failure is not null and not exists"
            " (select 1 from timer n where n.experiment_id = t.experiment_id and n.kind = t.kind"
            " and n.done_at > t.done_at) order by done_at, id",
            (experiment_id,),
        )
        return [_timer(row) for row in rows]


def _timer(row: Row) -> Timer:
    return Timer(
        id=row["id"],
        project_id=row["project_id"],
        experiment_id=row["experiment_id"],
        kind=row["kind"],
        due_at=row["due_at"],
        done_at=row["done_at"],
        failure=json.loads(row["failure"]) if row["failure"] else None,
    )
