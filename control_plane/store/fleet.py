"""Agents, participants and presence."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from control_plane.domain.fleet import Agent, Participant, ParticipantFile, Presence, Telemetry, Turn
from control_plane.store.database import Row, Tx, carries
from shared.model import Hello, ParticipantState

_PARTICIPANT = (
    "select p.*, a.hostname, a.labels as agent_labels, a.last_seen_at, coalesce(a.lease_until, 0) as lease_until"
    " from participant p left join agent a on a.uid = p.agent_uid"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which participants or agents are asked for: with all these labels, and that presence at `now`."""

    labels: Mapping[str, str] = field(default_factory=dict)
    presence: Presence | None = None
    now: int = 0

    @property
    def present(self) -> tuple[str | None, int, str | None]:
        """The parameters of `_PRESENCE`."""
        presence = self.presence.value if self.presence else None
        return presence, self.now, presence


_TOGETHER = 500  # asked about in one statement

ANY = Wanted()

# What `domain.fleet.presence` says, for the database to choose by.
_PRESENCE = (
    "(? is null or case when retired_at is not null then 'retired' when last_seen_at is null then 'never_seen'"
    " when coalesce(lease_until, 0) > ? then 'connected' else 'lost' end = ?)"
)


class FleetStore:
    """Agents and participants, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    # -- agents

    def add_agent(self, agent: Agent) -> None:
        """The agent is enrolled."""
        self._tx.run(
            "insert into agent (uid, project_id, name, hostname, labels, participant_patterns,"
            " certificate_serial, certificate_not_after, enrolled_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                agent.uid,
                agent.project_id,
                agent.name,
                agent.hostname,
                json.dumps(agent.labels),
                json.dumps(agent.participant_patterns),
                agent.certificate_serial,
                agent.certificate_not_after,
                agent.enrolled_at,
            ),
        )

    def set_certificate(self, uid: bytes, *, serial: str, not_after: int, authority: bytes) -> None:
        """The agent's newest certificate, and which authority issued it."""
        self._tx.run(
            "update agent set certificate_serial = ?, certificate_not_after = ?, certificate_authority = ?"
            " where uid = ?",
            (serial, not_after, authority, uid),
        )

    def certified_by_others(self, authority: bytes, *, since: int) -> list[str]:
        """Names of agents, not banned or retired, with another authority's certificate that ends after `since`."""
        rows = self._tx.all(
            "select name from agent where banned_at is null and retired_at is null and certificate_not_after > ?"
            " and (certificate_authority is null or certificate_authority <> ?) order by name",
            (since, authority),
        )
        return [row["name"] for row in rows]

    def agent(self, uid: bytes) -> Agent | None:
        """The agent with this uid."""
        row = self._tx.one("select * from agent where uid = ?", (uid,))
        return self._agent(row) if row else None

    def agents(self, project_id: bytes, wanted: Wanted, *, before: bytes | None, limit: int) -> list[Agent]:
        """Agents of the project, newest first, from `before` down."""
        rows = self._tx.all(
            "select * from agent where project_id = ? and (? is null or uid < ?)"  # noqa: S608
            f" and {carries('host_labels', 'labels')} and {_PRESENCE} order by uid desc limit ?",
            (project_id, before, before, json.dumps(wanted.labels), *wanted.present, limit),
        )
        return [self._agent(row) for row in rows]

    def ban(self, uid: bytes, *, now: int) -> None:
        """The agent may not come back."""
        self._tx.run("update agent set banned_at = coalesce(banned_at, ?) where uid = ?", (now, uid))

    def retire(self, uid: bytes, *, now: int) -> list[bytes]:
        """The agent may not come back, and its participants are bound to nobody; their internal ids."""
        rows = self._tx.all(
            "select id from participant where agent_uid = ? and deleted_at is null order by id", (uid,)
        )
        self._tx.run(
            "update agent set retired_at = ?, lease_until = min(lease_until, ?) where uid = ?",
            (now, now, uid),
        )
        self._tx.run(
            "update participant set agent_uid = null, binding_generation = binding_generation + 1,"
            " retired_at = ?, updated_at = ? where agent_uid = ? and deleted_at is null",
            (now, now, uid),
        )
        return [row["id"] for row in rows]

    def may_speak(self, uid: bytes) -> bytes | None:
        """The project of an agent that is known, not banned, retired or quarantined; None for any other."""
        row = self._tx.one(
            "select project_id from agent where uid = ? and banned_at is null and retired_at is null"
            " and quarantined_at is null",
            (uid,),
        )
        return row["project_id"] if row else None

    def open_session(
        self,
        uid: bytes,
        hello: Hello,
        *,
        session_id: bytes,
        lease_until: int,
        connected_at: int,
        now: int,
    ) -> None:
        """The agent is connected by this session and is what its Hello says."""
        platform = {"os": hello.platform.os, "kernel": hello.platform.kernel, "arch": hello.platform.arch}
        labels = {f"host.{name}": value for name, value in hello.labels.items()}
        self._tx.run(
            "update agent set hostname = ?, host_labels = ?, version = ?, capabilities = ?, platform = ?,"
            " session_id = ?, session_epoch = ?, boot_id = ?, instance = ?, connected_at = ?, last_seen_at = ?,"
            " lease_until = ?, spool = ? where uid = ?",
            (
                hello.hostname,
                json.dumps(labels),
                hello.agent_version,
                json.dumps(hello.capabilities),
                json.dumps(platform),
                session_id,
                hello.session_epoch,
                hello.boot_id,
                hello.spool.epoch,
                connected_at,
                now,
                lease_until,
                _spool(Telemetry(spool=hello.spool)),
                uid,
            ),
        )

    def renew_leases(self, sessions: Sequence[tuple[bytes, bytes, int, int | None]], *, until: int) -> None:
        """(agent, session, last seen, clock skew): each lease reaches to `until`.

        Unless a newer session took it. A skew of None is not known yet and leaves the one before.
        """
        self._tx.many(
            "update agent set last_seen_at = ?, lease_until = ?, clock_skew = coalesce(?, clock_skew)"
            " where uid = ? and session_id = ?",
            [(seen, until, skew, uid, session) for uid, session, seen, skew in sessions],
        )

    def end_session(self, uid: bytes, session_id: bytes, *, now: int) -> None:
        """The agent is lost from now on, also by a clock that is set back, unless a newer session has taken over."""
        self._tx.run(
            "update agent set lease_until = 0, last_seen_at = ? where uid = ? and session_id = ?",
            (now, uid, session_id),
        )

    def observe(self, uid: bytes, telemetry: Telemetry) -> None:
        """The agent's telemetry as last reported."""
        conditions = [
            {"code": one.code, "severity": one.severity, "sinceAt": one.since_at, "message": one.message}
            for one in telemetry.conditions
        ]
        self._tx.run(
            "update agent set spool = ?, conditions = ? where uid = ?",
            (_spool(telemetry), json.dumps(conditions), uid),
        )

    def find(self, uid: bytes, findings: Sequence[dict[str, Any]]) -> None:
        """These are all of what the control plane itself finds wrong with the agent."""
        self._tx.run("update agent set findings = ? where uid = ?", (json.dumps(list(findings)), uid))

    def turn(self, uid: bytes, turns: Sequence[Turn], *, quarantined_at: int | None) -> None:
        """The agent's session changed hands like this, and it is quarantined since then (None: it is not)."""
        stored = [{"instance": t.instance.hex(), "former": t.former.hex(), "at": t.at} for t in turns]
        self._tx.run(
            "update agent set turns = ?, quarantined_at = ? where uid = ?",
            (json.dumps(stored), quarantined_at, uid),
        )

    def diverge(self, uid: bytes, incarnation: bytes) -> None:
        """The agent gets no offers for as long as the database is this incarnation."""
        self._tx.run("update agent set diverged_in = ? where uid = ?", (incarnation, uid))

    def touch(self, participant_ids: Sequence[bytes]) -> set[bytes]:
        """The generation of every agent that serves one of the participants has grown; their uids."""
        uids = set()
        for participant_id in participant_ids:
            row = self._tx.one("select agent_uid from participant where id = ?", (participant_id,))
            if row and row["agent_uid"]:
                uids.add(row["agent_uid"])
        self.grow(uids)
        return uids

    def grow(self, uids: Iterable[bytes]) -> None:
        """The agents' generation has grown: whoever holds their sessions looks again."""
        self._tx.many(
            "update agent set generation = generation + 1 where uid = ?", [(uid,) for uid in sorted(uids)]
        )

    def standing(self, uids: Sequence[bytes]) -> dict[bytes, tuple[int, bytes | None]]:
        """(generation, present session) of each of these agents."""
        found: dict[bytes, tuple[int, bytes | None]] = {}
        for start in range(0, len(uids), _TOGETHER):
            some = uids[start : start + _TOGETHER]
            places = ", ".join("?" * len(some))
            for row in self._tx.all(
                f"select uid, generation, session_id from agent where uid in ({places})",  # noqa: S608
                tuple(some),
            ):
                found[row["uid"]] = (row["generation"], row["session_id"])
        return found

    def _agent(self, row: Row) -> Agent:
        lost = self._tx.one("select sum(count) as n from spool_loss where agent_uid = ?", (row["uid"],))
        names = self._tx.all(
            "select public_id from participant where agent_uid = ? and deleted_at is null order by public_id",
            (row["uid"],),
        )
        return Agent(
            uid=row["uid"],
            project_id=row["project_id"],
            name=row["name"],
            hostname=row["hostname"],
            labels=json.loads(row["labels"]),
            host_labels=json.loads(row["host_labels"]),
            participant_patterns=tuple(json.loads(row["participant_patterns"])),
            generation=row["generation"],
            version=row["version"],
            capabilities=tuple(json.loads(row["capabilities"])),
            platform=json.loads(row["platform"]) if row["platform"] else None,
            session_id=row["session_id"],
            session_epoch=row["session_epoch"],
            boot_id=row["boot_id"],
            connected_at=row["connected_at"],
            last_seen_at=row["last_seen_at"],
            lease_until=row["lease_until"],
            certificate_serial=row["certificate_serial"],
            certificate_not_after=row["certificate_not_after"],
            spool=json.loads(row["spool"]) if row["spool"] else None,
            conditions=tuple(json.loads(row["conditions"])),
            enrolled_at=row["enrolled_at"],
            banned_at=row["banned_at"],
            retired_at=row["retired_at"],
            quarantined_at=row["quarantined_at"],
            instance=row["instance"] or b"",
            turns=tuple(
                Turn(instance=bytes.fromhex(t["instance"]), former=bytes.fromhex(t["former"]), at=t["at"])
                for t in json.loads(row["turns"])
            ),
            findings=tuple(json.loads(row["findings"])),
            diverged_in=row["diverged_in"] or b"",
            clock_skew=row["clock_skew"],
            lost=(lost["n"] or 0) if lost else 0,
            participants=tuple(name["public_id"] for name in names),
        )

    # -- the fleet as a whole

    def frozen_at(self, project_id: bytes) -> int | None:
        """Since when no offer goes to the project's hosts; None while they do."""
        row = self._tx.one("select frozen_at from project where id = ?", (project_id,))
        return row["frozen_at"] if row else None

    def freeze(self, project_id: bytes, moment: int | None) -> None:
        """Offers stop as of `moment`, or go out again (None)."""
        self._tx.run("update project set frozen_at = ? where id = ?", (moment, project_id))

    def withdrawals_held(self, project_id: bytes) -> int:
        """How many slots' withdrawals are held back."""
        row = self._tx.one(
            "select count(*) as n from slot s join participant p on p.id = s.participant_id"
            " where p.project_id = ? and s.halted_at is not null",
            (project_id,),
        )
        return row["n"] if row else 0

    def release_withdrawals(self, project_id: bytes, finding: str) -> None:
        """No slot's withdrawal is held back, and no agent has the finding of that code any more."""
        for row in self._tx.all(
            "select uid, findings from agent where project_id = ? and findings <> '[]'", (project_id,)
        ):
            self.find(row["uid"], [item for item in json.loads(row["findings"]) if item["code"] != finding])
        self._tx.run(
            "update slot set halted_at = null where halted_at is not null and participant_id in"
            " (select id from participant where project_id = ?)",
            (project_id,),
        )

    def uids(self, project_id: bytes) -> set[bytes]:
        """Every agent of the project."""
        return {
            row["uid"] for row in self._tx.all("select uid from agent where project_id = ?", (project_id,))
        }

    # -- participants

    def add_participant(
        self, participant_id: bytes, *, project_id: bytes, public_id: str, labels: dict[str, str], now: int
    ) -> None:
        """The participant exists, unbound. Raises IntegrityViolation where the public id is taken."""
        self._tx.run(
            "insert into participant (id, project_id, public_id, labels, created_at, updated_at)"
            " values (?, ?, ?, ?, ?, ?)",
            (participant_id, project_id, public_id, json.dumps(labels), now, now),
        )

    def participant(self, project_id: bytes, public_id: str) -> Participant | None:
        """The live participant with this public id."""
        row = self._tx.one(
            f"{_PARTICIPANT} where p.project_id = ? and p.public_id = ? and p.deleted_at is null",
            (project_id, public_id),
        )
        return _participant(row) if row else None

    def participants_named(self, project_id: bytes, public_ids: Sequence[str]) -> dict[str, Participant]:
        """The live participants with these public ids, by them."""
        rows = self._tx.all(
            f"{_PARTICIPANT} where p.project_id = ? and p.deleted_at is null"  # noqa: S608
            " and p.public_id in (select value from json_each(?))",
            (project_id, json.dumps(list(public_ids))),
        )
        return {row["public_id"]: _participant(row) for row in rows}

    def participants(
        self, project_id: bytes, wanted: Wanted = ANY, *, after: str = "", limit: int = 1_000_000
    ) -> list[Participant]:
        """Live participants of the project by public id, from `after` up."""
        rows = self._tx.all(
            f"select * from ({_PARTICIPANT} where p.project_id = ? and p.deleted_at is null and p.public_id > ?)"  # noqa: S608
            f" where {carries('host_labels', 'labels', 'agent_labels')} and {_PRESENCE}"
            " order by public_id limit ?",
            (project_id, after, json.dumps(wanted.labels), *wanted.present, limit),
        )
        return [_participant(row) for row in rows]

    def off_record(self, project_id: bytes, phase_id: bytes) -> list[Participant]:
        """Live participants of the project that the phase does not have on record, by public id.

        Most of a fleet is on record: nothing is read of those.
        """
        rows = self._tx.all(
            f"{_PARTICIPANT} where p.project_id = ? and p.deleted_at is null and not exists (select 1 from assignment s"  # noqa: S608
            " where s.phase_id = ? and s.participant_id = p.id) order by p.public_id",
            (project_id, phase_id),
        )
        return [_participant(row) for row in rows]

    def outside(self, participant_ids: Sequence[bytes], labels: Mapping[str, str]) -> list[str]:
        """Public ids of those of the live participants that do not carry all of these labels; hosts' own count not."""
        outside = []
        for participant_id in participant_ids:
            row = self._tx.one(
                f"select public_id from ({_PARTICIPANT} where p.id = ? and p.deleted_at is null)"  # noqa: S608
                f" where not {carries('labels', 'agent_labels')}",
                (participant_id, json.dumps(dict(labels))),
            )
            if row is not None:
                outside.append(row["public_id"])
        return outside

    def bound(self, uid: bytes) -> int:
        """How many participants the agent serves."""
        row = self._tx.one(
            "select count(*) as n from participant where agent_uid = ? and deleted_at is null", (uid,)
        )
        return row["n"] if row else 0

    def bind(self, participant_id: bytes, uid: bytes, state: ParticipantState, *, now: int) -> None:
        """The agent serves the participant, as its configuration says."""
        self._tx.run(
            "update participant set agent_uid = ?, host_labels = ?, targets = ?, drift_policy = ?, exposure = ?,"
            " policy = ?, retired_at = null, updated_at = ? where id = ?",
            (
                uid,
                json.dumps(host_labels(state)),
                json.dumps(state.targets),
                state.drift.value,
                state.exposure.value,
                state.policy,
                now,
                participant_id,
            ),
        )

    def move(self, participant_id: bytes, uid: bytes, *, now: int) -> None:
        """The participant is another agent's, under a new binding generation."""
        self._tx.run(
            "update participant set agent_uid = ?, binding_generation = binding_generation + 1, policy = ?,"
            " retired_at = null, updated_at = ? where id = ?",
            (uid, b"", now, participant_id),
        )

    def set_labels(self, participant_id: bytes, labels: dict[str, str], *, now: int) -> None:
        """These are all the participant's labels from the API."""
        self._tx.run(
            "update participant set labels = ?, updated_at = ? where id = ?",
            (json.dumps(labels), now, participant_id),
        )

    def delete_participant(self, participant_id: bytes, *, now: int) -> None:
        """The public id is free again."""
        self._tx.run("update participant set deleted_at = ? where id = ?", (now, participant_id))

    def held_by(self, participant_id: bytes) -> list[str]:
        """Keys of the experiments that hold a file of the participant."""
        rows = self._tx.all(
            "select distinct e.key from claim c join experiment e on e.id = c.experiment_id"
            " where c.participant_id = ? order by e.key",
            (participant_id,),
        )
        return [row["key"] for row in rows]

    def files(self, participant_id: bytes) -> list[ParticipantFile]:
        """The participant's target files that an experiment holds, what the last view saw and what was last tried."""
        rows = self._tx.all(
            "select f.path, f.desired_digest, f.running_digest, s.revision, s.experiment_id, d.variant_id,"
            " tried.attempted_digest, last.reason from slot s join deployment d on d.id = s.deployment_id"
            " join deployment_file f on f.deployment_id = d.id"
            " left join deployment last on last.id = (select id from deployment where participant_id = s.participant_id"
            " and slot_id = s.id and attempts > 0 order by revision desc limit 1)"
            " left join deployment_file tried on tried.deployment_id = last.id and tried.path = f.path"
            " join claim c on c.participant_id = s.participant_id and c.path = f.path"
            " and c.experiment_id = s.experiment_id where s.participant_id = ? order by f.path",
            (participant_id,),
        )
        files = []
        for row in rows:
            seen = self._tx.one(
                "select digest, state, from_at from view where participant_id = ? and path = ?"
                " order by from_at desc, id desc limit 1",
                (participant_id, row["path"]),
            )
            files.append(
                ParticipantFile(
                    path=row["path"],
                    desired=row["desired_digest"],
                    running=seen["digest"] if seen else row["running_digest"],
                    revision=row["revision"],
                    state=seen["state"] if seen else None,
                    seen_at=seen["from_at"] if seen else None,
                    experiment_id=row["experiment_id"],
                    variant_id=row["variant_id"],
                    attempted=row["attempted_digest"],
                    reason=json.loads(row["reason"]) if row["reason"] else None,
                )
            )
        return files


def host_labels(state: ParticipantState) -> dict[str, str]:
    """The labels a host gives the participant, as they are stored."""
    return {f"host.{name}": value for name, value in state.labels.items()}


def _spool(telemetry: Telemetry) -> str:
    """The spool, and with it what else a host measures of itself."""
    spool = telemetry.spool
    return json.dumps(
        {
            "depth": spool.depth,
            "bytes": spool.size,
            "oldestAt": spool.oldest_at,
            "certificateDaysLeft": telemetry.certificate_days_left,
            "stateFreeBytes": telemetry.state_free_bytes,
        }
    )


def _participant(row: Row) -> Participant:
    inherited = json.loads(row["agent_labels"]) if row["agent_labels"] else {}
    return Participant(
        id=row["id"],
        public_id=row["public_id"],
        agent_uid=row["agent_uid"],
        binding_generation=row["binding_generation"],
        hostname=row["hostname"],
        labels={**inherited, **json.loads(row["labels"])},
        host_labels=json.loads(row["host_labels"]),
        targets=tuple(json.loads(row["targets"])),
        drift_policy=row["drift_policy"],
        exposure=row["exposure"],
        last_seen_at=row["last_seen_at"],
        lease_until=row["lease_until"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        retired_at=row["retired_at"],
        policy=row["policy"],
    )
