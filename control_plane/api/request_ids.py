"""The id of a request: the caller's own or one made here, the same in the answer, in a problem and in the log.

Ids find the lines of one request among those of many, and nothing is decided by them: two callers may use the same.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from shared import logs
from shared.ids import new_id, show_id

HEADER = "X-Request-Id"
METADATA = "x-request-id"

_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")
_current: ContextVar[str] = ContextVar("request_id", default="")


@contextmanager
def under(given: object) -> Iterator[str]:
    """What is done within is done for this request: its id is yielded, `current` and in every line of the log.

    An id that is not 1 … 128 letters, digits and `._:/+=-` is no id: it could not be told again in a header or
    searched for, so one is made.
    """
    name = given if isinstance(given, str) and _SANE.fullmatch(given) else show_id(new_id())
    token = _current.set(name)
    try:
        with logs.about(request_id=name):
            yield name
    finally:
        _current.reset(token)


def current() -> str:
    """The id of the request that is being answered; empty outside of one."""
    return _current.get()
