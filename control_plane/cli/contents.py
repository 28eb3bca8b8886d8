"""Where texts and contents come from: standard input or a file; beside a manifest, in it as text, or as base64."""

import sys
from base64 import b64decode
from pathlib import Path

from control_plane.cli.session import Failure
from shared.errors import Fault

MAX_CONTENT = 1_048_576


def name_of(file: str) -> str:
    """What to call a file in a sentence, `-` being standard input."""
    return "standard input" if file == "-" else file


def read_text(file: str) -> str:
    """The UTF-8 text of a file, or of standard input where `file` is `-`. Raises Failure.

    Standard input is read as bytes: the locale is for people, and the same text would be another one by `<`.
    """
    name = name_of(file)
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return body.decode("utf-8-sig")
    except OSError as error:
        raise Failure(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failure(f"{name} is not UTF-8 text") from None


def read_content(
    content: str | None, file: str | None, encoded: str | None, where: str, base: Path, faults: list[Fault]
) -> bytes:
    """The bytes that are given in one of three ways; what is wrong with them is among `faults`."""
    if content is not None:
        name, body = "content", content.encode()
    elif encoded is not None:
        name = "contentBase64"
        try:
            body = b64decode(encoded, validate=True)
        except ValueError:
            body = b""
            faults.append(Fault(field=f"{where}.{name}", message="is not base64"))
    else:
        name = "contentFile"
        body = _read(base / (file or ""), f"{where}.{name}", faults)
    if len(body) > MAX_CONTENT:
        faults.append(
            Fault(field=f"{where}.{name}", message="is larger than 1 MiB", remedy="make it smaller")
        )
    return body


def _read(path: Path, where: str, faults: list[Fault]) -> bytes:
    """At most one byte more than is allowed; a device or a pipe is not waited for."""
    try:
        if path.exists() and not path.is_file():
            faults.append(Fault(field=where, message=f"{path} is not a regular file"))
            return b""
        with path.open("rb") as stream:
            return stream.read(MAX_CONTENT + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        faults.append(Fault(field=where, message=f"cannot read {path}: {reason}"))
        return b""
