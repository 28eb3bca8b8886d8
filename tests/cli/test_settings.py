"""`variantctl settings`: shown, changed by flags, by a file and in an editor, and what then is refused."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run

SETTINGS = """\
targetAllowList: ['config/**']
validators:
- {glob: '**/*.md', forbidden: [LOREM]}
"""


@pytest.fixture
def edit_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the editor a shell script."""

    def edit_by(commands: str) -> None:
        script = tmp_path / "editor"
        script.write_text(f"#!/bin/sh\n{commands}\n")
        script.chmod(0o755)
        monkeypatch.delenv("VISUAL", raising=False)
        monkeypatch.setenv("EDITOR", str(script))

    return edit_by


async def test_settings_by_flags_and_by_a_file(ctl: Run, tmp_path: Path) -> None:
    """What is not said stays; what `get -o yaml` prints, `update --file` takes."""
    assert "every file" in (await ctl("settings", "get")).out
    said = await ctl("settings", "update", "--settle-seconds", "90", "--json")
    assert said.json["defaults"] == {"settleSeconds": 90, "alpha": None}
    path = tmp_path / "settings.yaml"
    path.write_text(SETTINGS)
    assert (await ctl("settings", "update", "--file", str(path))).code == 0
    said = await ctl("settings", "update", "--alpha", "0.1", "--json")
    assert said.json["defaults"] == {"settleSeconds": 90, "alpha": 0.1}
    assert said.json["targetAllowList"] == ["config/**"]
    shown = await ctl("settings", "get", "-o", "yaml")
    path.write_text(shown.out)
    again = await ctl("settings", "update", "--file", str(path), "--json")
    assert again.json["validators"] == said.json["validators"]
    told = await ctl("settings", "get")
    assert "settleSeconds 90" in told.out
    assert '"forbidden": ["LOREM"]' in told.out
    assert (await ctl("settings", "update", "--allow-all", "--json")).json["targetAllowList"] == []


async def test_what_settings_refuse_is_told(ctl: Run, manifest: Path, tmp_path: Path) -> None:
    """`apply` shows variant, file, line and rule."""
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    assert (await ctl("settings", "update", "--file", str(tmp_path / "settings.yaml"))).code == 0
    (tmp_path / "concise.md").write_text("be concise\nLOREM\n")
    said = await ctl("apply", "-f", str(manifest))
    assert said.code == 1
    assert "Concise, config/soul.md, line 2: has what is forbidden: LOREM" in said.err


async def test_settings_in_an_editor(ctl: Run, edit_by: Any) -> None:
    """What the copy holds afterwards is so; an unchanged copy and one that cannot be change nothing."""
    edit_by("echo \"targetAllowList: ['*.md']\" > $1")
    assert "*.md" in (await ctl("settings", "edit")).out
    edit_by("sed -i 's/alpha.*//' $1; sed -i 's/defaults: .*/defaults: {alpha: 0.2}/' $1")
    assert "alpha 0.2" in (await ctl("settings", "edit")).out
    edit_by("echo 'targetAllowList: []' > $1")
    emptied = await ctl("settings", "edit", "--json")
    assert (emptied.json["targetAllowList"], emptied.json["defaults"]["alpha"]) == ([], None)
    for commands, why in (
        ("true", "nothing was changed"),
        ("false", "ended with 1"),
        ("echo 'wat: 1' > $1", "something else"),
        ("echo '[' > $1", "is not YAML"),
        ("echo 'validators: [{wat: 1}]' > $1", "these are no settings"),
        ("rm $1", "is gone"),
        ("echo 'targetAllowList: [/etc]' > $1", "targetAllowList.0"),
    ):
        edit_by(commands)
        said = await ctl("settings", "edit")
        assert said.code == 1, commands
        assert why in said.err, commands
    assert (await ctl("settings", "get", "--json")).json["version"] == 3


async def test_a_flag_beside_a_file_that_has_no_defaults(ctl: Run, tmp_path: Path) -> None:
    """Defaults that the file empties are the flag's alone; what is no mapping is told."""
    file = tmp_path / "settings.yaml"
    words = ("settings", "update", "--file", str(file), "--alpha", "0.2", "--json")
    for text in ("defaults: {settleSeconds: 5}", "defaults: null", "defaults: {}"):
        file.write_text(text)
        said = await ctl(*words)
        assert (said.code, said.json["defaults"]["alpha"]) == (0, 0.2), said.err
    assert said.json["defaults"]["settleSeconds"] is None
    for text in ("defaults: 5", "defaults: [alpha]"):
        file.write_text(text)
        said = await ctl(*words)
        assert (said.code, f"defaults of {file} are no mapping" in said.err) == (1, True)


async def test_settings_need_something_to_say(ctl: Run) -> None:
    """A change of nothing, and of two things that exclude one another, are usage errors."""
    assert (await ctl("settings", "update")).code == 2
    assert (await ctl("settings", "update", "--allow", "*.md", "--allow-all")).code == 2
