"""Who may do what: keys of operators, tokens that let agents join, and the audit log."""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from control_plane.domain import requests
from control_plane.services.work import (
    Caller,
    Joining,
    Listing,
    Scope,
    Work,
    cursor_id,
    hex_of,
    listing,
    page_size,
)
from control_plane.store.access import (
    MAX_ANCESTORS,
    AccessStore,
    ApiKey,
    AuditFilter,
    EnrollmentToken,
    Incarnation,
    Project,
)
from control_plane.store.store import Store
from shared.errors import AlreadyExists, Fault, Invalid, NotFound, PermissionDenied, Unauthenticated
from shared.ids import NewId, new_secret, parse_id, show_id
from shared.moment import SECOND, from_rfc3339
from shared.ticket import Ticket, ticket_to_token

KEY_PREFIX = "sk_"
DEFAULT_PROJECT = "default"


def hash_secret(secret: bytes) -> bytes:
    """What is kept of a secret. Secrets are 256 random bits, so a fast hash is as good as a slow one."""
    return hashlib.sha256(secret).digest()


# -- projects


def create_project(work: Work, request: requests.CreateProject) -> Project:
    """The caller's project exists under this name: whoever makes one acts within it from the first moment."""
    access = work.store.access
    if access.project(request.name) is not None:
        raise AlreadyExists(f"a project with the name {request.name!r} exists already")
    access.add_project(work.project_id, name=request.name, now=work.now)
    return Project(id=work.project_id, name=request.name, created_at=work.now)


# -- API keys


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """An API key; `secret` is None once it is not shown any more."""

    key: ApiKey
    secret: str | None = None


def make_key(
    store: AccessStore,
    *,
    project_id: bytes,
    name: str,
    scopes: tuple[str, ...],
    new_id: NewId,
    now: int,
    expires_at: int | None = None,
    labels: Mapping[str, str] | None = None,
) -> NewKey:
    """The key exists; its secret is in the answer and nowhere else."""
    secret = KEY_PREFIX + base64.urlsafe_b64encode(new_secret()).rstrip(b"=").decode()
    key = ApiKey(
        id=new_id(),
        project_id=project_id,
        name=name,
        prefix=secret[:10],
        secret_hash=hash_secret(secret.encode()),
        scopes=scopes,
        labels=dict(labels or {}),
        created_at=now,
        expires_at=expires_at,
    )
    store.add_api_key(key)
    return NewKey(key=key, secret=secret)


def known_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """The scopes, each once. Raises Invalid naming one that there is not."""
    wanted = tuple(dict.fromkeys(scopes))
    unknown = sorted(set(wanted) - set(Scope))
    if unknown:
        raise _refused("scopes", f"{unknown[0]!r} is not a scope", f"known are {', '.join(Scope)}")
    return wanted


def create_api_key(work: Work, request: requests.CreateApiKey) -> NewKey:
    """A key exists that may do no more than the caller. Raises Invalid or PermissionDenied naming a scope."""
    expires_at = None if request.expires_at is None else from_rfc3339(request.expires_at)
    if expires_at is not None and expires_at <= work.now:
        raise _refused("expiresAt", "is not ahead of now", "leave it out for a key that does not expire")
    scopes = known_scopes(request.scopes) or tuple(sorted(work.caller.scopes))
    beyond = [scope for scope in scopes if not work.caller.may(Scope(scope))]
    if beyond:
        raise PermissionDenied(f"the caller does not hold {beyond[0]} itself", reason="MISSING_SCOPE")
    return make_key(
        work.store.access,
        project_id=work.project_id,
        name=request.name,
        scopes=scopes,
        new_id=work.new_id,
        now=work.now,
        expires_at=expires_at,
        labels=request.labels,
    )


def _refused(field: str, message: str, remedy: str) -> Invalid:
    fault = Fault(field=field, message=message, remedy=remedy)
    return Invalid(f"{field}: {message}; {remedy}", reason="INVALID_FIELDS", faults=[fault])


def list_api_keys(work: Work, request: requests.Page) -> Listing:
    """A page of keys, newest first, revoked and expired ones among them, without their secrets."""
    size = page_size(request.limit)
    before = cursor_id(request.cursor)
    found = work.store.access.api_keys(work.project_id, before=before, limit=size + 1)
    page = listing(found, size, lambda item: hex_of(item.id))
    return replace(page, items=[NewKey(key=key) for key in page.items])


def get_api_key(work: Work, request: requests.ById) -> NewKey:
    """One key without its secret. Raises NotFound."""
    return NewKey(key=_own_key(work, request.id))


def update_api_key(work: Work, request: requests.UpdateApiKey) -> NewKey:
    """The key has another name; what it may do never changes. Raises NotFound."""
    key = _own_key(work, request.id)
    work.store.access.rename_api_key(key.id, request.name)
    return NewKey(key=replace(key, name=request.name))


def revoke_api_key(work: Work, request: requests.ById) -> None:
    """The key lets nobody in from the next request on; it stays in the list. Idempotent. Raises NotFound."""
    work.store.access.revoke_api_key(_own_key(work, request.id).id, now=work.now)


def _own_key(work: Work, shown: str) -> ApiKey:
    key_id = parse_id(shown)
    key = work.store.access.api_key_of(work.project_id, key_id) if key_id else None
    if key is None:
        raise NotFound(f"there is no API key {shown!r}", reason="API_KEY_NOT_FOUND")
    return key


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds an API key, and whether it is time to note that it was used."""

    caller: Caller
    key_id: bytes
    unnoted: bool


USE_NOTED_EVERY = 60 * SECOND


def authenticate(store: Store, secret: str, *, now: int) -> Holder:
    """Who holds this API key, which is looked up each time, so that a revoked one is refused at once.

    Raises Unauthenticated; that a key was revoked or has expired is told only to who has it.
    """
    given = hash_secret(secret.encode(errors="surrogatepass"))  # a header has any bytes
    key = store.access.api_key(given) if secret.startswith(KEY_PREFIX) else None
    if key is None or not hmac.compare_digest(key.secret_hash, given):
        raise Unauthenticated(reason="BAD_API_KEY")
    if key.revoked_at is not None:
        raise Unauthenticated("this API key was revoked", reason="API_KEY_REVOKED")
    if key.expires_at is not None and key.expires_at <= now:
        raise Unauthenticated("this API key has expired", reason="API_KEY_EXPIRED")
    caller = Caller(
        project_id=key.project_id,
        actor=f"api_key:{key.name}",
        scopes=frozenset(Scope(scope) for scope in key.scopes),
        key_id=key.id,
        labels=key.labels,
    )
    unnoted = key.last_used_at is None or now - key.last_used_at >= USE_NOTED_EVERY
    return Holder(caller=caller, key_id=key.id, unnoted=unnoted)


def list_audit(work: Work, request: requests.ListAuditLog) -> Listing:
    """A page of changes, newest first: of an operation, of a resource, by somebody, with a key, within a time.

    An experiment is found by its id and by its key, whichever it was called by; `fromAt` is within, `toAt` not.
    """
    key_id = parse_id(request.api_key_id)
    if request.api_key_id and key_id is None:
        raise _refused("apiKeyId", "is not the id of a key", "take it from the list of keys")
    size = page_size(request.limit)
    wanted = AuditFilter(
        operation=request.operation,
        names=_names(work, request.resource_id),
        actor=request.actor,
        api_key_id=key_id,
        from_at=None if request.from_at is None else from_rfc3339(request.from_at),
        to_at=None if request.to_at is None else from_rfc3339(request.to_at),
    )
    before = cursor_id(request.cursor)
    found = work.store.access.audit(work.project_id, wanted, before=before, limit=size + 1)
    return listing(found, size, lambda item: hex_of(item.id))


def _names(work: Work, shown: str) -> tuple[str, ...]:
    if not shown:
        return ()
    experiment = work.store.experiments.find(work.project_id, shown)
    return (shown,) if experiment is None else (show_id(experiment.id), experiment.key)


# -- enrollment tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """An enrollment token; `secret` is None once it is not shown any more."""

    token: EnrollmentToken
    secret: bytes | None = None


def create_enrollment_token(work: Work, request: requests.CreateEnrollmentToken) -> NewToken:
    """The token exists; its secret is in the answer and nowhere else."""
    secret = new_secret()
    token = EnrollmentToken(
        id=work.new_id(),
        project_id=work.project_id,
        name=request.name,
        secret_hash=hash_secret(secret),
        labels=dict(request.labels),
        max_uses=request.max_uses,
        uses=0,
        name_pattern=request.name_pattern,
        participants=request.participants,
        expires_at=work.now + request.ttl_seconds() * SECOND,
        created_at=work.now,
    )
    work.store.access.add_enrollment_token(token)
    return NewToken(token=token, secret=secret)


def list_enrollment_tokens(work: Work, request: requests.Page) -> Listing:
    """A page of tokens, newest first, without their secrets."""
    size = page_size(request.limit)
    before = cursor_id(request.cursor)
    found = work.store.access.enrollment_tokens(work.project_id, before=before, limit=size + 1)
    page = listing(found, size, lambda item: hex_of(item.id))
    return replace(page, items=[NewToken(token=token) for token in page.items])


def token_text(secret: bytes, joining: Joining) -> str:
    """The copy-paste text of an enrollment token."""
    ticket = Ticket(secret=secret, addresses=joining.addresses, ca_certificate=joining.ca_certificate)
    return ticket_to_token(ticket)


# -- the first start of a database


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstStart:
    """What a database has after `initialise`; `operator_key` is None where it was there before."""

    incarnation: Incarnation
    operator_key: str | None


def initialise(store: Store, *, new_id: NewId, now: int) -> FirstStart:
    """The database has an incarnation, a default project and an operator's key; idempotent."""
    access = store.access
    known = access.incarnation()
    if known is not None:
        return FirstStart(incarnation=known, operator_key=None)
    incarnation = Incarnation(id=new_id())
    access.set_incarnation(incarnation)
    project_id = new_id()
    access.add_project(project_id, name=DEFAULT_PROJECT, now=now)
    scopes = (Scope.ADMIN.value,)
    key = make_key(access, project_id=project_id, name="operator", scopes=scopes, new_id=new_id, now=now)
    return FirstStart(incarnation=incarnation, operator_key=key.secret)


def succeed(store: Store, *, new_id: NewId, now: int) -> Incarnation:
    """The database is a new incarnation that names those before it, and gives no event a number that one of them gave.

    Whoever follows events has seen numbers that those before it gave after the backup was made.
    """
    known = store.access.incarnation()
    ancestors = (known.id, *known.ancestors)[:MAX_ANCESTORS] if known else ()
    incarnation = Incarnation(id=new_id(), ancestors=ancestors)
    store.access.set_incarnation(incarnation)
    store.events.number_from(now)
    return incarnation
