"""A person's editor, on a copy that is for its owner's eyes and is gone afterwards."""

import os
import shlex
import subprocess
import tempfile
from pathlib import Path, PurePosixPath

from control_plane.cli.session import Failure


def edited(before: bytes, name: str, *, undone: str) -> bytes:
    """What a person made of a copy in $VISUAL or $EDITOR; the copy is named like `name`.

    Raises Failure where the editor fails or the copy is gone; it ends with what did not happen, `undone`.
    """
    command = _command(undone)
    path = PurePosixPath(name)
    with tempfile.TemporaryDirectory(prefix="variantctl-") as folder:
        descriptor, copy = tempfile.mkstemp(suffix=path.suffix, prefix=path.stem + "-", dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(before)
        try:
            code = _ended([*command, copy])
        except OSError as error:
            raise Failure(
                f"the editor {command[0]!r} cannot be run: {error.strerror}; set $VISUAL or $EDITOR; {undone}"
            ) from None
        if code:
            raise Failure(f"the editor {command[0]!r} ended with {code}; {undone}")
        try:
            return Path(copy).read_bytes()
        except FileNotFoundError:
            raise Failure(f"the edited copy is gone; {undone}") from None
        except OSError as error:
            raise Failure(f"the edited copy cannot be read: {error.strerror}; {undone}") from None


def _command(undone: str) -> list[str]:
    """The words of the first of both variables that says something. Raises Failure where it is no command line."""
    for name in ("VISUAL", "EDITOR"):
        text = os.environ.get(name, "")
        try:
            words = shlex.split(text)
        except ValueError:
            raise Failure(f"${name} is no command line: {text!r} leaves a quote open; {undone}") from None
        if words:
            return words
    return ["vi"]


def _ended(command: list[str]) -> int:
    """The editor's exit code. Raises OSError where it cannot be run.

    Ctrl-C in an editor is the editor's: it goes to everybody on the terminal, and who ended it for that would take the
    edit with it, and leave the terminal as the editor had set it.
    """
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
