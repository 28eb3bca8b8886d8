"""The commands of a page of the documentation, run as by somebody who copies them into a shell."""

import asyncio
import os
import re
import signal
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.support.fleet import BIN, ENVIRONMENT
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


def free_ports(count: int = 3) -> list[int]:
    """So many ports that nobody holds now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def commands(text: str) -> str:
    """The shell's commands of a page, in their order."""
    return "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))


async def followed(script: str, folder: Path, **env: str) -> str:
    """What was printed while `script` ran in `folder`/work, with a home of its own, to its end and without a fault.

    Whatever it left running has ended too. Servers take free ports where neither `script` nor `env` says which.
    """
    work = folder / "work"
    work.mkdir()
    with (folder / "printed").open("wb") as printing:
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", script),
            cwd=work,
            env={
                **ENVIRONMENT,
                **{f"VARIANTD_{name}": "127.0.0.1:0" for name in ("HTTP", "OPERATOR", "AGENTS")},
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "HOME": str(folder / "home"),
                "XDG_CONFIG_HOME": str(folder / "home" / "config"),
                **env,
            },
            stdout=printing,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(2 * PATIENCE):
            code = await shell.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)  # the group this test started, with the script's own jobs
        await shell.wait()
        printed = (folder / "printed").read_text()
    assert code == 0, printed[-4000:]
    assert "Traceback" not in printed, printed[-4000:]
    return printed
