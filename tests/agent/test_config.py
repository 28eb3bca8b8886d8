"""`agent.toml`: what it means, and every fault of it at once, by field."""

from pathlib import Path
from socket import gethostname

import pytest

from agent.config import AgentConfig, Probe, load
from shared.errors import Invalid
from shared.model import DriftPolicy, Exposure

FULL = """
[agent]
name = "host-1"
labels = { role = "support" }
local_http = "127.0.0.1:0"
socket = "agent.sock"
local_token_file = "token"
log_level = "debug"

[[participants]]
id = "bot-1"
root = "bots/1"
targets = ["SOUL.md", "config/*.md"]
labels = { tier = "gold" }
drift = "repair"
symlinks = "follow-within-root"
max_bytes = 2048
check = ["lint", "{staged}"]
reload = ["systemctl", "reload", "bot@1"]
probe = { http = "http://127.0.0.1:9000/health", window = "1.5m" }
exposure = "on_open"
allow_users = ["bot"]
share_content = true

[[participants]]
id = "0190d1a8-0000-7000-8000-000000000001"
root = "/srv/bots/2"
targets = ["SOUL.md"]
"""


def written(directory: Path, text: str) -> AgentConfig:
    path = directory / "agent.toml"
    path.write_text(text)
    return load(path)


def faults(directory: Path, text: str) -> dict[str, str]:
    """What is wrong, by field."""
    with pytest.raises(Invalid) as caught:
        written(directory, text)
    return {fault.field: fault.message for fault in caught.value.faults}


def test_every_setting_is_read(tmp_path: Path) -> None:
    """Relative paths are relative to the file."""
    config = written(tmp_path, FULL)
    assert (config.name, config.labels, config.log_level) == ("host-1", {"role": "support"}, "debug")
    assert (config.socket, config.local_token_file) == (tmp_path / "agent.sock", tmp_path / "token")
    first, second = config.participants
    assert (first.id, first.root, first.targets) == ("bot-1", tmp_path / "bots/1", ("SOUL.md", "config/*.md"))
    assert (first.drift, first.exposure) == (DriftPolicy.REPAIR, Exposure.ON_OPEN)
    assert (first.follow_symlinks, first.max_bytes, first.share_content) == (True, 2048, True)
    assert (first.check, first.reload) == (("lint", "{staged}"), ("systemctl", "reload", "bot@1"))
    assert first.probe == Probe(http="http://127.0.0.1:9000/health", window=90.0)
    assert (first.labels, first.allow_users) == ({"tier": "gold"}, ("bot",))
    assert second.root == Path("/srv/bots/2")


def test_what_is_left_out_has_safe_defaults(tmp_path: Path) -> None:
    """Nothing is followed, shared, run or repaired unless the host says so."""
    config = written(tmp_path, '[[participants]]\nid = "a"\nroot = "."\ntargets = ["x"]')
    [participant] = config.participants
    assert (config.name, config.local_http) == (gethostname(), "127.0.0.1:7410")
    assert config.local_token_file is None
    assert (participant.drift, participant.exposure) == (DriftPolicy.REPORT, Exposure.REPORTED)
    assert not participant.follow_symlinks
    assert not participant.share_content
    assert (participant.check, participant.reload, participant.probe) == ((), (), None)
    assert participant.max_bytes == 1_048_576


@pytest.mark.parametrize("drift", ["repair", "report", "hold", "exclude"])
def test_every_drift_policy_is_accepted(tmp_path: Path, drift: str) -> None:
    """As the reference lists them."""
    text = f'[[participants]]\nid = "a"\nroot = "."\ntargets = ["x"]\ndrift = "{drift}"'
    assert written(tmp_path, text).participants[0].drift is DriftPolicy(drift)


def test_every_fault_is_listed_at_once_by_field(tmp_path: Path) -> None:
    """A person mends the file once."""
    text = """
[agents]
[agent]
nmae = "x"
labels = { a = 1 }
log_level = "loud"
[[participants]]
id = "not an id"
targets = []
drift = "ignore"
symlinks = "follow"
max_bytes = 0
check = "lint"
share_content = "yes"
probe = { http = "x", window = "soon" }
[[participants]]
id = "b"
root = "."
targets = ["x"]
[[participants]]
id = "b"
root = "."
targets = [""]
max_bytes = true
"""
    assert set(faults(tmp_path, text)) == {
        "agents",
        "agent.nmae",
        "agent.labels",
        "agent.log_level",
        *(
            f"participants[0].{key}"
            for key in (
                "id",
                "root",
                "targets",
                "drift",
                "symlinks",
                "max_bytes",
                "check",
                "share_content",
                "probe",
            )
        ),
        *(f"participants[2].{key}" for key in ("id", "root", "targets", "max_bytes")),
    }


@pytest.mark.parametrize("text", ["[agent", "agent = 3 = 4", 'participants = "x"'])
def test_what_is_not_the_right_toml_is_said_plainly(tmp_path: Path, text: str) -> None:
    """No traceback for a typing mistake."""
    with pytest.raises(Invalid, match=r"TOML|participants"):
        written(tmp_path, text)


@pytest.mark.parametrize("glob", ["/etc/*", "../x.md", "a//b", "./x.md", "config/"])
def test_a_glob_that_can_match_nothing_is_a_fault(tmp_path: Path, glob: str) -> None:
    """Rather than a host that refuses everything and does not say why."""
    text = f'[[participants]]\nid = "a"\nroot = "."\ntargets = ["x", "{glob}"]'
    assert list(faults(tmp_path, text)) == ["participants[0].targets"]


def test_a_file_that_is_missing_says_how_to_name_one(tmp_path: Path) -> None:
    """The message names the file and the option."""
    with pytest.raises(Invalid, match="--config"):
        load(tmp_path / "agent.toml")


@pytest.mark.parametrize(
    "text", ["agent = 3", "agent = []", "participants = [1]", "[agent]\nlocal_token_file = 3"]
)
def test_a_value_where_a_table_belongs_is_a_fault_too(tmp_path: Path, text: str) -> None:
    """Whatever TOML allows, the answer is a fault."""
    with pytest.raises(Invalid):
        written(tmp_path, text)
