"""Experiments as lists of other systems ask for them: several states at once, any order, from any place, counted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from control_plane.store.database import Row, Tx, carries

ORDERS: Mapping[str, str] = {
    "number": "number",
    "name": "lower(name)",
    "key": "key",
    "status": "status",
    "created": "created_at",
    "updated": "updated_at",
    "started": "coalesce(started_at, 0)",
    "ended": "coalesce(completed_at, stopped_at, 0)",
    "duration": "case when started_at is null then -1 else coalesce(completed_at, stopped_at, {now}) - started_at end",
}
"""What lists can be ordered by."""


_REVERTED = (
    "exists (select 1 from slot s join deployment d on d.id = s.deployment_id"
    " where s.experiment_id = experiment.id and s.withdrawn_at is null and d.origin = 'pause')"
)
_PAUSES: Mapping[str, str] = {
    "held": f"(status = 'paused' and not {_REVERTED})",
    "reverted": f"(status = 'paused' and {_REVERTED})",
}
"""Paused with files that stay, or that are what was there before."""


_KEEPS = (
    "exists (select 1 from json_each(kept) door, json_each(door.value) said"
    " where door.key = ? and said.key = ? and cast(said.value as text) in (?, ?))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeps:
    """That a door keeps, of the experiment itself, a field with this value."""

    door: str
    name: str
    value: str | bool

    @property
    def values(self) -> tuple[str, str, str, str]:
        """What stands in `_KEEPS`; a flag is 1 to SQLite and true to PostgreSQL."""
        texts = (
            (self.value, self.value)
            if isinstance(self.value, str)
            else (str(int(self.value)), str(self.value).lower())
        )
        return self.door, self.name, *texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which experiments; every condition has to hold. Empty, or None, is no condition.

    A status may be `held` or `reverted`, too: paused with files that stay, or that are what was there before.

    `event` is looked for in the names that metrics count. What keeps `hidden` is left out, and what keeps `counted` is
    as good as of the `kind`. With `flags` those of two variants and more, the first of them `control`.
    """

    project_id: bytes
    statuses: Sequence[str] = ()
    archived: bool | None = None
    kind: str | None = None
    search: str = ""
    key: str = ""
    number: int | None = None
    creator: str = ""
    event: str = ""
    hidden: Keeps | None = None
    counted: Keeps | None = None
    flags: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


class SearchStore:
    """Searches, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def count(self, wanted: Wanted) -> int:
        """How many there are."""
        where, values = _where(wanted)
        row = self._tx.one(f"select count(*) as n from experiment where {where}", values)  # noqa: S608
        assert row is not None
        return int(row["n"])

    def page(
        self, wanted: Wanted, *, order: str, descending: bool, offset: int, limit: int, now: int
    ) -> list[bytes]:
        """Their ids in this order (a name of ORDERS), the newest first among equals."""
        where, values = _where(wanted)
        by = ORDERS[order].format(now=int(now))
        way = "desc" if descending else "asc"
        rows = self._tx.all(
            f"select id from experiment where {where} order by {by} {way}, id desc limit ? offset ?",  # noqa: S608
            [*values, limit, offset],
        )
        return [row["id"] for row in rows]

    def reverted(self, experiment_id: bytes) -> bool:
        """Whether the experiment is paused with files that are what was there before."""
        paused = f"select 1 as found from experiment where id = ? and {_PAUSES['reverted']}"  # noqa: S608
        return self._tx.one(paused, (experiment_id,)) is not None

    def below(self, wanted: Wanted, *, after: tuple[int, bytes] | None, limit: int) -> list[Row]:
        """(id, updated_at) of the last changed first, of equals the newest, from below `after` on."""
        where, values = _where(wanted)
        if after is not None:
            where += " and (updated_at < ? or (updated_at = ? and id < ?))"
            values += [after[0], after[0], after[1]]
        return self._tx.all(
            f"select id, updated_at from experiment where {where} order by updated_at desc, id desc limit ?",  # noqa: S608
            [*values, limit],
        )


def _where(wanted: Wanted) -> tuple[str, list[Any]]:
    where, values = ["project_id = ?"], [wanted.project_id]  # type: list[str], list[Any]
    for column, value in (
        ("archived", None if wanted.archived is None else int(wanted.archived)),
        ("key", wanted.key or None),
        ("number", wanted.number),
        ("created_by", wanted.creator or None),
    ):
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)
    if wanted.kind:
        as_good = f" or {_KEEPS}" if wanted.counted else ""
        where.append(f"(type = ?{as_good})")
        values += [wanted.kind, *(wanted.counted.values if wanted.counted else ())]
    if wanted.statuses:
        plain = [status for status in wanted.statuses if status not in _PAUSES]
        any_of = [_PAUSES[status] for status in wanted.statuses if status in _PAUSES]
        if plain:
            any_of.append(f"status in ({', '.join('?' * len(plain))})")
        where.append(f"({' or '.join(any_of)})")
        values += plain
    if wanted.labels:
        where.append(carries("labels"))
        values.append(json.dumps(dict(wanted.labels)))
    if wanted.event:
        where.append("(metrics like ? escape '\\' or metrics like ? escape '\\')")
        values += [
            _like(json.dumps({name: wanted.event})[1:-1]) for name in ("eventName", "denominatorEventName")
        ]
    if wanted.hidden:
        where.append(f"not {_KEEPS}")
        values += wanted.hidden.values
    if wanted.flags:
        where.append(
            "(select count(*) from variant v where v.experiment_id = experiment.id) >= 2 and exists (select 1 from"
            " variant v where v.experiment_id = experiment.id and v.key = 'control' and v.position ="
            " (select min(w.position) from variant w where w.experiment_id = experiment.id))"
        )
    if wanted.search:
        found, texts = matching(wanted.search)
        where.append(found)
        values += texts
    return " and ".join(where), values


def matching(search: str) -> tuple[str, list[str | None]]:
    """SQL, and its values: experiments with this text in their name, key, description or id, in whatever case."""
    # Both sides are folded by the database: which letters that reaches is its own business.
    columns = ("name", "key", "description")
    texts = " or ".join(f"folded({column}) like folded(?) escape '\\'" for column in columns)
    like, digits = _like(search), search.lower().replace("-", "")  # ids are shown with and without
    return f"({texts} or lower(hex(id)) like ?)", [like, like, like, _like(digits) if digits else None]


def _like(text: str) -> str:
    return "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
