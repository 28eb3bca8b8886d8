"""Which unit of `deploy/systemd` fits a host's workspaces, and what goes with it.

Hides what the units say about users, places and what of the file system they let the agent see; a change
there is a change here. Starts and installs nothing.
"""

import os
import pwd
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.errors import Invalid

HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
"""What ProtectHome= of systemd covers."""

PRIVATE = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - named, not used
"""What PrivateTmp= replaces."""

PROGRAMS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where systemd looks for the programs of a service, hooks included."""

_UNNAMEABLE = frozenset("\"'\\:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit as it is started on this host: its name, whom it runs as, and the places it is told of.

    `sandboxed`: it writes nothing but what a drop-in names. `homes_hidden`: of the homes it sees nothing else.
    """

    name: str
    file: str
    user: str
    uid: int
    rights: str
    because: str
    config: Path
    state_dir: Path
    runtime_dir: Path
    drop_ins: Path
    sandboxed: bool = True
    homes_hidden: bool = False

    @property
    def is_user_unit(self) -> bool:
        """It belongs to a user's own systemd."""
        return not self.sandboxed

    def needs_drop_in(self, config: Path) -> bool:
        """With that agent.toml it is not enough by itself."""
        return self.sandboxed or config != self.config

    @property
    def socket(self) -> Path:
        """Where the local API of its agent listens."""
        return self.runtime_dir / "agent.sock"


def fitting(roots: Iterable[Path], *, user: str | None = None) -> Unit:
    """The unit that may write the workspaces at `roots` and little else; `user` decides instead, where given.

    Roots of several users: the agent of the host. Of one user: `variant-agent@USER`. Asked by somebody else
    than root: the user's own. Raises Invalid for a user that is unknown, or not the asker's to choose.
    """
    me = os.geteuid()
    if me != 0:
        if user is not None and user != user_name(me):
            raise Invalid(f"--user {user}: only root can tell what another user may write")
        return _own_unit(me)
    if user is not None:
        uid = _uid(user)
        return _host_unit("as told") if uid == 0 else _user_at_unit(uid, user, "as told")
    owners = {owner for root in roots if (owner := _owner(root)) is not None}
    if len(owners) != 1:
        return _host_unit("workspaces of several users" if owners else "no workspace is there yet")
    (uid,) = owners
    if uid == 0:
        return _host_unit("workspaces of root")
    name = user_name(uid)
    if name == str(uid):
        return _host_unit(f"workspaces of uid {uid}, which has no name here")
    return _user_at_unit(uid, name, f"workspaces of {name} alone")


def user_name(uid: int) -> str:
    """The name of a user, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@contextmanager
def acting_as(unit: Unit) -> Iterator[None]:
    """Files are opened and access is asked with the rights the unit's user has.

    Only root can change into another; anybody else is the unit's user already. Of the whole process: for a
    command line, not beside other threads.
    """
    if os.geteuid() != 0 or unit.uid == 0:
        yield
        return
    entry, gid, groups = pwd.getpwuid(unit.uid), os.getegid(), os.getgroups()
    os.setgroups(os.getgrouplist(entry.pw_name, entry.pw_gid))
    os.setresgid(entry.pw_gid, entry.pw_gid, gid)
    os.setresuid(unit.uid, unit.uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(gid, gid, gid)
        os.setgroups(groups)


def drop_in(unit: Unit, roots: Iterable[Path], *, config: Path) -> str:
    """The text of the drop-in that lets `unit` write `roots` and read `config`. A missing root does not stop the unit.

    Raises Invalid for a root that cannot be named in a unit.
    """
    head = f"# What {unit.name} may write, from {config}; `variant-agent check --units` printed it.\n"
    if not unit.needs_drop_in(config):
        return head + f"# Nothing is needed here: it may write whatever {unit.user} may.\n"
    lines = [head + "[Service]"]
    for root in sorted({root.resolve() for root in roots}) if unit.sandboxed else ():
        hidden = unit.homes_hidden and any(root.is_relative_to(home) for home in HOMES)
        lines.append(f"{'BindPaths' if hidden else 'ReadWritePaths'}={_quoted(root)}")
    if config != unit.config:
        start = f"variant-agent run --config {_quoted(config, prefix='')} --state-dir {unit.state_dir}"
        lines.append(f"ExecStart=\nExecStart={start}")
    return "\n".join(lines) + "\n"


def nameable(path: Path) -> bool:
    """The path can stand in a unit, and on a line of its own."""
    return str(path).isprintable() and _UNNAMEABLE.isdisjoint(str(path))


def _quoted(path: Path, *, prefix: str = "-") -> str:
    if not nameable(path):
        raise Invalid(
            f"{str(path)!r} cannot stand in a unit: it has a quote, a colon, a backslash or a control character"
        )
    text = prefix + str(path).replace("%", "%%")
    return f'"{text}"' if " " in text else text


def _owner(root: Path) -> int | None:
    try:
        return root.stat().st_uid
    except OSError:
        return None


def _uid(user: str) -> int:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise Invalid(f"--user {user}: there is no such user on this host") from None


def _host_unit(because: str) -> Unit:
    name = "variant-agent.service"
    return Unit(
        name=name,
        file=name,
        user="root",
        uid=0,
        rights="with CAP_CHOWN, CAP_FOWNER and CAP_DAC_OVERRIDE only",
        because=because,
        config=Path("/etc/variant-agent/agent.toml"),
        state_dir=Path("/var/lib/variant-agent"),
        runtime_dir=Path("/run/variant-agent"),
        drop_ins=Path(f"/etc/systemd/system/{name}.d"),
        homes_hidden=True,
    )


def _user_at_unit(uid: int, user: str, because: str) -> Unit:
    name = f"variant-agent@{user}.service"
    return Unit(
        name=name,
        file="variant-agent@.service",
        user=user,
        uid=uid,
        rights="without any capability",
        because=because,
        config=Path(f"/etc/variant-agent/{user}.toml"),
        state_dir=Path(f"/var/lib/variant-agent-{user}"),
        runtime_dir=Path(f"/run/variant-agent-{user}"),
        drop_ins=Path(f"/etc/systemd/system/{name}.d"),
    )


def _own_unit(uid: int) -> Unit:
    home = Path.home()
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    return Unit(
        name="variant-agent.service",
        file="user/variant-agent.service",
        user=user_name(uid),
        uid=uid,
        rights="under its own systemd (systemctl --user)",
        because="asked by somebody else than root",
        config=home / ".config/variant-agent/agent.toml",
        state_dir=home / ".local/state/variant-agent",
        runtime_dir=Path(runtime) / "variant-agent",
        drop_ins=home / ".config/systemd/user/variant-agent.service.d",
        sandboxed=False,
    )
