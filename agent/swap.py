"""The steps of an apply that touch the disk: stage, journal the intent, put in place, put back.

Everything here is told by an intent alone and may be repeated, so the same code serves an apply and the
restart after one that was interrupted. Blocks.
"""

import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from agent.files import Staged, Workspace, refusal
from agent.journal import Journal
from agent.plan import Planned, kept, same
from agent.policy import Refused, show
from agent.slots import FileImage, Slot, SlotFile
from shared.clock import Clock
from shared.ids import NewId
from shared.model import Reason, ReasonCode


class Swapper:
    """Puts what was planned or intended into one participant's files.

    With `keep_new` the journal keeps what was written too, so that it can be written again.
    """

    def __init__(
        self,
        *,
        workspace: Workspace,
        keep_new: bool,
        journal: Journal,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._workspace, self._keep_new = workspace, keep_new
        self._journal, self._clock, self._new_id = journal, clock, new_id

    def stage(self, plan: Iterable[Planned], done: list[Planned]) -> None:
        """`done` has all of `plan`, with new content durable beside the targets that have to be written.

        Where it raises, `done` has what was staged until then.
        """
        for planned in plan:
            done.append(self._stage(planned))

    def _stage(self, planned: Planned) -> Planned:
        file, new = planned.file, planned.new
        change = file.change
        if change is None or new is None or same(change.old, change.new):
            return planned
        staged = self._workspace.stage(file.real, new, token=self._new_id().hex())
        old = replace(change.old, made=staged.missing)
        before = old if file.before == change.old else file.before
        original = old if file.original == change.old else file.original
        change = replace(change, old=old, temp=staged.temp)
        file = replace(file, before=before, original=original, change=change)
        return replace(planned, file=file, staged=staged)

    def keep(self, plan: Iterable[Planned]) -> None:
        """What is there now is kept for the way back, as far as that can be: `intend` makes sure, and says why not.

        For whoever has something else to wait for meanwhile; never raises.
        """
        with suppress(OSError):
            for planned in plan:
                self._keep_present(planned)

    def _keep_present(self, planned: Planned) -> None:
        change = planned.file.change
        if change is None or change.old.digest is None:
            return
        assert planned.present is not None
        self._journal.keep(planned.present.content)

    def discard(self, plan: Iterable[Planned]) -> None:
        """What was staged for `plan` is gone again."""
        for planned in plan:
            if planned.staged is not None:
                self._workspace.discard(planned.staged)

    def intend(self, intent: Slot, plan: list[Planned]) -> Slot:
        """The intent and everything needed to undo it are durable."""
        try:
            for planned in plan:
                if self._keep_new and planned.new is not None:
                    self._journal.keep(planned.new.content)
                self._keep_present(planned)
                change = planned.file.change
                if change is not None and self._workspace.digest(planned.file.real) != change.old.digest:
                    raise _changed_meanwhile(planned.file.path)
            # Read before the first rename, so that the old view ends no later than the old content does.
            intent = replace(intent, swapped_at=self._clock.now())
            self._journal.save(intent)
        except (OSError, Refused) as error:
            self.discard(plan)
            if isinstance(error, Refused):
                raise
            reason = refusal(error, "the agent's state directory").reason
            raise Refused(reason.code, reason.message, reason.remedy) from error
        return intent

    def forward(self, intent: Slot) -> Reason | None:
        """Every file is what the intent says, or the reason why one is not. Idempotent."""
        try:
            pending = []
            for file in intent.files:
                present = self._image(file) if file.change else None
                if file.change is None or present is None or same(present, file.change.new):
                    continue
                if not same(present, file.change.old):
                    raise _changed_meanwhile(file.path)
                pending.append(file)
            for file in pending:
                self._put_new(file)
            for file in intent.files:
                if file.change and file.change.new.digest is None:
                    # The file may have gone before a stop that its directories outlived.
                    self._workspace.remove_directories(file.change.new.made)
        except Refused as refused:
            return refused.reason
        return None

    def _put_new(self, file: SlotFile) -> None:
        assert file.change is not None
        old, new, temp = file.change.old, file.change.new, file.change.temp
        if temp is not None and new.digest is not None:
            staged = Staged(path=file.real, temp=temp, digest=new.digest, missing=old.made)
            if self._workspace.is_staged(staged):
                self._workspace.swap(staged)
                return
        self._put(file, new)

    def _put(self, file: SlotFile, wanted: FileImage) -> None:
        """The file is what is wanted, from what the journal keeps."""
        if wanted.digest is None:
            self._workspace.remove(file.real, made=wanted.made)
            return
        content = kept(self._journal, wanted)
        if content is None:
            raise Refused(
                ReasonCode.IO_ERROR,
                f"the agent stopped before {show(file.path)} was in place, and its new content is gone",
                "deploy again",
            )
        self._workspace.swap(self._workspace.stage(file.real, content, token=self._new_id().hex()))

    def _is(self, file: SlotFile, wanted: FileImage) -> bool:
        return same(self._image(file), wanted)

    def _image(self, file: SlotFile) -> FileImage:
        """What the file is now, whatever the size of what somebody else may have put there."""
        found = self._workspace.look(file.real)
        if found is None:
            return FileImage(digest=None)
        value, status = found
        mode = stat.S_IMODE(status.st_mode)
        return FileImage(digest=value, mode=mode, uid=status.st_uid, gid=status.st_gid)

    def back(self, intent: Slot) -> tuple[bool, Reason | None]:
        """Every file is what it was: whether one had to be put back, and why one could not be.

        A file that somebody else changed meanwhile stays as it is: it is neither ours to keep nor to undo.
        """
        touched, failure = False, None
        for file in reversed(intent.files):
            change = file.change
            if change is None or is_unchanged(file):
                continue
            if change.temp is not None and change.new.digest is not None:
                self._workspace.discard(Staged(path=file.real, temp=change.temp, digest=change.new.digest))
            try:
                if self._is(file, change.new):
                    touched = True
                    self._put(file, change.old)
                elif change.old.digest is None:
                    self._workspace.remove_directories(change.old.made)
            except Refused as refused:
                if refused.reason.code not in (ReasonCode.SYMLINK_REFUSED, ReasonCode.NOT_A_REGULAR_FILE):
                    failure = refused.reason
        return touched, failure

    def already_new(self, intent: Slot) -> list[SlotFile]:
        """The files that are what the intent says."""
        found = []
        for file in intent.files:
            try:
                if file.change is not None and self._is(file, file.change.new):
                    found.append(file)
            except Refused:
                continue  # `forward` meets it again and says why
        return found


def is_unchanged(file: SlotFile) -> bool:
    """Nothing has to be written."""
    return file.change is None or same(file.change.old, file.change.new)


def _changed_meanwhile(path: str) -> Refused:
    return Refused(
        ReasonCode.DRIFTED,
        f"{show(path)} was changed by somebody else while it was being applied",
        "look at the change, then deploy again",
    )
