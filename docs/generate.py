"""Writes the parts of docs/reference that follow from the code; --check fails where one does not.

A page is prose with marked parts: what is between `<!-- generated: NAME -->` and `<!-- end -->` is made here.
Pages that are nothing else are made whole. Nothing depends on the width of a terminal or the version of Python.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from typer.main import get_command

from agent import __main__ as agent_main
from agent import config as agent_config
from agent import status as agent_status
from control_plane import __main__ as server_main
from control_plane.api import errors
from control_plane.api.door import Door
from control_plane.api.doors import DOORS, stamn
from control_plane.api.doors.mapping import Facade, How
from control_plane.api.operations import EXPORT, OPERATIONS, WATCH_PATH, WATCHES
from control_plane.api.replication import Replication
from control_plane.api.sessions import Sessions
from control_plane.cli import app as cli_app
from control_plane.cli import schema
from control_plane.config import Settings
from control_plane.domain import findings
from control_plane.services.changes import Changes
from control_plane.services.events import Kept
from control_plane.services.replicas import Replica
from shared.clock import SystemClock
from shared.errors import Code
from shared.ids import new_id
from shared.model import ReasonCode
from tests.support import faults

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"
PROTOS = ROOT / "protos" / "variantd"


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> str:
    """A table of cells as they are."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _code(value: object) -> str:
    return f"`{value}`" if value not in (None, "", (), False) else ""


# -- codes


def error_codes() -> str:
    """Every code with both transports' status."""
    return table(
        ("Code", "gRPC", "HTTP", "The same request again"),
        [
            (
                f"`{code.value}`",
                errors.TABLE[code].grpc.name,
                str(errors.TABLE[code].http),
                "may succeed later" if code.retryable else "fails again",
            )
            for code in Code
        ],
    )


def error_reasons() -> str:
    """Every reason an error names."""
    return table(("Reason", ""), [(f"`{name}`", text) for name, text in sorted(errors.REASONS.items())])


def reason_codes() -> str:
    """Every reason a host refuses or fails an offer for."""
    return table(("Code", "What happened"), [(f"`{code.value}`", code.meaning) for code in ReasonCode])


def kept_reasons() -> str:
    """Every reason an accepted event is kept for without counting."""
    return table(("Reason", ""), [(f"`{item.value}`", item.meaning) for item in Kept])


def finding_codes() -> str:
    """Every code a finding can have."""
    beside = {code: f"in results: {text}" for code, text in findings.OF_RESULTS.items()}
    return table(
        ("Finding", ""), [(f"`{code}`", text) for code, text in {**findings.CODES, **beside}.items()]
    )


# -- settings


def server_settings() -> str:
    """Every setting of `variantd serve`."""

    def rows(model: Any, prefix: str) -> Iterator[tuple[str, ...]]:
        for name, field in model.model_fields.items():
            inner = next((part for part in _parts(field.annotation) if hasattr(part, "model_fields")), None)
            default = field.get_default(call_default_factory=True)
            shown = "" if field.is_required() or inner else _code(default if default != () else "")
            if default is False:
                shown = "`false`"
            yield (f"`{prefix}{name}`", shown, field.description or "")
            if inner is not None:
                yield from rows(inner, f"{prefix}{name}.")

    return table(("Setting", "Default", ""), rows(Settings, ""))


def _parts(annotation: Any) -> tuple[Any, ...]:
    return (annotation, *getattr(annotation, "__args__", ()))


def agent_settings() -> str:
    """Every key of `[agent]`."""
    return _keys("`[agent]`", agent_config.AGENT_KEYS)


def participant_settings() -> str:
    """Every key of `[[participants]]`."""
    return _keys("`[[participants]]`", agent_config.PARTICIPANT_KEYS)


def _keys(head: str, keys: Mapping[str, "agent_config.Key"]) -> str:
    return table(
        (head, "Default", ""), [(f"`{name}`", _code(key.default), key.meaning) for name, key in keys.items()]
    )


# -- metrics


def server_metrics() -> str:
    """Every metric of the control plane."""
    registry = CollectorRegistry()
    clock = SystemClock()
    sessions = Sessions(registry, new_id=new_id, clock=clock)
    # Asked for their metrics only.
    Door(None, registry)  # type: ignore[arg-type]
    replica = Replica(None, clock=clock, replica_id=b"", name="", incarnation=b"")  # type: ignore[arg-type]
    Replication(None, replica, sessions=sessions, changes=Changes(), registry=registry)  # type: ignore[arg-type]
    return _metrics(registry.collect(), _LABELS)


_LABELS = {
    "variantd_outcomes": ("result",),
    "variantd_operations": ("operation", "code"),
    "variantd_operation_seconds": ("operation",),
    "variantd_hints": ("way",),
}
"""Labels of metrics without a sample yet, which do not tell them."""


def agent_metrics() -> str:
    """Every metric of the agent."""
    return _metrics(agent_status.described(), {})


def _metrics(found: "Iterator[Metric] | list[Metric]", labels: Mapping[str, tuple[str, ...]]) -> str:
    rows = []
    for metric in found:
        names = labels.get(metric.name) or getattr(metric, "_labelnames", ())
        suffix = "_total" if metric.type == "counter" else ""
        shown = "{" + ", ".join(names) + "}" if names else ""
        rows.append((f"`{metric.name}{suffix}{shown}`", metric.documentation))
    return table(("Metric", ""), rows)


# -- operations and protocol


def operations() -> str:
    """Every operation on both transports."""
    return table(
        ("Call", "gRPC", "Scope", "Success"),
        [
            *(
                (
                    f"`{o.method} {o.path}`" + (f", `{o.alias}`" if o.alias else ""),
                    f"`{o.rpc}`",
                    f"`{o.scope.value}`",
                    str(o.status),
                )
                for o in (*OPERATIONS, EXPORT)
            ),
            *(
                (f"`GET {WATCH_PATH}?kinds={w.name}`", f"`{w.rpc}`", f"`{w.scope.value}`", "200")
                for w in WATCHES
            ),
        ],
    )


def grpc_page() -> str:
    """operator.proto as a page."""
    return _proto_page("Operator gRPC", PROTOS / "operator" / "v1" / "operator.proto")


def protocol_page() -> str:
    """agent.proto as a page."""
    return _proto_page("The agents' protocol", PROTOS / "agent" / "v1" / "agent.proto")


def _proto_page(title: str, source: Path) -> str:
    lines = source.read_text().splitlines()
    parts = [f"# {title}", "", f"From `{source.relative_to(ROOT)}`; `make generate` writes this page.", ""]
    said: list[str] = []
    head: list[str] = []
    rows: list[tuple[str, ...]] = []
    kind = ""
    for line in lines:
        text = line.strip()
        opening = re.match(r"(service|message|enum) (\w+) \{(\})?", text)
        if text.startswith("//"):
            said.append(text.removeprefix("//").strip())
        elif opening and not line.startswith(" "):
            kind = opening[1]
            head, rows = [f"## {kind} {opening[2]}", "", " ".join(said), ""], []
            said = []
            if opening[3]:
                parts += head
        elif text == "}" and line.startswith("}"):
            parts += head
            columns = {"service": ("Method", "Takes", "Answers", "")}.get(kind, ("Field", "Type", ""))
            columns = ("Value", "") if kind == "enum" else columns
            parts += [table(columns, rows), ""] if rows else []
        else:
            row = _proto_row(kind, text, " ".join(said))
            if row is not None:
                rows.append(row)
            said = [] if text else said
    return "\n".join(parts).rstrip() + "\n"


def _proto_row(kind: str, text: str, said: str) -> tuple[str, ...] | None:
    if found := re.match(r"rpc (\w+)\((.*?)\) returns \((.*?)\);", text):
        return f"`{found[1]}`", f"`{found[2]}`", f"`{found[3]}`", said
    if kind == "enum" and (found := re.match(r"(\w+) = \d+;", text)):
        return f"`{found[1]}`", said
    if found := re.match(r"((?:optional |repeated )?(?:map<.*?>|[\w.]+)) (\w+) = \d+;", text):
        return f"`{found[2]}`", f"`{found[1]}`", said
    return None


# -- command lines


def variantctl() -> str:
    """Every command of variantctl with its own options."""
    return table(("Command", "", "Options"), list(_commands(get_command(cli_app), "variantctl")))


# Commands are `Any` below: typer carries its own copy of click.


def _commands(command: Any, name: str) -> Iterator[tuple[str, ...]]:
    below = getattr(command, "commands", None)
    if below:
        for part, found in below.items():
            yield from _commands(found, f"{name} {part}")
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    shown = [p for p in options if _long(p) not in _EVERYWHERE]
    typed = " ".join([name, *(_typed(p) for p in arguments)])
    told = inspect.cleandoc(command.help or "").split("\n\n")[0].replace("\n", " ")
    details = "<br>".join(f"`{_long(p)}` {' '.join((p.help or '').split())}" for p in shown)
    yield f"`{typed}`", told, details


_EVERYWHERE = {"--json", "--server", "--ca", "--api-key-file", "--profile", "--help"}


def _typed(argument: Any) -> str:
    shown = (argument.metavar or argument.name.upper()) + ("…" if argument.nargs == -1 else "")
    return shown if argument.required or shown.startswith("[") else f"[{shown}]"


def _long(option: Any) -> str:
    return str(next((name for name in option.opts if name.startswith("--")), option.opts[0]))


def variantd() -> str:
    """Every command of variantd."""
    return _argparse(server_main._parser(), "variantd")


def variant_agent() -> str:
    """Every command of variant-agent."""
    return _argparse(agent_main._parser(), "variant-agent")


def _argparse(parser: argparse.ArgumentParser, program: str) -> str:
    return table(("Command", "", "Options"), list(_subcommands(parser, program)))


def _subcommands(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, ...]]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for part, found in action.choices.items():
            yield from _subcommands(found, f"{name} {part}")
    if below:
        return
    arguments = [a for a in parser._actions if not a.option_strings]
    options = [
        a
        for a in parser._actions
        if a.option_strings and a.help != argparse.SUPPRESS and not isinstance(a, argparse._HelpAction)
    ]
    typed = " ".join([name, *(_metavar(a) for a in arguments)])
    told = " ".join((parser.description or "").split("\n\n")[0].split())
    details = "<br>".join(f"`{a.option_strings[-1]}` {_told(a)}".rstrip() for a in options)
    yield f"`{typed}`", told, details


def _metavar(action: argparse.Action) -> str:
    if action.choices:
        return "|".join(map(str, action.choices))
    name = str(action.metavar or action.dest.upper())
    return f"{name}…" if action.nargs == "+" else name


def _told(action: argparse.Action) -> str:
    text = action.help or ""
    return " ".join((text % {"default": action.default} if "%(default)s" in text else text).split())


# -- faults


def fault_list() -> str:
    """Every fault with the tests that inject it."""
    tests = faults.injected()

    def shown(number: int) -> str:
        return "<br>".join(f"`{name.removeprefix('tests/')}`" for name in tests.get(number, ())) or "no test"

    return table(
        ("", "Fault", "What variantd must do", "Injected by"),
        [(str(number), fault, must, shown(number)) for number, (fault, must) in faults.FAULTS.items()],
    )


def fault_count() -> str:
    """How many faults a test injects."""
    tests = faults.injected()
    missing = [str(number) for number in faults.FAULTS if number not in tests]
    without = f" Without a test: {', '.join(missing)}." if missing else ""
    return (
        f"{len(faults.FAULTS) - len(missing)} of {len(faults.FAULTS)} faults are injected by a test.{without}"
    )


# -- doors


def door_meanings() -> str:
    """What can become of a field."""
    return table(("Here", ""), [(f"**{how}**", how.meaning) for how in How])


def door_calls(found: Facade) -> str:
    """Every call of a door."""

    def rows() -> Iterator[tuple[str, ...]]:
        for route in found.routes:
            status = f"{route.status}, or {route.already}" if route.already else str(route.status)
            yield (f"`{route.method} {route.path}`", status, f"`{route.scope}`", route.says)

    return table(("Call", "Status", "Scope", ""), rows())


def stamn_calls() -> str:
    """Every call of Stamn, which is one of ours."""
    rows = [
        (f"`{o.method} {o.path}`", str(o.status), f"`{o.scope}`", stamn.CALLS[o.rpc])
        for o in OPERATIONS
        if o.rpc in stamn.CALLS
    ]
    return table(("Call", "Status", "Scope", ""), rows)


def door_fields(found: Facade) -> str:
    """Every field of every resource of a door."""
    parts = []
    for name, shape in found.shapes.items():
        rows = []
        for path, field in shape.listed():
            native = f"`{field.native}`" if field.native and field.how in (How.OURS, How.SHOWN) else ""
            said = {"create": "only sent to create; ", "update": "only sent to change; "}.get(field.only, "")
            how = "" if field.inside or field.each else str(field.how)
            rows.append((f"`{path}`", how, native, said + field.says))
        parts.append(f"**{name}**\n\n" + table(("Field", "Here", "In our own API", ""), rows))
    return "\n\n".join(parts)


def _door_parts() -> dict[str, Callable[[], str]]:
    parts: dict[str, Callable[[], str]] = {"meanings": door_meanings}
    parts["Stamn calls"] = stamn_calls
    for found in DOORS:
        parts[f"{found.title} calls"] = partial(door_calls, found)
        parts[f"{found.title} fields"] = partial(door_fields, found)
    return parts


# -- pages


PARTS: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "codes.md": {
        "errors": error_codes,
        "reasons": error_reasons,
        "reason codes": reason_codes,
        "kept": kept_reasons,
        "findings": finding_codes,
    },
    "configuration.md": {
        "settings": server_settings,
        "agent": agent_settings,
        "participants": participant_settings,
    },
    "metrics.md": {"control plane": server_metrics, "agent": agent_metrics},
    "rest.md": {"operations": operations},
    "doors.md": _door_parts(),
    "cli.md": {"variantctl": variantctl, "variantd": variantd, "variant-agent": variant_agent},
    "../faults.md": {"count": fault_count, "faults": fault_list},
}
WHOLE: Mapping[str, Callable[[], str]] = {
    "grpc.md": grpc_page,
    "protocol.md": protocol_page,
    "experiment.schema.json": schema.text,
}


def fresh() -> dict[Path, str]:
    """What every page should hold."""
    pages = {PAGES / name: make() for name, make in WHOLE.items()}
    for name, parts in PARTS.items():
        page = (PAGES / name).resolve()
        text = page.read_text()
        for part, make in parts.items():
            start, end = f"<!-- generated: {part} -->\n", "\n<!-- end -->"
            before, mark, rest = text.partition(start)
            if not mark or end not in rest:
                sys.exit(f"{page.relative_to(ROOT)} has no part {start.strip()} … {end.strip()}")
            text = before + mark + make() + rest[rest.index(end) :]
        pages[page] = text
    return pages


def main() -> None:
    """The pages are fresh; with --check, exits with a sentence where one is not."""
    stale = [page for page, text in fresh().items() if not page.exists() or page.read_text() != text]
    if sys.argv[1:] == ["--check"]:
        if stale:
            names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
            sys.exit(f"{names}: not what the code says; run `make generate`")
        return
    for page, text in fresh().items():
        page.write_text(text)


if __name__ == "__main__":
    main()
