"""A host's link with a real reconciler behind it, in the test's event loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

from agent import identity as identities
from agent.config import AgentConfig, parse
from agent.enrollment import enroll
from agent.link import Link
from agent.reconciler import Reconciler
from shared.clock import SystemClock
from shared.ids import new_id
from shared.model import Offer, OfferAction, OfferedFile, SpoolState, View, digest
from tests.support.control_plane import ScriptedControlPlane, in_background

CONTENT = b"Be kind.\n"


def configured(tmp_path: Path, **agent: Any) -> AgentConfig:
    """A host with one participant."""
    root = tmp_path / "bot-1"
    root.mkdir(exist_ok=True)
    participant = {"id": "bot-1", "root": str(root), "targets": ["SOUL.md"], "labels": {"tier": "gold"}}
    table = {
        "agent": {"name": "host-1", "labels": {"role": "support"}, **agent},
        "participants": [participant],
    }
    return parse(table, relative_to=tmp_path)


def offered(
    content: bytes = CONTENT, *, revision: int = 1, slot: bytes = bytes(16), inline: bool = True
) -> Offer:
    """An offer of one file to it."""
    file = OfferedFile(
        path="SOUL.md", digest=digest(content), size=len(content), content=content if inline else None
    )
    return Offer(
        deployment_id=new_id(),
        participant="bot-1",
        slot_id=slot,
        revision=revision,
        action=OfferAction.WRITE,
        files=(file,),
    )


class Host:
    """A link with a real reconciler behind it."""

    def __init__(self, tmp_path: Path, *, transport: str = "stream", **options: Any) -> None:
        self.state, self.root = tmp_path / "state", tmp_path / "bot-1"
        config = configured(tmp_path, transport=transport, adopt=options.pop("adopt", "signed"))
        epoch = new_id()
        self.clock = options.pop("clock", None) or SystemClock()
        self.views: list[View] = []
        self.reconciler = Reconciler(
            config=config,
            state_dir=self.state,
            clock=self.clock,
            new_id=new_id,
            record_view=self._record,
            fetch=lambda wanted, size: self.link.calls.fetch(wanted, size),
            on_outcome=lambda outcome: self.link.outcome(outcome),
            on_change=lambda: None,
        )
        self.link = Link(
            config=config,
            state_dir=self.state,
            reconciler=self.reconciler,
            spool=lambda: SpoolState(epoch=epoch, depth=3),
            clock=self.clock,
            **{"reconnect_jitter": 0.05, "random": Random(7), **options},
        )

    def _record(self, view: View) -> None:
        self.views.append(view)

    def codes(self) -> set[str]:
        """What is wrong with the link."""
        return {condition.code for condition in self.link.conditions()}


@asynccontextmanager
async def linked(tmp_path: Path, control_plane: ScriptedControlPlane, **options: Any) -> AsyncIterator[Host]:
    """An enrolled host whose link and reconciler run."""
    if not (tmp_path / "state").exists():
        with identities.hold(tmp_path / "state"):
            await enroll(control_plane.token(), tmp_path / "state", name="host-1")
    host = Host(tmp_path, **options)
    await host.reconciler.start()
    async with in_background(host.reconciler.run()), in_background(host.link.run()):
        yield host
