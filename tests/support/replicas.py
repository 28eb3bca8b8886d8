"""Several control planes over one PostgreSQL, in this process."""

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from tests.support import postgres
from tests.support.plane import Identity, Plane, running_plane


@asynccontextmanager
async def replicated(folder: Path, *names: str, **more: Any) -> AsyncIterator[list[Plane]]:
    """A control plane of each name over the folder's database, with one authority and one operator's key."""
    url = SecretStr(postgres.url_of(folder))
    try:
        async with AsyncExitStack() as stack:
            planes: list[Plane] = []
            for name in names:
                data = folder / name
                if planes:
                    data.mkdir(exist_ok=True)
                    shutil.copy(planes[0].data / "operator.api-key", data / "operator.api-key")
                entered = running_plane(data, database=url, ca_key_file=folder / "authority.pem", **more)
                planes.append(await stack.enter_async_context(entered))
            yield planes
    finally:
        postgres.drop(folder)


def at(identity: Identity, plane: Plane) -> Identity:
    """The agent, whose way leads to that control plane."""
    return replace(identity, address=plane.addresses["agents"])
