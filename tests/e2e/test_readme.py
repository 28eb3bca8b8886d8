"""The README's "By hand" is run line by line, as a newcomer would."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
PORTS = (7400, 7401, 7402, 7410)


def taken() -> list[int]:
    """Which of the default ports somebody else holds."""
    held = []
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                held.append(port)
    return held


def test_every_line_of_by_hand(tmp_path: Path) -> None:
    """The commands work in the order they stand, and leave the files as they were."""
    if held := taken():
        pytest.skip(f"the README uses the default ports, and something listens on {held}")
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## By hand") : text.index("## How it works")]
    script = "\n".join(re.findall(r"```bash\n(.*?)```", section, re.DOTALL))
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "XDG_CONFIG_HOME": str(tmp_path / "home" / "config"),
    }
    (tmp_path / "work").mkdir()
    errors_file = (tmp_path / "err").open("wb")
    shell = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path / "work",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=errors_file,
        text=True,
        start_new_session=True,
    )
    try:
        assert shell.stdout is not None
        out = []
        while line := shell.stdout.readline():
            out.append(line)
            if "wrote backup.tar" in line:
                break
        code = shell.wait(timeout=2 * PATIENCE)
    finally:
        # the group this test started: the shell's own background jobs
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait()
        assert shell.stdout is not None
        shell.stdout.close()
        errors_file.close()
    printed, errors = "".join(out), (tmp_path / "err").read_text()
    assert code == 0, printed + errors[-3000:]
    assert "Traceback" not in errors
    assert printed.count("You are ") >= 2, printed
    assert printed.rindex("I am bot 1.") > printed.rindex("You are "), printed
    assert (tmp_path / "work" / "backup.tar").stat().st_mode & 0o777 == 0o600
