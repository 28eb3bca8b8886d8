"""What an `agent.toml` means on this host, before an agent runs with it: `variant-agent check`.

Asks the same code the agent asks when it writes, with the rights of the user the agent will have, and
writes nothing. Hides what can be wrong between a configuration and a host.
"""

import os
import pwd
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent import units
from agent.config import AgentConfig, ParticipantConfig, load
from agent.distinct import check_distinct
from agent.files import Workspace, refusal
from agent.policy import Refused, show
from agent.units import Unit
from shared.errors import Fault, Invalid
from shared.model import ReasonCode

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong: an error is refused by the agent sooner or later, a warning may be meant."""

    severity: str
    field: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetFile:
    """A file that a target glob describes; `code` and `message` say why it would be refused, if it would.

    `size` and `owner` are None where there is no file yet, or it cannot be looked at.
    """

    path: str
    glob: str
    size: int | None
    owner: str | None
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """One participant: every file it allows that is there, or that a glob names by its whole path."""

    id: str
    root: Path
    owner: str | None
    targets: tuple[str, ...]
    files: tuple[TargetFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an agent.toml means here."""

    config: Path
    unit: Unit
    participants: tuple[Inspected, ...]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """There is no error; there may be warnings."""
        return not any(problem.severity == ERROR for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        """All of it, in words of JSON."""
        return {
            "config": str(self.config),
            "ok": self.ok,
            "unit": self.unit.name,
            "user": self.unit.user,
            "participants": [
                {**asdict(participant), "root": str(participant.root)} for participant in self.participants
            ],
            "problems": [asdict(problem) for problem in self.problems],
        }

    def lines(self) -> Iterator[str]:
        """All of it, for a person."""
        yield f"{self.config}"
        yield f"  unit     {self.unit.name} ({self.unit.because})"
        yield f"  runs as  {self.unit.user}, {self.unit.rights}"
        for participant in self.participants:
            yield ""
            yield f"{participant.id}  {participant.root}" + (
                f", of {participant.owner}" if participant.owner else ""
            )
            yield from _file_lines(participant)
        if self.participants:
            yield ""
            yield "Nothing else: every other path is refused, whatever the control plane asks for."
        if self.problems:
            yield ""
            yield from told(self.problems)
        yield ""
        yield "ok" if self.ok else "not ok: the errors above have to be corrected"


def told(problems: Sequence[Problem]) -> Iterator[str]:
    """A line for each problem, errors first."""
    for problem in sorted(problems, key=lambda problem: problem.severity):
        remedy = f" ({problem.remedy})" if problem.remedy else ""
        yield f"{problem.severity:<8} {problem.field} {problem.message}{remedy}"


def _file_lines(participant: Inspected) -> Iterator[str]:
    for file in participant.files:
        if file.code:
            yield f"  may not write  {file.path}  {file.code}"
        elif file.size is None:
            yield f"  may make       {file.path}"
        else:
            yield f"  may write      {file.path}  {file.size} bytes, of {file.owner}"
    for glob in participant.targets:
        if not any(file.glob == glob for file in participant.files):
            yield f"  would write    {glob}  nothing there matches"


def inspect(path: Path | None, *, user: str | None = None) -> tuple[Report, AgentConfig | None]:
    """What the agent.toml at `path` means here, and the configuration in it where there is one.

    Without a path it is the one of the host's agent, or of one's own where it is not root who asks.

    `user`: whom the agent runs as, where that is not what fits best. Raises Invalid where it cannot be told.
    """
    path = Path(os.path.abspath(path or units.fitting(()).config))  # noqa: PTH100 - not resolved: the name that was given stays
    try:
        config = load(path)
    except Invalid as error:
        faults = error.faults or [Fault(field="--config", message=error.message)]
        unit = units.fitting((), user=user)
        return Report(config=path, unit=unit, participants=(), problems=_errors(faults)), None
    unit = units.fitting((participant.root for participant in config.participants), user=user)
    problems = [*_ownership(path, unit)]
    with units.acting_as(unit):
        problems += _agent(path, config, unit)
        inspected = []
        for index, participant in enumerate(config.participants):
            files = _files(participant, f"participants[{index}]", problems)
            inspected.append(
                Inspected(
                    id=participant.id,
                    root=participant.root,
                    owner=_owner(participant.root),
                    targets=participant.targets,
                    files=tuple(files),
                )
            )
            problems += _host(participant, f"participants[{index}]", unit)
        try:
            check_distinct(config)
        except Invalid as error:
            problems += _errors(error.faults)
    return (
        Report(config=path, unit=unit, participants=tuple(inspected), problems=tuple(problems)),
        config,
    )


def _errors(faults: Sequence[Fault]) -> tuple[Problem, ...]:
    return tuple(Problem(severity=ERROR, **asdict(fault)) for fault in faults)


def _owner(path: Path) -> str | None:
    try:
        return units.user_name(path.stat().st_uid)
    except OSError:
        return None


# -- the agent -----------------------------------------------------------------------------------------


def _ownership(path: Path, unit: Unit) -> Iterator[Problem]:
    """agent.toml decides what is written, so whoever may change it may too."""
    found = path.stat()
    if unit.is_user_unit or (found.st_uid == 0 and not found.st_mode & 0o022):
        return
    yield Problem(
        severity=WARNING,
        field="--config",
        message=f"{path} can be changed by others than root, who decide then what the agent writes",
        remedy=f"chown root {path}; chmod go-w {path}",
    )


def _agent(path: Path, config: AgentConfig, unit: Unit) -> Iterator[Problem]:
    """The [agent] table, as the user the agent runs as."""
    if not os.access(path, os.R_OK):
        yield Problem(
            severity=ERROR,
            field="--config",
            message=f"{path} cannot be read by {unit.user}",
            remedy=f"chmod a+r {path}, and a+x the directories above it",
        )
    if not config.socket.is_relative_to(unit.runtime_dir):
        yield Problem(
            severity=WARNING,
            field="agent.socket",
            message=f"is {config.socket}; {unit.name} brings the directory {unit.runtime_dir}",
            remedy=f'write socket = "{unit.socket}" to run under systemd',
        )
    if unit.homes_hidden and any(path.is_relative_to(home) for home in units.HOMES):
        yield Problem(
            severity=ERROR,
            field="--config",
            message=f"{path} lies where {unit.name} sees only workspaces",
            remedy=f"move it to {unit.config}",
        )
    token = config.local_token_file
    if token is not None and not os.access(token, os.R_OK):
        yield Problem(
            severity=ERROR, field="agent.local_token_file", message=f"{token} cannot be read by {unit.user}"
        )
    if not config.participants:
        yield Problem(
            severity=WARNING,
            field="participants",
            message="there is none, so the agent writes nothing",
            remedy="add [[participants]], or let `variant-agent init PATH…` write them",
        )


# -- files ---------------------------------------------------------------------------------------------


def _files(participant: ParticipantConfig, where: str, problems: list[Problem]) -> list[TargetFile]:
    """Every target file, as the agent would meet it; what is wrong goes into `problems`."""
    workspace = Workspace(participant.root, follow_symlinks=participant.follow_symlinks)
    found: list[TargetFile] = []
    for glob in participant.targets:
        try:
            paths = sorted(workspace.targets((glob,)))
        except Refused as refused:  # only ever for the root
            problems.append(_refused(refused, f"{where}.root"))
            break
        files = [_judged(workspace, participant, glob, path) for path in paths]
        if not files:
            problems.append(_unmatched(workspace, participant, glob, where))
            files = [] if "*" in glob else [_judged(workspace, participant, glob, glob)]
        elif refused_files := [file for file in files if file.code]:
            # One of many may be left alone on purpose; a glob that allows nothing cannot be meant.
            severity = WARNING if len(refused_files) < len(files) else ERROR
            problems += [
                Problem(severity=severity, field=f"{where}.targets", message=file.message)
                for file in refused_files
            ]
        known = {file.path for file in found}
        found += [file for file in files if file.path not in known]
    return found


def _judged(workspace: Workspace, participant: ParticipantConfig, glob: str, path: str) -> TargetFile:
    size = owner = None
    try:
        real = participant.root / workspace.examine(path)
        if real.exists():
            status = real.stat()
            size, owner = status.st_size, units.user_name(status.st_uid)
            if size > participant.max_bytes:
                raise Refused(
                    ReasonCode.TOO_LARGE,
                    f"{show(path)} has {size} bytes, more than `max_bytes` ({participant.max_bytes})",
                    "raise `max_bytes`",
                )
    except Refused as refused:
        reason = refused.reason
        message = reason.message + (f" ({reason.remedy})" if reason.remedy else "")
        return TargetFile(
            path=path, glob=glob, size=size, owner=owner, code=reason.code.value, message=message
        )
    except OSError as error:  # it went away meanwhile
        return TargetFile(
            path=path, glob=glob, size=None, owner=None, code=refusal(error, path).reason.code.value
        )
    return TargetFile(path=path, glob=glob, size=size, owner=owner)


def _unmatched(workspace: Workspace, participant: ParticipantConfig, glob: str, where: str) -> Problem:
    try:
        workspace.examine(glob.replace("*", "x"))
    except Refused as refused:
        return _refused(refused, f"{where}.targets")
    return Problem(
        severity=WARNING,
        field=f"{where}.targets",
        message=f"{glob!r} matches no file in {participant.root}",
        remedy="the agent makes the file when a variant names it; correct the glob if that is not meant",
    )


def _refused(refused: Refused, field: str) -> Problem:
    return Problem(severity=ERROR, field=field, message=refused.reason.message, remedy=refused.reason.remedy)


# -- what else belongs to a participant ---------------------------------------------------------------


def _host(participant: ParticipantConfig, where: str, unit: Unit) -> Iterator[Problem]:
    """Hooks, users and the sandbox of one participant."""
    yield from _hook(participant, participant.check, f"{where}.check", unit)
    yield from _hook(participant, participant.reload, f"{where}.reload", unit)
    if participant.check and not any("{staged}" in part for part in participant.check):
        yield Problem(
            severity=WARNING,
            field=f"{where}.check",
            message="is not told which file to check",
            remedy="give it the argument {staged}",
        )
    for name in participant.allow_users:
        try:
            int(name) if name.isdecimal() else pwd.getpwnam(name)
        except KeyError:
            yield Problem(
                severity=ERROR,
                field=f"{where}.allow_users",
                message=f"there is no user {name!r} on this host",
            )
    for private in units.PRIVATE:
        if not (unit.sandboxed and participant.root.is_relative_to(private)):
            continue
        yield Problem(
            severity=WARNING,
            field=f"{where}.root",
            message=f"is below {private}, of which {unit.name} has one of its own",
            remedy="move the workspace, or set PrivateTmp=no in a drop-in",
        )


def _hook(
    participant: ParticipantConfig, command: tuple[str, ...], field: str, unit: Unit
) -> Iterator[Problem]:
    """The program of a command is there, the agent may run it, and nobody else may change what root runs."""
    if not command:
        return
    program = command[0]
    if "/" in program:
        path: Path | None = participant.root / program
    else:
        found = shutil.which(program, path=units.PROGRAMS)
        path = Path(found) if found else None
    if path is None or not path.is_file() or not os.access(path, os.X_OK):
        yield Problem(
            severity=ERROR,
            field=field,
            message=f"{program!r} is no program that {unit.user} may run",
            remedy="name it by its absolute path, and chmod +x it",
        )
        return
    hidden = unit.homes_hidden and any(path.is_relative_to(home) for home in units.HOMES)
    if hidden and not path.is_relative_to(participant.root):
        yield Problem(
            severity=ERROR,
            field=field,
            message=f"{path} lies where {unit.name} sees only workspaces",
            remedy="move it to /usr/local/bin",
        )
    status = path.stat()
    if unit.uid == 0 and (status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        yield Problem(
            severity=WARNING,
            field=field,
            message=f"{path} runs as root and can be changed by others",
            remedy=f"chown root {path}; chmod go-w {path}, or run the agent as its owner",
        )


def drop_in(report: Report, config: AgentConfig) -> str:
    """The drop-in with which the unit may write what the configuration allows. Raises Invalid."""
    roots = (participant.root for participant in config.participants)
    return units.drop_in(report.unit, roots, config=report.config)
