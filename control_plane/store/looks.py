"""Recorded looks: the sums of every participant as they stood when a day was closed, and what was decided.

Only ever added to. A snapshot is compressed JSON: of 1,000 participants and a few conversions about 20 KiB.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from control_plane.store.database import Row, Tx

Snapshot = Mapping[str, Any]
"""{participants: [[public id, variant id in hex], …], sums: {population: {event name: [[count, units, value], …]}}}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookRow:
    """One look; `day` is the last UTC day it includes, `cut_off` and `at` are microseconds."""

    phase_id: bytes
    number: int
    day: int
    cut_off: int
    at: int
    decisions: dict[str, Any]


class LookStore:
    """Looks, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def all(self, phase_id: bytes) -> list[LookRow]:
        """The looks of the phase, in order."""
        rows = self._tx.all(
            "select phase_id, number, day, cut_off, at, decisions from look where phase_id = ? order by number",
            (phase_id,),
        )
        return [_look(row) for row in rows]

    def last_day(self, phase_id: bytes) -> int | None:
        """The last UTC day that a look of the phase includes; None before the first."""
        row = self._tx.one("select max(day) as day from look where phase_id = ?", (phase_id,))
        return row["day"] if row else None

    def snapshots(self, phase_id: bytes) -> list[Snapshot]:
        """What the looks of the phase saw, in order."""
        rows = self._tx.all("select snapshot from look where phase_id = ? order by number", (phase_id,))
        return [json.loads(zlib.decompress(row["snapshot"])) for row in rows]

    def snapshot(self, phase_id: bytes, number: int) -> Snapshot:
        """What one look saw."""
        row = self._tx.one("select snapshot from look where phase_id = ? and number = ?", (phase_id, number))
        assert row is not None
        found: Snapshot = json.loads(zlib.decompress(row["snapshot"]))
        return found

    def add(self, looks: Sequence[tuple[LookRow, Snapshot]]) -> None:
        """The looks are on record. Raises IntegrityViolation where one of that number is already."""
        self._tx.many(
            "insert into look (phase_id, number, day, cut_off, at, decisions, snapshot)"
            " values (?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    look.phase_id,
                    look.number,
                    look.day,
                    look.cut_off,
                    look.at,
                    json.dumps(look.decisions, separators=(",", ":")),
                    zlib.compress(json.dumps(snapshot, separators=(",", ":")).encode()),
                )
                for look, snapshot in looks
            ],
        )


def _look(row: Row) -> LookRow:
    return LookRow(
        phase_id=row["phase_id"],
        number=row["number"],
        day=row["day"],
        cut_off=row["cut_off"],
        at=row["at"],
        decisions=json.loads(row["decisions"]),
    )
