"""What it costs to take reports in, durably, each once, attributed and counted: `make bench BENCH=ingest`.

Four processes, each an enrolled host with its certificate, send batches over mutual TLS as fast as they are
acknowledged; what they send is made beforehand. Beside it, in turn within each round: bare batch inserts of the same
rows with one counter into SQLite (`synchronous` FULL too) and into PostgreSQL, each from one process without a network;
the bytes parsed and nothing else; and the same control plane with `synchronous=NORMAL`, which it never has outside of
here. Figures are medians over rounds, ratios those of the pairs of a round; processor time of the server's process
alone, which is why that of PostgreSQL's own is missing there. Nothing is asserted.

With `--grow 100000,1000000` instead: what a record costs when the database holds so many, which came in the same way.
"""

import argparse
import asyncio
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import grpc

from shared import wire
from shared.ids import new_id
from shared.model import CHAIN_START, Event, EventKind, Record, View, ViewState, chain, digest
from shared.moment import SECOND
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from tests.bench.stage import Child, Served, answer, child, median, questions, ratio, served, tell
from tests.support.builders import make_hello
from tests.support.plane import Identity, Plane
from tests.support.stream import session

CLIENTS = 4
BATCHES = (100, 500)
REPEATED = 10  # percent, where there are repeats
SUBJECTS = 200  # of each participant
CONTENT = {"a": "As agreed.\n", "b": "The other one.\n"}
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


# -- contenders


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
    pem = {name: given[name].encode() for name in ("key", "certificate", "ca")}
    identity = Identity(uid=b"", address=given["address"], **pem)
    async with identity.channel() as channel:
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


# -- measuring


@dataclass
class Found:
    """(seconds, processor seconds) per record, of each round."""

    label: str
    batch: int
    repeated: int = 0
    costs: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Side:
    """A control plane, of one server or several over one database, and its hosts, which have sent so many records."""

    servers: list[Served]
    hosts: list[Child]
    sent: int = 0

    @property
    def cpu(self) -> float:
        return sum(server.cpu for server in self.servers)

    async def take(self, records: int, batch: int, repeated: int) -> tuple[float, float]:
        """(seconds, processor seconds of all servers) per record."""
        part = max(batch, records // len(self.hosts) // batch * batch)
        await asyncio.gather(
            *(host.ask(prepare=True, records=part, batch=batch, repeated=repeated) for host in self.hosts)
        )
        began, cpu = time.perf_counter(), self.cpu
        await asyncio.gather(*(host.ask(send=True) for host in self.hosts))
        took, total = time.perf_counter() - began, part * len(self.hosts)
        self.sent += total
        return took / total, (self.cpu - cpu) / total


@asynccontextmanager
async def side(
    folder: Path, people: int, *words: str, module: str = "control_plane", replicas: int = 1
) -> AsyncIterator[Side]:
    """A control plane with a running experiment, and hosts of so many participants that take part.

    The hosts are shared out among the replicas.
    """
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(served(folder / str(number), *words, module=module))
            for number in range(replicas)
        ]
        operator = await stack.enter_async_context(servers[0].operator())
        identities, names = await _joined(operator, people)
        variants = await _started(operator, [name for part in names for name in part])
        hosts = []
        for number, (identity, part) in enumerate(zip(identities, names, strict=True)):
            host = await stack.enter_async_context(child("tests.bench.ingest", "--as", "host"))
            await host.ask(
                key=identity.key.decode(),
                certificate=identity.certificate.decode(),
                ca=identity.ca.decode(),
                address=(servers[number % replicas].addresses or {})["agents"],
                people=part,
                seed=number,
                held={name: digest(CONTENT[variants[name]].encode()).hex() for name in part},
            )
            hosts.append(host)
        yield Side(servers, hosts)


async def _joined(operator: Plane, people: int) -> tuple[list[Identity], list[list[str]]]:
    token = await operator.token(name="bench", maxUses=CLIENTS)
    identities = [await operator.enroll(token, name=f"host-{at}") for at in range(CLIENTS)]
    names = [[f"bot-{at}-{number}" for number in range(people // CLIENTS)] for at in range(CLIENTS)]
    for identity, part in zip(identities, names, strict=True):
        async with session(identity, make_hello(*part)) as stream:
            await stream.send(goodbye=pb.Goodbye(reason="stop"))
    return identities, names


async def _started(operator: Plane, names: list[str]) -> dict[str, str]:
    """Everybody's variant in an experiment that runs."""
    variants = [
        {"name": key, "key": key, "content": body, "weight": 50, "isControl": key == "a"}
        for key, body in CONTENT.items()
    ]
    draft = {
        "name": "Tone",
        "targetFile": "soul.md",
        "variants": variants,
        "participantIds": names,
        "metrics": {"primary": {"eventName": "done"}},
        "exposureCriteria": {"settleSeconds": 0},
    }
    made = await operator.made("/v1/experiments", draft)
    keys = {variant["id"]: variant["key"] for variant in made["variants"]}
    await operator.made("/v1/experiments/tone/start", {})
    found: dict[str, str] = {}
    cursor = ""
    while cursor is not None:
        page = await operator.rest("GET", f"/v1/experiments/tone/assignments?limit=100&cursor={cursor}")
        for item in page.body["entities"]:
            found[item["participantId"]] = keys[item["variantId"]]
        cursor = page.body["pagination"]["nextCursor"]
    return found


async def measure(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the table."""
    batches, records = BATCHES, given.records
    found: list[Found] = []
    turns = []

    def turn(label: str, batch: int, take: Any, repeated: int = 0) -> None:
        found.append(Found(label, batch, repeated))
        turns.append((found[-1], take))

    async with AsyncExitStack() as stack:
        full = await stack.enter_async_context(side(folder / "full", given.participants))
        normal = await stack.enter_async_context(
            side(folder / "normal", given.participants, module="tests.bench.ingest")
        )
        bare = await stack.enter_async_context(
            child("tests.bench.ingest", "--as", "sqlite", "--at", str(folder / "bare.db"))
        )
        parse = await stack.enter_async_context(child("tests.bench.ingest", "--as", "parse"))
        for batch in batches:
            turn("parsing alone", batch, partial(_asked, parse, records, batch))
            turn("bare SQLite", batch, partial(_asked, bare, records, batch))
            turn("variantd, SQLite", batch, partial(full.take, records, batch, 0))
            turn("variantd, SQLite", batch, partial(full.take, records, batch, REPEATED), REPEATED)
            turn("variantd, NORMAL", batch, partial(normal.take, records, batch, 0))
        if given.postgres:
            from tests.support import postgres

            stack.callback(postgres.end)
            postgres.be_durable()
            url = postgres.url_of(folder)
            other = await stack.enter_async_context(
                child("tests.bench.ingest", "--as", "postgres", "--at", postgres.url_of(folder / "bare"))
            )
            ours = await stack.enter_async_context(
                side(folder / "postgres", given.participants, "--database", url)
            )
            for batch in batches:
                turn("bare PostgreSQL", batch, partial(_asked, other, records, batch))
                turn("variantd, PostgreSQL", batch, partial(ours.take, records, batch, 0))
                turn("variantd, PostgreSQL", batch, partial(ours.take, records, batch, REPEATED), REPEATED)
        for number in range(given.rounds + 1):
            for item, take in turns:
                cost = await take()
                if number:  # the first round warms up
                    item.costs.append(cost)
    return [_row(item, found) for item in found]


async def grown(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """What a record costs by how many events there are already; batches of 500, none of them repeated."""
    found = []
    async with AsyncExitStack() as stack:
        sides = {"SQLite": await stack.enter_async_context(side(folder / "sqlite", given.participants))}
        if given.postgres:
            from tests.support import postgres

            stack.callback(postgres.end)
            postgres.be_durable()
            words = ("--database", postgres.url_of(folder))
            sides["PostgreSQL"] = await stack.enter_async_context(
                side(folder / "postgres", given.participants, *words)
            )
        for size in map(int, given.grow.split(",")):
            for label, one in sides.items():
                while one.sent < size:
                    await one.take(min(40_000, size - one.sent), BATCHES[-1], 0)
                held = one.sent
                costs = [await one.take(given.records, BATCHES[-1], 0) for _ in range(given.rounds)]
                row = {
                    "of": f"variantd, {label}",
                    "events": held,
                    "rounds": given.rounds,
                    "perSecond": median((1 / seconds for seconds, _ in costs), 0),
                    "cpuMicros": median((cpu * 1e6 for _, cpu in costs), 1),
                    "bytes": round(await asyncio.to_thread(_stored_bytes, folder, label) / one.sent),
                }
                print(row, file=sys.stderr, flush=True)
                found.append(row)
    return found


def _stored_bytes(folder: Path, label: str) -> int:
    if label == "SQLite":
        path = folder / "sqlite" / "0" / "data" / "variantd.db"
        with closing(sqlite3.connect(path)) as database:
            pages, size = (
                database.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "page_size")
            )
        return int(pages * size)
    import psycopg

    from tests.support import postgres

    with psycopg.connect(postgres.url_of(folder)) as database:
        found = database.execute("select pg_database_size(current_database())").fetchone()
        return int(found[0]) if found else 0


async def _asked(contender: Child, records: int, batch: int) -> tuple[float, float]:
    said = await contender.ask(records=records, batch=batch)
    return said["seconds"] / records, said["cpu"] / records


def _row(item: Found, found: list[Found]) -> dict[str, Any]:
    of = {(other.label, other.batch, other.repeated): other.costs for other in found}

    def beside(label: str, part: int, repeated: int = 0) -> float | None:
        other = of.get((label, item.batch, repeated))
        if other is None or other is item.costs:
            return None
        pairs = zip(item.costs, other, strict=True)
        # Of rates for seconds: how much of the other's it reaches; of processor time: how much more it takes.
        return ratio(((b[0], a[0]) if not part else (a[1], b[1])) for a, b in pairs)

    engine = item.label.removeprefix("variantd, ").replace("NORMAL", "SQLite")
    ours = item.label.startswith("variantd")
    return {
        "of": item.label + (f", {item.repeated} % again" if item.repeated else ""),
        "batch": item.batch,
        "repeated": item.repeated,
        "rounds": len(item.costs),
        "perSecond": median((1 / seconds for seconds, _ in item.costs), 0),
        "cpuMicros": median((cpu * 1e6 for _, cpu in item.costs), 1),
        "ofBare": beside(f"bare {engine}", 0) if ours else None,
        "ofFresh": beside(item.label, 0) if item.repeated else None,
        "cpuOfBare": beside(f"bare {engine}", 1) if ours else None,
        "cpuOfParsing": beside("parsing alone", 1) if ours else None,
        "ofNormal": beside("variantd, NORMAL", 0)
        if item.label == "variantd, SQLite" and not item.repeated
        else None,
    }


def main() -> None:
    """The table, then the same as JSON."""
    if sys.argv[1:2] == ["serve"]:
        serve_normal()
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=20_000, help="of each contender in a round")
    parser.add_argument("--participants", type=int, default=100)
    parser.add_argument("--grow", metavar="N,…", help="measure when there are so many events instead")
    parser.add_argument("--no-postgres", dest="postgres", action="store_false")
    parser.add_argument(
        "--as", dest="role", choices=("host", "sqlite", "postgres", "parse"), help=argparse.SUPPRESS
    )
    parser.add_argument("--at", help=argparse.SUPPRESS)
    given = parser.parse_args()
    roles = {
        "host": lambda: asyncio.run(host()),
        "sqlite": lambda: sqlite_inserts(Path(given.at)),
        "postgres": lambda: postgres_inserts(given.at),
        "parse": parses,
    }
    if given.role:
        roles[given.role]()
        return
    folder = Path(tempfile.mkdtemp())
    try:
        found = asyncio.run((grown if given.grow else measure)(folder, given))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sizes = {"rounds": given.rounds, "records": given.records, "participants": given.participants}
    if given.grow:
        columns = {"of": "records into", "events": "events there", "perSecond": "per second"}
        tell("ingest-grown", {**columns, "cpuMicros": "CPU µs", "bytes": "bytes an event"}, found, **sizes)
        return
    columns = {
        "of": "records into",
        "batch": "batch",
        "perSecond": "per second",
        "cpuMicros": "CPU µs",
        "ofBare": "rate × bare",
        "cpuOfBare": "CPU × bare",
        "cpuOfParsing": "CPU × parsing",
        "ofFresh": "rate × without repeats",
        "ofNormal": "rate × NORMAL",
    }
    tell("ingest", columns, found, **sizes)


if __name__ == "__main__":
    main()
