"""Events in the order in which they came in, for whoever looks at them as they do."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from control_plane.store.database import Row, Tx, carries

_WANTED = (
    ("participant", "e.participant_name = ?"),
    ("kind", "e.kind = ?"),
    ("event_name", "e.event_name = ?"),
    ("from_at", "e.occurred_at >= ?"),
    ("to_at", "e.occurred_at < ?"),
    (
        "experiment_id",
        "exists (select 1 from attributed_event t join phase f on f.id = t.phase_id"
        " where t.event_id = e.id and f.experiment_id = ?)",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """What events are asked for; all of it has to hold, and None asks for nothing. `from_at` is within, `to_at` not.

    With `labels` only what happened to participants that carry them all.
    """

    participant: str | None = None
    kind: str | None = None
    event_name: str | None = None
    from_at: int | None = None
    to_at: int | None = None
    experiment_id: bytes | None = None
    labels: Mapping[str, str]


class ArrivalStore:
    """Events as they came in, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def before(self, project_id: bytes, wanted: EventFilter, *, below: int | None, limit: int) -> list[Row]:
        """The newest ones that came in before number `below`, the newest first."""
        beyond = (" and e.arrival < ?", (below,)) if below is not None else ("", ())
        return self._found(project_id, wanted, *beyond, order="desc", limit=limit)

    def after(self, project_id: bytes, wanted: EventFilter, *, above: int, limit: int) -> list[Row]:
        """Those that came in after number `above`, the oldest first."""
        return self._found(project_id, wanted, " and e.arrival > ?", (above,), order="", limit=limit)

    def _found(
        self,
        project_id: bytes,
        wanted: EventFilter,
        beyond: str,
        bound: tuple[int, ...],
        *,
        order: str,
        limit: int,
    ) -> list[Row]:
        given = [(sql, value) for name, sql in _WANTED if (value := getattr(wanted, name)) is not None]
        # Labels are asked for only where there are some: what nobody is known to have done carries none.
        if wanted.labels:
            given.append((carries("p.labels"), json.dumps(dict(wanted.labels))))
        conditions = "".join(f" and {sql}" for sql, _ in given)
        return self._tx.all(
            "select e.*, p.public_id from event e left join participant p on p.id = e.participant_id"  # noqa: S608
            f" where e.project_id = ?{beyond}{conditions} order by e.arrival {order} limit ?",
            (project_id, *bound, *(value for _, value in given), limit),
        )

    def attributions(
        self, event_ids: Sequence[bytes], labels: Mapping[str, str]
    ) -> Mapping[bytes, list[Row]]:
        """By event, what each counts for in experiments that carry these labels, the oldest phase first."""
        found: dict[bytes, list[Row]] = defaultdict(list)
        if not event_ids:  # a list that is empty, not every database knows
            return found
        marks = ", ".join("?" * len(event_ids))
        for row in self._tx.all(
            "select t.*, f.experiment_id, u.first_assigned, u.first_delivered from attributed_event t"  # noqa: S608
            " join phase f on f.id = t.phase_id join experiment x on x.id = f.experiment_id"
            " left join unit u on u.phase_id = t.phase_id and u.participant_id = t.participant_id"
            " and u.block = t.block and u.subject = t.subject and u.event_name = ''"
            f" where t.event_id in ({marks}) and {carries('x.labels')} order by f.opened_at, f.id",
            (*event_ids, json.dumps(dict(labels))),
        ):
            found[row["event_id"]].append(row)
        return found
