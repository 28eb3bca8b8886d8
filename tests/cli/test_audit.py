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


async def test_what_changed_is_shown(ctl: Run) -> None:
    """The table names the fields, `--changes` shows each as it was and is, `--json` both states whole."""
    made = (await ctl("api-keys", "create", "--name", "ci", "--scope", "fleet:read", "--json")).json
    assert (await ctl("api-keys", "rename", made["id"], "--name", "pipeline")).code == 0
    assert (await ctl("api-keys", "revoke", made["id"])).code == 0
    lines = (await ctl("audit", "--resource", made["id"])).out.splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == ["revokedAt", "name"]
    shown = (await ctl("audit", "--resource", made["id"], "--changes")).out
    assert '  name: "ci" → "pipeline"\n' in shown
    assert '  name: null → "ci"\n' in shown
    assert "  revokedAt: null → " in shown
    entries = (await ctl("audit", "--resource", made["id"], "--json")).json["entities"]
    assert [(item["before"] or {}).get("name") for item in entries] == ["pipeline", "ci", None]
    assert entries[2]["after"]["name"] == "ci"
    assert made["secret"] not in str(entries)
    nothing = await ctl("audit", "--actor", "nobody", "--changes")
    assert "nothing like that" in nothing.out
