"""What the host does about drift: puts a target back, holds it as it is, or only tells.

Hides the rate limit and the conditions. A repair needs no intent of its own: the slot's record already says
what the file holds, so a restart in the middle finds the file whole, old or new, and goes on from there.
Only an owed reload is journalled, before the swap.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from agent.config import ParticipantConfig
from agent.failures import ATTEMPTS, ended_by_reload
from agent.files import ReadBack, Snapshot, Staged, Workspace
from agent.hooks import Hooks
from agent.journal import Journal
from agent.plan import Slots, holder, kept
from agent.policy import Refused, allow, show
from agent.slots import FileImage, Slot, SlotFile
from agent.threads import blocking
from agent.views import Views
from shared.clock import Clock
from shared.ids import NewId
from shared.logs import get
from shared.model import Digest, DriftPolicy, Reason, ReasonCode, ViewState

MAX_REPAIRS = 3
"""Repairs of one file within `WINDOW_SECONDS`, those that failed included."""

WINDOW_SECONDS = 600.0

_log = get(__name__)


class Repairer:
    """Follows one participant's drift policy; `save` makes a slot durable."""

    def __init__(
        self,
        *,
        config: ParticipantConfig,
        slots: Slots,
        workspace: Workspace,
        journal: Journal,
        views: Views,
        hooks: Hooks,
        save: Callable[[Slot], None],
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._config, self._slots, self._workspace, self._journal = config, slots, workspace, journal
        self._views, self._hooks, self._save = views, hooks, save
        self._clock, self._new_id = clock, new_id
        self._tries: dict[str, deque[float]] = {}
        self._faults: dict[str, Reason] = {}
        self._reload_fault: Reason | None = None
        self._remembered: set[Digest] = set()

    # -- what is asked -------------------------------------------------------------------------------

    def holds(self, real: str) -> bool:
        """A file that drifted stays as it is, and offers for it are refused, until somebody decides."""
        if self._config.drift is DriftPolicy.REPAIR:
            return self._exhausted(real)
        return self._config.drift is DriftPolicy.HOLD

    def is_done_with(self, slot: Slot, file: SlotFile) -> bool:
        """There is nothing to do about a file that holds what its slot put there."""
        if self._config.drift is not DriftPolicy.REPAIR:
            return True
        if slot.reload_owed and not slot.intends:
            return False
        return file.real not in self._faults and file.applied in self._remembered

    def conditions(self) -> Iterator[tuple[str, str]]:
        """(code, message) of what somebody should look at now."""
        name = self._config.id
        if self._reload_fault is not None:
            yield "REPAIR_FAILED", f"{name}: after a repair, {self._reload_fault.message}"
        for path, view in self._views.seen.copy().items():  # a thread may add to it meanwhile
            if view.state not in (ViewState.DRIFTED, ViewState.MISSING):
                continue
            owner = next((file for slot, file in self._open() if file.path == path), None)
            if owner is None:
                continue
            where = f"{show(path)} of {name}"  # ` of ID ` is what findings know the participant by
            fault = self._faults.get(owner.real)
            match self._config.drift:
                case DriftPolicy.HOLD:
                    yield (
                        "DRIFT_HELD",
                        f"{where} was changed by somebody else; it is left so, and offers for it are refused",
                    )
                case DriftPolicy.EXCLUDE:
                    yield (
                        "DRIFT_EXCLUDED",
                        f"{where} was changed by somebody else; what happens meanwhile is not `delivered`",
                    )
                case DriftPolicy.REPAIR if fault is not None:
                    yield "REPAIR_FAILED", f"{where} could not be repaired: {fault.message}"
                case DriftPolicy.REPAIR if self._exhausted(owner.real):
                    yield (
                        "DRIFT_WAR",
                        f"{where} was repaired {MAX_REPAIRS} times in {WINDOW_SECONDS / 60:g} minutes and "
                        "changed again; it is left as it is until those minutes are over: find out what writes it",
                    )

    def _open(self) -> Iterator[tuple[Slot, SlotFile]]:
        for slot in list(self._slots.values()):
            for file in slot.files if not slot.closed else ():
                owner = holder(self._slots, file.real)
                if owner is not None and owner[0] is slot:
                    yield slot, file

    def _exhausted(self, real: str) -> bool:
        tries = self._tries.get(real, ())
        since = self._clock.monotonic() - WINDOW_SECONDS
        return sum(1 for at in tries if at > since) >= MAX_REPAIRS

    # -- what is done --------------------------------------------------------------------------------

    async def attend(self, slot: Slot, file: SlotFile, state: ViewState) -> None:
        """Having been seen in `state`, the file is as its slot says again, where the policy is `repair`.

        Not more often than the rate limit; what failed is tried again within it, and is a condition.
        """
        if self._config.drift is not DriftPolicy.REPAIR or slot.intends:
            return
        if state is ViewState.APPLIED:
            self._faults.pop(file.real, None)
            await self._remember(file)
            await self.reload(slot.slot_id)  # a repair that was overwritten left it owed
        elif state is not ViewState.UNMANAGED and not self._exhausted(file.real):
            self._tries.setdefault(file.real, deque(maxlen=MAX_REPAIRS)).append(self._clock.monotonic())
            try:
                await self._repair(slot, file)
            except ReadBack:  # somebody was quick: as if it had been changed after the look
                self._faults.pop(file.real, None)
                _log.warning("drift.overwritten", participant=self._config.id, slot=slot.slot_id.hex())
            except Refused as refused:
                self._faults[file.real] = refused.reason
                _log.warning("drift.not_repaired", participant=self._config.id, code=refused.reason.code)
            else:
                self._faults.pop(file.real, None)
                _log.info("drift.repaired", participant=self._config.id, slot=slot.slot_id.hex())

    async def _remember(self, file: SlotFile) -> None:
        """The content is kept for a repair; it may have been written under another policy."""
        if file.applied is None or file.applied in self._remembered:
            return
        try:
            await blocking(lambda: self._keep(file))
        except (OSError, Refused) as error:
            _log.warning("drift.content_not_kept", participant=self._config.id, error=type(error).__name__)

    def _keep(self, file: SlotFile) -> None:
        if file.applied is not None and self._journal.content(file.applied) is None:
            present = self._workspace.read(file.real, limit=self._config.max_bytes)
            if present is None or present.digest != file.applied:
                return  # changed meanwhile; the next look says so
            self._journal.keep(present.content)
        if file.applied is not None:
            self._remembered.add(file.applied)

    async def _repair(self, slot: Slot, file: SlotFile) -> None:
        staged = await blocking(lambda: self._stage(file))
        try:
            await self._hooks.check(staged)
            if self._config.reload:
                owing = replace(self._slots[slot.slot_id], reload_owed=True, resumed=0)
                await blocking(lambda: self._save(owing))
        except BaseException:
            await blocking(lambda: self._workspace.discard(staged))
            raise
        # Read before the rename, so that the old view ends no later than the old content does.
        from_at = self._clock.now()
        try:
            await blocking(lambda: self._workspace.swap(staged))
        finally:
            await blocking(lambda: self._views.look(file, from_at=from_at))
        await self.reload(slot.slot_id)

    async def reload(self, slot_id: bytes) -> None:
        """The reload that a repair owes has been run; call it after a restart as well. Idempotent.

        One that was begun too often and never ended, as it ends the agent, is owed no longer.
        """
        owing = self._slots[slot_id]
        if not owing.reload_owed:
            return
        if owing.resumed >= ATTEMPTS:
            self._reload_fault = ended_by_reload()
        else:
            owing = replace(owing, resumed=owing.resumed + 1)
            await blocking(lambda: self._save(owing))
            try:
                await self._hooks.reload()
            except Refused as refused:
                self._reload_fault = refused.reason
            else:
                self._reload_fault = None
        done = replace(self._slots[slot_id], reload_owed=False, resumed=0)
        await blocking(lambda: self._save(done))

    def _stage(self, file: SlotFile) -> Staged:
        wanted = kept(self._journal, FileImage(digest=file.applied))
        if wanted is None:
            raise Refused(
                ReasonCode.IO_ERROR,
                f"the content of {show(file.path)} is not kept on this host",
                "deploy it again with overwriteDrift",
            )
        if self._workspace.locate(file.path) != file.real:
            raise Refused(
                ReasonCode.DRIFTED, f"{show(file.path)} leads to another file now", "put the link back"
            )
        content = wanted.content
        allow(self._config, file.path, size=len(content))  # agent.toml may be another since it was written
        present = self._workspace.read(file.real, limit=self._config.max_bytes)
        like = present or kept(self._journal, file.before) or self._workspace.fresh(content)
        new = Snapshot(content=content, mode=like.mode, uid=like.uid, gid=like.gid)
        return self._workspace.stage(file.real, new, token=self._new_id().hex())
