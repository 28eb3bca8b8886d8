"""Assignments: who has which variant, from when until when.

A participant has one row in a phase; of a switchback one for each time block, and one more for each time that
a pause cut a block short.
"""

import json
from collections.abc import Sequence

from control_plane.domain.experiment import Assignment
from control_plane.domain.intake import Method
from control_plane.store.database import Row, Tx

_SELECT = (
    "select a.*, p.public_id, p.retired_at, p.deleted_at from assignment a"
    " join participant p on p.id = a.participant_id"
)
PRESENT = (
    "(a.time_block = 0 or a.from_at = coalesce("
    "(select max(b.from_at) from assignment b where b.phase_id = a.phase_id"
    " and b.participant_id = a.participant_id and b.from_at <= ?),"
    " (select min(b.from_at) from assignment b where b.phase_id = a.phase_id"
    " and b.participant_id = a.participant_id)))"
)
"""The one row (of `assignment a`) that says what a participant has at a moment, the one parameter: of its time
blocks the last that has begun, before the first that one."""


class AssignmentStore:
    """Assignments, within one transaction."""

    _tx: Tx

    def add_assignments(self, assignments: Sequence[tuple[Assignment, bytes]]) -> None:
        """(assignment, participant's internal id), all in force."""
        self._tx.many(
            "insert into assignment (id, phase_id, experiment_id, participant_id, variant_id, method, block,"
            " stratum, position, labels_used, from_at, to_at, time_block, cluster)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    item.id,
                    item.phase_id,
                    item.experiment_id,
                    participant_id,
                    item.variant_id,
                    item.drawn.value,
                    item.block,
                    item.stratum,
                    item.position,
                    json.dumps(dict(item.labels_used)),
                    item.from_at,
                    item.to_at,
                    item.time_block,
                    item.cluster,
                )
                for item, participant_id in assignments
            ],
        )

    def assignments(
        self, phase_id: bytes, *, after: tuple[str, int] = ("", 0), limit: int = 1_000_000
    ) -> list[Assignment]:
        """Assignments of the phase by participant and beginning, from (participant, beginning) `after` up."""
        name, moment = after
        rows = self._tx.all(
            f"{_SELECT} where a.phase_id = ? and (p.public_id > ? or (p.public_id = ? and a.from_at > ?))"
            " order by p.public_id, a.from_at limit ?",
            (phase_id, name, name, moment, limit),
        )
        return [_assignment(row) for row in rows]

    def present(self, phase_id: bytes, *, now: int) -> list[Assignment]:
        """What every participant of the phase has now, by participant; before its first block that one."""
        rows = self._tx.all(
            f"{_SELECT} where a.phase_id = ? and {PRESENT} order by p.public_id", (phase_id, now)
        )
        return [_assignment(row) for row in rows]

    def current(self, phase_id: bytes, *, now: int) -> list[tuple[bytes, bytes]]:
        """(participant's internal id, variant) of the time blocks in force now, where the experiment holds files."""
        rows = self._tx.all(
            "select a.participant_id, a.variant_id from assignment a join participant p on p.id = a.participant_id"
            " where a.phase_id = ? and a.time_block > 0 and a.from_at <= ? and a.to_at > ?"
            " and p.retired_at is null and p.deleted_at is null and exists (select 1 from claim c"
            " where c.participant_id = a.participant_id and c.experiment_id = a.experiment_id)"
            " order by a.participant_id",
            (phase_id, now, now),
        )
        return [(row["participant_id"], row["variant_id"]) for row in rows]

    def end_blocks(self, phase_id: bytes, *, now: int, for_good: bool) -> None:
        """Time blocks of the phase end now; those to come are none.

        Unless it is for good, whoever waits for its first block stays on record with that, cut to nothing.
        """
        self._tx.run(
            "update assignment set to_at = ? where phase_id = ? and time_block > 0 and from_at <= ? and to_at > ?",
            (now, phase_id, now, now),
        )
        begun = (
            ""
            if for_good
            else " and exists (select 1 from assignment b where b.phase_id = assignment.phase_id"
            " and b.participant_id = assignment.participant_id and b.from_at < assignment.from_at)"
        )
        ahead = "phase_id = ? and time_block > 0 and from_at > ?"
        self._tx.run(f"delete from assignment where {ahead}{begun}", (phase_id, now))  # noqa: S608
        self._tx.run(f"update assignment set to_at = from_at where {ahead}", (phase_id, now))  # noqa: S608

    def blocks_ended(self, phase_id: bytes) -> int:
        """When the last time block on record of the phase ends; 0 where there is none."""
        row = self._tx.one(
            "select max(to_at) as ended from assignment where phase_id = ? and time_block > 0 and from_at < to_at",
            (phase_id,),
        )
        return (row["ended"] or 0) if row else 0

    def forget_empty_blocks(self, phase_id: bytes) -> None:
        """Time blocks that were cut to nothing are not on record."""
        self._tx.run(
            "delete from assignment where phase_id = ? and time_block > 0 and from_at = to_at", (phase_id,)
        )

    def assignment(self, phase_id: bytes, participant_id: bytes, *, now: int) -> Assignment | None:
        """What the participant has in the phase now."""
        row = self._tx.one(
            f"{_SELECT} where a.phase_id = ? and a.participant_id = ? and {PRESENT}",
            (phase_id, participant_id, now),
        )
        return _assignment(row) if row else None

    def participant_ids(self, phase_id: bytes) -> dict[str, bytes]:
        """Internal id by public id of everybody the phase has on record."""
        rows = self._tx.all(
            "select p.public_id, p.id from assignment a join participant p on p.id = a.participant_id"
            " where a.phase_id = ?",
            (phase_id,),
        )
        return {row["public_id"]: row["id"] for row in rows}

    def participants_in(self, phase_id: bytes) -> list[bytes]:
        """Internal ids of everybody on record, with or without a variant, who is not deleted and no retired host's."""
        rows = self._tx.all(
            "select distinct a.participant_id from assignment a join participant p on p.id = a.participant_id"
            " where a.phase_id = ? and p.retired_at is null and p.deleted_at is null order by a.participant_id",
            (phase_id,),
        )
        return [row["participant_id"] for row in rows]

    def force(
        self, phase_id: bytes, participant_id: bytes, variant_id: bytes, *, actor: str, now: int
    ) -> bool:
        """Where another variant is assigned now, the assignment is marked forced; whether it was another."""
        found = self.assignment(phase_id, participant_id, now=now)
        if found is None or found.variant_id == variant_id:
            return False
        self._tx.run(
            "update assignment set forced_by = ?, forced_at = ? where id = ?", (actor, now, found.id)
        )
        return True

    def unforce(self, assignment_id: bytes) -> None:
        """The assignment is as it was drawn."""
        self._tx.run(
            "update assignment set forced_by = null, forced_at = null where id = ?", (assignment_id,)
        )


def _assignment(row: Row) -> Assignment:
    return Assignment(
        id=row["id"],
        experiment_id=row["experiment_id"],
        phase_id=row["phase_id"],
        participant=row["public_id"],
        variant_id=row["variant_id"],
        drawn=Method(row["method"]),
        block=row["block"],
        stratum=row["stratum"],
        position=row["position"],
        from_at=row["from_at"],
        labels_used=json.loads(row["labels_used"]),
        to_at=row["to_at"],
        forced_by=row["forced_by"],
        retired=row["retired_at"] is not None,
        deleted=row["deleted_at"] is not None,
        time_block=row["time_block"],
        cluster=row["cluster"],
    )
