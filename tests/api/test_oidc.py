"""Bearer tokens of an identity provider: real keys, a real provider on loopback, every attack by name."""

import asyncio
import base64
import hashlib
import hmac
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from control_plane.api import oidc
from control_plane.config import Oidc, load
from shared.clock import SystemClock
from shared.errors import FailedPrecondition, Invalid
from tests.support.plane import Plane, running_plane

ISSUER, AUDIENCE = "https://id.example.org", "variantd"
EC, OTHER_EC = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2048)


def published(kid: str, key: Any, **more: str) -> dict[str, Any]:
    """A public key as a provider lists it."""
    kind = ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else RSAAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


@dataclass
class Provider:
    """Publishes keys over HTTP, and counts who asks."""

    keys: list[dict[str, Any]] = field(default_factory=lambda: [published("ec", EC), published("rsa", RSA)])
    status: int = 200
    body: bytes | None = None
    asked: int = 0
    url: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        body = json.dumps({"keys": self.keys}).encode() if self.body is None else self.body
        return web.Response(body=body, status=self.status, headers={"Location": "/keys"})


@asynccontextmanager
async def provider_running() -> AsyncIterator[Provider]:
    provider = Provider()
    app = web.Application()
    app.router.add_get("/keys", provider.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    provider.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    try:
        yield provider
    finally:
        await runner.cleanup()


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with provider_running() as running:
        yield running


def settings(provider: Provider) -> Oidc:
    return Oidc(issuer=ISSUER, audience=AUDIENCE, jwks_url=provider.url)


@pytest.fixture
async def plane(tmp_path: Path, provider: Provider) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path / "data", oidc=settings(provider)) as running:
        yield running


def claims(**more: Any) -> dict[str, Any]:
    """What a good token says; None leaves a claim out."""
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": time.time() + 60, "project": "default"}
    good["scope"] = "experiment:read fleet:read fly"
    return {name: value for name, value in {**good, **more}.items() if value is not None}


def token(key: Any = EC, kid: str | None = "ec", algorithm: str = "ES256", **more: Any) -> str:
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(**more), key, algorithm=algorithm, headers=headers)


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def refused(plane: Plane, bearer: str, reason: str = "BAD_TOKEN") -> str:
    """It is refused with that reason on both transports; what the answer says."""
    answer = await plane.rest("GET", "/v1/agents", key=bearer)
    assert (answer.status, answer.body["reason"]) == (401, reason), answer.body
    assert bearer not in json.dumps(answer.body)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await plane.grpc("FleetService.ListAgents", key=bearer)
    assert failure.value.code() is grpc.StatusCode.UNAUTHENTICATED
    return str(answer.body["detail"])


@pytest.mark.parametrize(("key", "kid", "algorithm"), [(EC, "ec", "ES256"), (RSA, "rsa", "RS256")])
async def test_a_token_lets_in_on_both_transports(plane: Plane, key: Any, kid: str, algorithm: str) -> None:
    """With the scopes that it names and that there are, in its project; API keys go on working beside it."""
    bearer = token(key, kid, algorithm)
    assert (await plane.rest("GET", "/v1/agents", key=bearer)).status == 200
    await plane.grpc("FleetService.ListAgents", key=bearer)
    answer = await plane.rest("POST", "/v1/api-keys", {"name": "more"}, key=bearer)
    assert (answer.status, answer.body["reason"]) == (403, "MISSING_SCOPE")
    assert (await plane.rest("GET", "/v1/agents")).status == 200


async def test_the_audit_log_names_issuer_and_subject(plane: Plane) -> None:
    """Who changed something by a token is its issuer and its subject; scopes may be a list."""
    bearer = token(scope=["admin", "fly", 7], aud=["other", AUDIENCE])
    made = await plane.rest("POST", "/v1/api-keys", {"name": "made"}, key=bearer)
    assert made.status == 201, made.body
    audit = (await plane.rest("GET", "/v1/audit-log")).body["entities"]
    assert audit[0]["actor"] == f"oidc:{ISSUER}#ada"


async def test_a_subject_has_one_rate_for_all_its_tokens(tmp_path: Path, provider: Provider) -> None:
    """Fresh tokens do not buy more requests; another subject has a rate of its own."""
    async with running_plane(
        tmp_path / "data", oidc=settings(provider), rate_limit=0.001, rate_burst=1
    ) as plane:
        answers = [
            await plane.rest("GET", "/v1/agents", key=token(sub=sub, jti=jti))
            for sub, jti in (("ada", "1"), ("ada", "2"), ("bob", "3"))
        ]
    assert [answer.status for answer in answers] == [200, 429, 200]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"exp": None}, "exp is missing"),
        ({"iss": None}, "iss is missing"),
        ({"aud": None}, "aud is missing"),
        ({"sub": None}, "sub is missing"),
        ({"sub": ""}, "sub names nobody"),
        ({"sub": "a\nb"}, "sub names nobody"),
        ({"iss": "https://evil.example.org"}, "issuer"),
        ({"aud": "other"}, "audience"),
        ({"exp": "soon"}, "exp is not a number"),
        ({"nbf": time.time() + 3600}, "nbf is ahead"),
        ({"iat": time.time() + 3600}, "iat is ahead"),
        ({"project": None}, "names no project"),
        ({"project": "another"}, "names no project"),
        ({"project": ["default"]}, "names no project"),
        ({"project": "\ud800"}, "names no project"),
    ],
)
async def test_a_claim_that_is_wrong(plane: Plane, more: dict[str, Any], says: str) -> None:
    """Signed well, and refused for what it says or does not say."""
    assert says in await refused(plane, token(**more))


async def test_its_end(plane: Plane) -> None:
    """Over its time it has a reason of its own; within the leeway it still counts."""
    await refused(plane, token(exp=time.time() - 60), "TOKEN_EXPIRED")
    assert (await plane.rest("GET", "/v1/agents", key=token(exp=time.time() - 5))).status == 200


def hmac_signed(secret: bytes) -> str:
    """HS256 with a public key for its secret: the library refuses to make one, an attacker does not."""
    signed = f"{part({'alg': 'HS256', 'kid': 'rsa'})}.{part(claims())}"
    return f"{signed}.{part(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


ATTACKS = {
    "no signature": f"{part({'alg': 'none', 'kid': 'ec'})}.{part(claims())}.",
    "NONE": f"{part({'alg': 'NoNe', 'kid': 'ec'})}.{part(claims())}.",
    "HS256 with the public key": hmac_signed(
        RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    ),
    "another key under a known kid": token(OTHER_EC),
    "an algorithm of another key type": token(RSA, "ec", "RS256"),
    "a stronger algorithm than allowed": token(RSA, "rsa", "RS512"),
    "no kid": token(kid=None),
    "a critical extension": jwt.encode(claims(), EC, "ES256", headers={"kid": "ec", "crit": ["x"], "x": 1}),
    "a key of its own": jwt.encode(
        claims(), OTHER_EC, "ES256", headers={"kid": "mine", "jwk": published("mine", OTHER_EC)}
    ),
    "changed claims": ".".join([token().split(".")[0], part(claims(scope="admin")), token().split(".")[2]]),
    "a list for a header": f"{part([])}.{part({})}.x",
    "a list for claims": f"{part({'alg': 'ES256', 'kid': 'ec'})}.{part([])}.x",
    "a kid that is none": f"{part({'alg': 'ES256', 'kid': {}})}.{part({})}.x",
    "an alg that is none": f"{part({'alg': ['ES256'], 'kid': 'ec'})}.{part({})}.x",
    "deep nonsense": f"{part(b'[' * 4000)}.x.x",
    "no token": "nonsense",
    "dots": "..",
    # Beyond 8 KiB of metadata gRPC itself refuses, at random below 16.
    "long": "a.b." + "c" * 7_000,
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack(plane: Plane, capfd: pytest.CaptureFixture[str], name: str) -> None:
    """Each is refused without a traceback, and neither answer nor log has the token."""
    bearer = ATTACKS[name]
    await refused(plane, bearer)
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    assert bearer == ".." or bearer not in said


async def test_rotation_and_the_bound_on_fetching(plane: Plane, provider: Provider) -> None:
    """Keys are fetched once for many tokens at once; unknown ids cost one fetch per while, however many come."""
    answers = await asyncio.gather(
        *(plane.rest("GET", "/v1/agents", key=token()) for _ in range(8)),
        *(plane.rest("GET", "/v1/agents", key=token(kid=f"k{n}")) for n in range(8)),
    )
    assert [answer.status for answer in answers] == [200] * 8 + [401] * 8
    assert provider.asked == 1


async def verifier(provider: Provider, keep: Path, clock: Any) -> oidc.Tokens:
    made = oidc.Tokens(settings(provider), keep=keep, clock=clock)
    await made.start()
    return made


class Hands(SystemClock):
    """The system's clock with a monotonic hand that the test moves."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


async def test_a_rotated_key_is_picked_up_and_a_withdrawn_one_dropped(
    provider: Provider, tmp_path: Path
) -> None:
    """A new id is fetched at once where that was not done just now; a withdrawn key ends with the time to live."""
    clock = Hands()
    tokens = await verifier(provider, tmp_path / "kept", clock)
    assert (await tokens._verified(token()))["sub"] == "ada"
    provider.keys = [published("new", OTHER_EC)]
    with pytest.raises(oidc.Unauthenticated):
        await tokens._verified(token(OTHER_EC, "new"))
    assert (await tokens._verified(token()))["sub"] == "ada"
    clock.ahead += oidc.FETCH_EVERY_SECONDS
    assert (await tokens._verified(token(OTHER_EC, "new")))["sub"] == "ada"
    assert provider.asked == 2
    provider.keys = [published("ec", EC)]
    clock.ahead += oidc.BELIEVED_SECONDS
    with pytest.raises(oidc.Unauthenticated):
        await tokens._verified(token(OTHER_EC, "new"))


@pytest.mark.parametrize(
    "outage",
    [
        {"status": 500},
        {"status": 302},
        {"body": b"<html>"},
        {"body": b'{"keys": 7}'},
        {"body": b"[" * 100_000},
        {"body": b" " * 300_000},
    ],
    ids=str,
)
async def test_an_outage_is_survived(provider: Provider, tmp_path: Path, outage: dict[str, Any]) -> None:
    """With the last good keys, also by a server that starts meanwhile; one with another address has none."""
    clock = Hands()
    tokens = await verifier(provider, tmp_path / "kept", clock)
    await tokens._verified(token())
    for name, value in outage.items():
        setattr(provider, name, value)
    clock.ahead += oidc.BELIEVED_SECONDS
    await tokens._verified(token())
    assert provider.asked == 2
    again = await verifier(provider, tmp_path / "kept", clock)
    await again._verified(token())
    provider.url += "?other"
    other = await verifier(provider, tmp_path / "kept", clock)
    with pytest.raises(oidc.Unauthenticated):
        await other._verified(token())


async def test_keys_that_are_not_used(provider: Provider, tmp_path: Path) -> None:
    """A secret, a private, a weak, a key for encryption or for another algorithm: none verifies anything."""
    weak = rsa.generate_private_key(public_exponent=65_537, key_size=1024)
    provider.keys = [
        {"kty": "oct", "kid": "a", "k": "c2VjcmV0"},
        {**ECAlgorithm.to_jwk(EC, as_dict=True), "kid": "b"},
        published("c", weak),
        published("d", EC, use="enc"),
        published("e", RSA, alg="RS512"),
        {"kty": "EC", "crv": "P-256", "kid": "f", "x": "AA", "y": "AA"},
    ]
    tokens = await verifier(provider, tmp_path / "kept", SystemClock())
    document = {"keys": provider.keys}
    with pytest.raises(ValueError, match="no key"):
        tokens._usable(document)


async def test_keys_of_a_file(tmp_path: Path) -> None:
    """They let in without any network; a file that cannot be used is told at the start."""
    file = tmp_path / "jwks.json"
    given = Oidc(issuer=ISSUER, audience=AUDIENCE, jwks_file=file)
    tokens = oidc.Tokens(given, keep=tmp_path / "kept", clock=SystemClock())
    for content in (None, "nonsense", "{}"):
        if content is not None:
            file.write_text(content)
        with pytest.raises(FailedPrecondition, match="jwks_file"):
            await tokens.start()
    file.write_text(json.dumps({"keys": [published("ec", EC)]}))
    await tokens.start()
    assert (await tokens._verified(token()))["sub"] == "ada"


def test_without_the_extra_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """[oidc] without its library does not start, and names the remedy."""
    monkeypatch.setitem(sys.modules, "jwt", None)
    given = Oidc(issuer=ISSUER, audience=AUDIENCE, jwks_url="https://id.example.org/keys")
    with pytest.raises(FailedPrecondition, match=r"pip install 'variantd\[control-plane,oidc\]'"):
        oidc.Tokens(given, keep=tmp_path / "kept", clock=SystemClock())


@pytest.mark.parametrize(
    ("lines", "field"),
    [
        ('jwks_url = "http://id.example.org/keys"', "oidc.jwks_url"),
        ('jwks_url = "file:///etc/keys"', "oidc.jwks_url"),
        ('jwks_url = "https://a/b"\njwks_file = "c"', "oidc"),
        ("", "oidc"),
        ('jwks_file = "c"\nalgorithms = ["HS256"]', "oidc.algorithms.0"),
        ('jwks_file = "c"\nalgorithms = ["none"]', "oidc.algorithms.0"),
        ('jwks_file = "c"\nleeway_seconds = 3600', "oidc.leeway_seconds"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, lines: str, field: str) -> None:
    """Each is named with its fault."""
    file = tmp_path / "variantd.toml"
    file.write_text(f'[oidc]\nissuer = "i"\naudience = "a"\n{lines}\n')
    with pytest.raises(Invalid) as failure:
        load(file, {})
    assert field in [fault.field for fault in failure.value.faults]
