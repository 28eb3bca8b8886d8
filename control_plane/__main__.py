"""`variantd`: the control plane and its care."""

import argparse
import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import Error

if TYPE_CHECKING:
    # The base install has no control plane to import.
    from control_plane.admin import Administration
    from control_plane.config import Settings
    from control_plane.data import DataDir

GARBAGE = 20_000
"""So many values more than went make it worth while to look for those that only refer to each other."""


def main() -> None:
    """The console script: exit 0 done, 1 error, 2 usage; never a traceback."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where it takes ASCII only, `…` is no reason to fail
    try:
        sys.exit(_main())
    except Error as error:
        print(f"variantd: {error.message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"variantd: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)


def _main() -> int:
    arguments = _parser().parse_args()
    if find_spec("scipy") is None:  # the extra's heaviest part stands for all of it
        print(
            "variantd: the control plane is not installed here; pip install 'variantd[control-plane]'",
            file=sys.stderr,
        )
        return 1
    return int(arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    from shared import VERSION

    parser = argparse.ArgumentParser(
        prog="variantd",
        description="The control plane of variantd: controlled experiments on files.",
        epilog="First start: `variantd serve --data-dir d`, then `variantctl login --data-dir d`.",
    )
    parser.add_argument("--version", action="version", version=f"variantd {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_migrate(commands)
    _add_backup(commands)
    _add_restore(commands)
    _add_admin(commands)
    return parser


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = commands.add_parser(
        "serve",
        help="serve operators and agents",
        description="Serves until SIGTERM. On an empty data directory it makes the database, a certificate"
        " authority and an operator's key; nothing else has to be configured.",
    )
    serve.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")
    serve.add_argument("--data-dir", type=Path, metavar="DIR", help="default: variantd-data")
    serve.add_argument("--http", metavar="HOST:PORT", help="REST, health, metrics; default 127.0.0.1:7400")
    serve.add_argument("--operator", metavar="HOST:PORT", help="operator gRPC; default 127.0.0.1:7401")
    serve.add_argument("--agents", metavar="HOST:PORT", help="agent gRPC; default 127.0.0.1:7402")
    serve.add_argument("--advertise", metavar="NAME[,NAME…]", help="names this server is reached under")
    serve.add_argument("--database", metavar="URL", help=_DATABASE)
    serve.set_defaults(run=_serve)


def _add_migrate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    migrate = commands.add_parser(
        "migrate",
        help="bring the database to this version",
        description="Applies what is new in the schema and says what that was. `serve` does the same when it starts;"
        " before several servers are upgraded one by one over one database, this does it once.",
    )
    migrate.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")
    migrate.add_argument("--data-dir", type=Path, metavar="DIR", help="default: variantd-data")
    migrate.add_argument("--database", metavar="URL", help=_DATABASE)
    migrate.set_defaults(run=_migrate)


def _add_backup(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    backup = commands.add_parser(
        "backup",
        help="copy everything into one file",
        description="Writes a tar file with the database, the certificate authority and the operator's key;"
        " the server may keep running.",
    )
    backup.add_argument(
        "--data-dir", type=Path, metavar="DIR", required=True, help="what `serve` was started with"
    )
    backup.add_argument("file", type=Path, metavar="FILE", help="the tar file to write (0600; it holds keys)")
    backup.set_defaults(run=_backup)


def _add_restore(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    restore = commands.add_parser(
        "restore",
        help="make a data directory from a backup",
        description="Fills a new data directory from a backup, as a new incarnation signed by the same"
        " authority: agents adopt it by themselves.",
    )
    restore.add_argument(
        "--data-dir", type=Path, metavar="DIR", required=True, help="must be empty or absent"
    )
    restore.add_argument("file", type=Path, metavar="FILE", help="what `backup` wrote")
    restore.set_defaults(run=_restore)


def _add_admin(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    admin = commands.add_parser(
        "admin", help="projects and keys, on the data directory itself", description=_ADMIN
    )
    nouns = admin.add_subparsers(required=True, metavar="NOUN")
    _add_projects(nouns)
    _add_keys(nouns)
    _add_authorities(nouns)
    _admin_verb(
        nouns,
        "new-incarnation",
        "Says that the database was put back to an older state by other means than `restore`; stop the server first."
        " Hosts that know more than it does get offers again, and what it wants becomes newer than what they have.",
    ).set_defaults(run=_new_incarnation)


def _add_projects(nouns: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    projects = nouns.add_parser("project", help="what everything belongs to", description=_ADMIN)
    verbs = projects.add_subparsers(required=True, metavar="VERB")
    create = _admin_verb(verbs, "create", "Makes a project, empty and without a key.")
    create.add_argument("name", metavar="NAME", help="lower-case letters, digits and -")
    create.set_defaults(run=_create_project)
    _admin_verb(verbs, "list", "Shows every project: id, name, since when.").set_defaults(run=_list_projects)


def _add_keys(nouns: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    keys = nouns.add_parser("key", help="API keys of a project", description=_ADMIN)
    verbs = keys.add_subparsers(required=True, metavar="VERB")
    create = _admin_verb(
        verbs,
        "create",
        "Makes an API key and prints its secret, this once; the way back in when no key is left.",
    )
    create.add_argument("--project", metavar="NAME", default="default", help="default: default")
    create.add_argument("--name", required=True, metavar="TEXT", help="what it is for; in the audit log")
    create.add_argument(
        "--scope", action="append", required=True, metavar="SCOPE", help="what it may do; several times"
    )
    create.add_argument(
        "--label",
        type=_label,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="limits it to what carries this; several times",
    )
    create.add_argument("--expires-at", metavar="MOMENT", help="such as 2027-01-31T00:00:00Z; default: never")
    create.add_argument(
        "--out", type=Path, metavar="FILE", help="write the secret there (0600) and print it nowhere"
    )
    create.set_defaults(run=_create_key)
    found = _admin_verb(
        verbs,
        "list",
        "Shows a project's keys: id, name, first characters, scopes, whether valid, labels.",
    )
    found.add_argument("--project", metavar="NAME", default="default", help="default: default")
    found.set_defaults(run=_list_keys)
    revoke = _admin_verb(verbs, "revoke", "Takes an API key away; it lets nobody in from now on.")
    revoke.add_argument("--project", metavar="NAME", default="default", help="default: default")
    revoke.add_argument("key", metavar="KEY", help="its id, as `list` shows it")
    revoke.set_defaults(run=_revoke_key)


def _add_authorities(nouns: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    authority = nouns.add_parser(
        "ca", help="the certificate authority, and the one to follow", description=_CA
    )
    verbs = authority.add_subparsers(required=True, metavar="VERB")
    _admin_verb(
        verbs,
        "next",
        "Makes the next authority; from the server's next start on, agents renew under it and trust both.",
    ).set_defaults(run=_next_authority)
    _admin_verb(
        verbs, "status", "Shows the agents whose certificate is not of the newest authority yet."
    ).set_defaults(run=_show_authority)
    retire = _admin_verb(
        verbs,
        "retire",
        "Leaves the next authority as the only one, from the server's next start on; refuses while agents would be"
        " locked out.",
    )
    retire.add_argument("--force", action="store_true", help="also where agents have to be enrolled again")
    retire.set_defaults(run=_retire_authority)


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


_DATABASE = (
    "postgresql://…, instead of a file in the data directory; VARIANTD_DATABASE, if it holds a password"
)
_ADMIN = (
    "Needs no key, only the right to write the data directory; the server may keep running. Every change is in the"
    " project's audit log."
)


_CA = (
    "Replaces the certificate authority without enrolling a host again: `next`, restart the server, wait until `status`"
    " shows nobody, `retire`, restart the server."
)


def _admin_verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, told: str
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=told[0].lower() + told[1:].rstrip("."), description=told)
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", required=True, help="what `serve` was started with"
    )
    parser.add_argument("--database", metavar="URL", help=_DATABASE)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    from control_plane import app, config
    from shared import lifecycle, logs
    from shared.clock import SystemClock
    from shared.ids import new_id

    options = {
        "data_dir": arguments.data_dir,
        "http": arguments.http,
        "operator": arguments.operator,
        "agents": arguments.agents,
        "advertise": arguments.advertise,
        "database": arguments.database,
    }
    settings = config.load(arguments.config, options)
    logs.configure(level=settings.log_level, waits=False)

    async def serve() -> None:
        stop = asyncio.Event()
        lifecycle.on_signals(stop)
        await app.run(settings, SystemClock(), new_id, stop)

    # A batch of reports is thousands of values that refer to nothing again: looking through them as often as by
    # default, and through every module with them, took a tenth of what a report costs.
    gc.freeze()
    gc.set_threshold(GARBAGE)
    try:
        asyncio.run(serve())
    except* Error as group:
        raise group.exceptions[0] from None
    return 0


def _settings(arguments: argparse.Namespace) -> "Settings":
    """What the options and the environment say of the directory and its database."""
    from control_plane import config

    options = {"data_dir": arguments.data_dir, "database": getattr(arguments, "database", None)}
    return config.load(None, options)


def _directory(arguments: argparse.Namespace) -> "DataDir":
    from control_plane.data import DataDir

    settings = _settings(arguments)
    return DataDir(settings.data_dir, settings.ca_key_file)


def _migrate(arguments: argparse.Namespace) -> int:
    from control_plane import config, data

    options = {"data_dir": arguments.data_dir, "database": arguments.database}
    settings = config.load(arguments.config, options)
    found = data.DataDir(settings.data_dir)
    found.prepare()
    applied = data.migrate(found, settings.database)
    print("\n".join(applied) or "the schema is the newest")
    return 0


def _backup(arguments: argparse.Namespace) -> int:
    from control_plane import data

    source = _directory(arguments)
    data.backup(source, arguments.file)
    without = "" if source.database.exists() else "; the database is not in it: copy that with pg_dump"
    print(f"wrote {arguments.file}{without}")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    from control_plane import data
    from shared.ids import new_id

    target = data.DataDir(arguments.data_dir)
    asyncio.run(data.restore(target, arguments.file, new_id=new_id))
    if target.database.exists():
        print(f"restored {arguments.data_dir}; agents adopt it once `variantd serve` runs there")
    else:
        print(
            f"restored {arguments.data_dir}; its database is on a PostgreSQL server: put that back there, then run"
            " `variantd admin new-incarnation`, so that agents adopt it"
        )
    return 0


def _next_authority(arguments: argparse.Namespace) -> int:
    from shared.clock import SystemClock

    _directory(arguments).require().introduce_authority(SystemClock())
    print("there is a next authority; restart `variantd serve`, and log in again where its ca.pem is used")
    return 0


def _show_authority(arguments: argparse.Namespace) -> int:
    from control_plane import data
    from shared.clock import SystemClock

    held = _directory(arguments).require()
    for name in asyncio.run(data.left_behind(held, _settings(arguments).database, SystemClock())):
        print(name)
    return 0


def _retire_authority(arguments: argparse.Namespace) -> int:
    from control_plane import data
    from shared.clock import SystemClock

    held, clock = _directory(arguments).require(), SystemClock()
    left = asyncio.run(data.left_behind(held, _settings(arguments).database, clock))
    if left and not arguments.force:
        shown = ", ".join(left[:5]) + (" and others" if len(left) > 5 else "")
        print(
            f"variantd: {len(left)} agents are not certified by the next authority yet: {shown}",
            file=sys.stderr,
        )
        return 1
    held.retire_authority(clock)
    print(
        "the former authority is retired; restart `variantd serve`, and log in again where its ca.pem is used"
    )
    return 0


def _new_incarnation(arguments: argparse.Namespace) -> int:
    from control_plane import data
    from shared.clock import SystemClock
    from shared.ids import new_id, show_id

    url = _settings(arguments).database
    made = asyncio.run(data.new_incarnation(_directory(arguments), url, clock=SystemClock(), new_id=new_id))
    print(f"incarnation {show_id(made.id)} succeeds {show_id(made.predecessor)}; `variantd serve` begins it")
    return 0


def _create_project(arguments: argparse.Namespace) -> int:
    async def verb(admin: "Administration") -> None:
        project = await admin.create_project(arguments.name)
        print(f"made {project.name}; `variantd admin key create --project {project.name}` lets somebody in")

    return _administer(arguments, verb)


def _list_projects(arguments: argparse.Namespace) -> int:
    from control_plane import admin

    return _administer(arguments, admin.print_projects)


def _create_key(arguments: argparse.Namespace) -> int:
    from control_plane import admin

    values = {"name": arguments.name, "scopes": arguments.scope, "labels": dict(arguments.label)}
    if arguments.expires_at is not None:
        values["expiresAt"] = arguments.expires_at
    return _administer(
        arguments, lambda found: admin.print_new_key(found, arguments.project, values, out=arguments.out)
    )


def _list_keys(arguments: argparse.Namespace) -> int:
    from control_plane import admin

    return _administer(arguments, lambda found: admin.print_keys(found, arguments.project))


def _revoke_key(arguments: argparse.Namespace) -> int:
    async def verb(admin: "Administration") -> None:
        await admin.revoke_key(arguments.project, arguments.key)
        print(f"{arguments.key} lets nobody in any more")

    return _administer(arguments, verb)


def _administer(arguments: argparse.Namespace, verb: "Callable[[Administration], Awaitable[None]]") -> int:
    from control_plane import admin
    from shared.clock import SystemClock
    from shared.ids import new_id

    settings = _settings(arguments)
    admin.run(settings.data_dir, settings.database, SystemClock(), new_id, verb)
    return 0


if __name__ == "__main__":
    main()
