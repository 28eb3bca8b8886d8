"""Who may take part, by what hosts said of every variant's content before anything is assigned.

Pure. Whoever's host refuses the content of any variant gets none of them: were it left to the variant that was
drawn, those who drop out would differ by variant, and with them everything that is compared.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from control_plane.domain.experiment import Experiment
from shared.model import Digest
from shared.moment import SECOND

ACCEPTED_FOR = 24 * 3_600 * SECOND
"""A host that would take a content is asked again only after so long: its check may be another one by then."""

REFUSED_FOR = 600 * SECOND
"""One that refuses it is asked again sooner: somebody may have mended what was in the way."""

LOOKED_AT_FOR = 3_600 * SECOND
"""When an operator is about to start, or looks whether to, what was accepted longer ago is asked again."""

Content = tuple[str, Digest]
"""A target file, and what would be written there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a host said of a content: `reason` (code, message, remedy) is None where it would take it."""

    reason: Mapping[str, Any] | None
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A content of these variants (keys) that a host refuses, and why."""

    path: str
    variants: tuple[str, ...]
    code: str
    message: str

    def __str__(self) -> str:
        """For a person."""
        return f"{', '.join(self.variants)}: {self.message} ({self.code})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is known of one participant: contents that its host refuses, and those it was not heard of."""

    refusals: tuple[Refusal, ...] = ()
    unknown: tuple[Content, ...] = ()

    def keeps_out(self, experiment: Experiment) -> bool:
        """The participant takes part in no variant: refused, or not known where the design requires that."""
        return bool(self.refusals) or (bool(self.unknown) and experiment.design.require_preflight)


def contents(experiment: Experiment) -> dict[Content, tuple[int, tuple[str, ...]]]:
    """(size, keys of the variants that have it) of every content that participants may get."""
    found: dict[Content, tuple[int, tuple[str, ...]]] = {}
    for variant in experiment.arms:
        for file in variant.files:
            _, keys = found.get((file.path, file.digest), (0, ()))
            found[file.path, file.digest] = (file.size, (*keys, variant.key))
    return dict(sorted(found.items()))


def judge(experiment: Experiment, said: Mapping[Content, Said]) -> Judgement:
    """What a host's words come to for this experiment."""
    refusals, unknown = [], []
    for (path, value), (_, keys) in contents(experiment).items():
        word = said.get((path, value))
        if word is None:
            unknown.append((path, value))
        elif word.reason is not None:
            code, message = str(word.reason["code"]), str(word.reason["message"])
            refusals.append(Refusal(path=path, variants=keys, code=code, message=message))
    return Judgement(refusals=tuple(refusals), unknown=tuple(unknown))


def due(
    wanted: Iterable[Content], said: Mapping[Content, Said], *, now: int, since: int | None = None
) -> Sequence[Content]:
    """What to ask a host of the `wanted` now; `since` an operator looks at it, refusals from before are asked again."""

    def stale(content: Content) -> bool:
        word = said.get(content)
        if word is None:
            return True
        if word.reason is None:
            return now - word.at > (ACCEPTED_FOR if since is None else LOOKED_AT_FOR)
        return now - word.at > REFUSED_FOR if since is None else word.at < since

    return [content for content in wanted if stale(content)]
