"""What applications report, checked by hand and turned into events.

Pure. Hides the JSON of a report: every fault of a body is told at once, by field, and nothing that passes
here is refused further up. No pydantic: an agent at rest imports little.
"""

import json
import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from shared.errors import Fault, Invalid
from shared.model import MAX_VALUE_MICROS, NAME_ENDS, Digest, Event, EventKind, Loaded, is_text, parse_digest
from shared.moment import SECOND, from_rfc3339

FUTURE_SECONDS = 300
MAX_NAME, MAX_SUBJECT, MAX_EVENT_ID, MAX_TARGET, MAX_PROPERTIES = 128, 256, 128, 1024, 8192

_FIELDS = frozenset(
    [
        "participantId",
        "target",
        "eventName",
        "value",
        "subject",
        "digest",
        "eventId",
        "occurredAt",
        "properties",
    ],
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One report whose fields are right; who it is about is decided by whoever knows the caller.

    `where` is the report's place in the body, for faults found later: empty, or such as `events[2].`.
    """

    kind: EventKind
    where: str
    participant: str | None
    target: str
    event_name: str
    subject: str
    value_micros: int | None
    digest: Digest | None
    event_id: str
    occurred_at: int
    properties_json: str

    def event(self, participant: str) -> Event:
        """The report as an event of `participant`."""
        return Event(
            participant=participant,
            kind=self.kind,
            occurred_at=self.occurred_at,
            event_name=self.event_name,
            subject=self.subject,
            value_micros=self.value_micros,
            digest=self.digest,
            path=self.target,
            event_id=self.event_id,
            properties_json=self.properties_json,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """That the application loaded this content of a target; `where` is for faults found later, as in a `Report`."""

    where: str
    participant: str | None
    target: str
    digest: Digest

    def loaded(self, participant: str, *, now: int) -> Loaded:
        """The receipt as a fact of `participant`'s."""
        return Loaded(participant=participant, path=self.target, digest=self.digest, loaded_at=now)


def parse_loaded(body: bytes, *, now: int) -> Receipt:
    """The receipt in a request's body. Raises Invalid that lists every fault by field."""
    faults: list[Fault] = []
    receipt = _Reader(_object(body), "", faults, now).receipt()
    _raise(faults)
    return receipt


def parse_one(body: bytes, kind: EventKind, *, now: int) -> Report:
    """The report in a request's body. Raises Invalid that lists every fault by field."""
    faults: list[Fault] = []
    report = _Reader(_object(body), "", faults, now).report(kind, _FIELDS)
    _raise(faults)
    return report


def parse_batch(body: bytes, *, now: int) -> list[Report]:
    """The reports in `{"events": [{"kind": …, …}, …]}`. Raises Invalid that lists every fault by field."""
    table, faults = _object(body), []
    faults = [_unknown(key, "events") for key in sorted(set(table) - {"events"})]
    events = table.get("events")
    reports = []
    if not isinstance(events, list) or not events:
        faults.append(Fault(field="events", message="must be a list of at least one event"))
        events = []
    for index, entry in enumerate(events):
        where = f"events[{index}]."
        if not isinstance(entry, dict):
            faults.append(Fault(field=where[:-1], message="must be an object"))
            continue
        kind = entry.get("kind")
        if kind not in ("impression", "conversion"):
            message = "is missing" if kind is None else "is neither"
            faults.append(Fault(field=f"{where}kind", message=message, remedy="impression or conversion"))
            continue
        reports.append(_Reader(entry, where, faults, now).report(EventKind(kind), _FIELDS | {"kind"}))
    _raise(faults)
    return reports


def _object(body: bytes) -> dict[str, Any]:
    try:
        table = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "it cannot be read"
        raise Invalid(f"the body is not JSON: {reason}", reason="MALFORMED_JSON") from None
    if not isinstance(table, dict):
        raise Invalid("the body must be a JSON object", reason="MALFORMED_JSON")
    return table


def _unknown(field: str, known: str) -> Fault:
    shown = field.encode(errors="replace").decode()[:100]
    return Fault(field=shown, message="is not a field", remedy=f"known: {known}")


def _raise(faults: list[Fault]) -> None:
    if faults:
        listed = "; ".join(f"{fault.field} {fault.message}" for fault in faults[:20])
        raise Invalid(f"the report is not valid: {listed}", reason="BAD_REPORT", faults=faults[:100])


class _Reader:
    """Takes typed values out of one report and collects what is wrong with them."""

    def __init__(self, table: Mapping[str, Any], where: str, faults: list[Fault], now: int) -> None:
        self._table, self._where, self._faults, self._now = table, where, faults, now

    def report(self, kind: EventKind, known: frozenset[str]) -> Report:
        if kind is EventKind.IMPRESSION:
            known -= {"eventName"}
        self._refuse_unknown(known)
        return Report(
            kind=kind,
            where=self._where,
            participant=self._text("participantId", MAX_NAME) or None,
            target=self._text("target", MAX_TARGET),
            event_name=self._text("eventName", MAX_NAME, required=True)
            if kind is EventKind.CONVERSION
            else "",
            subject=self._text("subject", MAX_SUBJECT),
            value_micros=self._value(),
            digest=self._digest(),
            event_id=self._text("eventId", MAX_EVENT_ID),
            occurred_at=self._moment(),
            properties_json=self._properties(),
        )

    def receipt(self) -> Receipt:
        self._refuse_unknown({"participantId", "target", "digest"})
        return Receipt(
            where=self._where,
            participant=self._text("participantId", MAX_NAME) or None,
            target=self._text("target", MAX_TARGET, required=True),
            digest=self._digest(required=True) or b"",
        )

    def _refuse_unknown(self, known: Set[str]) -> None:
        for key in sorted(set(self._table) - known):
            self._faults.append(_unknown(self._where + key, ", ".join(sorted(known))))

    def _fault(self, key: str, message: str, remedy: str = "") -> None:
        self._faults.append(Fault(field=self._where + key, message=message, remedy=remedy))

    def _text(self, key: str, limit: int, *, required: bool = False) -> str:
        value = self._table.get(key)
        if value is None and not required:
            return ""
        if not isinstance(value, str) or not 1 <= len(value) <= limit:
            self._fault(key, f"must be a text of 1 to {limit} characters")
        elif not is_text(value) or (key == "eventName" and NAME_ENDS in value):
            self._fault(key, "holds characters that are no text")
        else:
            return value
        return ""

    def _value(self) -> int | None:
        value = self._table.get("value")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._fault("value", "must be a number")
        elif isinstance(value, float) and not math.isfinite(value):
            self._fault("value", "must be finite")
        else:
            micros = (
                value * 1_000_000
                if isinstance(value, int)
                # By its shortest decimal text, so that 0.1 is 100000 micro-units and not a little more.
                else int((Decimal(repr(value)) * 1_000_000).to_integral_value(ROUND_HALF_EVEN))
            )
            if abs(micros) <= MAX_VALUE_MICROS:
                return micros
            self._fault("value", "is out of range", f"within ±{MAX_VALUE_MICROS // 1_000_000}")
        return None

    def _digest(self, *, required: bool = False) -> Digest | None:
        text = self._text("digest", 71, required=required)
        try:
            return parse_digest(text) if text else None
        except ValueError as error:
            self._fault("digest", f"is none: {error}")
            return None

    def _moment(self) -> int:
        text = self._text("occurredAt", 64)
        if not text:
            return self._now
        try:
            moment = from_rfc3339(text)
        except (ValueError, OverflowError):
            self._fault("occurredAt", "is no moment", "write it as 2026-01-31T12:00:00Z")
            return self._now
        if moment < 0:
            self._fault("occurredAt", "is before 1970", "leave it out, or say when it happened")
        if moment > self._now + FUTURE_SECONDS * SECOND:
            self._fault(
                "occurredAt",
                f"is more than {FUTURE_SECONDS // 60} minutes ahead of this host's clock",
                "leave it out, or set the clock right",
            )
        return moment

    def _properties(self) -> str:
        value = self._table.get("properties")
        if value is None:
            return ""
        if not isinstance(value, dict):
            self._fault("properties", "must be an object")
            return ""
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (ValueError, RecursionError):
            self._fault("properties", "holds NaN or Infinity, or is nested too deeply")
            return ""
        if not is_text(text) or any(not is_text(part) for part in _texts(value)):
            self._fault("properties", "holds characters that are no text")
        elif len(text.encode()) > MAX_PROPERTIES:
            self._fault("properties", f"is longer than {MAX_PROPERTIES} bytes")
        else:
            return text
        return ""


def _texts(value: object) -> Iterator[str]:
    """Every text in a JSON value; its depth was bounded by the parser."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item
