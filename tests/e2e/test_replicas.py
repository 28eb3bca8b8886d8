"""Several servers, by the commands of their how-to."""

from pathlib import Path

from tests.support import postgres
from tests.support.fleet import run
from tests.support.pages import ROOT, commands, followed, free_ports


async def test_every_command_of_the_howto_about_several_servers(tmp_path: Path) -> None:
    """The commands of replicas.md, in their order; a server with another authority is refused."""
    script = commands((ROOT / "docs" / "howto" / "replicas.md").read_text())
    url = postgres.url_of(tmp_path)
    assert "postgresql://variantd@db.example.org/variantd" in script
    script = script.replace("postgresql://variantd@db.example.org/variantd", url)
    for told, port in zip(("7410", "7411", "7412"), free_ports(), strict=True):
        assert f"127.0.0.1:{told}" in script
        script = script.replace(f"127.0.0.1:{told}", f"127.0.0.1:{port}")
    await followed(f"{script}\nkill %variantd; wait", tmp_path)
    code, _, told = await run(
        "variantd", "serve", "--data-dir", str(tmp_path / "d3"), "--database", url, ok=False
    )
    assert code == 1
    assert "does not hold the certificate authority" in told
    assert not (tmp_path / "d3" / "ca" / "key.pem").exists()
    postgres.drop(tmp_path)
