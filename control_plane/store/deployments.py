"""Slots with their desired rows, deployments, and the outcomes hosts reported."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from control_plane.domain.deployment import Deployment, DeploymentFile, Origin, State
from control_plane.store.database import Row, Tx, carries
from shared.model import OfferAction

_DEPLOYMENT = (
    "select d.*, p.public_id, p.agent_uid, coalesce(a.lease_until, 0) as lease_until from deployment d"
    " join participant p on p.id = d.participant_id left join agent a on a.uid = p.agent_uid"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDeployment:
    """A change of a slot's desired state, before it has a revision."""

    id: bytes
    project_id: bytes
    experiment_id: bytes
    variant_id: bytes | None
    phase_id: bytes | None
    participant_id: bytes
    slot_id: bytes
    origin: Origin
    action: OfferAction
    files: Sequence[DeploymentFile]
    requested_by: str
    overwrite_drift: bool = False
    retry: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Revisions:
    """How far a slot is here (`wanted`), and on its host as that last said; `action` is what is wanted.

    `halted`: it is held back; `settled`: by the record, the host is done with it.
    """

    participant_id: bytes
    slot_id: bytes
    wanted: int
    reported: int
    action: OfferAction
    halted: bool
    settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """An experiment's place on a participant (internal id), as its newest deployment wants it.

    `open`: it should hold a variant. `written`: the variant it should have held last, now or before it was
    restored or closed.
    """

    participant_id: bytes
    paths: tuple[str, ...]
    open: bool
    origin: Origin
    written: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a slot should have held before a deployment of it; without an `action`, nothing yet.

    `told`: a host may know of the deployment. What was closed holds what was written before that.
    """

    participant_id: bytes
    told: bool
    variant_id: bytes | None
    action: OfferAction | None
    files: tuple[DeploymentFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOutcome:
    """A reported outcome; `files`, `reason` and `durations` are JSON-shaped."""

    id: bytes
    deployment_id: bytes
    participant: str
    slot_id: bytes
    agent_uid: bytes
    revision: int
    attempt: int
    step: str
    result: str
    files: list[dict[str, Any]]
    reason: dict[str, Any] | None
    quarantined: bool
    durations: dict[str, int]
    occurred_at: int
    received_at: int


class DeploymentStore:
    """Deployments, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def desire(self, new: NewDeployment, *, now: int) -> int:
        """The slot should hold this from now on; returns its new revision.

        A deployment of the slot that the host was not done with is superseded.
        """
        self._tx.run(
            "update deployment set state = 'superseded', updated_at = ? where participant_id = ? and slot_id = ?"
            " and state in ('pending', 'offered', 'applying')",
            (now, new.participant_id, new.slot_id),
        )
        self._tx.run(  # a newer offer ends the window, or nobody waits for how it ends
            "update deployment set confirming = 0 where participant_id = ? and slot_id = ? and confirming = 1",
            (new.participant_id, new.slot_id),
        )
        row = self._tx.one(
            "insert into slot (participant_id, id, experiment_id, revision, deployment_id, updated_at)"
            " values (?, ?, ?, 1, ?, ?) on conflict (participant_id, id) do update set"
            " revision = max(slot.revision, slot.reported_revision) + 1,"
            " deployment_id = excluded.deployment_id, updated_at = excluded.updated_at,"
            " withdrawn_at = null, overtaken_in = null, halted_at = null returning revision",
            (new.participant_id, new.slot_id, new.experiment_id, new.id, now),
        )
        assert row is not None
        revision = int(row["revision"])
        self._tx.run(
            "insert into deployment (id, project_id, experiment_id, variant_id, phase_id, participant_id, slot_id,"
            " revision, origin, action, state, overwrite_drift, retry, requested_by, created_at, updated_at)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'pending', ?, ?, ?, ?, ?)",
            (
                new.id,
                new.project_id,
                new.experiment_id,
                new.variant_id,
                new.phase_id,
                new.participant_id,
                new.slot_id,
                revision,
                new.origin.value,
                new.action.value,
                int(new.overwrite_drift),
                int(new.retry),
                new.requested_by,
                now,
                now,
            ),
        )
        self._tx.many(
            "insert into deployment_file (deployment_id, path, desired_digest, size) values (?, ?, ?, ?)",
            [(new.id, file.path, file.desired, file.size) for file in new.files],
        )
        return revision

    def withdraw(self, participant_ids: Sequence[bytes], reason: dict[str, str], *, now: int) -> None:
        """Nothing is asked of these participants' slots any more; what had not ended is withdrawn, for `reason`."""
        self._tx.many(
            "update deployment set state = 'withdrawn', reason = ?, updated_at = ? where participant_id = ?"
            " and state in ('pending', 'offered', 'applying')",
            [(json.dumps(reason), now, participant_id) for participant_id in participant_ids],
        )
        self._tx.many(
            "update deployment set confirming = 0 where participant_id = ? and confirming = 1",
            [(participant_id,) for participant_id in participant_ids],
        )
        self._tx.many(
            "update slot set withdrawn_at = ?, updated_at = ? where participant_id = ?",
            [(now, now, participant_id) for participant_id in participant_ids],
        )

    def withdraw_one(self, deployment_id: bytes, reason: dict[str, str], *, now: int) -> Place:
        """The deployment is withdrawn, for `reason`; where its slot was before it."""
        self._tx.run(
            "update deployment set state = 'withdrawn', reason = ?, updated_at = ? where id = ?",
            (json.dumps(reason), now, deployment_id),
        )
        row = self._tx.one(
            "select d.participant_id, d.slot_id, d.offered_at, p.agent_uid, (select e.id from deployment e"
            " where e.participant_id = d.participant_id and e.slot_id = d.slot_id and e.revision < d.revision"
            " and e.state <> 'withdrawn' and e.action <> 'close' order by e.revision desc limit 1) as earlier"
            " from deployment d join participant p on p.id = d.participant_id where d.id = ?",
            (deployment_id,),
        )
        assert row is not None
        earlier = row["earlier"] and self._tx.one("select * from deployment where id = ?", (row["earlier"],))
        return Place(
            participant_id=row["participant_id"],
            told=row["offered_at"] is not None or row["agent_uid"] is not None,
            variant_id=earlier["variant_id"] if earlier else None,
            action=OfferAction(earlier["action"]) if earlier else None,
            files=self._files(earlier["id"]) if earlier else (),
        )

    def empty(self, participant_id: bytes, slot_id: bytes, *, now: int) -> None:
        """Nothing is asked of the slot any more."""
        self._tx.run(
            "update slot set withdrawn_at = ?, updated_at = ? where participant_id = ? and id = ?",
            (now, now, participant_id, slot_id),
        )

    def slots_of(self, experiment_id: bytes) -> list[Slot]:
        """Every slot of the experiment, but those that were withdrawn and those of deleted participants."""
        rows = self._tx.all(
            "select s.participant_id, s.deployment_id, d.action, d.origin, (select w.variant_id from deployment w"
            " where w.participant_id = s.participant_id and w.slot_id = s.id and w.action = 'write'"
            " order by w.revision desc limit 1) as written from slot s"
            " join deployment d on d.id = s.deployment_id join participant p on p.id = s.participant_id"
            " where s.experiment_id = ? and s.withdrawn_at is null and p.deleted_at is null order by s.participant_id",
            (experiment_id,),
        )
        return [
            Slot(
                participant_id=row["participant_id"],
                paths=tuple(file.path for file in self._files(row["deployment_id"])),
                open=row["action"] == OfferAction.WRITE.value,
                origin=Origin(row["origin"]),
                written=row["written"],
            )
            for row in rows
        ]

    def revisions(self, agent_uid: bytes) -> dict[tuple[str, bytes], Revisions]:
        """How far every slot of the agent's participants is, by public id and slot."""
        rows = self._tx.all(
            "select p.public_id, s.id, s.participant_id, s.revision, s.reported_revision, s.halted_at,"
            " s.settled_revision, d.action"
            " from slot s join participant p on p.id = s.participant_id"
            " join deployment d on d.id = s.deployment_id where p.agent_uid = ? and p.deleted_at is null",
            (agent_uid,),
        )
        return {
            (row["public_id"], row["id"]): Revisions(
                participant_id=row["participant_id"],
                slot_id=row["id"],
                wanted=row["revision"],
                reported=row["reported_revision"],
                action=OfferAction(row["action"]),
                halted=row["halted_at"] is not None,
                settled=row["settled_revision"] == row["revision"],
            )
            for row in rows
        }

    def made(self, project_id: bytes, participant: str, slot_id: bytes) -> int:
        """The highest revision that this database ever made for a slot of a participant of this name."""
        row = self._tx.one(
            "select max(d.revision) as n from deployment d join participant p on p.id = d.participant_id"
            " where d.slot_id = ? and p.project_id = ? and p.public_id = ?",
            (slot_id, project_id, participant),
        )
        return (row["n"] or 0) if row else 0

    def note_revisions(self, noted: Iterable[Revisions]) -> None:
        """Hosts took up the `reported` revisions of the slots; the next ones will be higher."""
        self._tx.many(
            "update slot set reported_revision = max(reported_revision, ?) where participant_id = ? and id = ?",
            [(known.reported, known.participant_id, known.slot_id) for known in noted],
        )

    def overtake(self, slots: Iterable[Revisions], incarnation: bytes, *, halted_at: int | None) -> None:
        """What these slots want is newer than anything their hosts have taken up; held back with `halted_at`.

        For a database that was restored from a backup: hosts refuse to go backwards, so what the restored rows want
        becomes a newer revision, in this incarnation.
        """
        for known in slots:
            self._tx.run(
                "update deployment set revision = (select reported_revision + 1 from slot"
                " where participant_id = ? and id = ?), state = 'pending' where id ="
                " (select deployment_id from slot where participant_id = ? and id = ?)",
                (known.participant_id, known.slot_id) * 2,
            )
            self._tx.run(
                "update slot set revision = reported_revision + 1, overtaken_in = ?, halted_at = ?"
                " where participant_id = ? and id = ?",
                (incarnation, halted_at, known.participant_id, known.slot_id),
            )

    def withdrawals(self, project_id: bytes, incarnation: bytes) -> tuple[int, int]:
        """(slots that this incarnation withdraws from hosts that know better, all slots of the project)."""
        row = self._tx.one(
            "select count(*) as n, count(*) filter (where s.overtaken_in = ? and d.action = 'restore') as withdrawn"
            " from slot s join deployment d on d.id = s.deployment_id where d.project_id = ?"
            " and s.withdrawn_at is null",
            (incarnation, project_id),
        )
        return (row["withdrawn"], row["n"]) if row else (0, 0)

    def get(self, project_id: bytes, deployment_id: bytes, *, now: int) -> Deployment | None:
        """The deployment of the project with this id."""
        row = self._tx.one(f"{_DEPLOYMENT} where d.project_id = ? and d.id = ?", (project_id, deployment_id))
        return self._deployment(row, now) if row else None

    def of_experiment(
        self,
        experiment_id: bytes,
        *,
        state: State | None = None,
        current: bool = False,
        settled: bool | None = None,
        before: bytes | None,
        limit: int,
        now: int,
    ) -> list[Deployment]:
        """Deployments of the experiment, newest first, from `before` down.

        Those in `state`; `current`: the newest of each slot, by its revision, as ids are in the order of clocks;
        `settled`: those whose hosts are done with them, or are not.
        """
        where = "d.experiment_id = ? and (? is null or d.id < ?)"
        values: list[object] = [experiment_id, before, before]
        if state is not None:
            where, values = f"{where} and d.state = ?", [*values, state]
        if settled is not None:
            open_too = "d.confirming = 1 or d.state in ('pending', 'offered', 'applying')"
            where = f"{where} and {'not ' * settled}({open_too})"
        if current:
            where += (
                " and d.revision = (select max(revision) from deployment newest where"
                " newest.participant_id = d.participant_id and newest.slot_id = d.slot_id)"
            )
        rows = self._tx.all(f"{_DEPLOYMENT} where {where} order by d.id desc limit ?", (*values, limit))
        return [self._deployment(row, now) for row in rows]

    def current(
        self, project_id: bytes, *, labels: Mapping[str, str], before: bytes | None, limit: int, now: int
    ) -> list[Deployment]:
        """What the slots of experiments with these labels are at, newest first, from `before` down."""
        rows = self._tx.all(
            f"{_DEPLOYMENT} join slot s on s.deployment_id = d.id join experiment e on e.id = d.experiment_id"
            f" where d.project_id = ? and (? is null or d.id < ?) and {carries('e.labels')}"
            " order by d.id desc limit ?",
            (project_id, before, before, json.dumps(dict(labels)), limit),
        )
        return [self._deployment(row, now) for row in rows]

    def outcomes(self, deployment_id: bytes, *, after: bytes | None, limit: int) -> list[StoredOutcome]:
        """What the host reported about the deployment, oldest first, from `after` up."""
        rows = self._tx.all(
            "select o.*, p.public_id from outcome o join participant p on p.id = o.participant_id"
            " where o.deployment_id = ? and (? is null or o.id > ?) order by o.id limit ?",
            (deployment_id, after, after, limit),
        )
        return [
            StoredOutcome(
                id=row["id"],
                deployment_id=row["deployment_id"],
                participant=row["public_id"],
                slot_id=row["slot_id"],
                agent_uid=row["agent_uid"],
                revision=row["revision"],
                attempt=row["attempt"],
                step=row["step"],
                result=row["result"],
                files=json.loads(row["files"]),
                reason=json.loads(row["reason"]) if row["reason"] else None,
                quarantined=bool(row["quarantined"]),
                durations=json.loads(row["durations"]),
                occurred_at=row["occurred_at"],
                received_at=row["received_at"],
            )
            for row in rows
        ]

    def _files(self, deployment_id: bytes) -> tuple[DeploymentFile, ...]:
        rows = self._tx.all(
            "select * from deployment_file where deployment_id = ? order by path", (deployment_id,)
        )
        return tuple(
            DeploymentFile(
                path=row["path"],
                desired=row["desired_digest"],
                size=row["size"],
                running=row["running_digest"],
                attempted=row["attempted_digest"],
            )
            for row in rows
        )

    def _deployment(self, row: Row, now: int) -> Deployment:
        return Deployment(
            id=row["id"],
            experiment_id=row["experiment_id"],
            variant_id=row["variant_id"],
            phase_id=row["phase_id"],
            participant=row["public_id"],
            agent_uid=row["agent_uid"],
            slot_id=row["slot_id"],
            revision=row["revision"],
            origin=Origin(row["origin"]),
            action=row["action"],
            state=State(row["state"]),
            attempts=row["attempts"],
            reason=json.loads(row["reason"]) if row["reason"] else None,
            connected=now < row["lease_until"],
            requested_by=row["requested_by"],
            created_at=row["created_at"],
            offered_at=row["offered_at"],
            applied_at=row["applied_at"],
            confirmed_at=row["confirmed_at"],
            updated_at=row["updated_at"],
            files=self._files(row["id"]),
            confirming=bool(row["confirming"]),
        )
