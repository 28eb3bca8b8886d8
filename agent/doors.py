"""Where the local API listens: a socket that is open to every user of the host, and an address on loopback.

Hides what a former process left behind, and what an address that is not the host's own looks like.
"""

import socket
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from shared.errors import Error, FailedPrecondition, Invalid

_NAMES_END = 108  # bytes of a socket's name, with the NUL after it


def listen_on_socket(path: Path) -> socket.socket:
    """A listening socket at `path`, open to every user of the host; a dead one there is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if path.is_socket():
            if _is_served(path):
                raise FailedPrecondition(f"another process serves the socket {path}; give this agent its own")
            path.unlink()
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(128)
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise Invalid(f"agent.socket {path}: {why}", reason="BAD_CONFIG") from None
    except Error:
        listener.close()
        raise
    return listener


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


def reached_at(path: Path) -> str:
    """How the socket is named to others: from the root, wherever they are, unless no socket can be named by so much."""
    absolute = path.absolute()
    return str(absolute if len(bytes(absolute)) < _NAMES_END else path)


def listen_on_loopback(address: str) -> socket.socket:
    """A listening TCP socket on a loopback address, HOST:PORT."""
    parts = urlsplit("//" + address)
    try:
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if port is None or not is_loopback(host):
        raise Invalid(
            f"agent.local_http {address!r} is no loopback address; write 127.0.0.1:7410", reason="BAD_CONFIG"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise Invalid(f"agent.local_http {address}: {error.strerror}", reason="BAD_CONFIG") from None
    return listener


def is_loopback(host: str) -> bool:
    """Whether the name or address is this host's own, as far as it says so itself."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
