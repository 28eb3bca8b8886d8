"""Puts an agent together, runs it, stops it: the one place that starts things.

Nothing here needs a control plane: files are kept, drift is seen and reports are spooled without one, and
without ever having enrolled. Tests run the very same on port 0.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

from agent import identity as identities
from agent.admin import Admin, Answer
from agent.config import AgentConfig
from agent.distinct import check_distinct
from agent.durable import write_durably
from agent.health import Health
from agent.link import RECONNECT_JITTER, Link
from agent.local_api import LocalApi
from agent.opens import Opens
from agent.reconciler import Reconciler
from agent.reload import Reload
from agent.renewal import Renewal
from agent.room import SHARE
from agent.spool import Spool
from agent.status import Status
from agent.uplink import Uplink
from agent.watch import Watch
from shared import VERSION, logs
from shared.clock import Clock, SystemClock
from shared.errors import Invalid, Unavailable
from shared.ids import NewId, new_id, parse_id, system_random
from shared.lifecycle import run_until, sd_notify
from shared.model import Condition
from shared.moment import to_rfc3339

_log = logs.get(__name__)

ADDRESSES = "addresses.json"
JITTER_VARIABLE = "VARIANT_AGENT_RECONNECT_JITTER"


async def run(
    config: AgentConfig,
    state_dir: Path,
    stop: asyncio.Event,
    *,
    read: Callable[[], AgentConfig] | None = None,
    hangup: asyncio.Event | None = None,
    clock: Clock | None = None,
    new_id: NewId = new_id,
    random: Random | None = None,
) -> None:
    """Serves until `stop` is set; then everything accepted is on disk and the control plane was told.

    `state_dir`/addresses.json tells where the local API listens, from the moment it does. `read` gives the
    configuration anew for a reload, which setting `hangup` asks for too. Raises one of
    shared.errors where the agent cannot start; a state directory serves one process at a time.
    """
    with identities.hold(state_dir):
        addresses = state_dir / ADDRESSES
        addresses.unlink(missing_ok=True)
        await asyncio.to_thread(check_distinct, config)
        try:
            agent = _Agent(
                config,
                state_dir,
                read=read,
                clock=clock or SystemClock(),
                new_id=new_id,
                random=random or system_random(),
            )
        except OSError as error:
            raise Unavailable(f"{error.filename or state_dir}: {error.strerror}") from None
        try:
            listening = await agent.start()
            _tell(addresses, listening)
            sd_notify("READY=1")
            _log.info("agent.ready", version=VERSION, participants=len(config.participants), **listening)
            await agent.serve(stop, hangup or asyncio.Event())
        finally:
            sd_notify("STOPPING=1")
            addresses.unlink(missing_ok=True)
            await agent.stop()
            _log.info("agent.stopped")


def _tell(addresses: Path, listening: dict[str, str]) -> None:
    try:
        write_durably(addresses, json.dumps(listening).encode())
    except OSError as error:  # a full disk; whoever knows where to look can still ask
        _log.error("agent.addresses_not_written", error=error.strerror, **listening)


class _Agent:
    """The parts of one agent, wired."""

    def __init__(
        self,
        config: AgentConfig,
        state_dir: Path,
        *,
        read: Callable[[], AgentConfig] | None,
        clock: Clock,
        new_id: NewId,
        random: Random,
    ) -> None:
        self._clock = clock
        self._started = False
        self._left = asyncio.Event()
        self._spool = Spool(state_dir / "spool", clock=clock, new_id=new_id, when_full=config.spool_full)
        self._share(config)
        try:
            self._reconciler = Reconciler(
                config=config,
                state_dir=state_dir,
                clock=clock,
                new_id=new_id,
                record_view=self._spool.record,
                fetch=lambda digest, size: self._link.calls.fetch(digest, size),
                on_outcome=lambda outcome: self._link.outcome(outcome),
                on_change=lambda: self._watch.changed(),
            )
            self._opens = Opens(
                config=config,
                append=self._spool.append_all,
                holding=self._reconciler.view_of,
                alive=state_dir / "opens",
                clock=clock,
            )
            self._watch = Watch(reconciler=self._reconciler, clock=clock, opens=self._opens)
            self._link = Link(
                config=config,
                state_dir=state_dir,
                reconciler=self._reconciler,
                spool=self._spool.state,
                clock=clock,
                random=random,
                observed=self._conditions,
                reconnect_jitter=reconnect_jitter(),
            )
            self._renewal = Renewal(link=self._link, state_dir=state_dir, clock=clock, random=random)
            self._uplink = Uplink(
                spool=self._spool,
                report=self._link.calls.report,
                clock=clock,
                random=random,
                limits=lambda: self._link.limits,
            )
            self._health = Health(
                sources=(
                    self._spool.conditions,
                    self._reconciler.conditions,
                    self._watch.conditions,
                    self._link.conditions,
                    self._renewal.conditions,
                    self._uplink.conditions,
                    lambda: self._reload.conditions(),
                ),
                checks={
                    "started": lambda: self._started,
                    "spool_writable": lambda: self._spool.writable,
                    "slots_reconciled": self._reconciler.settled,
                },
            )
            status = Status(
                config=config,
                health=self._health,
                link=self._link,
                reconciler=self._reconciler,
                spool=self._spool,
                uplink=self._uplink,
                opens=self._opens,
                clock=clock,
            )
            self._api = LocalApi(
                config=config,
                spool=self._spool,
                reconciler=self._reconciler,
                status=status.show,
                metrics=status.metrics,
                unready=self._health.unready,
                admin=Admin(
                    hold=self._hold,
                    release=self._release,
                    reload=lambda: self._reload.reload(),
                    leave=self._leave,
                    adopt=self._adopt,
                ).routes(),
                clock=clock,
                new_id=new_id,
            )
            status.api = self._api
            self._reload = Reload(
                config=config,
                read=read,
                reconciler=self._reconciler,
                api=self._api,
                told=(status.reconfigure, self._link.reconfigure, self._share, self._count_opens),
                clock=clock,
            )
        except BaseException:
            self._spool.close()
            raise

    def _share(self, config: AgentConfig) -> None:
        """None of several participants can keep the others' reports out of the spool."""
        self._spool.room.share = SHARE if len(config.participants) > 1 else 1.0
        if len(config.participants) < 2:
            self._spool.room.clear()

    def _count_opens(self, config: AgentConfig) -> None:
        self._opens.reconfigure(config)
        self._watch.changed()

    async def _hold(self) -> Answer:
        await _durably(self._reconciler.hold())
        since = self._reconciler.held_since
        waiting = self._reconciler.waiting
        return {"held": True, "sinceAt": to_rfc3339(since) if since else None, "waitingOffers": waiting}

    async def _release(self) -> Answer:
        waiting = self._reconciler.waiting
        await _durably(self._reconciler.release())
        return {"held": False, "sinceAt": None, "waitingOffers": waiting}

    async def _leave(self, *, restore: bool) -> Answer:
        """The host is on hold and, unless something could not be restored, the agent stops."""
        await _durably(self._reconciler.hold())
        faults = await self._reconciler.give_back() if restore else []
        remaining = await self._reconciler.remaining()
        if not faults:
            self._left.set()
        return {"leaves": not faults, "faults": faults, "remaining": remaining}

    async def _adopt(self, incarnation: str) -> Answer:
        """The incarnation of that id is followed; without one, nothing but what is proposed is said."""
        if not incarnation:
            proposal = self._link.proposal
            return {"adopted": False, "proposal": proposal.show() if proposal else None}
        try:
            proposal = await self._link.adopt(parse_id(incarnation) or b"")
        except OSError as error:
            raise Unavailable(f"{error.filename or 'the state directory'}: {error.strerror}") from None
        return {"adopted": True, "proposal": proposal.show()}

    def _conditions(self) -> tuple[Condition, ...]:
        return self._health.conditions()

    async def start(self) -> dict[str, str]:
        """What an earlier run left is in order, the local API listens; where."""
        await self._reconciler.start()
        listening = await self._api.start()
        self._started = True
        return listening

    async def serve(self, stop: asyncio.Event, hangup: asyncio.Event) -> None:
        """Runs every part until `stop` is set or one fails; reloads whenever `hangup` is set."""
        await run_until(
            stop,
            lambda: self._set_when_left(stop),
            self._reconciler.run,
            self._watch.run,
            self._link.run,
            self._renewal.run,
            self._uplink.run,
            self._reconciler.keep_up,
            self._feed_watchdog,
            lambda: self._reload.on(hangup),
        )

    async def _set_when_left(self, stop: asyncio.Event) -> None:
        await self._left.wait()
        stop.set()

    async def stop(self) -> None:
        """Requests under way were answered, the spool is closed."""
        await self._api.stop()
        await asyncio.to_thread(self._spool.close)

    async def _feed_watchdog(self) -> None:
        """systemd hears from this event loop twice as often as it asks to."""
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        if not microseconds.isdecimal():
            return
        while True:
            sd_notify("WATCHDOG=1")
            await self._clock.sleep(int(microseconds) / 2_000_000)


async def _durably(work: Awaitable[None]) -> None:
    try:
        await work
    except OSError as error:
        raise Unavailable(f"{error.filename or 'the state directory'}: {error.strerror}") from None


def reconnect_jitter() -> float:
    """Seconds within which the first attempt after a lost session falls: VARIANT_AGENT_RECONNECT_JITTER.

    10 by default, which spares a control plane whose whole fleet lost it at once; one of thousands asks for more by
    itself. Raises Invalid.
    """
    text = os.environ.get(JITTER_VARIABLE, "")
    try:
        seconds = float(text) if text else RECONNECT_JITTER
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= 3600.0:
        raise Invalid(
            f"{JITTER_VARIABLE}={text!r} is not a number of seconds from 0 to 3600", reason="BAD_CONFIG"
        )
    return seconds
