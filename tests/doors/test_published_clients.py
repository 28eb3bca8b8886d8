"""Clients that vendors publish, with the base URL changed and nothing else.

PostHog's `@posthog/agent-toolkit` checks every answer by its own schema. Packages of the other vendors are in no
registry that can be reached from here: Ours Privacy's `@oursprivacy/platform-sdk` is published elsewhere only, and
neither BreakGround nor Stamn names one for experiments.
"""

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.tenant import Tenant

CLIENTS = Path(sys.prefix) / "clients"
DRIVER = Path(__file__).resolve().parents[1] / "support" / "posthog_client.mjs"

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(shutil.which("node") is None, reason="needs node"),
    pytest.mark.skipif(
        not (CLIENTS / "node_modules" / "@posthog" / "agent-toolkit").exists(),
        reason="the vendor's package is not there: `make .venv/.clients` needs npm and its registry",
    ),
]


async def client(tenant: Tenant, step: str, given: Any = None) -> Any:
    """What the vendor's client says of one of its calls."""
    url = f"http://{tenant.plane.addresses['http']}"
    arguments = [str(CLIENTS), url, tenant.key, step, *([json.dumps(given)] if given is not None else [])]
    process = await asyncio.create_subprocess_exec(
        "node", str(DRIVER), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def test_posthogs_own_client(tenant: Tenant) -> None:
    """It creates, lists, reads, changes, launches, ends and deletes an experiment, and takes every answer as it is."""
    asked = {
        "name": "Greeting",
        "feature_flag_key": "greeting_test",
        "primary_metrics": [{"metric_type": "mean", "event_name": "resolved"}],
        "secondary_metrics": [{"metric_type": "ratio", "event_name": "refunded"}],
    }
    created = await client(tenant, "create", asked)
    assert created["success"], created["error"]
    found = created["data"]
    assert (found["feature_flag_key"], found["metrics"][0]["source"]["event"]) == (
        "greeting_test",
        "resolved",
    )
    at = {"experimentId": found["id"]}
    changed = await client(tenant, "update", {**at, "updateData": {"name": "Hello"}})
    assert (changed["success"], changed["data"]["name"]) == (True, "Hello")

    # What a flag does not say of files comes over our own API.
    native = f"/v1/experiments/{found['id']}"
    await tenant.ok("PATCH", native, {"targetFile": "soul.md", "participantIds": ["p", "q"]})
    for key in ("control", "test"):
        await tenant.ok("PATCH", f"{native}/variants/{key}", {"content": f"I am {key}."})
    begin = {"start_date": "2020-01-01T00:00:00Z"}
    launched = await client(tenant, "update", {**at, "updateData": begin})
    assert launched["success"], launched["error"]
    listed = await client(tenant, "list")
    assert [(item["id"], item["start_date"] is not None) for item in listed["data"]] == [(found["id"], True)]
    ending = {"end_date": "2027-01-15T09:00:00Z", "conclusion": "won", "conclusion_comment": "friendly"}
    tenant.clock.jump(7_200)
    ended = await client(tenant, "update", {**at, "updateData": ending})
    assert ended["success"], ended["error"]
    read = await client(tenant, "get", at)
    assert (read["data"]["conclusion"], read["data"]["end_date"] is not None) == ("won", True)
    assert (await client(tenant, "delete", at))["success"] is True
    gone = await client(tenant, "get", at)
    assert gone["success"] is False
    assert (await client(tenant, "list"))["data"] == []
