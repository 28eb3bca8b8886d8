"""How a process lives: its tasks run together, the first failure or a signal stops them all, once.

Hides signal handling and systemd's notification protocol, so both daemons stop the same way.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def sd_notify(state: str) -> None:
    """systemd knows `state`, such as `READY=1`; without a notify socket nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender, suppress(OSError):
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(state.encode())


def on_signals(stop: asyncio.Event) -> None:
    """SIGTERM, SIGINT and a terminal that goes away (SIGHUP) set `stop`; a second one ends the process the default way.

    Under `nohup`, which has SIGHUP ignored, it stays so.
    """
    loop = asyncio.get_running_loop()

    def request_stop(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        stop.set()

    asked = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asked.append(signal.SIGHUP)
    for number in asked:
        loop.add_signal_handler(number, request_stop, number)


async def answered(future: Future[T]) -> T:
    """What another thread answers. A caller that goes away before does not take that thread's work along.

    A failure concerns nobody then; asyncio would tell of it as forgotten, with a traceback.
    """
    here = asyncio.wrap_future(future)
    here.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(here)


async def run_until(stop: asyncio.Event, *services: Callable[[], Awaitable[None]]) -> None:
    """Runs `services` together until `stop` is set; then all are cancelled and awaited.

    A service that fails stops the others and its exception is raised (the first one, where several
    fail). A service that returns early leaves the others running.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_run(service)) for service in services]
        await stop.wait()
        for task in tasks:
            task.cancel()


async def _run(service: Callable[[], Awaitable[None]]) -> None:
    await service()
