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
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    path = PurePosixPath(name)
    with tempfile.TemporaryDirectory(prefix="variantctl-") as folder:
        descriptor, copy = tempfile.mkstemp(suffix=path.suffix, prefix=path.stem + "-", dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(before)
        try:
            done = subprocess.run([*command, copy])
        except OSError as error:
            raise Failure(
                f"the editor {command[0]!r} cannot be run: {error.strerror}; set $VISUAL or $EDITOR; {undone}"
            ) from None
        if done.returncode:
            raise Failure(f"the editor {command[0]!r} ended with {done.returncode}; {undone}")
        try:
            return Path(copy).read_bytes()
        except FileNotFoundError:
            raise Failure(f"the edited copy is gone; {undone}") from None
