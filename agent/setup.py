"""A host's first agent.toml: `variant-agent init` finds what bots read and writes down what may be written.

Hides which files those are, how participants are named and what the file looks like. What it writes allows
no more than the files it found.
"""

import errno
import json
import os
import re
import shlex
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent import units
from agent.config import parse
from agent.distinct import check_distinct
from agent.durable import sync_directory
from agent.units import Unit
from shared.errors import AlreadyExists, Fault, Invalid, PermissionDenied
from shared.model import PARTICIPANT_ID

WELL_KNOWN = ("SOUL.md", "IDENTITY.md", "AGENTS.md", "CLAUDE.md")
FOLDER, FOLDER_GLOB = "config", "config/*.md"

_HEAD = """\
# What variantd's agent may write on this host, and nothing else; the control plane cannot widen it.
# `{check}` says what it means here.
# Made by `variant-agent init`; every setting is in docs/reference/configuration.md.

[agent]
# name = "…"                      # of this host in the control plane; default: its host name
socket = {socket}
local_http = {local_http}
# transport = "poll"              # where a proxy on the way cuts gRPC streams
"""

_TAIL = """
# A participant may have besides, with these defaults or such values:
# labels = { role = "support" }       shown under host.
# max_bytes = 1048576                 the largest content it takes
# symlinks = "refuse"                 or "follow-within-root"
# check = ["/usr/local/bin/lint", "{staged}"]             asked before a file is replaced
# reload = ["systemctl", "reload", "bot@1.service"]       run afterwards; its failure puts the old file back
# allow_users = ["app"]               who may report for it, besides the root's owner
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workspace:
    """A workspace that was found: its files, and the links that stay out."""

    root: Path
    id: str
    targets: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What to write where, the unit it is for, and the workspaces in which nothing was found."""

    unit: Unit
    config: Path
    text: str
    participants: tuple[str, ...]
    left_out: tuple[Path, ...]

    def next_steps(self) -> list[str]:
        """What there is to do until the agent runs, as a person reads and copies it; root's, or the user's."""
        unit, config = self.unit, shlex.quote(str(self.config))
        system = "systemctl --user" if unit.is_user_unit else "systemctl"
        enroll = f"variant-agent enroll --token-file token --state-dir {unit.state_dir}"
        if not unit.is_user_unit and unit.uid != 0:
            # As that user, so that the identity is readable by the agent, from a token that need not be.
            enroll = (
                f"install -d -m 0700 -o {unit.user} {unit.state_dir}\n"
                f"  runuser -u {unit.user} -- variant-agent enroll --token-file - --state-dir {unit.state_dir} < token"
            )
        files = unit.drop_ins.parent
        steps = [
            f"Unit: {unit.name}, which runs as {unit.user} {unit.rights} ({unit.because}).",
            "",
            "Next:",
            f"  variant-agent check --config {config}",
            "  variantctl agents token --quiet > token        (where an operator is logged in; bring it here)",
            f"  {enroll}",
            f"  install -D -m 0644 deploy/systemd/{unit.file} {files / Path(unit.file).name}",
        ]
        if unit.needs_drop_in(self.config):
            steps += [
                f"  mkdir -p {unit.drop_ins}",
                f"  variant-agent check --config {config} --units > {unit.drop_ins}/paths.conf",
            ]
        steps += [f"  {system} daemon-reload", f"  {system} enable --now {unit.name}"]
        if unit.is_user_unit:
            steps.append(f"  loginctl enable-linger {unit.user}        (root's; it goes on after logout)")
        return steps


def plan(paths: Sequence[Path], *, config: Path | None) -> Setup:
    """An agent.toml for the workspaces at `paths`; `config` is where it shall be, by default the unit's place.

    A workspace without any of the files is left out. Raises Invalid that lists every path that is no
    directory, where nothing is left, or where two workspaces would share a file.
    """
    roots = _roots(paths)
    unit = units.fitting(roots)
    where = (config or unit.config).absolute()
    found: list[_Workspace] = []
    for root in roots:
        targets, notes = _targets(root)
        if targets:
            name = _name(root, {workspace.id for workspace in found})
            found.append(_Workspace(root=root, id=name, targets=targets, notes=notes))
    if not found:
        wanted = ", ".join((*WELL_KNOWN, FOLDER_GLOB))
        listed = ", ".join(str(root) for root in roots)
        raise Invalid(f"none of {wanted} is in {listed}; give each workspace by itself, such as bots/*")
    text = _text(found, unit, where)
    check_distinct(parse(tomllib.loads(text), relative_to=where.parent))
    return Setup(
        unit=unit,
        config=where,
        text=text,
        participants=tuple(workspace.id for workspace in found),
        left_out=tuple(root for root in roots if root not in {workspace.root for workspace in found}),
    )


def write(setup: Setup, *, force: bool) -> None:
    """The file is there, whole and durable, readable by everybody. Never in the place of another unless `force`.

    Raises AlreadyExists, PermissionDenied.
    """
    path = setup.config
    try:
        if not path.parent.exists():
            path.parent.mkdir(mode=0o755, parents=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=".variantd-"
        ) as fresh:
            fresh.write(setup.text)
            fresh.flush()
            os.fchmod(fresh.fileno(), 0o644)
            os.fsync(fresh.fileno())
            if force:
                beside = Path(fresh.name + ".new")
                os.link(fresh.name, beside)
                beside.replace(path)
            else:
                os.link(fresh.name, path)
        sync_directory(path.parent)
    except FileExistsError:
        raise AlreadyExists(
            f"{path} is there already; --force replaces it, `--config -` prints what would be written"
        ) from None
    except OSError as error:
        raise PermissionDenied(
            f"{path}: {os.strerror(error.errno or errno.EIO)}; `--config` names another place, - prints it"
        ) from None


def _roots(paths: Sequence[Path]) -> list[Path]:
    roots: list[Path] = []
    faults = []
    for path in paths:
        root = path.resolve()
        if not root.is_dir():
            faults.append(Fault(field=str(path), message="is no directory", remedy="give workspaces"))
        elif not units.nameable(root):
            faults.append(
                Fault(
                    field=repr(str(path)),
                    message="has a quote, colon, backslash or control character in its name",
                    remedy="no unit can name it; rename the directory",
                )
            )
        elif root not in roots:
            roots.append(root)
    if faults:
        listed = "; ".join(f"{fault.field} {fault.message}" for fault in faults)
        raise Invalid(f"init: {listed}", faults=faults)
    return roots


def _targets(root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files of a workspace that bots are known to read, as globs; and what is to be said of the others."""
    targets, notes = [], []
    for name in WELL_KNOWN:
        path = root / name
        if path.is_symlink():
            notes.append(f"{name} is left out: it is a symbolic link, and links are refused")
        elif path.is_file():
            targets.append(name)
    folder = root / FOLDER
    if folder.is_symlink():
        notes.append(f"{FOLDER} is left out: it is a symbolic link, and links are refused")
    elif any(
        path.is_file() and not path.is_symlink() and not path.name.startswith(".")
        for path in folder.glob("*.md")
    ):
        targets.append(FOLDER_GLOB)
    return tuple(targets), tuple(notes)


def _name(root: Path, taken: set[str]) -> str:
    """An id for the workspace: its directory's name, with the one above where that is taken, then a number."""
    short = _plain(root.name) or "bot"
    if short not in taken:
        return short
    long = _plain(f"{root.parent.name}-{root.name}") or short
    number, name = 2, long
    while name in taken:
        name, number = f"{long[:120]}-{number}", number + 1
    return name


def _plain(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("-._")[:128].rstrip("-")
    return name if PARTICIPANT_ID.fullmatch(name) else ""


def _text(found: Sequence[_Workspace], unit: Unit, config: Path) -> str:
    check = f"variant-agent check --config {config}"
    # Several agents may run on a host, but only the one of the host can count on the well-known port.
    port = 7410 if unit.uid == 0 and unit.sandboxed else 0
    parts = [_HEAD.format(check=check, socket=_toml(str(unit.socket)), local_http=_toml(f"127.0.0.1:{port}"))]
    for workspace in found:
        owner = units.user_name(workspace.root.stat().st_uid)
        lines = [
            "",
            "[[participants]]",
            f"id = {_toml(workspace.id)}  # unique among all hosts of the project",
            f"root = {_toml(str(workspace.root))}  # of {owner}",
            f"targets = [{', '.join(map(_toml, workspace.targets))}]",
            *(f"# {note}" for note in workspace.notes),
        ]
        parts.append("\n".join(lines) + "\n")
    return "".join(parts) + _TAIL


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
