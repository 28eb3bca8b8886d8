"""`variantd`: the control plane and its care."""

import argparse
import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path

from shared.errors import Error


def main() -> None:
    """The console script: exit 0 done, 1 error, 2 usage; never a traceback."""
    try:
        sys.exit(_main())
    except Error as error:
        print(f"variantd: {error.message}", file=sys.stderr)
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
    serve.set_defaults(run=_serve)

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
    }
    settings = config.load(arguments.config, options)
    logs.configure(level=settings.log_level)

    async def serve() -> None:
        stop = asyncio.Event()
        lifecycle.on_signals(stop)
        await app.run(settings, SystemClock(), new_id, stop)

    try:
        asyncio.run(serve())
    except* Error as group:
        raise group.exceptions[0] from None
    return 0


def _backup(arguments: argparse.Namespace) -> int:
    from control_plane import data

    data.backup(data.DataDir(arguments.data_dir), arguments.file)
    print(f"wrote {arguments.file}")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    from control_plane import data
    from shared.ids import new_id

    asyncio.run(data.restore(data.DataDir(arguments.data_dir), arguments.file, new_id=new_id))
    print(f"restored {arguments.data_dir}; agents adopt it once `variantd serve` runs there")
    return 0


if __name__ == "__main__":
    main()
