"""Who did what, and what it was before and after."""

import json
from typing import Annotated, Any

import typer

from control_plane.cli import show
from control_plane.cli.session import Session
from shared.moment import from_rfc3339
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]


def _moment(text: str) -> int:
    try:
        return from_rfc3339(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a moment such as 2026-01-31T12:00:00Z") from None


def audit(
    session: Session,
    *,
    operation: Annotated[
        str, typer.Option("--operation", help="Only this one, such as ExperimentService.StartExperiment.")
    ] = "",
    resource: Annotated[
        str, typer.Option("--resource", help="Only what was done to this; an experiment by id or key.")
    ] = "",
    actor: Annotated[str, typer.Option("--actor", help="Only by this one, such as api_key:operator.")] = "",
    key: Annotated[str, typer.Option("--key", help="Only with the API key of this id.")] = "",
    since: Annotated[
        int | None, typer.Option("--from", metavar="MOMENT", parser=_moment, help="From this moment on.")
    ] = None,
    until: Annotated[
        int | None, typer.Option("--to", metavar="MOMENT", parser=_moment, help="Before this moment.")
    ] = None,
    changes: Annotated[
        bool, typer.Option("--changes", help="Each field that changed, as it was and as it is.")
    ] = False,
    limit: Limit = 50,
) -> None:
    """Who changed what, newest first.

    What is shown of a change is what the API shows of the resource: contents as digests, secrets never, and of what is
    long its length and digest. --json has each entry's whole `before` and `after`.
    """
    request = pb.ListAuditLogRequest(operation=operation, resource_id=resource, actor=actor, api_key_id=key)
    if since is not None:
        request.from_at.FromMicroseconds(since)
    if until is not None:
        request.to_at.FromMicroseconds(until)
    found = list(session.pages(session.access.ListAuditLog, request, "entries", limit=limit))
    if session.json:
        show.print_json(session.out, show.page(found))
        return
    if changes:
        _print_changes(session, found)
        return
    show.print_table(
        session.out,
        ("at", "who", "operation", "resource", "changed"),
        ((*_entry(item), ", ".join(_changed(item))) for item in found),
        empty=_NOTHING,
    )


_NOTHING = "nothing like that was changed yet"


def _entry(item: Any) -> tuple[str | None, str, str, str]:
    return show.moment(item, "at"), item.actor, item.operation, item.resource_id


def _changed(item: Any) -> dict[str, tuple[Any, Any]]:
    """The fields that are other than before, as they were and as they are; what is not there has none."""
    shown = show.to_json(item)
    before, after = shown["before"] or {}, shown["after"] or {}
    names = dict.fromkeys((*before, *after))
    return {
        name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    }


def _print_changes(session: Session, found: list[Any]) -> None:
    for item in found:
        show.say(session.out, "  ".join(part for part in _entry(item) if part))
        for name, (was, now) in _changed(item).items():
            show.say(session.out, f"  {name}: {_short(was)} → {_short(now)}")
    if not found:
        show.say(session.out, _NOTHING)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


_SHOWN = 200
"""Characters of a value on a line; --json has all of it."""
