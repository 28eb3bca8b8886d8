"""Reading what is on a host now, with real processes: through REST, gRPC and variantctl."""

import asyncio
import base64
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest

from shared.pb.variantd.operator.v1 import operator_pb2 as pb
from shared.pb.variantd.operator.v1 import operator_pb2_grpc
from tests.support.fleet import BIN, ENVIRONMENT, Fleet, run, running_fleet
from tests.support.waiting import eventually

SECRET = "Nobody but the operator reads: "


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path) as running:
        yield running


async def by_grpc(fleet: Fleet, participant: str, path: str) -> Any:
    """What gRPC answers the operator."""
    data = fleet.plane.data
    credentials = grpc.ssl_channel_credentials((data / "ca" / "ca.pem").read_bytes())
    key = (data / "operator.api-key").read_text().strip()
    async with grpc.aio.secure_channel(fleet.plane.addresses["operator"], credentials) as channel:
        stub: operator_pb2_grpc.FleetServiceAsyncStub = operator_pb2_grpc.FleetServiceStub(channel)
        metadata = (("authorization", f"Bearer {key}"),)
        return await stub.ReadFile(pb.ReadFileRequest(id=participant, path=path), metadata=metadata)


async def both(fleet: Fleet, participant: str, path: str) -> bytes | None:
    """The bytes that both transports answer alike, None for a file that is not there."""
    shown = await fleet.plane.get(f"/v1/participants/{participant}/files/{quote(path)}")
    told = await by_grpc(fleet, participant, path)
    assert (shown["participantId"], shown["path"]) == (told.participant_id, told.path) == (participant, path)
    assert shown["absent"] == told.absent
    if told.absent:
        assert {shown[name] for name in ("digest", "size", "content", "contentBase64")} == {None}
        return None
    body: bytes = told.content.encode() if told.HasField("content") else told.content_base64
    assert shown["contentBase64"] is None or base64.b64decode(shown["contentBase64"]) == body
    assert shown["content"] is None or shown["content"].encode() == body
    digest = "sha256:" + hashlib.sha256(body).hexdigest()
    assert (shown["digest"], shown["size"]) == (told.digest, told.size) == (digest, len(body))
    return body


@pytest.mark.parametrize("transport", ["stream", "poll"])
async def test_what_a_host_shares_is_read_and_nothing_else(
    fleet: Fleet, tmp_path: Path, transport: str
) -> None:
    """Small, large, binary, empty and absent files; the rest is refused; no log and no database holds content."""
    targets = '["*.md", "config/**"]'
    own = {"open": {"share_content": "true"}}
    host = await fleet.add_host("host", "open", "closed", targets=targets, own=own, transport=transport)
    files = {
        "soul.md": (SECRET + "small\n").encode(),
        "config/a b+ü%.md": (SECRET + "in a folder, without a newline").encode(),
        "large.md": (SECRET * 4000)[: 100 * 1024].encode(),
        "binary.md": SECRET.encode() + b"\xff\x00\r\n" + os.urandom(40_000),
        "empty.md": b"",
    }
    (host.root("open") / "config").mkdir()
    for path, content in files.items():
        host.file("open", path).write_bytes(content)
    (host.root("open") / ".env").write_text(SECRET)
    host.file("closed").write_text(SECRET)
    await eventually(lambda: _served(fleet, "open", "closed"), what="the host is connected")
    for path, content in files.items():
        assert await both(fleet, "open", path) == content, path
    assert await both(fleet, "open", "nothing.md") is None

    refusals = {"closed/files/soul.md": "NOT_SHARED", "open/files/.env": "TARGET_NOT_ALLOWED"}
    for path, reason in refusals.items():
        status, problem = await fleet.plane.rest("GET", f"/v1/participants/{path}")
        assert (status, problem["reason"]) == (403, reason)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await by_grpc(fleet, *path.split("/files/"))
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert dict(refused.value.trailing_metadata() or ())["reason"] == reason
    await _by_command(fleet, tmp_path, files)

    audit = await fleet.plane.get("/v1/audit-log?limit=100")
    read = [item for item in audit["entities"] if item["operation"] == "FleetService.ReadFile"]
    assert {item["resourceId"] for item in read} == {"open"}
    assert len(read) == 2 * (len(files) + 1) + 3
    held = [*tmp_path.glob("*.log"), *fleet.plane.data.glob("*.db*")]
    assert len(held) >= 3
    for file in held:
        assert SECRET.encode() not in file.read_bytes(), file
        assert base64.b64encode(SECRET.encode())[:20] not in file.read_bytes(), file


async def _served(fleet: Fleet, *participants: str) -> bool:
    page = await fleet.plane.get("/v1/participants?presence=connected")
    return {item["id"] for item in page["entities"]} == set(participants)


async def _by_command(fleet: Fleet, tmp_path: Path, files: dict[str, bytes]) -> None:
    """variantctl prints the very bytes, and says what it cannot print."""
    home = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    await run("variantctl", "login", "--data-dir", str(fleet.plane.data), **home)
    child = await asyncio.create_subprocess_exec(
        str(BIN / "variantctl"), "participants", "read", "open", "binary.md",
        stdout=asyncio.subprocess.PIPE, env={**ENVIRONMENT, **home},
    )  # fmt: skip
    out, _ = await child.communicate()
    assert (child.returncode, out) == (0, files["binary.md"])
    _, said, _ = await run("variantctl", "participants", "read", "open", "soul.md", "--json", **home)
    assert json.loads(said)["content"].encode() == files["soul.md"]
    code, said, complaint = await run(
        "variantctl", "participants", "read", "open", "nothing.md", ok=False, **home
    )
    assert (code, said, "there is no file nothing.md" in complaint) == (1, "", True)
    code, said, complaint = await run(
        "variantctl", "participants", "read", "closed", "soul.md", ok=False, **home
    )
    assert (code, said, "variant-agent reload" in complaint) == (1, "", True)


async def test_sharing_follows_the_host_file(fleet: Fleet) -> None:
    """`share_content = true` and a reload is all it takes, and the same takes it back; a host that is gone says so."""
    host = await fleet.add_host("host", "bot-1")
    path = "/v1/participants/bot-1/files/soul.md"
    for share, expected in (("true", 200), ("false", 403)):
        host.settings["share_content"] = share
        host.write_config()
        config = str(host.folder / "agent.toml")
        await run("variant-agent", "reload", "--state-dir", str(host.state))

        async def answers(wanted: int = expected) -> bool:
            return (await fleet.plane.rest("GET", path))[0] == wanted

        await eventually(answers, what=f"{config} with {share} is answered with {expected}")
    await host.process.stop()
    fleet.hosts.remove(host)

    async def gone() -> bool:
        status, problem = await fleet.plane.rest("GET", path)
        return (status, problem.get("reason")) == (409, "NOT_CONNECTED")

    await eventually(gone, what="the host is not connected")
