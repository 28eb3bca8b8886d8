"""What a view says lies at a target, and to whom it is owed."""

import sys
import threading
from dataclasses import replace
from pathlib import Path

from shared.model import DriftPolicy, Result, View, ViewState, digest
from tests.support.host import OTHER_SLOT, Host, make_config, make_offer, running_host


def last_view(host: Host, path: str) -> View:
    return [view for view in host.views if view.path == path][-1]


async def test_a_link_that_was_replaced_is_drift(tmp_path: Path) -> None:
    """`sed -i` and editors put a file in the link's place: what lies at the path counts, not what it led to once."""
    async with running_host(tmp_path, follow_symlinks=True) as host:
        (host.root / "AGENTS.md").write_text("mine")
        (host.root / "CLAUDE.md").symlink_to("AGENTS.md")
        await host.apply(make_offer({"CLAUDE.md": "A"}))
        (host.root / "sed.tmp").write_text("edited")
        (host.root / "sed.tmp").rename(host.root / "CLAUDE.md")
        await host.reconciler.look_around()
        view = last_view(host, "CLAUDE.md")
        assert (view.digest, view.state) == (digest(b"edited"), ViewState.DRIFTED)
        [slot] = host.reconciler.slots()
        assert slot.files[0].digest == digest(b"edited")


async def test_a_file_taken_over_by_its_other_name_is_seen_by_both(tmp_path: Path) -> None:
    """Two slots, one by a link and one by the file's own name: both views say what is there now."""
    async with running_host(tmp_path, follow_symlinks=True) as host:
        (host.root / "AGENTS.md").write_text("mine")
        (host.root / "CLAUDE.md").symlink_to("AGENTS.md")
        await host.apply(make_offer({"CLAUDE.md": "A"}))
        taken = await host.apply(make_offer({"AGENTS.md": "B"}, slot_id=OTHER_SLOT))
        assert taken.result is Result.APPLIED
        await host.reconciler.look_around()
        assert (host.text("CLAUDE.md"), last_view(host, "CLAUDE.md").digest) == ("B", digest(b"B"))


async def test_views_of_a_participant_that_goes_are_still_owed(tmp_path: Path) -> None:
    """A reload takes it out of agent.toml while the spool is full."""
    async with running_host(tmp_path) as host:
        await host.apply(make_offer({"soul.md": "A"}))
        host.spool_full = True
        (host.root / "soul.md").write_text("edited")
        await host.reconciler.observed("bot-1", "soul.md")
        await host.reconciler.reconfigure(make_config(tmp_path))
        host.spool_full = False
        await host.reconciler.catch_up()
        assert host.views[-1].digest == digest(b"edited")


async def test_conditions_may_be_asked_while_a_thread_looks(tmp_path: Path) -> None:
    """A file's first view comes while somebody goes through those there are."""
    interval = sys.getswitchinterval()
    async with running_host(tmp_path, drift=DriftPolicy.HOLD) as host:
        await host.apply(make_offer({f"config/{number}.md": "A" for number in range(20)}))
        applier = host.reconciler._appliers["bot-1"]
        [file, *_] = (file for _, file in applier.held())

        def look() -> None:
            for number in range(3000):
                applier.views.look(replace(file, path=f"config/new{number}.md"), from_at=1)

        thread = threading.Thread(target=look)
        sys.setswitchinterval(1e-6)
        try:
            thread.start()
            while thread.is_alive():
                host.reconciler.conditions()
        finally:
            sys.setswitchinterval(interval)
            thread.join()
