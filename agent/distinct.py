"""Refuses an agent.toml in which two participants can write the same file.

Two writers of one file would undo each other's variants and baselines for ever. Hides how globs are compared
where one participant's root lies within another's, and how one file is recognised under two paths.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from agent.config import AgentConfig, ParticipantConfig
from agent.files import Workspace
from agent.policy import Refused, show
from shared.errors import Fault, Invalid


def check_distinct(config: AgentConfig) -> None:
    """No two participants can write the same file, as far as globs and present files tell. Blocks.

    Raises Invalid that lists every pair. A bind mount or link made later is not noticed until the next start.
    """
    faults = [
        *_overlapping_globs(config.participants),
        *_shared_files(config.participants),
    ]
    if faults:
        listed = "; ".join(f"{fault.field} {fault.message}" for fault in faults)
        raise Invalid(f"agent.toml: {listed}", reason="BAD_CONFIG", faults=faults)


def _fault(index: int, message: str) -> Fault:
    return Fault(
        field=f"participants[{index}].targets",
        message=message,
        remedy="give every target file to one participant",
    )


def _overlapping_globs(participants: Sequence[ParticipantConfig]) -> list[Fault]:
    rooted = [(Path(os.path.realpath(participant.root)), participant) for participant in participants]
    by_root: dict[Path, list[int]] = {}
    for index, (root, _) in enumerate(rooted):
        by_root.setdefault(root, []).append(index)
    pairs: set[tuple[int, int]] = set()
    for index, (root, _) in enumerate(rooted):
        for ancestor in (root, *root.parents):
            pairs |= {(min(index, other), max(index, other)) for other in by_root.get(ancestor, [])}
    faults = []
    for one, other in sorted(pair for pair in pairs if pair[0] != pair[1]):
        clash = _clash(*rooted[one], *rooted[other])
        if clash is not None:
            message = f"{clash!r} can be a target of participant {rooted[one][1].id!r} too"
            faults.append(_fault(other, message))
    return faults


def _clash(root: Path, one: ParticipantConfig, other_root: Path, other: ParticipantConfig) -> str | None:
    """A target glob of `other` that describes a file which one of `one`'s describes as well."""
    above = other_root if root.is_relative_to(other_root) else root
    ahead, other_ahead = root.relative_to(above).parts, other_root.relative_to(above).parts
    for other_glob in other.targets:
        for glob in one.targets:
            if _overlap((*ahead, *glob.split("/")), (*other_ahead, *other_glob.split("/"))):
                return other_glob
    return None


def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Some path is described by both globs."""
    if not one and not other:
        return True
    if one and one[0] == "**":
        passes = bool(other) and not other[0].startswith(".")
        return _overlap(one[1:], other) or (passes and _overlap(one, other[1:]))
    if other and other[0] == "**":
        return _overlap(other, one)
    return bool(one and other) and _names_overlap(one[0], other[0]) and _overlap(one[1:], other[1:])


@lru_cache(maxsize=4096)
def _names_overlap(one: str, other: str) -> bool:
    """Some name is described by both segments."""
    if {one[:1], other[:1]} == {"*", "."}:
        return False  # a star never stands for a leading dot
    return _texts_overlap(one, other)


@lru_cache(maxsize=16_384)
def _texts_overlap(one: str, other: str) -> bool:
    if not one or not other:
        return not (one + other).strip("*")
    if one[0] == "*":
        return _texts_overlap(one[1:], other) or _texts_overlap(one, other[1:])
    if other[0] == "*":
        return _texts_overlap(other, one)
    return one[0] == other[0] and _texts_overlap(one[1:], other[1:])


def _shared_files(participants: Sequence[ParticipantConfig]) -> list[Fault]:
    """Faults for present files that two participants reach, through links or mounts as well."""
    owners: dict[tuple[int, int, str], tuple[int, str]] = {}
    faults = []
    for index, participant in enumerate(participants):
        workspace = Workspace(participant.root, follow_symlinks=participant.follow_symlinks)
        try:
            paths = workspace.targets(participant.targets)
        except Refused:
            continue  # a root that is not there yet holds no file
        for path in paths:
            try:
                real = participant.root / workspace.locate(path)
                parent = real.parent.stat()
            except (Refused, OSError):
                continue
            owner, its_path = owners.setdefault((parent.st_dev, parent.st_ino, real.name), (index, path))
            if owner != index:
                message = f"{show(path)} is the same file as {show(its_path)} of {participants[owner].id!r}"
                faults.append(_fault(index, message))
    return faults
