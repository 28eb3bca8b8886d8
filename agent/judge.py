"""What one participant's host would say of content, found out by the very steps that an apply takes.

Policy, planning, staging beside the target and the host's check decide, as they would for an offer; then the
staged content is gone again. No target is touched, no slot and no journal knows of it.
"""

import asyncio

from agent.config import ParticipantConfig
from agent.contents import Fetch, Unfetched, allow_offered, content_of
from agent.files import Staged, Workspace
from agent.hooks import Hooks
from agent.plan import Planner
from agent.slots import Slot
from agent.threads import blocking
from agent.trials import Trials
from shared.ids import NewId
from shared.model import Offer, OfferAction, OfferedFile, Result, Step

_NOBODYS = bytes(16)


class Unjudged(Exception):
    """No verdict can be had now, which says nothing of the content."""


class Judge:
    """Judges content for one participant, file by file."""

    def __init__(
        self,
        *,
        config: ParticipantConfig,
        workspace: Workspace,
        planner: Planner,
        hooks: Hooks,
        trials: Trials,
        fetch: Fetch,
        new_id: NewId,
    ) -> None:
        self._config, self._workspace, self._planner = config, workspace, planner
        self._hooks, self._trials, self._fetch, self._new_id = hooks, trials, fetch, new_id

    async def content(self, file: OfferedFile) -> bytes:
        """The content, allowed by its path and size. Raises Refused; Unjudged where it did not come."""
        allow_offered(self._config, file)
        try:
            return await content_of(file, config=self._config, fetch=self._fetch)
        except Unfetched as failure:
            raise Unjudged from failure

    async def judge(self, file: OfferedFile, content: bytes) -> str:
        """The real file that this content would be written to. Raises Refused as an offer of it would.

        Staged and checked even where the file holds the content already: it may be written again later.
        Whoever calls makes sure that nothing else happens to the participant meanwhile.
        """
        offer = Offer(
            deployment_id=_NOBODYS,
            participant=self._config.id,
            slot_id=_NOBODYS,
            revision=0,
            action=OfferAction.WRITE,
            files=(file,),
        )
        slot = Slot(
            participant=self._config.id,
            slot_id=_NOBODYS,
            revision=0,
            attempt=0,
            action=OfferAction.WRITE,
            step=Step.RECEIVED,
            result=Result.REFUSED,
        )
        if not self._config.check:
            return await blocking(lambda: self._try(offer, slot, content))
        done: list[Staged] = []
        try:
            # Cancelled, it waits for the thread, whose answer goes nowhere: `done` knows what it left.
            real = await blocking(lambda: self._staged(offer, slot, content, done))
            try:
                await self._hooks.check(done[0])
            except asyncio.CancelledError:
                # A question that nobody asks any more says nothing of the check; one that ends the agent does.
                await blocking(lambda: self._trials.ended(done[0].digest))
                raise
        finally:
            if done:
                await blocking(lambda: self._workspace.discard(done[0]))
        return real

    def _staged(self, offer: Offer, slot: Slot, content: bytes, done: list[Staged]) -> str:
        [planned] = self._planner.plan(offer, slot, {offer.files[0].path: content})
        new, real = planned.new, planned.file.real
        assert new is not None
        done.append(self._workspace.stage(real, new, token=self._new_id().hex()))
        return real

    def _try(self, offer: Offer, slot: Slot, content: bytes) -> str:
        done: list[Staged] = []
        real = self._staged(offer, slot, content, done)
        self._workspace.discard(done[0])
        return real
