"""Faults of processes: stopped, starved, out of memory or descriptors, cut off from their log or from names.

Agents and the control plane are real processes; their waits are shortened. What has to hold afterwards is the
oracle's to say.
"""

import asyncio
import fcntl
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.arena import Trial, reroute, trial_on
from tests.support.fleet import Fleet, Host, Process, running_fleet
from tests.support.local import call
from tests.support.network import proxied
from tests.support.privileged import mounted, run_or_skip
from tests.support.quick import LEASE
from tests.support.waiting import PATIENCE, eventually

NOTICED = PATIENCE


@asynccontextmanager
async def fleet_of_one(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[Fleet, Host, Trial]]:
    """A control plane, a host that holds the first version, and their trial."""
    async with running_fleet(tmp_path, quick=True) as fleet:
        host = await fleet.add_host("one", "bot-1", **options)
        trial = trial_on(fleet)
        async with trial.oracle.watching():
            await trial.begin()
            await trial.oracle.converged()
            await trial.report(host, 5)
            yield fleet, host, trial


async def state_of(host: Host) -> str:
    """How the agent stands to its control plane."""
    return str((await call(Path(host.socket), "/status")).body["session"]["state"])


async def noticed(host: Host) -> None:
    """The agent knows that nobody answers."""

    async def away() -> bool:
        return await state_of(host) != "connected"

    await eventually(away, within=NOTICED, what="the agent notices")


@pytest.mark.fault(4, 44)
async def test_an_agent_that_stood_still_takes_the_newest_order_only(tmp_path: Path) -> None:
    """Shown lost while it is stopped; what it was ordered first meanwhile is never written."""
    async with fleet_of_one(tmp_path) as (_, host, trial):
        host.process.pause()
        await trial.shown(host, "lost", within=NOTICED)
        await trial.order(host)
        await trial.order(host)
        host.process.resume()
        await trial.shown(host, "connected", within=NOTICED)
        await trial.report(host, 5)
        await trial.settled()
        assert trial.oracle.seen[host.file("bot-1")] == [0, 1, 3]


@pytest.mark.fault(5)
async def test_a_control_plane_that_stood_still_is_missed_and_found_again(tmp_path: Path) -> None:
    """Its agent notices, keeps the file and the reports, and goes on with it afterwards."""
    async with fleet_of_one(tmp_path) as (fleet, host, trial):
        fleet.plane.process.pause()
        await noticed(host)
        await trial.report(host, 10)
        fleet.plane.process.resume()
        await trial.shown(host, "connected", within=NOTICED)
        await trial.order(host)
        await trial.settled()


@pytest.mark.fault(55)
async def test_next_to_no_processor_time_loses_nobody(tmp_path: Path) -> None:
    """Agent and control plane run a tenth of the time, in short turns: never shown lost, orders and reports arrive."""
    async with fleet_of_one(tmp_path) as (fleet, host, trial):
        processes = (host.process, fleet.plane.process)

        async def starve() -> None:
            while True:
                for process in processes:
                    process.pause()
                await asyncio.sleep(0.18)
                for process in processes:
                    process.resume()
                await asyncio.sleep(0.02)

        starving = asyncio.create_task(starve())
        try:
            epoch = (await call(Path(host.socket), "/status")).body["session"]["sessionEpoch"]
            for _ in range(3):
                await trial.order(host)
                await trial.report(host, 2)
                assert await trial.presence(host) == "connected"
            await trial.settled()
            assert (await call(Path(host.socket), "/status")).body["session"]["sessionEpoch"] == epoch
        finally:
            starving.cancel()
            await asyncio.gather(starving, return_exceptions=True)
            for process in processes:
                process.resume()


# -- descriptors


@contextmanager
def few_descriptors(process: Process) -> Iterator[None]:
    """The process can open two more files, and no third."""
    before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    used = max(int(one.name) for one in Path(f"/proc/{process.pid}/fd").iterdir())
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + 3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.fault(54)
@pytest.mark.parametrize("whose", ["agent", "control plane"])
async def test_without_descriptors_what_is_open_lives_and_the_rest_recovers(
    tmp_path: Path, whose: str
) -> None:
    """Connections beyond the limit wait or fail; the session stays; nothing has to be restarted afterwards."""
    async with fleet_of_one(tmp_path) as (fleet, host, trial):
        process = host.process if whose == "agent" else fleet.plane.process
        address = fleet.plane.addresses["http"].rpartition(":")
        held = []
        with few_descriptors(process):
            for _ in range(12):
                with suppress(OSError, TimeoutError):
                    async with asyncio.timeout(1):
                        if whose == "agent":
                            held.append(await asyncio.open_unix_connection(host.socket))
                        else:
                            held.append(await asyncio.open_connection(address[0], int(address[2])))
            await asyncio.sleep(2 * LEASE)
            assert process.running()
        for _, writer in held:
            writer.transport.abort()

        async def works() -> bool:
            return await trial.try_report(host) and await trial.presence(host) == "connected"

        await eventually(works, within=NOTICED, what="everything works again")
        await trial.order(host)
        await trial.settled()
        if whose == "agent":
            assert process.log.read_text().count("local_api.waiting") == 1
            return
        # asyncio tries each accept again after a second, and tells of every failure with its traceback, of a try that
        # is still to come when the process stops, too. Nothing else shows that the last was made.
        await asyncio.sleep(2.5)
        assert "out of system resource" in process.log.read_text()
        process.log.write_text("")


# -- memory


@contextmanager
def little_memory(process: Process, name: str) -> Iterator[None]:
    """The process can have next to no memory more; beyond that the kernel kills it."""
    limits = Path("/sys/fs/cgroup/memory") / f"variantd-{name}-{os.getpid()}"
    try:
        limits.mkdir()
        (limits / "memory.limit_in_bytes").write_text(str(128 << 10))
    except OSError as error:
        pytest.skip(f"needs a memory control group of its own: {error}")
    try:
        (limits / "cgroup.procs").write_text(str(process.pid))
        yield
    finally:
        for pid in (limits / "cgroup.procs").read_text().split():
            (limits.parent / "cgroup.procs").write_text(pid)
        limits.rmdir()


@pytest.mark.fault(53)
@pytest.mark.parametrize("whose", ["agent", "control plane"])
async def test_killed_for_memory_it_restarts_and_nothing_answered_is_lost(tmp_path: Path, whose: str) -> None:
    """The kernel kills it in the middle of reports and orders; started again, it goes on."""
    async with fleet_of_one(tmp_path) as (fleet, host, trial):
        process = host.process if whose == "agent" else fleet.plane.process
        assert process.child is not None
        with little_memory(process, whose.replace(" ", "-")):
            async with asyncio.timeout(PATIENCE):
                while process.child.returncode is None:
                    await trial.try_report(host)
                    if whose != "agent":
                        with suppress(aiohttp.ClientError):
                            await fleet.plane.rest("GET", "/v1/experiments?include=content")
            assert process.child.returncode == -9
        await (host.start() if whose == "agent" else fleet.plane.start())
        await trial.shown(host, "connected", within=NOTICED)
        await trial.report(host, 5)
        await trial.order(host)
        await trial.settled()


# -- the log


@pytest.mark.fault(62)
async def test_nobody_reads_the_log(tmp_path: Path) -> None:
    """The pipe is full before the agent writes its first line: it starts, applies, takes reports, and stops."""
    async with running_fleet(tmp_path, quick=True) as fleet:
        host = await fleet.add_host("one", "bot-1", starts=False)
        trial = trial_on(fleet)
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETFL, os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while True:
                os.write(writing, b"." * 4096)
        fcntl.fcntl(writing, fcntl.F_SETFL, 0)
        (host.state / "addresses.json").unlink(missing_ok=True)
        host.process.child = await asyncio.create_subprocess_exec(
            *host.process.command, stdout=writing, stderr=writing, start_new_session=True
        )
        os.close(writing)
        try:
            await eventually((host.state / "addresses.json").exists)
            async with trial.oracle.watching():
                await trial.begin()
                await trial.report(host, 20)
                await trial.order(host)
                await trial.settled()
            assert await host.process.stop() == 0
        finally:
            os.close(reading)


@pytest.mark.fault(62)
@pytest.mark.parametrize("whose", ["agent", "control plane"])
async def test_the_log_s_disk_is_full(tmp_path: Path, whose: str) -> None:
    """Lines are lost, and told of once there is room; orders and reports go on."""
    logs = tmp_path / "logs"
    logs.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=8k", "none", at=logs):
        async with fleet_of_one(tmp_path) as (fleet, host, trial):
            process = host.process if whose == "agent" else fleet.plane.process
            await process.kill()
            process.log = logs / "log"
            with suppress(OSError):
                (logs / "filler").write_bytes(b"x" * 9_000)
            await (host.start() if whose == "agent" else fleet.plane.start())
            await trial.shown(host, "connected", within=NOTICED)
            await trial.report(host, 5)
            await trial.order(host)
            await trial.settled()
            (logs / "filler").unlink()
            await trial.order(host)
            await trial.settled()
            await eventually(lambda: "lines of the log were lost" in process.log.read_text())
            assert await process.stop() == 0


# -- names


@pytest.mark.fault(56)
async def test_names_that_do_not_resolve_are_tried_again_without_a_loop(tmp_path: Path) -> None:
    """First to the wrong place, then to nothing at all: attempts are spaced, and the right name is found again."""
    hosts, nowhere = tmp_path / "hosts", tmp_path / "resolv.conf"
    hosts.write_text("127.0.0.1 localhost plane.test\n")
    nowhere.write_text("nameserver 127.0.0.77\noptions timeout:1 attempts:1\n")
    mounts = f"mount --bind {hosts} /etc/hosts && mount --bind {nowhere} /etc/resolv.conf"
    run_or_skip("unshare", "--mount", "sh", "-c", mounts)
    async with running_fleet(tmp_path, quick=True) as fleet:
        await fleet.plane.process.stop()
        fleet.plane.process.command += ["--advertise", "plane.test,127.0.0.1"]
        await fleet.plane.start()
        host = await fleet.add_host("one", "bot-1", starts=False)
        trial = trial_on(fleet)

        async def tries_again() -> bool:
            return bool((await call(Path(host.socket), "/status")).body["session"]["attempt"] >= 1)

        async with proxied(fleet.plane.addresses["agents"]) as network:
            reroute(host.state, f"plane.test:{network.address.rpartition(':')[2]}")
            wrapped = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
            host.process.command = [*wrapped, *host.process.command]
            await host.start()
            async with trial.oracle.watching():
                await trial.begin()
                await trial.oracle.converged()
                for wrong in ("127.0.0.66 plane.test\n", "127.0.0.1 localhost\n"):
                    hosts.write_text(wrong)
                    network.refusing = True
                    network.reset()
                    await noticed(host)
                    before = network.attempts  # the last good address is kept, and tried
                    await trial.report(host, 5)
                    await asyncio.sleep(3)
                    assert network.attempts - before <= 40
                    await eventually(tries_again)
                    network.refusing = False
                    hosts.write_text("127.0.0.1 localhost plane.test\n")
                    await trial.shown(host, "connected")
                    await trial.order(host)
                    await trial.settled()
