"""A content that makes its application unwell stops itself, and the operator is told why."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.support.fleet import run, running_fleet

CONTENTS = {"Friendly": "You are friendly.\n", "Poison": "You are what this application cannot work with.\n"}


@asynccontextmanager
async def application(file: Path) -> AsyncIterator[str]:
    """An application that reads its file at every request, and is well unless it holds poison; its health's address."""

    async def health(request: web.Request) -> web.Response:
        return web.Response(status=500 if file.read_text() == CONTENTS["Poison"] else 200)

    served = web.Application()
    served.router.add_get("/health", health)
    runner = web.AppRunner(served, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/health"
    finally:
        await runner.cleanup()


@pytest.mark.fault(49)
async def test_a_bad_variant_is_rolled_back_quarantined_and_shown(tmp_path: Path) -> None:
    """`deploy --wait` ends with 3 and the reason, the file is as it was; again it is refused; good is confirmed."""
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    soul = tmp_path / "host-1" / "roots" / "bot-1" / "soul.md"
    async with application(soul) as health, running_fleet(tmp_path) as fleet:
        probe = f'{{ http = "{health}", window = "1s" }}'
        host = await fleet.add_host("host-1", "bot-1", probe=probe)
        await run("variantctl", "login", "--data-dir", str(fleet.plane.data), **home)
        await fleet.connected("bot-1")
        variants = [
            {"name": name, "content": text, "weight": weight, "isControl": weight == 100}
            for (name, text), weight in zip(CONTENTS.items(), (100, 0), strict=True)
        ]
        draft = {"name": "Tone", "key": "tone", "targetFile": "soul.md", "variants": variants}
        made = await fleet.plane.post("/v1/experiments", {**draft, "participantIds": ["bot-1"]})
        friendly, poison = (variant["key"] for variant in made["variants"])
        await fleet.plane.post("/v1/experiments/tone/start")
        deploy = ("variantctl", "deploy", "tone", "-p", "bot-1", "--wait", "--timeout", "60s", "-v")

        await run(*deploy, friendly, **home)
        assert soul.read_text() == CONTENTS["Friendly"]
        code, out, err = await run(*deploy, poison, ok=False, **home)
        assert (code, "PROBE_FAILED" in err) == (3, True), out + err
        assert "rolled back" in err
        assert "500" in err  # what the probe found
        assert soul.read_text() == CONTENTS["Friendly"]

        code, _, err = await run(*deploy, poison, ok=False, **home)
        assert (code, "QUARANTINED" in err, "--retry" in err or "retry" in err) == (3, True, True), err
        page = await fleet.plane.get("/v1/experiments/tone/deployments?limit=100")
        told = [(item["state"], (item.get("reason") or {}).get("code")) for item in page["entities"]]
        assert told[:2] == [("refused", "QUARANTINED"), ("rolled_back", "PROBE_FAILED")]
        [file] = (await fleet.plane.get("/v1/participants/bot-1"))["files"]
        assert file["reason"]["code"] == "QUARANTINED"
        assert file["lastAttemptedDigest"] != file["runningDigest"]
        _, out, _ = await run("variant-agent", "status", "--state-dir", str(host.state))
        assert "applied" in out

        await run(*deploy, friendly, **home)
        assert soul.read_text() == CONTENTS["Friendly"]
