"""Targets nobody may write: each is refused, asked beforehand or not, with its reason, and left as it was."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.fleet import Host, run, running_fleet
from tests.support.waiting import eventually

AS_ROOT = os.geteuid() == 0


def directory(target: Path) -> None:
    target.unlink()
    target.mkdir()


def fifo(target: Path) -> None:
    target.unlink()
    os.mkfifo(target)


def symlink_out(target: Path) -> None:
    outside = target.parent.parent.parent / "outside.md"
    outside.write_text("not yours\n")
    target.unlink()
    target.symlink_to(outside)


def device(target: Path) -> None:
    target.unlink()
    os.mknod(target, 0o600 | 0o020000, os.makedev(1, 3))  # a character device, as /dev/null


def immutable(target: Path) -> None:
    subprocess.run(["chattr", "+i", target], check=True)


def bind_mount(target: Path) -> None:
    subprocess.run(["mount", "--bind", target, target], check=True)


def full_disk(target: Path) -> None:
    content = target.read_bytes()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", target.parent], check=True)
    target.write_bytes(content.ljust(4096, b"."))


def nothing(target: Path) -> None:
    pass


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "directory": (directory, "NOT_A_REGULAR_FILE"),
    "fifo": (fifo, "NOT_A_REGULAR_FILE"),
    "symlink": (symlink_out, "SYMLINK_REFUSED"),
    "large": (nothing, "TOO_LARGE"),
    "outside": (nothing, "TARGET_NOT_ALLOWED"),
}
ONLY_ROOT: dict[str, tuple[Callable[[Path], None], str]] = {
    "device": (device, "NOT_A_REGULAR_FILE"),
    "immutable": (immutable, "IMMUTABLE"),
    "mounted": (bind_mount, "BUSY_MOUNT"),
    "full": (full_disk, "NO_SPACE"),
}
OWN = {"large": {"max_bytes": "5"}, "outside": {"targets": '["other.md"]'}}


@contextmanager
def cleaned(folder: Path) -> Iterator[None]:
    """What only root can undo is undone, so that the folder can be removed."""
    try:
        yield
    finally:
        for name in ("mounted", "immutable"):
            target = folder / "one" / "roots" / name / "soul.md"
            subprocess.run(["umount", target], check=False, capture_output=True)
            subprocess.run(["chattr", "-i", target], check=False, capture_output=True)
        subprocess.run(["umount", folder / "one" / "roots" / "full"], check=False, capture_output=True)


def works(prepare: Callable[[Path], None], target: Path) -> bool:
    """Whether this machine lets root do it; containers may not."""
    with suppress(OSError, subprocess.CalledProcessError):
        prepare(target)
        return True
    return False


def picture(host: Host, participant: str) -> object:
    """What lies at the target, without touching it."""
    target = host.file(participant)
    status = os.lstat(target)
    content = (
        target.read_bytes() if participant in ("large", "outside", "immutable", "mounted", "full") else None
    )
    return (
        status.st_mode,
        status.st_ino,
        status.st_size,
        content,
        sorted(item.name for item in target.parent.iterdir()),
    )


async def test_bad_targets_are_refused_and_left_alone(tmp_path: Path) -> None:
    """Every kind at once on one host: REST has code, message and remedy, variantctl prints them."""
    kinds = {**KINDS, **(ONLY_ROOT if AS_ROOT else {})}
    with cleaned(tmp_path):
        async with running_fleet(tmp_path) as fleet:
            host = await fleet.add_host("one", *kinds, own=OWN)
            ready = [name for name, (prepare, _) in kinds.items() if works(prepare, host.file(name))]
            assert set(ready) >= set(KINDS)
            before = {name: picture(host, name) for name in ready}
            await fleet.connected(*ready)  # who is not yet cannot be asked
            variants = [
                {"name": "A", "key": "a", "content": "aaaaaa\n" * 2000, "weight": 50, "isControl": True},
                {"name": "B", "key": "b", "content": "bbbbbb\n" * 2000, "weight": 50},
            ]
            values = {"name": "Tone", "targetFile": "soul.md", "variants": variants, "participantIds": ready}
            # Asked beforehand, the host says what it would say of an offer, and does not touch anything either.
            ahead = [{**item, "content": item["content"] * 2} for item in variants]  # type: ignore[operator]
            await fleet.plane.post("/v1/experiments", {**values, "key": "ahead", "variants": ahead})
            shown = await fleet.plane.post("/v1/experiments/ahead/assignments:preview")
            said = {item["participantId"]: (item["code"], item["message"]) for item in shown["findings"]}
            assert {name for name, (code, _) in said.items() if code == "PREFLIGHT_REFUSED"} == set(ready)
            assert all(f"({kinds[name][1]})" in message for name, (_, message) in said.items()), said
            status, refused = await fleet.plane.rest("POST", "/v1/experiments/ahead/start")
            assert (status, f"hosts keep {len(ready)} out" in str(refused)) == (409, True), refused
            assert {name: picture(host, name) for name in ready} == before

            assert await host.process.stop() == 0  # who is away cannot be asked, and takes part
            await fleet.plane.post("/v1/experiments", values)
            await fleet.plane.post("/v1/experiments/tone/start")
            await host.start()

            async def ended() -> bool:
                states = await fleet.states("tone")
                # What may pass by itself is tried again, and says why meanwhile.
                waiting = {"applying", "stuck"}
                return all(
                    state == "refused" or (state in waiting and name in ("mounted", "full"))
                    for name, state in states.items()
                )

            await eventually(ended, what="every deployment is refused")
            page = await fleet.plane.get("/v1/experiments/tone/deployments?limit=100")
            reasons = {item["participantId"]: item["reason"] for item in page["entities"]}
            assert {name: reason["code"] for name, reason in reasons.items()} == {
                name: kinds[name][1] for name in ready
            }
            assert all(reason["message"] and reason["remedy"] for reason in reasons.values())
            assert {name: picture(host, name) for name in ready} == before

            home = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "home")}
            await run("variantctl", "login", "--data-dir", str(fleet.plane.data), **home)
            _, out, _ = await run("variantctl", "experiments", "deployments", "tone", "--json", **home)
            found = json.loads(out)
            listed = found["entities"] if isinstance(found, dict) and "entities" in found else found
            text = json.dumps(listed)
            assert all(reason["code"] in text for reason in reasons.values())

            await fleet.plane.post("/v1/experiments/tone/complete", {"then": "restore"})
            await run("variantctl", "experiments", "wait", "tone", **home)
            assert {name: picture(host, name) for name in ready} == before
    if not AS_ROOT:
        pytest.skip(
            "device, immutable, bind-mounted and full-disk targets need root; the others were refused"
        )
