"""Runs the commands agent.toml names: bounded in time and output, and never with anything of the server's.

Hides process groups, pipes and how what left its group is found. A command that forks, hangs or prints without end
costs its time limit and a few KiB, nothing more; where memory runs out, the kernel is to take a command first.
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shared.clock import Clock
from shared.logs import get

_log = get(__name__)

LIMIT_SECONDS = 30.0
OUTPUT_BYTES = 16 * 1024
"""The last so many bytes of a command's output are kept."""

MARK = "VARIANT_AGENT_COMMAND"
"""In the environment of a command and of everything it starts, by which they are found in whatever session they are."""

ROUNDS = 50
"""Looks for processes of a command that is killed; each may have started another meanwhile."""

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")  # not NOTIFY_SOCKET, not the agent's secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a command ended: `fault` is empty where it succeeded, else one clause without any output.

    `inconclusive`: it said neither yes nor no, as it could not be started or took too long.
    """

    fault: str
    output: bytes
    inconclusive: bool = False


async def run(command: Sequence[str], *, cwd: Path, clock: Clock) -> Finished:
    """`command` ran in its own process group, which is killed when the limit passes or we are cancelled.

    So is whatever else it started, as far as that kept its environment and its user. A process it left running in
    the background stays after a success, as a reload may start a service.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    kept = bytearray()
    mark = f"{os.getpid()}.{os.fstat(writer).st_ino}"  # no other pipe of this machine has that number now
    loop = asyncio.get_running_loop()
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=cwd,
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {MARK: mark},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                start_new_session=True,
            )
        except OSError as error:
            return Finished(fault=f"could not be started: {error.strerror}", output=b"", inconclusive=True)
        finally:
            os.close(writer)
        _give_way(process.pid)
        # Not asyncio's own pipe: its end would be awaited, and a background process may keep it open.
        loop.add_reader(reader, _drain, loop, reader, kept)
        fault, inconclusive = await _ending(process, clock, mark)
        _drain(loop, reader, kept)
        return Finished(fault=fault, output=bytes(kept), inconclusive=inconclusive)
    finally:
        loop.remove_reader(reader)
        os.close(reader)


async def _ending(process: asyncio.subprocess.Process, clock: Clock, mark: str) -> tuple[str, bool]:
    """(what was wrong, whether the command was killed for taking too long)."""
    ended = asyncio.ensure_future(process.wait())
    limit = asyncio.ensure_future(clock.sleep(LIMIT_SECONDS))
    try:
        await asyncio.wait((ended, limit), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            return f"did not end within {LIMIT_SECONDS:g} seconds and was killed", True
        status = ended.result()
        if status < 0:
            return f"was ended by signal {-status}", False
        return f"ended with status {status}" if status else "", False
    finally:
        limit.cancel()
        if not ended.done():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await ended
            await asyncio.to_thread(_kill_marked, f"{MARK}={mark}".encode())


def _give_way(pid: int) -> None:
    """Where memory runs out, the kernel takes this process, and what it starts from now on, before ours."""
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


def _kill_marked(mark: bytes) -> None:
    """No process that can be seen has this in its environment. Blocks."""
    for _ in range(ROUNDS):
        found = [pid for pid in _processes() if mark in _environment(pid)]
        if not found:
            return
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    _log.error("command.not_killed", processes=len(found))


def _processes() -> list[int]:
    try:
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    except OSError:
        return []


def _environment(pid: int) -> list[bytes]:
    """What a process began with; nothing where it is gone, or another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _drain(loop: asyncio.AbstractEventLoop, reader: int, kept: bytearray) -> None:
    try:
        chunk = os.read(reader, 1 << 16)
    except BlockingIOError:
        return
    if not chunk:
        loop.remove_reader(reader)
    kept += chunk
    del kept[:-OUTPUT_BYTES]
