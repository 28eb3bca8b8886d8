"""Does what is due: one durable table, one runner, driven by the wall clock.

A timer is done in the very transaction that does what it stands for, so a crash repeats nothing and skips
nothing: what became due while the process was away is done, in order, when it is back. Of several replicas the one that
leads does it, and every transaction proves that it still does. A clock that jumps back
cannot repeat what is done, one that jumps forward brings what is due then.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from control_plane.domain import requests
from control_plane.services import lifecycle, looks, phases, recalculation
from control_plane.services.replicas import Fence, Fenced, Lead
from control_plane.services.timers import ACTOR, Kind
from control_plane.services.work import Caller, Scope, Services, Work
from control_plane.store.database import Tx
from control_plane.store.store import Store
from control_plane.store.timers import Timer
from shared import logs
from shared.clock import Clock
from shared.errors import Error
from shared.ids import show_id
from shared.moment import SECOND

_log = logs.get(__name__)

INTAKE_OVERLAP = 5 * SECOND
MOST_PUT_OFF = 8
"""Experiments whose timers cannot be done just now, in one turn, before the others wait as well."""
LOOK_SECONDS = 1.0
"""How often the table is looked at: so late is what another process or a changed clock makes due."""


_USE_CASES: Mapping[str, Callable[[Work, requests.ById], Any]] = {
    Kind.START: lifecycle.start,
    Kind.STOP: lifecycle.stop,
    Kind.SWITCH: lifecycle.switch,
    recalculation.KIND: recalculation.advance,
}


class _Done(Exception):
    """Somebody else did it in the meantime."""


class Timers:
    """Does what is due, as long as it runs and this process leads; every write of it is fenced."""

    def __init__(self, services: Services, clock: Clock, lead: Lead) -> None:
        self._services, self._clock, self._lead = services, clock, lead

    async def run(self) -> None:
        """Does whatever is due, looks again every second; ends only by being cancelled.

        What a database that is away does not take is still due, and done when it is back.
        """
        away = False
        while True:
            try:
                if (fence := self._lead.fence()) is not None:
                    await self._turn(fence)
                away = False
            except Fenced:
                self._lead.fenced()
            except Error as error:
                if not error.code.retryable:
                    raise
                if not away:
                    _log.warning("timers.put_off", reason=error.reason, error=error.message)
                away = True
            await self._clock.sleep(LOOK_SECONDS)

    async def _turn(self, fence: Fence) -> None:
        """Whatever is due is done under the token that the turn began with. Raises Fenced where another leads."""
        put_off: dict[bytes, Error] = {}  # by experiment, whose timers keep their order
        while await self._first(fence, put_off):
            pass
        await self._take_in(fence)
        if put_off:
            raise next(iter(put_off.values()))

    async def _first(self, fence: Fence, put_off: dict[bytes, Error]) -> bool:
        """The first timer that is due is done; whether there was one."""
        timer = await self._services.database.read(lambda tx: Store(tx).timers.next(but=put_off))
        if timer is None or timer.due_at > self._clock.now():
            return False
        try:
            await self._do(timer, fence)
        except _Done:
            pass
        except Fenced:
            raise
        except Error as error:
            if error.code.retryable:
                if len(put_off) >= MOST_PUT_OFF:  # the database is away, not one experiment in trouble
                    raise
                put_off[timer.experiment_id] = error
                return True
            await self._failed(timer, fence, error.reason, error.message)
        except Exception:
            # One experiment's trouble must not stop the others' timers; it is told where operators look.
            _log.exception("timer.broken", kind=timer.kind, experiment=show_id(timer.experiment_id))
            await self._failed(
                timer, fence, "INTERNAL", "something is wrong with variantd itself; its log says what"
            )
        return True

    async def _do(self, timer: Timer, fence: Fence) -> None:
        caller = Caller(project_id=timer.project_id, actor=ACTOR, scopes=frozenset({Scope.ADMIN}))
        experiment = show_id(timer.experiment_id)
        does: Callable[[Work, requests.ById], Any]
        if timer.kind == Kind.LOOK:
            # Computed over a reading: a long path test keeps no write waiting.
            request = requests.ById(id=experiment)
            prepared = await self._services.ask(caller, Scope.ADMIN, looks.prepare, request, _as_it_is)
            does = partial(looks.record, prepared=prepared)
        else:
            does = _USE_CASES[timer.kind]

        def use_case(work: Work, request: requests.ById) -> None:
            fence(work.store)
            if not work.store.timers.take(timer.id, now=work.now):
                raise _Done
            does(work, request)

        await self._services.change(
            caller,
            Scope.ADMIN,
            use_case,
            requests.ById(id=experiment),
            lambda _, __: {"id": experiment},
            operation=f"Timer.{timer.kind}",
            request_id="",
            body={"id": experiment},
        )
        _log.info("timer.done", kind=timer.kind, experiment=experiment)

    async def _take_in(self, fence: Fence) -> None:
        """Whoever experiments that choose by labels mean by now has come in."""
        now = self._clock.now()
        for project_id, experiment_id in await self._services.database.read(
            lambda tx: Store(tx).experiments.open_to_newcomers()
        ):
            caller = Caller(project_id=project_id, actor=ACTOR, scopes=frozenset({Scope.ADMIN}))
            request = requests.ById(id=show_id(experiment_id))
            if await self._services.ask(caller, Scope.ADMIN, phases.newcomers, request, _as_it_is):
                answer = await self._services.change(
                    caller,
                    Scope.ADMIN,
                    partial(_fenced, fence, phases.admit),
                    request,
                    _joined,
                    operation="Timer.intake",
                    request_id="",
                    body={"id": request.id},
                )
                _log.info("experiment.joined", experiment=request.id, participants=answer["participants"])
            # What changed while we looked is looked at again: a moment is taken before its row is there.
            seen = partial(_looked_at, fence, experiment_id, now - INTAKE_OVERLAP)
            await self._services.database.write(seen)

    async def _failed(self, timer: Timer, fence: Fence, code: str, message: str) -> None:
        now = self._clock.now()
        failure = {"code": code, "message": message}

        def fail(tx: Tx) -> None:
            fence(Store(tx))
            Store(tx).timers.fail(timer.id, failure, now=now)
            if timer.kind == recalculation.KIND:
                recalculation.give_up(Store(tx).recalculations, timer.experiment_id, message, now=now)

        await self._services.database.write(fail)
        _log.warning("timer.failed", kind=timer.kind, experiment=show_id(timer.experiment_id), code=code)


def _as_it_is(work: Work, found: Any) -> Any:
    return found


def _joined(work: Work, found: list[str]) -> dict[str, Any]:
    return {"participants": found}


def _fenced(fence: Fence, use_case: Callable[[Work, Any], Any], work: Work, request: Any) -> Any:
    fence(work.store)
    return use_case(work, request)


def _looked_at(fence: Fence, experiment_id: bytes, moment: int, tx: Tx) -> None:
    fence(Store(tx))
    Store(tx).experiments.looked_at(experiment_id, moment)
