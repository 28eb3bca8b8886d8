"""Every command of the how-tos runs, from where the README's "By hand" leaves off."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"```(bash|python|js)\n(.*?)```", re.DOTALL)
RUN = {
    "python": 'python3 - <<"VARIANTD_DOC"\n{}\nVARIANTD_DOC\n',
    "js": 'node - <<"VARIANTD_DOC"\n{}\nVARIANTD_DOC\n',
}
CONTINUES = "go on from the README"
LISTENERS = ("HTTP", "OPERATOR", "AGENTS")


def free_ports() -> list[int]:
    """One for each listener."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in LISTENERS]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def start_of_the_readme() -> str:
    """The README's commands until the experiment runs, on free ports."""
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## By hand") : text.index("The application on the host")]
    script = "\n".join(body for _, body in BLOCK.findall(section))
    return script.replace("[agent]\n", '[agent]\nlocal_http = "127.0.0.1:0"\n')


def steps(page: Path) -> str:
    """The page's own commands, each language by its interpreter."""
    script = []
    for language, body in BLOCK.findall(page.read_text()):
        if language == "js" and shutil.which("node") is None:
            continue  # said by the test below
        script.append(RUN.get(language, "{}").format(body))
    return "\n".join(script)


PAGES = [page for page in sorted((ROOT / "docs" / "howto").glob("*.md")) if CONTINUES in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_howto(tmp_path: Path, page: Path) -> None:
    """The page's commands work in the order they stand."""
    work = tmp_path / "work"
    work.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "XDG_CONFIG_HOME": str(tmp_path / "home" / "config"),
        # Free, and the same over a restart.
        **{
            f"VARIANTD_{name}": f"127.0.0.1:{port}"
            for name, port in zip(LISTENERS, free_ports(), strict=True)
        },
        "VARIANT_AGENT_RECONNECT_JITTER": "0.1",
    }
    script = start_of_the_readme() + "\n" + steps(page)
    with (tmp_path / "out").open("wb") as out:
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=work,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait(timeout=150)
        finally:
            # the group this test started: the shell's own background jobs
            os.killpg(shell.pid, signal.SIGTERM)
            shell.wait()
    printed = (tmp_path / "out").read_text()
    assert code == 0, printed[-4000:]
    assert "Traceback" not in printed
    if page.stem == "report":
        assert "reported from Python" in printed
        if shutil.which("node") is None:
            pytest.skip("the page's Node example needs node; everything else on it ran")
        assert "reported from Node" in printed


def test_there_are_howtos() -> None:
    """The pages that go on from the README are found."""
    assert {page.stem for page in PAGES} >= {
        "report",
        "pipeline",
        "backup",
        "retire",
        "upgrade",
    }
