"""One request's unit of work: who asks, when, over which transaction, and who must be woken after.

Hides what every mutation shares: the scope check, the idempotent answer, the audit entry, and that agents
are woken only after the commit.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from control_plane.services import record
from control_plane.store.access import AuditEntry
from control_plane.store.database import Database, IntegrityViolation, Tx
from control_plane.store.store import Store
from shared.clock import Clock
from shared.errors import AlreadyExists, Conflict, Invalid, PermissionDenied
from shared.ids import NewId

T = TypeVar("T")


class Scope(StrEnum):
    """What a key may do."""

    EXPERIMENT_READ = "experiment:read"
    EXPERIMENT_WRITE = "experiment:write"
    FEATURE_FLAG_READ = "feature_flag:read"
    DEPLOYMENT_WRITE = "deployment:write"
    CONTENT_READ = "content:read"
    FLEET_READ = "fleet:read"
    FLEET_WRITE = "fleet:write"
    EVENT_WRITE = "event:write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks; `actor` goes into `createdBy` and the audit log, and there with the id of the API key, if any.

    With `labels` it sees and changes only what carries all of them (`services.limits`).
    """

    project_id: bytes
    actor: str
    scopes: frozenset[Scope]
    key_id: bytes | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)

    def may(self, scope: Scope) -> bool:
        """Holds the scope, or `admin`."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def sees(self, labels: Mapping[str, str]) -> bool:
        """What has these labels carries all those that the caller is limited to."""
        return all(labels.get(name) == value for name, value in self.labels.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """What a host needs besides a token's secret to join: where to enroll, and whom to trust (DER)."""

    addresses: tuple[str, ...]
    ca_certificate: bytes


@dataclass(slots=True, kw_only=True)
class Work:
    """One transaction of one caller at one moment; `changes` where it may change anything.

    `about` is the id of the experiment it is about, for the audit log where the answer names nothing.
    """

    store: Store
    caller: Caller
    now: int
    new_id: NewId
    joining: Joining
    changes: bool = False
    about: str = ""
    woken: set[bytes] = field(default_factory=set)

    @property
    def project_id(self) -> bytes:
        """The caller's project."""
        return self.caller.project_id

    def touch(self, participant_ids: Iterable[bytes]) -> None:
        """The participants' agents learn of changed slots once this is committed.

        Raises PermissionDenied where the caller is limited to labels that one of them does not carry.
        """
        ids = sorted(set(participant_ids))
        outside = self.store.fleet.outside(ids, self.caller.labels) if self.caller.labels else []
        if outside:
            raise PermissionDenied(
                f"this reaches {outside[0]}, beyond the labels this key is limited to",
                reason="OUTSIDE_LABELS",
            )
        self.woken |= self.store.fleet.touch(ids)

    def wake(self, agent_uids: Iterable[bytes]) -> None:
        """The agents' sessions, wherever they are, look again once this is committed."""
        uids = set(agent_uids)
        self.store.fleet.grow(uids)
        self.woken |= uids


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What only a host can answer: what is at a path of a participant now."""

    agent_uid: bytes
    participant: str
    path: str


class Hosts(Protocol):
    """The hosts that are connected, as use cases see them."""

    async def read(self, question: Question) -> bytes | None:
        """The file's exact bytes, None where there is none.

        Raises FailedPrecondition NOT_CONNECTED, Unavailable where no usable answer comes in time, and the host's
        own refusal.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a host answered."""

    question: Question
    content: bytes | None


class Condition(Protocol):
    """What has to hold for a change to be made, looked at in the transaction that makes it."""

    def before(self, work: Work) -> None:
        """Raises where it does not hold; then nothing is changed."""

    def after(self, work: Work) -> None:
        """The change is made and not yet committed."""


class Witnessed(Protocol):
    """What a change is about, as the API shows it; None while it is not there, or where nothing is shown of it."""

    def before(self, work: Work) -> Any:
        """As it is before the change."""

    def after(self, work: Work, answer: Any) -> Any:
        """As it is after the change that was answered so."""


class Settle(Protocol):
    """Finds out what connected hosts say of a draft before it is looked at, or started."""

    async def __call__(self, services: "Services", caller: Caller, experiment: str, /) -> None:
        """They were asked, and answered as far as they do within seconds. Raises NotFound."""


async def _alone(services: "Services", caller: Caller, experiment: str, /) -> None:
    """Nobody is connected."""


class Witness(Protocol):
    """Knows what a request is about."""

    def __call__(self, operation: str, body: Mapping[str, Any], /) -> Witnessed:
        """What this request is about."""


UseCase = Callable[[Work, Any], T]
Render = Callable[[Work, T], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Runs use cases. `wake` is told the agents whose slots changed, after the commit.

    What a change is about is on record as the `witness` shows it before and after.
    """

    database: Database
    clock: Clock
    new_id: NewId
    wake: Callable[[bytes], None]
    joining: Joining
    hosts: Hosts
    witness: Witness
    settle: Settle = _alone

    async def ask(
        self, caller: Caller, scope: Scope, use_case: UseCase[T], request: Any, render: Render[T]
    ) -> Any:
        """The rendered answer of a use case that changes nothing."""
        require(caller, scope)
        now = self.clock.now()

        def work(tx: Tx) -> Any:
            item = self._work(tx, caller, now)
            return render(item, use_case(item, request))

        return await self.database.read(work)

    async def change(
        self,
        caller: Caller,
        scope: Scope,
        use_case: UseCase[T],
        request: Any,
        render: Render[T],
        *,
        operation: str,
        request_id: str,
        body: Mapping[str, Any],
        condition: Condition | None = None,
    ) -> Any:
        """The rendered answer of a use case, durable; repeated with the same `request_id`, the same answer.

        A request that says `validate_only` is carried out and undone: its answer is what would have been, and
        nothing is kept of it, neither in the audit log nor for its request id.
        Raises Conflict where the request id was used for another request, and what the `condition` raises: it is
        looked at after the request id, so that a repeated request still gets its answer. `body` is what is
        fingerprinted and, with content replaced by digests, audited.
        """
        require(caller, scope)
        now = self.clock.now()
        witnessed = self.witness(operation, body)
        fingerprint = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
        if request_id and caller.labels:  # what another key was answered may be outside of this one's labels
            request_id = f"{caller.key_id.hex() if caller.key_id else caller.actor} {request_id}"

        def work(tx: Tx) -> tuple[Any, set[bytes]]:
            item = self._work(tx, caller, now, changes=True)
            access = item.store.access
            if request_id:
                given = access.answer(caller.project_id, operation, request_id)
                if given is not None:
                    return _repeat(given, fingerprint, caller), set()
            if condition is not None:
                condition.before(item)
            before = record.of_state(witnessed.before(item))
            answer = render(item, use_case(item, request))
            if getattr(request, "validate_only", False):
                raise _Undone(answer)
            if condition is not None:
                condition.after(item)
            entry = AuditEntry(
                id=self.new_id(),
                actor=caller.actor,
                api_key_id=caller.key_id,
                operation=operation,
                resource_id=_resource_id(answer) or item.about or str(body.get("id", "")),
                at=now,
                before=before,
                after=record.of_state(witnessed.after(item, answer)),
            )
            access.add_audit(entry, project_id=caller.project_id, request=record.of_request(request, body))
            if request_id:
                access.keep_answer(
                    caller.project_id,
                    operation,
                    request_id,
                    fingerprint=fingerprint,
                    answer=record.without_secrets(answer),
                    now=now,
                )
            return answer, item.woken

        try:
            answer, woken = await self.database.write(work)
        except _Undone as undone:
            return undone.answer
        except IntegrityViolation:
            raise AlreadyExists("a resource with this key, name or id exists already") from None
        for uid in woken:
            self.wake(uid)
        return answer

    async def consult(
        self,
        caller: Caller,
        scope: Scope,
        use_case: UseCase[Question],
        request: Any,
        render: Render[Reading],
        *,
        operation: str,
    ) -> Any:
        """The rendered answer of the host that the use case's question goes to; no transaction waits for it.

        On record before it is told: who read which file, with the digest of what was there, never content.
        """
        require(caller, scope)
        now = self.clock.now()
        question = await self.database.read(lambda tx: use_case(self._work(tx, caller, now), request))
        reading = Reading(question=question, content=await self.hosts.read(question))
        entry = AuditEntry(
            id=self.new_id(),
            actor=caller.actor,
            api_key_id=caller.key_id,
            operation=operation,
            resource_id=question.participant,
            at=self.clock.now(),
        )

        def work(tx: Tx) -> Any:
            item = self._work(tx, caller, entry.at)
            content = reading.content
            found = None if content is None else "sha256:" + hashlib.sha256(content).hexdigest()
            request_made = {"id": question.participant, "path": question.path, "digest": found}
            item.store.access.add_audit(entry, project_id=caller.project_id, request=request_made)
            return render(item, reading)

        return await self.database.write(work)

    def _work(self, tx: Tx, caller: Caller, now: int, *, changes: bool = False) -> Work:
        return Work(
            store=Store(tx),
            caller=caller,
            now=now,
            new_id=self.new_id,
            joining=self.joining,
            changes=changes,
        )


class _Undone(Exception):
    """The transaction was only to see what it would answer."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer


def require(caller: Caller, scope: Scope) -> None:
    """The caller holds the scope. Raises PermissionDenied naming it."""
    if not caller.may(scope):
        raise PermissionDenied(f"this needs a key with the scope {scope.value}", reason="MISSING_SCOPE")


def check_request_id(request_id: str) -> str:
    """A usable idempotency key. Raises Invalid."""
    if len(request_id) > 128 or not request_id.isprintable():
        raise Invalid("Idempotency-Key is at most 128 printable characters", reason="INVALID_FIELDS")
    return request_id


def _repeat(given: tuple[bytes, Any], fingerprint: bytes, caller: Caller) -> Any:
    if not hmac.compare_digest(given[0], fingerprint):
        raise Conflict(
            "this Idempotency-Key was used for another request; use a fresh one",
            reason="IDEMPOTENCY_KEY_REUSED",
        )
    # Whoever was answered first may have been shown more than who asks now.
    return given[1] if caller.may(Scope.CONTENT_READ) else record.hiding_content(given[1])


def _resource_id(answer: Any) -> str:
    if not isinstance(answer, dict):
        return ""
    inner = answer.get("experiment")
    return str((inner if isinstance(inner, dict) else answer).get("id", ""))


# -- pages -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A page of resources, where the next one starts (empty: this was the last), and how many it may hold."""

    items: list[Any]
    next_cursor: str
    limit: int | None = None


def page_size(limit: int | None) -> int:
    """The page size asked for, clamped to 1 … 100; 25 by default."""
    return 25 if limit is None else min(100, max(1, limit))


def listing(items: list[Any], size: int, cursor_of: Callable[[Any], str]) -> Listing:
    """A page of `size` out of up to `size` + 1 items found."""
    more = len(items) > size
    return Listing(items=items[:size], next_cursor=cursor_of(items[size - 1]) if more else "", limit=size)


def cursor_id(cursor: str) -> bytes | None:
    """The id behind a cursor; None for the first page. Raises Invalid where malformed."""
    if not cursor:
        return None
    try:
        value = bytes.fromhex(cursor)
    except ValueError:
        value = b""
    if len(value) != 16:
        raise Invalid("cursor: is not one that a list answered", reason="INVALID_CURSOR")
    return value


def cursor_text(cursor: str) -> str:
    """The text behind a cursor; empty for the first page. Raises Invalid where malformed."""
    try:
        return bytes.fromhex(cursor).decode()
    except ValueError:
        raise Invalid("cursor: is not one that a list answered", reason="INVALID_CURSOR") from None


def hex_of(value: bytes | str) -> str:
    """A cursor for an id or a text."""
    return (value.encode() if isinstance(value, str) else value).hex()
