"""Operator gRPC: the same operations as methods of the generated services, and enrollment beside them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message_factory import GetMessageClass

from control_plane.api import conditions, errors, request_ids
from control_plane.api import export as exporting
from control_plane.api import watch as watching
from control_plane.api.admission import Entrance
from control_plane.api.codec import request_values, to_message
from control_plane.api.door import Door
from control_plane.api.operations import EXPORT, WATCHES, Operation, Watch
from control_plane.api.watch import Watchers, slow
from control_plane.services import enrollment
from control_plane.store.store import Store
from shared import logs, tls
from shared.errors import ResourceExhausted
from shared.pb.variantd.agent.v1 import agent_pb2, agent_pb2_grpc
from shared.pb.variantd.operator.v1 import operator_pb2

_log = logs.get(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


def add_operator_services(
    server: grpc.aio.Server, door: Door, operations: Sequence[Operation], watchers: Watchers
) -> list[str]:
    """Every operation and every stream is served; returns the full names of the services."""
    by_rpc = {operation.rpc: operation for operation in operations}
    streams = {watch.rpc: watch for watch in WATCHES}
    names = []
    for service in operator_pb2.DESCRIPTOR.services_by_name.values():
        handlers: dict[str, Any] = {}
        for method in service.methods:
            if method.server_streaming:
                name = f"{service.name}.{method.name}"
                handlers[method.name] = grpc.unary_stream_rpc_method_handler(
                    _export(door, method.output_type)
                    if name == EXPORT.rpc
                    else _stream(watchers, streams[name], method.output_type),
                    request_deserializer=GetMessageClass(method.input_type).FromString,
                    response_serializer=lambda message: message.SerializeToString(),
                )
                continue
            operation = by_rpc[f"{service.name}.{method.name}"]
            request_class = GetMessageClass(method.input_type)
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                _handler(door, operation, GetMessageClass(method.output_type)),
                request_deserializer=request_class.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
        names.append(service.full_name)
    return names


def _handler(door: Door, operation: Operation, answer_class: Any) -> Callable[[Any, Context], Awaitable[Any]]:
    async def handle(message: Any, context: Context) -> Any:
        metadata = dict(context.invocation_metadata() or ())
        with request_ids.under(metadata.get(request_ids.METADATA)) as name:
            try:
                caller = await door.admitted(str(metadata.get("authorization", "")))
                values = request_values(message, operation.named)
                request_id = values.pop("requestId", "")
                condition = _condition(operation, values, str(metadata.get("if-match", "")))
                answer = await door.run(operation, caller, values, request_id=request_id, condition=condition)
            except Exception as failure:
                await errors.abort(context, errors.explain(failure, operation.rpc, peer=context.peer()))
        trailing = [(request_ids.METADATA, name)]
        if conditions.is_single(operation):
            trailing.append(("etag", conditions.tag_of(answer)))
        elif condition is not None and condition.tag:
            trailing.append(("etag", condition.tag))
        context.set_trailing_metadata(tuple(trailing))
        return answer_message(answer, answer_class)

    return handle


def _condition(operation: Operation, values: dict[str, Any], if_match: str) -> conditions.Condition | None:
    if not if_match or not operation.changes:
        return None
    return conditions.Condition(operation, values, if_match)


def _stream(watchers: Watchers, watch: Watch, kind: Any) -> Callable[[Any, Context], Awaitable[None]]:
    answer_class: Any = GetMessageClass(kind)

    async def handle(message: Any, context: Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        with request_ids.under(metadata.get(request_ids.METADATA)) as name:
            context.set_trailing_metadata(((request_ids.METADATA, name),))
            events = watchers.follow([watch], str(metadata.get("authorization", "")))
            try:
                # Its place is free before its end is told, which waits behind what was not read.
                async with aclosing(events) as told:  # type: ignore[type-var]  # it is a generator
                    request_values(message)
                    await errors.can_end(context)
                    async for event in told:
                        if event is None:
                            continue  # HTTP/2 has its own keep-alive
                        async with asyncio.timeout(watching.WRITE_SECONDS):
                            await context.write(to_message(event[1], answer_class))
            except TimeoutError:
                await errors.abort(context, slow())
            except Exception as failure:
                await errors.abort(context, errors.explain(failure, watch.rpc, peer=context.peer()))

    return handle


def _export(door: Door, kind: Any) -> Callable[[Any, Context], Awaitable[None]]:
    answer_class: Any = GetMessageClass(kind)

    async def handle(message: Any, context: Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        with request_ids.under(metadata.get(request_ids.METADATA)) as name:
            context.set_trailing_metadata(((request_ids.METADATA, name),))
            try:
                values = request_values(message)
                await errors.can_end(context)
                found = exporting.pages(door, values, str(metadata.get("authorization", "")))
                async with aclosing(found) as pages:  # type: ignore[type-var]  # it is a generator
                    async for lines in pages:
                        for rows in exporting.messages(lines):
                            async with asyncio.timeout(exporting.WRITE_SECONDS):
                                await context.write(answer_class(rows=rows))
            except TimeoutError:
                _log.warning("export.cut", peer=context.peer(), reason="slow")
                await errors.abort(context, slow())
            except Exception as failure:
                await errors.abort(context, errors.explain(failure, EXPORT.rpc, peer=context.peer()))

    return handle


def answer_message(answer: Any, kind: Any) -> Any:
    """The message of an operation's JSON-shaped answer."""
    if kind is Empty:
        return Empty()
    if "pagination" in answer:
        field = next(field for field in kind.DESCRIPTOR.fields if field.name != "next_page_token")
        token = answer["pagination"]["nextCursor"]
        return to_message({field.json_name: answer["entities"], "nextPageToken": token}, kind)
    return to_message(answer, kind)


ENROLLING_AT_ONCE, PATIENCE_SECONDS = 16, 20.0
"""Hosts that get a certificate, which bounds what everybody else waits for meanwhile; the others wait for so long,
which has to be less than a host waits for its answer."""


class EnrollmentServicer(agent_pb2_grpc.EnrollmentServiceServicer):
    """How a host gets its identity; needs no API key, so it waits for turns of its own."""

    def __init__(
        self,
        door: Door,
        authority: tls.Authorities,
        *,
        addresses: tuple[str, ...],
        incarnation: bytes,
    ) -> None:
        self._door = door
        self._authority = authority
        self._addresses = addresses
        self._incarnation = incarnation
        self._entrance = Entrance(at_once=ENROLLING_AT_ONCE, patience=PATIENCE_SECONDS)

    async def Enroll(self, request: agent_pb2.EnrollRequest, context: Context) -> agent_pb2.EnrollResponse:
        """An identity for a token."""
        services = self._door.services
        try:
            wanted = enrollment.EnrollRequest(
                secret=request.secret,
                signing_request=request.signing_request,
                name=request.name,
                hostname=request.hostname,
                previous_certificate=request.previous_certificate,
                previous_signature=request.previous_signature,
            )
            async with self._turn():
                now = services.clock.now()
                done = await services.database.write(
                    lambda tx: enrollment.enroll(
                        Store(tx), self._authority, wanted, new_id=services.new_id, now=now
                    )
                )
        except Exception as failure:
            await errors.abort(
                context, errors.explain(failure, "EnrollmentService.Enroll", peer=context.peer())
            )
        return agent_pb2.EnrollResponse(
            agent_uid=done.agent_uid,
            certificate=tls.pem_to_der(done.certificate),
            ca_certificates=self._authority.ders,
            addresses=self._addresses,
            incarnation=self._incarnation,
        )

    async def Recover(self, request: agent_pb2.RecoverRequest, context: Context) -> agent_pb2.RecoverResponse:
        """A certificate in place of an expired one."""
        services = self._door.services
        try:
            given, wanted = request.certificate, request.signing_request
            async with self._turn():
                now = services.clock.now()
                done = await services.database.write(
                    lambda tx: enrollment.recover(Store(tx), self._authority, given, wanted, now=now)
                )
        except Exception as failure:
            await errors.abort(
                context, errors.explain(failure, "EnrollmentService.Recover", peer=context.peer())
            )
        _log.info("certificate.recovered", agent=done.agent_uid.hex(), serial=done.serial)
        return agent_pb2.RecoverResponse(
            certificate=tls.pem_to_der(done.certificate), ca_certificates=self._authority.ders
        )

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self._entrance.enter() as entered:
            if not entered:
                raise ResourceExhausted("too many hosts enroll at once; try again in a minute")
            yield
