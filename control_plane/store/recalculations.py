"""Jobs that compute the days of an experiment anew, and the days as they were computed."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from control_plane.domain.series import Counts
from control_plane.store.database import Row, Tx


class Progress(StrEnum):
    """How far a job is, or the days of an experiment are."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A recalculation of one phase, of days both ends included; `metric` is the definition, JSON-shaped.

    `failure` says why one that is partial or failed did not get to its last day.
    """

    id: bytes
    project_id: bytes
    experiment_id: bytes
    phase_id: bytes
    metric: dict[str, Any]
    fingerprint: str
    first_day: int
    last_day: int
    status: Progress
    created_by: str
    created_at: int
    started_at: int | None = None
    finished_at: int | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DayResult:
    """What was counted of each variant up to the end of a day, as it was when it was computed."""

    day: int
    counts: Mapping[bytes, Counts]
    computed_at: int


_OPEN = "status in ('pending', 'in_progress')"


class RecalculationStore:
    """Recalculations, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def put(self, job: Job) -> None:
        """The job is as given, new or changed."""
        self._tx.run(
            "insert into recalculation (id, project_id, experiment_id, phase_id, metric, fingerprint, first_day,"
            " last_day, status, created_by, created_at, started_at, finished_at, failure)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " on conflict (id) do update set status = excluded.status, started_at = excluded.started_at,"
            " finished_at = excluded.finished_at, failure = excluded.failure",
            (
                job.id,
                job.project_id,
                job.experiment_id,
                job.phase_id,
                json.dumps(job.metric),
                job.fingerprint,
                job.first_day,
                job.last_day,
                job.status.value,
                job.created_by,
                job.created_at,
                job.started_at,
                job.finished_at,
                job.failure,
            ),
        )

    def newest(self, experiment_id: bytes, fingerprint: str) -> Job | None:
        """The newest job of the experiment under a fingerprint."""
        row = self._tx.one(
            "select * from recalculation where experiment_id = ? and fingerprint = ?"
            " order by created_at desc, id desc limit 1",
            (experiment_id, fingerprint),
        )
        return _job(row) if row else None

    def under_way(self, experiment_id: bytes) -> list[Job]:
        """Jobs of the experiment that are not finished, the oldest first."""
        rows = self._tx.all(
            f"select * from recalculation where experiment_id = ? and {_OPEN} order by created_at, id",  # noqa: S608
            (experiment_id,),
        )
        return [_job(row) for row in rows]

    def days(self, experiment_id: bytes, fingerprint: str) -> list[DayResult]:
        """Every day that was computed, the oldest first."""
        rows = self._tx.all(
            "select * from daily_result where experiment_id = ? and fingerprint = ? order by day",
            (experiment_id, fingerprint),
        )
        return [
            DayResult(
                day=row["day"],
                counts={bytes.fromhex(k): _counts(*v) for k, v in json.loads(row["counts"]).items()},
                computed_at=row["computed_at"],
            )
            for row in rows
        ]

    def clear(self, experiment_id: bytes, fingerprint: str) -> None:
        """No day is computed under the fingerprint."""
        self._tx.run(
            "delete from daily_result where experiment_id = ? and fingerprint = ?",
            (experiment_id, fingerprint),
        )

    def put_days(self, experiment_id: bytes, fingerprint: str, days: Iterable[DayResult]) -> None:
        """The days are computed."""
        self._tx.many(
            "insert into daily_result (experiment_id, fingerprint, day, counts, computed_at)"
            " values (?, ?, ?, ?, ?)",
            [
                (
                    experiment_id,
                    fingerprint,
                    item.day,
                    json.dumps(
                        {
                            k.hex(): (v.impressions, v.conversions, v.participants, *(v.share or ()))
                            for k, v in item.counts.items()
                        }
                    ),
                    item.computed_at,
                )
                for item in days
            ],
        )


def _counts(impressions: int, conversions: int, participants: int, *share: int) -> Counts:
    return Counts(impressions, conversions, participants, (share[0], share[1]) if share else None)


def _job(row: Row) -> Job:
    return Job(
        id=row["id"],
        project_id=row["project_id"],
        experiment_id=row["experiment_id"],
        phase_id=row["phase_id"],
        metric=json.loads(row["metric"]),
        fingerprint=row["fingerprint"],
        first_day=row["first_day"],
        last_day=row["last_day"],
        status=Progress(row["status"]),
        created_by=row["created_by"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        failure=row["failure"],
    )
