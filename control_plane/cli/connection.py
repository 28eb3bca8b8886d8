"""Where the control plane is, who we are to it, and how a call to it ends.

Hides the profile file, TLS, and the shapes in which gRPC reports a failure: callers get stubs, and a
`Failure` that says in one sentence what is wrong and which exit code it is.
"""

import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core reads this when imported, and chats on stderr

import grpc  # after its setting

from shared.errors import Fault


class Exit(IntEnum):
    """What a pipeline branches on."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOT_CONVERGED = 3
    CONFLICT = 4
    TIMED_OUT = 5


class Failure(Exception):
    """The command failed; said in one sentence, with every field at fault on a line of its own."""

    def __init__(
        self, message: str, *, exit_code: Exit = Exit.ERROR, reason: str = "", faults: Sequence[Fault] = ()
    ) -> None:
        self.message, self.exit_code, self.reason, self.faults = message, exit_code, reason, tuple(faults)
        super().__init__(message)

    def lines(self) -> list[str]:
        """What goes to standard error."""
        joined = "; ".join(f"{fault.field}: {fault.message}" for fault in self.faults)
        # The control plane repeats the faults in its message; here each has a line of its own.
        summary = self.message.removesuffix(joined).rstrip(": ") or "the request is not valid"
        code = f" ({self.reason})" if self.reason else ""
        return [f"variantctl: {summary}{code}", *(_fault_line(fault) for fault in self.faults)]


class Unreachable(Failure):
    """No control plane answered, or one that cannot without its database: the same call may succeed later."""


def _fault_line(fault: Fault) -> str:
    remedy = f"; {fault.remedy}" if fault.remedy else ""
    return f"  {fault.field}: {fault.message}{remedy}"


# -- where and who


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A control plane: HOST:PORT, the CA certificate (PEM; None: the system's), and the API key."""

    server: str
    ca: bytes | None
    api_key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the command line says about the connection; None where it says nothing."""

    server: str | None = None
    ca: Path | None = None
    api_key_file: str | None = None
    profile: str | None = None


DEFAULT_PROFILE = "default"
_PROFILE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SERVER = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]]+):(\d{1,5})")


def peer(wanted: Wanted, environment: Mapping[str, str]) -> Peer:
    """The control plane to speak to: flags, then `VARIANTD_*`, then the profile.

    A profile's CA and key belong to the profile's server and are used for no other. Raises Failure that
    says what is missing and how to give it.
    """
    server = wanted.server or environment.get("VARIANTD_SERVER")
    ca_file = wanted.ca or (Path(path) if (path := environment.get("VARIANTD_CA")) else None)
    has_key = wanted.api_key_file or environment.get("VARIANTD_API_KEY")
    named = wanted.profile or environment.get("VARIANTD_PROFILE")
    # Who says it all needs no profile, and no home that one could be in.
    stored = None if server and ca_file and has_key and not named else _stored(named, environment)
    server = server or (stored.server if stored else "")
    if not server:
        raise Failure(
            "which control plane? Run `variantctl login --data-dir DIR` once, or give --server HOST:PORT",
            exit_code=Exit.USAGE,
        )
    check_server(server)
    fitting = stored if stored and stored.server == server else None
    key = read_key(wanted.api_key_file) if wanted.api_key_file else environment.get("VARIANTD_API_KEY", "")
    key = key or (fitting.api_key if fitting else "")
    if not key:
        raise Failure(
            f"there is no API key for {server}; give --api-key-file FILE, set VARIANTD_API_KEY, or log in",
            exit_code=Exit.USAGE,
        )
    ca = read_file(ca_file, "the CA certificate") if ca_file else (fitting.ca if fitting else None)
    return Peer(server=server, ca=ca, api_key=check_key(key))


def _stored(named: str | None, environment: Mapping[str, str]) -> Peer | None:
    profiles = load_profiles(profiles_path(environment))
    if named and named not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        raise Failure(f"there is no profile {named!r}; known: {known}", exit_code=Exit.USAGE)
    return profiles.get(named or DEFAULT_PROFILE)


def check_server(server: str) -> str:
    """HOST:PORT as given. Raises Failure where it is not one."""
    match = _SERVER.fullmatch(server)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise Failure(f"{server!r} is not HOST:PORT, such as 127.0.0.1:7401", exit_code=Exit.USAGE)
    return server


def check_profile_name(name: str) -> str:
    """The name as given. Raises Failure where no profile can be called that."""
    if not _PROFILE_NAME.fullmatch(name):
        raise Failure(f"{name!r} is not a profile name: letters, digits, - and _", exit_code=Exit.USAGE)
    return name


def check_key(key: str) -> str:
    """The key without surrounding space. Raises Failure where it cannot be one."""
    key = key.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise Failure("the API key has to be one line such as sk_…", exit_code=Exit.USAGE)
    return key


def read_key(file: str) -> str:
    """The key in a file, or on standard input where `file` is `-`."""
    text = sys.stdin.read() if file == "-" else read_file(Path(file), "the API key").decode(errors="replace")
    return check_key(text)


def read_file(path: Path, what: str) -> bytes:
    """The file's bytes. Raises Failure that says what could not be read and why."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Failure(f"cannot read {what} from {path}: {error.strerror}") from None


# -- profiles


def profiles_path(environment: Mapping[str, str]) -> Path:
    """Where profiles are kept: `XDG_CONFIG_HOME`, or else `~/.config`. Raises Failure where there is neither."""
    try:
        home = environment.get("XDG_CONFIG_HOME") or str(Path("~/.config").expanduser())
    except RuntimeError:
        raise Failure(
            "there is no home directory that a profile could be in; set HOME, or give --server, --ca and"
            " --api-key-file"
        ) from None
    return Path(home) / "variantd" / "profiles.toml"


def load_profiles(path: Path) -> dict[str, Peer]:
    """Every profile by name; none where there is no file.

    Raises Failure where the file is malformed, or where others than its owner may read it: it holds keys.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"cannot read profiles from {path}: {error}") from None
    if mode & 0o077:
        raise Failure(f"{path} holds API keys and others may read it; run: chmod 600 {path}")
    try:
        tables = tomllib.loads(text).get("profiles", {})
        return {name: _profile(table) for name, table in tables.items()}
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError):
        raise Failure(f"{path} is not a file of profiles; remove it and log in again") from None


def _profile(table: Mapping[str, Any]) -> Peer:
    ca = table.get("ca")
    return Peer(server=table["server"], ca=ca.encode() if ca else None, api_key=table["api_key"])


def save_profile(path: Path, name: str, profile: Peer) -> None:
    """The profile is stored under `name`, durable and readable by its owner only; the others stay."""
    profiles = {**load_profiles(path), name: profile}
    lines = ["# Written by `variantctl login`. Holds API keys.\n"]
    for each, stored in sorted(profiles.items()):
        lines += [f"\n[profiles.{each}]\n", f"server = {_toml(stored.server)}\n"]
        lines += [f"api_key = {_toml(stored.api_key)}\n"]
        lines += [f"ca = {_toml(stored.ca.decode())}\n"] if stored.ca else []
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}") from None


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is a TOML basic string


# -- the channel


CALL_SECONDS = 30.0
"""A unary call that takes longer has failed: every answer comes from one database."""


def open_channel(to: Peer) -> grpc.Channel:
    """A channel that authenticates every call; nothing is sent before the first one."""
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(to.ca), grpc.access_token_call_credentials(to.api_key)
    )
    options: list[tuple[str, int]] = [("grpc.max_receive_message_length", 256 * 1_048_576)]
    if _is_loopback(to.server):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy has another loopback
    return grpc.secure_channel(to.server, credentials, options=options)


def _is_loopback(server: str) -> bool:
    host = server.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# -- failures


_CONFLICTS = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.ABORTED,
)


def failure_of(error: grpc.RpcError, server: str, *, seconds: float = CALL_SECONDS) -> Failure:
    """What a failed call that had so many seconds means, with the control plane's own words where it answered."""
    if not isinstance(error, grpc.Call):
        return Failure(f"the call to {server} failed: {error}")
    status, trailing = error.code(), dict(_text_metadata(error.trailing_metadata()))
    message = (error.details() or status.name).strip()
    if "reason" not in trailing:
        return _unanswered(status, message, server, seconds)
    if status is grpc.StatusCode.UNAVAILABLE:
        return Unreachable(message, reason=trailing["reason"])
    return Failure(
        message,
        exit_code=Exit.CONFLICT if status in _CONFLICTS else Exit.ERROR,
        reason=trailing["reason"],
        faults=_faults(trailing.get("errors-bin", "[]")),
    )


def _text_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> Iterable[tuple[str, str]]:
    for key, value in metadata or ():
        yield key, value.decode(errors="replace") if isinstance(value, bytes) else value


def _faults(text: str) -> list[Fault]:
    try:
        return [
            Fault(field=str(item["field"]), message=str(item["message"]), remedy=str(item.get("remedy", "")))
            for item in json.loads(text)
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # a newer control plane may say it otherwise; its message is complete by itself


def _unanswered(status: grpc.StatusCode, message: str, server: str, seconds: float) -> Failure:
    """A failure of the way there: no control plane of ours said it."""
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unreachable(f"{server} did not answer within {seconds:.0f} s", exit_code=Exit.TIMED_OUT)
    if status is grpc.StatusCode.UNAVAILABLE:
        if "WRONG_VERSION_NUMBER" in message:
            why = "it does not speak TLS; is that the operator's port?"
        elif "Hostname Verification" in message or "Peer name" in message:
            why = "its certificate does not name this address; `variantd serve --advertise` has to"
        elif "create security handshaker" in message:
            why = "what --ca or VARIANTD_CA names holds no certificate as PEM; the control plane's is DIR/ca/ca.pem"
        elif "SSL_ERROR_SSL" in message:
            why = "its certificate is not from the CA we trust; give its ca.pem with --ca, or log in again"
        elif "Connection refused" in message:
            why = "nothing listens there; is `variantd serve` running?"
        else:
            why = message
        return Unreachable(f"cannot reach {server}: {why}")
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return Failure(f"the control plane at {server} does not know this call; it may be older: {message}")
    exit_code = Exit.CONFLICT if status in _CONFLICTS else Exit.ERROR
    return Failure(f"{server} answered {status.name}: {message}", exit_code=exit_code)
