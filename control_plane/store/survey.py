"""What there is in a project to test, what was reported of it, and how many experiments there were."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from control_plane.store.database import Tx
from shared.moment import SECOND

_DAY = 86_400 * SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """The newest report of one kind by one participant; `event_name` is empty for an impression.

    `path` is empty where it was about the participant as such.
    """

    participant_id: bytes
    path: str
    event_name: str
    day: int


class SurveyStore:
    """Counts and last moments, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def known_files(self, project_id: bytes) -> list[str]:
        """Every file that a variant of the project has."""
        rows = self._tx.all(
            "select distinct f.path from experiment e join variant v on v.experiment_id = e.id"
            " join variant_file f on f.variant_id = v.id where e.project_id = ? order by f.path",
            (project_id,),
        )
        return [row["path"] for row in rows]

    def held(self, project_id: bytes) -> dict[str, dict[bytes, str]]:
        """Key of the experiment that holds it, by file and participant."""
        found: dict[str, dict[bytes, str]] = {}
        for row in self._tx.all(
            "select c.path, c.participant_id, e.key from claim c join experiment e on e.id = c.experiment_id"
            " where e.project_id = ?",
            (project_id,),
        ):
            found.setdefault(row["path"], {})[row["participant_id"]] = row["key"]
        return found

    def reported(self, participant_ids: Iterable[bytes], event_names: Iterable[str]) -> Iterator[Reported]:
        """The newest day of every participant, file and name, of impressions and of these conversions."""
        names = json.dumps(["", *event_names])
        for participant_id in participant_ids:
            for row in self._tx.all(
                "select path, event_name, max(day) as day from activity where participant_id = ?"
                " and event_name in (select value from json_each(?)) group by path, event_name",
                (participant_id, names),
            ):
                yield Reported(
                    participant_id=participant_id,
                    path=row["path"],
                    event_name=row["event_name"],
                    day=row["day"],
                )

    def last_at(self, reports: Iterable[Reported]) -> int | None:
        """When the newest of the reports happened; looked up for those of the newest day only."""
        found = list(reports)
        newest = max((item.day for item in found), default=None)
        moments = []
        for item in (item for item in found if item.day == newest):
            row = self._tx.one(
                "select occurred_at from event where participant_id = ? and event_name = ? and path = ?"
                " order by occurred_at desc limit 1",
                (item.participant_id, item.event_name, item.path),
            )
            moments.append(row["occurred_at"] if row else item.day * _DAY)
        return max(moments, default=None)

    def between(self, project_id: bytes, low: int, high: int) -> tuple[int, int]:
        """(launched, completed) after `low` up to `high`, of experiments that are not archived."""
        row = self._tx.one(
            "select count(*) filter (where started_at > ? and started_at <= ?) as launched,"
            " count(*) filter (where completed_at > ? and completed_at <= ?) as completed"
            " from experiment where project_id = ? and archived = 0",
            (low, high, low, high, project_id),
        )
        assert row is not None
        return row["launched"], row["completed"]

    def running(self, project_id: bytes) -> int:
        """How many experiments run now."""
        row = self._tx.one(
            "select count(*) as n from experiment where project_id = ? and archived = 0 and status = 'running'",
            (project_id,),
        )
        assert row is not None
        return int(row["n"])
