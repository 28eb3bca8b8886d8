"""Faults of a host's disks that the whole apply meets: other file systems on the way, and power that is cut."""

from pathlib import Path

import pytest

from shared.model import OfferAction, Result
from tests.support.host import make_end, make_offer, running_host
from tests.support.privileged import mounted


@pytest.mark.fault(19)
async def test_a_target_on_another_file_system_is_written_there(tmp_path: Path) -> None:
    """Its directory is a mount of its own, so nothing could be renamed into it from elsewhere."""
    (tmp_path / "root" / "config").mkdir(parents=True)
    with mounted("-t", "tmpfs", "-o", "size=64k", "none", at=tmp_path / "root" / "config"):
        async with running_host(tmp_path) as host:
            (host.root / "config" / "soul.md").write_text("mine")
            outcome = await host.apply(make_offer({"soul.md": "A", "config/soul.md": "B"}))
            assert outcome.result is Result.APPLIED
            assert (host.text("soul.md"), host.text("config/soul.md"), host.leftovers()) == ("A", "B", [])
            assert (host.root / "soul.md").stat().st_dev != (host.root / "config" / "soul.md").stat().st_dev
            await host.apply(make_end(OfferAction.RESTORE, "soul.md", "config/soul.md", revision=2))
            assert (host.text("soul.md"), host.text("config/soul.md")) == (None, "mine")
