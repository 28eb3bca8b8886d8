"""What hosts said of content before it was assigned, and who was kept out for it."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence

from control_plane.domain.preflight import Content, Refusal, Said
from control_plane.store.database import Tx
from shared.model import Digest, PreflightResult, Reason
from shared.moment import SECOND

KEPT = 30 * 86_400 * SECOND
"""Words about content are forgotten after so long."""


class PreflightStore:
    """Preflights, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def edition(self) -> tuple[int, int]:
        """Another one after every change of an experiment."""
        row = self._tx.one("select count(*) as n, coalesce(sum(version), 0) as v from experiment")
        assert row is not None
        return row["n"], row["v"]

    def open_experiments(self, *, changed_since: int) -> list[tuple[bytes, bytes]]:
        """(project, id) of running experiments that choose by labels, and of drafts that changed or are scheduled."""
        rows = self._tx.all(
            "select project_id, id, status, selector, design, updated_at from experiment"
            " where archived = 0 and status in ('draft', 'running') order by id"
        )
        return [
            (row["project_id"], row["id"])
            for row in rows
            if (row["status"] == "running" and json.loads(row["selector"]).get("labels"))
            or (
                row["status"] == "draft"
                and (
                    row["updated_at"] >= changed_since
                    or (json.loads(row["design"]).get("schedule") or {}).get("startAt")
                )
            )
        ]

    def said(self, digests: Iterable[Digest]) -> dict[bytes, dict[Content, Said]]:
        """By participant (internal id): what its present agent said of these contents, by its present policy."""
        found: defaultdict[bytes, dict[Content, Said]] = defaultdict(dict)
        for value in sorted(set(digests)):
            for row in self._tx.all(
                "select v.participant_id, v.path, v.reason, v.judged_at from preflight v"
                " join participant p on p.id = v.participant_id and p.agent_uid = v.agent_uid"
                " and p.policy = v.policy where v.digest = ?",
                (value,),
            ):
                reason = json.loads(row["reason"]) if row["reason"] else None
                found[row["participant_id"]][row["path"], value] = Said(reason=reason, at=row["judged_at"])
        return dict(found)

    def record(self, participant_id: bytes, agent_uid: bytes, result: PreflightResult, *, now: int) -> bool:
        """The verdicts are known, where agent and policy are the participant's; whether they are."""
        known = self._tx.one(
            "select 1 from participant where id = ? and agent_uid = ? and policy = ? and deleted_at is null",
            (participant_id, agent_uid, result.policy),
        )
        if known is None:
            return False
        before = self._word(participant_id, result)
        self._tx.many(
            "insert into preflight (participant_id, path, digest, agent_uid, policy, reason, judged_at)"
            " values (?, ?, ?, ?, ?, ?, ?) on conflict (participant_id, path, digest) do update set"
            " agent_uid = excluded.agent_uid, policy = excluded.policy, reason = excluded.reason,"
            " judged_at = excluded.judged_at",
            [
                (participant_id, one.path, one.digest, agent_uid, result.policy, _reason(one.refused), now)
                for one in result.verdicts
            ],
        )
        self._tx.run(
            "delete from preflight where participant_id = ? and judged_at < ?", (participant_id, now - KEPT)
        )
        news = [
            one
            for one in result.verdicts
            if (took := before.get((one.path, one.digest))) is None or took is not (one.refused is None)
        ]
        if news:  # whoever is meant by a running experiment is considered for it again
            self._tx.run("update participant set updated_at = ? where id = ?", (now, participant_id))
        return True

    def _word(self, participant_id: bytes, result: PreflightResult) -> dict[Content, bool]:
        """Whether it takes each content by its last word; read for itself, because the words of all are many."""
        found = {}
        for one in result.verdicts:
            row = self._tx.one(
                "select v.reason from preflight v join participant p on p.id = v.participant_id"
                " and p.agent_uid = v.agent_uid and p.policy = v.policy"
                " where v.participant_id = ? and v.path = ? and v.digest = ?",
                (participant_id, one.path, one.digest),
            )
            if row is not None:
                found[one.path, one.digest] = row["reason"] is None
        return found

    def keep_out(
        self, experiment_id: bytes, run: int, refused: Iterable[tuple[bytes, Sequence[Refusal]]], *, now: int
    ) -> None:
        """(participant, refusals): the start of this run kept them out."""
        self._tx.many(
            "insert into kept_out (experiment_id, run, participant_id, reasons, at) values (?, ?, ?, ?, ?)",
            [
                (experiment_id, run, whom, json.dumps([_shown(one) for one in refusals]), now)
                for whom, refusals in refused
            ],
        )

    def kept_out(self, experiment_id: bytes, run: int) -> dict[str, tuple[Refusal, ...]]:
        """Public ids of those that the start of this run kept out, and what their hosts refused."""
        rows = self._tx.all(
            "select p.public_id, k.reasons from kept_out k join participant p on p.id = k.participant_id"
            " where k.experiment_id = ? and k.run = ? order by p.public_id",
            (experiment_id, run),
        )
        return {row["public_id"]: tuple(map(_refusal, json.loads(row["reasons"]))) for row in rows}


def _reason(reason: Reason | None) -> str | None:
    if reason is None:
        return None
    return json.dumps({"code": reason.code.value, "message": reason.message, "remedy": reason.remedy})


def _shown(refusal: Refusal) -> dict[str, object]:
    return {
        "path": refusal.path,
        "variants": list(refusal.variants),
        "code": refusal.code,
        "message": refusal.message,
    }


def _refusal(item: dict[str, object]) -> Refusal:
    variants = item["variants"]
    assert isinstance(variants, list)
    return Refusal(
        path=str(item["path"]),
        variants=tuple(variants),
        code=str(item["code"]),
        message=str(item["message"]),
    )
