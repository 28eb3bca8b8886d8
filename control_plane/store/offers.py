"""What hosts are to be told, and what they report, of many hosts at once.

A change to a fleet wakes all its sessions within a moment, and their outcomes come back within a few more: what each
would ask for itself is asked here in one statement for all of them, and nothing is read of slots that are no news.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from control_plane.domain.deployment import State, state_after
from control_plane.store.database import Parameters, Row, Tx, asked
from shared.ids import NewId
from shared.model import Digest, Offer, OfferAction, OfferedFile, Outcome, Reason, Result, show_digest

_TOGETHER = 512  # asked about in one statement
_KEY = ("agent_uid", "public_id", "slot_id", "revision", "attempt", "step")  # of an outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """An agent that may speak: its session is the one with this id. No offer goes to it while the fleet is `frozen`."""

    project_id: bytes
    generation: int
    session_id: bytes | None
    frozen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a slot of an agent should hold, without its files; `ended`: the host is done with it."""

    agent_uid: bytes
    deployment_id: bytes
    project_id: bytes
    experiment_id: bytes
    participant: str
    slot_id: bytes
    revision: int
    action: OfferAction
    retry: bool
    overwrite_drift: bool
    applied_before: bool
    ended: bool


class OfferStore:
    """Offers and outcomes, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    # -- what there is to tell

    def speakers(self, uids: Collection[bytes]) -> dict[bytes, Speaker]:
        """Those of the agents that may speak: known, not banned, retired or quarantined."""
        return {
            row["uid"]: Speaker(
                project_id=row["project_id"],
                generation=row["generation"],
                session_id=row["session_id"],
                frozen=row["frozen_at"] is not None,
            )
            for row in self._among(
                "select a.uid, a.project_id, a.generation, a.session_id, p.frozen_at from agent a join project p"
                " on p.id = a.project_id where a.uid in ({}) and a.banned_at is null and a.retired_at is null"
                " and a.quarantined_at is null",
                uids,
            )
        }

    def bound(self, uids: Collection[bytes]) -> defaultdict[bytes, set[str]]:
        """Public ids of the participants that are bound to each of the agents."""
        found: defaultdict[bytes, set[str]] = defaultdict(set)
        for row in self._among(
            "select agent_uid, public_id from participant where agent_uid in ({}) and deleted_at is null",
            uids,
        ):
            found[row["agent_uid"]].add(row["public_id"])
        return found

    def wanted(self, uids: Collection[bytes], *, behind: Collection[bytes] = ()) -> list[Wanted]:
        """What the slots of the agents' participants should hold; of one agent in the order they were made.

        Slots that their hosts have closed or restored, of which there are ever more, are left out, but of those of the
        agents whose hosts are `behind` what they once reported.
        """
        sql = (
            "select p.agent_uid, p.public_id, s.applied_before, d.id, d.project_id, d.experiment_id, d.slot_id,"
            " d.revision, d.action, d.state, d.retry, d.overwrite_drift from participant p"
            " join slot s on s.participant_id = p.id join deployment d on d.id = s.deployment_id"
            " where p.agent_uid in ({}) and p.deleted_at is null and s.withdrawn_at is null"
            " and s.halted_at is null"
        )
        rows = [
            *self._among(
                f"{sql} and s.settled_revision <> s.revision order by d.id",
                [uid for uid in uids if uid not in behind],
            ),
            *self._among(f"{sql} order by d.id", [uid for uid in uids if uid in behind]),
        ]
        return [
            Wanted(
                agent_uid=row["agent_uid"],
                deployment_id=row["id"],
                project_id=row["project_id"],
                experiment_id=row["experiment_id"],
                participant=row["public_id"],
                slot_id=row["slot_id"],
                revision=row["revision"],
                action=OfferAction(row["action"]),
                retry=bool(row["retry"]),
                overwrite_drift=bool(row["overwrite_drift"]),
                applied_before=bool(row["applied_before"]),
                ended=State(row["state"]).ended,
            )
            for row in rows
        ]

    def offers(self, wanted: Sequence[Wanted], *, inline: int) -> list[Offer]:
        """The same as offers, in their order; a content of at most so many bytes comes with its file."""
        rows: defaultdict[bytes, list[Row]] = defaultdict(list)
        for row in self._among(
            "select deployment_id, path, desired_digest, size from deployment_file where deployment_id in ({})"
            " order by deployment_id, path",
            [item.deployment_id for item in wanted],
        ):
            rows[row["deployment_id"]].append(row)
        bodies: dict[tuple[bytes, Digest], bytes | None] = {}
        digests: dict[bytes, tuple[Digest, ...]] = {}

        def body(project_id: bytes, digest: Digest | None, size: int) -> bytes | None:
            if digest is None or size > inline:
                return None
            if (project_id, digest) not in bodies:
                bodies[project_id, digest] = self._body(project_id, digest)
            return bodies[project_id, digest]

        for experiment_id in {item.experiment_id for item in wanted}:
            digests[experiment_id] = self._digests(experiment_id)
        return [
            Offer(
                deployment_id=item.deployment_id,
                participant=item.participant,
                slot_id=item.slot_id,
                revision=item.revision,
                action=item.action,
                files=tuple(
                    OfferedFile(
                        path=row["path"],
                        digest=row["desired_digest"],
                        size=row["size"],
                        content=body(item.project_id, row["desired_digest"], row["size"]),
                    )
                    for row in rows[item.deployment_id]
                ),
                retry=item.retry,
                overwrite_drift=item.overwrite_drift,
                applied_before=item.applied_before,
                experiment_digests=digests[item.experiment_id],
            )
            for item in wanted
        ]

    def told(self, deployment_ids: Iterable[bytes], *, now: int) -> None:
        """The agents were told of these deployments."""
        self._tx.many(
            "update deployment set state = case state when 'pending' then 'offered' else state end,"
            " offered_at = coalesce(offered_at, ?), updated_at = ? where id = ?",
            [(now, now, deployment_id) for deployment_id in deployment_ids],
        )

    def may_fetch(self, agent_uid: bytes, value: Digest) -> bytes | None:
        """The project whose content the agent may read under this digest; None where no slot of it needs it."""
        row = self._tx.one(
            "select d.project_id from slot s join deployment d on d.id = s.deployment_id"
            " join deployment_file f on f.deployment_id = d.id join participant p on p.id = s.participant_id"
            " where p.agent_uid = ? and f.desired_digest = ? limit 1",
            (agent_uid, value),
        )
        return row["project_id"] if row else None

    def _body(self, project_id: bytes, digest: Digest) -> bytes | None:
        row = self._tx.one(
            "select body from content where project_id = ? and digest = ?", (project_id, digest)
        )
        return row["body"] if row else None

    def _digests(self, experiment_id: bytes) -> tuple[Digest, ...]:
        rows = self._tx.all(
            "select distinct f.digest from variant_file f join variant v on v.id = f.variant_id"
            " where v.experiment_id = ? order by f.digest",
            (experiment_id,),
        )
        return tuple(row["digest"] for row in rows)

    def _among(self, sql: str, values: Collection[bytes]) -> Iterator[Row]:
        """The rows of the statement, with the values in its `{}`."""
        left = list(values)
        while left:
            some, left = left[:_TOGETHER], left[_TOGETHER:]
            # Few lengths, so that the statement is prepared once: the last value again says nothing new.
            some += some[-1:] * ((1 << (len(some) - 1).bit_length()) - len(some))
            yield from self._tx.all(sql.format(", ".join("?" * len(some))), some)

    # -- what hosts report

    def record(
        self, reports: Sequence[tuple[bytes, Outcome]], *, new_id: NewId, now: int
    ) -> list[str | None]:
        """(agent, outcome): each is stored once and its deployment stands accordingly; the states, in their order.

        None where the agent has no such slot or revision, or the outcome was stored before.
        """
        written, found = _Written(), self._reported(reports)
        states = [
            written.take(found.get(_key(uid, outcome)), uid, outcome, outcome_id=new_id(), now=now)
            for uid, outcome in reports
        ]
        written.into(self._tx)
        return states

    def _reported(self, reports: Sequence[tuple[bytes, Outcome]]) -> dict[tuple[Any, ...], Row]:
        """The deployments that outcomes are of, as they stand; what the agent does not have is left out."""
        rows = asked(
            self._tx,
            f"with asked ({', '.join(_KEY)}) as (values {{}})"  # noqa: S608
            " select a.*, d.id, d.participant_id, d.action, d.state, d.attempts, exists (select 1 from deployment n"
            " where n.participant_id = d.participant_id and n.slot_id = d.slot_id and n.revision > d.revision)"
            " as overtaken, (select o.result from outcome o where o.participant_id = d.participant_id"
            " and o.slot_id = d.slot_id and o.revision = d.revision and o.attempt = a.attempt and o.step = a.step)"
            " as known"
            " from asked a cross join participant p cross join deployment d where p.agent_uid = a.agent_uid"
            " and p.public_id = a.public_id and p.deleted_at is null and d.participant_id = p.id"
            " and d.slot_id = a.slot_id and d.revision = a.revision",
            sorted({_key(uid, outcome) for uid, outcome in reports}),
        )
        return {tuple(row[name] for name in _KEY): row for row in rows}


def _key(agent_uid: bytes, outcome: Outcome) -> tuple[bytes, str, bytes, int, int, str]:
    key = outcome.key
    return (agent_uid, key.participant, key.slot_id, key.revision, key.attempt, key.step.value)


class _Written:
    """What outcomes change, to be written together: how deployments stand, and which outcomes are known, by then."""

    def __init__(self) -> None:
        self.known: dict[tuple[bytes, int, str], str] = {}
        self.stands: dict[bytes, tuple[State, int]] = {}
        self.outcomes: list[Parameters] = []
        self.deployments: list[Parameters] = []
        self.files: list[Parameters] = []
        self.slots: list[Parameters] = []

    def take(
        self, row: Row | None, agent_uid: bytes, outcome: Outcome, *, outcome_id: bytes, now: int
    ) -> str | None:
        """How the outcome's deployment stands by it, which stood as `row` says before any of them; None as `record`."""
        if row is None:
            return None
        deployment_id = row["id"]
        known = self.known.get((deployment_id, outcome.attempt, outcome.step.value), row["known"])
        if known not in (None, Result.IN_PROGRESS.value):
            return None
        self.known[deployment_id, outcome.attempt, outcome.step.value] = outcome.result.value
        self.outcomes.append(_outcome(row, agent_uid, outcome, outcome_id=outcome_id, now=now))
        before, attempts = self.stands.get(deployment_id, (State(row["state"]), row["attempts"]))
        state = state_after(before, outcome, latest_attempt=attempts)
        late = outcome.attempt < attempts or (outcome.result is Result.IN_PROGRESS and before.ended)
        if late:
            return state.value  # part of the history, and no news of how it stands
        self.stands[deployment_id] = state, max(attempts, outcome.attempt)
        self.deployments.append(
            (
                state.value,
                outcome.attempt,
                _reason(outcome.reason),
                now,
                int(outcome.confirming and not row["overtaken"]),
                outcome.occurred_at if outcome.result.holds else None,
                outcome.occurred_at if state is State.CONFIRMED else None,
                deployment_id,
            )
        )
        self.files += [(file.running, file.desired, deployment_id, file.path) for file in outcome.files]
        writes = row["action"] == OfferAction.WRITE.value
        settled = not writes and state in (State.APPLIED, State.CONFIRMED)
        self.slots.append(
            (
                outcome.revision,
                int(writes and outcome.result.holds),
                outcome.revision,
                outcome.revision if settled else 0,
                row["participant_id"],
                outcome.slot_id,
            )
        )
        return state.value

    def into(self, tx: Tx) -> None:
        """It is written, in the order in which it came."""
        tx.many(
            "insert into outcome (id, deployment_id, participant_id, slot_id, agent_uid, revision, attempt, step,"
            " result, files, reason, quarantined, durations, occurred_at, received_at)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            # Progress gives way to whatever ended the attempt at that step.
            " on conflict (participant_id, slot_id, revision, attempt, step) do update set result = excluded.result,"
            " files = excluded.files, reason = excluded.reason, quarantined = excluded.quarantined,"
            " durations = excluded.durations, occurred_at = excluded.occurred_at, received_at = excluded.received_at"
            " where outcome.result = 'in_progress'",
            self.outcomes,
        )
        tx.many(
            "update deployment set state = ?, attempts = max(attempts, ?), reason = ?, updated_at = ?, confirming = ?,"
            " applied_at = coalesce(applied_at, ?), confirmed_at = coalesce(confirmed_at, ?) where id = ?",
            self.deployments,
        )
        tx.many(
            "update deployment_file set running_digest = ?, attempted_digest = ? where deployment_id = ?"
            " and path = ?",
            self.files,
        )
        tx.many(
            "update slot set reported_revision = max(reported_revision, ?),"
            " applied_before = max(applied_before, ?), settled_revision = case when revision = ? then ?"
            " else settled_revision end"
            " where participant_id = ? and id = ?",
            self.slots,
        )


def _outcome(
    deployment: Row, agent_uid: bytes, outcome: Outcome, *, outcome_id: bytes, now: int
) -> Parameters:
    files = [
        {
            "path": file.path,
            "desiredDigest": show_digest(file.desired),
            "runningDigest": show_digest(file.running),
            "previousDigest": show_digest(file.previous),
        }
        for file in outcome.files
    ]
    d = outcome.durations
    durations = {
        "fetch": d.fetch,
        "check": d.check,
        "write": d.write,
        "reload": d.reload,
        "probe": d.probe,
    }
    return (
        outcome_id,
        deployment["id"],
        deployment["participant_id"],
        outcome.slot_id,
        agent_uid,
        outcome.revision,
        outcome.attempt,
        outcome.step.value,
        outcome.result.value,
        json.dumps(files),
        _reason(outcome.reason),
        int(outcome.quarantined),
        json.dumps(durations),
        outcome.occurred_at,
        now,
    )


def _reason(reason: Reason | None) -> str | None:
    if reason is None:
        return None
    return json.dumps({"code": reason.code.value, "message": reason.message, "remedy": reason.remedy})
