"""The Debian package of the agent: built twice alike, and installed, run, upgraded, removed and purged by dpkg.

By the commands of its page, on a copy of this machine's file system that is thrown away: an overlay in a mount and
process namespace of its own, so dpkg's database, /etc and /usr of the machine stay as they are. There is no systemd in
it; what stands in for `systemctl` starts the unit's own command with the unit's own capabilities.
"""

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared import VERSION
from tests.support.plane import Plane
from tests.support.privileged import run_or_skip
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "howto" / "debian.md"
PYTHON = "/usr/bin/python3"
NO_INDEX = ("error sending request", "dns error", "Failed to fetch", "name resolution")

MACHINE = """
mount --make-rprivate /
mount -t tmpfs none "$T"
mkdir "$T/upper" "$T/work" "$T/machine"
mount -t overlay none -o lowerdir=/,upperdir="$T/upper",workdir="$T/work" "$T/machine"
mount -t proc none "$T/machine/proc"
mount --rbind /dev "$T/machine/dev"
for place in run srv; do mount -t tmpfs none "$T/machine/$place"; done
mkdir "$T/machine/srv/dist"
mount --bind "$DIST" "$T/machine/srv/dist"
"""

SYSTEMCTL = """#!/bin/bash
set -euo pipefail
echo "$*" >> /run/systemctl.log
unit=/usr/lib/systemd/system/variant-agent.service
ends() { [ ! -e /run/pid ] || { kill "$(cat /run/pid)"; tail --pid="$(cat /run/pid)" -f /dev/null; rm /run/pid; }; }
starts() {
    rm -f /var/lib/variant-agent/addresses.json
    mkdir -p /run/variant-agent
    bounds=$(sed -n 's/^CapabilityBoundingSet=//p' "$unit" | tr A-Z a-z | sed 's/cap_/+/g; s/ /,/g')
    command=$(sed -n 's/^ExecStart=//p' "$unit")
    setpriv --bounding-set="-all,$bounds" --no-new-privs $command </dev/null >>/run/agent.log 2>&1 &
    echo $! > /run/pid
    for _ in $(seq 600); do [ -e /var/lib/variant-agent/addresses.json ] && return; sleep 0.1; done
    cat /run/agent.log; exit 1
}
case "$1" in
daemon-reload | disable) ;;
enable) grep -q . /etc/systemd/system/variant-agent.service.d/paths.conf; starts ;;
try-restart) if [ -e /run/pid ]; then ends; starts; fi ;;
stop) ends ;;
esac
"""


def blocks() -> list[str]:
    """The page's commands: build, install, configure, upgrade, remove, purge."""
    return re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)


def built(output: Path, **env: str) -> Path:
    """The package that `make deb` makes; skipped where this machine cannot make it."""
    for tool in ("dpkg-deb", "make"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    if not Path(PYTHON).exists():
        pytest.skip(f"needs {PYTHON}, Debian's own")
    assert blocks()[0] == "make deb\n"
    done = subprocess.run(
        ["make", "--no-print-directory", "deb", f"DEB_ARGS=--output {output} --python {PYTHON}"],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and any(words in done.stderr for words in NO_INDEX) and not os.environ.get("CI"):
        pytest.skip(f"needs a package index: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr[-3000:]
    [package] = output.glob("variant-agent_*.deb")
    return package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built once."""
    return built(tmp_path_factory.mktemp("dist"))


def dpkg_deb(*arguments: str | Path) -> str:
    return subprocess.run(["dpkg-deb", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.timeout(600)
def test_the_same_sources_give_the_same_bytes(package: Path, tmp_path: Path) -> None:
    """Whenever it is built, in whatever time zone and under whatever umask."""
    if not os.environ.get("CI"):
        pytest.skip("builds the package a second time; set CI=1")
    before = os.umask(0o077)
    try:
        again = built(tmp_path / "again", TZ="Asia/Tokyo")
    finally:
        os.umask(before)
    assert again.name == package.name
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(package.read_bytes()).digest()


@pytest.mark.timeout(600)
def test_the_package_says_what_it_is_and_names_nothing_of_this_machine(package: Path, tmp_path: Path) -> None:
    """Its own Python from .. to, one configuration file, files that are root's, and no path it was built under."""
    version = subprocess.run([PYTHON, "-V"], capture_output=True, text=True, check=True).stdout.split(".")[1]
    fields = dpkg_deb("--field", package)
    assert f"Version: {VERSION}-1\n" in fields
    assert f"python3 (>= 3.{version}~), python3 (<< 3.{int(version) + 1}~)" in fields
    assert not re.search(r"@\w+@", fields)
    lines = dpkg_deb("--contents", package).splitlines()
    assert all("root/root" in line for line in lines)
    assert not [line for line in lines if re.match(r"-.w..w|-....w|.....s", line)]
    dpkg_deb("--raw-extract", package, tmp_path / "tree")
    tree = tmp_path / "tree"
    assert (tree / "DEBIAN" / "conffiles").read_text() == "/etc/variant-agent/agent.toml\n"
    for unit in ("variant-agent.service", "variant-agent@.service"):
        assert (tree / "usr/lib/systemd/system" / unit).read_bytes() == (
            ROOT / "deploy/systemd" / unit
        ).read_bytes()
    named = [str(ROOT).encode(), sys.base_prefix.encode(), b"variant-agent-deb-"]
    for path in tree.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [name for name in named if name != b"/usr" and name in content], path


class Machine:
    """A shell of root's on the copy."""

    def __init__(self, shell: asyncio.subprocess.Process, root: Path) -> None:
        self._shell, self.root = shell, root

    async def does(self, script: str) -> str:
        """What the script printed; every command of it succeeded."""
        assert self._shell.stdin
        assert self._shell.stdout
        self._shell.stdin.write(
            f"bash -euo pipefail <<'SCRIPT' 2>&1\n{script}\nSCRIPT\necho \"== $?\"\n".encode()
        )
        printed: list[str] = []
        async with asyncio.timeout(240):
            while not (line := (await self._shell.stdout.readline()).decode()).startswith("== "):
                assert line, f"the machine is gone: {printed}"
                printed.append(line)
        assert line == "== 0\n", "".join(printed)
        return "".join(printed)


@asynccontextmanager
async def machine(place: Path, dist: Path) -> AsyncIterator[Machine]:
    """A copy of this machine, gone at the end with everything that runs on it; `dist` is its /srv/dist."""
    place.mkdir()
    apart = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    for tool in ("setpriv", "chroot"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    run_or_skip("dpkg-query", "--show", "python3")
    run_or_skip(*apart, "bash", "-euc", MACHINE.replace("$T", str(place)).replace("$DIST", str(dist)))
    shell = await asyncio.create_subprocess_exec(
        *apart,
        *("bash", "-euc", MACHINE + 'exec chroot "$T/machine" env -C / bash'),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={
            "T": str(place),
            "DIST": str(dist),
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PATH": "/srv/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "VARIANT_AGENT_RECONNECT_JITTER": "0.1",
        },
    )
    try:
        yield Machine(shell, place / "machine")
    finally:
        assert shell.stdin
        shell.stdin.close()
        if shell.returncode is None:
            shell.kill()
        await shell.wait()


@pytest.fixture
def untouched() -> Iterator[None]:
    """dpkg's database and the places of the package are afterwards what they were."""

    def picture() -> object:
        places = (
            "/etc/variant-agent",
            "/var/lib/variant-agent",
            "/usr/lib/variant-agent",
            "/usr/bin/variant-agent",
        )
        status = Path("/var/lib/dpkg/status")
        known = hashlib.sha256(status.read_bytes()).digest() if status.exists() else b""
        return known, [Path(place).exists() for place in places]

    before = picture()
    yield
    assert picture() == before


def newer(package: Path, work: Path) -> Path:
    """The same package as its next revision."""
    dpkg_deb("--raw-extract", package, work / "tree")
    control = work / "tree" / "DEBIAN" / "control"
    control.write_text(control.read_text().replace(f"Version: {VERSION}-1\n", f"Version: {VERSION}-2\n"))
    made = work / package.name.replace("-1_", "-2_")
    dpkg_deb("--root-owner-group", "-Zgzip", "-z1", "--build", work / "tree", made)
    return made


@pytest.mark.timeout(900)
async def test_it_is_installed_run_upgraded_removed_and_purged(
    package: Path, plane: Plane, tmp_path: Path, untouched: None
) -> None:
    """By the page's commands: an enrolled host that writes, the same after the upgrade, and nothing after the purge."""
    _, install, configure, upgrade, remove, purge = blocks()
    token = await plane.token()
    values = {
        "name": "Soul",
        "targetFile": "SOUL.md",
        "participantIds": ["scout"],
        "variants": [
            {"name": name, "key": name, "content": "I am a guide\n", "weight": 50, "isControl": name == "a"}
            for name in "ab"
        ],
    }
    next_package = newer(package, tmp_path)
    dist = tmp_path / "dist"
    dist.mkdir()
    async with machine(tmp_path / "copy", dist) as host:
        await host.does(
            "mkdir -p /srv/bin /srv/bots/scout /run/systemd/system\n"
            f"cat > /srv/bin/systemctl <<'SYSTEMCTL'\n{SYSTEMCTL}SYSTEMCTL\n"
            "chmod +x /srv/bin/systemctl; echo 'I am a scout' > /srv/bots/scout/SOUL.md"
        )

        shutil.copy(package, dist)
        assert (await host.does("cd /srv\n" + install)).endswith(f"{VERSION}\n")
        assert await host.does("dpkg --verify variant-agent; stat -c %a /var/lib/variant-agent") == "700\n"
        assert await host.does("cat /run/systemctl.log") == "daemon-reload\n"  # nothing was started

        await host.does(f"cd /srv; printf %s {token} > token\n" + configure)
        await plane.made("/v1/experiments", values)

        async def known() -> bool:
            return (await plane.rest("GET", "/v1/participants/scout")).body.get("presence") == "connected"

        await eventually(known, what="the host is connected")
        await plane.made("/v1/experiments/soul/start", None)

        async def applied() -> bool:
            page = (await plane.rest("GET", "/v1/experiments/soul/deployments")).body
            return [item["state"] for item in page["entities"]] == ["applied"]

        await eventually(applied, what="the variant is there")
        assert await host.does("cat /srv/bots/scout/SOUL.md") == "I am a guide\n"
        before = await host.does("cat /etc/variant-agent/agent.toml; cat /run/pid")

        (dist / package.name).unlink()
        shutil.copy(next_package, dist)
        said = await host.does("cd /srv\n" + upgrade)
        assert f"({VERSION}-2) over ({VERSION}-1)" in said
        after = await host.does("cat /etc/variant-agent/agent.toml; cat /run/pid")
        assert before.splitlines()[:-1] == after.splitlines()[:-1]
        assert before.splitlines()[-1] != after.splitlines()[-1], "it runs as the new version"
        agents = (await plane.rest("GET", "/v1/agents")).body["entities"]
        assert len(agents) == 1, "it is the same host"
        await eventually(known, what="the host is connected again")

        said = await host.does("cd /srv\n" + remove)
        assert await host.does("cat /srv/bots/scout/SOUL.md") == "I am a scout\n"
        left = await host.does("ls -d /usr/bin/variant-agent /usr/lib/variant-agent 2>/dev/null || true")
        assert left == ""
        await host.does("test -s /etc/variant-agent/agent.toml; test -d /var/lib/variant-agent/journal")
        await host.does("mkdir -p /var/lib/variant-agent-alice/journal")
        await host.does("cd /srv\n" + purge)
        left = await host.does(
            "ls -d /var/lib/variant-agent* /etc/variant-agent 2>/dev/null || true\n"
            "ls /var/lib/dpkg/info | grep -c variant || true"
        )
        assert left == "0\n"
        assert "Traceback" not in await host.does("cat /run/agent.log")
