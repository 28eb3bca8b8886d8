"""Experiments, variants, content, phases, assignments and claims."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from control_plane.domain.design import Design, Type
from control_plane.domain.experiment import (
    Conflict,
    Experiment,
    Phase,
    Variant,
    VariantFile,
)
from control_plane.domain.factors import Factor, Level
from control_plane.domain.intake import Holdout
from control_plane.domain.lifecycle import Status
from control_plane.domain.targeting import TargetingRules
from control_plane.store.assignments import AssignmentStore
from control_plane.store.database import Row, Tx, carries, number
from control_plane.store.holdouts import HoldoutStore
from control_plane.store.searches import matching
from shared.ids import parse_id
from shared.model import Digest, digest
from shared.moment import SECOND

_CARRIES = carries("labels")


class ExperimentStore(AssignmentStore):
    """Experiments, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    # -- experiments

    def next_number(self, project_id: bytes) -> int:
        """The next experiment number of the project, taken."""
        self._tx.run("update project set last_number = last_number + 1 where id = ?", (project_id,))
        row = self._tx.one("select last_number from project where id = ?", (project_id,))
        assert row is not None
        return int(row["last_number"])

    def keys(self, project_id: bytes) -> set[str]:
        """Every experiment key taken in the project."""
        return {
            row["key"]
            for row in self._tx.all("select key from experiment where project_id = ?", (project_id,))
        }

    def names(self, project_id: bytes) -> set[str]:
        """Every experiment name in the project."""
        return {
            row["name"]
            for row in self._tx.all("select name from experiment where project_id = ?", (project_id,))
        }

    def add(self, experiment: Experiment) -> None:
        """The experiment exists, without variants. Raises IntegrityViolation where its key is taken."""
        values = _experiment_values(experiment)
        columns = ", ".join(values)
        marks = ", ".join("?" * len(values))
        self._tx.run(f"insert into experiment ({columns}) values ({marks})", list(values.values()))  # noqa: S608

    def save(self, experiment: Experiment) -> None:
        """The experiment's own columns are as given; its version has grown by one."""
        values = _experiment_values(experiment)
        assignments = ", ".join(f"{column} = ?" for column in values if column != "version")
        self._tx.run(
            f"update experiment set {assignments}, version = version + 1 where id = ?",  # noqa: S608
            [*(value for column, value in values.items() if column != "version"), experiment.id],
        )

    def find(self, project_id: bytes, name: str) -> Experiment | None:
        """The experiment of the project with this id, key or number, whole."""
        row = self._tx.one(
            "select * from experiment where project_id = ? and (id = ? or key = ? or number = ?)",
            (project_id, parse_id(name), name, number(name)),
        )
        return self._whole(row) if row else None

    def owner(self, project_id: bytes, variant_id: str) -> bytes | None:
        """The experiment of the project that has the variant of this id."""
        row = self._tx.one(
            "select e.id from variant v join experiment e on e.id = v.experiment_id"
            " where v.id = ? and e.project_id = ?",
            (parse_id(variant_id), project_id),
        )
        return row["id"] if row else None

    def get(self, experiment_id: bytes) -> Experiment:
        """The experiment with this id, whole."""
        row = self._tx.one("select * from experiment where id = ?", (experiment_id,))
        assert row is not None
        return self._whole(row)

    def page(
        self,
        project_id: bytes,
        *,
        status: str | None,
        kind: str | None,
        search: str,
        archived: bool,
        labels: Mapping[str, str],
        before: bytes | None,
        limit: int,
    ) -> list[Experiment]:
        """Experiments of the project that are (not) archived, newest first, from `before` down."""
        found, texts = matching(search) if search else ("1 = 1", [])
        rows = self._tx.all(
            "select * from experiment where project_id = ? and archived = ? and (? is null or id < ?)"  # noqa: S608
            f" and (? is null or status = ?) and (? is null or type = ?) and {_CARRIES}"
            f" and {found} order by id desc limit ?",
            (
                project_id,
                int(archived),
                before,
                before,
                status,
                status,
                kind,
                kind,
                json.dumps(labels),
                *texts,
                limit,
            ),
        )
        return self._wholes(rows)

    def delete(self, experiment_id: bytes) -> None:
        """The draft and everything in it is gone."""
        for sql in (
            "delete from claim where experiment_id = ?",
            "delete from deployment_file where deployment_id in (select id from deployment where experiment_id = ?)",
            "delete from outcome where deployment_id in (select id from deployment where experiment_id = ?)",
            "delete from deployment where experiment_id = ?",
            "delete from slot where experiment_id = ?",
            "delete from experiment where id = ?",
        ):
            self._tx.run(sql, (experiment_id,))

    def keep_snapshot(self, experiment_id: bytes, snapshot: Any) -> None:
        """The results as they were when the experiment was completed."""
        self._tx.run("update experiment set snapshot = ? where id = ?", (json.dumps(snapshot), experiment_id))

    def _whole(self, row: Row) -> Experiment:
        return self._wholes([row])[0]

    def _wholes(self, rows: Sequence[Row]) -> list[Experiment]:
        """The experiments with everything in them, in as many statements for a page as for one."""
        variants = self._variants_of([row["id"] for row in rows])
        phases = self._phases_of([row["phase_id"] for row in rows if row["phase_id"]])
        return [
            replace(
                _experiment(row),
                variants=variants.get(row["id"], ()),
                phase=phases[row["phase_id"]] if row["phase_id"] else None,
                holdout=self._holdout(row["project_id"], row["design"]),
            )
            for row in rows
        ]

    def _phases_of(self, ids: Sequence[bytes]) -> dict[bytes, Phase]:
        rows = self._tx.all(f"select * from phase where id in ({_places(ids)})", ids) if ids else []  # noqa: S608
        return {row["id"]: _phase(row) for row in rows}

    def _holdout(self, project_id: bytes, design: str) -> Holdout | None:
        named = json.loads(design).get("holdoutId")
        found = HoldoutStore(self._tx).find(project_id, named) if named else None
        return found.rule if found else None

    # -- variants and content

    def variants(self, experiment_id: bytes) -> tuple[Variant, ...]:
        """The experiment's variants in their order."""
        return self._variants_of([experiment_id]).get(experiment_id, ())

    def _variants_of(self, ids: Sequence[bytes]) -> dict[bytes, tuple[Variant, ...]]:
        """Each experiment's variants in their order."""
        if not ids:
            return {}
        files: dict[bytes, list[VariantFile]] = {}
        for row in self._tx.all(
            "select f.* from variant_file f join variant v on v.id = f.variant_id"  # noqa: S608
            f" where v.experiment_id in ({_places(ids)}) order by f.path",
            ids,
        ):
            file = VariantFile(path=row["path"], digest=row["digest"], size=row["size"])
            files.setdefault(row["variant_id"], []).append(file)
        found: dict[bytes, list[Variant]] = {}
        for row in self._tx.all(
            f"select * from variant where experiment_id in ({_places(ids)}) order by position",  # noqa: S608
            ids,
        ):
            found.setdefault(row["experiment_id"], []).append(_variant(row, files.get(row["id"], [])))
        return {experiment_id: tuple(variants) for experiment_id, variants in found.items()}

    def put_variant(self, variant: Variant) -> None:
        """The variant is as given, new or changed. Raises IntegrityViolation where its key is taken."""
        self._tx.run(
            "insert into variant (id, experiment_id, position, key, name, description, is_control, weight,"
            " config, metadata, targeting_rules, levels, kept, created_at, updated_at)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " on conflict (id) do update set position = excluded.position, name = excluded.name,"
            " description = excluded.description, is_control = excluded.is_control, weight = excluded.weight,"
            " config = excluded.config,"
            " metadata = excluded.metadata, targeting_rules = excluded.targeting_rules,"
            " levels = excluded.levels, kept = excluded.kept,"
            " updated_at = excluded.updated_at",
            (
                variant.id,
                variant.experiment_id,
                variant.position,
                variant.key,
                variant.name,
                variant.description,
                int(variant.is_control),
                variant.weight,
                _json(variant.config),
                _json(variant.metadata),
                variant.targeting_rules.model_dump_json(by_alias=True),
                json.dumps(dict(variant.levels)),
                json.dumps(dict(variant.kept)),
                variant.created_at,
                variant.updated_at,
            ),
        )
        self._tx.run("delete from variant_file where variant_id = ?", (variant.id,))
        self._tx.many(
            "insert into variant_file (variant_id, path, digest, size) values (?, ?, ?, ?)",
            [(variant.id, file.path, file.digest, file.size) for file in variant.files],
        )

    def delete_variant(self, variant_id: bytes) -> None:
        """The variant is gone."""
        self._tx.run("delete from variant where id = ?", (variant_id,))

    def put_content(self, project_id: bytes, body: bytes) -> Digest:
        """The content is kept under its digest."""
        value = digest(body)
        self._tx.run(
            "insert into content (project_id, digest, body) values (?, ?, ?) on conflict do nothing",
            (project_id, value, body),
        )
        return value

    def content(self, project_id: bytes, value: Digest) -> bytes | None:
        """The content with this digest."""
        row = self._tx.one(
            "select body from content where project_id = ? and digest = ?", (project_id, value)
        )
        return row["body"] if row else None

    # -- phases and assignments

    def add_phase(self, experiment_id: bytes, run: int, phase: Phase) -> None:
        """The phase is open."""
        weights = {variant_id.hex(): weight for variant_id, weight in phase.weights.items()}
        self._tx.run(
            "insert into phase (id, experiment_id, run, number, algorithm, seed, weights, traffic_allocation,"
            " opened_at, closed_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                phase.id,
                experiment_id,
                run,
                phase.number,
                phase.algorithm,
                phase.seed,
                json.dumps(weights),
                phase.traffic_allocation,
                phase.opened_at,
                phase.closed_at,
            ),
        )

    def close_phase(self, phase_id: bytes, *, now: int) -> None:
        """The phase and its assignments end now; time blocks to come never do."""
        self._tx.run("update phase set closed_at = ? where id = ? and closed_at is null", (now, phase_id))
        self._tx.run("update assignment set to_at = ? where phase_id = ? and to_at is null", (now, phase_id))
        self.end_blocks(phase_id, now=now, for_good=True)

    # -- claims

    def claim(
        self, experiment_id: bytes, participant_ids: Iterable[bytes], paths: Sequence[str], *, now: int
    ) -> None:
        """The experiment holds these files of these participants. Raises IntegrityViolation otherwise."""
        self._tx.many(
            "insert into claim (participant_id, path, experiment_id, taken_at) values (?, ?, ?, ?)"
            " on conflict (participant_id, path) do update set taken_at = excluded.taken_at"
            " where claim.experiment_id = excluded.experiment_id",
            [(participant, path, experiment_id, now) for participant in participant_ids for path in paths],
        )

    def holds(self, experiment_id: bytes) -> bool:
        """The experiment holds a file of somebody."""
        return (
            self._tx.one("select 1 from claim where experiment_id = ? limit 1", (experiment_id,)) is not None
        )

    def conflicts(
        self, experiment_id: bytes, participant_ids: Sequence[bytes], paths: Sequence[str]
    ) -> list[Conflict]:
        """Who else holds any of these files of these participants."""
        found = []
        for participant_id in participant_ids:
            rows = self._tx.all(
                "select c.path, e.key, p.public_id from claim c join experiment e on e.id = c.experiment_id"
                " join participant p on p.id = c.participant_id"
                " where c.participant_id = ? and c.experiment_id <> ? order by c.path",
                (participant_id, experiment_id),
            )
            found += [
                Conflict(participant=row["public_id"], path=row["path"], holder=row["key"])
                for row in rows
                if row["path"] in paths
            ]
        return found

    def release(self, experiment_id: bytes, *, now: int) -> None:
        """The experiment holds nothing; who is meant by another that is running is considered for that again."""
        self._tx.run(
            "update participant set updated_at = ? where id in"
            " (select participant_id from claim where experiment_id = ?)",
            (now, experiment_id),
        )
        self._tx.run("delete from claim where experiment_id = ?", (experiment_id,))

    def release_participants(self, participant_ids: Sequence[bytes]) -> None:
        """No experiment holds a file of these participants."""
        self._tx.many(
            "delete from claim where participant_id = ?", [(identifier,) for identifier in participant_ids]
        )

    def release_of(self, experiment_id: bytes, participant_ids: Sequence[bytes], *, now: int) -> None:
        """The experiment holds nothing of these participants; as for `release`."""
        self._tx.many(
            "delete from claim where experiment_id = ? and participant_id = ?",
            [(experiment_id, participant_id) for participant_id in participant_ids],
        )
        self._tx.many(
            "update participant set updated_at = ? where id = ?",
            [(now, participant_id) for participant_id in participant_ids],
        )

    # -- intake

    def open_to_newcomers(self) -> list[tuple[bytes, bytes]]:
        """(project, id) of running experiments that choose by labels, where a participant changed meanwhile."""
        rows = self._tx.all(
            "select e.project_id, e.id, e.selector from experiment e where e.status = 'running' and exists"
            " (select 1 from participant p where p.project_id = e.project_id and p.deleted_at is null"
            " and p.updated_at > e.intake_at) order by e.id"
        )
        return [(row["project_id"], row["id"]) for row in rows if json.loads(row["selector"]).get("labels")]

    def looked_at(self, experiment_id: bytes, moment: int) -> None:
        """Every participant that changed up to the moment was considered for the experiment."""
        self._tx.run("update experiment set intake_at = ? where id = ?", (moment, experiment_id))

    def phases(self, experiment_id: bytes, run: int) -> list[Phase]:
        """The phases of a run, in order."""
        rows = self._tx.all(
            "select * from phase where experiment_id = ? and run = ? order by number", (experiment_id, run)
        )
        return [_phase(row) for row in rows]


def _places(values: Sequence[bytes]) -> str:
    """A place for each of the values in a list of parameters: a page's, so not many."""
    return ", ".join("?" * len(values))


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _experiment_values(e: Experiment) -> dict[str, Any]:
    return {
        "id": e.id,
        "project_id": e.project_id,
        "number": e.number,
        "key": e.key,
        "name": e.name,
        "description": e.description,
        "type": e.type.value,
        "status": e.status.value,
        "archived": int(e.archived),
        "target_file": e.target_file,
        "selector": json.dumps(e.selector),
        "metrics": json.dumps(e.metrics),
        "settle_seconds": _settle_seconds(e.design),  # attribution joins on it
        "design": e.design.model_dump_json(by_alias=True),
        "factors": _factors_json(e.factors),
        "labels": json.dumps(e.labels),
        "metadata": _json(e.metadata),
        "run": e.run,
        "seed": e.seed,
        "phase_id": e.phase.id if e.phase else None,
        "winner_variant_id": e.winner_variant_id,
        "conclusion": e.conclusion,
        "conclusion_comment": e.conclusion_comment,
        "created_by": e.created_by,
        "version": e.version,
        "created_at": e.created_at,
        "updated_at": e.updated_at,
        "started_at": e.started_at,
        "resumed_at": e.resumed_at,
        "paused_at": e.paused_at,
        "stopped_at": e.stopped_at,
        "completed_at": e.completed_at,
        "archived_at": e.archived_at,
        "analysis_fingerprint": e.analysis_fingerprint,
        "kept": json.dumps(dict(e.kept)),
    }


def _experiment(row: Row) -> Experiment:
    return Experiment(
        id=row["id"],
        project_id=row["project_id"],
        number=row["number"],
        key=row["key"],
        name=row["name"],
        description=row["description"],
        type=Type(row["type"]),
        status=Status(row["status"]),
        archived=bool(row["archived"]),
        target_file=row["target_file"],
        selector=json.loads(row["selector"]),
        metrics=json.loads(row["metrics"]),
        design=Design.model_validate_json(row["design"]),
        factors=_factors(row["factors"]),
        labels=json.loads(row["labels"]),
        metadata=json.loads(row["metadata"]) if row["metadata"] else None,
        run=row["run"],
        seed=row["seed"],
        winner_variant_id=row["winner_variant_id"],
        conclusion=row["conclusion"],
        conclusion_comment=row["conclusion_comment"],
        created_by=row["created_by"],
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        started_at=row["started_at"],
        resumed_at=row["resumed_at"],
        paused_at=row["paused_at"],
        stopped_at=row["stopped_at"],
        completed_at=row["completed_at"],
        archived_at=row["archived_at"],
        analysis_fingerprint=row["analysis_fingerprint"],
        kept=json.loads(row["kept"]),
    )


def _settle_seconds(design: Design) -> int:
    """For how long after the beginning of an assignment nothing counts: a washout settles too."""
    washout = design.switchback.settling if design.switchback else 0
    return max(design.exposure_criteria.settle_seconds, -(-washout // SECOND))


def _factors_json(factors: Iterable[Factor]) -> str:
    return json.dumps(
        [
            {
                "key": factor.key,
                "targetFile": factor.target_file,
                "levels": [
                    {"key": level.key, "name": level.name, "digest": level.digest.hex(), "size": level.size}
                    for level in factor.levels
                ],
            }
            for factor in factors
        ]
    )


def _factors(text: str) -> tuple[Factor, ...]:
    return tuple(
        Factor(
            key=factor["key"],
            target_file=factor["targetFile"],
            levels=tuple(
                Level(**{**level, "digest": bytes.fromhex(level["digest"])}) for level in factor["levels"]
            ),
        )
        for factor in json.loads(text)
    )


def _phase(row: Row) -> Phase:
    return Phase(
        id=row["id"],
        number=row["number"],
        algorithm=row["algorithm"],
        seed=row["seed"],
        weights={bytes.fromhex(key): value for key, value in json.loads(row["weights"]).items()},
        traffic_allocation=row["traffic_allocation"],
        opened_at=row["opened_at"],
        closed_at=row["closed_at"],
        events_gone_at=row["events_gone_at"],
    )


def _variant(row: Row, files: Iterable[VariantFile]) -> Variant:
    return Variant(
        id=row["id"],
        experiment_id=row["experiment_id"],
        position=row["position"],
        key=row["key"],
        name=row["name"],
        description=row["description"],
        is_control=bool(row["is_control"]),
        weight=row["weight"],
        files=tuple(files),
        config=json.loads(row["config"]) if row["config"] else None,
        metadata=json.loads(row["metadata"]) if row["metadata"] else None,
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        targeting_rules=TargetingRules.model_validate_json(row["targeting_rules"]),
        levels=json.loads(row["levels"]),
        kept=json.loads(row["kept"]),
    )
