"""The facts that findings are made of, in a few questions over a phase."""

import json
from collections import defaultdict
from dataclasses import dataclass

from control_plane.store.assignments import PRESENT
from control_plane.store.database import Row, Tx

_STATE = (
    "(select own.state from (select (select v.state from view v where v.participant_id = a.participant_id"
    " and v.path = f.path order by v.from_at desc, v.id desc limit 1) as state"
    " from variant_file f where f.variant_id = a.variant_id) own where own.state is not null"
    " order by own.state in ('drifted', 'missing') desc limit 1)"
)
"""How the files of an assignment `a` were last seen: as one that is not as it should be, where there is one."""

_ByVariant = defaultdict[tuple[bytes, bytes], tuple[int, int]]
_ByParticipant = defaultdict[bytes, tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatedRow:
    """One participant with a variant in a phase; `contents` are ids of variants whose content it held.

    `unit` is what was drawn: the participant, or its cluster.
    """

    participant: str
    unit: str
    variant_id: bytes
    agent_uid: bytes | None
    forced: bool
    retired: bool
    impressions: int
    delivered: int
    state: str | None
    deployment: str | None
    contents: frozenset[bytes]
    conditions: tuple[str, ...]
    """Codes of the agent's conditions that are of a file of the participant."""
    unseen: tuple[str, ...]
    """Why opens went uncounted while it was assigned in the phase."""


class FindingStore:
    """Facts, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def seated(self, experiment_id: bytes, phase_id: bytes, *, now: int) -> list[SeatedRow]:
        """Every participant that has a variant in the phase, by public id; of a switchback, as it is in now's block."""
        rows = self._tx.all(
            "select a.participant_id, a.variant_id, a.forced_by, p.public_id, p.agent_uid, p.retired_at,"  # noqa: S608
            f" g.conditions, d.state as deployment, {_STATE} as state, a.time_block, a.cluster"
            " from assignment a join participant p on p.id = a.participant_id"
            " left join agent g on g.uid = p.agent_uid"
            " join phase f on f.id = a.phase_id"
            # The newest of the phase's time: what came after its end was no part of it.
            " left join slot s on s.participant_id = a.participant_id and s.experiment_id = a.experiment_id"
            " left join deployment d on d.participant_id = s.participant_id and d.slot_id = s.id"
            " and d.revision = (select max(n.revision) from deployment n where n.participant_id = s.participant_id"
            " and n.slot_id = s.id and (f.closed_at is null or n.created_at < f.closed_at))"
            f" where a.phase_id = ? and a.variant_id is not null and {PRESENT} order by p.public_id",
            (phase_id, now),
        )
        contents = self._contents(experiment_id, phase_id)
        counted, of_any = self._counted(phase_id)
        unseen = self._unseen(phase_id)

        def counts(row: Row) -> tuple[int, int]:
            whose = row["participant_id"]
            return of_any[whose] if row["time_block"] else counted[whose, row["variant_id"]]

        return [
            SeatedRow(
                participant=row["public_id"],
                unit=row["cluster"] or row["public_id"],
                variant_id=row["variant_id"],
                agent_uid=row["agent_uid"],
                forced=row["forced_by"] is not None,
                retired=row["retired_at"] is not None,
                impressions=counts(row)[0],
                delivered=counts(row)[1],
                state=row["state"],
                deployment=row["deployment"],
                contents=frozenset(contents[row["participant_id"]]),
                conditions=tuple(
                    condition["code"]
                    for condition in json.loads(row["conditions"] or "[]")
                    # Whole, as an id may be a part of another one.
                    if f" of {row['public_id']} " in condition["message"]
                ),
                unseen=tuple(sorted(unseen[row["participant_id"]])),
            )
            for row in rows
        ]

    def _counted(self, phase_id: bytes) -> tuple[_ByVariant, _ByParticipant]:
        """Impressions, and those delivered, by participant and variant, and by participant; in one pass."""
        counted: _ByVariant = defaultdict(lambda: (0, 0))
        of_any: _ByParticipant = defaultdict(lambda: (0, 0))
        for row in self._tx.all(
            "select variant_id, participant_id, sum(assigned_count) as m, sum(delivered_count) as d from tally"
            " where phase_id = ? and event_name = '' group by variant_id, participant_id",
            (phase_id,),
        ):
            whose = row["participant_id"]
            counted[whose, row["variant_id"]] = row["m"], row["d"]
            of_any[whose] = of_any[whose][0] + row["m"], of_any[whose][1] + row["d"]
        return counted, of_any

    def _unseen(self, phase_id: bytes) -> defaultdict[bytes, set[str]]:
        """Why opens of a participant went uncounted for a while, by participant."""
        found: defaultdict[bytes, set[str]] = defaultdict(set)
        for row in self._tx.all(
            "select distinct a.participant_id, u.reason from assignment a join unseen u"
            " on u.participant_id = a.participant_id and u.to_at >= a.from_at"
            " and (a.to_at is null or u.from_at < a.to_at) where a.phase_id = ?",
            (phase_id,),
        ):
            found[row["participant_id"]].add(row["reason"])
        return found

    def _contents(self, experiment_id: bytes, phase_id: bytes) -> defaultdict[bytes, set[bytes]]:
        """Variants whose content was on a participant's file while it was assigned in the phase.

        What several variants have alike, as combinations of a level do, is the assigned one's where that has it too,
        and else of one of them.
        """
        holders: defaultdict[tuple[bytes, bytes, str, bytes], set[bytes]] = defaultdict(set)
        for row in self._tx.all(
            "select distinct a.participant_id, a.variant_id as own, v.path, v.digest, f.variant_id"
            " from assignment a join view v on v.participant_id = a.participant_id and v.from_at >= a.from_at"
            " and (a.to_at is null or v.from_at < a.to_at)"
            " join variant_file f on f.path = v.path and f.digest = v.digest"
            " join variant r on r.id = f.variant_id where a.phase_id = ? and r.experiment_id = ?",
            (phase_id, experiment_id),
        ):
            held = row["participant_id"], row["own"], row["path"], row["digest"]
            holders[held].add(row["variant_id"])
        found: defaultdict[bytes, set[bytes]] = defaultdict(set)
        for (participant_id, own, *_), variants in holders.items():
            found[participant_id].add(own if own in variants else min(variants))
        return found
