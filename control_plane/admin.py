"""`variantd admin`: projects and keys on the data directory itself, for whoever may write there.

It needs no key, so it is the way back in when none is left, and the only way to a second project. It goes through
the same use cases as an operator's requests and leaves the same lines in the audit log. A server that runs over
the directory may keep running: it looks keys up at every request.
"""

import asyncio
import getpass
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from control_plane.api import resources
from control_plane.api.witness import witness
from control_plane.data import DataDir, open_database, write_private
from control_plane.domain import requests
from control_plane.services import access
from control_plane.services.work import Caller, Joining, Question, Scope, Services
from control_plane.store.access import Project
from control_plane.store.database import Database
from control_plane.store.store import Store
from shared.clock import Clock
from shared.errors import FailedPrecondition, Invalid, NotFound, Unavailable
from shared.ids import NewId, show_id
from shared.moment import to_rfc3339

Json = dict[str, Any]


class Administration:
    """The verbs, over an open database."""

    def __init__(self, database: Database, *, clock: Clock, new_id: NewId) -> None:
        self._database = database
        self._new_id = new_id
        self._services = Services(
            database=database,
            clock=clock,
            new_id=new_id,
            wake=lambda _: None,  # nothing here changes what a host should hold
            joining=Joining(addresses=(), ca_certificate=b""),
            hosts=_NoHosts(),
            witness=witness,
        )

    async def create_project(self, name: str) -> Project:
        """The project exists, empty and without a key. Raises AlreadyExists."""
        values = {"name": name}
        request = requests.parse(requests.CreateProject, values)
        caller = _caller(self._new_id())
        made: Project = await self._services.change(
            caller,
            Scope.ADMIN,
            access.create_project,
            request,
            lambda _, project: project,
            operation="Admin.CreateProject",
            request_id="",
            body={"id": show_id(caller.project_id), **values},
        )
        return made

    async def projects(self) -> list[Project]:
        """Every project by name."""
        return await self._database.read(lambda tx: Store(tx).access.projects())

    async def create_key(self, project: str, values: Mapping[str, Any], *, out: Path | None) -> Json:
        """The key exists; its secret is in the answer or, with `out`, in that file (0600) and not in the answer.

        The file is replaced. Where it cannot be written the key is revoked again. Raises Invalid.
        """
        request = requests.parse(requests.CreateApiKey, values)
        caller = await self._within(project)
        made: Json = await self._services.change(
            caller,
            Scope.ADMIN,
            access.create_api_key,
            request,
            resources.api_key,
            operation="AccessService.CreateApiKey",
            request_id="",
            body=values,
        )
        if out is None:
            return made
        try:
            write_private(out, f"{made['secret']}\n".encode())
        except OSError as error:
            await self.revoke_key(project, made["id"])
            raise Invalid(f"cannot write {out}: {error.strerror}; no key was made") from None
        return {**made, "secret": None}

    async def keys(self, project: str) -> list[Json]:
        """The project's keys, newest first, revoked and expired ones among them, without their secrets."""
        caller, found, cursor = await self._within(project), [], ""
        while True:
            page = await self._services.ask(
                caller,
                Scope.ADMIN,
                access.list_api_keys,
                requests.Page(limit=100, cursor=cursor),
                resources.api_keys,
            )
            found += page["entities"]
            cursor = page["pagination"]["nextCursor"] or ""
            if not cursor:
                return found

    async def revoke_key(self, project: str, key: str) -> None:
        """The key lets nobody in from now on. Idempotent. Raises NotFound."""
        await self._services.change(
            await self._within(project),
            Scope.ADMIN,
            access.revoke_api_key,
            requests.ById(id=key),
            lambda _, __: None,
            operation="AccessService.RevokeApiKey",
            request_id="",
            body={"id": key},
        )

    async def _within(self, project: str) -> Caller:
        found = await self._database.read(lambda tx: Store(tx).access.project(project))
        if found is None:
            raise NotFound(f"there is no project {project!r}; `variantd admin project list` shows them")
        return _caller(found)


def run(
    path: Path,
    url: SecretStr | None,
    clock: Clock,
    new_id: NewId,
    verb: Callable[[Administration], Awaitable[None]],
) -> None:
    """The verb is done on the data directory, or the database at `url` that goes with it.

    Raises Invalid where there is none, or it is somebody else's.
    """
    data = DataDir(path)
    found = data.database if url is None and not data.elsewhere.exists() else data.elsewhere
    if not found.exists():
        raise Invalid(f"{path} is not a data directory of variantd; `variantd serve` makes one")
    if not os.access(found, os.R_OK | os.W_OK) or not os.access(path, os.W_OK):
        raise Invalid(f"{found} cannot be written; run this as the user who serves from {path}")

    async def within() -> None:
        database = _open(data, url)
        try:
            await verb(Administration(database, clock=clock, new_id=new_id))
        finally:
            await database.close()

    asyncio.run(within())


def _open(data: DataDir, url: SecretStr | None) -> Database:
    """The database; migrated only while no server runs over it, whose schema would change beneath it."""
    if url is not None:  # servers on other machines may run over it
        return open_database(data, url, may_change=False)
    try:
        held = data.lock()
    except FailedPrecondition:
        return open_database(data, url, may_change=False)
    try:
        return open_database(data, url)
    finally:
        os.close(held)


# -- what the command line prints


async def print_projects(admin: Administration) -> None:
    """Every project, a line each."""
    for project in await admin.projects():
        _print(show_id(project.id), project.name, to_rfc3339(project.created_at))


async def print_keys(admin: Administration, project: str) -> None:
    """Every key, a line each: id, name, first characters, scopes, how it stands, and what it is limited to."""
    for key in await admin.keys(project):
        ended = f"revoked {key['revokedAt']}" if key["revokedAt"] else ""
        expires = f"expires {key['expiresAt']}" if key["expiresAt"] else "valid"
        limits = " ".join(f"{name}={value}" for name, value in key["labels"].items())
        _print(key["id"], key["name"], key["prefix"], " ".join(key["scopes"]), ended or expires, limits)


async def print_new_key(
    admin: Administration, project: str, values: Mapping[str, Any], *, out: Path | None
) -> None:
    """The secret alone on standard output, or in the file; which key it is on standard error."""
    made = await admin.create_key(project, values, out=out)
    if made["secret"]:
        _print(made["secret"])
        told = "it is not shown again"
    else:
        told = f"its secret is in {out}"
    sys.stderr.write(f"variantd: {_plain(made['name'])} is {made['id']}; {told}\n")


def _print(*cells: str) -> None:
    sys.stdout.write("\t".join(_plain(cell) for cell in cells) + "\n")
    sys.stdout.flush()


def _plain(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(character if character.isprintable() else "�" for character in text)


def _caller(project_id: bytes) -> Caller:
    return Caller(project_id=project_id, actor=f"admin:{_user()}", scopes=frozenset({Scope.ADMIN}))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this uid; which of the two depends on the Python
        return f"uid-{os.getuid()}"


class _NoHosts:
    """No host is connected here."""

    async def read(self, question: Question) -> bytes | None:
        raise Unavailable(f"nothing is connected to {question.participant} here")
