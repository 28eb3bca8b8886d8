"""The apply machine of one participant: an offer becomes what is on disk, or a reason why not.

received → fetched → allowed → staged → checked → intent journalled → swapped → reloaded → final journalled.
Before the intent, a failure leaves every file untouched. From the intent on, every end is reachable from the
journal alone, so a restart finishes what was begun or undoes it; each file is one whole version throughout.
Whoever calls makes sure that one thing at a time happens to a participant.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from agent.attempts import (
    Attempt,
    begun,
    is_done,
    merged,
    refused_unseen,
    suspects,
)
from agent.config import ParticipantConfig
from agent.contents import Fetch, allow_offered, content_of
from agent.endings import Endings
from agent.failures import (
    forgiven,
    refuse_condemned,
)
from agent.files import Workspace
from agent.hooks import Hooks
from agent.journal import Journal
from agent.judge import Judge
from agent.plan import Planned, Planner, held
from agent.policy import Refused, allow
from agent.progress import Progress
from agent.repair import Repairer
from agent.slots import Slot, SlotFile
from agent.swap import Swapper, is_unchanged
from agent.threads import blocking
from agent.trials import Trials
from agent.views import Views
from shared.clock import Clock
from shared.ids import NewId
from shared.logs import get
from shared.model import (
    Digest,
    DriftPolicy,
    Offer,
    OfferAction,
    Outcome,
    Reason,
    ReasonCode,
    Result,
    Step,
    View,
    ViewState,
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
        record_view: Callable[[View], object],
        progress: Progress,
        output: Path,
        checks: Path,
    ) -> None:
        self.config = config
        self.slots = slots
        self.workspace = Workspace(config.root, follow_symlinks=config.follow_symlinks)
        self.views = Views(config=config, slots=slots, workspace=self.workspace, record_view=record_view)
        self._trials = Trials(checks / f"{config.id}.json")
        self._hooks = Hooks(config=config, clock=clock, output=output, trials=self._trials)
        self._swapper = Swapper(
            workspace=self.workspace,
            keep_new=config.drift is DriftPolicy.REPAIR,
            journal=journal,
            clock=clock,
            new_id=new_id,
        )
        self.endings = Endings(
            config=config,
            slots=slots,
            workspace=self.workspace,
            journal=journal,
            views=self.views,
            hooks=self._hooks,
            swapper=self._swapper,
            clock=clock,
        )
        self.repairer = Repairer(
            config=config,
            slots=slots,
            workspace=self.workspace,
            journal=journal,
            views=self.views,
            hooks=self._hooks,
            save=self.endings.save,
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
        self.judge = Judge(
            config=config,
            workspace=self.workspace,
            planner=self._planner,
            hooks=self._hooks,
            trials=self._trials,
            fetch=fetch,
            new_id=new_id,
        )
        self._clock = clock
        self._fetch, self._progress = fetch, progress

    # -- what is known -------------------------------------------------------------------------------

    def held(self) -> list[tuple[Slot, SlotFile]]:
        """Every target that an open slot holds."""
        return held(self.slots)

    def swept(self) -> int:
        """Temporary files of an interrupted apply are gone, and how many there were; every target was looked at.

        Blocks.
        """
        leftovers = self.workspace.sweep(self.config.targets)
        for _, file in self.held():
            self.views.look(file, from_at=self._clock.now())
        return leftovers

    async def look(self, file: SlotFile) -> ViewState:
        """How the file stands now; recorded as a view, where that is news."""
        return await blocking(lambda: self.views.look(file, from_at=self._clock.now()))

    def go_on_from(self, other: "Applier") -> None:
        """What was seen and is still owed under other rules of the same participant is so under these."""
        self.views.seen, self.views.owed = other.views.seen, other.views.owed
        self.endings.unsaved = other.endings.unsaved

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
            await self.endings.recover(slot)
            slot = self.slots[offer.slot_id]
        if slot is not None and offer.revision < slot.revision:
            return self._regression(offer, slot)
        if slot is not None and slot.outcome is not None and is_done(slot, offer):
            return slot.outcome
        if offer.retry:
            await self.forgive([(file.path, file.digest) for file in offer.files])
            slot = self.slots.get(offer.slot_id)
        attempt = Attempt(offer=offer, slot=begun(offer, slot))
        with self._progress.of(attempt):
            return await self._attempt(offer, attempt)

    async def _attempt(self, offer: Offer, attempt: Attempt) -> Outcome:
        try:
            if offer.action is OfferAction.CLOSE or self._planner.nothing_to_restore(offer, attempt.slot):
                return await self._close(attempt)
            contents = await self._contents(offer, attempt)
            plan = await blocking(lambda: self._planner.plan(offer, attempt.slot, contents))
            attempt.step = Step.ALLOWED
            plan = await self._staged(plan, attempt, offer)
        except Refused as refused:
            return await self.endings.refuse(attempt, refused)
        return await self._swap(plan, attempt)

    async def forgive(self, pairs: list[tuple[str, Digest | None]] | None = None) -> None:
        """These (path, digest) are quarantined no longer; None: nothing is. Durable."""
        contents = None if pairs is None else {content for _, content in pairs if content is not None}
        await blocking(lambda: self._trials.forgive(contents))
        for slot in list(self.slots.values()):
            after = forgiven(slot, pairs)
            if after != slot:
                await blocking(lambda after=after: self.endings.save(after))  # type: ignore[misc]

    def would_write(self, offer: Offer) -> bool:
        """Whether `apply` would touch files, as far as the offer itself tells."""
        slot = self.slots.get(offer.slot_id)
        done = slot is not None and (offer.revision < slot.revision or is_done(slot, offer))
        return offer.action is not OfferAction.CLOSE and not done

    async def put_off(self, offer: Offer, reason: Reason) -> Outcome:
        """The outcome of an offer that was not attempted: attempt 0. The slot does not take it up."""
        slot = replace(begun(offer, self.slots.get(offer.slot_id)), attempt=0)
        files = await blocking(lambda: self.endings.file_outcomes(Attempt(offer=offer, slot=slot), None))
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
        if outcome.result in (Result.REFUSED, Result.IN_PROGRESS):
            after = replace(
                after,
                action=slot.action,
                attempt=slot.attempt,
                step=slot.step,
                result=slot.result,
                retrying=slot.retrying,
            )
        await blocking(lambda: self.endings.save(after))
        return None if outcome.result.holds else outcome.reason

    async def _close(self, attempt: Attempt) -> Outcome:
        attempt.step = Step.SWAPPED
        closed = replace(attempt.slot, closed=True, result=Result.APPLIED, probation=None)

        def close() -> Outcome:
            self.slots[closed.slot_id] = closed
            for file in closed.files:
                self.views.look(file, from_at=self._clock.now())
            return self.endings.ended(closed, attempt)

        return await blocking(close)

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
            refuse_condemned(self.slots.values(), file.path, file.digest)
            attempt.suspects = [(file.path, file.digest)] if file.path and file.digest else []
            allow_offered(self.config, file)
        started = self._clock.monotonic()
        contents = {}
        for file in offer.files:
            attempt.suspects = [(file.path, file.digest)] if file.digest else []
            contents[file.path] = await content_of(file, config=self.config, fetch=self._fetch)
        attempt.suspects = []
        attempt.took["fetch"] = self._clock.monotonic() - started
        attempt.step = Step.FETCHED
        return contents

    # -- before the intent: files untouched ------------------------------------------------------------

    async def _staged(self, plan: list[Planned], attempt: Attempt, offer: Offer) -> list[Planned]:
        """`plan` with every new content durable beside its target, and accepted by the host's check."""
        done: list[Planned] = []
        try:
            started = self._clock.monotonic()
            # At the same time: both wait for a disk, twice and once.
            keeping = asyncio.ensure_future(blocking(lambda: self._swapper.keep(plan)))
            try:
                await blocking(lambda: self._swapper.stage(plan, done))
            finally:
                await keeping
            attempt.took["write"] = self._clock.monotonic() - started
            attempt.step = Step.STAGED
            if self.config.check and offer.action is OfferAction.WRITE:
                started = self._clock.monotonic()
                for planned in done:
                    if planned.staged is not None:
                        attempt.suspects = suspects([planned.file])
                        await self._hooks.check(planned.staged)
                attempt.took["check"] = self._clock.monotonic() - started
            attempt.step = Step.CHECKED
        except BaseException:
            await blocking(lambda: self._swapper.discard(done))
            raise
        return done

    # -- from the intent on: every end is reachable from the journal -------------------------------------

    async def _swap(self, plan: list[Planned], attempt: Attempt) -> Outcome:
        intent = replace(
            attempt.slot,
            files=merged(attempt.slot, plan),
            step=Step.CHECKED,
            result=Result.IN_PROGRESS,
            reload_owed=bool(self.config.reload) and any(not is_unchanged(p.file) for p in plan),
            resumed=0,
        )
        attempt.suspects = suspects(planned.file for planned in plan)

        def intend() -> tuple[Slot, dict[str, int]]:
            on_record = self._swapper.intend(intent, plan)
            return on_record, {planned.file.path: on_record.swapped_at for planned in plan}

        try:
            return await self.endings.bring_about(attempt, intend)
        except Refused as refused:
            return await self.endings.refuse(attempt, refused)

    async def recover(self) -> list[Outcome]:
        """What was begun before the last stop is finished, or undone where it cannot be."""
        if not await blocking(lambda: os.path.isdir(self.config.root)):  # noqa: PTH112 - a Path's raises
            return []  # not mounted yet, perhaps, or closed to us: what was begun there can wait
        for slot in list(self.slots.values()):
            if slot.reload_owed and not slot.intends:
                await self.repairer.reload(slot.slot_id)
        return [await self.endings.recover(slot) for slot in list(self.slots.values()) if slot.intends]
