"""The processes that serve one database, and which of them does what is due by itself."""

from collections.abc import Mapping
from dataclasses import dataclass

from control_plane.store.database import Tx


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """Who leads (None: nobody, since it left), under which token, and its last sign of life."""

    replica_id: bytes | None
    token: int
    beat: int


class ReplicaStore:
    """Replicas, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def beat(self, replica_id: bytes, name: str, *, started_at: int, now: int) -> None:
        """The replica gave a sign of life."""
        self._tx.run(
            "insert into replica (id, name, started_at, seen_at, beat) values (?, ?, ?, ?, 1)"
            " on conflict (id) do update set seen_at = excluded.seen_at, beat = replica.beat + 1",
            (replica_id, name, started_at, now),
        )

    def beats(self) -> dict[bytes, int]:
        """How many signs of life each replica gave."""
        return {row["id"]: row["beat"] for row in self._tx.all("select id, beat from replica")}

    def names(self) -> dict[bytes, str]:
        """What the replicas are called."""
        return {
            row["id"]: row["name"] for row in self._tx.all("select id, name from replica order by name, id")
        }

    def leave(self, replica_id: bytes) -> None:
        """The replica serves no more, and leads no more."""
        self._tx.run("delete from replica where id = ?", (replica_id,))
        self._tx.run("update leader set replica_id = null where replica_id = ?", (replica_id,))

    def forget(self, silent: Mapping[bytes, int]) -> None:
        """These replicas went without a word; one that gave a sign of life beyond so many is there."""
        self._tx.many("delete from replica where id = ? and beat = ?", list(silent.items()))

    def leader(self) -> Leader:
        """Who leads."""
        row = self._tx.one("select replica_id, token, beat from leader where seat = 1")
        if row is None:
            return Leader(replica_id=None, token=0, beat=0)
        return Leader(replica_id=row["replica_id"], token=row["token"], beat=row["beat"])

    def take_lead(self, replica_id: bytes, found: Leader) -> int:
        """The replica leads in place of `found`; its token, which no other ever had."""
        self._tx.run(
            "insert into leader (seat, replica_id, token, beat) values (1, ?, ?, 0) on conflict (seat) do update set"
            " replica_id = excluded.replica_id, token = excluded.token, beat = 0 where leader.token = ?",
            (replica_id, found.token + 1, found.token),
        )
        return found.token + 1

    def hold_lead(self, replica_id: bytes, token: int) -> bool:
        """The leader of this token gave a sign of life; False, and nothing happens, where it leads no more.

        Within the transaction of a write this is its fence: no other can take the lead before that is committed.
        """
        return (
            self._tx.run(
                "update leader set beat = beat + 1 where seat = 1 and replica_id = ? and token = ?",
                (replica_id, token),
            )
            > 0
        )
