"""A project of its own on a control plane that several tests share, and who may do everything in it."""

from dataclasses import dataclass
from typing import Any

from control_plane.services import access
from control_plane.store.database import Tx
from control_plane.store.sqlite import SqliteDatabase
from control_plane.store.store import Store
from shared.ids import new_id, show_id
from tests.support.clock import FakeClock
from tests.support.plane import Answer, Plane


@dataclass
class Tenant:
    """A project's administrator over HTTP."""

    plane: Plane
    clock: FakeClock
    project: str
    key: str

    async def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, **headers: str
    ) -> Answer:
        """What is answered."""
        return await self.plane.rest(method, path, body, key=self.key if key is None else key, **headers)

    async def ok(self, method: str, path: str, body: Any = None, *, status: int = 200, **headers: str) -> Any:
        """The body of an answer with this status."""
        answer = await self.ask(method, path, body, **headers)
        assert answer.status == status, (method, path, answer.status, answer.body)
        return answer.body

    async def limited(self, *scopes: str, **labels: str) -> str:
        """A key with these scopes only."""
        asked = {"name": "limited", "scopes": scopes, "labels": labels}
        return str((await self.ok("POST", "/v1/api-keys", asked, status=201))["secret"])

    async def entry(self) -> dict[str, Any]:
        """The newest entry of the audit log."""
        found = await self.ok("GET", "/v1/audit-log?limit=1")
        return dict(found["entities"][0])


async def make_tenant(plane: Plane, clock: FakeClock) -> Tenant:
    """A fresh project."""
    now, project_id = clock.now(), new_id()

    def make(tx: Tx) -> str:
        store = Store(tx).access
        store.add_project(project_id, name=f"t{project_id.hex()}", now=now)
        made = access.make_key(
            store, project_id=project_id, name="t", scopes=("admin",), new_id=new_id, now=now
        )
        return made.secret or ""

    database = SqliteDatabase.open(plane.data / "variantd.db")
    try:
        return Tenant(plane=plane, clock=clock, project=show_id(project_id), key=await database.write(make))
    finally:
        await database.close()
