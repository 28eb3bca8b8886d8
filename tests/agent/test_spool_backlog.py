"""A long outage costs the agent neither memory nor time when it starts again.

200,000 records beside 20,000; `VARIANTD_SPOOL_BACKLOG=10000000` takes as many, and `-s` shows the figures.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cursor import Cursor, Mark
from agent.segments import segment_name, to_frame
from agent.spool import SEGMENT_BYTES
from shared import wire
from shared.ids import new_id
from shared.model import Event, EventKind, Record

pytestmark = pytest.mark.fault(46)

LARGE = int(os.environ.get("VARIANTD_SPOOL_BACKLOG", "200000"))
MORE_KIB = 4096
"""What a backlog may cost in memory over one of 20,000 records: a segment, and a name for each of the others."""

STARTED = """
import asyncio, json, resource, sys, time
from pathlib import Path
from agent.spool import Spool
from shared import wire
from shared.clock import SystemClock
from shared.ids import new_id

async def main():
    begun = time.monotonic()
    spool = Spool(Path(sys.argv[1]), clock=SystemClock(), new_id=new_id)
    batch = await spool.next_batch(500, 512 * 1024)
    ready = time.monotonic() - begun
    depth = spool.state().depth
    for _ in range(int(sys.argv[2])):
        await spool.acknowledge(batch.epoch, batch.first_seq + len(batch.records) - 1)
        batch = await spool.next_batch(500, 512 * 1024)
    spool.close()
    peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
    print(json.dumps({"ready": ready, "depth": depth, "peak_kib": peak, "first": batch.first_seq}))

asyncio.run(main())
"""


def write_backlog(directory: Path, count: int) -> None:
    """A spool as a start of the agent left it that took so many reports."""
    directory.mkdir()
    Cursor(directory)
    epoch, number = new_id(), 0
    event = Event(participant="bot-1", kind=EventKind.IMPRESSION, occurred_at=1_800_000_000_000_000)
    sample = bytes(range(16))
    head, tail = wire.record_to_bytes(Record(id=sample, recorded_at=1_800_000_000_000_000, body=event)).split(
        sample
    )
    while number < count:
        size, frames = 0, []
        first = number + 1
        while size < SEGMENT_BYTES and number < count:
            number += 1
            frames.append(to_frame(number, head + number.to_bytes(16, "big") + tail))
            size += len(frames[-1])
        (directory / segment_name(epoch, first)).write_bytes(b"".join(frames))
    mark = Mark(directory, epoch)
    mark.move(count)
    mark.close()


def started(directory: Path, *, batches: int) -> dict[str, float]:
    """What opening the spool in a process of its own took, and sending some of it."""
    done = subprocess.run(
        [sys.executable, "-c", STARTED, str(directory), str(batches)], capture_output=True, check=True
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


@pytest.mark.timeout(900)
def test_a_backlog_of_any_size_starts_at_once_in_the_same_memory(tmp_path: Path) -> None:
    """Ready within two seconds, and then it is sent from where it stands."""
    found = {}
    for count in (20_000, LARGE):
        write_backlog(tmp_path / str(count), count)
        found[count] = started(tmp_path / str(count), batches=30)
        size = sum(path.stat().st_size for path in (tmp_path / str(count)).iterdir())
        print(f"{count} records, {size / 2**20:.0f} MiB: {found[count]}")
        assert found[count]["depth"] == count
        assert found[count]["first"] == 15_001
        assert found[count]["ready"] <= 2.0
    assert found[LARGE]["peak_kib"] - found[20_000]["peak_kib"] < MORE_KIB
