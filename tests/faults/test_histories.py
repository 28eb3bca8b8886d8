"""Thousands of histories of one control plane and one host, drawn and made smaller by Hypothesis.

Verbs of the lifecycle in any order, sessions that come and go, messages that are lost, doubled or out of order, a
host that dies at any call that changes a file, reports and answers that get lost. At any moment a file is one that
was ordered (P1), nothing that was said to be applied is forgotten (P2), no slot goes back (P5); in the end every
report is stored once (P3) and every file is what the table of the lifecycle says (P4). FAULTS_HISTORIES says how many
are tried.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from control_plane.domain.lifecycle import TRANSITIONS, Status, Verb
from shared.errors import FailedPrecondition
from tests.support.histories import BOTS, History, begun, content_of
from tests.support.schedule import size

MEMORY = Path("/dev/shm")  # fsync costs nothing there, and every call is made all the same
NTH = st.integers(0, 50)
ENDS, VARIANTS = st.sampled_from(["keep", "restore"]), st.sampled_from(["a", "b"])
Draw = Callable[[st.SearchStrategy[Any]], Any]
ANY = None
"""Whatever was there: what a slot holds that was closed depends on what its host had heard by then."""

VERBS = {
    "start": Verb.START,
    "pause": Verb.PAUSE,
    "resume": Verb.RESUME,
    "stop": Verb.STOP,
    "complete": Verb.COMPLETE,
    "ship": Verb.SHIP,
    "reset": Verb.RESET,
    "deploy": Verb.DEPLOY,
}


class Histories(RuleBasedStateMachine):
    """What the control plane, the host and the network do, and what the files have to be in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="variantd-", dir=MEMORY if MEMORY.is_dir() else None))
        self.loop = asyncio.new_event_loop()
        self.status = Status.DRAFT
        self.base: dict[str, set[bytes] | None] = {bot: {f"I am {bot}.".encode()} for bot in BOTS}
        self.wanted: dict[str, set[bytes] | None] = dict(self.base)
        self.written: dict[str, bytes] = {}
        self.reverted: set[str] = set()
        self.allowed = {bot: {f"I am {bot}.".encode(), content_of("a"), content_of("b")} for bot in BOTS}
        self.events = 0

    @initialize()
    def begin(self) -> None:
        self.history: History = begun(self.folder, self.loop)

    # -- operators

    def _verb(self, name: str, **fields: Any) -> bool:
        """Whether the verb was taken; the table of states says whether it had to be."""
        try:
            self.history.step(self.history.verb(name, **fields))
        except FailedPrecondition as error:
            assert VERBS[name] not in TRANSITIONS[self.status], error.message
            return False
        self.status = TRANSITIONS[self.status][VERBS[name]]
        return True

    def _write(self, bot: str, variant: str) -> None:
        self.written[bot] = content_of(variant)
        self.wanted[bot] = {content_of(variant)}
        self.reverted.discard(bot)

    def _restore(self) -> None:
        for bot in self.written:
            self.wanted[bot] = self.base[bot]

    def _leave(self) -> None:
        for bot in self.written:
            self.wanted[bot] = self.base[bot] = ANY

    def _ended(self, then: str) -> None:
        if then == "restore":
            self._restore()
        else:
            self._leave()
        self.reverted.clear()

    @rule(nth=NTH, data=st.data())
    def verb(self, nth: int, data: st.DataObject) -> None:
        """One that fits the state; drawn evenly among those there are."""
        fitting = [name for name, verb in VERBS.items() if verb in TRANSITIONS[self.status]]
        getattr(self, f"_{fitting[nth % len(fitting)]}")(data.draw)

    @rule(name=st.sampled_from(sorted(VERBS)), data=st.data())
    def any_verb(self, name: str, data: st.DataObject) -> None:
        """Whether it fits or not."""
        getattr(self, f"_{name}")(data.draw)

    def _start(self, draw: Draw) -> None:
        history = self.history
        if self._verb("start"):
            found = history.step(
                history.world.ask(lambda store: store.experiments.get(history.experiment.id))
            )
            for bot, variant in history.step(history.world.assigned(found)).items():
                self._write(bot, variant)

    def _pause(self, draw: Draw) -> None:
        how = draw(st.sampled_from(["hold", "revert"]))
        if self._verb("pause", onPause=how) and how == "revert":
            self._restore()
            self.reverted = set(self.written)

    def _resume(self, draw: Draw) -> None:
        if self._verb("resume"):
            for bot in self.reverted:
                self.wanted[bot] = {self.written[bot]}
            self.reverted.clear()

    def _stop(self, draw: Draw) -> None:
        self._verb("stop")

    def _complete(self, draw: Draw) -> None:
        then = draw(ENDS)
        if self._verb("complete", then=then):
            self._ended(then)

    def _ship(self, draw: Draw) -> None:
        variant = draw(VARIANTS)
        if self._verb("ship", variantId=variant):
            for bot in BOTS:
                self._write(bot, variant)

    def _reset(self, draw: Draw) -> None:
        then = draw(ENDS)
        if self._verb("reset", then=then):
            self._ended(then)

    def _deploy(self, draw: Draw) -> None:
        bot, variant = draw(st.sampled_from(BOTS)), draw(VARIANTS)
        if self._verb("deploy", participantId=bot, variantId=variant):
            self._write(bot, variant)

    # -- the network

    @rule()
    def connect(self) -> None:
        """A new session, in which the control plane says what it has to say."""
        self.history.step(self.history.connect())
        self.speak()

    @rule()
    def speak(self) -> None:
        for line in self.history.lines:
            self.history.step(self.history.gather(line))

    @rule()
    def reach_the_host_in_order(self) -> None:
        for line in self.history.lines:
            while line.down:
                self.history.step(self.history.deliver_down(line, 0, again=False))

    @precondition(lambda self: any(line.down for line in self.history.lines))
    @rule(nth=NTH, again=st.booleans())
    def reach_the_host(self, nth: int, *, again: bool) -> None:
        line, index = self._pick("down", nth)
        self.history.step(self.history.deliver_down(line, index, again=again))

    @rule(nth=NTH, after=st.integers(0, 60))
    def die_of_what_reaches_the_host(self, nth: int, after: int) -> None:
        if not any(line.down for line in self.history.lines):
            self.connect()
        if any(line.down for line in self.history.lines):
            line, index = self._pick("down", nth)
            self.history.disk.dies_after = after
            self.history.step(self.history.deliver_down(line, index, again=False))
            self.history.disk.dies_after = None

    @precondition(lambda self: any(line.up for line in self.history.lines))
    @rule(nth=NTH, again=st.booleans())
    def reach_the_control_plane(self, nth: int, *, again: bool) -> None:
        line, index = self._pick("up", nth)
        self.history.step(self.history.deliver_up(line, index, again=again))

    @precondition(lambda self: bool(self.history.lines))
    @rule(nth=NTH)
    def lose_a_session(self, nth: int) -> None:
        line = self.history.lines.pop(nth % len(self.history.lines))
        line.session.end()

    def _pick(self, way: str, nth: int) -> tuple[Any, int]:
        places = [(line, i) for line in self.history.lines for i in range(len(getattr(line, way)))]
        return places[nth % len(places)]

    # -- host, reports and time

    @rule()
    def restart_the_host(self) -> None:
        self.history.step(self.history.end_host(clean=True))
        self.history.step(self.history.start_host())

    @rule(bot=st.sampled_from(BOTS))
    def report(self, bot: str) -> None:
        self.events += 1
        self.history.step(self.history.report(bot, f"e{self.events}"))

    @rule(answered=st.booleans())
    def upload(self, *, answered: bool) -> None:
        self.history.step(self.history.upload(answered=answered))

    @rule(seconds=st.sampled_from([0.001, 1.0, 3_600.0, -30.0]))
    def let_time_pass(self, seconds: float) -> None:
        if seconds < 0:
            self.history.world.clock.jump(seconds)
        else:
            self.history.step(self.history.world.clock.advance(seconds))

    # -- what holds

    @invariant()
    def files_are_whole(self) -> None:
        if hasattr(self, "history"):
            for bot in BOTS:
                assert self.history.file(bot).read_bytes() in self.allowed[bot]

    def teardown(self) -> None:
        try:
            if hasattr(self, "history"):
                self._end()
        finally:
            self.loop.close()
            shutil.rmtree(self.folder)

    def _end(self) -> None:
        history = self.history
        try:
            history.step(history.heal())
            self.files_are_whole()
            history.oracle._account()
            for bot in BOTS:
                wanted = self.wanted[bot]
                assert wanted is ANY or history.file(bot).read_bytes() in wanted, (
                    f"{bot} holds {history.file(bot).read_bytes()!r}, not {wanted}"
                )
        finally:
            history.step(history.end_host(clean=True))
            history.step(history.stack.aclose())


@pytest.mark.fault(1, 3, 26, 31, 61)
@pytest.mark.timeout(size("TIMEOUT", small=240, large=7_200))
def test_every_history_ends_well() -> None:
    """And at no moment of it does a file hold anything else than what was ordered."""
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=size("HISTORIES", small=15, large=3_000),
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
