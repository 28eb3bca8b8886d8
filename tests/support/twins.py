"""Two control planes that live the same life, one asked through REST and one through gRPC.

Both have the same standing clock, count the same ids and draw the same secrets, so what they answer can be
compared word for word.
"""

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import grpc
import pytest
from google.protobuf.json_format import ParseError
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from control_plane.api.codec import from_message, is_map, to_message
from control_plane.api.errors import TABLE
from control_plane.api.operations import Operation
from control_plane.api.rpc import answer_message
from shared import ids
from shared.clock import SystemClock
from shared.errors import Code
from shared.pb.variantd.operator.v1 import operator_pb2
from tests.support.clock import FakeClock
from tests.support.plane import Identity, Plane, running_plane

OWN = frozenset({"token", "certificate", "serial"})
"""What each control plane has of its own: its authority's signatures."""


@dataclass(frozen=True)
class Refusal:
    """An error as both transports tell it."""

    code: str
    reason: str
    message: str = field(compare=False)
    fields: tuple[str, ...] = ()
    details: str = ""


_PAGES = {"limit": "pageSize", "cursor": "pageToken"}

Outcome = Refusal | Mapping[str, Any] | None
"""What a call came to: an error, the values of its answer, or (with nothing to answer) None."""


class Unrepresentable(Exception):
    """Protobuf has no message for these values, so no client can send them."""


class _Chance:
    """Secrets that can be drawn again."""

    def __init__(self) -> None:
        self.drawn = 0

    def token_bytes(self, size: int) -> bytes:
        self.drawn += 1
        return self.drawn.to_bytes(size, "big")


class _Ids:
    """Ids that look like UUIDv7 and count up from one."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> bytes:
        self.made += 1
        return (0x0192_0000_0000_7000_8000_0000_0000_0000 + self.made).to_bytes(16, "big")


@dataclass
class Twins:
    """The two, and what sends one request to both."""

    rest: Plane
    grpc: Plane
    chance: _Chance
    ids: tuple[_Ids, _Ids]
    hosts: list[Identity] = field(default_factory=list)

    async def both(
        self,
        operation: Operation,
        values: Mapping[str, Any],
        *,
        key: str | None = None,
        request_id: str = "",
    ) -> tuple[Outcome, Outcome]:
        """What REST and gRPC come to. Raises Unrepresentable before anything is sent."""
        message = asked(operation, values, request_id)
        before = self.chance.drawn
        shown = await by_rest(self.rest, operation, values, key=key, request_id=request_id)
        self.chance.drawn = before
        told = await by_grpc(self.grpc, operation, message, key=key)
        return shown, told

    async def only_rest(self, operation: Operation, values: Mapping[str, Any]) -> Outcome:
        """What REST comes to with what gRPC cannot say; the twins stay in step."""
        before = self.chance.drawn
        shown = await by_rest(self.rest, operation, values)
        self.chance.drawn = before
        if isinstance(shown, Refusal):
            self.ids[0].made = self.ids[1].made
        return shown

    async def agree(self, operation: Operation, values: Mapping[str, Any], **how: Any) -> Outcome:
        """What both come to. Fails where they differ."""
        shown, told = await self.both(operation, values, **how)
        assert shown == told, (operation.rpc, dict(values), how, shown, told)
        return shown


@asynccontextmanager
async def twins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Twins]:
    """Both are up, as fresh."""
    chance = _Chance()
    monkeypatch.setattr(ids, "secrets", chance)
    now = SystemClock().now()  # certificates are of the present
    counts = (_Ids(), _Ids())
    async with (
        running_plane(folder / "rest", clock=FakeClock(now=now), ids=counts[0]) as one,
        running_plane(folder / "grpc", clock=FakeClock(now=now), ids=counts[1]) as other,
    ):
        yield Twins(rest=one, grpc=other, chance=chance, ids=counts)


# -- REST ------------------------------------------------------------------------------------------


async def by_rest(
    plane: Plane,
    operation: Operation,
    values: Mapping[str, Any],
    *,
    key: str | None = None,
    request_id: str = "",
) -> Outcome:
    """What the operation comes to over HTTP, its values put where the route has them."""
    path = re.sub(r"\{(\w+)\}", lambda name: quote(str(values[name[1]]), safe=""), operation.path)
    rest = {name: value for name, value in values.items() if name not in operation.named}
    headers = {"Idempotency_Key": request_id} if request_id else {}
    if operation.method == "GET":
        path += "?" + urlencode(list(queried(rest)))
        answer = await plane.rest("GET", path, key=key, **headers)
    else:
        answer = await plane.rest(operation.method, path, rest or None, key=key, **headers)
    if answer.status >= 400:
        return _from_problem(answer.status, answer.body)
    assert answer.status in (operation.status, operation.already), (operation.rpc, answer)
    if answer.status == 204:
        return None
    service, method = operation.rpc.split(".")
    kind = operator_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method].output_type
    return _comparable(from_message(answer_message(answer.body, GetMessageClass(kind))))


def queried(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The values as a query string has them: a map as `name.key=value`, a list as the name again and again."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            singular = "label" if name == "labels" else name
            pairs += [(f"{singular}.{key}", str(item)) for key, item in value.items()]
        elif isinstance(value, list):
            pairs += [(name, str(item)) for item in value]
        else:
            pairs.append((name, json.dumps(value) if isinstance(value, bool) else str(value)))
    return pairs


def _from_problem(status: int, body: Any) -> Refusal:
    code = Code(body["type"].removeprefix("urn:variantd:problem:"))
    assert TABLE[code].http == status == body["status"], body
    told = {"type", "title", "status", "detail", "reason", "errors", "error", "details", "requestId"}
    return Refusal(
        code=code.value,
        reason=body["reason"],
        message=body["detail"],
        fields=_fields(body["errors"]),
        details=json.dumps({name: body[name] for name in sorted(set(body) - told)}, sort_keys=True),
    )


# -- gRPC ------------------------------------------------------------------------------------------


def asked(operation: Operation, values: Mapping[str, Any], request_id: str = "") -> Message:
    """The request message of the values; an Update names what it sends in its mask. Raises Unrepresentable."""
    service, method = operation.rpc.split(".")
    kind = GetMessageClass(
        operator_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method].input_type
    )
    sent = {name: value for name, value in values.items() if name not in operation.named}
    fields = {item.json_name: item for item in kind.DESCRIPTOR.fields}
    masked = "updateMask" in fields
    for shown, value in sent.items():
        name = _PAGES.get(shown, shown)
        if (
            not masked
            and not value
            and not (name in fields and fields[name].has_presence and value is not None)
        ):
            raise Unrepresentable(f"{name}: only a mask tells {value!r} from nothing at all")
    try:
        renamed = {_PAGES.get(name, name): value for name, value in values.items()}
        message = to_message({**renamed, **({"requestId": request_id} if request_id else {})}, kind)
        if masked:
            message.update_mask.paths.extend(fields[name].name for name in sent)  # type: ignore[attr-defined]
    except (TypeError, ValueError, KeyError, AttributeError, ParseError) as error:
        raise Unrepresentable(str(error)) from error
    for name, value in sent.items():
        if name in fields and not _kind_fits(fields[name], value):
            raise Unrepresentable(f"{name} is not of the kind of {value!r}")
    return message


def _kind_fits(descriptor: Any, value: Any) -> bool:
    """Whether the value is of the field's JSON kind; the library itself takes 7.0 for 7 and "" for no items."""
    if value is None:
        return True
    if is_map(descriptor):
        return isinstance(value, Mapping)
    if descriptor.is_repeated:
        return isinstance(value, list)
    if descriptor.message_type is not None and descriptor.message_type.name != "Timestamp":
        return isinstance(value, Mapping)
    if descriptor.cpp_type == descriptor.CPPTYPE_BOOL:
        return isinstance(value, bool)
    return not isinstance(value, bool | Mapping | list)


async def by_grpc(plane: Plane, operation: Operation, message: Message, *, key: str | None = None) -> Outcome:
    """What the operation comes to over gRPC."""
    secret = plane.key if key is None else key
    metadata = [("authorization", f"Bearer {secret}")] if secret else []
    try:
        answer = await plane.call(operation.rpc)(message, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return _from_status(error)
    if answer.DESCRIPTOR.name == "Empty":
        return None
    return _comparable(from_message(answer))


def _from_status(error: grpc.aio.AioRpcError) -> Refusal:
    trailing = dict(error.trailing_metadata() or ())
    codes = [code for code, row in TABLE.items() if row.grpc is error.code()]
    assert codes, error
    [code] = codes
    return Refusal(
        code=code.value,
        reason=str(trailing["reason"]),
        message=error.details() or "",
        fields=_fields(json.loads(trailing.get("errors-bin", b"[]"))),
        details=json.dumps(json.loads(trailing.get("details-bin", b"{}")), sort_keys=True),
    )


def _fields(faults: list[dict[str, str]]) -> tuple[str, ...]:
    return tuple(sorted(fault["field"] for fault in faults))


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _comparable(item) for name, item in value.items() if name not in OWN}
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    return value
