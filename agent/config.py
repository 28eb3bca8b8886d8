"""`agent.toml`: what belongs to the host, not to the server, as frozen values.

Light on purpose (tomllib and dataclasses): an agent at rest should import little. Every problem of a file
is reported at once, by field.
"""

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from socket import gethostname
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from agent.doors import is_loopback
from shared.errors import Fault, Invalid
from shared.model import PARTICIPANT_ID, DriftPolicy, Exposure


class WhenFull(StrEnum):
    """What becomes of a report that finds the spool full."""

    BLOCK = "block"
    DROP_NEWEST = "drop_newest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A health probe: `http`, on this host, answers 2xx throughout `window` seconds after a swap."""

    http: str
    window: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantConfig:
    """One workspace: where it is and what may happen in it."""

    id: str
    root: Path
    targets: tuple[str, ...]
    labels: dict[str, str] = field(default_factory=dict)
    drift: DriftPolicy = DriftPolicy.REPORT
    follow_symlinks: bool = False
    max_bytes: int = 1_048_576
    check: tuple[str, ...] = ()
    reload: tuple[str, ...] = ()
    probe: Probe | None = None
    exposure: Exposure = Exposure.REPORTED
    allow_users: tuple[str, ...] = ()
    share_content: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """The whole of `agent.toml`."""

    name: str
    labels: dict[str, str]
    local_http: str
    socket: Path
    local_token_file: Path | None
    participants: tuple[ParticipantConfig, ...]
    log_level: str = "info"
    transport: str = "stream"
    spool_full: WhenFull = WhenFull.BLOCK
    adopt: str = "signed"


class Key(NamedTuple):
    """A key of agent.toml: its default as it is written there (empty: none), and what it is for."""

    default: str
    meaning: str


AGENT_KEYS: Mapping[str, Key] = {
    "name": Key("", "name of this host there; default: the host name"),
    "labels": Key("", "shown under `host.`"),
    "local_http": Key(
        "127.0.0.1:7410", "health, status, metrics; port 0 takes a free one (`STATE_DIR/addresses.json`)"
    ),
    "socket": Key("/run/variant-agent/agent.sock", "the local API"),
    "local_token_file": Key(
        "", "opens the event routes on loopback HTTP too, with the bearer token in this file"
    ),
    "log_level": Key("info", "`debug`, `info`, `warning` or `error`"),
    "transport": Key(
        "stream",
        "how the host talks with the control plane: `stream`, or `poll` behind a proxy that cuts gRPC streams,"
        " see [polls](#polls)",
    ),
    "spool_full": Key(
        "block",
        "what becomes of reports while the spool is full: `block` refuses them (429), `drop_newest` takes and counts"
        " them, see [a full spool](#a-full-spool)",
    ),
    "adopt": Key(
        "signed",
        "how a restored control plane is followed: `signed` by itself where it proves to succeed the one before,"
        " `manual` only by `variant-agent adopt`",
    ),
}
PARTICIPANT_KEYS: Mapping[str, Key] = {
    "id": Key("", "a UUID or a name; required"),
    "root": Key("", "the workspace; required"),
    "targets": Key(
        "", "globs of files that may be written, required: `*` within a folder, `**` across folders"
    ),
    "labels": Key("", "shown under `host.`"),
    "drift": Key(
        "report",
        "what happens to a target that somebody else changed: `report`, `repair`, `hold` or `exclude`,"
        " see [drift](#drift)",
    ),
    "symlinks": Key("refuse", "or `follow-within-root`"),
    "max_bytes": Key("1048576", "largest content"),
    "check": Key("", "command run on each staged file, `{staged}` is its path; failure refuses the offer"),
    "reload": Key("", "command run after a swap; failure puts the previous content back"),
    "probe": Key(
        "",
        'health after a swap: `{ http = "http://127.0.0.1:9000/health", window = "60s" }`, see [health](#health)',
    ),
    "exposure": Key(
        "reported",
        "what an impression is: `reported`, or `on_open`, every time a target is opened and read, see"
        " [opens](#opens)",
    ),
    "allow_users": Key("", "users besides the root's owner that may report for it"),
    "share_content": Key(
        "false",
        "whether operators that hold `content:read` may read the targets (`variantctl participants read`)",
    ),
}
MIN_WINDOW, MAX_WINDOW = 0.1, 3600.0
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class _Reader:
    """Takes typed values out of one table and collects what is wrong with them."""

    def __init__(
        self, table: dict[str, Any], where: str, allowed: Collection[str], faults: list[Fault]
    ) -> None:
        self.table, self.where, self.faults = table, where, faults
        for key in sorted(set(table) - set(allowed)):
            self.fault(key, "is not a setting", f"known are {', '.join(sorted(allowed))}")

    def fault(self, key: str, message: str, remedy: str = "") -> None:
        self.faults.append(Fault(field=f"{self.where}.{key}", message=message, remedy=remedy))

    def text(self, key: str, default: str | None = None) -> str:
        value = self.table.get(key, default)
        if isinstance(value, str) and value:
            return value
        self.fault(key, "must be a text", "" if key in self.table else f'add {key} = "…"')
        return ""

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.table.get(key, [])
        if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
            return tuple(value)
        self.fault(key, "must be a list of texts")
        return ()

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self.table.get(key, default)
        if value in choices:
            return str(value)
        self.fault(key, f"is {value!r}", f"choose one of {', '.join(choices)}")
        return default

    def labels(self) -> dict[str, str]:
        value = self.table.get("labels", {})
        if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
            return dict(value)
        self.fault("labels", "must map names to texts", 'write labels = { role = "support" }')
        return {}

    def whole(self, key: str, default: int, lowest: int, highest: int) -> int:
        value = self.table.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest:
            return value
        self.fault(key, f"must be a whole number from {lowest} to {highest}")
        return default

    def flag(self, key: str) -> bool:
        value = self.table.get(key, False)
        if isinstance(value, bool):
            return value
        self.fault(key, "must be true or false")
        return False

    def probe(self) -> Probe | None:
        value = self.table.get("probe")
        if value is None:
            return None
        window = _DURATION.fullmatch(str(value.get("window", "60s"))) if isinstance(value, dict) else None
        if window is None or not isinstance(value.get("http"), str) or set(value) - {"http", "window"}:
            self.fault("probe", "is not a probe", 'write probe = { http = "http://…", window = "60s" }')
            return None
        seconds = float(window[1]) * _UNIT_SECONDS[window[2]]
        if fault := _probe_fault(value["http"]):
            self.fault("probe.http", f"{value['http']!r} {fault}", "write http://127.0.0.1:PORT/PATH")
        if not MIN_WINDOW <= seconds <= MAX_WINDOW:
            self.fault("probe.window", f"must be from {MIN_WINDOW:g} seconds to an hour")
        return Probe(http=value["http"], window=seconds)


def _probe_fault(url: str) -> str:
    """What keeps `url` from being a probe's; empty: nothing."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "is no address"
    if parts.scheme != "http" or not host or parts.username is not None:
        return "is no http:// address"
    if not is_loopback(host) or port == 0:
        return "is not on this host"
    return ""


def load(path: Path) -> AgentConfig:
    """The configuration in `path`. Raises Invalid that lists every fault by field."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Invalid(f"{path}: {error.strerror}; `--config` names the agent's agent.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} is not TOML: {error}") from None
    return parse(table, relative_to=path.parent)


def parse(table: dict[str, Any], *, relative_to: Path) -> AgentConfig:
    """The configuration in a TOML document; relative paths are relative to `relative_to`.

    Raises Invalid that lists every fault by field.
    """
    faults: list[Fault] = [
        Fault(field=key, message="is not a table", remedy="known are [agent] and [[participants]]")
        for key in sorted(set(table) - {"agent", "participants"})
    ]
    settings = table.get("agent", {})
    if not isinstance(settings, dict):
        faults.append(Fault(field="agent", message="must be an [agent] table"))
        settings = {}
    agent = _Reader(settings, "agent", AGENT_KEYS, faults)
    token_file = agent.text("local_token_file") if "local_token_file" in settings else ""
    config = AgentConfig(
        name=agent.text("name", gethostname()),
        labels=agent.labels(),
        local_http=agent.text("local_http", "127.0.0.1:7410"),
        socket=relative_to / agent.text("socket", "/run/variant-agent/agent.sock"),
        local_token_file=relative_to / token_file if token_file else None,
        log_level=agent.choice("log_level", ("debug", "info", "warning", "error"), "info"),
        transport=agent.choice("transport", ("stream", "poll"), "stream"),
        spool_full=WhenFull(agent.choice("spool_full", tuple(WhenFull), WhenFull.BLOCK)),
        adopt=agent.choice("adopt", ("signed", "manual"), "signed"),
        participants=tuple(_participants(table.get("participants", []), relative_to, faults)),
    )
    for attribute in ("id", "root"):
        seen: set[object] = set()
        for index, participant in enumerate(config.participants):
            value = getattr(participant, attribute)
            where = f"participants[{index}].{attribute}"
            if any(fault.field == where for fault in faults):
                continue  # what stands in for a faulty value is nobody's
            if value in seen:
                faults.append(Fault(field=where, message=f"{str(value)!r} is taken by another participant"))
            seen.add(value)
    if faults:
        listed = "; ".join(f"{fault.field} {fault.message}" for fault in faults)
        raise Invalid(f"agent.toml: {listed}", reason="BAD_CONFIG", faults=faults)
    return config


def _participants(tables: object, relative_to: Path, faults: list[Fault]) -> Iterator[ParticipantConfig]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        faults.append(Fault(field="participants", message="must be [[participants]] tables"))
        return
    for index, table in enumerate(tables):
        reader = _Reader(table, f"participants[{index}]", PARTICIPANT_KEYS, faults)
        name = reader.text("id")
        if name and not PARTICIPANT_ID.fullmatch(name):
            reader.fault("id", f"{name!r} is not an id", "letters, digits, . _ - and at most 128 of them")
        if not table.get("targets"):
            reader.fault("targets", "allows no file", 'write targets = ["config/*.md"]')
        targets = reader.texts("targets")
        for glob in targets:
            if not {"", ".", ".."}.isdisjoint(glob.split("/")):
                reader.fault(
                    "targets", f"{glob!r} describes no file within the root", "write a relative path"
                )
        yield ParticipantConfig(
            id=name,
            root=(
                relative_to / reader.text("root")
            ).absolute(),  # its commands are run in it, and told of files in it
            targets=targets,
            labels=reader.labels(),
            drift=DriftPolicy(reader.choice("drift", tuple(DriftPolicy), "report")),
            follow_symlinks=reader.choice("symlinks", ("refuse", "follow-within-root"), "refuse") != "refuse",
            max_bytes=reader.whole("max_bytes", 1_048_576, 1, 64 * 1_048_576),
            check=reader.texts("check"),
            reload=reader.texts("reload"),
            probe=reader.probe(),
            exposure=Exposure(reader.choice("exposure", tuple(Exposure), "reported")),
            allow_users=reader.texts("allow_users"),
            share_content=reader.flag("share_content"),
        )
