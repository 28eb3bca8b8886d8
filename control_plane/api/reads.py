"""Files that hosts are asked for, until they answer.

Hides how a question finds its answer: a session of the agent, stream or poll, takes up what is to be said; the
answer comes as a message of a session or as an upload, is matched by who sent it and the request's id, and
counts once. Nothing of it outlives the process or a few seconds. Content is never logged.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

from control_plane.services.work import Question, Reading, Work
from shared import logs, wire
from shared.errors import (
    Error,
    FailedPrecondition,
    Invalid,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from shared.ids import NewId
from shared.model import MAX_INLINE_BYTES, Reason, ReasonCode, digest, show_digest
from shared.pb.variantd.agent.v1 import agent_pb2 as pb

_log = logs.get(__name__)

ANSWER_SECONDS = 15.0
MAX_BYTES = 1_048_576
"""A larger file is not read; no content of an experiment is larger either."""

MAX_CHUNK_BYTES = 256 * 1024
MAX_WAITING = 16
"""Questions to one agent at a time."""

_NOT_CONNECTED = (
    "the host of {} is not connected; `variantctl agents list` shows which are, read again once it is"
)
_NO_ANSWER = "the host of {} did not answer in time; read again, and if it stays so look at the agent's log and version"
_BAD_ANSWER = (
    "what the host of {} sent is not the file it announced; read again, and look at the agent's version"
)


class _Asked:
    """A question under way."""

    def __init__(self, question: Question, request_id: bytes) -> None:
        self.question, self.request_id = question, request_id
        self.said = False
        self.answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    def message(self) -> pb.SyncResponse:
        wanted = pb.ReadFile(
            request_id=self.request_id,
            participant_id=self.question.participant,
            path=self.question.path,
            max_bytes=MAX_BYTES,
        )
        return pb.SyncResponse(read_file=wanted)

    def settle(self, answer: bytes | Error | None) -> None:
        """The answer is there; nobody may wait for it any more."""
        if self.answer.done():
            return
        if isinstance(answer, Error):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class Reads:
    """The questions under way. `reach` answers whether an agent is connected, and has its session look here."""

    def __init__(self, *, new_id: NewId, reach: Callable[[bytes], bool]) -> None:
        self._new_id, self._reach = new_id, reach
        self._asked: dict[bytes, dict[bytes, _Asked]] = {}

    # -- who asks (services.work.Hosts)

    async def read(self, question: Question) -> bytes | None:
        """What the host answers, within ANSWER_SECONDS."""
        uid, name = question.agent_uid, question.participant
        waiting = self._asked.setdefault(uid, {})
        asked = _Asked(question, self._new_id())
        try:
            if len(waiting) >= MAX_WAITING:
                message = (
                    f"{MAX_WAITING} files are being read from the host of {name}; read again in a moment"
                )
                raise ResourceExhausted(message, reason="TOO_MANY_READS")
            waiting[asked.request_id] = asked
            if not self._reach(uid):
                raise FailedPrecondition(_NOT_CONNECTED.format(name), reason="NOT_CONNECTED")
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asked.answer
        except TimeoutError:
            _log.info("read.no_answer", agent=uid.hex(), participant=name)
            raise Unavailable(_NO_ANSWER.format(name), reason="NO_ANSWER") from None
        finally:
            waiting.pop(asked.request_id, None)
            if not waiting:
                self._asked.pop(uid, None)

    # -- what a session asks and tells

    def unsaid(self, uid: bytes) -> list[pb.SyncResponse]:
        """What is to be said to the agent, each question once."""
        new = [asked for asked in self._asked.get(uid, {}).values() if not asked.said]
        for asked in new:
            asked.said = True
        return [asked.message() for asked in new]

    def waits(self, uid: bytes) -> bool:
        """Something is to be said to the agent."""
        return any(not asked.said for asked in self._asked.get(uid, {}).values())

    def answered(self, uid: bytes, message: pb.FileContent) -> None:
        """The agent answered in its session; what nobody asked it for is dropped."""
        asked = self._take(uid, message.request_id)
        if asked is not None:
            asked.settle(self._judged(asked, message))

    async def upload(self, uid: bytes, pieces: AsyncIterator[pb.UploadContentRequest]) -> None:
        """The agent's upload is taken as the answer it is. Raises NotFound where nobody waits for it, or Invalid.

        An upload that breaks off is no answer; the agent does not get to begin another one.
        """
        try:
            first = await anext(pieces)
        except StopAsyncIteration:
            raise Invalid("an upload begins with request_id and digest", reason="BAD_UPLOAD") from None
        asked = self._take(uid, first.request_id)
        if asked is None:
            raise NotFound("nobody waits for this upload", reason="NOT_ASKED")
        wrong = Unavailable(_BAD_ANSWER.format(asked.question.participant), reason="BAD_ANSWER")
        try:
            body = await _whole(first, pieces)
        except BaseException:
            asked.settle(wrong)
            raise
        asked.settle(body)

    def _take(self, uid: bytes, request_id: bytes) -> _Asked | None:
        asked = self._asked.get(uid, {}).pop(request_id, None)
        if asked is None:
            _log.warning("read.unasked_answer", agent=uid.hex(), request=request_id[:16].hex())
        return asked

    def _judged(self, asked: _Asked, message: pb.FileContent) -> bytes | Error | None:
        name = asked.question.participant
        if message.HasField("refused"):
            try:
                return _refusal(wire.reason_from_pb(message.refused, "file_content.refused"))
            except Invalid:
                pass  # of a later version, or of nobody's
        elif message.absent:
            return None
        elif len(message.content) <= MAX_INLINE_BYTES and digest(message.content) == message.digest:
            return message.content
        _log.warning("read.bad_answer", agent=asked.question.agent_uid.hex(), participant=name)
        return Unavailable(_BAD_ANSWER.format(name), reason="BAD_ANSWER")


async def _whole(first: pb.UploadContentRequest, pieces: AsyncIterator[pb.UploadContentRequest]) -> bytes:
    body = bytearray(_piece(first))
    async for piece in pieces:
        body += _piece(piece)
        if len(body) > MAX_BYTES:
            raise Invalid(f"an upload has at most {MAX_BYTES} bytes", reason="BAD_UPLOAD")
    if digest(bytes(body)) != first.digest:
        raise Invalid("the upload is not the content it announced", reason="BAD_UPLOAD")
    return bytes(body)


def _piece(message: pb.UploadContentRequest) -> bytes:
    if len(message.chunk) > MAX_CHUNK_BYTES:
        raise Invalid(f"a chunk has at most {MAX_CHUNK_BYTES} bytes", reason="BAD_UPLOAD")
    return message.chunk


_FORBIDDEN = (ReasonCode.NOT_SHARED, ReasonCode.TARGET_NOT_ALLOWED, ReasonCode.PATH_ESCAPES_ROOT)


def _refusal(reason: Reason) -> Error:
    kind = PermissionDenied if reason.code in _FORBIDDEN else FailedPrecondition
    message = f"{reason.message}; {reason.remedy}" if reason.remedy else reason.message
    return kind(message, reason=reason.code.value)


def present_file(work: Work, reading: Reading) -> dict[str, Any]:
    """A target file as its host answered, JSON-shaped."""
    body, text, raw = reading.content, None, None
    if body is not None:
        try:
            text = body.decode()
        except UnicodeDecodeError:
            raw = base64.b64encode(body).decode()
    return {
        "participantId": reading.question.participant,
        "path": reading.question.path,
        "absent": body is None,
        "digest": None if body is None else show_digest(digest(body)),
        "size": None if body is None else len(body),
        "content": text,
        "contentBase64": raw,
    }
