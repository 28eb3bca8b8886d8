"""Use cases of taking out what is kept of an experiment, page by page, each in a transaction of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from control_plane.domain.experiment import Experiment
from control_plane.domain.requests import ById
from control_plane.services.experiments import find
from control_plane.services.work import Work
from control_plane.store.export import Key, What

PAGE_ROWS = 1_000


class ExportEvents(ById):
    """Asks for everything of one kind that is kept of an experiment, in every phase of every run."""

    what: What = What.EVENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How far an export has come: the number of the source, and the key of the last row taken of it."""

    source: int = 0
    after: Key | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A page of an export."""

    request: ExportEvents
    at: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Rows as they are stored, and where the next ones begin; None: there are no more."""

    experiment: Experiment
    what: What
    source: bytes
    rows: Sequence[Mapping[str, Any]]
    then: Place | None


def page(work: Work, asked: Asked) -> Page:
    """The next rows; what is stored meanwhile behind the place where the export is, is among them."""
    experiment = find(work, asked.request.id)
    store, what, at = work.store.export, asked.request.what, asked.at
    sources = store.sources(experiment.id, what)
    while at.source < len(sources):
        source = sources[at.source]
        rows, last = store.rows(what, source, after=at.after, limit=PAGE_ROWS)
        at = Place(source=at.source, after=last) if last is not None else Place(source=at.source + 1)
        if rows:
            return Page(experiment=experiment, what=what, source=source, rows=rows, then=at)
    return Page(experiment=experiment, what=what, source=b"", rows=(), then=None)
