"""`variantd admin`: projects and keys without a key, on the data directory of a server that runs."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from control_plane.admin import Administration
from control_plane.store.sqlite import SqliteDatabase
from shared.clock import SystemClock
from shared.errors import Error
from shared.ids import new_id
from tests.support.fleet import run
from tests.support.plane import Plane, running_plane


async def admin(plane: Plane, *command: str, ok: bool = True) -> tuple[int, str, str]:
    """What `variantd admin` does on the plane's directory."""
    noun, verb, *rest = command
    return await run("variantd", "admin", noun, verb, "--data-dir", str(plane.data), *rest, ok=ok)


async def test_the_way_back_when_no_key_is_left(plane: Plane) -> None:
    """The last admin key was revoked: a new one, put where `login` looks, opens the running server again."""
    [own] = (await plane.rest("GET", "/v1/api-keys")).body["entities"]
    assert (await plane.rest("DELETE", f"/v1/api-keys/{own['id']}")).status == 204
    assert (await plane.rest("GET", "/v1/api-keys")).status == 401

    out = plane.data / "operator.api-key"
    _, printed, told = await admin(
        plane, "key", "create", "--name", "operator", "--scope", "admin", "--out", str(out)
    )
    secret = out.read_text().strip()
    assert out.stat().st_mode & 0o777 == 0o600
    assert secret not in printed + told
    entries = (await plane.rest("GET", "/v1/audit-log", key=secret)).body["entities"]
    assert [item["operation"].partition(".")[2] for item in entries] == ["CreateApiKey", "RevokeApiKey"]
    assert entries[0]["actor"].startswith("admin:")
    assert secret.encode() not in (plane.data / "variantd.db").read_bytes()


async def test_a_key_on_the_directory_is_made_listed_and_taken_away(plane: Plane) -> None:
    """Its secret is the whole of standard output, this once; revoked, it is refused at the next request."""
    wanted = ("--scope", "fleet:read", "--label", "team=x", "--expires-at", "2999-01-01T00:00:00Z")
    _, printed, _ = await admin(plane, "key", "create", "--name", "ci\x1b[2J", *wanted)
    secret = printed.strip()
    assert (await plane.rest("GET", "/v1/agents", key=secret)).status == 200
    assert (await plane.rest("GET", "/v1/experiments", key=secret)).status == 403

    shown = (await plane.rest("GET", "/v1/api-keys")).body["entities"][0]
    assert shown["labels"] == {"team": "x"}

    _, listed, _ = await admin(plane, "key", "list")
    newest, oldest = (line.split("\t") for line in listed.splitlines())
    assert newest[1:4] == ["ci�[2J", secret[:10], "fleet:read"]
    assert newest[4].startswith("expires 2999-01-01")
    assert newest[5] == "team=x"
    assert (oldest[1], oldest[4]) == ("operator", "valid")
    assert secret not in listed

    await admin(plane, "key", "revoke", newest[0])
    assert (await plane.rest("GET", "/v1/agents", key=secret)).status == 401
    assert "revoked" in (await admin(plane, "key", "list"))[1].splitlines()[0]


async def test_a_second_project_is_a_world_of_its_own(plane: Plane) -> None:
    """Made, listed and entered by a key of its own, which sees nothing of the first; its log begins with its making."""
    await plane.made("/v1/participants", {"id": "bot-1"})
    await admin(plane, "project", "create", "lab")
    names = [line.split("\t")[1] for line in (await admin(plane, "project", "list"))[1].splitlines()]
    assert names == ["default", "lab"]
    _, printed, _ = await admin(plane, "key", "create", "--project", "lab", "--name", "l", "--scope", "admin")
    secret = printed.strip()
    assert (await plane.rest("GET", "/v1/participants", key=secret)).body["entities"] == []
    entries = (await plane.rest("GET", "/v1/audit-log", key=secret)).body["entities"]
    assert [item["operation"] for item in entries] == ["AccessService.CreateApiKey", "Admin.CreateProject"]
    [own] = (await plane.rest("GET", "/v1/api-keys", key=secret)).body["entities"]
    code, _, told = await admin(
        plane, "key", "revoke", own["id"], ok=False
    )  # of the default project, which has no such key
    assert (code, "there is no API key" in told) == (1, True)


async def test_what_cannot_be_done_is_told(plane: Plane, tmp_path: Path) -> None:
    """It is said what is wrong, and nothing was made: also where the secret's file cannot be written."""
    before = (await plane.rest("GET", "/v1/api-keys")).body["entities"]
    key = {"name": "x", "scopes": ["admin"]}
    database = SqliteDatabase.open(plane.data / "variantd.db")
    try:
        found = Administration(database, clock=SystemClock(), new_id=new_id)
        for attempt, said in (
            (found.create_project("default"), "exists already"),
            (found.create_project("Not A Name"), "name:"),
            (found.create_key("default", {**key, "scopes": ["all"]}, out=None), "is not a scope"),
            (found.create_key("default", {**key, "expiresAt": "soon"}, out=None), "expiresAt"),
            (found.create_key("nowhere", key, out=None), "no project 'nowhere'"),
            (found.revoke_key("default", "nobody"), "no API key"),
        ):
            with pytest.raises(Error, match=said):
                await attempt
        assert (await plane.rest("GET", "/v1/api-keys")).body["entities"] == before
        with pytest.raises(Error, match="no key was made"):
            await found.create_key("default", key, out=tmp_path / "nowhere" / "key")
    finally:
        await database.close()
    newest = (await plane.rest("GET", "/v1/api-keys")).body["entities"][0]
    assert newest["revokedAt"] is not None


async def test_a_directory_that_is_none(tmp_path: Path) -> None:
    """One line on standard error, and no database is made there."""
    code, out, told = await run("variantd", "admin", "project", "list", "--data-dir", str(tmp_path), ok=False)
    assert (code, out, told.count("\n")) == (1, "", 1)
    assert "is not a data directory" in told
    assert not [*tmp_path.iterdir()]


async def test_the_schema_does_not_change_beneath_a_server(plane: Plane) -> None:
    """Over the database of a server of an older version nothing is done, and it is said what to do first."""
    with closing(sqlite3.connect(plane.data / "variantd.db")) as database, database:
        database.execute("delete from migration where name = (select max(name) from migration)")
    code, out, told = await admin(plane, "project", "create", "lab", ok=False)
    assert (code, out, "restart it first" in told) == (1, "", True)
    with closing(sqlite3.connect(plane.data / "variantd.db")) as database:
        assert database.execute("select name from project").fetchall() == [("default",)]


async def test_it_needs_no_server(tmp_path: Path) -> None:
    """On the directory of a server that has ended it does the same, and leaves no file of its own."""
    async with running_plane(tmp_path / "data") as plane:
        pass
    before = sorted(plane.data.iterdir())
    await admin(plane, "project", "create", "lab")
    assert sorted(plane.data.iterdir()) == before
    assert "lab" in (await admin(plane, "project", "list"))[1]
