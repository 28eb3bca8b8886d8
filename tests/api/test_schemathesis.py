"""The OpenAPI document and the server are held to each other by schemathesis: every check, every phase.

Deterministic and short here. SCHEMATHESIS_EXAMPLES=200 makes a run as large as there is patience for.
"""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from control_plane.api.examples import EXAMPLES
from control_plane.api.openapi import document
from control_plane.api.operations import OPERATIONS, WATCH_PATH
from tests.support.plane import Plane

EXAMPLES_EACH = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "3"))
CONFIG = Path(__file__).parent / "schemathesis.toml"
BY_RPC = {operation.rpc: operation for operation in OPERATIONS}


@pytest.mark.timeout(900 if EXAMPLES_EACH < 10 else 24 * 3600)
async def test_the_server_is_what_its_document_says(plane: Plane, tmp_path: Path) -> None:
    """No check of schemathesis fails: examples, boundary values, fuzzing, and sequences along the links."""
    for rpc in ("FleetService.CreateParticipant", "ExperimentService.CreateExperiment"):
        await plane.made(BY_RPC[rpc].path, EXAMPLES[rpc])
    words = [
        *("--config-file", str(CONFIG), "run", f"http://{plane.addresses['http']}/openapi.json"),
        *("--header", f"Authorization: Bearer {plane.key}", "--checks", "all", "--continue-on-failure"),
        *("--max-examples", str(EXAMPLES_EACH), "--generation-deterministic", "--no-shrink"),
        *("--warnings", "off", "--no-color"),
        *("--exclude-path", WATCH_PATH),  # a stream without end; test_watch reads it
    ]
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        *words,
        cwd=tmp_path,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, said[-20_000:]
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert f"✅ {phase}" in said, said[-5_000:]
    assert f"Tested: {len(OPERATIONS) + 1}" in said


def test_what_is_made_leads_to_what_can_be_done_with_it() -> None:
    """Every creation with an address links what works at that address, by names that its answer has."""
    described = document(OPERATIONS)
    for operation in OPERATIONS:
        if not operation.location:
            continue
        answer = described["paths"][operation.path][operation.method.lower()]["responses"]["201"]
        assert answer["links"], operation.rpc
    made = described["paths"]["/v1/experiments"]["post"]["responses"]["201"]["links"]
    assert {"GetExperiment", "UpdateExperiment", "DeleteExperiment", "StartExperiment"} <= set(made)
    assert made["GetExperiment"] == {
        "operationId": "ExperimentService_GetExperiment",
        "parameters": {"id": "$response.body#/id"},
    }
    added = described["paths"]["/v1/experiments/{id}/variants"]["post"]["responses"]["201"]["links"]
    assert added["GetVariant"]["parameters"] == {
        "id": "$response.body#/experimentId",
        "variantId": "$response.body#/id",
    }


async def test_a_wrong_method_names_the_right_ones(plane: Plane) -> None:
    """405 with `Allow`, as problem+json that says 405 too; a verb is never taken for a part of an id."""
    for path, allowed in (("/v1/experiments/x/start", "POST"), ("/v1/participants/x:move", "POST")):
        answer = await plane.rest("PUT", path)
        assert (answer.status, answer.body["status"]) == (405, 405)
        assert answer.headers["Allow"] == allowed
