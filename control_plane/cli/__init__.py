"""variantctl: everything an operator or a pipeline does, over the operator protocol.

This module puts the commands together; each module beside it is one kind of them.
"""

import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer

from control_plane.cli import access, apply, deploying, experiments, fleet, results
from control_plane.cli.session import Failure, Session, command, globals_options, tell

app = typer.Typer(
    name="variantctl",
    help="Controlled experiments on files: apply, start, deploy, and see what the numbers say.",
    epilog="Exit codes: 0 ok, 1 error, 2 usage, 3 hosts did not converge, 4 conflict, 5 timed out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _sub(name: str, text: str) -> typer.Typer:
    made = typer.Typer(help=text, no_args_is_help=True)
    app.add_typer(made, name=name)
    return made


def _version(wanted: bool) -> None:  # noqa: FBT001  # typer's callbacks take the value
    if wanted:
        print(f"variantctl {version('variantd')}")
        raise typer.Exit


@globals_options(app)
def _root(
    session: Session,
    *,
    version: Annotated[  # noqa: A002
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...
