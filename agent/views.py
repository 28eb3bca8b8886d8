"""What one participant's targets hold, as last seen, and the views that say so durably.

Hides what counts as a change, and that views wait, in order, while the spool cannot take them. What looks at files
or records a view blocks: call it from a thread.
"""

from collections import deque
from collections.abc import Callable

from agent.config import ParticipantConfig
from agent.files import Workspace
from agent.plan import Slots, holder
from agent.policy import Refused
from agent.slots import Slot, SlotFile
from shared.errors import Error
from shared.logs import get
from shared.model import Digest, View, ViewState, show_digest
from shared.moment import to_rfc3339

MAX_OWED = 1024
"""Views of one participant that wait to be recorded; beyond that the oldest go."""

_log = get(__name__)


class Views:
    """Looks at one participant's targets; `seen` has the last view of each by path."""

    def __init__(
        self,
        *,
        config: ParticipantConfig,
        slots: Slots,
        workspace: Workspace,
        record_view: Callable[[View], object],
    ) -> None:
        self._config, self._slots, self._workspace = config, slots, workspace
        self._record_view = record_view
        self.seen: dict[str, View] = {}
        self.owed: deque[View] = deque(maxlen=MAX_OWED)

    def on_disk(self, file: SlotFile) -> tuple[Digest | None, ViewState]:
        """What lies at the target's path now, by whatever links, and how that stands to what should. Blocks.

        What cannot be read as a file, such as a directory or link in its place, is drifted without a digest.
        """
        owner = holder(self._slots, file.real)
        try:
            found = self._workspace.digest(self._workspace.locate(file.path))
        except Refused:
            return None, ViewState.UNMANAGED if owner is None else ViewState.DRIFTED
        if owner is None:
            return found, ViewState.UNMANAGED
        if found == owner[1].applied:
            return found, ViewState.APPLIED
        return found, ViewState.MISSING if found is None else ViewState.DRIFTED

    def digest_of(self, file: SlotFile) -> Digest | None:
        """What lies at the target's path now; None for absence, or what cannot be read as a file. Blocks."""
        try:
            return self._workspace.digest(self._workspace.locate(file.path))
        except Refused:
            return None

    def is_as_seen(self, file: SlotFile, found: Digest | None) -> bool:
        """The target was seen to hold what its slot put there, and that is what was found now."""
        view = self.seen.get(file.path)
        return view is not None and view.state is ViewState.APPLIED and found == view.digest == file.applied

    def look(self, file: SlotFile, *, from_at: int) -> ViewState:
        """How the file stands; recorded as a view, where it differs from the last one. Blocks.

        So is what lies at other paths that open slots wrote to the same file by.
        """
        for slot in list(self._slots.values()):
            for other in slot.files if not slot.closed else ():
                if other.real == file.real and other.path != file.path and other.applied is not None:
                    self._look(other, from_at=from_at)
        return self._look(file, from_at=from_at)

    def _look(self, file: SlotFile, *, from_at: int) -> ViewState:
        found, state = self.on_disk(file)
        view = View(participant=self._config.id, path=file.path, digest=found, state=state, from_at=from_at)
        last = self.seen.get(file.path)
        if last is None or (last.digest, last.state) != (found, state):
            self.seen[file.path] = view
            self.owed.append(view)
            self.record_owed()
        return state

    def show(self, slot: Slot) -> dict[str, object]:
        """Where the slot stands and what its files hold as last seen; ready for JSON."""
        reason = slot.outcome.reason if slot.outcome is not None else None
        return {
            "participantId": slot.participant,
            "slotId": slot.slot_id.hex(),
            "revision": str(slot.revision),
            "attempt": slot.attempt,
            "action": slot.action.value,
            "step": slot.step.value,
            "result": slot.result.value,
            "closed": slot.closed,
            "reason": reason
            and {"code": reason.code.value, "message": reason.message, "remedy": reason.remedy},
            "files": [
                {
                    "path": file.path,
                    "desiredDigest": show_digest(file.applied),
                    "runningDigest": show_digest(view.digest) if view is not None else None,
                    "state": self._state(slot, file.real, view).value,
                    "loadedDigest": show_digest(file.loaded),
                    "loadedAt": to_rfc3339(file.loaded_at) if file.loaded else None,
                }
                for file in slot.files
                for view in [self.seen.get(file.path)]
            ],
        }

    def _state(self, slot: Slot, real: str, view: View | None) -> ViewState:
        held = holder(self._slots, real)
        if view is None or held is None or held[0] is not slot:
            return ViewState.UNMANAGED
        return view.state

    def record_owed(self) -> None:
        """Views that could not be recorded are tried again, in order; a full spool is no reason to stop. Blocks."""
        while self.owed:
            try:
                self._record_view(self.owed[0])
            except (Error, OSError) as error:
                _log.warning("view.owed", participant=self._config.id, views=len(self.owed), error=str(error))
                return
            self.owed.popleft()
