"""Answers the control plane's wish to see a target file, where the host's `share_content` allows it.

Hides what is checked before a byte leaves the host, and which way an answer goes. The control plane is not
believed: it sees what agent.toml allows to be written and shared, through the very resolver that writing uses,
and nothing else. Content is never logged.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from agent.config import AgentConfig, ParticipantConfig
from agent.files import Snapshot, Workspace
from agent.policy import Refused, allow, show, unknown_participant
from agent.threads import blocking
from shared import logs
from shared.errors import Error
from shared.model import MAX_INLINE_BYTES, Digest, Reason, ReasonCode

_log = logs.get(__name__)

MAX_READS = 16
"""Files asked for at a time; what is asked beyond them stays without answer."""

MAX_CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be read: a file of at most `max_bytes` (0: the host's own limit only)."""

    request_id: bytes
    participant: str
    path: str
    max_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A file of up to MAX_INLINE_BYTES, its absence (neither digest nor reason), or why it is not shown."""

    request_id: bytes
    content: bytes = b""
    digest: Digest | None = None
    refused: Reason | None = None


Upload = Callable[[bytes, Digest, Iterable[bytes]], Awaitable[None]]
"""Sends pieces in answer to a request id, under their digest. Raises shared.errors."""


class Sharing:
    """Reads wished files one after the other in threads; answers through `tell` or, larger ones, `upload`."""

    def __init__(self, config: AgentConfig, *, tell: Callable[[Answer], None], upload: Upload) -> None:
        self._config, self._tell, self._upload = config, tell, upload
        self._tasks: set[asyncio.Task[None]] = set()
        self._one = asyncio.Lock()

    def reconfigure(self, config: AgentConfig) -> None:
        """What is wished from now on is judged by this configuration."""
        self._config = config

    def wish(self, wish: Wish) -> None:
        """The wish will be answered; beyond MAX_READS at a time it is dropped."""
        if len(self._tasks) >= MAX_READS:
            _log.warning("sharing.too_many", participant=show(wish.participant))
            return
        task = asyncio.create_task(self._answer(wish), name="sharing")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Nothing is answered any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, wish: Wish) -> None:
        try:
            async with self._one:
                found = await blocking(lambda: read(self._config, wish))
        except Refused as refusal:
            _log.info("sharing.refused", participant=show(wish.participant), reason=refusal.reason.code.value)
            self._tell(Answer(request_id=wish.request_id, refused=refusal.reason))
            return
        if found is None:
            self._tell(Answer(request_id=wish.request_id))
            return
        digest = found.digest
        _log.info("sharing.read", participant=wish.participant, path=show(wish.path), digest=digest.hex())
        if len(found.content) <= MAX_INLINE_BYTES:
            self._tell(Answer(request_id=wish.request_id, content=found.content, digest=digest))
            return
        try:
            await self._upload(wish.request_id, digest, _pieces(found.content))
        except Error as error:
            _log.warning("sharing.upload_failed", participant=wish.participant, reason=error.reason)


def read(config: AgentConfig, wish: Wish) -> Snapshot | None:
    """The file, None where there is none. Raises Refused with the reason; blocks, but never on a FIFO."""
    participant = next((item for item in config.participants if item.id == wish.participant), None)
    if participant is None:
        raise unknown_participant(wish.participant)
    if not participant.share_content:
        raise Refused(
            ReasonCode.NOT_SHARED,
            f"the host of {participant.id} shows no content of it",
            "set `share_content = true` for it in agent.toml on the host and run `variant-agent reload`",
        )
    allow(participant, wish.path, size=None)
    workspace = Workspace(participant.root, follow_symlinks=participant.follow_symlinks)
    limit = min(participant.max_bytes, wish.max_bytes or participant.max_bytes)
    try:
        return workspace.read(workspace.locate(wish.path), limit=limit)
    except Refused as refusal:
        if refusal.reason.code is not ReasonCode.TOO_LARGE:
            raise
        raise _too_large(participant, wish, limit) from None


def _too_large(participant: ParticipantConfig, wish: Wish, limit: int) -> Refused:
    remedy = (
        "raise `max_bytes` in agent.toml on the host"
        if limit == participant.max_bytes
        else "look at it on the host; a control plane reads no larger file"
    )
    return Refused(ReasonCode.TOO_LARGE, f"{show(wish.path)} has more than {limit} bytes", remedy)


def _pieces(content: bytes) -> list[bytes]:
    return [content[start : start + MAX_CHUNK_BYTES] for start in range(0, len(content), MAX_CHUNK_BYTES)]
