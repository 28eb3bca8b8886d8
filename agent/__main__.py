"""`variant-agent`: the daemon of a host and what goes with it.

Hides the command line. Imports what a command needs when it runs, so that a report from a shell script
costs no more than a socket. Exit codes: 0 ok, 1 error, 2 usage. Never a traceback.
"""

import argparse
import asyncio
import http.client
import json
import signal
import socket
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from socket import gethostname
from typing import Any

from agent import simulate_command
from shared import VERSION
from shared.errors import Error, Fault, Invalid, Unavailable

STATE_DIR = Path("/var/lib/variant-agent")
CONFIG = Path("/etc/variant-agent/agent.toml")
SOCKET = Path("/run/variant-agent/agent.sock")
LEAVE_SECONDS = 600.0  # every reload hook may take half a minute

DESCRIPTION = """\
Writes the variants of experiments into target files on this host, keeps watch over them, and takes reports
of what happened. The control plane chooses among the targets that agent.toml allows; it can do nothing else.
"""

EPILOG = """\
to begin:
  variant-agent init PATH…                             writes agent.toml for the workspaces, and says what next
  variantctl agents token > token                      on a machine of the operator
  variant-agent enroll --token-file token              here, once
  variant-agent run                                    here, for ever
  variant-agent report impression --participant bot-1  from an application or a script

environment:
  VARIANT_AGENT_RECONNECT_JITTER   after a lost session, the first attempt to reconnect is made at a random
                                   moment within so many seconds (default 10); within more where the fleet
                                   is so large that its control plane asks for it
"""


def main() -> None:
    """Runs the command line of this process and ends it."""
    # structlog colours tracebacks by rich wherever that is installed: 4 MiB, and a daemon never prints one so.
    # Once the daemon itself needs rich, this has to go.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where it takes ASCII only, `…` is no reason to fail
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of one command line; what went wrong is told on standard error."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except Error as error:
        print(f"variant-agent: {_told(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        print(f"variant-agent: something is wrong with this program: {error!r}", file=sys.stderr)
        return 1


def _told(error: Error) -> str:
    if not error.faults:
        return error.message
    return error.message.partition(":")[0] + "".join(_told_fault(fault) for fault in error.faults)


def _told_fault(fault: Fault) -> str:
    return f"\n  {fault.field} {fault.message}" + (f" ({fault.remedy})" if fault.remedy else "")


# -- commands ------------------------------------------------------------------------------------------


def _init(options: argparse.Namespace) -> int:
    from agent import setup

    printed = options.config == Path("-")
    made = setup.plan(options.paths, config=None if printed else options.config)
    if printed:
        print(made.text, end="")
    else:
        setup.write(made, force=options.force)
    about = sys.stderr if printed else sys.stdout
    if not printed:
        print(f"wrote {made.config}: {', '.join(made.participants)}", file=about)
    for root in made.left_out:
        print(f"left out {root}: none of the files is there", file=about)
    print("\n".join(made.next_steps()), file=about)
    return 0


def _check(options: argparse.Namespace) -> int:
    from agent import inspection

    report, config = inspection.inspect(options.config, user=options.user)
    if options.units:
        for line in inspection.told(report.problems):
            print(line, file=sys.stderr)
        if config is not None:
            print(inspection.drop_in(report, config), end="")
    elif options.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        print("\n".join(report.lines()))
    return 0 if report.ok else 1


def _enroll(options: argparse.Namespace) -> int:
    from agent import identity
    from agent.enrollment import enroll

    token = _token(options.token_file)
    with identity.hold(options.state_dir):
        known = identity.load(options.state_dir)
        ours = asyncio.run(enroll(token, options.state_dir, name=options.name))
    again = "again, as the same agent" if known and known.uid == ours.uid else f"as {options.name}"
    print(f"enrolled {again}: agent {ours.uid}, control plane {', '.join(ours.addresses)}")
    return 0


def _token(source: str) -> str:
    try:
        token = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Invalid(f"--token-file {source}: {reason}") from None
    return token.strip()


def _run(options: argparse.Namespace) -> int:
    from agent import app
    from agent.config import load
    from shared import logs
    from shared.lifecycle import on_signals

    config = load(options.config)
    logs.configure(level=config.log_level, waits=False)

    async def serve() -> None:
        stop, hangup = asyncio.Event(), asyncio.Event()
        on_signals(stop)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
        await app.run(config, options.state_dir, stop, read=lambda: load(options.config), hangup=hangup)

    try:
        asyncio.run(serve())
    except Error:
        raise
    except Exception as error:
        logs.get("agent").error("agent.failed", exc_info=error)
        raise Error("the agent failed; its log says how") from None
    return 0


def _status(options: argparse.Namespace) -> int:
    _, status = _ask(_socket(options), "GET", "/status")
    if options.json:
        print(json.dumps(status, indent=2))
    else:
        print("\n".join(_status_lines(status)))
    return 0


def _status_lines(status: dict[str, Any]) -> list[str]:
    identity, session, spool = status["identity"], status["session"], status["spool"]
    certificate = identity["certificate"]
    lines = [
        f"{status['name']}  variant-agent {status['version']}, since {status['startedAt']}",
        "ready         " + ("yes" if status["ready"] else "no: " + ", ".join(status["unready"])),
        f"identity      {identity['agentId'] or 'never enrolled'}"
        + (f", certificate ends in {certificate['daysLeft']} days" if certificate else ""),
        f"control plane {session['state']} since {session['sinceAt']}"
        + (f", {session['address']}" if session["address"] else "")
        + (f"; last error: {session['lastError']}" if session["lastError"] else ""),
        f"spool         {spool['depth']} records waiting, {spool['bytes']} bytes"
        + (f", oldest {spool['oldestAt']}" if spool["oldestAt"] else "")
        + (f", lost {sum(spool['lost'].values())}" if spool["lost"] else ""),
    ]
    for participant in status["participants"]:
        lines.append(
            f"participant   {participant['id']}  {participant['root']}  {' '.join(participant['targets'])}"
        )
    for slot in status["slots"]:
        if slot["closed"]:
            continue  # there is one for every experiment that ever was here
        reason = slot["reason"]
        why = f": {reason['code']}: {reason['message']}; {reason['remedy']}" if reason else ""
        for file in slot["files"]:
            digest = (file["runningDigest"] or "no file")[:19]
            lines.append(
                f"file          {slot['participantId']}:{file['path']}  {file['state']}  {digest}"
                f"  revision {slot['revision']} {slot['result']}{why}"
            )
    for condition in status["conditions"]:
        lines.append(f"{condition['severity']:<13} {condition['code']}: {condition['message']}")
    for finding in status["findings"]:
        said = "".join(c if c.isprintable() else "�" for c in f"{finding['code']}: {finding['message']}")
        lines.append(f"control plane {said}")
    return lines


def _report(options: argparse.Namespace) -> int:
    body: dict[str, Any] = {
        "participantId": options.participant,
        "target": options.target,
        "subject": options.subject,
        "value": options.value,
        "digest": options.digest,
    }
    if options.kind == "conversion":
        body["eventName"] = options.event
    body = {key: value for key, value in body.items() if value is not None}
    route = "loaded" if options.kind == "loaded" else f"{options.kind}s"
    _, answer = _ask(_socket(options), "POST", f"/v1/{route}", body)
    print(json.dumps(answer) if options.json else answer["id"])
    return 0


def _hold(options: argparse.Namespace) -> int:
    held = options.state == "on"
    _, answer = _ask(_socket(options), "POST", "/v1/admin/hold", {"held": held})
    waiting = answer["waitingOffers"]
    if held:
        print(
            f"on hold since {answer['sinceAt']}; {waiting} offers wait, `variant-agent hold off` applies them"
        )
    else:
        print(f"not on hold; {waiting} offers are applied now")
    return 0


def _reload(options: argparse.Namespace) -> int:
    _, answer = _ask(_socket(options), "POST", "/v1/admin/reload", {})
    changes = [f"{what} {', '.join(names)}" for what, names in answer.items() if names]
    print("participants " + ("; ".join(changes) if changes else "as they were"))
    return 0


def _simulate(options: argparse.Namespace) -> int:
    if options.worker:
        from agent.simulate import serve_as_worker

        return serve_as_worker()
    if options.token_file is None:
        raise Invalid("--token-file: name the file with the token that every simulated host enrolls with")
    return simulate_command.run(options, _token(options.token_file))


def _adopt(options: argparse.Namespace) -> int:
    _, answer = _ask(_socket(options), "POST", "/v1/admin/adopt", {"incarnation": options.incarnation})
    proposal = answer["proposal"]
    if answer["adopted"]:
        print(f"follows {proposal['incarnation']} from now on")
        return 0
    if proposal is None:
        print("nothing to adopt: the control plane proposes no other incarnation of its database")
        return 0
    print(f"incarnation   {proposal['incarnation']}")
    print(f"instead of    {proposal['follows']}")
    print(f"standing      {proposal['standing']}: {proposal['meaning']}")
    print(f"`variant-agent adopt {proposal['incarnation']}` follows it: offers are taken, reports go up")
    return 0


def _leave(options: argparse.Namespace) -> int:
    _, answer = _ask(
        _socket(options), "POST", "/v1/admin/leave", {"restore": options.restore}, timeout=LEAVE_SECONDS
    )
    lines = [f"  {file['participantId']}:{file['path']}  {file['state']}" for file in answer["remaining"]]
    if not answer["leaves"]:
        listed = "".join(f"\n  {fault}" for fault in answer["faults"])
        raise Error(f"the agent stays, on hold; these could not be restored:{listed}")
    print("\n".join([f"the agent stops, on hold; files that stay as they are: {len(lines)}", *lines]))
    print("under a supervisor, stop it there too; `variant-agent hold off` lets it write again")
    return 0


# -- the local API, as a client ------------------------------------------------------------------------


class _Connection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: Path, *, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _socket(options: argparse.Namespace) -> Path:
    """Where the agent's socket is: as told, as the state directory says, or the default place."""
    if getattr(options, "socket", None):
        return Path(options.socket)
    state_dir: Path = options.state_dir or STATE_DIR
    try:
        return Path(json.loads((state_dir / "addresses.json").read_text())["socket"])
    except (OSError, ValueError, KeyError) as error:
        if options.state_dir and not isinstance(error, PermissionError):
            raise Unavailable(
                f"no variant-agent is running on {state_dir}; `variant-agent run` starts one"
            ) from None
        return SOCKET


def _ask(
    path: Path, method: str, target: str, body: dict[str, Any] | None = None, *, timeout: float = 30.0
) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer. Raises Error with the agent's own words where it refuses."""
    connection = _Connection(path, timeout=timeout)
    try:
        content = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"} if content else {}
        connection.request(method, target, body=content, headers=headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unavailable(
            f"no variant-agent answers on {path} ({reason}); `variant-agent run` starts one"
        ) from None
    finally:
        connection.close()
    if response.status >= 400:
        faults = [Fault(**{k: str(v) for k, v in fault.items()}) for fault in answer.get("errors", [])]
        raise Error(str(answer.get("detail", response.reason)), faults=faults)
    return response.status, answer


# -- the command line ----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="variant-agent",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"variant-agent {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _setup_commands(commands)
    _admin_commands(commands)

    enroll = _command(commands, "enroll", _enroll, "get an identity from the control plane, with a token")
    enroll.add_argument(
        "--token-file",
        required=True,
        metavar="FILE",
        help="file that holds the token; - reads standard input",
    )
    _state_dir(enroll, default=STATE_DIR)
    enroll.add_argument(
        "--name", default=gethostname(), help="name of this host there (default: the host name)"
    )

    run_ = _command(commands, "run", _run, "serve this host until stopped")
    run_.add_argument("--config", type=Path, default=CONFIG, metavar="FILE", help="default: %(default)s")
    _state_dir(run_, default=STATE_DIR)

    status = _command(commands, "status", _status, "what the running agent does and what is wrong")
    _state_dir(status, default=None)
    status.add_argument("--json", action="store_true", help="everything, as JSON")

    report = _command(commands, "report", _report, "tell the running agent what happened")
    report.add_argument(
        "kind",
        choices=("impression", "conversion", "loaded"),
        help="met the content, did something, or works with this content from now on",
    )
    report.add_argument("--participant", metavar="P", help="default: the only one that is yours")
    report.add_argument("--event", metavar="NAME", help="name of the conversion")
    report.add_argument("--value", type=float, metavar="X", help="a number that belongs to it")
    report.add_argument("--subject", metavar="S", help="user or session within the participant")
    report.add_argument("--target", metavar="T", help="the target file it is about; loaded needs it")
    report.add_argument(
        "--digest", metavar="D", help="sha256:… of the content that was in use; loaded needs it"
    )
    where = report.add_mutually_exclusive_group()
    where.add_argument("--socket", type=Path, metavar="PATH", help=f"the agent's socket (default: {SOCKET})")
    _state_dir(where, default=None)
    report.add_argument("--json", action="store_true", help="print the answer as JSON")

    simulate_command.add(
        _command(
            commands,
            "simulate",
            _simulate,
            "be a whole fleet, to size a control plane",
            "Real sessions, certificates, files and spools of so many hosts, from a few processes, until interrupted.",
        )
    )
    return parser


def _setup_commands(commands: Any) -> None:
    init = _command(
        commands,
        "init",
        _init,
        "write an agent.toml for workspaces, and say what comes next",
        "For workspaces in which SOUL.md, IDENTITY.md, AGENTS.md, CLAUDE.md or config/*.md is; names the"
        " systemd unit that fits.",
    )
    init.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a workspace, such as bots/*")
    init.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="where to write it (default: where the unit looks); - prints",
    )
    init.add_argument("--force", action="store_true", help="replace the file that is there")

    check = _command(
        commands,
        "check",
        _check,
        "say what an agent.toml allows on this host, and what is wrong",
        "As which user the agent may and may not write; exit code 1 with an error.",
    )
    check.add_argument("--config", type=Path, metavar="FILE", help=f"default: {CONFIG}, or your own")
    check.add_argument("--user", metavar="USER", help="whom the agent runs as (default: what fits the roots)")
    form = check.add_mutually_exclusive_group()
    form.add_argument("--units", action="store_true", help="print the drop-in for the systemd unit")
    form.add_argument("--json", action="store_true", help="everything, as JSON")


def _admin_commands(commands: Any) -> None:
    hold = _command(
        commands,
        "hold",
        _hold,
        "let nothing be written on this host, or again",
        "While it is on, offers are refused HELD and wait, drift is seen and not repaired, a restart changes"
        " nothing, and the condition is HOST_HELD; what is being applied at this moment is finished. Off ends"
        " that and applies what waits. For root or the agent's user.",
    )
    hold.add_argument("state", choices=("on", "off"), help="it stays so across restarts")
    _state_dir(hold, default=None)

    reload = _command(
        commands,
        "reload",
        _reload,
        "take up a changed agent.toml; one with a fault changes nothing",
        "As SIGHUP does: participants come, go (their files and journal stay as they are) and change their"
        " rules. For root or the agent's user.",
    )
    _state_dir(reload, default=None)
    adopt = _command(
        commands,
        "adopt",
        _adopt,
        "follow a control plane whose database was restored, by hand",
        "Without INCARNATION it shows what the control plane proposes and how that is proven; with it, that one is"
        " followed, durably. What is not signed by the authority is never proposed. For root or the agent's user.",
    )
    adopt.add_argument("incarnation", nargs="?", default="", metavar="INCARNATION", help="as it is shown")
    _state_dir(adopt, default=None)
    leave = _command(
        commands,
        "leave",
        _leave,
        "stop the running agent for good, and say what stays behind",
        "It says Goodbye and leaves the host on hold, so that an agent that is started again (systemd does,"
        " unless it is disabled) writes nothing. Where a baseline cannot be put back, it says why and goes on"
        " running, on hold. For root or the agent's user.",
    )
    leave.add_argument("--restore", action="store_true", help="put every baseline back first")
    _state_dir(leave, default=None)


def _command(
    commands: Any, name: str, command: Callable[[argparse.Namespace], int], text: str, more: str = ""
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip()
    )
    parser.set_defaults(command=command)
    return parser


def _state_dir(parser: Any, *, default: Path | None) -> None:
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=default,
        metavar="DIR",
        help=f"the agent's state directory (default: {STATE_DIR})",
    )


if __name__ == "__main__":
    main()
