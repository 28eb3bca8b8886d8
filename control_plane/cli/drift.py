"""`variantctl diff`: how experiments differ from their manifests, and nothing is changed.

What differs is what `apply` would change. It is shown as the difference between two manifests: of what there is,
and of what the file says.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from control_plane.cli import show
from control_plane.cli.comparison import Plan, plan_of, variant_as_wanted, variant_of
from control_plane.cli.difference import print_difference
from control_plane.cli.manifest import load
from control_plane.cli.session import Exit, Session
from control_plane.cli.written import Described, Place, contents_of, document, dump, inline
from shared.model import digest, show_digest


def diff(
    session: Session,
    *,
    files: Annotated[
        list[str], typer.Option("--file", "-f", help="A manifest; - is standard input. May be repeated.")
    ],
) -> None:
    """Show how experiments differ from their manifests; changes nothing.

    What `apply` would change is what differs: exit code 3 where anything does, 0 where nothing does. With a key
    that may not read contents, these are compared and shown by digest.
    """
    plans = [(file, plan_of(session, manifest)) for file, manifest in [(file, load(file)) for file in files]]
    differing = [(file, plan) for file, plan in plans if plan.action != "none"]
    if session.json:
        manifests = [_to_json(file, plan) for file, plan in plans]
        show.print_json(session.out, {"differs": bool(differing), "manifests": manifests})
    else:
        for file, plan in differing:
            _show(session, file, plan)
    if differing:
        raise typer.Exit(Exit.NOT_CONVERGED)


def _to_json(file: str, plan: Plan) -> dict[str, Any]:
    return {
        "file": file,
        "key": plan.manifest.key,
        "experimentId": plan.present.id if plan.present else None,
        "changes": plan.to_json(),
    }


def _show(session: Session, file: str, plan: Plan) -> None:
    key = plan.manifest.key
    place = _place(plan)
    after: list[Described] = [
        (pair.present.key if pair.present else pair.wanted.key, variant_as_wanted(pair.wanted))
        for pair in plan.pairs
        if pair.wanted
    ]
    wanted = dump(document(key, plan.after, after, place))
    if plan.present is None:
        show.say(session.err, f"variantctl: there is no experiment {key!r} yet")
        print_difference(session.out, "", wanted, ("/dev/null", file))
        return
    before: list[Described] = [
        (pair.present.key, variant_of(pair.present)) for pair in plan.pairs if pair.present
    ]
    present = dump(document(key, plan.before, before, place))
    print_difference(session.out, present, wanted, (f"{key} (on the server)", file))


def _place(plan: Plan) -> Place:
    """Contents as text where both sides' are known and all text, one by one; by digest otherwise."""
    bodies: Mapping[str, bytes] = _contents(plan)
    if plan.present is not None:
        there = contents_of(plan.present)
        named = {file.digest for item in plan.present.variants for file in item.files}
        named |= {level.digest for factor in plan.present.factors for level in factor.levels}
        bodies = {**bodies, **there} if named <= there.keys() else {}

    def place(_: object, name: str) -> dict[str, Any]:
        shown = inline(bodies[name]) if name in bodies else {}
        return shown if "content" in shown else {"digest": name}

    return place


def _contents(plan: Plan) -> dict[str, bytes]:
    """What the manifest says, by digest."""
    bodies = [body for item in plan.manifest.variants for body in item.files.values()]
    bodies += [level.body for factor in plan.manifest.factors for level in factor.levels]
    return {name: body for body in bodies if (name := show_digest(digest(body)))}
