"""The host's own say in what is written: its check of staged content and its reload command.

Hides where what a command prints goes: it stays on the host, as it may quote the content, and content is
secret.
"""

from pathlib import Path

from agent import commands
from agent.config import ParticipantConfig
from agent.files import Staged
from agent.policy import Refused, show
from agent.threads import blocking
from agent.trials import Trials
from shared.clock import Clock
from shared.logs import get
from shared.model import ReasonCode

_log = get(__name__)


class Inconclusive(Refused):
    """A command could not be started or took too long, which may be otherwise the next time."""


class Hooks:
    """Runs the commands of one participant; what they print is kept in `output`, checks are counted in `trials`."""

    def __init__(self, *, config: ParticipantConfig, clock: Clock, output: Path, trials: Trials) -> None:
        self._config, self._clock, self._output, self._trials = config, clock, output, trials

    async def check(self, staged: Staged) -> None:
        """The host accepts the staged content, or names no check. Raises Refused CHECK_FAILED, or Inconclusive.

        A check that was begun too often and never ended, as it ends the agent, is not begun again: that is
        a refusal of the content. Cancelled, as where the agent stops, it has not ended.
        """
        if not self._config.check:
            return
        path = str(self._config.root / staged.temp)
        await blocking(lambda: self._trials.begin(staged.path, staged.digest))
        finished = await self._run([part.replace("{staged}", path) for part in self._config.check], "check")
        await blocking(lambda: self._trials.ended(staged.digest))
        if finished.fault:
            raise (Inconclusive if finished.inconclusive else Refused)(
                ReasonCode.CHECK_FAILED,
                f"the host's check of {show(staged.path)} {finished.fault}",
                f"correct the content; what it said is in output/{self._config.id}.check in the state directory",
            )

    async def reload(self) -> None:
        """The application was told to read its files again, where the host names how.

        Raises Refused RELOAD_FAILED, or Inconclusive.
        """
        if not self._config.reload:
            return
        finished = await self._run(list(self._config.reload), "reload")
        if finished.fault:
            raise (Inconclusive if finished.inconclusive else Refused)(
                ReasonCode.RELOAD_FAILED,
                f"the host's reload command {finished.fault}",
                f"what it said is in output/{self._config.id}.reload in the agent's state directory",
            )

    async def _run(self, command: list[str], name: str) -> commands.Finished:
        finished = await commands.run(command, cwd=self._config.root, clock=self._clock)
        if finished.fault:
            await blocking(lambda: self._write_output(name, finished.output))
        return finished

    def _write_output(self, name: str, output: bytes) -> None:
        try:
            self._output.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._output / f"{self._config.id}.{name}").write_bytes(output)
        except OSError as error:  # what it said is lost; how it ended is what counts
            _log.warning("hook.output_not_kept", participant=self._config.id, error=error.strerror)
