"""The apply machine of one participant: an offer becomes what is on disk, or a reason why not.

received → fetched → allowed → staged → checked → intent journalled → swapped → reloaded → final journalled.
Before the intent, a failure leaves every file untouched. From the intent on, every end is reachable from the
journal alone, so a restart finishes what was begun or undoes it; each file is one whole version throughout.
Whoever calls makes sure that one thing at a time happens to a participant.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from agent import attempts
from agent.attempts import Attempt, begun, in_place, is_done, merged, put_back, refused_unseen, with_baseline
from agent.config import ParticipantConfig
from agent.contents import Fetch, allow_offered, content_of
from agent.files import Workspace
from agent.hooks import Hooks
from agent.journal import Journal, Slot, SlotFile
from agent.judge import Judge
from agent.plan import Planned, Planner, held, successor
from agent.policy import Refused, allow
from agent.repair import Repairer
from agent.swap import Swapper, is_unchanged
from agent.threads import blocking
from agent.views import Views
from shared.clock import Clock
from shared.ids import NewId
from shared.logs import get
from shared.model import (
    Digest,
    DriftPolicy,
    FileOutcome,
    Loaded,
    Offer,
    OfferAction,
    Outcome,
    Reason,
    ReasonCode,
    Result,
    Step,
    View,
)

_log = get(__name__)


class Applier:
    """Applies offers to one participant's files; `slots` is the truth about them, journalled."""

    def __init__(
        self,
        *,
        config: ParticipantConfig,
        slots: dict[bytes, Slot],
        journal: Journal,
        clock: Clock,
        new_id: NewId,
        fetch: Fetch,
        record_view: Callable[[View], Awaitable[None]],
        output: Path,
    ) -> None:
        self.config = config
        self.slots = slots
        self.workspace = Workspace(config.root, follow_symlinks=config.follow_symlinks)
        self.views = Views(config=config, slots=slots, workspace=self.workspace, record_view=record_view)
        self.unsaved: set[bytes] = set()
        self._hooks = Hooks(config=config, clock=clock, output=output)
        self.repairer = Repairer(
            config=config,
            slots=slots,
            workspace=self.workspace,
            journal=journal,
            views=self.views,
            hooks=self._hooks,
            save=self.save,
            clock=clock,
            new_id=new_id,
        )
        self._planner = Planner(
            config=config,
            workspace=self.workspace,
            journal=journal,
            slots=slots,
            holds=self.repairer.holds,
        )
        self._swapper = Swapper(
            workspace=self.workspace,
            max_bytes=config.max_bytes,
            keep_new=config.drift is DriftPolicy.REPAIR,
            journal=journal,
            clock=clock,
            new_id=new_id,
        )
        self.judge = Judge(
            config=config,
            workspace=self.workspace,
            planner=self._planner,
            hooks=self._hooks,
            fetch=fetch,
            new_id=new_id,
        )
        self._journal, self._clock = journal, clock
        self._fetch = fetch

    # -- what is known -------------------------------------------------------------------------------

    def held(self) -> list[tuple[Slot, SlotFile]]:
        """Every target that an open slot holds."""
        return held(self.slots)

    def sweep(self) -> int:
        """Temporary files of an interrupted apply are gone; how many there were. Blocks."""
        return self.workspace.sweep(self.config.targets)

    def go_on_from(self, other: "Applier") -> None:
        """What was seen and is still owed under other rules of the same participant is so under these."""
        self.views.seen, self.views.owed = other.views.seen, other.views.owed
        self.unsaved = other.unsaved

    # -- an offer ------------------------------------------------------------------------------------

    async def apply(self, offer: Offer) -> Outcome:
        """`offer` is applied, refused or undone; the outcome is journalled and owed until acknowledged."""
        slot = self.slots.get(offer.slot_id)
        if slot is not None and slot.intends:
            try:
                # Not a refusal of this slot: its intent stays on record until there is a root to end it in.
                await blocking(lambda: self.workspace.fresh(b""))
            except Refused as refused:
                return refused_unseen(offer, refused.reason, now=self._clock.now())
            await self._recover(slot)
            slot = self.slots[offer.slot_id]
        if slot is not None and offer.revision < slot.revision:
            return self._regression(offer, slot)
        if slot is not None and slot.outcome is not None and is_done(slot, offer):
            return slot.outcome
        attempt = Attempt(offer=offer, slot=begun(offer, slot))
        try:
            if offer.action is OfferAction.CLOSE or self._planner.nothing_to_restore(offer, attempt.slot):
                return await self._close(attempt)
            contents = await self._contents(offer, attempt)
            plan = await blocking(lambda: self._planner.plan(offer, attempt.slot, contents))
            attempt.step = Step.ALLOWED
            plan = await self._staged(plan, attempt, offer)
        except Refused as refused:
            return await self._refuse(attempt, refused.reason)
        return await self._swap(plan, attempt)

    def would_write(self, offer: Offer) -> bool:
        """Whether `apply` would touch files, as far as the offer itself tells."""
        slot = self.slots.get(offer.slot_id)
        done = slot is not None and (offer.revision < slot.revision or is_done(slot, offer))
        return offer.action is not OfferAction.CLOSE and not done

    async def put_off(self, offer: Offer, reason: Reason) -> Outcome:
        """The outcome of an offer that was not attempted: attempt 0. The slot does not take it up."""
        slot = replace(begun(offer, self.slots.get(offer.slot_id)), attempt=0)
        files = await blocking(lambda: self._file_outcomes(Attempt(offer=offer, slot=slot), None))
        return replace(refused_unseen(offer, reason, now=self._clock.now()), attempt=0, files=files)

    async def give_back(self, slot: Slot) -> Reason | None:
        """The slot is restored and closed by the host's own decision, or as it was; why it is not restored."""
        if slot.intends:
            message = "an interrupted apply has to end first; is the root mounted?"
            return Reason(code=ReasonCode.IO_ERROR, message=message)
        outcome = await self.apply(
            Offer(
                deployment_id=b"",
                participant=slot.participant,
                slot_id=slot.slot_id,
                revision=slot.revision,
                action=OfferAction.RESTORE,
                files=(),
            )
        )
        # Nobody offered this, so the outcome of what was offered is still the last one.
        after = replace(self.slots[slot.slot_id], outcome=slot.outcome, unacknowledged=slot.unacknowledged)
        if outcome.result is Result.REFUSED:
            after = replace(
                after, action=slot.action, attempt=slot.attempt, step=slot.step, result=slot.result
            )
        await blocking(lambda: self.save(after))
        return None if outcome.result.holds else outcome.reason

    async def _close(self, attempt: Attempt) -> Outcome:
        attempt.step = Step.SWAPPED
        closed = replace(attempt.slot, closed=True, result=Result.APPLIED)
        self.slots[closed.slot_id] = closed
        for file in closed.files:
            await self.views.look(file, from_at=self._clock.now())
        return await self._end(closed, attempt)

    async def loaded(self, receipt: Loaded) -> list[Outcome]:
        """The receipt is on record with the slot that holds the file; an outcome where all the slot is loaded now."""
        outcomes = []
        for slot, file in self.held():
            if file.path != receipt.path or slot.intends:
                continue
            after = attempts.loaded(slot, receipt)
            if after == slot:
                continue
            if attempts.is_loaded(after) and not attempts.is_loaded(slot) and after.result.holds:
                attempt = Attempt(slot=after, step=Step.LOADED)
                outcomes.append(await self._end(after, attempt))
            elif attempts.loaded_digests(after) == attempts.loaded_digests(slot):
                self.slots[slot.slot_id] = after  # said again: not worth a write
            else:
                await blocking(lambda after=after: self.save(after))  # type: ignore[misc]
        return outcomes

    def _regression(self, offer: Offer, slot: Slot) -> Outcome:
        reason = Reason(
            code=ReasonCode.REGRESSION,
            message=f"revision {offer.revision} is below {slot.revision}, which this host has taken up",
            remedy="deploy again; a rollback is a new revision with the old content",
        )
        return refused_unseen(offer, reason, now=self._clock.now())

    async def _contents(self, offer: Offer, attempt: Attempt) -> dict[str, bytes]:
        """Every file's content, right by digest. Policy comes first: what is not allowed is never fetched."""
        if offer.action is OfferAction.RESTORE:
            for path in {file.path for file in offer.files} | {file.path for file in attempt.slot.files}:
                allow(self.config, path, size=None)
            return {}
        for file in offer.files:
            allow_offered(self.config, file)
        started = self._clock.monotonic()
        contents = {
            file.path: await content_of(file, config=self.config, fetch=self._fetch) for file in offer.files
        }
        attempt.took["fetch"] = self._clock.monotonic() - started
        attempt.step = Step.FETCHED
        return contents

    # -- before the intent: files untouched ------------------------------------------------------------

    async def _staged(self, plan: list[Planned], attempt: Attempt, offer: Offer) -> list[Planned]:
        """`plan` with every new content durable beside its target, and accepted by the host's check."""
        done: list[Planned] = []
        try:
            started = self._clock.monotonic()
            await blocking(lambda: self._swapper.stage(plan, done))
            attempt.took["write"] = self._clock.monotonic() - started
            attempt.step = Step.STAGED
            if self.config.check and offer.action is OfferAction.WRITE:
                started = self._clock.monotonic()
                for planned in done:
                    if planned.staged is not None:
                        await self._hooks.check(planned.staged)
                attempt.took["check"] = self._clock.monotonic() - started
            attempt.step = Step.CHECKED
        except BaseException:
            await blocking(lambda: self._swapper.discard(done))
            raise
        return done

    # -- from the intent on: every end is reachable from the journal -------------------------------------

    async def _swap(self, plan: list[Planned], attempt: Attempt) -> Outcome:
        started = self._clock.monotonic()
        intent = replace(
            attempt.slot,
            files=merged(attempt.slot, plan),
            step=Step.CHECKED,
            result=Result.IN_PROGRESS,
            reload_owed=bool(self.config.reload) and any(not is_unchanged(p.file) for p in plan),
        )
        try:
            intent = await blocking(lambda: self._swapper.intend(intent, plan))
            self.slots[intent.slot_id] = intent
        except Refused as refused:
            return await self._refuse(attempt, refused.reason)
        failure = await blocking(lambda: self._swapper.forward(intent))
        attempt.took["write"] = attempt.took.get("write", 0.0) + self._clock.monotonic() - started
        swapped_at = {planned.file.path: intent.swapped_at for planned in plan}
        return await self._conclude(intent, attempt, failure, swapped_at=swapped_at)

    async def _conclude(
        self, intent: Slot, attempt: Attempt, failure: Reason | None, *, swapped_at: dict[str, int]
    ) -> Outcome:
        """The reload hook ran where it is owed, or all is undone; the end is journalled."""
        swapped = failure is None
        if swapped:
            attempt.step = Step.SWAPPED
            # The journal follows with the final; in memory already, so that views say who holds the file.
            self.slots[intent.slot_id] = in_place(intent)
            await self._look_at(intent, swapped_at)
            failure = await self._reload(intent, attempt)
        if failure is None:
            return await self._end(replace(in_place(intent), result=Result.APPLIED), attempt, intent=intent)
        touched, stuck = await blocking(lambda: self._swapper.back(intent))
        there = await blocking(lambda: self._swapper.already_new(intent)) if stuck else []
        undone = put_back(intent, but=there, touched=touched)
        self.slots[intent.slot_id] = undone
        await self._look_at(intent, {})
        if swapped and intent.reload_owed:
            await self._hooks.reload()  # the application may hold what is gone
        result = Result.STUCK if stuck else Result.ROLLED_BACK if touched else Result.REFUSED
        return await self._end(
            replace(undone, result=result), attempt, intent=intent, reason=stuck or failure
        )

    async def _look_at(self, slot: Slot, swapped_at: dict[str, int]) -> None:
        for file in slot.files:
            if file.change is not None:
                await self.views.look(file, from_at=swapped_at.get(file.path, self._clock.now()))

    async def _reload(self, intent: Slot, attempt: Attempt) -> Reason | None:
        if not intent.reload_owed or not self.config.reload:
            return None
        attempt.step = Step.RELOAD_OWED
        started = self._clock.monotonic()
        failure = await self._hooks.reload()
        attempt.took["reload"] = self._clock.monotonic() - started
        if failure is None:
            attempt.step = Step.RELOADED
        return failure

    # -- ends ------------------------------------------------------------------------------------------

    async def recover(self) -> list[Outcome]:
        """What was begun before the last stop is finished, or undone where it cannot be."""
        if not await blocking(self.config.root.is_dir):
            return []  # not mounted yet, perhaps: what was begun there can wait
        for slot in tuple(self.slots.values()):
            if slot.reload_owed and not slot.intends:
                await self.repairer.reload(slot.slot_id)
        return [await self._recover(slot) for slot in tuple(self.slots.values()) if slot.intends]

    async def _recover(self, intent: Slot) -> Outcome:
        attempt = Attempt(slot=intent, step=Step.CHECKED)
        there = await blocking(lambda: self._swapper.already_new(intent))
        failure = await blocking(lambda: self._swapper.forward(intent))
        # A rename of this moment is as of now; one that the stop came after is as of the intent.
        swapped_at = {file.path: intent.swapped_at for file in there}
        return await self._conclude(intent, attempt, failure, swapped_at=swapped_at)

    async def _refuse(self, attempt: Attempt, reason: Reason) -> Outcome:
        return await self._end(replace(attempt.slot, result=Result.REFUSED), attempt, reason=reason)

    async def _end(
        self, slot: Slot, attempt: Attempt, *, intent: Slot | None = None, reason: Reason | None = None
    ) -> Outcome:
        """The attempt's outcome is journalled with the slot."""
        files = await blocking(lambda: self._file_outcomes(attempt, intent))
        outcome = Outcome(
            participant=slot.participant,
            slot_id=slot.slot_id,
            revision=slot.revision,
            attempt=slot.attempt,
            step=attempt.step,
            result=slot.result,
            files=files,
            occurred_at=self._clock.now(),
            reason=reason,
            durations=attempt.durations,
        )
        slot = replace(slot, step=attempt.step).ended(outcome)
        await blocking(lambda: self._save_all(slot, intent))
        _log.info(
            "apply.ended",
            participant=slot.participant,
            slot=slot.slot_id.hex(),
            revision=slot.revision,
            attempt=slot.attempt,
            result=slot.result,
            step=slot.step,
            reason=reason and reason.code,
        )
        return outcome

    def _save_all(self, slot: Slot, intent: Slot | None) -> None:
        if slot.action is OfferAction.RESTORE and slot.result.holds and intent is not None:
            for file in intent.files:
                later = successor(self.slots, slot, file)
                if file.applied is None or file.change is not None or later is None:
                    continue
                known = later[1].before
                # What somebody else had put there between the two slots is the baseline, and stays it.
                if known is None or known.digest == file.applied:
                    self.save(with_baseline(later[0], later[1], file.before))
        self.save(slot)

    def save(self, slot: Slot) -> None:
        """The slot is as given, durably, or else `unsaved`: then a restart begins from its intent."""
        self.slots[slot.slot_id] = slot
        try:
            self._journal.save(slot)
        except OSError as error:
            self.unsaved.add(slot.slot_id)
            _log.error("journal.unwritable", participant=slot.participant, error=error.strerror)
        else:
            self.unsaved.discard(slot.slot_id)

    def _file_outcomes(self, attempt: Attempt, intent: Slot | None) -> tuple[FileOutcome, ...]:
        if attempt.step is Step.LOADED:
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
            allow(self.config, path, size=None)
            return self.workspace.digest(self.workspace.locate(path))
        except Refused:
            return None
