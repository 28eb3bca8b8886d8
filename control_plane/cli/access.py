"""Logging in, and API keys."""

import getpass
import json
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli import show
from control_plane.cli.connection import (
    DEFAULT_PROFILE,
    Exit,
    Failure,
    Peer,
    Unreachable,
    check_profile_name,
    check_server,
    profiles_path,
    read_file,
    read_key,
    save_profile,
)
from control_plane.cli.fleet import labels_of
from control_plane.cli.session import Session, Timeout, duration, request_id, wait_until
from shared.clock import SystemClock
from shared.moment import SECOND
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]


def login(
    session: Session,
    *,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="DIR", help="Of a control plane on this machine, as its user."),
    ] = None,
    timeout: Timeout = 15.0,
) -> None:
    """Remember a control plane, its CA and a key, so that other commands need no flags.

    With --data-dir a key of your own is made by the control plane that serves from there; one that is just
    starting is waited for. From elsewhere, give --server, --ca and --api-key-file. --profile NAME remembers
    several.
    """
    wanted = session.wanted
    name = check_profile_name(wanted.profile or DEFAULT_PROFILE)
    path = profiles_path(os.environ)
    if data_dir is not None:
        if wanted.server or wanted.ca or wanted.api_key_file:
            raise Failure("--data-dir says server, CA and key already", exit_code=Exit.USAGE)
        found = _personal(session, data_dir, timeout)
    elif wanted.server and wanted.ca and wanted.api_key_file:
        found = Peer(
            server=check_server(wanted.server),
            ca=read_file(wanted.ca, "the CA certificate"),
            api_key=read_key(wanted.api_key_file),
        )
        _try(session, found)
    else:
        raise Failure("give --data-dir DIR, or --server, --ca and --api-key-file", exit_code=Exit.USAGE)
    path = profiles_path(os.environ)
    save_profile(path, name, found)
    if session.json:
        show.print_json(session.out, {"profile": name, "server": found.server, "file": str(path)})
    else:
        show.say(session.out, f"logged in to {found.server}; profile {name} is in {path}")


def _personal(session: Session, data_dir: Path, timeout: float) -> Peer:
    """The control plane that serves from a directory, with a fresh key in the caller's name."""
    name = f"{_user()}@{socket.gethostname()}"[:128]
    made: list[Peer] = []
    last: list[Failure] = []

    def done() -> bool:
        session.forget()
        try:
            session.peer = there = _local(data_dir)
            key = session.call(
                session.access.CreateApiKey, pb.CreateApiKeyRequest(name=name, request_id=once)
            )
        except Unreachable as failure:
            last[:] = [failure]
            return False
        made.append(Peer(server=there.server, ca=there.ca, api_key=key.secret))
        return True

    once = request_id()
    if not wait_until(session, done, seconds=timeout, doing=f"waiting for the control plane in {data_dir}"):
        raise last[0]
    return made[0]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this uid; which of the two depends on the Python
        return f"uid-{os.getuid()}"


def _local(data_dir: Path) -> Peer:
    """The control plane that serves from a directory, with its operator's key.

    Raises Unreachable where none has said yet where it is.
    """
    addresses = data_dir / "addresses.json"
    try:
        server = json.loads(addresses.read_bytes())["operator"]
    except FileNotFoundError:
        raise Unreachable(f"no control plane serves from {data_dir}: there is no {addresses}") from None
    except OSError as error:
        raise Failure(f"cannot read {addresses}: {error.strerror}; run this as its user") from None
    except (ValueError, KeyError, TypeError):
        raise Failure(f"{addresses} does not say where the control plane is") from None
    host, _, port = str(server).rpartition(":")
    here = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104  # where it listens, seen from here
    return Peer(
        server=check_server(f"{here}:{port}"),
        ca=read_file(data_dir / "ca" / "ca.pem", "the CA certificate"),
        api_key=read_key(str(data_dir / "operator.api-key")),
    )


def _try(session: Session, found: Peer) -> None:
    """Raises Failure unless the control plane knows the key; what it may do does not matter here."""
    session.peer = found
    try:
        session.call(session.experiments.ListExperiments, pb.ListExperimentsRequest(page_size=1))
    except Failure as failure:
        if failure.reason != "MISSING_SCOPE":
            raise


KeyId = Annotated[str, typer.Argument(metavar="KEY", help="Its id, as `api-keys list` shows it.")]


def list_keys(session: Session, *, limit: Limit = 100) -> None:
    """API keys, newest first, without their secrets."""
    found = list(session.pages(session.access.ListApiKeys, pb.ListApiKeysRequest(), "api_keys", limit=limit))
    if session.json:
        show.print_json(session.out, show.page(found))
        return
    show.print_table(
        session.out,
        ("key", "name", "begins", "may", "limited to", "expires", "revoked", "last used"),
        (
            (
                item.id,
                item.name,
                item.prefix,
                " ".join(item.scopes),
                show.labels(item.labels),
                *(show.moment(item, name) for name in ("expires_at", "revoked_at", "last_used_at")),
            )
            for item in found
        ),
        empty="there is no API key",
    )


def create_key(
    session: Session,
    *,
    name: Annotated[str, typer.Option("--name", help="What it is for; in the audit log.")],
    scopes: Annotated[list[str], typer.Option("--scope", help="What it may do; several times.")],
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", "-l", metavar="NAME=VALUE", help="Limits it to what carries this; several times."
        ),
    ] = None,
    expires_in: Annotated[
        float | None,
        typer.Option("--expires-in", metavar="DURATION", parser=duration, help="Such as 12h or 90d."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the key alone.")] = False,
) -> None:
    """Make an API key; it is shown this once."""
    request = pb.CreateApiKeyRequest(
        name=name, scopes=scopes, labels=labels_of(label), request_id=request_id()
    )
    if expires_in is not None:
        request.expires_at.FromMicroseconds(SystemClock().now() + round(expires_in * SECOND))
    made = session.call(session.access.CreateApiKey, request)
    if quiet and not session.json:
        show.say(session.out, made.secret)
        return
    session.show(made, f"{made.secret}\nis the key of {made.name} ({made.id}); it is not shown again")


def rename_key(
    session: Session, key: KeyId, *, name: Annotated[str, typer.Option("--name", help="Its new name.")]
) -> None:
    """Give an API key another name; what it may do stays."""
    request = pb.UpdateApiKeyRequest(id=key, name=name, request_id=request_id())
    session.show(session.call(session.access.UpdateApiKey, request), f"{key} is {name}")


def revoke_key(session: Session, key: KeyId) -> None:
    """Take an API key away; it lets nobody in from now on."""
    session.call(session.access.RevokeApiKey, pb.RevokeApiKeyRequest(id=key, request_id=request_id()))
    revoked = session.call(session.access.GetApiKey, pb.GetApiKeyRequest(id=key))
    session.show(revoked, f"{revoked.name} ({key}) lets nobody in any more")
