"""Brings every slot to its newest offer and knows, at any moment, what each one holds.

The door to the host half of the agent: hides queues, threads, the apply machines and the journal behind
offers in, outcomes and views out. One thing at a time happens to a participant, so there is one writer per
slot and per target; participants do not wait for one another.
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from agent.apply import Applier
from agent.attempts import refused_unseen
from agent.config import AgentConfig
from agent.contents import Fetch
from agent.hold import Hold
from agent.journal import Journal
from agent.judge import Unjudged
from agent.policy import Refused, unknown_participant
from agent.progress import Progress
from agent.retries import Retries
from agent.slots import Slot
from agent.standing import WARNINGS, Holding, holding_of, slot_states, wrong_with
from agent.threads import blocking
from agent.windows import Windows
from shared.clock import Clock
from shared.ids import NewId
from shared.logs import get
from shared.model import (
    Condition,
    Loaded,
    Offer,
    OfferedFile,
    Outcome,
    OutcomeKey,
    Reason,
    ReasonCode,
    Result,
    SlotState,
    View,
    show_digest,
)

MAX_QUEUED = 16_384
MAX_INLINE_WAITING = (
    8 * 1_048_576
)  # bytes of content that waits for its turn; the longer the queue, the less each
"""Offers waiting; one more is dropped, as a lost message costs time and never correctness."""

MAX_UNJOURNALLED = 4_096
"""Outcomes kept that belong to no journal; beyond that the oldest go."""

CATCH_UP_SECONDS = 5.0
PARALLEL = 8
"""Participants worked on at once."""

_log = get(__name__)


class Reconciler:
    """Applies offers to the participants of `config`; keeps its journal in `state_dir`/journal.

    As many at once as `limit` lets in, or PARALLEL.
    """

    def __init__(
        self,
        *,
        config: AgentConfig,
        state_dir: Path,
        clock: Clock,
        new_id: NewId,
        record_view: Callable[[View], object],
        fetch: Fetch,
        on_outcome: Callable[[Outcome], None],
        on_change: Callable[[], None],
        limit: asyncio.Semaphore | None = None,
    ) -> None:
        self._clock, self._on_outcome, self._on_change = clock, on_outcome, on_change
        self._limit = limit or asyncio.Semaphore(PARALLEL)
        self._journal = Journal(state_dir / "journal")
        self._hold = Hold(state_dir, now=clock.now())
        self._put_off: dict[tuple[str, bytes], Offer] = {}
        self._known: defaultdict[str, dict[bytes, Slot]] = defaultdict(dict)
        self._progress = Progress(clock=clock, tell=on_outcome)
        self._make = partial(
            Applier,
            journal=self._journal,
            clock=clock,
            new_id=new_id,
            fetch=fetch,
            record_view=record_view,
            progress=self._progress,
            output=state_dir / "output",
            checks=state_dir / "checks",
        )
        self._appliers: dict[str, Applier] = {
            one.id: self._make(config=one, slots=self._known[one.id]) for one in config.participants
        }
        self._former: dict[str, Applier] = {}  # that still owe something
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._queued: defaultdict[str, dict[bytes, Offer]] = defaultdict(dict)
        self._receipts: defaultdict[str, dict[str, Loaded]] = defaultdict(dict)
        self._acknowledged: defaultdict[str, list[OutcomeKey]] = defaultdict(list)
        self._unjournalled: OrderedDict[OutcomeKey, Outcome] = OrderedDict()
        self._busy: set[str] = set()
        self._applying: set[str] = set()
        self._pending: set[str] = set()
        self._waiting = 0
        self._since: dict[tuple[str, str], int] = {}
        self._wake = asyncio.Event()
        self._retries = Retries(clock=clock, again=self.offer)
        self._windows = Windows(
            appliers=lambda: self._appliers,
            locks=self._locks,
            held=lambda: self._hold.since is not None,
            report=self._window_ended,
            clock=clock,
        )

    # -- life ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """What an earlier run began is finished or undone, leftovers are gone, open slots have a first view."""
        slots = await blocking(lambda: self._journal.load(now=self._clock.now()))
        for (participant, slot_id), slot in slots.items():
            self._known[participant][slot_id] = slot
        limit = asyncio.Semaphore(PARALLEL)

        async def take_up(applier: Applier) -> None:
            async with limit:
                await self._take_up(applier)

        # Together: what each makes durable, its first views above all, shares the spool's fsyncs.
        await asyncio.gather(*(take_up(applier) for applier in self._appliers.values()))
        self._on_change()

    async def _take_up(self, applier: Applier) -> None:
        for outcome in await applier.recover():
            self._on_outcome(outcome)
        swept = await blocking(applier.swept)
        if swept:
            _log.info("apply.swept", participant=applier.config.id, files=swept)

    async def reconfigure(self, config: AgentConfig) -> None:
        """The participants are those of `config`, each by its present rules; what is being applied ends first.

        A participant that is no longer there is left as it is, files and journal; one that comes back goes
        on from there. What was offered to it and not begun is refused. Nothing is in quarantine any more.
        """
        wanted = {participant.id: participant for participant in config.participants}
        for name in wanted.keys() | self._appliers.keys():
            async with self._locks[name]:
                known = self._appliers.get(name)
                if name not in wanted:
                    del self._appliers[name]
                    await blocking(lambda gone=known: self._save_acknowledged_of(gone))  # type: ignore[misc]
                    self._refuse_queued(name)
                    if known is not None and (known.views.owed or known.endings.unsaved):
                        self._former[name] = known
                elif known is None or known.config != wanted[name]:
                    fresh = self._make(config=wanted[name], slots=self._known[name])
                    if (before := known or self._former.pop(name, None)) is not None:
                        fresh.go_on_from(before)
                    await self._take_up(fresh)
                    self._appliers[name] = fresh
                if name in wanted:
                    await self._appliers[name].forgive()
        self._appliers = {name: self._appliers[name] for name in wanted}
        self._windows.look()
        self._on_change()

    def _refuse_queued(self, participant: str) -> None:
        queued = self._queued[participant]
        self._waiting -= len(queued)
        for offer in (*queued.values(), *self._put_off.values(), *self._retries.taken_from(participant)):
            if offer.participant == participant:
                self._put_off.pop((participant, offer.slot_id), None)
                self._refuse_unknown(offer)
        queued.clear()

    async def run(self) -> None:
        """Applies what is offered until cancelled; what is half done then is finished by the next `start`."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._retries.run())
                group.create_task(self._windows.run())
                group.create_task(self._progress.run())
                while True:
                    self._wake.clear()
                    for participant in self._pending - self._busy:
                        self._busy.add(participant)
                        group.create_task(self._serve(participant))
                    self._pending &= self._busy
                    await self._wake.wait()
        finally:
            await blocking(self._save_acknowledged)

    async def _serve(self, participant: str) -> None:
        queued = self._queued[participant]
        try:
            async with self._limit:
                self._pending.discard(participant)
                await self._take_receipts(participant)
                while queued:
                    async with self._locks[participant]:
                        if queued:  # a reconfiguration may have emptied it meanwhile
                            self._waiting -= 1
                            offer = queued.pop(next(iter(queued)))
                            await self._apply(self._appliers[participant], offer)
                async with self._locks[participant]:
                    applier = self._appliers.get(participant)
                    if self._acknowledged[participant] or (applier and applier.endings.unsaved):
                        await blocking(lambda: self._save_acknowledged_of(applier))
        finally:
            self._busy.discard(participant)
            self._wake.set()

    async def _take_receipts(self, participant: str) -> None:
        receipts = self._receipts[participant]
        async with self._locks[participant]:
            while receipts:
                receipt = receipts.pop(next(iter(receipts)))
                if participant in self._appliers:
                    for outcome in await self._appliers[participant].endings.loaded(receipt):
                        self._report(outcome, journalled=True)

    async def _apply(self, applier: Applier, offer: Offer) -> None:
        before = applier.slots.get(offer.slot_id)
        if self._hold.since is not None and applier.would_write(offer):
            self._put_off[offer.participant, offer.slot_id] = offer
            self._report(await applier.put_off(offer, _held().reason), journalled=False)
            return
        self._put_off.pop((offer.participant, offer.slot_id), None)
        self._applying.add(offer.participant)
        try:
            outcome = await applier.apply(offer)
        finally:
            self._applying.discard(offer.participant)
        slot = applier.slots.get(offer.slot_id)
        self._report(outcome, journalled=slot is not None and slot.outcome is outcome)
        if outcome.result is Result.IN_PROGRESS:
            self._retries.put(offer, attempt=outcome.attempt)
        if slot is not None and slot.probation is not None:
            self._windows.look()
        if _watch(before) != _watch(slot):
            self._on_change()

    def _window_ended(self, outcome: Outcome) -> None:
        self._report(outcome, journalled=True)
        self._on_change()

    def _report(self, outcome: Outcome, *, journalled: bool) -> None:
        if not journalled and outcome.result is not Result.IN_PROGRESS:
            self._unjournalled[outcome.key] = outcome
            while len(self._unjournalled) > MAX_UNJOURNALLED:
                self._unjournalled.popitem(last=False)
        self._on_outcome(outcome)

    # -- offers and outcomes -------------------------------------------------------------------------

    def offer(self, offer: Offer) -> None:
        """`offer` will be applied, unless a newer one for its slot comes first; never waits."""
        if offer.participant not in self._appliers:
            self._refuse_unknown(offer)
            return
        if self._retries.waits(offer):
            return
        self._retries.drop(offer.participant, offer.slot_id)
        queued = self._queued[offer.participant]
        older = queued.get(offer.slot_id)
        if older is not None and older.revision != offer.revision:
            older, offer = sorted((older, offer), key=lambda one: one.revision)
            self._report(
                refused_unseen(older, _superseded(older, offer), now=self._clock.now()), journalled=False
            )
        elif older is None and self._waiting >= MAX_QUEUED:
            _log.warning("apply.queue_full", participant=offer.participant, slot=offer.slot_id.hex())
            return
        queued_before = offer.slot_id in queued
        queued[offer.slot_id] = _kept(offer, room=MAX_INLINE_WAITING // (self._waiting + 1))
        self._waiting += not queued_before
        self._pending.add(offer.participant)
        self._wake.set()

    def _refuse_unknown(self, offer: Offer) -> None:
        reason = unknown_participant(offer.participant).reason
        self._report(refused_unseen(offer, reason, now=self._clock.now()), journalled=False)

    def loaded(self, receipt: Loaded) -> None:
        """What the application says it works with will be on record with its slot; never waits.

        The fact itself goes to the control plane by the spool, whatever the slot holds.
        """
        self._receipts[receipt.participant][receipt.path] = receipt
        self._pending.add(receipt.participant)
        self._wake.set()

    def unacknowledged(self) -> tuple[Outcome, ...]:
        """Every outcome the control plane has not acknowledged, oldest first within a slot."""
        acknowledged = {key for keys in self._acknowledged.values() for key in keys}
        journalled = (
            outcome
            for applier in self._appliers.values()
            for slot in list(applier.slots.values())
            for outcome in slot.unacknowledged
            if outcome.key not in acknowledged
        )
        return (*self._unjournalled.values(), *journalled)

    def acknowledged(self, key: OutcomeKey) -> None:
        """The outcome is not owed any more; `run` puts that on record soon. Idempotent.

        A stop before that, or a power cut soon after, sends the outcome once more, which changes nothing at the other
        end.
        """
        if self._unjournalled.pop(key, None) is None and key.participant in self._appliers:
            self._acknowledged[key.participant].append(key)
            self._pending.add(key.participant)
            self._wake.set()

    def _save_acknowledged(self) -> None:
        for applier in self._appliers.values():
            self._save_acknowledged_of(applier)

    def _save_owed_of(self, applier: Applier) -> None:
        applier.views.record_owed()
        self._save_acknowledged_of(applier)

    def _save_acknowledged_of(self, applier: Applier | None) -> None:
        """Acknowledgements are on record, and what could not be written before is durable."""
        if applier is None:
            return
        keys = self._acknowledged[applier.config.id]
        changed = {
            key.slot_id
            for key in keys
            if (slot := applier.slots.get(key.slot_id)) and slot.acknowledged(key) != slot
        }
        for slot_id in changed | applier.endings.unsaved:
            slot = applier.slots[slot_id]
            if slot.intends:
                continue  # the intent on disk is what a restart goes on from
            for key in keys:
                slot = slot.acknowledged(key) if key.slot_id == slot_id else slot
            (applier.endings.save if slot_id in applier.endings.unsaved else applier.endings.note)(slot)
        del keys[:]

    async def judge(self, participant: str, file: OfferedFile) -> str:
        """The real file that this content would go to; no target is touched and nothing is left on disk.

        Raises Refused as an offer of it would be refused; Unjudged where the content did not come, or the host,
        on hold, writes nothing.
        """
        applier = self._appliers.get(participant)
        if applier is None:
            raise unknown_participant(participant)
        content = await applier.judge.content(file)
        async with self._locks[participant]:
            applier = self._appliers.get(participant, applier)
            if self._hold.since is not None:
                raise Unjudged
            return await applier.judge.judge(file, content)

    def settled(self) -> bool:
        """No offer is waiting or being applied."""
        return not any(self._queued.values()) and not self._applying

    # -- the host's own hold -------------------------------------------------------------------------

    @property
    def held_since(self) -> int | None:
        """Microseconds; None where the host takes offers."""
        return self._hold.since

    @property
    def waiting(self) -> int:
        """Offers that wait for the end of the hold."""
        return len(self._put_off)

    async def hold(self) -> None:
        """Nothing is written any more, repairs included, until `release`, restarts included. Idempotent.

        What is being applied at this moment is finished. Offers are refused HELD meanwhile; CLOSE, which
        writes nothing, is taken. Raises OSError, and then nothing has changed.
        """
        await blocking(lambda: self._hold.begin(self._clock.now()))
        _log.warning("host.held")

    async def release(self) -> None:
        """The hold is over, durably; what was offered meanwhile is applied now. Idempotent; raises OSError."""
        await blocking(self._hold.end)
        put_off, self._put_off = self._put_off, {}
        _log.warning("host.released", offers=len(put_off))
        for offer in put_off.values():
            self.offer(offer)

    async def give_back(self) -> list[str]:
        """Every open slot's files are what they were before it, and it is closed; what could not be, and why.

        The control plane is told by views only: the deployments ended as they ended.
        """
        faults = []
        for name, applier in tuple(self._appliers.items()):
            async with self._locks[name]:
                for slot in list(applier.slots.values()):
                    if not slot.closed and any(file.applied is not None for file in slot.files):
                        reason = await applier.give_back(slot)
                        faults += [f"{name}: {reason.message}"] if reason else []
        self._on_change()
        return faults

    # -- what is on disk -----------------------------------------------------------------------------

    async def observed(self, participant: str, path: str) -> None:
        """What a target holds now is recorded as a view, where that changed, and repaired, where the host wants it.

        Call it whenever the file may have changed.
        """
        async with self._locks[participant]:
            applier = self._appliers.get(participant)
            for slot, file in applier.held() if applier else ():
                if file.path == path:
                    assert applier is not None
                    state = await applier.look(file)
                    if self._hold.since is None:
                        await applier.repairer.attend(slot, file, state)

    async def look_around(self) -> None:
        """As `observed` for every target; those that hold what they were last seen to hold cost a reading each.

        They are read together: a thread, a lock and a turn for each would cost several times what reading does.
        """
        held = [(name, one, *each) for name, one in self._appliers.items() for each in one.held()]
        present = await blocking(lambda: [one.views.digest_of(file) for _, one, _, file in held])
        for (name, one, slot, file), found in zip(held, present, strict=True):
            if not (one.views.is_as_seen(file, found) and one.repairer.is_done_with(slot, file)):
                await self.observed(name, file.path)

    async def keep_up(self) -> None:
        """What could not be written when it happened is tried again every few seconds, until cancelled."""
        while True:
            await self._clock.sleep(CATCH_UP_SECONDS)
            await self.catch_up()

    async def catch_up(self) -> None:
        """What could not be written when it happened, views and journals, is tried again."""
        for participant, applier in (*self._former.items(), *self._appliers.items()):
            if applier.views.owed or applier.endings.unsaved:
                async with self._locks[participant]:
                    await blocking(partial(self._save_owed_of, applier))
            elif self._former.get(participant) is applier:
                del self._former[participant]

    def watched(self) -> Mapping[tuple[str, str], Path]:
        """(participant, path) of every target an open slot holds → the absolute path of its real file."""
        return {
            (participant, file.path): applier.config.root / file.real
            for participant, applier in self._appliers.items()
            for _, file in applier.held()
        }

    def slots(self) -> tuple[SlotState, ...]:
        """Every slot on record, with digests as they are on disk this moment.

        Reads files; safe to call from a thread, which is where to call it from with many participants.
        """
        return slot_states(self._appliers)

    async def remaining(self) -> list[dict[str, object]]:
        """Every file that an open slot holds, as it is on disk now; ready for JSON."""
        for name, path in self.watched():
            await self.observed(name, path)
        return [
            {
                "participantId": name,
                "path": file.path,
                "state": view.state.value if view else None,
                "digest": show_digest(view.digest) if view else None,
            }
            for name, applier in self._appliers.items()
            for _, file in applier.held()
            for view in [applier.views.seen.get(file.path)]
        ]

    def view_of(self, participant: str, path: str) -> Holding | None:
        """What a target holds as last seen; None where no slot holds it."""
        applier = self._appliers.get(participant)
        queued = self._receipts[participant].get(path)
        return holding_of(applier, path, queued=queued) if applier else None

    @property
    def quarantined(self) -> int:
        """Contents that are not tried again by themselves, as their hosts found fault with them."""
        found = {
            (slot.participant, one.path, one.digest)
            for applier in self._appliers.values()
            for slot in list(applier.slots.values())
            for one in slot.quarantined
        }
        return len(found)

    # -- how it goes ---------------------------------------------------------------------------------

    def conditions(self) -> tuple[Condition, ...]:
        """What is wrong with journals and slots, each since it was first asked about."""
        wrong = dict.fromkeys(wrong_with(self._appliers, known=self._known, applying=self._applying))
        self._since = {one: self._since.get(one, self._clock.now()) for one in wrong}
        return (
            *self._hold.conditions(),
            *self._journal.conditions(),
            *(
                Condition(
                    code=code,
                    severity="warning" if code in WARNINGS else "error",
                    since_at=since,
                    message=message,
                )
                for (code, message), since in self._since.items()
            ),
        )

    def status(self) -> list[dict[str, object]]:
        """Per slot: where it stands and what its files hold as last seen; ready for JSON."""
        return [
            applier.views.show(slot)
            for applier in self._appliers.values()
            for slot in list(applier.slots.values())
        ]


def _watch(slot: Slot | None) -> object:
    return None if slot is None or slot.closed else [(file.real, file.applied is None) for file in slot.files]


def _kept(offer: Offer, *, room: int) -> Offer:
    """The offer as it waits: with content that has no room, which is fetched when it is its turn."""
    if sum(len(file.content or b"") for file in offer.files) <= room:
        return offer
    return replace(offer, files=tuple(replace(file, content=None) for file in offer.files))


def _held() -> Refused:
    return Refused(
        ReasonCode.HELD,
        "this host is on hold: nothing is written until its administrator ends that",
        "wait, or run `variant-agent hold off` on the host; the offer is applied then",
    )


def _superseded(older: Offer, newer: Offer) -> Reason:
    return Refused(
        ReasonCode.SUPERSEDED,
        f"revision {older.revision} was not begun before revision {newer.revision} came",
        "nothing; the newer revision is applied",
    ).reason
