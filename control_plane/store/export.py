"""Everything that is kept of an experiment, in pages that are read by key: none costs what lies before it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from control_plane.store.database import Row, Tx


class What(StrEnum):
    """What there is to take out."""

    EVENTS = "events"
    VIEWS = "views"
    RECEIPTS = "receipts"
    ASSIGNMENTS = "assignments"
    EXCLUSIONS = "exclusions"
    TALLIES = "tallies"


Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """Rows of a source (a phase, or an experiment), which stands `sources` times in the SQL, in the order of `key`."""

    sql: str
    key: tuple[str, ...]
    sources: int = 1
    of_experiment: bool = False


_FACTS = (
    "select * from (select v.*, p.public_id, t.since, (select n.{moment} from {table} n"
    " where n.participant_id = v.participant_id and n.path = v.path and (n.{moment}, n.id) > (v.{moment}, v.id)"
    " order by n.{moment}, n.id limit 1) as to_at from (select participant_id, min(from_at) as since,"
    " case when count(*) = count(to_at) then max(to_at) end as until from assignment where experiment_id = ?"
    " and variant_id is not null group by participant_id) t join {table} v on v.participant_id = t.participant_id"
    " join participant p on p.id = v.participant_id where (t.until is null or v.{moment} < t.until) and v.path in"
    " (select f.path from variant n join variant_file f on f.variant_id = n.id where n.experiment_id = ?)"
    ") seen where (to_at is null or to_at > since)"
)
"""What hosts said of an experiment's files, of whoever had a variant and while it did; each holds until the next."""

_LISTINGS = {
    What.EVENTS: _Listing(
        sql="select t.*, e.path, e.digest, e.properties, e.event_id as own_id, e.source, e.recorded_at,"
        " e.received_at, e.epoch, e.seq, e.agent_uid, p.public_id, u.first_assigned, u.first_delivered"
        " from attributed_event t join event e on e.id = t.event_id left join participant p on p.id = t.participant_id"
        " left join unit u on u.phase_id = t.phase_id and u.participant_id = t.participant_id"
        " and u.block = t.block and u.subject = t.subject and u.event_name = '' where t.phase_id = ?",
        key=("t.participant_id", "t.block", "t.subject", "t.occurred_at", "t.event_id"),
    ),
    What.VIEWS: _Listing(
        sql=_FACTS.format(table="view", moment="from_at"),
        key=("participant_id", "path", "from_at", "id"),
        sources=2,
        of_experiment=True,
    ),
    What.RECEIPTS: _Listing(
        sql=_FACTS.format(table="receipt", moment="at"),
        key=("participant_id", "path", "at", "id"),
        sources=2,
        of_experiment=True,
    ),
    What.ASSIGNMENTS: _Listing(
        sql="select a.*, p.public_id from assignment a join participant p on p.id = a.participant_id"
        " where a.phase_id = ?",
        key=("a.participant_id", "a.time_block", "a.from_at", "a.id"),
    ),
    What.EXCLUSIONS: _Listing(
        sql="select * from (select found.*, p.public_id from ("
        "select participant_id, zeroblob(0) as variant_id, 'assigned' as population,"
        " case method when 'holdout' then 'holdout'"
        " when 'targeted' then 'no_rule' else 'not_allocated' end as reason, 0 as impressions, 0 as conversions"
        " from assignment where phase_id = ? and variant_id is null and time_block <= 1"
        " union all select participant_id, variant_id, 'assigned', assigned,"
        " count(*) filter (where kind = 'impression'), count(*) filter (where kind = 'conversion')"
        " from attributed_event where phase_id = ? and assigned <> 'eligible'"
        " group by participant_id, variant_id, assigned"
        " union all select participant_id, variant_id, 'delivered', delivered,"
        " count(*) filter (where kind = 'impression'), count(*) filter (where kind = 'conversion')"
        " from attributed_event where phase_id = ? and delivered <> 'eligible'"
        " group by participant_id, variant_id, delivered) found left join participant p on p.id = found.participant_id"
        ") named where 1 = 1",
        key=("participant_id", "variant_id", "population", "reason"),
        sources=3,
    ),
    What.TALLIES: _Listing(
        sql="select t.*, p.public_id from tally t left join participant p on p.id = t.participant_id"
        " where t.phase_id = ?",
        key=("t.variant_id", "t.participant_id", "t.block", "t.event_name", "t.day"),
    ),
}


class ExportStore:
    """Rows to take out, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def sources(self, experiment_id: bytes, what: What) -> list[bytes]:
        """Whose rows there are: of the experiment, or of each of its phases, the oldest first."""
        if _LISTINGS[what].of_experiment:
            return [experiment_id]
        rows = self._tx.all(
            "select id from phase where experiment_id = ? order by run, number", (experiment_id,)
        )
        return [row["id"] for row in rows]

    def rows(
        self, what: What, source: bytes, *, after: Key | None, limit: int
    ) -> tuple[list[Row], Key | None]:
        """Up to `limit` rows of the source after a key, and the last one's key; None: those were the last."""
        listing = _LISTINGS[what]
        key, marks = ", ".join(listing.key), ", ".join("?" * len(listing.key))
        beyond = f" and ({key}) > ({marks})" if after is not None else ""
        found = self._tx.all(
            f"{listing.sql}{beyond} order by {key} limit ?",
            ((source,) * listing.sources + (after or ()) + (limit,)),
        )
        if len(found) < limit:
            return found, None
        return found, tuple(found[-1][name.rpartition(".")[2]] for name in listing.key)
