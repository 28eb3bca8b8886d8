"""A host without its network: real files, a real reconciler, what it says collected."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.config import AgentConfig, ParticipantConfig
from agent.policy import TEMP_PREFIX
from agent.reconciler import Reconciler
from shared.clock import Clock, SystemClock
from shared.errors import ResourceExhausted
from shared.ids import new_id
from shared.model import Digest, Offer, OfferAction, OfferedFile, Outcome, Result, View, digest
from tests.support.waiting import PATIENCE

SLOT = bytes(15) + b"\x01"
OTHER_SLOT = bytes(15) + b"\x02"


def make_participant(
    root: Path, name: str = "bot-1", *, root_is_made: bool = True, **values: Any
) -> ParticipantConfig:
    """A participant whose root exists, unless told otherwise."""
    if root_is_made:
        root.mkdir(parents=True, exist_ok=True)
    return ParticipantConfig(
        **{"id": name, "root": root, "targets": ("*.md", "config/*.md", "deep/**"), **values}
    )


def make_config(directory: Path, *participants: ParticipantConfig) -> AgentConfig:
    """An agent.toml."""
    return AgentConfig(
        name="host-1",
        labels={},
        local_http="127.0.0.1:0",
        socket=directory / "agent.sock",
        local_token_file=None,
        participants=participants,
    )


def make_offer(files: dict[str, str], *, revision: int = 1, **values: Any) -> Offer:
    """An offer to write texts by path."""
    contents = {path: text.encode(errors="surrogateescape") for path, text in files.items()}
    offer = Offer(
        deployment_id=bytes(16),
        participant="bot-1",
        slot_id=SLOT,
        revision=revision,
        action=OfferAction.WRITE,
        files=tuple(
            OfferedFile(path=path, digest=digest(content), size=len(content), content=content)
            for path, content in contents.items()
        ),
    )
    return replace(offer, **values)


def make_end(action: OfferAction, *paths: str, revision: int, **values: Any) -> Offer:
    """An offer to restore or close."""
    files = tuple(OfferedFile(path=path) for path in paths)
    return replace(make_offer({}, revision=revision), action=action, files=files, **values)


@dataclass(kw_only=True)
class Host:
    """A started reconciler that applies what it is offered, and everything it said."""

    reconciler: Reconciler
    config: AgentConfig
    root: Path
    state_dir: Path
    outcomes: list[Outcome] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    contents: dict[Digest, bytes] = field(default_factory=dict)
    changes: int = 0
    spool_full: bool = False
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def apply(self, offer: Offer) -> Outcome:
        """The outcome of `offer`: its end, or that another try is due."""
        self.heard.clear()
        self.reconciler.offer(offer)
        async with asyncio.timeout(PATIENCE):
            await self.heard.wait()
        return self.outcomes[-1]

    def text(self, path: str) -> str | None:
        """What a target holds; None where there is no file."""
        target = self.root / path
        return target.read_text() if target.exists() else None

    def leftovers(self) -> list[str]:
        """Temporary files beneath the root."""
        return [str(path) for path in self.root.rglob(TEMP_PREFIX + "*")]


@asynccontextmanager
async def running_host(
    directory: Path,
    *,
    clock: Clock | None = None,
    contents: dict[Digest, bytes] | None = None,
    configure: Callable[[AgentConfig], AgentConfig] = lambda config: config,
    **participant: Any,
) -> AsyncIterator[Host]:
    """A host over `directory`/root with its state in `directory`/state; may be entered again and again."""
    host = bare_host(directory, clock=clock, contents=contents, configure=configure, **participant)
    await host.reconciler.start()
    running = asyncio.create_task(host.reconciler.run())
    try:
        yield host
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def bare_host(
    directory: Path,
    *,
    clock: Clock | None = None,
    contents: dict[Digest, bytes] | None = None,
    configure: Callable[[AgentConfig], AgentConfig] = lambda config: config,
    **participant: Any,
) -> Host:
    """The same, not started."""
    root, state = directory / "root", directory / "state"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = configure(make_config(directory, make_participant(root, **participant)))
    made: list[Host] = []

    def record_view(view: View) -> None:
        if made[0].spool_full:
            raise ResourceExhausted
        made[0].views.append(view)

    async def fetch(wanted: Digest, size: int) -> bytes:
        try:
            return made[0].contents[wanted]
        except KeyError:
            raise OSError("nobody has it") from None

    def on_outcome(outcome: Outcome) -> None:
        made[0].outcomes.append(outcome)
        if outcome.result is not Result.IN_PROGRESS or outcome.reason is not None:
            made[
                0
            ].heard.set()  # not where it is merely told how far an apply has come, on a machine that is slow

    def on_change() -> None:
        made[0].changes += 1

    reconciler = Reconciler(
        config=config,
        state_dir=state,
        clock=clock or SystemClock(),
        new_id=new_id,
        record_view=record_view,
        fetch=fetch,
        on_outcome=on_outcome,
        on_change=on_change,
    )
    made.append(
        Host(reconciler=reconciler, config=config, root=root, state_dir=state, contents=contents or {})
    )
    return made[0]
