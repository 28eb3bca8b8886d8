"""The picture of a live view fits, whatever it shows, and what is in trouble is what one still sees."""

import pytest
from rich.text import Text

from control_plane.cli.layout import BAD, DRIFTED, GOOD, FileRow, HostRow, Scene, picture, results_rows
from control_plane.cli.live import Shape
from shared.pb.variantd.operator.v1 import operator_pb2 as pb


def variant(name: str, low: float, rate: float, high: float, **fields: object) -> pb.VariantResult:
    """A variant's numbers."""
    made = pb.VariantResult(
        key=name, name=name, impressions=1000, conversions=int(1000 * rate), conversion_rate=rate,
        credible_interval=pb.Interval(low=low, high=high), probability_to_be_best=0.5,
    )  # fmt: skip
    made.MergeFrom(pb.VariantResult(**fields))  # type: ignore[arg-type]
    return made


RESULTS = pb.Results(
    key="soul-tone",
    status=pb.EXPERIMENT_STATUS_RUNNING,
    metric=pb.Metric(event_name="resolved", goal=pb.GOAL_INCREASE),
    alpha=0.05,
    population="assigned",
    variants=[
        variant("Friendly", 0.20, 0.25, 0.30, is_control=True),
        variant(
            "Concise", 0.30, 0.40, 0.50, difference=0.15, difference_interval=pb.Interval(low=0.0, high=0.3)
        ),
    ],
)


def file(number: int, mark: str = GOOD, state: str = "applied", **fields: str) -> FileRow:
    """A target file."""
    values = {"participant": f"bot-{number:03}", "path": "config/soul.md", "host": "host-1"}
    return FileRow(**{**values, "on_disk": "Friendly", **fields}, mark=mark, state=state)


def scene(
    *files: FileRow, hosts: tuple[HostRow, ...] = (), results: tuple[pb.Results, ...] = (RESULTS,)
) -> Scene:
    """A view."""
    hosts = hosts or (HostRow(name="host-1", presence="connected"),)
    return Scene(
        title="Tone (soul-tone) · running", time="07:00:00Z", hosts=hosts, files=files, results=results
    )


CROWD = scene(
    *(file(number) for number in range(60)),
    file(60, participant="参加者" * 30, path="深い/" * 20 + "soul.md", host="ホスト" * 20),
    hosts=tuple(HostRow(name=f"host-{number}", presence="connected") for number in range(40)),
    results=(RESULTS,) * 7,
)
LOG = [f"07:00:{number:02}  " + "something happened, " * 12 for number in range(60)]


@pytest.mark.parametrize("width", [1, 20, 40, 79, 80, 120, 200])
@pytest.mark.parametrize("height", [1, 2, 5, 12, 24, 40, 100])
@pytest.mark.parametrize("shown", [CROWD, scene(), scene(file(1), results=())])
def test_a_picture_fits(shown: Scene, width: int, height: int) -> None:
    """No row is wider than the terminal and there are no more rows than it has."""
    for away in (False, True):
        rows = picture(shown, LOG, Shape(width=width, height=height, away=away))
        assert 0 < len(rows) <= height
        assert max(row.cell_len for row in rows) <= width
        assert not any("\n" in row.plain for row in rows)


def text(rows: list[Text]) -> str:
    return "\n".join(row.plain for row in rows)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_every_section_is_there(width: int, height: int) -> None:
    """Hosts, files, results and the newest events, however much there is of each."""
    shown = text(picture(CROWD, LOG, Shape(width=width, height=height)))
    assert "host-0 connected" in shown
    assert "more" in shown.splitlines()[1]
    assert "bot-000" in shown
    assert "more files, none of them not as wanted" in shown
    assert "soul-tone · running · resolved (increase)" in shown
    assert "07:00:59" in shown.splitlines()[-1]


def test_what_is_in_trouble_stands_first() -> None:
    """A drifted file, a missing one and a host that is lost are seen on a small screen, by mark and by word."""
    drifted = file(97, mark=DRIFTED, state="drifted", on_disk="something else")
    missing = file(98, mark=BAD, state="missing", on_disk="no file")
    hosts = tuple(HostRow(name=f"host-{number}", presence="connected") for number in range(20))
    hosts = (*hosts, HostRow(name="host-99", presence="lost"))
    rows = picture(
        scene(*(file(number) for number in range(50)), drifted, missing, hosts=hosts),
        LOG,
        Shape(width=80, height=24),
    )
    shown = text(rows).splitlines()
    assert shown[1].startswith("hosts  ○ host-99 lost  ● host-0 connected")
    first, second = (line for line in shown if line.startswith((DRIFTED, BAD)))
    assert first.split() == [DRIFTED, "bot-097", "config/soul.md", "something", "else", "host-1", "drifted"]
    assert second.split() == [BAD, "bot-098", "config/soul.md", "no", "file", "host-1", "missing"]


@pytest.mark.parametrize("width", [80, 120])
def test_bars_of_all_variants_share_one_scale(width: int) -> None:
    """Where one interval ends the other begins, as their numbers say; the dot is the rate."""
    rows = [row.plain for row in results_rows(RESULTS, width)]
    friendly = next(row for row in rows if row.startswith("Friendly"))
    concise = next(row for row in rows if row.startswith("Concise"))
    axis = rows[1]
    assert axis.index("20.0 %") == friendly.index("├")
    assert axis.index("50.0 %") + len("50.0 %") == concise.index("┤") + 1
    assert abs(friendly.index("┤") - concise.index("├")) <= 1
    for row in (friendly, concise):
        assert abs((row.index("├") + row.index("┤")) / 2 - row.index("●")) <= 1
    assert "Concise against Friendly: +15.0 points (95 %: +0.0 … +30.0)" in rows


def test_a_screen_too_narrow_for_bars_keeps_the_numbers() -> None:
    """Counts and rates are there without a bar."""
    shown = text(results_rows(RESULTS, 40))
    assert "250/1000" in shown
    assert "●" not in shown


def test_what_was_said_last_is_told_as_such() -> None:
    """While the control plane is away, the picture says so, and from when it is."""
    header = picture(CROWD, LOG, Shape(width=80, height=24, away=True))[0].plain
    assert header.endswith("the control plane does not answer; as of 07:00:00Z")
