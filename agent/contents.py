"""Content as it comes from the control plane: allowed, whole, and the one that was announced, or refused.

Hides in which order that is found out: what policy does not allow is never fetched.
"""

from collections.abc import Awaitable, Callable

from agent.config import ParticipantConfig
from agent.policy import Refused, allow, show
from shared.errors import Error
from shared.model import Digest, OfferedFile, ReasonCode, digest

Fetch = Callable[[Digest, int], Awaitable[bytes]]
"""Gets content by digest and size."""


class Unfetched(Refused):
    """The content did not come, which says nothing of the content."""


def allow_offered(config: ParticipantConfig, file: OfferedFile) -> None:
    """Policy lets the file be written with the size it was announced with. Raises Refused."""
    allow(config, file.path, size=len(file.content) if file.content is not None else file.size)


async def content_of(file: OfferedFile, *, config: ParticipantConfig, fetch: Fetch) -> bytes:
    """The file's content, right by digest and of a size that is allowed. Raises Refused, or Unfetched."""
    content = file.content
    if content is None:
        try:
            content = await fetch(file.digest or b"", file.size)
        except (Error, OSError) as error:
            raise Unfetched(
                ReasonCode.IO_ERROR,
                f"the content of {show(file.path)} could not be fetched: {type(error).__name__}",
                "look at the connection to the control plane, then deploy again",
            ) from error
    if digest(content) != file.digest:
        raise Refused(
            ReasonCode.DIGEST_MISMATCH,
            f"the content that came for {show(file.path)} is not the one that was offered",
            "deploy again; if it stays, look for what alters the connection",
        )
    allow(config, file.path, size=len(content))
    return content
