"""`shared.model` nouns ↔ `agent.proto` messages, both directions; the one place that knows both.

Decoding raises `Invalid` naming the field for anything a correct peer never sends, so a hostile peer
meets one wall. Encoding never fails for values the model allows.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from shared import checks
from shared.model import (
    MAX_INLINE_BYTES,
    Batch,
    Condition,
    DriftPolicy,
    Durations,
    Event,
    EventKind,
    EventSource,
    Exposure,
    FileOutcome,
    FileState,
    Hello,
    Loaded,
    Loss,
    Offer,
    OfferAction,
    OfferedFile,
    Outcome,
    OutcomeKey,
    ParticipantState,
    Platform,
    Reason,
    ReasonCode,
    Record,
    Result,
    SlotState,
    SpoolState,
    Step,
    Unseen,
    View,
    ViewState,
)
from shared.pb.variantd.agent.v1 import agent_pb2 as pb

E = TypeVar("E", bound=StrEnum)

_PREFIX: dict[type[StrEnum], tuple[Any, str]] = {
    Step: (pb.Step, "STEP_"),
    Result: (pb.Result, "RESULT_"),
    OfferAction: (pb.OfferAction, "OFFER_ACTION_"),
    DriftPolicy: (pb.DriftPolicy, "DRIFT_POLICY_"),
    Exposure: (pb.Exposure, "EXPOSURE_"),
    ViewState: (pb.ViewState, "VIEW_STATE_"),
    EventKind: (pb.EventKind, "EVENT_KIND_"),
    EventSource: (pb.EventSource, "EVENT_SOURCE_"),
}
_NAMES = {k: {w.Value(p + v.name): v for v in k if p + v.name in w.keys()} for k, (w, p) in _PREFIX.items()}  # noqa: SIM118


def _number(value: StrEnum) -> Any:
    wrapper, prefix = _PREFIX[type(value)]
    return wrapper.Value(prefix + value.name)


def _name(kind: type[E], number: int, field: str) -> E:
    if (found := _NAMES[kind].get(number)) is None:
        raise checks.malformed(field, f"{number} is not a {kind.__name__}")
    return found  # type: ignore[return-value]


# -- agent → control plane -------------------------------------------------------------------------


def hello_to_pb(hello: Hello) -> pb.Hello:
    """The message of a Hello."""
    return pb.Hello(
        agent_version=hello.agent_version,
        capabilities=hello.capabilities,
        boot_id=hello.boot_id,
        session_epoch=hello.session_epoch,
        resumes=hello.resumes,
        incarnation=hello.incarnation,
        participants=[
            pb.ParticipantState(
                participant_id=p.participant,
                labels=p.labels,
                targets=p.targets,
                drift_policy=_number(p.drift),
                exposure=_number(p.exposure),
                policy=p.policy,
            )
            for p in hello.participants
        ],
        slots=[
            pb.SlotState(
                participant_id=s.participant,
                slot_id=s.slot_id,
                revision=s.revision,
                files=[pb.FileState(path=f.path, digest=f.digest or b"") for f in s.files],
                step=_number(s.step),
                result=_number(s.result),
                quarantined=s.quarantined,
                closed=s.closed,
            )
            for s in hello.slots
        ],
        spool=spool_state_to_pb(hello.spool),
        hostname=hello.hostname,
        platform=pb.Platform(os=hello.platform.os, kernel=hello.platform.kernel, arch=hello.platform.arch),
        labels=hello.labels,
    )


def hello_from_pb(message: pb.Hello) -> Hello:
    """The Hello of a message. Raises Invalid naming the field."""
    for field, items, most in (
        ("participants", message.participants, 10_000),
        ("slots", message.slots, 40_000),
        ("capabilities", message.capabilities, 64),
    ):
        if len(items) > most:
            raise checks.malformed(f"hello.{field}", f"at most {most}")
    return Hello(
        agent_version=checks.text(message.agent_version, "hello.agent_version", 64),
        capabilities=tuple(checks.text(name, "hello.capabilities", 64) for name in message.capabilities),
        boot_id=checks.text(message.boot_id, "hello.boot_id", 64, empty=True),
        session_epoch=checks.count(message.session_epoch, "hello.session_epoch", most=2**62),
        resumes=message.resumes,
        incarnation=checks.uid(message.incarnation, "hello.incarnation") if message.incarnation else b"",
        hostname=checks.text(message.hostname, "hello.hostname", 253, empty=True),
        platform=Platform(
            os=checks.text(message.platform.os, "hello.platform.os", 128, empty=True),
            kernel=checks.text(message.platform.kernel, "hello.platform.kernel", 256, empty=True),
            arch=checks.text(message.platform.arch, "hello.platform.arch", 128, empty=True),
        ),
        participants=tuple(
            ParticipantState(
                participant=checks.text(p.participant_id, "hello.participants.participant_id", 128),
                labels=_labels(p.labels, "hello.participants.labels"),
                targets=_targets(p.targets),
                drift=_name(DriftPolicy, p.drift_policy, "hello.participants.drift_policy"),
                exposure=_name(Exposure, p.exposure, "hello.participants.exposure"),
                policy=checks.fingerprint(p.policy, "hello.participants.policy"),
            )
            for p in message.participants
        ),
        slots=tuple(
            SlotState(
                participant=checks.text(s.participant_id, "hello.slots.participant_id", 128),
                slot_id=checks.uid(s.slot_id, "hello.slots.slot_id"),
                revision=checks.count(s.revision, "hello.slots.revision"),
                files=tuple(
                    FileState(
                        path=checks.text(f.path, "hello.slots.files.path", 4096),
                        digest=checks.digest(f.digest, "hello.slots.files.digest"),
                    )
                    for f in s.files
                ),
                step=_name(Step, s.step, "hello.slots.step"),
                result=_name(Result, s.result, "hello.slots.result"),
                quarantined=s.quarantined,
                closed=s.closed,
            )
            for s in message.slots
        ),
        spool=spool_state_from_pb(message.spool),
        labels=_labels(message.labels, "hello.labels"),
    )


def _labels(labels: Mapping[str, str], field: str) -> dict[str, str]:
    if len(labels) > 256:
        raise checks.malformed(field, "at most 256")
    return {
        checks.text(name, field, 256): checks.text(value, field, 1024, empty=True)
        for name, value in labels.items()
    }


def _targets(globs: Sequence[str]) -> tuple[str, ...]:
    if len(globs) > 1024:
        raise checks.malformed("hello.participants.targets", "at most 1024")
    return tuple(checks.text(glob, "hello.participants.targets", 4096) for glob in globs)


def spool_state_to_pb(state: SpoolState) -> pb.SpoolState:
    """The message of a spool's state."""
    return pb.SpoolState(epoch=state.epoch, depth=state.depth, bytes=state.size, oldest_at_us=state.oldest_at)


def spool_state_from_pb(message: pb.SpoolState) -> SpoolState:
    """The spool's state of a message. Raises Invalid naming the field."""
    return SpoolState(
        epoch=checks.uid(message.epoch, "spool.epoch") if message.epoch else b"",
        depth=checks.count(message.depth, "spool.depth"),
        size=checks.count(message.bytes, "spool.bytes", most=2**62),
        oldest_at=checks.moment(message.oldest_at_us, "spool.oldest_at_us"),
    )


def conditions_to_pb(conditions: Iterable[Condition]) -> list[pb.Condition]:
    """The messages of conditions."""
    return [
        pb.Condition(code=c.code, severity=c.severity, since_at_us=c.since_at, message=c.message)
        for c in conditions
    ]


def conditions_from_pb(messages: Iterable[pb.Condition]) -> tuple[Condition, ...]:
    """The conditions of messages, at most the first 64, and of each text as much as anybody reads."""
    return tuple(
        Condition(
            code=m.code[:64],
            severity=m.severity[:16],
            since_at=max(0, min(m.since_at_us, checks.MAX_MOMENT)),
            message=m.message[:1000],
        )
        for m in list(messages)[:64]
    )


def reason_to_pb(reason: Reason | None) -> pb.Reason | None:
    """The message of a reason."""
    if reason is None:
        return None
    return pb.Reason(code=reason.code, message=reason.message, remedy=reason.remedy)


def reason_from_pb(message: pb.Reason, field: str) -> Reason:
    """The reason of a message. Raises Invalid naming the field."""
    if message.code not in ReasonCode.__members__:
        raise checks.malformed(field + ".code", "not a reason code this server knows")
    return Reason(
        code=ReasonCode(message.code),
        message=checks.text(message.message, field + ".message", 2000, empty=True),
        remedy=checks.text(message.remedy, field + ".remedy", 2000, empty=True),
    )


def outcome_to_pb(outcome: Outcome) -> pb.Outcome:
    """The message of an outcome."""
    d = outcome.durations
    return pb.Outcome(
        participant_id=outcome.participant,
        slot_id=outcome.slot_id,
        revision=outcome.revision,
        attempt=outcome.attempt,
        step=_number(outcome.step),
        result=_number(outcome.result),
        files=[
            pb.FileOutcome(
                path=f.path,
                desired_digest=f.desired or b"",
                running_digest=f.running or b"",
                previous_digest=f.previous or b"",
            )
            for f in outcome.files
        ],
        reason=reason_to_pb(outcome.reason),
        quarantined=outcome.quarantined,
        durations=pb.Durations(
            fetch_ms=d.fetch, check_ms=d.check, write_ms=d.write, reload_ms=d.reload, probe_ms=d.probe
        ),
        occurred_at_us=outcome.occurred_at,
        confirming=outcome.confirming,
    )


def outcome_from_pb(message: pb.Outcome) -> Outcome:
    """The outcome of a message. Raises Invalid naming the field."""
    d = message.durations
    if len(message.files) > 64:
        raise checks.malformed("outcome.files", "at most 64")
    return Outcome(
        participant=checks.text(message.participant_id, "outcome.participant_id", 128),
        slot_id=checks.uid(message.slot_id, "outcome.slot_id"),
        revision=checks.count(message.revision, "outcome.revision"),
        attempt=message.attempt,
        step=_name(Step, message.step, "outcome.step"),
        result=_name(Result, message.result, "outcome.result"),
        files=tuple(
            FileOutcome(
                path=checks.text(f.path, "outcome.files.path", 4096),
                desired=checks.digest(f.desired_digest, "outcome.files.desired_digest"),
                running=checks.digest(f.running_digest, "outcome.files.running_digest"),
                previous=checks.digest(f.previous_digest, "outcome.files.previous_digest"),
            )
            for f in message.files
        ),
        reason=reason_from_pb(message.reason, "outcome.reason") if message.HasField("reason") else None,
        quarantined=message.quarantined,
        durations=Durations(
            fetch=d.fetch_ms, check=d.check_ms, write=d.write_ms, reload=d.reload_ms, probe=d.probe_ms
        ),
        occurred_at=checks.moment(message.occurred_at_us, "outcome.occurred_at_us"),
        confirming=message.confirming,
    )


def outcome_ack_to_pb(key: OutcomeKey) -> pb.OutcomeAck:
    """The acknowledgement of an outcome."""
    return pb.OutcomeAck(
        participant_id=key.participant,
        slot_id=key.slot_id,
        revision=key.revision,
        attempt=key.attempt,
        step=_number(key.step),
    )


def outcome_ack_from_pb(message: pb.OutcomeAck) -> OutcomeKey:
    """Which outcome is acknowledged."""
    return OutcomeKey(
        participant=message.participant_id,
        slot_id=message.slot_id,
        revision=message.revision,
        attempt=message.attempt,
        step=_name(Step, message.step, "outcome_ack.step"),
    )


# -- control plane → agent -------------------------------------------------------------------------


def files_to_pb(files: Iterable[OfferedFile]) -> list[pb.OfferedFile]:
    """The messages of files."""
    return [
        pb.OfferedFile(path=f.path, digest=f.digest or b"", size=f.size, inline_content=f.content)
        for f in files
    ]


def files_from_pb(messages: Collection[pb.OfferedFile], field: str) -> tuple[OfferedFile, ...]:
    """The files of messages. Raises Invalid naming the field."""
    if any(len(f.inline_content) > MAX_INLINE_BYTES for f in messages):
        raise checks.malformed(field + ".inline_content", f"at most {MAX_INLINE_BYTES} bytes")
    return tuple(
        OfferedFile(
            path=checks.text(f.path, field + ".path", 4096, empty=True),
            digest=checks.digest(f.digest, field + ".digest"),
            size=checks.count(f.size, field + ".size"),
            content=f.inline_content if f.HasField("inline_content") else None,
        )
        for f in messages
    )


def offer_to_pb(offer: Offer) -> pb.Offer:
    """The message of an offer; content above the inline limit has to be taken out by the caller."""
    return pb.Offer(
        deployment_id=offer.deployment_id,
        participant_id=offer.participant,
        slot_id=offer.slot_id,
        revision=offer.revision,
        action=_number(offer.action),
        retry=offer.retry,
        overwrite_drift=offer.overwrite_drift,
        files=files_to_pb(offer.files),
        applied_before=offer.applied_before,
        experiment_digests=offer.experiment_digests,
    )


def offer_from_pb(message: pb.Offer) -> Offer:
    """The offer of a message. Raises Invalid naming the field."""
    if not 1 <= len(message.files) <= 64:
        raise checks.malformed("offer.files", "1 to 64 files")
    if len({f.path for f in message.files}) != len(message.files):
        raise checks.malformed("offer.files", "paths are distinct")
    if len(message.experiment_digests) > 4096:
        raise checks.malformed("offer.experiment_digests", "at most 4096")
    action = _name(OfferAction, message.action, "offer.action")
    files = files_from_pb(message.files, "offer.files")
    if action is OfferAction.WRITE and any(f.digest is None for f in files):
        raise checks.malformed("offer.files.digest", "a file to write has a digest")
    return Offer(
        deployment_id=checks.uid(message.deployment_id, "offer.deployment_id"),
        participant=checks.text(message.participant_id, "offer.participant_id", 128),
        slot_id=checks.uid(message.slot_id, "offer.slot_id"),
        revision=checks.count(message.revision, "offer.revision"),
        action=action,
        files=files,
        retry=message.retry,
        overwrite_drift=message.overwrite_drift,
        applied_before=message.applied_before,
        experiment_digests=tuple(message.experiment_digests),
    )


# -- spool -----------------------------------------------------------------------------------------


def record_to_bytes(record: Record) -> bytes:
    """The bytes a record is spooled, hashed and sent as."""
    message = pb.SpoolRecord(id=record.id, recorded_at_us=record.recorded_at)
    body = record.body
    if isinstance(body, View):
        view = message.view
        view.participant_id, view.path, view.digest = body.participant, body.path, body.digest or b""
        view.state, view.from_at_us = _number(body.state), body.from_at
    elif isinstance(body, Loaded):
        said = message.loaded
        said.participant_id, said.path, said.digest = body.participant, body.path, body.digest
        said.loaded_at_us = body.loaded_at
    elif isinstance(body, Event):
        message.event.CopyFrom(_event_to_pb(body))
    elif isinstance(body, Unseen):
        message.unseen.participant_id, message.unseen.reason = body.participant, body.reason
        message.unseen.from_at_us, message.unseen.to_at_us = body.from_at, body.to_at
    else:
        message.loss.reason = body.reason
        message.loss.count = body.count
        message.loss.epoch = body.epoch
        message.loss.first_seq = body.first_seq
    return message.SerializeToString()


def _event_to_pb(event: Event) -> pb.Event:
    return pb.Event(
        participant_id=event.participant,
        kind=_number(event.kind),
        event_name=event.event_name,
        subject=event.subject,
        value_micros=event.value_micros,
        occurred_at_us=event.occurred_at,
        digest=event.digest or b"",
        path=event.path,
        event_id=event.event_id,
        properties_json=event.properties_json,
        source=_number(event.source),
    )


def record_from_bytes(raw: bytes) -> Record:
    """The record behind spooled bytes. Raises Invalid naming the field."""
    try:
        message = pb.SpoolRecord.FromString(raw)
    except DecodeError:
        raise checks.malformed("record", "not a spool record") from None
    kind = message.WhichOneof("record")
    body: View | Loaded | Event | Unseen | Loss
    if kind == "view":
        body = View(
            participant=checks.text(message.view.participant_id, "view.participant_id", 128),
            path=checks.path(message.view.path, "view.path"),
            digest=checks.digest(message.view.digest, "view.digest"),
            state=_name(ViewState, message.view.state, "view.state"),
            from_at=checks.moment(message.view.from_at_us, "view.from_at_us"),
        )
    elif kind == "loaded":
        loaded = checks.digest(message.loaded.digest, "loaded.digest")
        if loaded is None:
            raise checks.malformed("loaded.digest", "a receipt has a digest")
        body = Loaded(
            participant=checks.text(message.loaded.participant_id, "loaded.participant_id", 128),
            path=checks.path(message.loaded.path, "loaded.path"),
            digest=loaded,
            loaded_at=checks.moment(message.loaded.loaded_at_us, "loaded.loaded_at_us"),
        )
    elif kind == "event":
        body = _event_from_pb(message.event)
    elif kind == "unseen":
        body = Unseen(
            participant=checks.text(message.unseen.participant_id, "unseen.participant_id", 128),
            reason=checks.text(message.unseen.reason, "unseen.reason", 64),
            from_at=checks.moment(message.unseen.from_at_us, "unseen.from_at_us"),
            to_at=checks.moment(message.unseen.to_at_us, "unseen.to_at_us"),
        )
    elif kind == "loss":
        body = Loss(
            reason=checks.text(message.loss.reason, "loss.reason", 64),
            count=checks.count(message.loss.count, "loss.count"),
            epoch=checks.uid(message.loss.epoch, "loss.epoch") if message.loss.epoch else b"",
            first_seq=checks.count(message.loss.first_seq, "loss.first_seq"),
        )
    else:
        raise checks.malformed("record", "no kind of record that is known here")
    recorded_at = checks.moment(message.recorded_at_us, "record.recorded_at_us")
    return Record(id=checks.uid(message.id, "record.id"), recorded_at=recorded_at, body=body)


def _event_from_pb(m: pb.Event) -> Event:
    kind = _name(EventKind, m.kind, "event.kind")
    return Event(
        participant=checks.text(m.participant_id, "event.participant_id", 128),
        kind=kind,
        occurred_at=checks.moment(m.occurred_at_us, "event.occurred_at_us"),
        event_name=checks.event_name(m.event_name, "event.event_name", empty=kind is EventKind.IMPRESSION),
        subject=checks.text(m.subject, "event.subject", 256, empty=True),
        value_micros=checks.micros(m.value_micros, "event.value_micros")
        if m.HasField("value_micros")
        else None,
        digest=checks.digest(m.digest, "event.digest"),
        path=checks.path(m.path, "event.path", empty=True),
        event_id=checks.text(m.event_id, "event.event_id", 128, empty=True),
        properties_json=checks.text(m.properties_json, "event.properties_json", 8192, empty=True),
        source=_name(EventSource, m.source, "event.source"),
    )


def batch_to_pb(batch: Batch) -> pb.ReportSpoolRequest:
    """The request of a batch."""
    return pb.ReportSpoolRequest(
        epoch=batch.epoch,
        first_seq=batch.first_seq,
        chain=batch.chain,
        records=batch.records,
        tail_seq=batch.tail_seq,
    )


def batch_from_pb(message: pb.ReportSpoolRequest) -> Batch:
    """The batch of a request. Raises Invalid naming the field."""
    if message.first_seq < 1 or len(message.chain) != 32:
        raise checks.malformed("first_seq", "sequences start at 1 and a chain hash is 32 bytes")
    return Batch(
        epoch=checks.uid(message.epoch, "epoch"),
        first_seq=checks.count(message.first_seq, "first_seq"),
        chain=message.chain,
        records=tuple(message.records),
        tail_seq=checks.count(message.tail_seq, "tail_seq"),
    )
