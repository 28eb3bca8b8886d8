"""A process whose children work until they are killed: the host half of an agent under load.

A line on standard input is `DIRECTORY PORT`; each forks a child, and its process id is printed. The child
applies offers to `DIRECTORY`/root one after the other, reports through a spool in `DIRECTORY`/spool, and sends
what is in it to 127.0.0.1:PORT, where the control plane's part and the applications' memory are played. It never
ends by itself. Lines of its connection: `accepted SUBJECT`, `applied`, and `batch …`, answered by `THROUGH DIVERGED`.
"""

import asyncio
import os
import sys
from pathlib import Path

from agent.reconciler import Reconciler
from agent.spool import Receipt, Spool
from shared import logs
from shared.clock import SystemClock
from shared.ids import new_id
from shared.model import Batch, Event, EventKind, Outcome, View
from tests.support.host import make_config, make_offer, make_participant

REPORTERS = "abcd"
TARGETS = ("soul.md", "deep/er/new.md")
SEGMENT_BYTES = 20_000
"""Small, so that kills fall on new and deleted segments as well."""


def version(revision: int) -> str:
    """The content of every target at a revision: long enough to be torn."""
    return f"version {revision}\n" * 2000


def is_version(text: str) -> bool:
    """Whether it is one whole version."""
    first = text.partition("\n")[0]
    return first.startswith("version ") and text == f"{first}\n" * 2000


class Play:
    """One life of the child."""

    def __init__(self, directory: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._directory, self._reader, self._writer = directory, reader, writer
        self._spool = Spool(
            directory / "spool", clock=SystemClock(), new_id=new_id, segment_bytes=SEGMENT_BYTES
        )
        self._applied = asyncio.Event()

    async def run(self) -> None:
        reconciler = Reconciler(
            config=make_config(self._directory, make_participant(self._directory / "root")),
            state_dir=self._directory / "state",
            clock=SystemClock(),
            new_id=new_id,
            record_view=self._record,
            fetch=self._fetch,
            on_outcome=self._outcome,
            on_change=lambda: None,
        )
        await reconciler.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(reconciler.run())
            group.create_task(self._offer(reconciler))
            group.create_task(self._send())
            for name in REPORTERS:
                group.create_task(self._report(name))

    def _record(self, view: View) -> None:
        self._spool.record(view)

    async def _fetch(self, wanted: bytes, size: int) -> bytes:
        raise OSError("everything is inline")

    def _outcome(self, outcome: Outcome) -> None:
        self._applied.set()

    async def _offer(self, reconciler: Reconciler) -> None:
        revision = max((slot.revision for slot in reconciler.slots()), default=0)
        while True:
            revision += 1
            self._applied.clear()
            reconciler.offer(make_offer(dict.fromkeys(TARGETS, version(revision)), revision=revision))
            await self._applied.wait()
            self._writer.write(b"applied\n")
            for outcome in reconciler.unacknowledged():
                reconciler.acknowledged(outcome.key)

    async def _report(self, name: str) -> None:
        number, life = 0, new_id().hex()  # process ids come round again within ten thousand kills
        while True:
            subject = f"{name}-{life}-{number}"
            await self._spool.append(
                Event(participant="bot-1", kind=EventKind.IMPRESSION, subject=subject, occurred_at=1)
            )
            self._writer.write(f"accepted {subject}\n".encode())
            number += 1

    async def _send(self) -> None:
        while True:
            await self._spool.wait()
            batch = await self._spool.next_batch(40, 1 << 20)
            if batch is None:
                continue
            receipt = await self._ask(batch)
            last = batch.first_seq + len(batch.records) - 1
            if receipt.diverged or receipt.through_seq > last:
                await self._spool.diverged(batch.epoch)
            else:
                await self._spool.acknowledge(batch.epoch, receipt.through_seq)

    async def _ask(self, batch: Batch) -> Receipt:
        self._writer.write(batch_line(batch))
        through, diverged = (await self._reader.readline()).decode().split()
        return Receipt(through_seq=int(through), diverged=diverged == "True")


def batch_line(batch: Batch) -> bytes:
    """A batch in one line."""
    parts = [batch.epoch.hex(), str(batch.first_seq), batch.chain.hex(), str(batch.tail_seq)]
    return " ".join(["batch", *parts, *(raw.hex() for raw in batch.records)]).encode() + b"\n"


def parse_batch(line: str) -> Batch:
    """The batch of a line."""
    _, epoch, first_seq, chain, tail_seq, *raws = line.split()
    return Batch(
        epoch=bytes.fromhex(epoch),
        first_seq=int(first_seq),
        chain=bytes.fromhex(chain),
        records=tuple(bytes.fromhex(raw) for raw in raws),
        tail_seq=int(tail_seq),
    )


async def play(directory: Path, port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await Play(directory, reader, writer).run()


def main() -> None:
    logs.configure(level="error")
    for line in sys.stdin:
        directory, port = line.split()
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(play(Path(directory), int(port)))
            finally:
                os._exit(1)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
