"""A changed agent.toml takes effect without a restart, whole or not at all.

Hides the order in which the parts learn of it, and which settings only a restart can change. A file that is
not valid changes nothing, and stays a condition until one is that is.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import fields

from agent.config import AgentConfig
from agent.distinct import check_distinct
from agent.health import Conditions
from agent.local_api import LocalApi
from agent.reconciler import Reconciler
from shared.clock import Clock
from shared.errors import Error, FailedPrecondition, Fault, Invalid
from shared.logs import get
from shared.model import Condition

TAKEN_UP = ("participants", "labels", "transport")
"""What a reload can change; anything else in agent.toml needs a restart."""

_log = get(__name__)


class Reload:
    """Reads the configuration again with `read`, None where there is no file to read.

    `told` are the parts besides reconciler and local API that go by the configuration.
    """

    def __init__(
        self,
        *,
        config: AgentConfig,
        read: Callable[[], AgentConfig] | None,
        reconciler: Reconciler,
        api: LocalApi,
        told: Iterable[Callable[[AgentConfig], None]],
        clock: Clock,
    ) -> None:
        self._config, self._read, self._reconciler, self._api = config, read, reconciler, api
        self._told = tuple(told)
        self._conditions = Conditions(clock)
        self._one = asyncio.Lock()

    def conditions(self) -> tuple[Condition, ...]:
        """CONFIG_REFUSED while the file was last seen with a fault."""
        return self._conditions.now()

    async def reload(self) -> dict[str, list[str]]:
        """The agent goes by the file; which participants were added, changed and removed.

        Raises Invalid with every fault, or FailedPrecondition; then it goes by what it had.
        """
        async with self._one:
            try:
                config = await self._checked()
                self._api.reconfigure(config)
            except Error as error:
                self._conditions.hold("CONFIG_REFUSED", "warning", f"not taken up: {error.message}")
                _log.error("agent.reload_refused", error=error.message)
                raise
            before = {participant.id: participant for participant in self._config.participants}
            after = {participant.id: participant for participant in config.participants}
            await self._reconciler.reconfigure(config)
            for tell in self._told:
                tell(config)
            self._config = config
            self._conditions.end("CONFIG_REFUSED")
            kept = before.keys() & after.keys()
            answer = {
                "added": sorted(after.keys() - before.keys()),
                "changed": sorted(name for name in kept if before[name] != after[name]),
                "removed": sorted(before.keys() - after.keys()),
            }
            _log.info("agent.reloaded", **{what: len(names) for what, names in answer.items()})
            return answer

    async def _checked(self) -> AgentConfig:
        if self._read is None:
            raise FailedPrecondition("this agent was started without a file; restart it")
        config = await asyncio.to_thread(self._read)
        faults = [
            Fault(field=f"agent.{field.name}", message="is another one now", remedy="restart the agent")
            for field in fields(config)
            if field.name not in TAKEN_UP and getattr(config, field.name) != getattr(self._config, field.name)
        ]
        if faults:
            listed = "; ".join(f"{fault.field} {fault.message}" for fault in faults)
            raise Invalid(f"only a restart can change this: {listed}", reason="NEEDS_RESTART", faults=faults)
        await asyncio.to_thread(check_distinct, config)
        return config

    async def on(self, hangup: asyncio.Event) -> None:
        """Reloads whenever `hangup` is set; what is wrong with the file is a condition and in the log."""
        while True:
            await hangup.wait()
            hangup.clear()
            try:
                await self.reload()
            except Error:
                continue
