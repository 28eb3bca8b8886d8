"""Bearer tokens (JWT) of the operator's own identity provider, beside API keys.

Hides where the provider's keys come from, how long they are believed, and every way a token can be wrong. The
library that checks signatures is the extra `oidc`; it is imported only where [oidc] is set.
"""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import aiohttp

from control_plane.config import Oidc
from control_plane.data import write_private
from control_plane.services.work import Caller, Scope
from control_plane.store.database import Database
from control_plane.store.store import Store
from shared import logs
from shared.clock import Clock
from shared.errors import FailedPrecondition, Unauthenticated
from shared.ids import parse_id
from shared.model import is_text
from shared.moment import SECOND

_log = logs.get(__name__)

BELIEVED_SECONDS = 300.0
"""After so long the next token has the keys fetched again."""

FETCH_EVERY_SECONDS = 10.0
"""Keys are fetched no more often than this, whatever tokens name."""

_FETCH_SECONDS = 3.0
_DOCUMENT_BYTES = 262_144
_TOKEN_LENGTH = 8_192
_SUBJECT_LENGTH = 255
_RSA_BITS = 2_048


class Tokens:
    """Verifies tokens by the keys of the provider; the last good ones outlive its outages and our restarts."""

    def __init__(self, settings: Oidc, *, keep: Path, clock: Clock) -> None:
        """Raises FailedPrecondition where the extra is not installed."""
        try:
            import jwt
        except ImportError:
            raise FailedPrecondition(
                "[oidc] is set and the library it needs is not installed;"
                " install variantd with it: pip install 'variantd[control-plane,oidc]'",
                reason="BAD_CONFIG",
            ) from None
        self._jwt = jwt
        self._settings, self._keep, self._clock = settings, keep, clock
        self._keys: dict[tuple[str, str], Any] = {}  # by kid and algorithm
        self._fetched_at = self._tried_at = -math.inf
        self._fetching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """The keys of a file are known, or those kept of an address; raises FailedPrecondition for a file."""
        if self._settings.jwks_file is not None:
            try:
                self._keys = self._usable(await self._read())
            except (OSError, ValueError) as error:
                raise FailedPrecondition(
                    f"cannot use oidc.jwks_file {self._settings.jwks_file}: {_why(error)}",
                    reason="BAD_CONFIG",
                ) from None
            return
        try:
            kept = json.loads(await asyncio.to_thread(self._keep.read_bytes))
            if kept["source"] == self._settings.jwks_url:
                self._keys = self._usable(kept["document"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            _log.warning("oidc.kept_keys_unusable", error=type(error).__name__)

    async def stop(self) -> None:
        """Nothing is being fetched any more."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    async def caller(self, token: str, database: Database) -> Caller:
        """Who this token speaks for; its claims count only once its signature does. Raises Unauthenticated."""
        claims = await self._verified(token)
        settings = self._settings
        subject, named = claims["sub"], claims.get(settings.project_claim)
        if (
            not isinstance(subject, str)
            or not 0 < len(subject) <= _SUBJECT_LENGTH
            or not subject.isprintable()
        ):
            raise _refused("its claim sub names nobody")
        project_id = None
        if isinstance(named, str) and is_text(named):
            project_id = await database.read(lambda tx: _project(Store(tx), named))
        if project_id is None:
            raise _refused(f"its claim {settings.project_claim} names no project of this control plane")
        given = claims.get(settings.scope_claim, "")
        words = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
        known = {scope.value: scope for scope in Scope}
        scopes = frozenset(known[word] for word in words if isinstance(word, str) and word in known)
        return Caller(project_id=project_id, actor=f"oidc:{settings.issuer}#{subject}", scopes=scopes)

    async def _verified(self, token: str) -> dict[str, Any]:
        """The claims of a token that is signed, ours, and in its time."""
        jwt, settings = self._jwt, self._settings
        if len(token) > _TOKEN_LENGTH or not token.isascii() or token.count(".") != 2:
            raise _refused("it is neither an API key nor a signed token")
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header.get("alg"), header.get("kid")
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, RecursionError):
            raise _refused("its header cannot be read") from None
        if algorithm not in settings.algorithms:
            raise _refused(f"its algorithm is none of {', '.join(settings.algorithms)}")
        if "crit" in header or not isinstance(kid, str):
            raise _refused("its header has to name a key (kid), and nothing critical (crit)")
        key = await self._key(kid, algorithm)
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],  # the one that this key is for
                audience=settings.audience,
                issuer=settings.issuer,
                options={
                    "require": ["exp", "iss", "aud", "sub"],
                    "verify_exp": False,  # all three below, by our clock
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.MissingRequiredClaimError as error:
            raise _refused(f"its claim {error.claim} is missing") from None
        except jwt.InvalidAudienceError:
            raise _refused("it is for another audience (aud)") from None
        except jwt.InvalidIssuerError:
            raise _refused("it is of another issuer (iss)") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise _refused("its signature or its claims are not valid") from None
        self._check_time(claims)
        return claims

    def _check_time(self, claims: dict[str, Any]) -> None:
        now, leeway = self._clock.now() / SECOND, self._settings.leeway_seconds
        for name in ("exp", "nbf", "iat"):
            moment = claims.get(name, now)
            if isinstance(moment, bool) or not isinstance(moment, int | float):
                raise _refused(f"its claim {name} is not a number")
            if name == "exp" and not now < moment + leeway:  # NaN is no end
                raise Unauthenticated("this token has expired; get a fresh one", reason="TOKEN_EXPIRED")
            if name != "exp" and not moment <= now + leeway:
                raise _refused(f"its claim {name} is ahead of now")

    # -- keys

    async def _key(self, kid: str, algorithm: str) -> Any:
        """The key of that id for that algorithm; keys that are old or lack it are fetched first."""
        wanted = (kid, algorithm)
        old = self._clock.monotonic() - self._fetched_at >= BELIEVED_SECONDS
        if old or wanted not in self._keys:
            await self._refresh()
        if wanted not in self._keys:
            raise _refused("the issuer publishes no such key for its algorithm")
        return self._keys[wanted]

    async def _refresh(self) -> None:
        """One fetch was made, by whoever came first, unless there was one just now."""
        if self._fetching is None or self._fetching.done():
            if self._clock.monotonic() - self._tried_at < FETCH_EVERY_SECONDS:
                return
            self._tried_at = self._clock.monotonic()
            self._fetching = asyncio.create_task(self._fetch())
        await asyncio.shield(self._fetching)  # a caller who leaves does not take it along

    async def _fetch(self) -> None:
        """The keys are those published now; where that fails, the last good ones stay."""
        try:
            document = await self._read()
            self._keys = self._usable(document)
        except (OSError, ValueError, aiohttp.ClientError, TimeoutError, RecursionError) as error:
            _log.warning("oidc.keys_not_fetched", error=_why(error), known=len(self._keys))
            return
        self._fetched_at = self._clock.monotonic()
        if self._settings.jwks_url is not None:
            kept = json.dumps({"source": self._settings.jwks_url, "document": document}).encode()
            try:
                await asyncio.to_thread(write_private, self._keep, kept)
            except OSError as error:
                _log.warning("oidc.keys_not_kept", error=_why(error))

    async def _read(self) -> Any:
        settings = self._settings
        if settings.jwks_file is not None:
            return json.loads(await asyncio.to_thread(settings.jwks_file.read_bytes))
        assert settings.jwks_url is not None
        timeout = aiohttp.ClientTimeout(total=_FETCH_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(settings.jwks_url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise ValueError(f"it answered {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_chunked(65_536):
                body += chunk
                if len(body) > _DOCUMENT_BYTES:
                    raise ValueError("the document is too large")
        return json.loads(body)

    def _usable(self, document: Any) -> dict[tuple[str, str], Any]:
        """The public keys to verify with, each for its one algorithm; raises ValueError where there is none."""
        listed = document.get("keys") if isinstance(document, dict) else None
        found: dict[tuple[str, str], Any] = {}
        for item in listed if isinstance(listed, list) else []:
            algorithm = _algorithm(item)
            if algorithm is None or algorithm not in self._settings.algorithms:
                continue
            try:
                key = self._jwt.PyJWK(item, algorithm=algorithm).key
            except (self._jwt.PyJWTError, ValueError, TypeError):
                continue
            if algorithm == "ES256" or key.key_size >= _RSA_BITS:
                found[item["kid"], algorithm] = key
        if not found:
            raise ValueError("it lists no key to verify with; each needs its kid and kty RSA or EC (P-256)")
        return found


def _algorithm(item: Any) -> str | None:
    """What a published key is for: its type decides, and what it says of itself has to agree."""
    if not isinstance(item, dict) or not isinstance(item.get("kid"), str) or "d" in item:
        return None
    by_type = {"RSA": "RS256", "EC": "ES256" if item.get("crv") == "P-256" else None}
    kind = item.get("kty")
    algorithm = by_type.get(kind) if isinstance(kind, str) else None
    return algorithm if item.get("alg", algorithm) == algorithm and item.get("use", "sig") == "sig" else None


def _project(store: Store, named: str) -> bytes | None:
    by_id = parse_id(named)
    for project in store.access.projects():
        if by_id is not None and project.id == by_id:
            return project.id
    return store.access.project(named)


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(f"this token is refused: {why}", reason="BAD_TOKEN")


def _why(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "it is not JSON"
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
