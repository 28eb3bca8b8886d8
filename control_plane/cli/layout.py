"""The live view's picture: a given number of columns and rows, never more.

Hides what gives way when a terminal is small, and how a state looks: a mark and a word carry it, colour only
repeats them. What is in trouble stands first, so that it is what is still there on a small screen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from control_plane.cli import show
from control_plane.cli.live import Shape
from control_plane.cli.sheet import bar, chance, differences, end, outcome, scale_of
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

FEWEST_EVENTS = 3
FEWEST_FILES = 3
NARROWEST_BAR, WIDEST_BAR = 9, 60
_COMPACT = 12
"""Rows below which sections stand without an empty row between them."""

GOOD, WAITING, BAD = "✓", "…", "✗"
DRIFTED = "≠"
CONNECTED, AWAY = "●", "○"
_STYLES = {DRIFTED: "bold yellow", BAD: "bold red", WAITING: "cyan", AWAY: "bold yellow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """A target file: `on_disk` says what is there in the reader's words; `mark` and `state` how that stands."""

    participant: str
    path: str
    host: str
    on_disk: str
    mark: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRow:
    """A host and whether its agent is connected."""

    name: str
    presence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything a view shows at one moment; `title` names what it is of, `time` when that was."""

    title: str
    time: str
    hosts: tuple[HostRow, ...]
    files: tuple[FileRow, ...]
    results: tuple[pb.Results, ...]


def picture(scene: Scene, events: Sequence[str], shape: Shape) -> list[Text]:
    """At most as many rows and columns as the shape has."""
    width, height = shape.width, shape.height
    gap = 1 if height > _COMPACT else 0
    rows = [_header(scene, width, away=shape.away), *_hosts(scene.hosts, width)]
    numbers = [row for found in scene.results for row in results_rows(found, width)]
    room = height - len(rows) - gap * (3 if numbers else 2)
    least = 2 + min(FEWEST_FILES, len(scene.files)) + FEWEST_EVENTS
    numbers = _first(numbers, max(0, room - least), "more rows of results: `variantctl results EXPERIMENT`")
    room -= len(numbers)
    wanted = 1 + max(1, len(scene.files))
    files = _files(scene.files, width, max(2, min(wanted, room - 1 - FEWEST_EVENTS)))
    latest = _events(events, room - len(files))
    sections = [part for part in (files, numbers, latest) if part]
    for part in sections:
        rows += [Text("")] * gap + part
    return [_cut(row, width) for row in rows[:height]]


def results_rows(found: pb.Results, width: int) -> list[Text]:
    """Each variant's counts, rate, and its interval on the one scale of all of them; then the differences."""
    metric = f"{found.metric.event_name} ({show.word(found.metric, 'goal')})"
    level = f"{100 * (1 - found.alpha):g} %"
    title = f"{found.key} · {show.word(found, 'status')} · {metric} · {found.population} · {level} intervals"
    names = [item.name + (" (control)" if item.is_control else "") for item in found.variants]
    counts = [f"{item.conversions}/{item.impressions}" for item in found.variants]
    name_width = min(max(map(_width, names), default=0), max(10, width // 4))
    count_width = max(map(len, counts), default=0)
    values = [outcome(found, item) or "-" for item in found.variants]
    value_width = max(7, *map(len, values), 0)
    free = width - name_width - count_width - 2 - (value_width + 2) - 2 - 2 - 8
    cells = min(WIDEST_BAR, free) if free >= NARROWEST_BAR else 0
    scale = scale_of(found.variants)
    rows = [_heading(title)]
    if scale and cells:
        low, high = (end(found, of) for of in scale)
        indent = name_width + 2 + count_width + value_width + 4
        rows.append(Text(" " * indent + low + high.rjust(cells - len(low)) + "  P(best)", "dim"))
    for item, name, count, own in zip(found.variants, names, counts, values, strict=True):
        best = chance(item.probability_to_be_best) if item.HasField("probability_to_be_best") else "-"
        line = f"{_fit(name, name_width)}  {count:>{count_width}}  {own:>{value_width}}  "
        if scale and cells:
            line += bar(item, scale, cells) if item.HasField("credible_interval") else " " * cells
            line += f"  {best:>7}"
        rows.append(Text(show.clean(line)))
    rows += [Text(show.clean(line)) for line in differences(found)]
    return rows


def _header(scene: Scene, width: int, *, away: bool) -> Text:
    title = Text(show.clean(scene.title), "bold")
    said = f"the control plane does not answer; as of {scene.time}" if away else scene.time
    right = Text(said, _STYLES[AWAY] if away else "dim")
    room = width - right.cell_len - 2
    if room < 1:
        return right
    title.truncate(room, overflow="ellipsis", pad=True)
    return Text.assemble(title, "  ", right)


def _hosts(hosts: Sequence[HostRow], width: int) -> list[Text]:
    """One row; who is not connected stands first, and who does not fit is counted."""
    if not hosts:
        return [Text("no host takes part yet")]
    ordered = sorted(hosts, key=lambda host: (host.presence == "connected", host.name))
    row = Text("hosts")
    for shown, host in enumerate(ordered):
        mark = CONNECTED if host.presence == "connected" else AWAY
        part = Text(f"  {mark} {show.clean(host.name)} {host.presence}", _STYLES.get(mark, ""))
        left = len(ordered) - shown - 1
        if shown and row.cell_len + part.cell_len + (len(f"  and {left} more") if left else 0) > width:
            row.append(f"  and {left + 1} more")
            break
        row.append_text(part)
    return [row]


_ORDER = {DRIFTED: 0, BAD: 1, WAITING: 2, GOOD: 3}


def _files(files: Sequence[FileRow], width: int, height: int) -> list[Text]:
    if not files:
        return [_heading("FILES"), Text("no experiment holds a file")][:height]
    ordered = sorted(files, key=lambda item: (_ORDER.get(item.mark, 2), item.participant, item.path))
    heads = ("PARTICIPANT", "FILE", "ON DISK", "HOST", "STATE")
    cells = [(item.participant, item.path, item.on_disk, item.host, item.state) for item in ordered]
    widths = _column_widths([heads, *cells], width - 2)
    rows = [_heading("  " + _row(heads, widths))]
    for item, values in zip(ordered, cells, strict=True):
        rows.append(Text(f"{item.mark} {_row(values, widths)}", _STYLES.get(item.mark, "")))
    if len(rows) > height:
        kept = rows[: height - 1]
        hidden = ordered[len(kept) - 1 :]
        bad = sum(item.mark != GOOD for item in hidden)
        kept.append(Text(f"  and {len(hidden)} more files, {bad or 'none'} of them not as wanted"))
        return kept
    return rows


def _column_widths(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """The widest columns give way until all of them fit; none becomes narrower than four cells."""
    widths = [max(_width(show.clean(row[index])) for row in rows) for index in range(len(rows[0]))]
    room -= 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths) > 4:
        widths[widths.index(max(widths))] -= 1
    return widths


def _row(values: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(_fit(value, width) for value, width in zip(values, widths, strict=True)).rstrip()


def _events(events: Sequence[str], height: int) -> list[Text]:
    """The newest stands last."""
    if height < 2:
        return []
    latest = list(events)[-(height - 1) :]
    return [_heading("EVENTS"), *(Text(show.clean(line)) for line in latest or ["nothing yet"])]


def _first(rows: list[Text], height: int, more: str) -> list[Text]:
    if len(rows) <= height or not rows:
        return rows
    return [*rows[: height - 1], Text(f"… {len(rows) - height + 1} {more}")] if height else []


def _heading(text: str) -> Text:
    return Text(show.clean(text), "bold")


def _width(text: str) -> int:
    return cell_len(text)


def _fit(text: str, width: int) -> str:
    """Exactly so many cells; what does not fit ends in `…`."""
    text = show.clean(text)
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, max(0, width - 1)) + "…"


def _cut(row: Text, width: int) -> Text:
    row.truncate(width, overflow="ellipsis")
    return row
