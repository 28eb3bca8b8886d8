"""Use cases' part about factors: their contents kept by digest, and the variants that follow from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from control_plane.domain import requests
from control_plane.domain.design import Type
from control_plane.domain.experiment import Experiment, VariantFile, normalised
from control_plane.domain.factors import Factor, Level, combinations, compose, is_full
from control_plane.services.work import Work
from shared.errors import Fault, Invalid

MAX_CONTENT_BYTES = 1_048_576


def stored(work: Work, kind: Type, specs: Sequence[requests.FactorSpec]) -> tuple[Factor, ...]:
    """The factors, their contents kept. Raises Invalid where the type has none, or a content is too large."""
    if not specs:
        return ()
    if kind is not Type.MULTIVARIATE:
        refuse("factors", f"an experiment of type {kind.value} has none", "use type multivariate")
    return tuple(
        Factor(
            key=spec.key,
            target_file=spec.target_file,
            levels=tuple(
                Level(
                    key=level.key,
                    name=level.name or level.key,
                    digest=_kept(work, level.body(), f"factors.{index}.levels.{number}"),
                    size=len(level.body()),
                )
                for number, level in enumerate(spec.levels)
            ),
        )
        for index, spec in enumerate(specs)
    )


def _kept(work: Work, body: bytes, field: str) -> bytes:
    if len(body) > MAX_CONTENT_BYTES:
        fault = Fault(field=field, message="is larger than 1 MiB", remedy="make it smaller")
        raise Invalid(f"{field}: {fault.message}", reason="TOO_LARGE", faults=[fault])
    return work.store.experiments.put_content(work.project_id, body)


def files(experiment: Experiment, levels: Mapping[str, str]) -> tuple[VariantFile, ...]:
    """The files of the variant that has these levels."""
    return tuple(
        VariantFile(path=path, digest=level.digest, size=level.size)
        for path, level in compose(experiment.factors, levels)
    )


def generated(experiment: Experiment) -> Iterator[requests.VariantSpec]:
    """A variant for every combination, all of one weight; the first is the control."""
    found = combinations(experiment.factors)
    weights = normalised([1] * len(found)) if found else []
    for index, (item, weight) in enumerate(zip(found, weights, strict=True)):
        values = {"key": item.key, "name": item.name, "isControl": index == 0, "weight": weight}
        yield requests.parse(requests.VariantSpec, {**values, "levels": dict(item.levels)})


def recompose(work: Work, before: Experiment, after: Experiment) -> list[requests.VariantSpec]:
    """Every variant has the new contents of its levels; returns the variants that are to be added.

    Variants that were all the combinations of the former factors become all those of the new ones; chosen
    ones stay as they are.
    """
    present = [variant.levels for variant in before.variants]
    wanted: list[requests.VariantSpec] = []
    variants = list(before.variants)
    if is_full(before.factors, present) and not is_full(after.factors, present):
        wanted = list(generated(after))
        combined = {tuple(sorted(spec.levels.items())): spec for spec in wanted}
        for variant in before.variants:
            spec = combined.get(tuple(sorted(variant.levels.items())))
            if spec is None or spec.key != variant.key:
                work.store.experiments.delete_variant(variant.id)
                variants.remove(variant)
                continue
            at = variants.index(variant)
            variants[at] = replace(variant, weight=spec.weight, is_control=spec.is_control)
            wanted.remove(spec)
    for variant in variants:
        changed = replace(variant, files=files(after, variant.levels), updated_at=work.now)
        work.store.experiments.put_variant(changed)
    return wanted


def check_levels(
    experiment: Experiment, spec: requests.VariantSpec | requests.UpdateVariant, *, field: str
) -> None:
    """The variant has levels where its type has factors, else contents. Raises Invalid naming the field."""
    if experiment.type is Type.MULTIVARIATE:
        for name in ("content", "files"):
            if getattr(spec, name):
                refuse(f"{field}.{name}", "its files follow from its levels", "set levels")
    elif spec.levels:
        message = f"variants of type {experiment.type.value} have no levels"
        refuse(f"{field}.levels", message, "use type multivariate, with factors")


def refuse(field: str, message: str, remedy: str) -> None:
    """Raises Invalid for the field."""
    fault = Fault(field=field, message=message, remedy=remedy)
    raise Invalid(f"{field}: {message}", reason="INVALID_FIELDS", faults=[fault])
