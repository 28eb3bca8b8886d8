"""Use cases of looking around: what can be tested, whether anything is reported of it, how many experiments."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from control_plane.domain import requests
from control_plane.domain.experiment import Experiment
from control_plane.domain.globs import describes, is_glob
from control_plane.services import metrics, settings
from control_plane.services.experiments import find
from control_plane.services.seating import planned, selected
from control_plane.services.work import Listing, Work, cursor_text, hex_of, listing, page_size
from control_plane.store.survey import Reported
from shared.moment import SECOND

WINDOW_DAYS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A file, or a glob of files, that can be tested: how many have it, and of how many nothing holds it.

    A glob is held by nothing: an experiment holds files.
    """

    path: str
    participants: int
    available: int
    held_by: tuple[str, ...]


def list_eligible_targets(work: Work, request: requests.ListEligibleTargets) -> Listing:
    """A page of target files that can be tested, by path.

    What hosts that are not retired declare (`targets`, as files or globs), and files that experiments of the project
    name, where the settings allow them and at least one participant's is held by no experiment.
    """
    size, after = page_size(request.limit), cursor_text(request.cursor)
    found = sorted(
        (
            item
            for item in _targets(work)
            if item.available and item.path > after and request.search.lower() in item.path.lower()
        ),
        key=lambda item: item.path,
    )
    return listing(found[: size + 1], size, lambda item: hex_of(item.path))


def _targets(work: Work) -> Iterator[Target]:
    allowed, store = settings.of(work), work.store.survey
    declaring: defaultdict[tuple[str, ...], set[bytes]] = defaultdict(set)
    for participant in work.store.fleet.participants(work.project_id):
        if participant.retired_at is None:
            declaring[tuple(participant.targets)].add(participant.id)
    declared = {target for targets in declaring for target in targets}
    held = store.held(work.project_id)
    for path in sorted(declared | set(store.known_files(work.project_id))):
        if is_glob(path):
            if not allowed.allows_some(path):
                continue
            having = {one for targets, ids in declaring.items() if path in targets for one in ids}
            holders: dict[bytes, str] = {}
        elif allowed.allows(path):
            having = {
                one
                for targets, ids in declaring.items()
                if any(describes(target, path) for target in targets)
                for one in ids
            }
            holders = {one: key for one, key in held.get(path, {}).items() if one in having}
        else:
            continue
        yield Target(
            path=path,
            participants=len(having),
            available=len(having) - len(holders),
            held_by=tuple(sorted(set(holders.values()))),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One thing that is to be reported: by how many participants it was, and when last; None: never.

    `name` is a conversion's, or a target file; `role` what the metric is for.
    """

    name: str
    reporting: int
    last_seen_at: int | None
    role: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrumentation:
    """What was reported of what an experiment needs, by those that take part, before or since its start."""

    experiment: Experiment
    participants: int
    exposure: Signal
    metrics: tuple[Signal, ...]
    targets: tuple[Signal, ...]

    @property
    def required(self) -> bool:
        """Something that the experiment needs has never been reported."""
        return any(item.last_seen_at is None for item in (self.exposure, *self.metrics))


def check_instrumentation(work: Work, request: requests.ById) -> Instrumentation:
    """Whether applications report what the experiment needs: exposures of its files, and what each metric counts.

    Of whoever takes part, or in draft would: who is held out, outside the allocation or not meant by the rules has no
    application that the experiment needs. What is reported without a target counts for every file.
    """
    experiment = find(work, request.id)
    ids = _taking_part(work, experiment)
    needed = list(_metrics(work, experiment))
    paths = {"", *experiment.target_files}
    found = [
        item for item in work.store.survey.reported(ids, [name for name, _ in needed]) if item.path in paths
    ]
    exposures = [item for item in found if not item.event_name]
    return Instrumentation(
        experiment=experiment,
        participants=len(ids),
        exposure=_signal(work, "", exposures),
        metrics=tuple(
            _signal(work, name, [item for item in found if item.event_name == name], role)
            for name, role in needed
        ),
        targets=tuple(
            _signal(work, path, [item for item in exposures if item.path in ("", path)])
            for path in experiment.target_files
        ),
    )


def _taking_part(work: Work, experiment: Experiment) -> list[bytes]:
    """Internal ids of who has a variant, or would have one; of no retired host."""
    phase = experiment.phase
    if phase is None:
        known = {item.public_id: item.id for item in selected(work, experiment.selector)}
        seated = {item.participant for item in planned(work, experiment) if item.variant_id is not None}
    else:
        known = work.store.experiments.participant_ids(phase.id)
        seated = {
            item.participant
            for item in work.store.experiments.present(phase.id, now=work.now)
            if item.variant_id is not None and not item.retired and not item.deleted
        }
    return [known[name] for name in sorted(seated)]


def _metrics(work: Work, experiment: Experiment) -> Iterator[tuple[str, str]]:
    own = metrics.by_value(work, experiment.metrics)
    for role, items in (
        ("primary", [own["primary"]] if "primary" in own else []),
        ("secondary", own["secondary"]),
        ("guardrail", own["guardrail"]),
    ):
        for item in items:
            yield item["eventName"], role
            below = item.get("denominatorEventName")
            if below is not None and below != item["eventName"]:
                yield below, role


def _signal(work: Work, name: str, reports: Sequence[Reported], role: str = "") -> Signal:
    return Signal(
        name=name,
        reporting=len({item.participant_id for item in reports}),
        last_seen_at=work.store.survey.last_at(reports),
        role=role,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """A count in the last window and in the one before it."""

    current: int
    previous: int

    @property
    def percent_change(self) -> float:
        """By how many per cent it grew, to one decimal; from nothing to something is 100."""
        if not self.previous:
            return 100.0 if self.current else 0.0
        return round((self.current - self.previous) / self.previous * 100, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Velocity:
    """How many experiments were launched and completed lately, and run now."""

    as_of: int
    launched: Pace
    completed: Pace
    running: int


def get_velocity(work: Work, request: requests.Nothing) -> Velocity:
    """Experiments launched and completed in the last 30 days against the 30 before, and running now.

    Archived ones are not counted.
    """
    window = WINDOW_DAYS * 86_400 * SECOND
    store = work.store.survey
    now = store.between(work.project_id, work.now - window, work.now)
    before = store.between(work.project_id, work.now - 2 * window, work.now - window)
    return Velocity(
        as_of=work.now,
        launched=Pace(current=now[0], previous=before[0]),
        completed=Pace(current=now[1], previous=before[1]),
        running=store.running(work.project_id),
    )
