"""PostgreSQL behind `Database`: the same SQL as on SQLite, one writer at a time, a few readers.

What the dialects differ in is settled here, so that no statement is written twice: types of the schema, the functions
that SQLite has and PostgreSQL has not (made once, in the schema), places for parameters.

Writers of all processes over one database take turns by an advisory lock of the transaction, so a unit of work runs as
if it were alone, exactly as on SQLite; nothing in it has to expect a conflict. Group commit makes that cheap: a turn
carries what queued up meanwhile. The lock ends with its transaction and the server ends a transaction that idles, so a
process that is stopped or paused holds up the others for `IDLE_SECONDS` at most, and finds its transaction gone when it
goes on.
"""

import asyncio
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, NoReturn, TypeVar

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader, Transformer
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from control_plane.store.database import IntegrityViolation, Parameters, Row, Tx, migrate
from control_plane.store.reading import Readers
from control_plane.store.writing import Unit, Writer
from shared import logs
from shared.errors import FailedPrecondition, Invalid, Unavailable

_log = logs.get(__name__)

T = TypeVar("T")
Connection = psycopg.Connection[dict[str, Any]]
Waited = Connection | psycopg.AsyncConnection[Any]

CONNECT_SECONDS = 10
STATEMENT_SECONDS = 30
LOCK_SECONDS = 20  # for another process's turn
IDLE_SECONDS = 10  # within a transaction
ANSWER_SECONDS = 45.0  # of a server that says nothing any more: longer than it may take for a statement
OLDEST = 130_000  # version 13: the oldest that is tested with
LISTEN_AGAIN_SECONDS = 1.0
LISTEN_CHECK_SECONDS = 30.0  # a way that swallows everything is told of by nobody
CHANNEL = "variantd"
ROWS = 500  # of an insert in one statement, or statements at once
WRITERS_LOCK = 7_161_202_601  # of nobody else in this database, by its number

_LOST = (psycopg.OperationalError, psycopg.InternalError)
"""The connection, the server or its patience ended the transaction; anything else is a fault of the statement."""

_TYPES = {"blob": "bytea", "integer": "bigint", "real": "double precision", "text": 'text collate "C"'}
_TYPE = re.compile(r"\b(blob|integer|real|text)\b")
_TABLE_OPTIONS = re.compile(r"\)\s*strict(\s*,\s*without rowid)?\s*$|\)\s*without rowid\s*$")

_PLAIN = re.compile(r"[ -&(-\[\]-~]*")
"""Visible ASCII without quotation mark and backslash: the same within quotation marks, whatever the encoding."""

_SHORT = 64  # characters of a text that is likely to be written again, such as a kind, a path or a name

_ONE_ROW = re.compile(
    r"(?P<head>insert into \w+ \((?P<columns>[\w, ]+)\) values )\((?:\?, )*\?\)"
    r"(?P<tail> on conflict do nothing| on conflict \((?P<key>[\w, ]+)\) do update set .*)?"
)

# The transaction is the only one that writes; every statement after this sees what the one before wrote.
_TURN = f"select pg_advisory_xact_lock({WRITERS_LOCK})"

# SQLite's own: for text that holds a JSON object or array, the larger and the smaller of two numbers, bytes of zero,
# bytes as text. What was stored as JSON may say U+0000, of which no text can be made here: it is read as U+FFFD.
# And what texts are searched by: columns that are ordered by their bytes are lowered by those, so only in ASCII.
_FUNCTIONS = """
create or replace function as_json(document text) returns json
language sql immutable parallel safe as $$
  select (case when strpos(document, '\\u0000') = 0 then document
    else regexp_replace(document, '(?<!\\\\)((?:\\\\\\\\)*)\\\\u0000', '\\1\\\\ufffd', 'g') end)::json
$$;
create or replace function json_each(document text) returns table (key text, value text)
language sql immutable parallel safe as $$
  select o.key, o.value from json_each_text(
    case when json_typeof(as_json(document)) = 'object' then as_json(document) else '{}'::json end) as o
  union all
  select (a.place - 1)::text, a.value from json_array_elements_text(
    case when json_typeof(as_json(document)) = 'array' then as_json(document) else '[]'::json end)
    with ordinality as a (value, place)
$$;
create or replace function max(a bigint, b bigint) returns bigint
language sql immutable parallel safe as $$ select greatest(a, b) $$;
create or replace function min(a bigint, b bigint) returns bigint
language sql immutable parallel safe as $$ select least(a, b) $$;
create or replace function zeroblob(bytes integer) returns bytea
language sql immutable parallel safe as $$ select decode(repeat('00', bytes), 'hex') $$;
create or replace function folded(said text) returns text
language sql immutable parallel safe as $$ select lower(said collate "default") $$;
create or replace function hex(bytes bytea) returns text
language sql immutable parallel safe as $$ select upper(encode(bytes, 'hex')) $$;
"""


class _Patience:
    """Connections on which the server says nothing for `ANSWER_SECONDS` are cut: who waits there goes on with an error.

    The server's own limits end what it is busy with; this is for one that stands still, or a network that swallows.
    """

    def __init__(self) -> None:
        self._asked: dict[Waited, list[float]] = {}  # for how long, of each time something was asked
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="postgres-patience", daemon=True)
        self._thread.start()

    @contextmanager
    def waiting(self, connection: Waited) -> Iterator[None]:
        """The connection is waited on meanwhile; `asked` again begins the time anew."""
        self.asked(connection)
        try:
            yield
        finally:
            self._asked.pop(connection, None)

    def asked(self, connection: Waited) -> None:
        """The server was just asked something."""
        self._asked[connection] = [0.0]

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(step := min(1.0, ANSWER_SECONDS / 4)):
            for connection, silent in list(self._asked.items()):
                if silent[0] < ANSWER_SECONDS:
                    silent[0] += step
                elif self._asked.get(connection) is silent:  # and was not answered, or asked again, meanwhile
                    self._asked.pop(connection, None)
                    _log.warning("database.silent", seconds=ANSWER_SECONDS)
                    _shut(connection)


def _shut(connection: Waited) -> None:
    """Whoever waits for the server on the connection finds that it has ended."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as found:
        found.shutdown(socket.SHUT_RDWR)


class PostgresTx:
    """A transaction on one connection.

    Parameters are written into the text here: a place such as `? is null` has no type of its own on the server, and
    psycopg would look for its places in every long statement anew.
    """

    def __init__(self, connection: Connection, patience: _Patience | None = None) -> None:
        self._connection, self._patience = connection, patience
        self._literal = Transformer(connection).as_literal

    def one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        return self._execute(sql, parameters).fetchone()

    def all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        return list(self._execute(sql, parameters).fetchall())

    def run(self, sql: str, parameters: Parameters = ()) -> int:
        return self._execute(sql, parameters).rowcount

    def many(self, sql: str, rows: Iterable[Parameters]) -> None:
        insert = _insert(sql)
        if insert is None:  # so many statements, and one answer to wait for
            left = iter(rows)
            while some := list(islice(left, ROWS)):
                self._send(b"; ".join(self._text(sql, row) for row in some))
            return
        for chunk in insert.chunks(rows):
            written = (b"(" + b", ".join(map(self._written, row)) + b")" for row in chunk)
            self._send(insert.head + b", ".join(written) + insert.tail)

    def _execute(self, sql: str, parameters: Parameters) -> psycopg.ClientCursor[dict[str, Any]]:
        return self._send(self._text(sql, parameters))

    def _text(self, sql: str, parameters: Parameters) -> bytes:
        first, *others = _in_dialect(sql)
        if len(others) != len(parameters):
            raise psycopg.ProgrammingError(f"{len(others)} places for {len(parameters)} parameters: {sql}")
        written = (self._written(value) + part for value, part in zip(parameters, others, strict=True))
        return first + b"".join(written)

    def _written(self, value: Any) -> bytes:
        # What most values are is written here as psycopg would, in a fraction of the time. A flag is a number; a number
        # that is negative must not meet a minus.
        kind = type(value)
        if kind is str and len(value) <= _SHORT and (plain := _plain(value)):
            return plain
        if kind is int or kind is bool:
            return b" %d" % value
        if kind is bytes:
            return b" '\\x%b'::bytea" % value.hex().encode()
        if kind is str and "\0" in value:
            raise Invalid("PostgreSQL cannot hold a text with the character U+0000", reason="INVALID_FIELDS")
        return b" NULL" if value is None else b" " + self._literal(value)

    def _send(self, statement: bytes) -> psycopg.ClientCursor[dict[str, Any]]:
        cursor = psycopg.ClientCursor(self._connection, row_factory=dict_row)
        if self._patience:
            self._patience.asked(self._connection)
        try:
            return cursor.execute(statement)
        except psycopg.IntegrityError as error:
            raise IntegrityViolation(str(error)) from None
        except (
            psycopg.errors.ProgramLimitExceeded
        ) as error:  # an OperationalError, and this statement's own fault
            message = f"the database has no room for a text that long: {_told(error)}"
            raise Invalid(message, reason="TEXT_TOO_LONG") from None


@lru_cache(maxsize=1024)
def _in_dialect(sql: str) -> tuple[bytes, ...]:
    """What is written before, between and after the parameters."""
    if sql.startswith(("create table", "alter table")):
        sql = _TABLE_OPTIONS.sub(")", sql).replace("x''", "''")  # bytes of a literal by the column's type
        sql = _TYPE.sub(lambda found: _TYPES[found[1]], sql)
    return tuple(part.encode() for part in sql.split("?"))


@lru_cache(maxsize=8192)
def _plain(text: str) -> bytes | None:
    """The text as a statement has it, where nothing in it needs escaping."""
    return b" '%b'" % text.encode() if _PLAIN.fullmatch(text) else None


@dataclass(frozen=True, slots=True)
class _Insert:
    """An insert of one row, to be said of many at once: a statement for each takes several times as long."""

    head: bytes
    tail: bytes
    key: tuple[int, ...]
    """Places of what may be there already and is changed then; a statement may say that of a row only once."""

    def chunks(self, rows: Iterable[Parameters]) -> Iterator[list[Parameters]]:
        """The rows in order, in parts of which each is one statement."""
        chunk: list[Parameters] = []
        keys: set[tuple[Any, ...]] = set()
        for row in rows:
            key = tuple(row[place] for place in self.key)
            if len(chunk) == ROWS or (self.key and key in keys):
                yield chunk
                chunk, keys = [], set()
            chunk.append(row)
            keys.add(key)
        if chunk:
            yield chunk


@lru_cache(maxsize=256)
def _insert(sql: str) -> _Insert | None:
    found = _ONE_ROW.fullmatch(sql)
    if found is None:
        return None
    columns = [name.strip() for name in found["columns"].split(",")]
    key = [name.strip() for name in (found["key"] or "").split(",") if name]
    return _Insert(
        found["head"].encode(), (found["tail"] or "").encode(), tuple(columns.index(name) for name in key)
    )


class _Numeric(Loader):
    """A sum of whole numbers is a whole number."""

    def load(self, data: Buffer) -> int | float:
        text = bytes(data).decode()
        return float(text) if "." in text else int(text)


class PostgresDatabase:
    """A database on a server; open it with `PostgresDatabase.open`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.hints = self
        self._readers = Readers("postgres-reader", lambda: _connect(url), is_lost=lambda one: one.closed)
        self._connection: Connection | None = None
        self._patience = _Patience()
        self._writer: Writer

    @classmethod
    def open(cls, url: str, *, may_change: bool = True) -> "PostgresDatabase":
        """The database at `url`, ready for work, as `prepare` leaves it."""
        prepare(url, may_change=may_change)
        database = cls(url)
        database._writer = Writer("postgres-writer", database._commit, at_end=database._end_writing)
        return database

    async def read(self, work: Callable[[Tx], T]) -> T:
        def read(connection: Connection) -> T:
            with self._patience.waiting(connection):
                try:
                    connection.execute("begin isolation level repeatable read read only")
                    return work(PostgresTx(connection, self._patience))
                except _LOST as error:
                    raise _unavailable(error) from error
                finally:
                    with suppress(psycopg.Error):  # a connection that is lost is closed
                        connection.execute("rollback")

        return await self._readers.run(read)

    async def write(self, work: Callable[[Tx], T]) -> T:
        return await self._writer.write(work)

    def _commit(self, group: Iterable[Unit]) -> None:
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = _connect(self._url)
        tx = PostgresTx(connection, self._patience)
        with self._patience.waiting(connection):
            try:
                tx.run(f"begin isolation level read committed read write; {_TURN}")
                for unit in group:
                    unit.run(tx, lost=_LOST)
                connection.execute("commit")
            except psycopg.Error as error:
                with suppress(psycopg.Error):
                    connection.execute("rollback")
                raise _unavailable(error) from error

    def _end_writing(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def hint(self, text: str) -> None:
        def say(connection: Connection) -> None:
            try:
                with self._patience.waiting(connection):
                    connection.execute("select pg_notify(%s, %s)", (CHANNEL, text))
            except _LOST as error:
                raise _unavailable(error) from error

        await self._readers.run(say)

    async def listen(self, told: Callable[[str], None]) -> NoReturn:
        """As `Hints` has it. A connection of its own, made again a second after it was lost."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._url, autocommit=True, connect_timeout=CONNECT_SECONDS, application_name="variantd"
                ) as connection:
                    with self._patience.waiting(connection):
                        await connection.execute(f"listen {CHANNEL}")
                    while True:
                        told("")
                        async for found in connection.notifies(timeout=LISTEN_CHECK_SECONDS):
                            told(found.payload)
                        with self._patience.waiting(connection):
                            await connection.execute("select 1")
            except psycopg.OperationalError as error:
                _log.warning("hints.not_heard", error=_told(error))
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)

    async def close(self) -> None:
        await self._writer.close()
        self._readers.close()
        self._patience.end()


def prepare(url: str, *, may_change: bool = True) -> list[str]:
    """The database at `url` has the newest schema; returns the names of the migrations applied now.

    Several processes may do so at once: one migrates, the others wait for it. Raises Invalid for a URL that is none,
    FailedPrecondition for a server that is too old, a user without rights, a schema that is newer or, unless it
    `may_change`, older; Unavailable where nobody answers.
    """
    with _connect(url) as connection:
        if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
            raise FailedPrecondition(
                f"{_shown(url)} has the encoding {encoding}; make the database with encoding 'UTF8'",
                reason="DATABASE_UNUSABLE",
            )
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        try:
            with connection.transaction():
                # An index over all events takes as long as it takes, and so does waiting for whoever makes it.
                connection.execute("set local statement_timeout = 0; set local lock_timeout = 0")
                connection.execute(_TURN)
                connection.execute(f"set local lock_timeout = {round(LOCK_SECONDS * 1000)}")
                if may_change:
                    connection.execute(_FUNCTIONS)
                return migrate(PostgresTx(connection), may_change=may_change)
        except psycopg.Error as error:
            raise FailedPrecondition(
                f"cannot make the tables in {_shown(url)}: {_told(error)}", reason="DATABASE_UNUSABLE"
            ) from None


def _connect(url: str) -> Connection:
    limits = " ".join(
        f"-c {name}={round(seconds * 1000)}"
        for name, seconds in (
            ("statement_timeout", STATEMENT_SECONDS),
            ("lock_timeout", LOCK_SECONDS),
            ("idle_in_transaction_session_timeout", IDLE_SECONDS),
        )
    )
    own = _parts(url).get("options", "")  # such as a search_path; what we rely on comes after it, and holds
    try:
        connection: Connection = psycopg.connect(
            url,
            autocommit=True,
            row_factory=dict_row,
            connect_timeout=CONNECT_SECONDS,
            options=f"{own} {limits} -c synchronous_commit=on -c standard_conforming_strings=on",
            application_name="variantd",
        )
    except psycopg.ProgrammingError as error:
        raise Invalid(f"database: {_told(error)}", reason="BAD_CONFIG") from None
    except psycopg.OperationalError as error:
        raise Unavailable(
            f"no PostgreSQL answers as {_shown(url)}: {_told(error)}", reason="DATABASE_UNAVAILABLE"
        ) from None
    if connection.info.server_version < OLDEST:
        connection.close()
        raise FailedPrecondition(
            f"{_shown(url)} is PostgreSQL {connection.info.server_version // 10_000}; variantd needs 13 or newer",
            reason="DATABASE_UNUSABLE",
        )
    connection.adapters.register_loader("numeric", _Numeric)
    return connection


def _shown(url: str) -> str:
    """Where the URL leads and as whom, without whatever else is in it: a password has several places there."""
    parts = _parts(url)
    user, port = (
        f"{parts['user']}@" if "user" in parts else "",
        f":{parts['port']}" if "port" in parts else "",
    )
    where = parts.get("host", parts.get("hostaddr", ""))
    return f"postgresql://{user}{where}{port}/{parts.get('dbname', '')}"


def _parts(url: str) -> dict[str, Any]:
    """What is in the URL. Raises Invalid for one that is none, without quoting it."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parts = {"host": "@"}
    if "@" in str(parts.get("host", "")):  # the rest of a password that has one
        raise Invalid(
            "database: that is no URL such as postgresql://user:password@host:5432/name; in a password @ is written"
            " %40, : %3A, / %2F, % %25 and a space %20",
            reason="BAD_CONFIG",
        )
    return parts


def _told(error: psycopg.Error) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def _unavailable(error: psycopg.Error) -> Unavailable:
    text = f"the database refused the transaction: {_told(error)}"
    if isinstance(error, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable):
        text += "; nothing of it is stored: see what else the server is busy with, and try again"
    return Unavailable(text, reason="DATABASE_UNAVAILABLE")
