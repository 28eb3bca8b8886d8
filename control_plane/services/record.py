"""What the audit log keeps of what was asked and of what it changed: no content, no secret, and never very much.

Hides what is left out: contents are told by their digests, secrets not at all, and an entry that would grow with
somebody's fleet keeps digests of its largest parts.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

BYTES_KEPT = 8192
"""How much of a request, and of each of the two states, is kept: so a page of a hundred stays a usable answer."""

_SECRETS = ("secret", "token")
_CONTENT = ("content", "contentBase64")


def of_request(request: Any, body: Mapping[str, Any]) -> Any:
    """What is kept of a request: what it says itself, else all of it without content."""
    own = getattr(request, "on_record", None)
    return bounded(without_content(body) if own is None else own())


def of_state(shown: Any) -> Any:
    """What is kept of a resource as the API shows it; None of one that is not there."""
    return None if shown is None else bounded(without_content(without_secrets(shown)))


def without_secrets(shown: Any) -> Any:
    """The resource without what is shown once."""
    if isinstance(shown, dict):
        return {key: value for key, value in shown.items() if key not in _SECRETS}
    return shown


def without_content(value: Any) -> Any:
    """The value with every content replaced by its digest."""
    if isinstance(value, Mapping):
        return {
            key: _digest(item.encode())
            if key in _CONTENT and isinstance(item, str)
            else without_content(item)
            for key, item in value.items()
        }
    return [without_content(item) for item in value] if isinstance(value, list | tuple) else value


def hiding_content(value: Any) -> Any:
    """The value as it is shown to whoever may not read contents."""
    if isinstance(value, Mapping):
        return {
            key: None if key in _CONTENT and isinstance(item, str) else hiding_content(item)
            for key, item in value.items()
        }
    return [hiding_content(item) for item in value] if isinstance(value, list | tuple) else value


def opened(value: Any) -> Any:
    """The value with every text that is a JSON object as that object."""
    if isinstance(value, Mapping):
        return {key: opened(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [opened(item) for item in value]
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return opened(json.loads(value))
        except (ValueError, RecursionError):
            return value
    return value


def bounded(value: Any) -> Any:
    """The value in at most `BYTES_KEPT` bytes of JSON: its largest fields give way to their length and digest.

    A field that gave way still tells whether it changed: the same field has the same digest.
    """
    if not isinstance(value, Mapping):
        return value
    kept = dict(value)
    if len(json.dumps(kept)) <= BYTES_KEPT:  # as nearly all do; `_written` is never longer
        return kept
    sizes = {name: len(_written(item)) for name, item in kept.items()}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        if len(_written(kept)) <= BYTES_KEPT:
            break
        kept[name] = {"cut": {"bytes": sizes[name], "digest": _digest(_written(kept[name]))}}
    return kept


def _written(value: Any) -> bytes:
    return json.dumps(_numbers(value), sort_keys=True).encode()


def _numbers(value: Any) -> Any:
    """The value with 1.0 as 1: which of the two a transport brings says nothing about the resource."""
    if isinstance(value, Mapping):
        return {name: _numbers(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _digest(value: bytes) -> str:
    return "sha256:" + hashlib.sha256(value).hexdigest()
