"""What the host allows to be written, decided before anything is touched.

Pure. The control plane may choose among a host's targets and nothing else (promise P8), so every path it
sends passes here first. Hides how target globs are matched.
"""

import json
import re
from functools import lru_cache

from agent.config import ParticipantConfig
from shared import VERSION
from shared.model import Reason, ReasonCode, digest

TEMP_PREFIX = ".variantd-"
"""How the names of our temporary files begin; no target glob matches such a name, not even `.*`."""

MAX_PATH_BYTES = 1024
MAX_SEGMENT_BYTES = 255


class Refused(Exception):
    """The host does not do this; `reason` says why and what to do about it, never with content."""

    def __init__(self, code: ReasonCode, message: str, remedy: str = "") -> None:
        self.reason = Reason(code=code, message=message[:1000], remedy=remedy[:1000])
        super().__init__(f"{code}: {message}")


def show(path: str) -> str:
    """A path as it may stand in a message: quoted, escaped, short."""
    return repr(path if len(path) <= 200 else path[:199] + "…")


def segments(path: str) -> tuple[str, ...]:
    """The names along a relative path. Raises Refused PATH_ESCAPES_ROOT for anything but plain names.

    A backslash is refused although Linux allows it in a name: what reads it as a separator elsewhere would
    see another path than the one allowed here.
    """
    parts = tuple(path.split("/"))
    encoded = path.encode(errors="replace")
    if not path:
        fault = "the path is empty"
    elif path.startswith("/"):
        fault = f"{show(path)} is absolute"
    elif ".." in parts:
        fault = f"{show(path)} has a '..' segment"
    elif "." in parts or "" in parts:
        fault = f"{show(path)} has an empty or '.' segment, or ends in a slash"
    elif "\\" in path or not path.isprintable():
        fault = f"{show(path)} has a backslash, a control character or a character that is not text"
    elif len(encoded) > MAX_PATH_BYTES or any(
        len(part.encode(errors="replace")) > MAX_SEGMENT_BYTES for part in parts
    ):
        fault = f"{show(path)} is longer than {MAX_PATH_BYTES} bytes, or {MAX_SEGMENT_BYTES} in one segment"
    else:
        return parts
    raise Refused(
        ReasonCode.PATH_ESCAPES_ROOT,
        fault,
        "name the target relative to the participant's root, such as config/soul.md",
    )


def allow(participant: ParticipantConfig, path: str, *, size: int | None) -> None:
    """`participant` lets `path` be written with `size` bytes (None: not known yet, not judged).

    Raises Refused PATH_ESCAPES_ROOT, TARGET_NOT_ALLOWED or TOO_LARGE.
    """
    parts = segments(path)
    if not any(matches(glob, parts) for glob in participant.targets):
        raise Refused(
            ReasonCode.TARGET_NOT_ALLOWED,
            f"{show(path)} is not among the targets of {participant.id}: {', '.join(participant.targets)}",
            "choose an allowed target, or add it to `targets` in agent.toml on the host",
        )
    if size is not None and size > participant.max_bytes:
        raise Refused(
            ReasonCode.TOO_LARGE,
            f"{show(path)} would have {size} bytes; {participant.id} takes {participant.max_bytes}",
            "shorten the content, or raise `max_bytes` in agent.toml on the host",
        )


def fingerprint(participant: ParticipantConfig) -> bytes:
    """Of everything in agent.toml that decides whether `participant` takes a content, and of who decides so."""
    decisive = (
        VERSION,
        str(participant.root),
        participant.targets,
        participant.follow_symlinks,
        participant.max_bytes,
        participant.drift,
        participant.check,
    )
    return digest(json.dumps(decisive).encode())


def unknown_participant(participant: str) -> Refused:
    """The refusal of everything for a participant that agent.toml does not name."""
    return Refused(
        ReasonCode.TARGET_NOT_ALLOWED,
        f"this host's agent.toml has no participant {show(participant)}",
        "add the participant to agent.toml and run `variant-agent reload`, or move it in the control plane",
    )


def matches(glob: str, parts: tuple[str, ...]) -> bool:
    """`glob` describes the path of these names.

    `*` is any run of characters within a name, `**` as a whole segment any number of names; neither
    matches a name that begins with a dot, or the dot it begins with. Everything else is literal.
    """
    if any(part.startswith(TEMP_PREFIX) for part in parts):
        return False
    return _compiled(glob).fullmatch("/".join(parts) + "/") is not None


@lru_cache(maxsize=4096)
def _compiled(glob: str) -> re.Pattern[str]:
    # Each segment brings its own slash, so that `**` may stand for none at all.
    return re.compile(
        "".join(
            r"(?:[^./][^/]*/)*" if segment == "**" else _segment(segment) + "/" for segment in glob.split("/")
        )
    )


def _segment(segment: str) -> str:
    pieces = [re.escape(piece) for piece in re.split(r"\*+", segment)]
    return ("" if not segment.startswith("*") else r"(?!\.)") + "[^/]*".join(pieces)
