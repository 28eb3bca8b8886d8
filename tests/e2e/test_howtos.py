"""Every command of the how-tos runs, from where the README's "By hand" leaves off."""

import re
import shutil
from pathlib import Path

import pytest

from tests.support.pages import ROOT, followed, free_ports

BLOCK = re.compile(r"```(bash|python|js)\n(.*?)```", re.DOTALL)
RUN = {
    "python": 'python3 - <<"VARIANTD_DOC"\n{}\nVARIANTD_DOC\n',
    "js": 'node - <<"VARIANTD_DOC"\n{}\nVARIANTD_DOC\n',
}
CONTINUES = "go on from the README"
LISTENERS = ("HTTP", "OPERATOR", "AGENTS")


def start_of_the_readme() -> str:
    """The README's commands until the experiment runs, on free ports."""
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## By hand") : text.index("The application on the host")]
    script = "\n".join(body for _, body in BLOCK.findall(section))
    return script.replace("[agent]\n", '[agent]\nlocal_http = "127.0.0.1:0"\n')


def steps(page: Path) -> str:
    """The page's own commands, each language by its interpreter."""
    script = []
    for language, body in BLOCK.findall(page.read_text()):
        if language == "js" and shutil.which("node") is None:
            continue  # said by the test below
        script.append(RUN.get(language, "{}").format(body))
    return "\n".join(script)


PAGES = [page for page in sorted((ROOT / "docs" / "howto").glob("*.md")) if CONTINUES in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
async def test_every_command_of_a_howto(tmp_path: Path, page: Path) -> None:
    """The page's commands work in the order they stand."""
    ports = dict(zip(LISTENERS, free_ports(), strict=True))  # the same over a restart
    places = {f"VARIANTD_{name}": f"127.0.0.1:{port}" for name, port in ports.items()}
    printed = await followed(start_of_the_readme() + "\n" + steps(page), tmp_path, **places)
    if page.stem == "report":
        assert "reported from Python" in printed
        if shutil.which("node") is None:
            pytest.skip("the page's Node example needs node; everything else on it ran")
        assert "reported from Node" in printed


def test_there_are_howtos() -> None:
    """The pages that go on from the README are found."""
    assert {page.stem for page in PAGES} >= {
        "report",
        "pipeline",
        "backup",
        "retire",
        "upgrade",
    }
