"""What both transports do with a request: who calls, is it well-formed, run it, answer.

Hides authentication and the three ways an operation runs, so that `rest` and `rpc` only translate.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from control_plane.api.admission import Rates
from control_plane.api.oidc import Tokens
from control_plane.api.operations import OPERATIONS, Operation
from control_plane.domain import requests
from control_plane.services.access import KEY_PREFIX, Holder, authenticate
from control_plane.services.work import Caller, Condition, Services, check_request_id, require
from control_plane.store.store import Store
from shared import logs
from shared.errors import Code, Error, PermissionDenied, Unauthenticated, Unavailable
from shared.ids import show_id

_log = logs.get(__name__)


class Door:
    """The way in; counts who comes and how it ends."""

    def __init__(
        self,
        services: Services,
        registry: CollectorRegistry,
        *,
        rates: Rates | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        self.services = services
        self._rates, self._tokens = rates or Rates(rate=0, burst=1), tokens
        self._ended = Counter(
            "variantd_operations",
            "operators' operations, by how they ended: ok, an error code, or cancelled where who asked went away",
            ["operation", "code"],
            registry=registry,
        )
        for operation in OPERATIONS:  # to Prometheus, what begins at 1 has not increased
            self._ended.labels(operation.rpc, Code.INTERNAL.value)
        self._seconds = Histogram(
            "variantd_operation_seconds", "how long they took", ["operation"], registry=registry
        )

    async def admitted(self, authorization: str) -> Caller:
        """Who sends a request with this `Authorization`; it counts against the key's rate.

        Raises Unauthenticated, and ResourceExhausted where the key has sent too many.
        """
        holder = await self._holder(authorization)
        self._rates.admit(holder.key_id, self.services.clock.monotonic())
        return holder.caller

    async def caller(self, authorization: str) -> Caller:
        """Who sends this `Authorization`, however often it is asked. Raises Unauthenticated."""
        return (await self._holder(authorization)).caller

    async def _holder(self, authorization: str) -> Holder:
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Unauthenticated(reason="NO_API_KEY")
        services, secret = self.services, secret.strip()
        if self._tokens is not None and not secret.startswith(KEY_PREFIX):
            caller = await self._tokens.caller(secret, services.database)
            # A rate is each subject's own, however many tokens it gets.
            return Holder(caller=caller, key_id=caller.project_id + caller.actor.encode(), unnoted=False)
        now = services.clock.now()
        holder = await services.database.read(lambda tx: authenticate(Store(tx), secret, now=now))
        if holder.unnoted:
            try:
                await services.database.write(lambda tx: Store(tx).access.use_api_key(holder.key_id, now=now))
            except Unavailable:  # a full disk must not keep anybody from reading
                _log.warning("api_key.use_not_noted", key=show_id(holder.key_id))
        return holder

    async def run(
        self,
        operation: Operation,
        caller: Caller,
        values: Mapping[str, Any],
        *,
        request_id: str = "",
        condition: Condition | None = None,
    ) -> Any:
        """The JSON-shaped answer of an operation to JSON-shaped values; a change only under its `condition`."""
        code = "ok"
        try:
            with self._seconds.labels(operation.rpc).time():
                return await self._run(operation, caller, values, request_id, condition)
        except Error as error:
            code = error.code.value
            raise
        except asyncio.CancelledError:
            code = "cancelled"
            raise
        except BaseException:
            code = Code.INTERNAL.value
            raise
        finally:
            self._ended.labels(operation.rpc, code).inc()

    async def _run(
        self,
        operation: Operation,
        caller: Caller,
        values: Mapping[str, Any],
        request_id: str,
        condition: Condition | None,
    ) -> Any:
        if caller.labels and not operation.labelled:
            raise PermissionDenied(
                "this concerns a whole project; it needs a key that is not limited to labels",
                reason="LIMITED_KEY",
            )
        request = requests.parse(operation.request, values)
        if draft := operation.settles(request):
            # Before the transaction, which waits for nobody: it goes by what is on record then.
            require(caller, operation.scope)
            await self.services.settle(self.services, caller, draft)
        if operation.asks_host:
            return await self.services.consult(
                caller,
                operation.scope,
                operation.use_case,
                request,
                operation.render,
                operation=operation.rpc,
            )
        if not operation.changes:
            return await self.services.ask(
                caller, operation.scope, operation.use_case, request, operation.render
            )
        return await self.services.change(
            caller,
            operation.scope,
            operation.use_case,
            request,
            operation.render,
            operation=operation.rpc,
            request_id=check_request_id(request_id),
            body=values,
            condition=condition,
        )
