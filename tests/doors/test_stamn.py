"""Every call of Stamn's reference: by UUID and by name, with an API key and with a JWT, bare and enveloped."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.api.test_oidc import provider_running, settings, token
from tests.support.plane import Plane, running_plane

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLE: dict[str, Any] = {
    "name": "Personality A/B test",
    "description": "Is a friendly tone better?",
    "targetFile": "config/soul.md",
    "variants": [{"name": "Friendly", "content": "You are friendly.", "weight": 50, "isControl": True}],
    "participantIds": ["0d0f1c2b-5a4f-4f52-8a51-0c7d5cf5c0a1"],
}
CONCISE = {"name": "Concise", "content": "Be concise.", "weight": 50}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signed_plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plane]:
    """A control plane that trusts an identity provider, too."""
    async with provider_running() as provider:
        data = tmp_path_factory.mktemp("stamn") / "data"
        async with running_plane(data, oidc=settings(provider)) as running:
            yield running


@pytest.mark.parametrize("by", ["id", "key"])
@pytest.mark.parametrize("bearer", ["sk", "jwt"])
@pytest.mark.parametrize("base", ["", "/stamn"])
async def test_every_call(signed_plane: Plane, base: str, bearer: str, by: str) -> None:
    """Create, list, get, update, variants, each status, a deployment, delete: as the reference has them."""
    key = (
        None
        if bearer == "sk"
        else token(scope="experiment:read experiment:write deployment:write content:read")
    )
    enveloped = bool(base)

    async def call(method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
        answer = await signed_plane.rest(method, base + path, body, key=key)
        wanted = 200 if enveloped and status == 204 else status
        assert answer.status == wanted, (method, path, answer.body)
        if enveloped:
            assert answer.body["success"] is True
            return answer.body["data"]
        return answer.body

    people = [f"0d0f1c2b-5a4f-4f52-8a51-{n:08x}{len(base):02x}{len(bearer + by):02x}" for n in (1, 2)]
    made = await call("POST", "/v1/experiments", {**EXAMPLE, "participantIds": people}, status=201)
    assert (made["status"], len(made["assignments"])) == ("draft", 2)
    at = f"/v1/experiments/{made[by]}"
    variant = await call("POST", f"{at}/variants", CONCISE, status=201)
    assert (await call("PATCH", f"{at}/variants/{variant[by]}", {"weight": 50}))["content"] == "Be concise."
    spare = await call("POST", f"{at}/variants", {"name": "Spare"}, status=201)
    await call("DELETE", f"{at}/variants/{spare[by]}", status=204)
    assert (await call("PATCH", at, {}))["name"] == EXAMPLE["name"]
    assert (await call("PATCH", at, {"description": "Shorter?"}))["description"] == "Shorter?"
    assert [item["name"] for item in (await call("GET", at))["variants"]] == ["Friendly", "Concise"]
    listed = await call("GET", "/v1/experiments")
    assert made["id"] in [item["id"] for item in (listed if enveloped else listed["entities"])]
    for status in ("running", "paused", "running", "completed"):
        assert (await call("PATCH", f"{at}/status", {"status": status}))["status"] == status
        if status == "paused":
            asked = {"participantId": people[0], "variantId": variant[by]}
            deployed = await call("POST", f"{at}/deployments", asked, status=201)
            assert (deployed["variantId"], deployed["connected"]) == (variant["id"], False)
    await call("DELETE", at, status=204)
    assert (await call("GET", at))["archived"] is True


@pytest.mark.parametrize("state", ["draft", "running", "paused", "stopped", "completed"])
async def test_deleting(signed_plane: Plane, state: str) -> None:
    """A client of Stamn deletes in every state: files stay, nothing is held; bare, what is under way is refused."""
    people = [f"{state}-1", f"{state}-2"]
    made = await signed_plane.made("/v1/experiments", {**EXAMPLE, "participantIds": people})
    at = f"/v1/experiments/{made['id']}"
    await signed_plane.made(f"{at}/variants", CONCISE)
    verbs = {"draft": [], "completed": ["start", "complete"], "paused": ["start", "pause"],
             "running": ["start"], "stopped": ["start", "stop"]}[state]  # fmt: skip
    for verb in verbs:
        await signed_plane.rest("POST", f"{at}/{verb}")
    assert (await signed_plane.rest("GET", at)).body["status"] == state
    bare = await signed_plane.rest("DELETE", at) if state not in ("draft", "completed") else None
    assert bare is None or (bare.status, "complete it first" in bare.body["detail"]) == (409, True)
    gone = await signed_plane.rest("DELETE", f"/stamn{at}")
    assert (gone.status, gone.body["success"]) == (200, True)
    listed = (await signed_plane.rest("GET", "/stamn/v1/experiments")).body["data"]
    assert made["id"] not in [item["id"] for item in listed]
    found = await signed_plane.rest("GET", at)
    if state == "draft":
        assert found.status == 404
        return
    assert (found.body["status"], found.body["archived"]) == ("completed", True)
    deployed = (await signed_plane.rest("GET", f"{at}/deployments?limit=100")).body["entities"]
    assert "restore" not in {item["action"] for item in deployed}
    again = await signed_plane.made("/v1/experiments", {**EXAMPLE, "participantIds": people})
    await signed_plane.made(f"/v1/experiments/{again['id']}/variants", CONCISE)
    started = await signed_plane.rest("POST", f"/v1/experiments/{again['id']}/start")
    assert started.status == 200, started.body


@pytest.mark.parametrize("base", ["", "/stamn"])
async def test_headers_and_slashes(signed_plane: Plane, base: str) -> None:
    """What was made says where it is and which version it has; under `/stamn` a slash at the end changes nothing."""
    made = await signed_plane.rest("POST", f"{base}/v1/experiments", EXAMPLE)
    identifier = (made.body["data"] if base else made.body)["id"]
    assert made.headers["Location"] == f"{base}/v1/experiments/{identifier}"
    at = f"{base}/v1/experiments/{identifier}" + ("/" if base else "")
    tag = (await signed_plane.rest("GET", at)).headers["ETag"]
    assert (await signed_plane.rest("PATCH", at, {"name": "New"}, If_Match=tag)).status == 200
    assert (await signed_plane.rest("PATCH", at, {"name": "Newer"}, If_Match=tag)).status == 412
    if base:
        assert (await signed_plane.rest("GET", f"{base}/v1/experiments/")).status == 200


@pytest.mark.parametrize("base", ["", "/stamn"])
async def test_failures(signed_plane: Plane, base: str) -> None:
    """A sentence in `error`; in the envelope `success` is false, and `message` says it, or every fault."""
    drafted = await signed_plane.made("/v1/experiments", EXAMPLE)
    at = f"{base}/v1/experiments"
    for method, path, body, key, status in (
        ("POST", at, {"name": "x", "wat": 1}, None, 400),
        ("GET", at, None, "sk_wrong", 401),
        ("GET", f"{at}/none", None, None, 404),
        ("PATCH", f"{at}/{drafted['id']}/status", {"status": "draft"}, None, 400),
        ("PATCH", f"{at}/{drafted['id']}/status", {"status": "running"}, None, 409),
        ("PUT", f"{at}/{drafted['id']}", {}, None, 405),
    ):
        answer = await signed_plane.rest(method, path, body, key=key)
        assert (answer.status, bool(answer.body["error"])) == (status, True), (method, path, answer.body)
        if base:
            assert set(answer.body) == {"success", "error", "message"}
            assert answer.body["success"] is False
    refused = await signed_plane.rest("POST", f"{base}/v1/experiments", {"name": "", "wat": 1})
    if base:
        assert len(refused.body["message"]) == 2


@pytest.mark.parametrize(
    "path", ["/rest/v1/experiments", "/api/experiments", "/api/projects/@current/experiments/"]
)
async def test_a_jwt_comes_in_at_every_door(signed_plane: Plane, path: str) -> None:
    """A token of the identity provider is as good as an API key, with the scopes that it has."""
    answer = await signed_plane.rest("GET", path, None, key=token(scope="experiment:read"))
    assert answer.status == 200, answer.body
    refused = await signed_plane.rest("POST", path, {}, key=token(scope="experiment:read"))
    assert refused.status == 403
