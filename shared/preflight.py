"""What is asked of a host before content is assigned, and what it answers, as `agent.proto` messages.

Beside `shared.wire` and with its rules: decoding raises `Invalid` naming the field, encoding never fails.
"""

from shared import checks, wire
from shared.model import MAX_PREFLIGHT_FILES, PARTICIPANT_ID, Preflight, PreflightResult, Verdict
from shared.pb.variantd.agent.v1 import agent_pb2 as pb


def to_pb(preflight: Preflight) -> pb.Preflight:
    """The message of a preflight; content above the inline limit has to be taken out by the caller."""
    return pb.Preflight(
        request_id=preflight.request_id,
        participant_id=preflight.participant,
        files=wire.files_to_pb(preflight.files),
    )


def from_pb(message: pb.Preflight) -> Preflight:
    """The preflight of a message. Raises Invalid naming the field."""
    if not 1 <= len(message.files) <= MAX_PREFLIGHT_FILES:
        raise checks.malformed("preflight.files", f"1 to {MAX_PREFLIGHT_FILES} files")
    if len(message.request_id) != 16:
        raise checks.malformed("preflight.request_id", "an id is 16 bytes")
    if not PARTICIPANT_ID.fullmatch(message.participant_id):
        raise checks.malformed("preflight.participant_id", "not an id")
    files = wire.files_from_pb(message.files, "preflight.files")
    if any(file.digest is None for file in files):
        raise checks.malformed("preflight.files.digest", "a file to judge has a digest")
    return Preflight(request_id=message.request_id, participant=message.participant_id, files=files)


def result_to_pb(result: PreflightResult) -> pb.PreflightResult:
    """The message of a result."""
    return pb.PreflightResult(
        request_id=result.request_id,
        verdicts=[
            pb.PreflightVerdict(path=v.path, digest=v.digest, refused=wire.reason_to_pb(v.refused))
            for v in result.verdicts
        ],
        policy=result.policy,
    )


def result_from_pb(message: pb.PreflightResult) -> PreflightResult:
    """The result of a message. Raises Invalid naming the field."""
    if len(message.verdicts) > MAX_PREFLIGHT_FILES:
        raise checks.malformed("preflight_result.verdicts", f"at most {MAX_PREFLIGHT_FILES}")
    where = "preflight_result.verdicts.refused"
    return PreflightResult(
        request_id=message.request_id,
        verdicts=tuple(
            Verdict(
                path=v.path,
                digest=v.digest,
                refused=wire.reason_from_pb(v.refused, where) if v.HasField("refused") else None,
            )
            for v in message.verdicts
        ),
        policy=checks.fingerprint(message.policy, "preflight_result.policy"),
    )
