"""Whose process is at the other end of a request, by the kernel's word.

Hides socket credentials. Nothing a request says about itself plays a part.
"""

import os
import socket
import struct

from aiohttp import web

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


def is_on_socket(request: web.Request) -> bool:
    """The request came over the Unix socket, not over loopback."""
    connection = request.transport.get_extra_info("socket") if request.transport else None
    return connection is not None and connection.family == socket.AF_UNIX


def uid_of(request: web.Request) -> int:
    """The user whose process sent a request that came over the Unix socket."""
    assert request.transport is not None
    uid = user_of(request.transport.get_extra_info("socket"))
    assert uid is not None
    return uid


def user_of(connection: socket.socket) -> int | None:
    """The user whose process is at the other end of a connection; None where that came over loopback."""
    if connection.family != socket.AF_UNIX:
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    uid: int = _PEER.unpack(credentials)[1]
    return uid


def commands_the_agent(uid: int) -> bool:
    """The user is root or the one the agent runs as."""
    return uid in (0, os.geteuid())
