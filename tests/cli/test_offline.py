"""What needs no server, and what is the same with and without one."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.conftest import Run, Said
from tests.support.plane import Plane


async def test_an_exported_answer_is_the_server_s(plane: Plane, running: Run, tmp_path: Path) -> None:
    """`results --inputs`, analysed without a server, gives the body that REST gave, byte for byte."""
    events = [
        {"kind": "impression", "participantId": "bot-1", "eventId": str(number)} for number in range(5)
    ] + [{"kind": "conversion", "eventName": "resolved", "participantId": "bot-1", "eventId": "c"}]
    await plane.made("/v1/events:batch", {"events": events})
    inputs = await running("results", "soul-tone", "--inputs")
    assert inputs.code == 0, inputs.err
    file = tmp_path / "inputs.json"
    file.write_text(inputs.out)
    here = await running("analyze", str(file))
    assert here.code == 0, here.err
    asked = {"Authorization": f"Bearer {plane.key}"}
    url = f"http://{plane.addresses['http']}/v1/experiments/soul-tone/results"
    async with plane.http.get(url, headers=asked) as response:
        body = await response.read()
    moment = json.loads(body)["computedAt"]
    ours = json.loads(here.out)["computedAt"]
    assert here.out.strip().encode().replace(ours.encode(), moment.encode()) == body
    broken = json.loads(inputs.out)
    broken["sums"]["impressions"] = [-1.5]
    file.write_text(json.dumps(broken))
    refused = await running("analyze", str(file))
    assert refused.code == 1
    assert "sums.impressions" in refused.err


async def test_numbers_at_hand_need_no_server(ctl: Run, tmp_path: Path) -> None:
    """Counts in, JSON out; what cannot be is refused by variant and field, as is what is no JSON."""
    file = tmp_path / "counts.json"
    variants = [
        {"key": "a", "conversions": 45, "impressions": 250},
        {"key": "b", "conversions": 67, "impressions": 250},
    ]
    file.write_text(json.dumps({"variants": variants, "control": "a"}))
    said = await ctl("analyze", str(file), "--server", "127.0.0.1:1")
    assert said.code == 0, said.err
    assert json.loads(said.out)["variants"][1]["probabilityToBeBest"] > 0.99
    variants[1]["conversions"] = 300
    file.write_text(json.dumps({"variants": variants, "control": "a"}))
    refused = await ctl("analyze", str(file))
    assert refused.code == 1
    assert "variants.b.conversions: is 300, more than its 250 impressions" in refused.err
    file.write_text("{")
    assert "is not JSON" in (await ctl("analyze", str(file))).err
    assert "cannot read" in (await ctl("analyze", str(tmp_path / "none.json"))).err
    for text, said_of_it in (
        ("", "is empty"),
        ('{"p_values": [' + "9" * 5000 + "]}", "is not JSON"),
        ('{"variants": {"a": {"values": [1]}, "a": {"values": [2]}}, "control": "a"}', "'a' is there twice"),
    ):
        file.write_text(text)
        refused = await ctl("analyze", str(file))
        assert refused.code == 1
        assert said_of_it in refused.err


async def test_an_edited_export_is_answered_or_refused_by_field(
    plane: Plane, running: Run, tmp_path: Path
) -> None:
    """`analyze` and `aa` take the same file, and say of the same edits which field cannot be; others count."""
    events = [{"kind": "impression", "participantId": "bot-1", "eventId": str(number)} for number in range(5)]
    await plane.made("/v1/events:batch", {"events": events})
    said = (await running("results", "soul-tone", "--inputs")).out
    file = tmp_path / "edited.json"

    async def edited(edit: Callable[[Any], object], *words: str) -> Said:
        inputs = json.loads(said)
        edit(inputs)
        file.write_text(json.dumps(inputs))
        return await running(words[0], str(file), *words[1:])

    cannot_be: dict[str, Callable[[Any], object]] = {
        "sums: ": lambda it: it.pop("sums"),
        "wat: is not a known field": lambda it: it.update(wat=1),
        "sums.impressions: has 3 entries for 2": lambda it: it["sums"]["impressions"].append(3),
        "sums.values: has 2 entries for 3": lambda it: it["members"].append(it["members"][0]),
        "settings.alpha: is 2": lambda it: it["settings"].update(alpha=2),
    }
    for told, edit in cannot_be.items():
        for words in (("analyze",), ("aa", "--runs", "20")):
            refused = await edited(edit, *words)
            assert refused.code == 1
            assert told in refused.err, refused.err
    counted = await edited(lambda it: it["sums"].update(impressions=[7, 2]), "analyze")
    assert sorted(arm["impressions"] for arm in json.loads(counted.out)["variants"]) == [2, 7]
    early = await edited(lambda it: None, "aa", "--runs", "20")
    assert (early.code, "looks: there are none yet" in early.err) == (1, True)


async def test_a_plan_is_asked_here_and_there_alike(plane: Plane, ctl: Run) -> None:
    """The command and the call give the same numbers; a change that cannot be is refused by name."""
    words = ("--baseline", "0.25", "--impressions", "150", "--icc", "0.15", "--participants", "30")
    said = await ctl("sample-size", *words)
    assert said.code == 0, said.err
    assert "30 in each variant find 13.2" in said.out
    told = (await ctl("sample-size", *words, "--json")).json
    query = "baseline=0.25&impressionsEach=150&icc=0.15&participants=30"
    there = (await plane.rest("GET", f"/v1/sample-size?{query}")).body
    assert {name: there[name] for name in told} == told
    refused = await ctl("sample-size", "--baseline", "0.6", "--effect", "1")
    assert refused.code == 1
    assert "minimumDetectableEffect" in refused.err


def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    """Every block of docs/statistics.md runs, one after the other, where nothing else is."""
    text = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for block in blocks:
        ran = subprocess.run(
            ["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 0, (block, ran.stderr)
        assert ran.stdout
