"""Who takes part in measurements of reports, each in a process of its own: hosts that send, and the least beside them.

A host has its certificate, and a spool that is made up: what it sends is made beforehand, and sent over mutual TLS as
fast as it is acknowledged. Beside the control plane: bare inserts of the same rows, or of all rows that a record has
there, parsing of the same bytes, and a control plane whose commits do not wait for the disk. Imports nothing of the
control plane where it need not: processes are started many at a time.
"""

import argparse
import asyncio
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import grpc

from shared import wire
from shared.ids import new_id
from shared.model import CHAIN_START, Event, EventKind, Record, View, ViewState, chain
from shared.moment import SECOND
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from tests.bench.stage import answer, questions

SUBJECTS = 200  # of each participant
COLUMNS = (
    "id, project_id, participant_id, participant_name, agent_uid, kind, event_name, subject, path, digest,"
    " value_micros, properties, event_id, source, occurred_at, recorded_at, received_at, epoch, seq, reason, arrival"
)
TABLE = (
    "create table bare (id blob primary key, project_id blob, participant_id blob, participant_name text,"
    " agent_uid blob, kind text, event_name text, subject text, path text, digest blob, value_micros integer,"
    " properties text, event_id text, source text, occurred_at integer, recorded_at integer, received_at integer,"
    " epoch blob, seq integer, reason text, arrival integer) without rowid"
)
COUNTER = "create table counter (name text primary key, n integer not null)"


def records(random: Random, people: list[str], now: int) -> Iterator[Record]:
    """What applications report, in order, four impressions to a conversion."""
    while True:
        now += 1_000
        body = Event(
            participant=random.choice(people),
            kind=EventKind.IMPRESSION,
            occurred_at=now,
            subject=f"user-{random.randrange(SUBJECTS)}",
            path="soul.md",
        )
        yield Record(id=new_id(), recorded_at=now, body=body)
        if random.random() < 0.25:
            now += 1_000
            converted = Event(
                participant=body.participant,
                kind=EventKind.CONVERSION,
                occurred_at=now,
                event_name="done",
                subject=body.subject,
                path="soul.md",
            )
            yield Record(id=new_id(), recorded_at=now, body=converted)


class Host:
    """An enrolled host whose spool is made up: positions, chain and what was sent before."""

    def __init__(self, given: dict[str, Any], channel: grpc.aio.Channel) -> None:
        self._stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
        self._epoch, self._seq, self._chain = new_id(), 0, CHAIN_START
        self._sent: list[bytes] = []
        self._random = Random(given["seed"])
        self._made = records(self._random, given["people"], int(time.time() * SECOND))
        self._batches: list[pb.ReportSpoolRequest] = []
        self._views = [
            View(
                participant=name,
                path="soul.md",
                digest=bytes.fromhex(held),
                state=ViewState.APPLIED,
                from_at=1,
            )
            for name, held in given["held"].items()
        ]

    def prepare(self, records: int, batch: int, repeated: int) -> None:
        """So many records are ready to be sent in batches, some percent of them again."""
        for _ in range(records // batch):
            raws = [self._record(repeated) for _ in range(batch)]
            self._batches.append(
                pb.ReportSpoolRequest(
                    epoch=self._epoch,
                    first_seq=self._seq + 1,
                    chain=self._chain,
                    records=raws,
                    tail_seq=self._seq + batch,
                )
            )
            for raw in raws:
                self._chain = chain(self._chain, raw)
            self._seq += batch

    def _record(self, repeated: int) -> bytes:
        if self._views:
            view = self._views.pop()
            return wire.record_to_bytes(Record(id=new_id(), recorded_at=1, body=view))
        if self._sent and self._random.random() * 100 < repeated:
            return self._random.choice(self._sent)
        raw = wire.record_to_bytes(next(self._made))
        if len(self._sent) < 20_000:
            self._sent.append(raw)
        return raw

    async def send(self) -> int:
        """Everything prepared was acknowledged; how many batches it took."""
        sent = 0
        while self._batches:
            request = self._batches.pop(0)
            response = await self._stub.ReportSpool(request)
            assert response.verdict == pb.SPOOL_VERDICT_OK
            assert response.through_seq == request.first_seq + len(request.records) - 1
            sent += 1
        return sent


async def host() -> None:
    """A host in a process of its own."""
    asked = questions()
    given = await asyncio.to_thread(next, iter(asked))
    pem = (given[name].encode() for name in ("ca", "key", "certificate"))
    async with grpc.aio.secure_channel(given["address"], grpc.ssl_channel_credentials(*pem)) as channel:
        own = Host(given, channel)
        answer(ready=True)
        for question in asked:
            if question.pop("prepare", False):
                own.prepare(**question)
                answer(ready=True)
            else:
                began = time.perf_counter()
                sent = await own.send()
                answer(seconds=time.perf_counter() - began, batches=sent)


# -- the least


def rows(records: int, batch: int) -> list[list[tuple[Any, ...]]]:
    """Batches of the rows that the same records become."""
    made = records_of(records)
    project, person, agent, epoch, now = (*(new_id() for _ in range(4)), time.time_ns() // 1_000)
    found = [
        (
            *(record.id, project, person, event.participant, agent, event.kind.value, event.event_name),
            *(event.subject, event.path, event.digest, event.value_micros, event.properties_json),
            *(
                event.event_id,
                event.source.value,
                event.occurred_at,
                record.recorded_at,
                now,
                epoch,
                at,
                None,
                at,
            ),
        )
        for at, record in enumerate(made)
        for event in [record.body]
        if isinstance(event, Event)
    ]
    return [found[at : at + batch] for at in range(0, len(found), batch)]


def records_of(count: int) -> list[Record]:
    made = records(Random(1), [f"bot-{at}" for at in range(100)], int(time.time() * SECOND))
    return [next(made) for _ in range(count)]


def sqlite_inserts(path: Path) -> None:
    """Bare batch inserts with one counter into SQLite."""
    database = sqlite3.connect(path, isolation_level=None)
    for sql in ("pragma journal_mode = wal", "pragma synchronous = full", TABLE, COUNTER):
        database.execute(sql)
    insert = f"insert into bare ({COLUMNS}) values ({', '.join('?' * 21)})"
    for question in questions():
        batches = rows(question["records"], question["batch"])
        began, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            database.execute("begin immediate")
            database.executemany(insert, batch)
            database.execute(
                "insert into counter values ('n', ?) on conflict (name) do update set n = n + excluded.n",
                (len(batch),),
            )
            database.execute("commit")
        answer(seconds=time.perf_counter() - began, cpu=time.process_time() - cpu)


ATTRIBUTED = (
    "insert into attributed_event (phase_id, participant_id, block, subject, occurred_at, event_id, variant_id, kind,"
    " event_name, value_micros, assigned, delivered) values (?, ?, 0, ?, ?, ?, ?, ?, ?, ?, 'eligible', 'eligible')"
)
UNIT = (
    "insert into unit (phase_id, participant_id, block, subject, event_name, first_assigned, first_delivered)"
    " values (?, ?, 0, ?, ?, ?, ?)"
)
TALLY = (
    "insert into tally (phase_id, variant_id, participant_id, block, event_name, day, assigned_count, delivered_count)"
    " values (?, ?, ?, 0, ?, 1, ?, ?) on conflict (phase_id, variant_id, participant_id, block, event_name, day)"
    " do update set assigned_count = tally.assigned_count + excluded.assigned_count,"
    " delivered_count = tally.delivered_count + excluded.delivered_count"
)


def sqlite_rows(path: Path) -> None:
    """All rows that a record has in the control plane's own tables: its event, where it counts, its unit, the sums.

    They are known beforehand, so nothing is looked up; a unit's row is inserted with its first event only.
    """
    from control_plane.store.sqlite import CACHE_BYTES, LOG_PAGES, migrate_file

    migrate_file(path)
    database = sqlite3.connect(path, isolation_level=None)
    for sql in (
        "journal_mode = wal",
        "synchronous = full",
        f"cache_size = -{CACHE_BYTES // 1024}",
        f"wal_autocheckpoint = {LOG_PAGES}",
    ):
        database.execute(f"pragma {sql}")
    event = f"insert into event ({COLUMNS}) values ({', '.join('?' * 21)})"
    phase, variant = new_id(), new_id()
    people: defaultdict[str, bytes] = defaultdict(new_id)
    units: set[tuple[bytes, str, str]] = set()
    for question in questions():
        batches = []
        for rows_of_batch in rows(question["records"], question["batch"]):
            events, attributed, fresh, sums = [], [], [], Counter[tuple[bytes, str]]()
            for row in rows_of_batch:
                record, name, kind, conversion, subject, moment = (
                    *(row[at] for at in (0, 3, 5, 6, 7)),
                    row[14],
                )
                person = people[name]
                events.append((*row[:2], person, *row[3:]))
                attributed.append(
                    (phase, person, subject, moment, record, variant, kind, conversion, row[10])
                )
                sums[person, conversion] += 1
                if (unit := (person, subject, conversion)) not in units:
                    units.add(unit)
                    fresh.append((phase, *unit, moment, moment))
            tallies = [(phase, variant, *key, number, number) for key, number in sorted(sums.items())]
            batches.append(
                ((event, events), (ATTRIBUTED, sorted(attributed)), (UNIT, fresh), (TALLY, tallies))
            )
        began, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            database.execute("begin immediate")
            for sql, of_table in batch:
                database.executemany(sql, of_table)
            database.execute("commit")
        answer(seconds=time.perf_counter() - began, cpu=time.process_time() - cpu)


def postgres_inserts(url: str) -> None:
    """The same into PostgreSQL, a batch in one statement."""
    import psycopg

    table = TABLE.replace("blob", "bytea").replace("integer", "bigint").replace(" without rowid", "")
    types = [part.split()[1] for part in table[table.index("(") + 1 : -1].split(", ")]
    unnested = ", ".join(f"%s::{kind}[]" for kind in types)
    with psycopg.connect(url, autocommit=True) as database:
        database.execute(table)
        database.execute(COUNTER.replace("integer", "bigint"))
        for question in questions():
            batches = rows(question["records"], question["batch"])
            began, cpu = time.perf_counter(), time.process_time()
            for batch in batches:
                with database.transaction():
                    columns = [list(column) for column in zip(*batch, strict=True)]
                    database.execute(
                        f"insert into bare ({COLUMNS}) select * from unnest({unnested})", columns
                    )
                    database.execute(
                        "insert into counter values ('n', %s) on conflict (name)"
                        " do update set n = counter.n + excluded.n",
                        (len(batch),),
                    )
            answer(seconds=time.perf_counter() - began, cpu=time.process_time() - cpu)


def parses() -> None:
    """The bytes of batches become messages, and nothing else."""
    for question in questions():
        raws = [wire.record_to_bytes(record) for record in records_of(question["records"])]
        size = question["batch"]
        bodies = [
            pb.ReportSpoolRequest(
                epoch=new_id(), first_seq=1, chain=CHAIN_START, records=raws[at : at + size]
            )
            for at in range(0, len(raws), size)
        ]
        texts = [body.SerializeToString() for body in bodies]
        began, cpu = time.perf_counter(), time.process_time()
        for text in texts:
            for raw in pb.ReportSpoolRequest.FromString(text).records:
                pb.SpoolRecord.FromString(raw)
        answer(seconds=time.perf_counter() - began, cpu=time.process_time() - cpu)


def serve_normal() -> None:
    """The control plane, on SQLite that does not wait for the disk at a commit; nobody's setting."""
    from control_plane import __main__ as program
    from control_plane.store import sqlite

    connect = sqlite._connect

    def connected(path: Path, *, reads_only: bool = False) -> sqlite3.Connection:
        connection = connect(path, reads_only=reads_only)
        connection.execute("pragma synchronous = normal")
        return connection

    sqlite._connect = connected
    program.main()


def main() -> None:
    """One of them."""
    if sys.argv[1:2] == ["serve"]:
        serve_normal()
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("host", "sqlite", "rows", "postgres", "parse"))
    parser.add_argument("at", nargs="?", default="")
    given = parser.parse_args()
    match given.role:
        case "host":
            asyncio.run(host())
        case "sqlite":
            sqlite_inserts(Path(given.at))
        case "rows":
            sqlite_rows(Path(given.at))
        case "postgres":
            postgres_inserts(given.at)
        case "parse":
            parses()


if __name__ == "__main__":
    main()
