"""`variantctl audit`: what was changed, found by what it was."""

from tests.cli.conftest import Run


async def test_what_was_changed_is_found(ctl: Run) -> None:
    """Each filter leaves what it names; a moment that is none is a usage error."""
    for key in ("tone", "mood"):
        made = await ctl("api-keys", "create", "--name", key, "--scope", "fleet:read", "--json")
        assert made.code == 0, made.err
    found = (await ctl("audit", "--resource", made.json["id"], "--json")).json["entities"]
    assert [item["operation"] for item in found] == ["AccessService.CreateApiKey"]
    own = found[0]["apiKeyId"]
    assert len((await ctl("audit", "--key", own, "--json")).json["entities"]) == 2
    assert (await ctl("audit", "--key", made.json["id"], "--json")).json["entities"] == []
    both = ("--operation", "AccessService.CreateApiKey", "--actor", found[0]["actor"])
    assert len((await ctl("audit", *both, "--from", "2020-01-01T00:00:00Z", "--json")).json["entities"]) == 2
    assert "nothing like that" in (await ctl("audit", *both, "--to", "2020-01-01T00:00:00Z")).out
    assert (await ctl("audit", "--from", "yesterday")).code == 2
    assert (await ctl("audit", "--key", "nobody")).code == 1
