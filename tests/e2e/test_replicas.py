"""Several servers, by the commands of their how-to."""

import asyncio
import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.test_howtos import free_ports
from tests.support import postgres
from tests.support.fleet import BIN, ENVIRONMENT, run


@pytest.mark.timeout(180)
async def test_every_command_of_the_howto_about_several_servers(tmp_path: Path) -> None:
    """The commands of replicas.md, in their order; a server with another authority is refused."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "howto" / "replicas.md").read_text()
    script = "\n".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL))
    url = postgres.url_of(tmp_path)
    assert "postgresql://variantd@db.example.org/variantd" in script
    script = script.replace("postgresql://variantd@db.example.org/variantd", url)
    for told, port in zip(("7410", "7411", "7412"), free_ports(), strict=True):
        assert f"127.0.0.1:{told}" in script
        script = script.replace(f"127.0.0.1:{told}", f"127.0.0.1:{port}")
    work = tmp_path / "work"
    work.mkdir()
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", script + "\nkill %variantd; wait"),
        cwd=work,
        env={
            **ENVIRONMENT,
            **{f"VARIANTD_{name}": "127.0.0.1:0" for name in ("HTTP", "OPERATOR", "AGENTS")},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(tmp_path / "c"),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(150):
            printed, _ = await shell.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)  # the group this test started
    assert shell.returncode == 0, printed.decode()[-3000:]
    assert "Traceback" not in printed.decode()
    code, _, told = await run(
        "variantd", "serve", "--data-dir", str(tmp_path / "d3"), "--database", url, ok=False
    )
    assert code == 1
    assert "does not hold the certificate authority" in told
    assert not (tmp_path / "d3" / "ca" / "key.pem").exists()
    postgres.drop(tmp_path)
