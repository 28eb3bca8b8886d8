"""The other end of a spool, as small as it can be: by high-water mark and chain, and each record id once."""

from collections import Counter

from agent.spool import Receipt, Spool
from shared import wire
from shared.errors import Error, Unavailable
from shared.model import CHAIN_START, Batch, Event, Loss, chain


class Ledger:
    """Takes batches as the control plane does; what it counted by subject, and what was declared lost."""

    def __init__(self) -> None:
        self.marks: dict[bytes, tuple[int, bytes]] = {}
        self.records: dict[bytes, str] = {}
        self.losses: dict[bytes, Loss] = {}
        self.batches: list[Batch] = []
        self.faults: list[Error | str] = []  # for the next batches

    @property
    def lost(self) -> Counter[str]:
        """How many records were declared lost, by reason."""
        lost: Counter[str] = Counter()
        for loss in self.losses.values():
            lost[loss.reason] += loss.count
        return lost

    async def __call__(self, batch: Batch) -> Receipt:
        return self.take(batch)

    def take(self, batch: Batch) -> Receipt:
        """What the control plane answers; raises what `faults` say."""
        self.batches.append(batch)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Error):
            raise fault
        mark, known = self.marks.get(batch.epoch, (0, CHAIN_START))
        value = batch.chain
        for seq, raw in enumerate(batch.records, batch.first_seq):
            if seq == mark + 1 and value != known:
                return Receipt(through_seq=mark, diverged=True)
            value = chain(value, raw)
            if seq > mark:
                self._count(raw)
        self.marks[batch.epoch] = (max(mark, seq), value if seq >= mark else known)
        if fault == "answer lost":
            raise Unavailable
        return Receipt(through_seq=self.marks[batch.epoch][0])

    def _count(self, raw: bytes) -> None:
        record = wire.record_from_bytes(raw)
        if isinstance(record.body, Event):
            self.records.setdefault(record.id, record.body.subject)
        elif isinstance(record.body, Loss):
            self.losses.setdefault(record.id, record.body)

    async def drain(self, spool: Spool, *, limit: int = 500) -> None:
        """Everything in the spool is here."""
        while batch := await spool.next_batch(limit, 1 << 20):
            receipt = self.take(batch)
            last = batch.first_seq + len(batch.records) - 1
            if receipt.diverged or receipt.through_seq > last:
                await spool.diverged(batch.epoch)
            else:
                await spool.acknowledge(batch.epoch, receipt.through_seq)
