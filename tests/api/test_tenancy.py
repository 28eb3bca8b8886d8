"""Nobody reaches into another project: every operation, tried with a key of another project.

Made from the table of operations and its examples, so an operation is tried here as soon as it is there.
"""

import re
import sqlite3
from contextlib import closing

import grpc
from google.protobuf.message_factory import GetMessageClass

from control_plane.api.codec import to_message
from control_plane.api.examples import AGENT, API_KEY, DEPLOYMENT, EXAMPLES
from control_plane.api.operations import OPERATIONS
from control_plane.services import access
from control_plane.store.database import Tx
from control_plane.store.sqlite import SqliteDatabase
from control_plane.store.store import Store
from shared.clock import SystemClock
from shared.ids import new_id
from shared.pb.variantd.operator.v1 import operator_pb2
from tests.support.plane import Plane

BY_RPC = {operation.rpc: operation for operation in OPERATIONS}
UNTIL = "ExperimentService.StartExperiment"
"""Up to here the examples are told, so that there is a running experiment to reach for."""
WITH = ("DeploymentService.CreateDeployment", "AccessService.CreateApiKey")


async def key_of_another_project(plane: Plane) -> str:
    """A key that may do everything, elsewhere."""
    now = SystemClock().now()

    def make(tx: Tx) -> str:
        store, project_id = Store(tx).access, new_id()
        store.add_project(project_id, name="elsewhere", now=now)
        made = access.make_key(
            store, project_id=project_id, name="e", scopes=("admin",), new_id=new_id, now=now
        )
        store.use_api_key(made.key.id, now=now)  # so that its first use changes nothing below
        return made.secret or ""

    database = SqliteDatabase.open(plane.data / "variantd.db")
    try:
        return await database.write(make)
    finally:
        await database.close()


async def test_no_operation_reaches_into_another_project(plane: Plane) -> None:
    """Whatever is named is not found, every list is empty, and nothing has changed in the database."""
    await plane.enroll(await plane.token())
    agents = (await plane.rest("GET", "/v1/agents")).body["entities"]
    ids = {AGENT: agents[0]["id"]}

    def values(rpc: str) -> dict[str, object]:
        return {
            name: ids.get(value, value) if isinstance(value, str) else value
            for name, value in EXAMPLES[rpc].items()
        }

    def path(rpc: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda name: str(values(rpc)[name[1]]), BY_RPC[rpc].path)

    told = [*EXAMPLES][: [*EXAMPLES].index(UNTIL) + 1]
    for rpc in [*told, *WITH]:
        operation = BY_RPC[rpc]
        if operation.changes and not rpc.endswith("DeleteExperiment"):
            sent = {name: value for name, value in values(rpc).items() if f"{{{name}}}" not in operation.path}
            answer = await plane.rest(operation.method, path(rpc), sent or None)
            assert answer.status == operation.status, (rpc, answer.body)
            if rpc in WITH:
                ids[DEPLOYMENT if rpc == WITH[0] else API_KEY] = answer.body["id"]

    foreign = await key_of_another_project(plane)
    with closing(sqlite3.connect(plane.data / "variantd.db")) as seen:
        before = list(seen.iterdump())
        for rpc, operation in BY_RPC.items():
            if "{" not in operation.path:
                continue
            sent = {name: value for name, value in values(rpc).items() if f"{{{name}}}" not in operation.path}
            if operation.method == "GET":
                answer = await plane.rest("GET", path(rpc), key=foreign)
            else:
                answer = await plane.rest(operation.method, path(rpc), sent or None, key=foreign)
            assert answer.status == 404, (rpc, answer.status, answer.body)
            try:
                await plane.grpc(rpc, key=foreign, **_fields(rpc, values(rpc)))
            except grpc.aio.AioRpcError as refused:
                assert refused.code() is grpc.StatusCode.NOT_FOUND, (rpc, refused.details())
            else:
                raise AssertionError(f"{rpc} answered a foreign key")
        assert list(seen.iterdump()) == before
        for rpc, operation in BY_RPC.items():
            if operation.method == "GET" and "{" not in operation.path and "List" in rpc:
                found = (await plane.rest("GET", operation.path, key=foreign)).body["entities"]
                assert [item.get("name") for item in found] == (["e"] if rpc.endswith("ApiKeys") else []), rpc


def _fields(rpc: str, values: dict[str, object]) -> dict[str, object]:
    service, method = rpc.split(".")
    kind = operator_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method].input_type
    wire = {
        {"limit": "pageSize", "cursor": "pageToken"}.get(name, name): value for name, value in values.items()
    }
    message = to_message(wire, GetMessageClass(kind))
    return {field.name: getattr(message, field.name) for field, _ in message.ListFields()}
