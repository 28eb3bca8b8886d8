"""What one field, one resource and one call of another system's API are here: declared once, per door.

Code, tests and the reference page come from the same declarations. Hides how a body becomes the JSON of our own API
and back, and that nothing a client sends is dropped: a field is ours, or kept and echoed, or refused with the reason.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic import Field as Kind

from control_plane.api.operations import Operation
from control_plane.domain.fields import Request
from control_plane.services import record
from control_plane.services.work import Scope, Work
from shared.errors import Error, Fault, Invalid

Json = dict[str, Any]


class How(StrEnum):
    """What becomes of a field."""

    OURS = "ours"
    KEPT = "kept"
    SHOWN = "shown"
    REFUSED = "refused"

    @property
    def meaning(self) -> str:
        """What that is, for whoever reads the page."""
        return {
            How.OURS: "it means the same here",
            How.KEPT: "it means nothing for files: accepted, stored and echoed, never looked at",
            How.SHOWN: "only in answers; refused where something else is sent than was answered",
            How.REFUSED: "refused with the reason, unless it is empty",
        }[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of a resource: `says` is its sentence, `native` where it is in our JSON, `example` a value of it.

    `into` makes our JSON of what was sent, `show` what is answered of ours; without them the value is the same.
    `kind` is the type a value has to have, looked at before anything else is; of a kept one `default` is what is shown
    until it is sent. A field with
    `inside` is an object of fields, replaced as a whole; one with `each` a list of such resources. With `only`
    it may be sent to `create` or to `update` only, with `unshown` it is in no answer. What it `holds` are names of
    ours that stand inside its value.
    """

    name: str
    says: str
    how: How = How.OURS
    native: str = ""
    kind: Any = Any
    default: Any = None
    example: Any = None
    required: bool = False
    only: str = ""
    unshown: bool = False
    holds: Sequence[str] = ()
    into: Callable[[Any], Json] | None = None
    show: Callable[[Json], Any] | None = None
    inside: "Shape | None" = None
    each: "Shape | None" = None


def ours(name: str, says: str, *, native: str = "", **more: Any) -> Field:
    """A field that means the same here; under its own name unless another is said."""
    return Field(name=name, says=says, native=native or name, **more)


def kept(name: str, says: str, kind: Any, *, example: Any, **more: Any) -> Field:
    """A field that is kept and echoed."""
    return Field(name=name, says=says, how=How.KEPT, kind=kind, example=example, **more)


def shown(name: str, says: str, *, native: str = "", show: Callable[[Json], Any] | None = None) -> Field:
    """A field that is answered and never sent."""
    return Field(name=name, says=says, how=How.SHOWN, native=native or name, show=show)


def refused(name: str, says: str, *, example: Any, **more: Any) -> Field:
    """A field that is refused, with `says` as the reason."""
    return Field(name=name, says=says, how=How.REFUSED, example=example, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a body says: in our JSON, and what is to be kept."""

    values: Json = field(default_factory=dict)
    kept: Json = field(default_factory=dict)


class Shape:
    """A resource of a door: its fields in the order they are answered."""

    def __init__(self, *fields: Field) -> None:
        self.fields = fields
        self._by_name = {item.name: item for item in fields}

    def __getitem__(self, name: str) -> Field:
        return self._by_name[name]

    def and_(self, *fields: Field) -> "Shape":
        """The resource with further fields."""
        return Shape(*self.fields, *fields)

    def read(self, body: Mapping[str, Any], *, verb: str, at: str = "") -> Sent:
        """What a body of `create` or `update` says. Raises Invalid with every fault by field, from its place `at`."""
        faults: list[Fault] = []
        sent = self._read(body, verb, at, faults)
        if faults:
            listed = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
            raise Invalid(listed, reason="INVALID_FIELDS", faults=faults)
        return sent

    def _read(self, body: Mapping[str, Any], verb: str, at: str, faults: list[Fault]) -> Sent:
        sent = Sent()
        for item in self.fields:
            if item.required and verb == "create" and body.get(item.name) is None:
                faults.append(Fault(field=at + item.name, message="is required", remedy="send it"))
        for name, value in body.items():
            found = self._by_name.get(name)
            if found is not None and value is None and verb == "create":
                continue  # as good as not sent
            fault = _unfit(found, value, verb, self._by_name)
            if fault is not None:
                faults.append(replace(fault, field=at + name))
            elif found is not None and found.inside is not None:
                _read_object(found, found.inside, value, verb, at, faults, sent)
            elif found is not None and found.how in (How.KEPT, How.OURS):
                try:
                    fits = _of_kind(found, value)
                    if found.how is How.KEPT:
                        sent.kept[name] = fits
                    else:
                        _merge(sent.values, found.into(fits) if found.into else {found.native: fits})
                except ValidationError as error:
                    faults += _kind_faults(at + name, error)
                except Invalid as error:
                    told = error.faults or (Fault(field=name, message=error.message),)
                    faults += [replace(one, field=at + one.field) for one in told]
        return sent

    def show(self, native: Json, kept: Mapping[str, Any]) -> Json:
        """The resource as this door answers it, of our JSON and what is kept."""
        answer: Json = {}
        for item in self.fields:
            if item.unshown or item.how is How.REFUSED:
                continue
            if item.inside is not None:
                inner = kept.get(item.name)
                answer[item.name] = item.inside.show(native, inner if isinstance(inner, dict) else {})
            elif item.how is How.KEPT:
                answer[item.name] = kept.get(item.name, item.default)
            else:
                answer[item.name] = item.show(native) if item.show else native.get(item.native)
        return answer

    def unechoed(self, body: Json, told: Mapping[str, Any]) -> Json:
        """The body of a change without what is sent back as it was `told`, whether it can be changed or not."""
        known = {item.name for item in self.fields}
        return {k: v for k, v in body.items() if not (k in known and k in told and told[k] == v)}

    @contextmanager
    def told(self, *, under: str = "") -> Iterator[None]:
        """What fails inside is told of this door's own fields; `under` is where our own names for them start."""
        try:
            yield
        except Error as error:
            faults = [
                replace(fault, field=self.name_of(fault.field.removeprefix(under))) for fault in error.faults
            ]
            if not faults:
                raise
            listed = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
            raise type(error)(listed, reason=error.reason, faults=faults, details=error.details) from None

    def name_of(self, path: str) -> str:
        """The path of a field in our JSON as it is in this door's; of several, the one of the same name."""

        def nearest(found: tuple[Field, str]) -> tuple[int, bool]:
            native = found[0].native
            return -len(native), native.rpartition(".")[2] != found[0].name

        for item, prefix in sorted(self._flat(), key=nearest):
            if path.partition(".")[0] in item.holds:
                return f"{prefix}{item.name}.{path}"
            if item.native and (path == item.native or path.startswith(item.native + ".")):
                rest = path[len(item.native) + 1 :]
                if item.each is not None and rest:
                    index, _, inner = rest.partition(".")
                    rest = index + ("." + item.each.name_of(inner) if inner else "")
                return prefix + item.name + ("." + rest if rest else "")
        return path

    def _flat(self, prefix: str = "") -> Iterator[tuple[Field, str]]:
        for item in self.fields:
            if item.inside is not None:
                yield from item.inside._flat(f"{prefix}{item.name}.")
            elif item.how is not How.REFUSED:
                yield item, prefix

    def listed(self, prefix: str = "") -> Iterator[tuple[str, Field]]:
        """(name with its place, field) of every field, those of objects after the object."""
        for item in self.fields:
            yield prefix + item.name, item
            inner = item.inside or item.each
            if inner is not None:
                yield from inner.listed(prefix + item.name + ("[]." if item.each else "."))


def _unfit(found: Field | None, value: Any, verb: str, known: Mapping[str, Field]) -> Fault | None:
    """Why the field may not be sent so, or at all."""
    if found is None:
        names = ", ".join(sorted(name for name, item in known.items() if item.how is not How.REFUSED))
        return Fault(field="", message="is not a known field", remedy=f"known are {names}")
    if found.how is How.SHOWN:
        return Fault(field="", message="is only answered", remedy="leave it out")
    if found.how is How.REFUSED:
        return Fault(field="", message=found.says, remedy="leave it out") if value else None
    if found.only and found.only != verb:
        return Fault(field="", message=f"cannot be sent to {verb}", remedy="leave it out")
    return None


def _read_object(
    found: Field, inside: Shape, value: Any, verb: str, at: str, faults: list[Fault], sent: Sent
) -> None:
    if value is not None and not isinstance(value, dict):
        faults.append(Fault(field=at + found.name, message="is not an object", remedy="send an object"))
        return
    whole = value or {}
    if verb == "update":  # replaced as a whole: what is not in it is as if it had never been sent
        for name, item in inside._by_name.items():
            if item.how is How.OURS and item.native and name not in whole and not item.only:
                sent.values.setdefault(item.native.partition(".")[0], None)
    inner = inside._read(whole, verb, f"{at}{found.name}.", faults)
    _merge(sent.values, inner.values)
    sent.kept[found.name] = inner.kept


def _merge(into: Json, values: Mapping[str, Any]) -> None:
    """Objects in both are one, lists in both follow each other."""
    for name, value in values.items():
        present = into.get(name)
        if isinstance(present, dict) and isinstance(value, Mapping):
            _merge(present, value)
        elif isinstance(present, list) and isinstance(value, list):
            into[name] = [*present, *value]
        else:
            into[name] = value


def _of_kind(found: Field, value: Any) -> Any:
    if value is None:
        return None
    TypeAdapter(found.kind).validate_python(value, strict=found.kind is not float)
    return value


def _kind_faults(at: str, error: ValidationError) -> list[Fault]:
    return [
        Fault(field=".".join([at, *(str(part) for part in one["loc"])]), message=one["msg"], remedy="mend it")
        for one in error.errors(include_url=False, include_context=False, include_input=False)
    ]


# -- calls


class Call(Request):
    """A call of a door: the names in its path as ours, the query as it came, the body as it came.

    `at` is the address of what is read, without its query.
    """

    model_config = ConfigDict(alias_generator=None)

    id: str = ""
    project: str = ""
    at: str = ""
    query: dict[str, str] = Kind(default_factory=dict)
    body: dict[str, Any] = Kind(default_factory=dict)

    def on_record(self) -> Any:
        """What the audit log keeps of it: contents by their digests, also where they are JSON in a text."""
        return record.without_content(record.opened(self.model_dump()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a call answers: whose resource it is about (an id of ours), the body, and a status that is not usual."""

    about: str
    body: Any
    status: int = 0


def as_json(work: Work, answered: Answered) -> Json:
    """The answer as it is kept for its request id."""
    return {"id": answered.about, "body": answered.body, "status": answered.status}


EXPERIMENT = "/v1/experiments/{}"
"""Where our own API shows an experiment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route(Operation):
    """A call of a door. `says` is what it is here; `shown_as` the path under which our API shows what it is about."""

    says: str
    shown_as: str = EXPERIMENT
    query: Sequence[str] = ()

    @property
    def labelled(self) -> bool:
        """Whether a key limited to labels may ask it: it is about experiments."""
        return self.shown_as == EXPERIMENT


def route(
    door: str,
    name: str,
    at: str,
    scope: Scope,
    use_case: Callable[[Work, Call], Answered],
    says: str,
    *,
    about: str = EXPERIMENT,
    starts: bool = False,
    **more: Any,
) -> Route:
    """The call of a door `at` METHOD /path; of one that `starts` what its path names, hosts are asked before."""
    method, path = at.split()
    if starts:
        more = {"settles": lambda call: call.id, **more}
    return Route(
        rpc=f"{door}.{name}",
        method=method,
        path=path,
        scope=scope,
        request=Call,
        use_case=use_case,
        render=as_json,
        says=says,
        shown_as=about,
        **more,
    )


def nothing(call: Call) -> None:
    """The call says nothing in its body. Raises Invalid for what is there."""
    Shape().read(call.body, verb="update")


def take(call: Call, known: Sequence[str]) -> dict[str, str]:
    """The query. Raises Invalid naming what is no parameter here."""
    strange = sorted(set(call.query) - set(known))
    if strange:
        listed = ", ".join(known) or "none"
        faults = [
            Fault(field=name, message="is not a known parameter", remedy=f"known are {listed}")
            for name in strange
        ]
        raise Invalid(f"{strange[0]}: is not a known parameter", reason="INVALID_FIELDS", faults=faults)
    return {name: value for name, value in call.query.items() if value != ""}


def whole_number(query: Mapping[str, str], name: str, default: int) -> int:
    """A number of the query. Raises Invalid where it is none."""
    text = query.get(name)
    if text is None:
        return default
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 10):
        raise wrong(name, f"{text!r} is not a whole number", "send a whole number")
    return int(text)


def one_of(query: Mapping[str, str], name: str, choices: Sequence[str]) -> str | None:
    """A choice of the query. Raises Invalid where it is none of them."""
    value = query.get(name)
    if value is not None and value not in choices:
        raise wrong(name, f"{value!r} is none of {', '.join(choices)}", "choose one of them")
    return value


def wrong(name: str, message: str, remedy: str) -> Invalid:
    """The refusal of one field."""
    fault = Fault(field=name, message=message, remedy=remedy)
    return Invalid(f"{name}: {message}", reason="INVALID_FIELDS", faults=[fault])


# -- doors


@dataclass(frozen=True, slots=True, kw_only=True)
class Facade:
    """A whole door: where it is, its calls and resources, how it tells failures, and what its page says."""

    name: str
    title: str
    prefixes: tuple[str, ...]
    routes: tuple[Route, ...]
    shapes: Mapping[str, Shape]
    told: Callable[[Error, int], tuple[int, Any]]
    named: Callable[[str], str]

    def is_at(self, path: str) -> bool:
        """Whether a path is this door's."""
        return any(path == prefix or path.startswith(prefix + "/") for prefix in self.prefixes)
