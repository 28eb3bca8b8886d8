"""The OpenAPI document is valid, complete, and its examples work."""

import re
from contextlib import nullcontext
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from control_plane.api.examples import AGENT, API_KEY, DEPLOYMENT, EXAMPLES
from control_plane.api.openapi import document
from control_plane.api.operations import EXPORT, OPERATIONS, WATCH_PATH, Operation
from tests.support.builders import make_hello
from tests.support.plane import Plane
from tests.support.stream import sharing

DOCUMENT = document(OPERATIONS)


def test_the_document_is_openapi_3_1() -> None:
    """The official schema accepts it."""
    assert list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors()) == []  # type: ignore[arg-type]


def test_every_operation_is_described_with_an_example() -> None:
    """Routes and the document are the same table; examples cover it exactly."""
    described = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert described == {(operation.method, operation.path) for operation in (*OPERATIONS, EXPORT)} | {
        ("GET", WATCH_PATH)
    }
    assert set(EXAMPLES) == {operation.rpc for operation in OPERATIONS}


async def send(plane: Plane, operation: Operation, ids: dict[str, str]) -> Any:
    """What the operation's example is answered, with the ids of this run."""
    values = {
        name: ids.get(value, value) if isinstance(value, str) else value
        for name, value in EXAMPLES[operation.rpc].items()
    }
    named = re.findall(r"\{(\w+)\}", operation.path)
    path = operation.path
    for name in named:
        path = path.replace("{" + name + "}", str(values[name]))
    rest = {name: value for name, value in values.items() if name not in named}
    if operation.method == "GET":
        query = "&".join(f"{name}={value}" for name, value in rest.items())
        return await plane.rest("GET", f"{path}?{query}")
    return await plane.rest(operation.method, path, rest or None)


async def test_the_examples_are_a_story_that_works(plane: Plane) -> None:
    """Each example, in order, is answered with success, and the answer fits its schema."""
    by_rpc = {operation.rpc: operation for operation in OPERATIONS}
    identity = await plane.enroll(await plane.token())
    agents = (await plane.rest("GET", "/v1/agents")).body["entities"]
    assert bytes.fromhex(agents[0]["id"].replace("-", "")) == identity.uid
    ids = {AGENT: agents[0]["id"]}
    for rpc in EXAMPLES:
        operation = by_rpc[rpc]
        if rpc == "FleetService.DeleteParticipant":
            assert (await plane.rest("GET", "/v1/participants/bot-2")).status == 200
        connected = (
            sharing(identity, make_hello("bot-1"), {"config/soul.md": b"You are friendly.\n"})
            if operation.asks_host
            else nullcontext()
        )
        async with connected:
            answer = await send(plane, operation, ids)
        assert answer.status == operation.status, (rpc, answer.body)
        if rpc == "DeploymentService.CreateDeployment":
            ids[DEPLOYMENT] = answer.body["id"]
        if rpc == "AccessService.CreateApiKey":
            ids[API_KEY] = answer.body["id"]
        responses = DOCUMENT["paths"][operation.path][operation.method.lower()]["responses"]
        content = responses[str(answer.status)].get("content")
        if content:
            schema = {**content["application/json"]["schema"], "components": DOCUMENT["components"]}
            Draft202012Validator(schema).validate(answer.body)


@pytest.mark.parametrize("path", ["/docs", "/docs/start.js", "/docs/redoc.js", "/openapi.json"])
async def test_the_page_is_served_offline(plane: Plane, path: str) -> None:
    """Page, script and document come from here, without a key, and nothing from elsewhere."""
    answer = await plane.rest("GET", path, key="")
    assert answer.status == 200
    if path == "/docs":
        assert "http" not in answer.body
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
