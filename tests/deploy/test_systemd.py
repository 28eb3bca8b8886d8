"""The files for systemd: accepted by its own tools, and as locked up as they claim to be.

No service is started here, which would need a system of its own: these tests are about the files.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent import units

SYSTEMD = Path(__file__).resolve().parent.parent.parent / "deploy" / "systemd"
BIN = Path(sys.executable).parent
EXPOSED_AT_MOST = {"variant-agent.service": 2.1, "variant-agent@.service": 1.5, "variantd.service": 2.0}


def tool(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """What a tool of systemd printed; the test is skipped where it is not installed."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"needs {command[0]}")
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0", **(env or {})},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def installed(unit: str, directory: Path) -> Path:
    """A copy of the unit that starts the programs of this environment."""
    text = (SYSTEMD / unit).read_text()
    copy = directory / Path(unit).name.replace("@.", "@alice.")
    copy.write_text(re.sub(r"^(Exec\w+=)(?=variant)", rf"\1{BIN}/", text, flags=re.MULTILINE))
    assert f"ExecStart={BIN}/" in copy.read_text()
    return copy


@pytest.mark.parametrize("unit", sorted(EXPOSED_AT_MOST))
def test_the_unit_is_valid(unit: str, tmp_path: Path) -> None:
    """systemd knows every setting and finds the program; it prints nothing where nothing is wrong."""
    assert tool("systemd-analyze", "verify", "--man=no", installed(unit, tmp_path)) == ""


def test_the_user_unit_is_valid(tmp_path: Path) -> None:
    """The same for the unit of one's own."""
    unit = installed("user/variant-agent.service", tmp_path)
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert tool("systemd-analyze", "verify", "--user", "--man=no", unit, env=runtime) == ""


@pytest.mark.parametrize(("unit", "most"), sorted(EXPOSED_AT_MOST.items()))
def test_the_exposure_is_no_higher_than_promised(unit: str, most: float) -> None:
    """By systemd's own measure, 0 to 10."""
    said = tool("systemd-analyze", "security", "--offline=true", "--no-pager", SYSTEMD / unit)
    exposure = re.search(r"Overall exposure level for \S+: (\d+\.\d)", said)
    assert exposure is not None, said
    assert float(exposure[1]) <= most, said


def settings(unit: str) -> dict[str, list[str]]:
    """The settings of a unit in the order they stand."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", (SYSTEMD / unit).read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def test_capabilities_are_the_three_of_the_host_and_none_of_the_others() -> None:
    """Root without anything but what replacing other people's files takes."""
    host = settings("variant-agent.service")
    assert sorted(host["CapabilityBoundingSet"][0].split()) == ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"]
    assert "User" not in host
    for unit, user in (("variant-agent@.service", "%i"), ("variantd.service", "variantd")):
        assert (settings(unit)["CapabilityBoundingSet"], settings(unit)["User"]) == ([""], [user])


def test_system_users_and_directories_are_made(tmp_path: Path) -> None:
    """variantd's user, its private data and settings; the agent's state is root's."""
    if os.geteuid() != 0:
        pytest.skip("needs root to give directories away")
    (tmp_path / "etc").mkdir()
    tool("systemd-sysusers", f"--root={tmp_path}", SYSTEMD / "sysusers.d" / "variantd.conf")
    passwd = (tmp_path / "etc" / "passwd").read_text()
    user = re.search(r"^variantd:x:(\d+):(\d+):.*:/var/lib/variantd:\S*nologin$", passwd, re.MULTILINE)
    assert user is not None, passwd
    files = [SYSTEMD / "tmpfiles.d" / name for name in ("variantd.conf", "variant-agent.conf")]
    tool("systemd-tmpfiles", f"--root={tmp_path}", "--create", *files)
    uid, gid = int(user[1]), int(user[2])
    for path, expected in {
        "etc/variantd": (0o750, 0, gid),
        "var/lib/variantd": (0o700, uid, gid),
        "etc/variant-agent": (0o755, 0, 0),
        "var/lib/variant-agent": (0o700, 0, 0),
    }.items():
        found = (tmp_path / path).stat()
        assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == expected, path


@pytest.mark.parametrize("user", ["root", "daemon"])
def test_the_printed_drop_in_is_valid(user: str, tmp_path: Path) -> None:
    """systemd reads it with the unit; a path that is none would be told, as the second half shows."""
    if os.geteuid() != 0:
        pytest.skip("needs root to choose a unit for another user")
    unit = units.fitting((), user=user)
    copy = installed(unit.file, tmp_path).rename(tmp_path / unit.name)
    roots = [Path("/srv/bots/1"), Path("/home/a user/50% bot")]
    (tmp_path / f"{unit.name}.d").mkdir()
    printed = tmp_path / f"{unit.name}.d" / "paths.conf"
    printed.write_text(units.drop_in(unit, roots, config=unit.config))
    assert tool("systemd-analyze", "verify", "--man=no", copy) == ""
    printed.write_text(printed.read_text().replace("-/srv", "-srv"))
    assert "not absolute" in tool("systemd-analyze", "verify", "--man=no", copy)
