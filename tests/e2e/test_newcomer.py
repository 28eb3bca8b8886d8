"""Somebody who has never seen this: a fresh clone, the set-up commands, then the tutorial word for word.

Once as whoever runs the tests and, where that is root, once as an ordinary user without a name, a group or a
right to write anywhere but in the clone and at home. Each has a temporary home and makes an environment of
its own, with nothing cached. What is cloned is what was committed.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.test_readme import taken
from tests.support.privileged import run_or_skip
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parent.parent.parent
SET_UP = "make demo ONCE=1"
HANDED_ON = re.compile(r"(PIP|UV|SSL|REQUESTS|CURL)_\w+|(https?|no)_proxy|CI", re.IGNORECASE)
BARE_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
NOBODY = 41_041  # has no entry in /etc/passwd
NO_INDEX = ("error sending request", "Failed to establish a new connection", "name resolution")
ELSEWHERE = "for place in /tmp /var/tmp /etc; do if touch $place/x 2>/dev/null; then exit 7; fi; done"
CHECK = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"


@dataclass(frozen=True, kw_only=True)
class Newcomer:
    """Somebody with a home and a place for a clone."""

    place: Path
    path: str
    uid: int

    @property
    def ordinary(self) -> bool:
        """Whether root has to become somebody else first."""
        return self.uid != os.geteuid()

    def environment(self) -> dict[str, str]:
        handed_on = {name: value for name, value in os.environ.items() if HANDED_ON.fullmatch(name)}
        own = {"HOME": str(self.place / "home"), "TMPDIR": str(self.place / "home"), "PATH": self.path}
        return handed_on | own | {"LANG": "C.UTF-8"}

    def command(self, script: str, *, apart: bool) -> list[str]:
        """What runs `script` as this person; `apart` from the network and from everybody's ports."""
        run = ["bash", "-euo", "pipefail", "-c", script]
        if os.geteuid() != 0:
            return run
        if self.ordinary:
            run = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", *run]
        before = "ip link set lo up; " if apart else ""
        if self.ordinary:  # the whole system is read-only, but the clone and the home
            before += f"mount --bind {self.place} {self.place}; mount -o remount,bind,ro /; cd {self.place}; "
        spaces = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *(["--net"] if apart else [])]
        return ["unshare", *spaces, "bash", "-ec", before + 'exec "$@"', "bash", *run]

    def does(self, script: str, *, apart: bool = False) -> str:
        """Everything that was printed while `script` ran to its end in the clone, without a fault."""
        script = f"cd {self.place}/clone\n{script}"
        with (self.place / "printed").open("w+b") as printed:
            child = subprocess.Popen(
                self.command(script, apart=apart),
                cwd=self.place,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | str = child.wait(timeout=2 * PATIENCE)
            except subprocess.TimeoutExpired:
                code = f"not done within {2 * PATIENCE:.0f} s"
            finally:
                with suppress(ProcessLookupError):  # the group this test started, with the script's jobs
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        text = (self.place / "printed").read_text()
        if code != 0 and any(words in text for words in NO_INDEX) and not os.environ.get("CI"):
            pytest.skip(f"needs a package index: {text[-300:]}")
        assert code == 0, f"{code}: {text[-4000:]}"
        assert "Traceback" not in text, text[-4000:]
        return text


@pytest.fixture(params=["myself", "an ordinary user"])
def newcomer(request: pytest.FixtureRequest) -> Iterator[Newcomer]:
    """A fresh clone and an empty home of theirs."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs the repository's history to clone from")
    uid, path = os.geteuid(), f"{Path(sys.base_prefix) / 'bin'}:{BARE_PATH}"
    if uid == 0:
        for tool in ("unshare", "ip", "setpriv"):
            if shutil.which(tool) is None:
                pytest.skip(f"needs {tool}")
        run_or_skip(
            "unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "ip", "link", "set", "lo", "up"
        )
    elif held := taken():
        pytest.skip(f"the tutorial uses the default ports, and something listens on {held}")
    if request.param != "myself":
        if uid != 0:
            pytest.skip("whoever runs this is an ordinary user already")
        uid, path = NOBODY, BARE_PATH
    place = Path(tempfile.mkdtemp(prefix="newcomer-", dir="/tmp"))
    try:
        subprocess.run(["git", "clone", "--quiet", ROOT, place / "clone"], check=True, capture_output=True)
        (place / "home").mkdir()
        place.chmod(0o755)
        who = Newcomer(place=place, path=path, uid=uid)
        if who.ordinary:
            subprocess.run(["chown", "-R", f"{uid}:{uid}", place / "clone", place / "home"], check=True)
            python = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "python3", "-c", CHECK]
            if subprocess.run(python, env={"PATH": path}, capture_output=True, check=False).returncode:
                pytest.skip("needs a python3 of 3.11 or newer with venv that everybody may run")
        yield who
    finally:
        shutil.rmtree(place)


@pytest.mark.timeout(600)
def test_from_a_clone_to_the_tutorials_end(newcomer: Newcomer) -> None:
    """The demo runs, the tutorial's commands work in their order, and the bots' files end as they began."""
    tutorial = (newcomer.place / "clone" / "docs" / "tutorial.md").read_text()
    set_up, *steps = re.findall(r"```bash\n(.*?)```", tutorial, re.DOTALL)
    assert set_up.splitlines()[0] == SET_UP
    readme = (newcomer.place / "clone" / "README.md").read_text()
    assert SET_UP in readme
    assert "docs/tutorial.md" in readme
    if newcomer.ordinary:
        newcomer.does(ELSEWHERE)
    newcomer.does(SET_UP)
    # The rest of the page needs no network, and has the ports to itself.
    script = "\n".join([*set_up.splitlines()[1:], *steps])
    printed = newcomer.does(script, apart=True)
    assert printed.count("8 of 8 participants hold what they should") == 3
    assert "drifted" in printed
    assert "HOST_HELD" in printed
    bots = sorted((newcomer.place / "home" / "bots").iterdir())
    assert len(bots) == 8
    for bot in bots:
        assert [file.name for file in bot.iterdir()] == ["SOUL.md"]
        assert (bot / "SOUL.md").read_text() == f"I am {bot.name}, and I answer as I please.\n"
        assert (bot / "SOUL.md").stat().st_uid == newcomer.uid
    assert (newcomer.place / "home" / "first-day" / "first-day.tar").stat().st_mode & 0o777 == 0o600
