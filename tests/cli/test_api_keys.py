"""`variantctl api-keys`: a key is made, shown once, listed, renamed and taken away."""

from tests.cli.conftest import Run


async def test_a_key_on_the_command_line(ctl: Run) -> None:
    """What `create` prints is a working key; once revoked, whoever holds it is refused."""
    made = await ctl(
        "api-keys", "create", "--name", "ci", "--scope", "experiment:read", "--expires-in", "2d", "--json"
    )
    assert made.code == 0, made.err
    key, secret = made.json["id"], made.json["secret"]
    assert made.json["expiresAt"] is not None
    assert (await ctl("api-keys", "rename", key, "--name", "pipeline")).code == 0
    shown = await ctl("api-keys", "list", "--json")
    assert shown.json["entities"][0]["name"] == "pipeline"
    assert secret not in shown.out
    assert "pipeline" in (await ctl("api-keys", "list")).out
    wanted = ("--name", "x", "--scope", "fleet:read", "--label", "team=x")
    quiet = await ctl("api-keys", "create", *wanted, "--quiet")
    assert "team=x" in (await ctl("api-keys", "list")).out
    assert quiet.out.startswith("sk_")
    assert len(quiet.out.split()) == 1
    assert "lets nobody in" in (await ctl("api-keys", "revoke", key)).out
    assert (await ctl("api-keys", "revoke", "nobody")).code == 1
    assert (await ctl("api-keys", "create", "--name", "x", "--scope", "root")).code == 1
