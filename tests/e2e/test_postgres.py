"""A control plane over PostgreSQL does the main job, and survives its database."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support import postgres
from tests.support.fleet import Fleet, Ledger, run, running_fleet
from tests.support.pages import ROOT, commands, followed
from tests.support.waiting import eventually

CONTENT = {"a": b"As agreed.\n", "b": b"The other one.\n"}
BOTS = ("bot-1", "bot-2", "bot-3", "bot-4")


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A database of this test's own."""
    yield postgres.url_of(tmp_path)
    postgres.drop(tmp_path)


@pytest.fixture
async def fleet(tmp_path: Path, url: str) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path, "--database", url) as running:
        yield running


async def start(fleet: Fleet) -> dict[str, str]:
    """A running experiment `tone`; variant key by participant."""
    variants = [
        {"name": key, "key": key, "content": body.decode(), "weight": 50, "isControl": key == "a"}
        for key, body in CONTENT.items()
    ]
    values = {"name": "Tone", "targetFile": "soul.md", "variants": variants, "participantIds": BOTS}
    await fleet.plane.post("/v1/experiments", {**values, "exposureCriteria": {"settleSeconds": 0}})
    await fleet.plane.post("/v1/experiments/tone/start")
    return await fleet.assigned("tone")


@pytest.mark.fault(3, 6)
async def test_the_main_job_over_postgres(fleet: Fleet, url: str) -> None:
    """Files, reports and results, while the server is killed and the database drops its connections."""
    hosts = [await fleet.add_host("one", *BOTS[:2]), await fleet.add_host("two", *BOTS[2:])]
    assigned = await start(fleet)

    def written() -> bool:
        return all(
            host.file(bot).read_bytes() == CONTENT[assigned[bot]]
            for host in hosts
            for bot in host.participants
        )

    await eventually(written, what="every file holds its variant")

    async def applied() -> bool:
        return set((await fleet.states("tone")).values()) == {"applied"}

    await eventually(applied, what="every deployment is reported")
    ledger = Ledger()

    async def report(turns: int) -> None:
        for turn in range(turns):
            for host in hosts:
                for bot in host.participants:
                    await ledger.report(host, bot, convert=turn % 2 == 0)

    await report(2)
    reporting = asyncio.create_task(report(6))
    await asyncio.to_thread(postgres.end_connections, url)
    await fleet.plane.process.kill()
    await fleet.plane.start()
    await asyncio.to_thread(postgres.end_connections, url)
    await reporting

    async def counted() -> bool:
        for population in ("assigned", "delivered"):
            status, body = await fleet.plane.rest(
                "GET", f"/v1/experiments/tone/results?eventName=done&population={population}"
            )
            if status != 200:  # the database had just dropped its connections
                return False
            found = {item["key"]: (item["impressions"], item["conversions"]) for item in body["variants"]}
            if found != ledger.sums(assigned):
                return False
        return True

    await eventually(counted, what="results equal the ledger")
    await fleet.plane.post("/v1/experiments/tone/complete", {"then": "restore"})
    await eventually(
        lambda: all(
            host.file(bot).read_bytes() == host.baseline(bot) for host in hosts for bot in host.participants
        ),
        what="every baseline is back",
    )


async def test_care_of_a_directory_whose_database_is_elsewhere(
    fleet: Fleet, url: str, tmp_path: Path
) -> None:
    """Every command finds the database where it is, or says where to look."""
    data = str(fleet.plane.data)
    _, secret, _ = await run(
        "variantd", "admin", "key", "create", "--data-dir", data, "--database", url,
        "--name", "ci", "--scope", "experiment:read",
    )  # fmt: skip
    assert secret.startswith("sk_")
    _, listed, _ = await run("variantd", "admin", "key", "list", "--data-dir", data, VARIANTD_DATABASE=url)
    assert "ci" in listed
    code, _, told = await run("variantd", "admin", "key", "list", "--data-dir", data, ok=False)
    assert code == 1
    assert "VARIANTD_DATABASE" in told

    _, printed, _ = await run("variantd", "migrate", "--data-dir", data, "--database", url)
    assert "newest" in printed
    _, printed, _ = await run("variantd", "backup", "--data-dir", data, str(tmp_path / "b.tar"))
    assert "pg_dump" in printed
    _, printed, _ = await run(
        "variantd", "restore", "--data-dir", str(tmp_path / "d2"), str(tmp_path / "b.tar")
    )
    assert "PostgreSQL" in printed
    assert (tmp_path / "d2" / "ca" / "key.pem").read_bytes() == (
        fleet.plane.data / "ca" / "key.pem"
    ).read_bytes()
    code, _, told = await run(
        *("variantd", "admin", "new-incarnation"),
        *("--data-dir", str(tmp_path / "d2"), "--database", url),
        ok=False,
    )
    assert (code, "servers run over this database" in told) == (1, True)  # it sees those of other directories
    assert url not in (fleet.folder / "variantd.log").read_text()


async def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    """A URL of something else, and a server that is not there, end the start with what to do."""
    command = ("variantd", "serve", "--data-dir", str(tmp_path / "d"))
    code, _, told = await run(*command, "--database", "mysql://localhost/x", ok=False)
    assert code == 1
    assert "postgresql://USER@HOST/NAME" in told
    code, _, told = await run(*command, "--database", "postgresql://me:pass-word@127.0.0.1:1/x", ok=False)
    assert code == 1
    assert "no PostgreSQL answers" in told
    assert "pass-word" not in told
    assert not (tmp_path / "d" / "addresses.json").exists()


async def test_every_command_of_the_howto(tmp_path: Path, url: str) -> None:
    """The commands of postgres.md, in their order, over a real server."""
    script = commands((ROOT / "docs" / "howto" / "postgres.md").read_text())
    assert "postgresql://variantd@db.example.org/variantd" in script
    script = script.replace("postgresql://variantd@db.example.org/variantd", url)
    await followed(f"{script}\nkill %1; wait", tmp_path)
    assert (tmp_path / "work" / "rest.tar").stat().st_size > 0
