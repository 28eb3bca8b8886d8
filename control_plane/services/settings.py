"""Use cases of a project's settings, and what they refuse of an experiment."""

from collections.abc import Iterable, Iterator

from control_plane.domain import requests
from control_plane.domain.design import Type
from control_plane.domain.experiment import Experiment, Variant
from control_plane.domain.settings import Settings, UpdateSettings
from control_plane.domain.validation import breaches
from control_plane.services.work import Work
from control_plane.store.access import StoredSettings
from shared.errors import Fault, Invalid
from shared.model import Digest


def get(work: Work, request: requests.Nothing) -> StoredSettings:
    """The project's settings."""
    return work.store.access.settings(work.project_id)


def update(work: Work, request: UpdateSettings) -> StoredSettings:
    """The settings are as asked, for whatever is created, changed or started from now on.

    What runs goes on as it is, and no draft changes.
    """
    changed = request.onto(of(work))
    work.store.access.put_settings(work.project_id, changed, actor=work.caller.actor, now=work.now)
    return work.store.access.settings(work.project_id)


def of(work: Work) -> Settings:
    """The settings of the caller's project."""
    return work.store.access.settings(work.project_id).settings


def refuse(work: Work, experiment: Experiment, variants: Iterable[Variant] | None = None) -> None:
    """The settings allow what the experiment, or some variants of it, would write.

    Raises Invalid with every file and content that they do not, each with its rule.
    """
    found = list(faults(work, experiment, variants))
    if found:
        listed = "; ".join(f"{fault.field}: {fault.message}" for fault in found)
        raise Invalid(listed, reason="REFUSED_BY_SETTINGS", faults=found)


def faults(work: Work, experiment: Experiment, variants: Iterable[Variant] | None = None) -> Iterator[Fault]:
    """Everything that the settings refuse of the experiment, or of some variants of it, by field.

    Reads each content once that some validator looks at.
    """
    settings = of(work)
    target = experiment.target_file
    if variants is None and target is not None and not settings.allows(target):
        yield _outside("targetFile", target, settings)
    if experiment.type is Type.MULTIVARIATE:
        yield from _of_factors(work, experiment, settings)
        return
    for variant in experiment.variants if variants is None else variants:
        for file in variant.files:
            field = "content" if file.path == target else f"files.{file.path}"
            where = f"variants.{variant.key}.{field}"
            if (variants is not None or file.path != target) and not settings.allows(file.path):
                yield _outside(where, file.path, settings)
            name = f"{variant.name}, {file.path}"
            yield from _of_content(work, settings, where, name, file.path, file.digest)


def _of_factors(work: Work, experiment: Experiment, settings: Settings) -> Iterator[Fault]:
    """Of the factors: variants' files are their levels, so that each content is told once."""
    for factor in experiment.factors:
        path = factor.target_file
        if not settings.allows(path):
            yield _outside(f"factors.{factor.key}.targetFile", path, settings)
        for level in factor.levels:
            where = f"factors.{factor.key}.levels.{level.key}"
            yield from _of_content(work, settings, where, f"{level.name}, {path}", path, level.digest)


def _outside(field: str, path: str, settings: Settings) -> Fault:
    return Fault(
        field=field,
        message=f"{path} is none of the files that the project's settings allow",
        remedy=f"choose one of {', '.join(settings.target_allow_list)}, or change targetAllowList",
    )


def _of_content(
    work: Work, settings: Settings, field: str, name: str, path: str, digest: Digest
) -> Iterator[Fault]:
    validators = settings.of(path)
    body = work.store.experiments.content(work.project_id, digest) if validators else None
    for validator in validators if body is not None else ():
        for breach in breaches(validator, body or b""):
            line = f", line {breach.line}" if breach.line else ""
            yield Fault(
                field=field,
                message=f"{name}{line}: {breach.message} (validator {validator.glob}, {breach.rule})",
                remedy=breach.remedy,
            )
