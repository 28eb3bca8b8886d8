"""Builds the Debian package of the agent: `make deb`.

Needs dpkg-deb, and uv in the environment it runs in; no debhelper and no root. The package carries the agent with
its locked requirements under /usr/lib/variant-agent, for the minor version of Python that it is built with: some of
them are compiled. The same sources give the same bytes (SOURCE_DATE_EPOCH, by default the moment of the last commit).
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SYSTEMD = ROOT / "deploy" / "systemd"
NAME = "variant-agent"
LIB = f"usr/lib/{NAME}"
UV = Path(sys.executable).parent / "uv"
LIBC = "2.28"  # what wheels for manylinux_2_28 need, the newest tag among the locked ones

FILES = {
    "variant-agent.service": "usr/lib/systemd/system/variant-agent.service",
    "variant-agent@.service": "usr/lib/systemd/system/variant-agent@.service",
    "user/variant-agent.service": "usr/lib/systemd/user/variant-agent.service",
    "tmpfiles.d/variant-agent.conf": "usr/lib/tmpfiles.d/variant-agent.conf",
    "polkit/50-variant-agent.rules": f"usr/share/doc/{NAME}/examples/50-variant-agent.rules",
}
"""What of deploy/systemd goes where. There is no sysusers.d: agents run as root, or as the owner of the files."""

NOT_SHIPPED = ("RECORD", "REQUESTED", "direct_url.json", "uv_cache.json")
"""What an installer notes of itself: it has paths of the machine it ran on, and dpkg knows better."""


def main() -> None:
    """The package is in --output; its path is printed."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--python", default="/usr/bin/python3", help="the python3 of the release it is for")
    options.add_argument("--output", type=Path, default=ROOT / "dist", help="where to put the package")
    options.add_argument("--revision", default="1", help="Debian revision")
    given = options.parse_args()
    if shutil.which("dpkg-deb") is None:
        raise SystemExit(
            "make deb needs dpkg-deb, which is on every Debian; elsewhere install the package dpkg"
        )
    version = f"{tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']}-{given.revision}"
    with tempfile.TemporaryDirectory(prefix="variant-agent-deb-") as folder:
        tree = Path(folder) / "tree"
        tree.mkdir(mode=0o755)
        minor = python_minor(given.python)
        install(given.python, tree / LIB, Path(folder))
        place(tree)
        control(tree, version=version, minor=minor)
        given.output.mkdir(parents=True, exist_ok=True)
        package = given.output / f"{NAME}_{version}_{architecture()}.deb"
        seal(tree, package)
    print(package)


def run(*command: str | Path, **env: str) -> str:
    """What the command printed; it succeeded."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **env},
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}")
    return done.stdout.strip()


def python_minor(python: str) -> int:
    """The minor version of that Python 3."""
    try:
        minor = int(run(python, "-c", "import sys; print(sys.version_info[1])"))
    except FileNotFoundError:
        raise SystemExit(f"{python} is not there; --python names the python3 the package is for") from None
    if minor < 11:
        raise SystemExit(f"{python} is 3.{minor}; the agent needs 3.11 or newer")
    return minor


def architecture() -> str:
    """Debian's name of this machine's."""
    return run("dpkg", "--print-architecture")


def install(python: str, target: Path, work: Path) -> None:
    """The agent and its locked requirements are in `target`, compiled, without a trace of this machine."""
    locked = ("--require-hashes", "--only-binary", ":all:")
    into = ("pip", "install", "--quiet", "--python", python, "--no-config", "--target")
    run(UV, *into, target, *locked, "-r", ROOT / "requirements" / "agent.txt")
    run(UV, *into, work / "build", *locked, "-r", ROOT / "requirements" / "build.txt")
    source = work / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("agent", "control_plane", "shared"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    wheel = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    name = run(
        python, "-c", f"import os; os.chdir({str(source)!r}); {wheel}", work, PYTHONPATH=str(work / "build")
    )
    run(UV, *into, target, "--no-deps", work / name.splitlines()[-1])
    for console_scripts in (target / "bin", target / ".lock"):
        if console_scripts.is_dir():
            shutil.rmtree(console_scripts)
        else:
            console_scripts.unlink(missing_ok=True)
    for note in NOT_SHIPPED:
        for found in target.glob(f"*.dist-info/{note}"):
            found.unlink()
    for cache in list(target.rglob("__pycache__")):
        shutil.rmtree(cache)
    # Nobody but dpkg writes there, so that nobody has to compare sources with what was compiled from them.
    run(
        *(python, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"),
        *("-s", str(target), "-p", f"/{LIB}", target),
        PYTHONHASHSEED="0",
    )


def place(tree: Path) -> None:
    """Launcher, units, default configuration and what Debian wants to be told are in their places."""
    for source, destination in FILES.items():
        copy(SYSTEMD / source, tree / destination)
    copy(HERE / "launcher.py", tree / "usr/bin" / NAME, mode=0o755)
    copy(HERE / "agent.toml", tree / "etc" / NAME / "agent.toml")
    copy(HERE / "copyright", tree / "usr/share/doc" / NAME / "copyright")
    copy(ROOT / "CHANGELOG.md", tree / "usr/share/doc" / NAME / "CHANGELOG.md")


def copy(source: Path, destination: Path, *, mode: int = 0o644) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)
    destination.chmod(mode)


def control(tree: Path, *, version: str, minor: int) -> None:
    """DEBIAN/ is there: what it is, what it needs, what is configuration, and what dpkg has to do."""
    debian = tree / "DEBIAN"
    debian.mkdir()
    files = sorted(path for path in tree.rglob("*") if path.is_file() and debian not in path.parents)
    size = sum(-(-path.stat().st_size // 1024) for path in files)
    text = (HERE / "control").read_text()
    for name, value in {
        "VERSION": version,
        "ARCHITECTURE": architecture(),
        "SIZE": str(size),
        "LIBC": LIBC,
        "PYTHON": f"3.{minor}",
        "NEXT_PYTHON": f"3.{minor + 1}",
    }.items():
        text = text.replace(f"@{name}@", value)
    assert not re.search(r"@\w+@", text)
    (debian / "control").write_text(text)
    (debian / "conffiles").write_text(f"/etc/{NAME}/agent.toml\n")
    sums = (f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n" for path in files)  # noqa: S324
    (debian / "md5sums").write_text("".join(sums))
    for script in ("postinst", "prerm", "postrm"):
        copy(HERE / script, debian / script, mode=0o755)


def seal(tree: Path, package: Path) -> None:
    """The package has these files, root's, all of one moment."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or last_commit()
    for path in everything(tree):
        if path.is_dir():
            path.chmod(0o755)
        elif path.parent != tree / "DEBIAN" and path.parent != tree / "usr/bin":
            path.chmod(0o644)
        os.utime(path, (int(epoch), int(epoch)), follow_symlinks=False)
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, package, SOURCE_DATE_EPOCH=epoch)


def everything(tree: Path) -> Iterable[Path]:
    """What is in the tree and the tree itself, the innermost first."""
    return [*sorted(tree.rglob("*"), reverse=True), tree]


def last_commit() -> str:
    """When the last commit was made, seconds; of sources without history, a moment long ago."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "1700000000"


if __name__ == "__main__":
    main()
