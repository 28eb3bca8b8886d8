"""Structured logs on standard error: JSON lines for machines, colours for a terminal.

Event names are dotted, one per state change, said once where the state changed. Secrets and content
never reach a logger: callers pass digests, ids and counts.
"""

import logging
import os
import queue
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

# structlog loads rich where it is installed, for tracebacks that are never printed here. That is a tenth of the time in
# which an agent starts; without it structlog does what it does where rich is missing.
_without = "rich" not in sys.modules
if _without:
    sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402

if _without:
    del sys.modules["rich"]

WAITING_LINES = 4_096
"""Lines that wait for somebody to read; beyond that they are counted instead of kept."""

LAST_WORDS_SECONDS = 2.0


def configure(*, level: str = "info", json: bool | None = None, waits: bool = True) -> None:
    """Every structlog and stdlib record from here on goes to standard error in one format.

    Unless it `waits`, nobody who logs waits for whoever reads: a log that is full or not read costs lines, which
    are counted and told once there is room again, and never time.
    """
    as_json = not sys.stderr.isatty() if json is None else json
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Plain tracebacks everywhere: the pretty ones print local variables, and those hold content.
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    ending: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()] if as_json else [plain]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr) if waits else _Behind(sys.stderr.fileno())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").addFilter(_without_what_was_sent)


def _without_what_was_sent(record: logging.LogRecord) -> bool:
    """What was no HTTP is the peer's mistake, told by its kind: its bytes may be a header that holds a key."""
    failure = record.exc_info[1] if record.exc_info else None
    if failure is not None and type(failure).__module__ == "aiohttp.http_exceptions":
        record.msg, record.exc_info = f"{record.msg}: {type(failure).__name__}", None
        record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
    return True


class _Behind(logging.Handler):
    """Lines are written by a thread, in order, as long as somebody takes them; closing gives that a moment.

    Writes to the descriptor itself: a thread that is stuck in a write must not hold a lock that the end of the
    process needs.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd, self._lost = fd, 0
        self._lines: queue.Queue[bytes | None] = queue.Queue(WAITING_LINES)
        self._thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(f"{self.format(record)}\n".encode(errors="replace"))
        except queue.Full:
            self._lost += 1
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        try:
            self._lines.put(None, timeout=LAST_WORDS_SECONDS)
            self._thread.join(LAST_WORDS_SECONDS)
        except queue.Full:
            pass
        super().close()

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            written = self._written(line)
            with self.lock or nullcontext():
                lost, self._lost = self._lost, 0 if written else self._lost + 1
            if written and lost:
                self.handle(_lost_lines(lost))

    def _written(self, line: bytes) -> bool:
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except OSError:  # a full disk, or nobody at the other end any more
            return False
        return True


def _lost_lines(count: int) -> logging.LogRecord:
    text = f"{count} lines of the log were lost: nobody took them in time"
    return logging.LogRecord("shared.logs", logging.WARNING, "", 0, text, None, None)


def about(**fields: Any) -> AbstractContextManager[Any]:
    """Every record within has these fields, also those of modules that know nothing of them."""
    return structlog.contextvars.bound_contextvars(**fields)


def get(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
