"""The first host, as its page says: every command is run, and what the page shows is what they print.

In a mount and network namespace of its own, where /etc is a copy and homes and state are empty; there is no
systemd, so what stands in for `systemctl` starts the unit's own command with the unit's own capabilities.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.privileged import run_or_skip
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
PAGE = ROOT / "docs" / "howto" / "first-host.md"

HOST = """
ip link set lo up
cp -a /etc "$T/etc" && mount --bind "$T/etc" /etc
for place in /home /run /var/lib; do mount -t tmpfs none $place; done
echo 'alice:x:4001:4001::/home/alice:/bin/sh' >> /etc/passwd
echo 'bob:x:4002:4002::/home/bob:/bin/sh' >> /etc/passwd
mkdir -p /home/alice/bots/scout/config /home/bob/bots/clerk
echo 'I am a scout' > /home/alice/bots/scout/SOUL.md
echo 'Be brief.' > /home/alice/bots/scout/config/tone.md
echo 'Be exact.' > /home/bob/bots/clerk/AGENTS.md
chown -R 4001:4001 /home/alice; chown -R 4002:4002 /home/bob; chmod 700 /home/alice /home/bob
variantd serve --data-dir "$T/d" >"$T/plane.log" 2>&1 &
variantctl login --data-dir "$T/d"
"""

SYSTEMCTL = """#!/bin/bash
set -euo pipefail
[ "$*" = daemon-reload ] && exit 0
[ "$1 $2" = "enable --now" ]
unit=/etc/systemd/system/$3
grep -q . "$unit.d/paths.conf"
bounds=$(sed -n 's/^CapabilityBoundingSet=//p' "$unit" | tr A-Z a-z | sed 's/cap_/+/g; s/ /,/g')
mkdir -p /run/"$(sed -n 's/^RuntimeDirectory=//p' "$unit")"
setpriv --bounding-set="-all,$bounds" --no-new-privs $(sed -n 's/^ExecStart=//p' "$unit") >"$T/agent.log" 2>&1 &
for _ in $(seq 300); do [ -e /var/lib/variant-agent/addresses.json ] && exit 0; sleep 0.1; done
cat "$T/agent.log"; exit 1
"""

SHOWN = """
echo == capabilities; grep CapEff "/proc/$(pgrep -nf 'variant-agent run')/status"
echo 'I am a guide' > guide.md; echo 'I am a spy' > spy.md
cat > soul.yaml <<'YAML'
apiVersion: variantd/v1
kind: Experiment
key: soul
name: Soul
targetFile: SOUL.md
participants: [scout]
metrics: {primary: {eventName: resolved, goal: increase}}
variants:
  - {name: Guide, isControl: true, weight: 50, contentFile: guide.md}
  - {name: Spy, weight: 50, contentFile: spy.md}
YAML
variantctl apply -f soul.yaml
variantctl experiments start soul
variantctl experiments wait soul
echo == file; stat -c '%U %a' /home/alice/bots/scout/SOUL.md; cat /home/alice/bots/scout/SOUL.md
echo == one user; variant-agent init /home/alice/bots/scout
echo == drop-in; cat /etc/systemd/system/variant-agent.service.d/paths.conf
echo == end
"""


def blocks(language: str) -> list[str]:
    """The page's blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_every_command_of_the_page(tmp_path: Path) -> None:
    """A host whose agent runs, writes alice's file as alice's, and has three capabilities."""
    for tool in ("ip", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    run_or_skip("unshare", "--mount", "--net", "--pid", "--fork", "mount", "-t", "tmpfs", "none", "/home")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "systemctl").write_text(SYSTEMCTL)
    (tmp_path / "bin" / "systemctl").chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    (work / "deploy").symlink_to(ROOT / "deploy")
    script = "\n".join((HOST, *blocks("bash"), SHOWN))
    # The namespace of processes ends with its first one, and everything started in it does too.
    apart = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc")
    done = subprocess.run(
        [*apart, "bash", "-euo", "pipefail", "-c", script],
        cwd=work,
        env={
            **os.environ,
            "T": str(tmp_path),
            "PATH": f"{tmp_path}/bin:{BIN}:{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE,
    )
    printed = done.stdout
    assert done.returncode == 0, printed[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    for text in blocks("text"):
        assert text in printed, text
    assert "CapEff:\t000000000000000b" in printed  # chown, dac_override, fowner
    owner, content = printed.partition("== file\n")[2].splitlines()[:2]
    assert owner == "alice 644"
    assert content in ("I am a guide", "I am a spy")
    assert "scout" in printed.partition("participant   ")[2].splitlines()[0]
    drop_in = printed.partition("== drop-in\n")[2].partition("== end")[0].splitlines()
    assert drop_in[1:] == [
        "[Service]",
        "BindPaths=-/home/alice/bots/scout",
        "BindPaths=-/home/bob/bots/clerk",
    ]
