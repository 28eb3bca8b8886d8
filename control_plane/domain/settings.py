"""What a project's experiments may touch and hold, and what their designs say where nobody says otherwise."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import re2
from pydantic import AfterValidator, BeforeValidator, Field

from control_plane.domain.design import AnalysisSpec, Design, DesignFields, Exposure
from control_plane.domain.fields import Request, whole
from control_plane.domain.globs import Glob, describes, overlap

MAX_PATTERN = 512

_OPTIONS = re2.Options()
_OPTIONS.max_mem = 1 << 20
_OPTIONS.log_errors = False


def expression(pattern: str) -> re2._Regexp:
    """The RE2 expression, with the memory that one may have. Raises re2.error."""
    return re2.compile(pattern, _OPTIONS)


def _pattern(value: str) -> str:
    try:
        expression(value)
    except re2.error as error:
        why = error.args[0].decode() if error.args else "it does not parse"
        raise ValueError(f"{value!r} is not an RE2 expression: {why}") from None
    return value


Pattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN), AfterValidator(_pattern)]


class Validator(Request):
    """What the content of every file must be that a glob describes."""

    glob: Glob
    max_bytes: Annotated[int, Field(ge=1, le=1_048_576), BeforeValidator(whole)] | None = None
    encoding: Literal["utf-8"] | None = None
    format: Literal["json", "yaml", "toml", "front_matter"] | None = None
    required: Annotated[tuple[Pattern, ...], Field(max_length=20)] = ()
    forbidden: Annotated[tuple[Pattern, ...], Field(max_length=20)] = ()


class Defaults(Request):
    """What designs say where their callers do not; null: what variantd says."""

    settle_seconds: Annotated[int, Field(ge=0, le=86_400), BeforeValidator(whole)] | None = None
    alpha: Annotated[float, Field(ge=0.001, le=0.5)] | None = None

    def fill(self, design: Design, sent: DesignFields, *, new: bool) -> Design:
        """The design with the defaults in what was not said: of a new one anywhere, else of the parts sent."""
        filled: dict[str, Request] = {}
        exposure, analysis = sent.exposure_criteria, sent.analysis
        touched = new or sent.given("exposure_criteria")
        if self.settle_seconds is not None and touched and not _said(exposure, "settle_seconds"):
            filled["exposure_criteria"] = _with(design.exposure_criteria, settle_seconds=self.settle_seconds)
        if self.alpha is not None and (new or sent.given("analysis")) and not _said(analysis, "alpha"):
            filled["analysis"] = _with(design.analysis, alpha=self.alpha)
        return design.model_copy(update=filled)


def _said(part: Exposure | AnalysisSpec | None, name: str) -> bool:
    return part is not None and part.given(name)


def _with(part: Request, **values: float) -> Request:
    return part.model_copy(update=values)


Globs = Annotated[tuple[Glob, ...], Field(max_length=100)]
Validators = Annotated[tuple[Validator, ...], Field(max_length=50)]


class Settings(Request):
    """The settings of a project; empty, they allow everything."""

    target_allow_list: Globs = ()
    defaults: Defaults = Defaults()
    validators: Validators = ()

    def allows(self, path: str) -> bool:
        """Experiments may be on this file."""
        return not self.target_allow_list or any(describes(glob, path) for glob in self.target_allow_list)

    def allows_some(self, targets: str) -> bool:
        """Experiments may be on some file of this glob."""
        return not self.target_allow_list or any(overlap(glob, targets) for glob in self.target_allow_list)

    def of(self, path: str) -> Sequence[Validator]:
        """The validators that look at this file."""
        return [item for item in self.validators if describes(item.glob, path)]


class UpdateSettings(Request):
    """Changes to the settings; what was not sent stays, null is none again."""

    target_allow_list: Globs | None = None
    defaults: Defaults | None = None
    validators: Validators | None = None

    def onto(self, settings: Settings) -> Settings:
        """The settings with what was sent."""
        return settings.model_copy(update=dict(self._sent()))

    def _sent(self) -> Iterator[tuple[str, object]]:
        for name, field in Settings.model_fields.items():
            if self.given(name):
                value = getattr(self, name)
                yield name, field.get_default() if value is None else value
