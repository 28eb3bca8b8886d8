"""How often the host's check of a content was begun and never seen to end: what ends the agent is no loop.

Hides the file in which one participant's counts outlive the process. A count is durable before the command starts.
Everything here blocks: call it from a thread.
"""

import json
from contextlib import suppress
from pathlib import Path

from agent.durable import write_durably
from agent.files import refusal
from agent.policy import Refused, show
from shared.model import Digest, ReasonCode

MOST = 3
"""Checks of one content that were begun and never seen to end."""

MAX_COUNTED = 64
"""Contents of one participant; beyond that the oldest are forgotten."""


class Trials:
    """One participant's counts, in the file at `path`; one that cannot be read counts for nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, target: str, content: Digest) -> None:
        """A check of the content for `target` may start: that it has is durable.

        Raises Refused CHECK_FAILED where too many before did not end, or why this could not be made durable.
        """
        counts = self._load()
        begun = counts.pop(content.hex(), 0)
        if begun >= MOST:
            raise Refused(
                ReasonCode.CHECK_FAILED,
                f"the agent was stopped {begun} times before the host's check of {show(target)} had ended",
                "find out what stops the agent (its log, the kernel's: memory), correct the check or the content,"
                " then deploy again with retry or run `variant-agent reload` there",
            )
        try:
            self._store({**counts, content.hex(): begun + 1})
        except OSError as error:
            raise refusal(error, target) from error

    def ended(self, content: Digest) -> None:
        """The check of the content ended, whatever it said: nothing is counted any more."""
        self._forget({content.hex()})

    def forgive(self, contents: set[Digest] | None) -> None:
        """These contents may be checked again; None: everything may."""
        self._forget(None if contents is None else {content.hex() for content in contents})

    def _forget(self, gone: set[str] | None) -> None:
        counts = self._load()
        left = {} if gone is None else {key: count for key, count in counts.items() if key not in gone}
        if left == counts:
            return
        with suppress(OSError):  # a count too many: it takes that many more of them to refuse anything
            self._store(left)

    def _load(self) -> dict[str, int]:
        try:
            counts = json.loads(self._path.read_bytes())
            return {str(key): int(count) for key, count in counts.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _store(self, counts: dict[str, int]) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = dict(list(counts.items())[-MAX_COUNTED:])
        write_durably(self._path, json.dumps(kept).encode())
