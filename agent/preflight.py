"""Answers what this host would say of content, before any of it is assigned.

Hides how little that may cost the host: the newest question of a participant takes the place of the one before,
few are worked on at a time, one content is in memory for each, and an answer is given with what was judged once
its time is up. What no verdict was found for is left out, and may be asked again. Content is never logged.
"""

import asyncio
from collections.abc import Awaitable, Callable

from agent.config import AgentConfig
from agent.judge import Unjudged
from agent.plan import one_file
from agent.policy import Refused, fingerprint, show
from shared import logs
from shared.clock import Clock
from shared.model import OfferedFile, Preflight, PreflightResult, Verdict

_log = logs.get(__name__)

PARALLEL = 4
"""Participants worked on at once."""

MAX_WAITING = 10_000
"""Questions waiting or being answered; what is asked beyond them stays without answer."""

BUDGET_SECONDS = 120.0
"""No file of a question is begun later than that."""

Judge = Callable[[str, OfferedFile], Awaitable[str]]
"""The real file that a participant would write a content to. Raises Refused, or Unjudged."""


class Preflights:
    """Judges what is asked with `judge`, and answers through `tell`."""

    def __init__(
        self, config: AgentConfig, *, judge: Judge, tell: Callable[[PreflightResult], None], clock: Clock
    ) -> None:
        self._config, self._judge, self._tell, self._clock = config, judge, tell, clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(PARALLEL)

    def reconfigure(self, config: AgentConfig) -> None:
        """What is asked from now on is judged by this configuration; what is under way stays without answer."""
        self._config = config
        self.drop()

    def drop(self) -> None:
        """What is under way stays without answer: there is nobody to tell it any more."""
        for task in self._tasks.values():
            task.cancel()

    def ask(self, preflight: Preflight) -> None:
        """The question will be answered, unless a newer one of its participant comes first; never waits."""
        older = self._tasks.pop(preflight.participant, None)
        if older is not None:
            older.cancel()
        elif len(self._tasks) >= MAX_WAITING:
            _log.warning("preflight.too_many", participant=show(preflight.participant))
            return
        task = asyncio.create_task(self._answer(preflight), name="preflight")
        self._tasks[preflight.participant] = task
        task.add_done_callback(lambda done: self._forget(preflight.participant, done))

    def _forget(self, participant: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(participant) is task:
            del self._tasks[participant]
        if not task.cancelled() and (failure := task.exception()):
            _log.error("preflight.failed", participant=show(participant), exc_info=failure)

    async def stop(self) -> None:
        """Nothing is answered any more, and nothing that was staged for an answer is left."""
        tasks = tuple(self._tasks.values())
        self.drop()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, preflight: Preflight) -> None:
        policy = self._policy(preflight.participant)
        async with self._room:
            verdicts = await self._verdicts(preflight)
        refused = sorted({verdict.refused.code.value for verdict in verdicts if verdict.refused})
        _log.info(
            "preflight.answered",
            participant=show(preflight.participant),
            files=len(preflight.files),
            judged=len(verdicts),
            refused=refused,
        )
        self._tell(PreflightResult(request_id=preflight.request_id, verdicts=tuple(verdicts), policy=policy))

    def _policy(self, name: str) -> bytes:
        found = (one for one in self._config.participants if one.id == name)
        return next((fingerprint(one) for one in found), b"")

    async def _verdicts(self, preflight: Preflight) -> list[Verdict]:
        until = self._clock.monotonic() + BUDGET_SECONDS
        verdicts: list[Verdict] = []
        paths: dict[str, str] = {}  # by the real file they lead to
        for file in preflight.files:
            if self._clock.monotonic() >= until:
                break
            refused = None
            try:
                real = await self._judge(preflight.participant, file)
                if paths.setdefault(real, file.path) != file.path:
                    raise one_file()
            except Unjudged:
                continue
            except Refused as refusal:
                refused = refusal.reason
            verdicts.append(Verdict(path=file.path, digest=file.digest or b"", refused=refused))
        return verdicts
