"""API keys over both transports: made, shown once, used, renamed, taken away."""

import grpc
import pytest

from tests.support.plane import Plane


async def test_a_key_from_its_making_to_its_end(plane: Plane) -> None:
    """Its secret is shown once; it works until it is revoked, on the very next request and on both transports."""
    wanted = {"name": "pipeline", "scopes": ["fleet:read"]}
    made = await plane.rest("POST", "/v1/api-keys", wanted, Idempotency_Key="once")
    assert (made.status, made.headers["Location"]) == (201, f"/v1/api-keys/{made.body['id']}")
    secret = made.body["secret"]
    again = await plane.rest("POST", "/v1/api-keys", wanted, Idempotency_Key="once")
    assert (again.body["id"], "secret" in again.body) == (made.body["id"], False)

    at = f"/v1/api-keys/{made.body['id']}"
    assert (await plane.rest("GET", at)).body["lastUsedAt"] is None
    assert (await plane.rest("GET", "/v1/agents", key=secret)).status == 200
    assert (await plane.rest("GET", "/v1/experiments", key=secret)).status == 403
    assert (await plane.rest("GET", at)).body["lastUsedAt"] is not None
    assert (await plane.rest("PATCH", at, {"name": "renamed"})).body["name"] == "renamed"
    assert (await plane.rest("PATCH", at, {"scopes": ["admin"]})).status == 400

    for _ in range(2):
        assert (await plane.rest("DELETE", at)).status == 204
    refused = await plane.rest("GET", "/v1/agents", key=secret)
    assert (refused.status, refused.body["reason"]) == (401, "API_KEY_REVOKED")
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await plane.grpc("FleetService.ListAgents", key=secret)
    assert failure.value.code() is grpc.StatusCode.UNAUTHENTICATED

    listed = (await plane.rest("GET", "/v1/api-keys")).body["entities"]
    assert [item["name"] for item in listed] == ["renamed", "operator"]
    assert listed[0]["revokedAt"] is not None
    assert all("secret" not in item for item in listed)
    audit = (await plane.rest("GET", "/v1/audit-log")).body["entities"]
    assert [item["operation"].partition(".")[2] for item in audit] == [
        *["RevokeApiKey"] * 2,
        "UpdateApiKey",
        "CreateApiKey",
    ]
    assert secret.encode() not in (plane.data / "variantd.db").read_bytes()


async def test_keys_that_are_not_there(plane: Plane) -> None:
    """No id, or none of ours, is a 404; an unknown scope or a moment that is past is named."""
    for shown in ("nobody", "01a1fc0d-2f43-7c1a-8f0e-6f3c5a9b1d20"):
        for method in ("GET", "DELETE"):
            assert (await plane.rest(method, f"/v1/api-keys/{shown}")).status == 404
    for fields, field in (
        ({"scopes": ["everything"]}, "scopes"),
        ({"expiresAt": "2001-01-01T00:00:00Z"}, "expiresAt"),
        ({"expiresAt": "soon"}, "expiresAt"),
    ):
        answer = await plane.rest("POST", "/v1/api-keys", {"name": "x", **fields})
        assert (answer.status, answer.body["errors"][0]["field"]) == (400, field)
