"""The balancer's configuration is one."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "deploy" / "haproxy" / "haproxy.cfg"


def test_haproxy_takes_its_configuration() -> None:
    """As haproxy itself says, without a warning."""
    program = shutil.which("haproxy")
    if program is None:
        pytest.skip("needs haproxy to check its configuration")
    done = subprocess.run([program, "-c", "-f", str(FILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_every_port_is_balanced_over_every_server_and_passed_through() -> None:
    """TLS ends at the servers: nothing here decrypts, and the three ports are the settings' defaults."""
    text = re.sub(r"#.*", "", FILE.read_text())
    assert "mode tcp" in text
    assert not re.search(r"\bcrt\b|\bmode http\b", text)
    ports = re.findall(r"bind :(\d+)", text)
    assert sorted(ports) == ["7400", "7401", "7402"]
    for port in ports:
        assert len(set(re.findall(rf"server \w+ (\S+):{port}", text))) == 3
