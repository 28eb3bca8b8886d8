"""How every attempt ends, told by the journal alone: in place, undone, refused, due again, confirmed or stuck.

From the intent on, everything can be gone on from after a restart: what is to be brought about, what is to be taken
back, the reload that is owed, and the health window that has yet to pass. Each end is journalled with its outcome.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from agent import attempts
from agent.attempts import Attempt, in_place, outcome_of, put_back, suspects, with_baseline
from agent.config import ParticipantConfig
from agent.failures import ATTEMPTS, condemned, ended_by_reload, given_up, in_passing, is_judgement
from agent.files import Workspace
from agent.hooks import Hooks, Inconclusive
from agent.journal import Journal
from agent.plan import held, successor
from agent.policy import Refused, allow
from agent.slots import Probation, Slot, Undo
from agent.swap import Swapper, is_unchanged
from agent.threads import blocking
from agent.views import Views
from shared.clock import Clock
from shared.logs import get
from shared.model import Digest, FileOutcome, Loaded, OfferAction, Outcome, Reason, ReasonCode, Result, Step
from shared.moment import SECOND

_log = get(__name__)


class Endings:
    """Ends what one participant's slots have begun; `unsaved` are slots of which the journal is behind."""

    def __init__(
        self,
        *,
        config: ParticipantConfig,
        slots: dict[bytes, Slot],
        workspace: Workspace,
        journal: Journal,
        views: Views,
        hooks: Hooks,
        swapper: Swapper,
        clock: Clock,
    ) -> None:
        self._config, self._slots, self._workspace, self._journal = config, slots, workspace, journal
        self._views, self._hooks, self._swapper, self._clock = views, hooks, swapper, clock
        self.unsaved: set[bytes] = set()

    async def bring_about(
        self, attempt: Attempt, begin: Callable[[], tuple[Slot, Mapping[str, int]]]
    ) -> Outcome:
        """What is intended is in place, the reload hook ran where it is owed, or all is undone; the end is journalled.

        `begin` gives the intent that is on record, and as of when files of it are what it says; it is called in the
        thread in which all the rest is done too, where no hook has to run. What it raises is raised.
        """
        intent, failure, outcome = await blocking(lambda: self._forward(attempt, begin))
        if failure is not None:
            return await self.undo(intent, attempt, _undoing(intent, failure), swapped=False)
        if outcome is not None:
            return outcome
        try:
            await self._reload(intent, attempt)
        except Refused as refused:
            undo = _undoing(intent, refused.reason, inconclusive=isinstance(refused, Inconclusive))
            return await self.undo(intent, attempt, undo, swapped=True)
        return await blocking(lambda: self._done(intent, attempt))

    def _forward(
        self, attempt: Attempt, begin: Callable[[], tuple[Slot, Mapping[str, int]]]
    ) -> tuple[Slot, Reason | None, Outcome | None]:
        """(the intent, why it is not in place, its end where nothing is owed before that)."""
        started = self._clock.monotonic()
        intent, swapped_at = begin()
        self._slots[intent.slot_id] = intent
        failure = self._swapper.forward(intent)
        attempt.took["write"] = attempt.took.get("write", 0.0) + self._clock.monotonic() - started
        if failure is not None:
            return intent, failure, None
        attempt.step = Step.SWAPPED
        # The journal follows with the final; in memory already, so that views say who holds the file.
        self._slots[intent.slot_id] = in_place(intent)
        self._look_at(intent, swapped_at)
        is_owed = intent.reload_owed and self._config.reload
        return intent, None, None if is_owed else self._done(intent, attempt)

    def _done(self, intent: Slot, attempt: Attempt) -> Outcome:
        done = replace(in_place(intent), result=Result.APPLIED, probation=self._probation(intent))
        return self.ended(done, attempt, intent=intent)

    def _probation(self, intent: Slot) -> Probation | None:
        """The health window that begins now, where the host has one; one that runs goes on where nothing changed."""
        probe = self._config.probe
        if probe is None or intent.action is not OfferAction.WRITE:
            return None
        if all(is_unchanged(file) for file in intent.files):
            running = intent.probation
            return running and replace(running, revision=intent.revision, attempt=intent.attempt)
        now = self._clock.now()
        return Probation(
            revision=intent.revision,
            attempt=intent.attempt,
            since=now,
            until=now + round(probe.window * SECOND),
            files=intent.files,
        )

    async def end_window(
        self, slot_id: bytes, probation: Probation, failure: Reason | None
    ) -> Outcome | None:
        """What is on probation is confirmed, or with a `failure`, undone; None where something newer has come."""
        slot = self._slots.get(slot_id)
        if slot is None or slot.probation != probation or slot.intends:
            return None
        of = (probation.revision, probation.attempt)
        took = {"probe": (self._clock.now() - probation.since) / SECOND}
        attempt = Attempt(slot=slot, step=Step.CONFIRMED, took=took, of=of)
        if failure is not None:
            undo = Undo(reason=failure, revision=of[0], attempt=of[1])
            intent = attempts.taken_back(slot, probation, undo, reload_owed=bool(self._config.reload))
            await blocking(lambda: self.save(intent))
            return await self.undo(intent, attempt, undo, swapped=True)
        # A newer offer may have been refused meanwhile; how that ended stays with the slot.
        result = Result.CONFIRMED if slot.revision == probation.revision else slot.result
        confirmed = replace(slot, probation=None, result=result)
        return await blocking(lambda: self.ended(confirmed, attempt, result=Result.CONFIRMED))

    async def drop_window(self, slot_id: bytes, probation: Probation) -> None:
        """It is not on probation any more: the host has no probe now."""
        if self._slots[slot_id].probation != probation:
            return
        await blocking(lambda: self.save(replace(self._slots[slot_id], probation=None)))

    async def undo(self, intent: Slot, attempt: Attempt, undo: Undo, *, swapped: bool) -> Outcome:
        """Everything is what it was before, as far as that can be; the end is journalled.

        `swapped`: it had been in place, and the application may hold it.
        """
        if swapped and intent.undo is None:
            # First, so that a restart goes on with undoing and does not bring it about once more.
            intent = replace(intent, undo=undo)
            await blocking(lambda: self.save(intent))
        attempt.suspects = attempt.suspects or suspects(intent.files)
        undone, touched, stuck = await blocking(lambda: self._put_back(intent))
        if swapped and intent.reload_owed:
            try:
                await self._hooks.reload()  # the application may hold what is gone
            except Refused as refused:
                _log.error("apply.not_reloaded", participant=intent.participant, fault=refused.reason.message)
        attempt.of = (undo.revision, undo.attempt)
        if is_judgement(undo.reason, inconclusive=undo.inconclusive):
            undone = condemned(undone, attempt.suspects, undo.reason.code)
        if stuck is not None:
            both, undone = _both(undo, stuck), replace(undone, result=Result.STUCK)
            return await blocking(lambda: self.ended(undone, attempt, intent=intent, reason=both))
        result = Result.ROLLED_BACK if touched or swapped else Result.REFUSED
        return await self._failed(
            replace(undone, result=result),
            attempt,
            undo.reason,
            inconclusive=undo.inconclusive,
            intent=intent,
        )

    def _put_back(self, intent: Slot) -> tuple[Slot, bool, Reason | None]:
        touched, stuck = self._swapper.back(intent)
        there = self._swapper.already_new(intent) if stuck else []
        undone = put_back(intent, but=there, touched=touched)
        self._slots[intent.slot_id] = undone
        self._look_at(intent, {})
        return undone, touched, stuck

    def _look_at(self, slot: Slot, swapped_at: Mapping[str, int]) -> None:
        for file in slot.files:
            if file.change is not None:
                self._views.look(file, from_at=swapped_at.get(file.path, self._clock.now()))

    async def _reload(self, intent: Slot, attempt: Attempt) -> None:
        if not intent.reload_owed or not self._config.reload:
            return
        attempt.step = Step.RELOAD_OWED
        started = self._clock.monotonic()
        try:
            await self._hooks.reload()
        finally:
            attempt.took["reload"] = self._clock.monotonic() - started
        attempt.step = Step.RELOADED

    async def recover(self, found: Slot) -> Outcome:
        undo, intent = found.undo, replace(found, resumed=found.resumed + 1)
        await blocking(lambda: self.save(intent))
        attempt = Attempt(slot=intent, step=Step.CHECKED)
        if undo is not None:
            judged = undo.reason.code is ReasonCode.PROBE_FAILED
            attempt.step = Step.CONFIRMED if judged else Step.RELOAD_OWED
            if intent.resumed > 2 * ATTEMPTS:  # its own reload command ends the agent, it seems
                intent = replace(intent, reload_owed=False)
            return await self.undo(intent, attempt, undo, swapped=True)
        if intent.reload_owed and intent.resumed > ATTEMPTS:
            attempt.step = Step.RELOAD_OWED
            return await self.undo(intent, attempt, _undoing(intent, ended_by_reload()), swapped=True)

        def again() -> tuple[Slot, dict[str, int]]:
            # A rename of this moment is as of now; one that the stop came after is as of the intent.
            return intent, {file.path: intent.swapped_at for file in self._swapper.already_new(intent)}

        return await self.bring_about(attempt, again)

    async def refuse(self, attempt: Attempt, refused: Refused) -> Outcome:
        slot = replace(attempt.slot, result=Result.REFUSED)
        inconclusive = isinstance(refused, Inconclusive)
        if is_judgement(refused.reason, inconclusive=inconclusive):
            slot = condemned(slot, attempt.suspects, refused.reason.code)
        return await self._failed(slot, attempt, refused.reason, inconclusive=inconclusive)

    async def _failed(
        self, slot: Slot, attempt: Attempt, reason: Reason, *, inconclusive: bool, intent: Slot | None = None
    ) -> Outcome:
        """The attempt ended as its slot says; where the failure is in passing another is due, or none any more."""
        if in_passing(reason, inconclusive=inconclusive):
            if slot.attempt < ATTEMPTS:
                slot = replace(slot, retrying=True)
            else:
                slot, reason = replace(slot, result=Result.STUCK), given_up(reason)
        return await blocking(lambda: self.ended(slot, attempt, intent=intent, reason=reason))

    def ended(
        self,
        slot: Slot,
        attempt: Attempt,
        *,
        intent: Slot | None = None,
        reason: Reason | None = None,
        result: Result | None = None,
    ) -> Outcome:
        """The attempt's outcome is journalled with the slot; that another attempt is due is no end, and is not owed.

        Blocks.
        """
        outcome = outcome_of(attempt, result or slot.result, now=self._clock.now())
        outcome = self._record(slot, attempt, intent, replace(outcome, reason=reason))
        (_log.error if outcome.result is Result.STUCK else _log.info)(
            "apply.ended",
            participant=slot.participant,
            slot=slot.slot_id.hex(),
            revision=outcome.revision,
            attempt=outcome.attempt,
            result=outcome.result,
            step=outcome.step,
            reason=reason and reason.code,
        )
        return outcome

    def _record(self, slot: Slot, attempt: Attempt, intent: Slot | None, outcome: Outcome) -> Outcome:
        """The outcome with what its files hold now; it is on record with the slot."""
        files = self.file_outcomes(attempt, intent)
        outcome = replace(
            outcome,
            files=files,
            quarantined=_is_condemned(slot, files),
            confirming=slot.probation is not None and slot.probation.revision == attempt.told_for[0],
        )
        slot = replace(slot, step=attempt.step)
        if slot.retrying:
            outcome = replace(outcome, result=Result.IN_PROGRESS)
        else:
            slot = slot.ended(outcome)
        self._save_all(slot, intent)
        return outcome

    def _save_all(self, slot: Slot, intent: Slot | None) -> None:
        if slot.action is OfferAction.RESTORE and slot.result.holds and intent is not None:
            for file in intent.files:
                later = successor(self._slots, slot, file)
                if file.applied is None or file.change is not None or later is None:
                    continue
                known = later[1].before
                # What somebody else had put there between the two slots is the baseline, and stays it.
                if known is None or known.digest == file.applied:
                    self.save(with_baseline(later[0], later[1], file.before))
        self.save(slot)

    def save(self, slot: Slot) -> None:
        """The slot is as given, durably, or else `unsaved`: then a restart begins from its intent."""
        self._saved(slot, self._journal.save)

    def note(self, slot: Slot) -> None:
        """As `save`, but a power cut may take it back: the control plane is told once more then, and nothing else."""
        self._saved(slot, self._journal.note)

    def _saved(self, slot: Slot, save: Callable[[Slot], None]) -> None:
        self._slots[slot.slot_id] = slot
        try:
            save(slot)
        except OSError as error:
            self.unsaved.add(slot.slot_id)
            _log.error("journal.unwritable", participant=slot.participant, error=error.strerror)
        else:
            self.unsaved.discard(slot.slot_id)

    def file_outcomes(self, attempt: Attempt, intent: Slot | None) -> tuple[FileOutcome, ...]:
        if intent is None and attempt.step in (Step.LOADED, Step.CONFIRMED):
            return tuple(
                FileOutcome(
                    path=file.path,
                    desired=file.applied,
                    running=self._running(file.path),
                    previous=file.applied,
                )
                for file in attempt.slot.files
                if file.applied is not None
            )
        changes = {file.path: file.change for file in intent.files if file.change} if intent else {}
        offered = {file.path: file.digest for file in attempt.offer.files} if attempt.offer else {}
        outcomes = []
        for path in {**offered, **changes}:
            running = self._running(path)
            if path in changes:
                desired, previous = changes[path].new.digest, changes[path].old.digest
            else:
                writes = attempt.offer is not None and attempt.offer.action is OfferAction.WRITE
                desired, previous = offered[path] if writes else running, running
            if path:  # a file without a name was refused, and has no place in an outcome
                outcomes.append(FileOutcome(path=path, desired=desired, running=running, previous=previous))
        return tuple(outcomes)

    def _running(self, path: str) -> Digest | None:
        try:
            # What is no target is none of the control plane's business, not even by its digest.
            allow(self._config, path, size=None)
            return self._workspace.digest(self._workspace.locate(path))
        except Refused:
            return None

    async def loaded(self, receipt: Loaded) -> list[Outcome]:
        """The receipt is on record with the slot that holds the file; an outcome where all the slot is loaded now."""
        outcomes = []
        for slot, file in held(self._slots):
            if file.path != receipt.path or slot.intends:
                continue
            after = attempts.loaded(slot, receipt)
            if after == slot:
                continue
            if attempts.is_loaded(after) and not attempts.is_loaded(slot) and after.result.holds:
                attempt = Attempt(slot=after, step=Step.LOADED)
                outcomes.append(await blocking(partial(self.ended, after, attempt)))
            elif attempts.loaded_digests(after) == attempts.loaded_digests(slot):
                self._slots[slot.slot_id] = after  # said again: not worth a write
            else:
                await blocking(lambda after=after: self.save(after))  # type: ignore[misc]
        return outcomes


def _undoing(intent: Slot, reason: Reason, *, inconclusive: bool = False) -> Undo:
    return Undo(reason=reason, revision=intent.revision, attempt=intent.attempt, inconclusive=inconclusive)


def _both(undo: Undo, stuck: Reason) -> Reason:
    return Reason(
        code=stuck.code,
        message=f"{undo.reason.message}; and what was there before could not be put back: {stuck.message}",
        remedy=stuck.remedy,
    )


def _is_condemned(slot: Slot, files: Iterable[FileOutcome]) -> bool:
    """One of the files was to hold what is in quarantine."""
    quarantined = {(one.path, one.digest) for one in slot.quarantined}
    return any((file.path, file.desired) in quarantined for file in files)
