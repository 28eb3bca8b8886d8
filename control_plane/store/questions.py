"""What replicas have each other ask hosts."""

from dataclasses import dataclass

from control_plane.store.database import Tx


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question about a file of a participant, and for whom its answer is to be sealed."""

    id: bytes
    agent_uid: bytes
    participant: str
    path: str
    seal_for: bytes


class QuestionStore:
    """Questions, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def ask(self, asked: Asked, *, now: int) -> None:
        """The question is to be found by whoever can ask it."""
        self._tx.run(
            "insert into question (id, agent_uid, participant, path, seal_for, asked_at) values (?, ?, ?, ?, ?, ?)",
            (asked.id, asked.agent_uid, asked.participant, asked.path, asked.seal_for, now),
        )

    def open(self) -> list[Asked]:
        """Questions without an answer; the oldest first."""
        rows = self._tx.all(
            "select id, agent_uid, participant, path, seal_for from question"
            " where answer is null order by asked_at, id"
        )
        return [
            Asked(
                id=row["id"],
                agent_uid=row["agent_uid"],
                participant=row["participant"],
                path=row["path"],
                seal_for=row["seal_for"],
            )
            for row in rows
        ]

    def settle(self, question_id: bytes, answer: bytes) -> None:
        """The question has its answer; the first one counts."""
        self._tx.run("update question set answer = ? where id = ? and answer is null", (answer, question_id))

    def answer(self, question_id: bytes) -> bytes | None:
        """The answer, sealed; None while there is none."""
        row = self._tx.one("select answer from question where id = ?", (question_id,))
        return row["answer"] if row else None

    def forget(self, question_id: bytes) -> None:
        """Nobody waits for it any more."""
        self._tx.run("delete from question where id = ?", (question_id,))

    def ids(self) -> frozenset[bytes]:
        """Every question that nobody took back, answered or not."""
        return frozenset(row["id"] for row in self._tx.all("select id from question"))
