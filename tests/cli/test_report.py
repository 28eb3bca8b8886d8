"""`variantctl results --html`: one page with the server's numbers, that loads nothing and runs nothing but its own."""

import asyncio
import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects
import pytest

from control_plane.cli.figures import COLOURS, DASHES, SYMBOLS, names_of, rates
from shared.clock import SystemClock
from shared.moment import SECOND, to_rfc3339, utc_day
from shared.pb.variantd.operator.v1 import operator_pb2 as pb
from tests.cli.conftest import Run
from tests.support.clock import FakeClock
from tests.support.plane import Plane, running_plane
from tests.support.waiting import eventually

DAY = 86_400
PEOPLE = [f"p{number:02}" for number in range(16)]
HOSTILE = '</script><script>alert("x")</script><img src="https://evil.test/x" onerror=alert(1)>'
VARIANTS = [
    {"name": "Fri & <b>endly</b>", "content": "a", "weight": 50, "isControl": True},
    {"name": HOSTILE, "content": "b", "weight": 50},
]


@dataclass
class Parsed(HTMLParser):
    """What a browser makes of the page, as far as it matters here."""

    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str | None]] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)
    scripts: list[tuple[dict[str, str | None], str]] = field(default_factory=list)
    policy: str = ""
    words: str = ""
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Kept; void elements are never open."""
        self.tags.append(tag)
        self.attributes += attrs
        given = dict(attrs)
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        if tag not in ("meta", "br", "img"):
            self._open.append(tag)
        if tag == "script":
            self.scripts.append((given, ""))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        """What is closed is what was opened last."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Text of cells and scripts."""
        if "script" in self._open:
            given, text = self.scripts.pop()
            self.scripts.append((given, text + data))
            return
        self.words += data
        if self._open and any(tag in ("td", "th") for tag in self._open):
            self.cells[-1] += data

    @property
    def figures(self) -> dict[str, Any]:
        """The data of the plots, by name."""
        return {
            str(given["id"]).removeprefix("figure-"): json.loads(text)
            for given, text in self.scripts
            if given.get("type") == "application/json"
        }

    @property
    def run(self) -> list[str]:
        """The scripts that are run."""
        return [text for given, text in self.scripts if "type" not in given]


def parsed(path: Path) -> Parsed:
    """The page, of which every element is closed."""
    page = Parsed()
    page.feed(path.read_text())
    page.close()
    assert page._open == []
    return page


@pytest.fixture
def clock() -> FakeClock:
    """A day ten days ago: certificates made then are good for clients that have the real time."""
    return FakeClock(now=(utc_day(SystemClock().now()) - 10) * DAY * SECOND + 8 * 3_600 * SECOND)


@pytest.fixture
async def plane(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Plane]:
    """A control plane whose days a test makes pass."""
    async with running_plane(tmp_path / "data", clock=clock) as made:
        yield made


@pytest.fixture
async def lived(plane: Plane, ctl: Run, clock: FakeClock) -> Run:
    """`tone` with three days of events and three looks; somebody's variant was forced."""
    draft = {
        "name": "Tone",
        "targetFile": "soul.md",
        "variants": VARIANTS,
        "participantIds": PEOPLE,
        "metrics": {"primary": {"eventName": "done"}},
        "exposureCriteria": {"settleSeconds": 0},
    }
    await plane.made("/v1/experiments", draft)
    started = (await plane.made("/v1/experiments/tone/start", None))["experiment"]
    control = next(item["id"] for item in started["variants"] if item["isControl"])
    seats = (await plane.rest("GET", "/v1/experiments/tone/assignments?limit=100")).body["entities"]
    for number in range(1, 4):
        clock.jump(3600)
        now, batch = to_rfc3339(clock.now() - 60 * SECOND), []
        for place, seat in enumerate(seats):
            rate = (2 if seat["variantId"] == control else 7) + place % 2
            for event in range(10):
                of = {"participantId": seat["participantId"], "occurredAt": now}
                name = f"{number} {place} {event}"
                batch.append({**of, "kind": "impression", "eventId": f"i {name}"})
                if event < rate:
                    batch.append({**of, "kind": "conversion", "eventName": "done", "eventId": f"c {name}"})
        await plane.made("/v1/events:batch", {"events": batch})
        clock.jump(DAY - clock.now() // SECOND % DAY + 16 * 60)

        async def looked(count: int = number) -> bool:
            await clock.advance(1.0)
            found = (await plane.rest("GET", "/v1/experiments/tone/results")).body
            return len(found["looks"]) == count

        await eventually(looked, what=f"{number} looks")
    return ctl


async def test_the_report_has_the_numbers_of_the_server(plane: Plane, lived: Run, tmp_path: Path) -> None:
    """Counts, rates, the verdict with its reasons, every look and every day, in tables and on plots."""
    file = tmp_path / "report.html"
    said = await lived("results", "tone", "--html", str(file))
    assert (said.code, said.out) == (0, f"wrote {file}\n"), said.err
    page, found = parsed(file), (await plane.rest("GET", "/v1/experiments/tone/results")).body
    days = (await plane.rest("GET", "/v1/experiments/tone/results-time-series?fillGaps=true")).body["days"]
    for item in found["variants"]:
        assert str(item["impressions"]) in page.cells
        assert str(item["conversions"]) in page.cells
        assert f"{100 * item['conversionRate']:.2f} %" in page.cells
    assert found["verdict"]["reasons"]
    for reason in found["verdict"]["reasons"]:
        assert {reason["code"], reason["message"], reason["formula"] or "–"} <= set(page.cells)
    for item in found["findings"]:
        assert {item["code"], item["message"], item["advice"]} <= set(page.cells)
    assert found["analysisFingerprint"] in page.cells
    assert any(found["phaseId"] in cell for cell in page.cells)
    assert "done (proportion, increase, primary)" in page.cells
    assert any(cell.startswith("assigned: everything") for cell in page.cells)

    drawn = page.figures
    assert set(drawn) == {"rates", "looks", "days", "exclusions"}
    for figure in drawn.values():
        plotly.graph_objects.Figure(
            data=figure["data"], layout=figure["layout"]
        )  # refuses what it does not know
    compared = [look["comparisons"][0] for look in found["looks"]]
    whiskers, points = drawn["looks"]["data"]
    assert points["y"] == [100 * item["difference"] for item in compared]
    assert len(points["x"]) == 3
    assert compared[-1]["crossed"]
    assert [not symbol.endswith("-open") for symbol in points["marker"]["symbol"]] == [
        item["crossed"] for item in compared
    ]
    span = compared[-1]["interval"]
    middle, away = whiskers["y"][-1], whiskers["error_y"]["array"][-1]
    assert (middle - away, middle + away) == pytest.approx((100 * span["low"], 100 * span["high"]))
    assert [trace["y"] for trace in drawn["days"]["data"]] == [
        [day["variants"][at]["impressions"] for day in days] for at in (0, 1)
    ]
    left = {(trace["name"], n) for trace in drawn["exclusions"]["data"] for n in trace["y"]}
    assert (
        left
        == {(item["reason"].replace("_", " "), item["participants"]) for item in found["exclusions"]}
        != set()
    )


async def test_the_page_loads_nothing_and_runs_only_its_own(lived: Run, tmp_path: Path) -> None:
    """Whatever a variant is called: no reference out, no handler, and a policy that names the two scripts."""
    file = tmp_path / "report.html"
    assert (await lived("results", "tone", "--html", str(file))).code == 0
    page = parsed(file)
    assert HOSTILE in page.words
    assert {"img", "link", "iframe", "b"} & set(page.tags) == set()
    names = {name for name, _ in page.attributes}
    assert {
        name for name in names if name in ("src", "href", "srcset", "action") or name.startswith("on")
    } == set()
    assert "url(" not in file.read_text().split("</style>")[0]
    assert len(page.run) == 2
    allowed = re.findall(r"'sha256-([^']+)'", page.policy)
    assert allowed == [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.run]
    assert page.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert page.tags.index("meta") < page.tags.index("script")
    # Plots read tags in names: there they are text as well.
    assert "<" not in json.dumps(page.figures)
    assert "&lt;img" in json.dumps(page.figures["days"])


async def test_a_browser_draws_every_plot(lived: Run, tmp_path: Path) -> None:
    """Under the policy, without a network; the policy stops nothing of it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    file = tmp_path / "report.html"
    assert (await lived("results", "tone", "--html", str(file))).code == 0
    words = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom",
    )  # fmt: skip
    ran = await asyncio.to_thread(
        subprocess.run, [browser, *words, file.as_uri()], capture_output=True, text=True, timeout=90
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count('class="main-svg"') >= 4, ran.stderr
    assert ran.stdout.count("js-plotly-plot") >= 4
    assert "CONSOLE" not in ran.stderr
    assert "The plot needs scripts" not in ran.stdout


async def test_what_does_not_apply_is_said(ctl: Run, lived: Run, tmp_path: Path) -> None:
    """The past, another population, groups; with --json the results that the page shows."""
    file = tmp_path / "report.html"
    said = await lived("results", "tone", "--html", str(file), "--as-of", "2020-01-01")
    assert said.code == 0, said.err
    assert "No day was measured." in parsed(file).words
    assert "2020-01-01" in parsed(file).cells
    said = await lived("results", "tone", "--html", str(file), "--population", "delivered", "--json")
    assert said.json["population"] == "delivered"
    assert any(cell.startswith("delivered: only while") for cell in parsed(file).cells)
    assert (await lived("results", "tone", "--html", str(file), "--group-by", "tier")).code == 0
    assert "By tier, for description only" in parsed(file).words


async def test_a_draft_has_a_report_without_plots(ctl: Run, manifest: Path, tmp_path: Path) -> None:
    """It says that there is nothing yet."""
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    file = tmp_path / "report.html"
    assert (await ctl("results", "soul-tone", "--html", str(file))).code == 0
    page = parsed(file)
    assert page.figures == {}
    assert "insufficient data" in page.words
    assert "No look compares the variants yet." in page.words


async def test_what_fails_leaves_the_file_as_it_was(
    running: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An experiment there is not, a folder, a path that cannot be; then what is written replaces it."""
    file = tmp_path / "report.html"
    file.write_text("before")
    assert (await running("results", "none", "--html", str(file))).code == 1
    assert file.read_text() == "before"
    for wrong in (tmp_path, tmp_path / "no" / "such", file / "below", Path()):
        said = await running("results", "soul-tone", "--html", str(wrong))
        assert (said.code, "cannot write" in said.err) == (1, True), said
    for more in (["--watch"], ["--by-day"], ["--inputs"]):
        assert (await running("results", "soul-tone", "--html", str(file), *more)).code == 2
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "plotly.offline", None)
        said = await running("results", "soul-tone", "--html", str(file))
        assert (said.code, "pip install 'variantd[report]'" in said.err) == (1, True)
    assert file.read_text() == "before"
    assert (await running("results", "soul-tone", "--html", str(file))).code == 0
    assert file.read_text().startswith("<!doctype html>")
    assert [item.name for item in tmp_path.iterdir() if "report" in item.name] == ["report.html"]


def test_ten_variants_are_told_apart_without_colours() -> None:
    """By shape and dash; those of the same name by key; a rate outside its interval is where it is."""
    assert len({(SYMBOLS[at % len(SYMBOLS)], DASHES[at % len(DASHES)]) for at in range(10)}) == 10
    assert len(set(COLOURS)) == 8
    none = pb.VariantResult(
        key="a", name="A", conversion_rate=0.0, credible_interval=pb.Interval(low=0.1, high=0.3)
    )
    found = pb.Results(variants=[none, pb.VariantResult(key="b", name="A", is_control=True)])
    assert names_of(found.variants) == {"a": "A [a]", "b": "A [b] (control)"}
    whiskers, point = rates(found, names_of(found.variants))["data"]
    assert (point["x"], whiskers["x"]) == ([0.0], [20.0])
    assert whiskers["error_x"]["array"] == pytest.approx([10.0])
