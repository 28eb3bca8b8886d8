"""A client of the agent's local API, on its socket or on loopback."""

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; `body` is JSON where it was, else text."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def faults(self) -> dict[str, str]:
        """Field → message of a problem."""
        return {fault["field"]: fault["message"] for fault in self.body["errors"]}


async def call(
    address: Path | str,
    target: str,
    *,
    body: object = None,
    data: bytes | None = None,
    headers: dict[str, str] | None = None,
    method: str | None = None,
) -> Answer:
    """One request to a socket's path or to HOST:PORT; a POST where there is a body."""
    connector = aiohttp.UnixConnector(str(address)) if isinstance(address, Path) else aiohttp.TCPConnector()
    base = "http://localhost" if isinstance(address, Path) else f"http://{address}"
    verb = method or ("GET" if body is None and data is None else "POST")
    if data is not None and not any(name.lower() == "content-type" for name in headers or {}):
        headers = {**(headers or {}), "Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(verb, base + target, json=body, data=data, headers=headers) as response,
    ):
        is_json = response.content_type.endswith("json")
        content = await response.json(content_type=None) if is_json else await response.text()
        return Answer(response.status, content, dict(response.headers))


AS_USER = """
import encodings.idna, http.client, json, os, socket, sys
uid = int(sys.argv[5])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request(sys.argv[2], sys.argv[3], body=sys.argv[4] or None, headers={"Content-Type": "application/json"})
response = connection.getresponse()
print(json.dumps([response.status, json.loads(response.read())]))
"""


async def as_user(socket: Path, uid: int, target: str, body: object = None, *, method: str = "POST") -> Any:
    """(status, JSON) of a request on a socket by a process of `uid`; only root can have one made."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        AS_USER,
        str(socket),
        method,
        target,
        "" if body is None else json.dumps(body),
        str(uid),  # given up by the process itself: the interpreter may lie where only root reaches
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return json.loads(output)
