"""A project's settings: what its experiments may touch and hold."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import ParseDict, ParseError

from control_plane.cli import show
from control_plane.cli.connection import read_file
from control_plane.cli.editor import edited
from control_plane.cli.experiments import Output
from control_plane.cli.session import Failure, Session, request_id
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

_FIELDS = {"targetAllowList": "target_allow_list", "defaults": "defaults", "validators": "validators"}
_UNCHANGED = "the settings are as they were"


def get(
    session: Session,
    *,
    output: Annotated[Output | None, typer.Option("--output", "-o", help="The whole resource.")] = None,
) -> None:
    """Which files experiments may be on, what contents must be, and what designs say by default."""
    found = session.call(session.settings.GetSettings, pb.GetSettingsRequest())
    if session.json or output is Output.JSON:
        show.print_json(session.out, show.to_json(found))
    elif output is Output.YAML:
        print(_yaml(_document(found)), end="", file=session.out.file)
    else:
        _describe(session, found)


def update(
    session: Session,
    *,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="YAML or JSON as `settings get -o yaml` shows it."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow", metavar="GLOB", help="Files that experiments may be on, instead of before; several."
        ),
    ] = None,
    allow_all: Annotated[bool, typer.Option("--allow-all", help="They may be on every file.")] = False,
    settle_seconds: Annotated[
        int | None, typer.Option("--settle-seconds", help="New designs' exposureCriteria.settleSeconds.")
    ] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="New designs' analysis.alpha.")] = None,
) -> None:
    """Change the settings; what is not said stays. What runs goes on as it is."""
    if allow and allow_all:
        raise typer.BadParameter("say either --allow or --allow-all")
    values = _parsed(read_file(file, "the settings"), str(file)) if file else {}
    if allow or allow_all:
        values["targetAllowList"] = allow or []
    if settle_seconds is not None or alpha is not None:
        present = session.call(session.settings.GetSettings, pb.GetSettingsRequest())
        said = {"settleSeconds": settle_seconds, "alpha": alpha}
        defaults = values.get("defaults", _document(present)["defaults"]) or {}
        if not isinstance(defaults, dict):
            raise Failure(f"defaults of {file} are no mapping; {_UNCHANGED}")
        values["defaults"] = defaults | {name: value for name, value in said.items() if value is not None}
    if not values:
        raise typer.BadParameter(
            "say what to change: --file, --allow, --allow-all, --settle-seconds or --alpha"
        )
    _send(session, values)


def edit(session: Session) -> None:
    """Change the settings in $VISUAL or $EDITOR."""
    before = _document(session.call(session.settings.GetSettings, pb.GetSettingsRequest()))
    text = edited(_yaml(before).encode(), "settings.yaml", undone=_UNCHANGED)
    after = _parsed(text, "the edited copy")
    # What was taken out of the copy is none again.
    wanted = {name: after.get(name) for name in _FIELDS} | after
    changed = {
        name: value for name, value in wanted.items() if value != before.get(name) and (value or before[name])
    }
    if not changed:
        raise Failure(f"nothing was changed; {_UNCHANGED}")
    _send(session, changed)


def _send(session: Session, values: dict[str, Any]) -> None:
    request = pb.UpdateSettingsRequest(request_id=request_id())
    try:
        ParseDict({name: value for name, value in values.items() if value is not None}, request)
    except ParseError as error:
        raise Failure(f"these are no settings: {error}; {_UNCHANGED}") from None
    request.update_mask.paths.extend(_FIELDS[name] for name in values)
    answer = session.call(session.settings.UpdateSettings, request)
    if session.json:
        show.print_json(session.out, show.to_json(answer))
    else:
        _describe(session, answer)


def _document(found: pb.Settings) -> dict[str, Any]:
    """What can be changed, without what is not said."""
    shown = show.to_json(found)
    return {
        "targetAllowList": shown["targetAllowList"],
        "defaults": {name: value for name, value in shown["defaults"].items() if value is not None},
        "validators": [
            {name: value for name, value in item.items() if value not in (None, [])}
            for item in shown["validators"]
        ],
    }


def _yaml(values: dict[str, Any]) -> str:
    import yaml  # only here: it is not free to import

    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _parsed(text: bytes, name: str) -> dict[str, Any]:
    """The settings in a text. Raises Failure where it holds something else."""
    import yaml

    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Failure(f"{name} is not YAML: {error}; {_UNCHANGED}") from None
    if not isinstance(values, dict) or not set(values) <= set(_FIELDS):
        raise Failure(f"{name} holds something else than {', '.join(_FIELDS)}; {_UNCHANGED}")
    return values


def _describe(session: Session, found: pb.Settings) -> None:
    shown = _document(found)
    changed = f"{show.moment(found, 'updated_at')} by {found.updated_by}" if found.version else None
    facts = {
        "files": ", ".join(found.target_allow_list) or "every file",
        "defaults": ", ".join(f"{name} {value:g}" for name, value in shown["defaults"].items()) or None,
        "changed": changed,
    }
    show.print_facts(session.out, {name: value for name, value in facts.items() if value})
    show.print_table(
        session.out,
        ("contents of", "must"),
        (
            (item["glob"], json.dumps({key: value for key, value in item.items() if key != "glob"}))
            for item in shown["validators"]
        ),
        empty="contents may be anything",
    )
