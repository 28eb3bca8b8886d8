"""What every command has: the global options, a connection once it is needed, and one way to fail.

A command is a function of a `Session` and its own options; `add` gives it the global ones too, so
they may stand before or after the command's name, and turns every failure into its line and exit code.
"""

import asyncio
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import grpc
import typer
from google.protobuf.message import Message
from rich.console import Console

from control_plane.cli import show
from control_plane.cli.connection import (
    CALL_SECONDS,
    Exit,
    Failure,
    Peer,
    Unreachable,
    Wanted,
    failure_of,
    open_channel,
    peer,
)
from shared.clock import Clock, SystemClock
from shared.ids import new_id, show_id
from shared.pb.variantd.operator.v1 import operator_pb2 as pb
from shared.pb.variantd.operator.v1 import operator_pb2_grpc as rpc

P = ParamSpec("P")
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

_LAST_CALL_SECONDS = 2.0  # so that whoever waits for less is told how it stands all the same


@dataclass(kw_only=True)
class Session:
    """One run of a command."""

    wanted: Wanted = field(default_factory=Wanted)
    json: bool = False
    out: Console = field(default_factory=show.console)
    err: Console = field(default_factory=lambda: show.console(error=True))
    clock: Clock = field(default_factory=SystemClock)
    _until: float | None = field(default=None, init=False)

    @functools.cached_property
    def peer(self) -> Peer:
        """Who is spoken to."""
        return peer(self.wanted, os.environ)

    @functools.cached_property
    def _channel(self) -> grpc.Channel:
        return open_channel(self.peer)

    @functools.cached_property
    def experiments(self) -> "rpc.ExperimentServiceStub":
        """Experiments and variants."""
        return rpc.ExperimentServiceStub(self._channel)

    @functools.cached_property
    def assignments(self) -> "rpc.AssignmentServiceStub":
        """Who has what."""
        return rpc.AssignmentServiceStub(self._channel)

    @functools.cached_property
    def deployments(self) -> "rpc.DeploymentServiceStub":
        """What slots should hold."""
        return rpc.DeploymentServiceStub(self._channel)

    @functools.cached_property
    def results(self) -> "rpc.ResultsServiceStub":
        """What the numbers say."""
        return rpc.ResultsServiceStub(self._channel)

    @functools.cached_property
    def fleet(self) -> "rpc.FleetServiceStub":
        """Participants and agents."""
        return rpc.FleetServiceStub(self._channel)

    @functools.cached_property
    def holdouts(self) -> "rpc.HoldoutServiceStub":
        """Shares of participants that stay out."""
        return rpc.HoldoutServiceStub(self._channel)

    @functools.cached_property
    def events(self) -> "rpc.EventServiceStub":
        """What happened."""
        return rpc.EventServiceStub(self._channel)

    @functools.cached_property
    def access(self) -> "rpc.AccessServiceStub":
        """Keys and the audit log."""
        return rpc.AccessServiceStub(self._channel)

    @functools.cached_property
    def metrics(self) -> "rpc.MetricServiceStub":
        """Saved metrics."""
        return rpc.MetricServiceStub(self._channel)

    @functools.cached_property
    def settings(self) -> "rpc.SettingsServiceStub":
        """What experiments may touch and hold."""
        return rpc.SettingsServiceStub(self._channel)

    def forget(self) -> None:
        """The next call goes to whoever `peer` is then."""
        for name in ("peer", "_channel", "experiments", "access"):
            self.__dict__.pop(name, None)

    def call(self, method: "grpc.UnaryUnaryMultiCallable[Request, Response]", request: Request) -> Response:
        """The answer. Raises Failure with the control plane's own words."""
        seconds = CALL_SECONDS
        if self._until is not None:
            seconds = min(seconds, max(_LAST_CALL_SECONDS, self._until - self.clock.monotonic()))
        try:
            return method(request, timeout=seconds)
        except grpc.RpcError as error:
            raise failure_of(error, self.peer.server, seconds=seconds) from None

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Calls made meanwhile end when so many seconds are over, though each has a moment at the least."""
        self._until = self.clock.monotonic() + seconds
        try:
            yield
        finally:
            self._until = None

    def stream(
        self, method: "grpc.UnaryStreamMultiCallable[Request, Response]", request: Request
    ) -> Iterator[Response]:
        """Every message of an answer that is a stream. Raises Failure, also in the middle of it."""
        try:
            yield from method(request)
        except grpc.RpcError as error:
            raise failure_of(error, self.peer.server) from None

    def pages(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        entities: str,
        *,
        limit: int | None = None,
    ) -> Iterator[Any]:
        """Every entity of every page of a list, up to `limit`; `request` is used up."""
        wanted: Any = request
        left = limit
        while left is None or left > 0:
            wanted.page_size = 100 if left is None else min(100, left)
            answer: Any = self.call(method, request)
            found = getattr(answer, entities)
            yield from found
            left = None if left is None else left - len(found)
            wanted.page_token = answer.next_page_token
            if not answer.next_page_token:
                return

    def experiment(self, id_or_key: str) -> pb.Experiment:
        """The experiment with its variants."""
        return self.call(self.experiments.GetExperiment, pb.GetExperimentRequest(id=id_or_key))

    def show(self, message: Message, sentence: str) -> None:
        """The resource as JSON, or else the sentence about it."""
        if self.json:
            show.print_json(self.out, show.to_json(message))
        else:
            show.say(self.out, sentence)


def request_id() -> str:
    """A fresh request id: a call that is repeated below us answers the same."""
    return show_id(new_id())


# -- the global options


_PANEL = "Global options"
_GLOBAL: dict[str, Any] = {
    "server": Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="HOST:PORT",
            help="Operator gRPC of the control plane.",
            rich_help_panel=_PANEL,
        ),
    ],
    "ca": Annotated[
        Path | None,
        typer.Option("--ca", metavar="FILE", help="Its CA certificate, PEM.", rich_help_panel=_PANEL),
    ],
    "api_key_file": Annotated[
        str | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help="A file with the API key; - is standard input.",
            rich_help_panel=_PANEL,
        ),
    ],
    "profile": Annotated[
        str | None,
        typer.Option("--profile", metavar="NAME", help="A profile that login wrote.", rich_help_panel=_PANEL),
    ],
    "json": Annotated[
        bool, typer.Option("--json", help="Print the JSON that REST answers.", rich_help_panel=_PANEL)
    ],
}


def globals_from(options: dict[str, Any], before: Session | None = None) -> Session:
    """The session of global options; what stood before the command's name fills in."""
    json = options.pop("json")
    wanted = Wanted(**{name: options.pop(name) for name in _GLOBAL if name != "json"})
    if before is None:
        return Session(wanted=wanted, json=json)
    filled = {name: getattr(wanted, name) or getattr(before.wanted, name) for name in Wanted.__slots__}
    return replace(before, wanted=Wanted(**filled), json=json or before.json)


def add(
    app: typer.Typer, name: str, function: Callable[Concatenate[Session, P], None], examples: str = ""
) -> None:
    """`app` has the command; the docstring is its help, `examples` (one a line) stand below it."""
    lines = [f"$ {line.strip()}" for line in examples.strip().splitlines()]
    epilog = "\n\n".join(["Examples:", *lines]) if lines else None
    app.command(name, epilog=epilog)(with_globals(function))


def with_globals(function: Callable[Concatenate[Session, P], None]) -> Callable[..., None]:
    """The function as typer calls it: with the global options besides, and its failures told."""

    @functools.wraps(function)
    def run(ctx: typer.Context, **options: Any) -> None:
        session = globals_from(options, ctx.obj if isinstance(ctx.obj, Session) else None)
        ctx.obj = session
        try:
            function(session, **options)  # type: ignore[call-arg]  # typer passes them by name
        except Failure as failure:
            tell(session.err, failure)
            raise typer.Exit(failure.exit_code) from None

    # A help text is as wide as the terminal, not as the lines it was written in.
    run.__doc__ = "\n\n".join(
        " ".join(part.split()) for part in (inspect.getdoc(function) or "").split("\n\n")
    )
    own = list(inspect.signature(function).parameters.values())[1:]
    extra = [_parameter("ctx", typer.Context, inspect.Parameter.empty)]
    extra += [_parameter(name, kind, False if name == "json" else None) for name, kind in _GLOBAL.items()]
    parameters = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in [*own, *extra]]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {item.name: item.annotation for item in parameters}
    return run


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)


def tell(err: Console, failure: Failure) -> None:
    """The failure is on standard error."""
    for line in failure.lines():
        show.say(err, line)


# -- waiting


def wait_until(session: Session, done: Callable[[], bool], *, seconds: float, doing: str) -> bool:
    """True once `done()` is, False if it was not within `seconds`; asked quickly first, then every second.

    A control plane that restarts meanwhile, or is without its database, is waited for as well. Raises Unreachable where
    it still does not answer when the time is over: whether `done()` is, nobody knows.
    """
    away: Unreachable | None = None

    def is_done() -> bool:
        nonlocal away
        try:
            found, away = done(), None
        except Unreachable as failure:
            found, away = False, failure
        return found

    started, pause = session.clock.monotonic(), 0.05
    with session.within(seconds), session.err.status(doing) if session.err.is_terminal else _Quiet():
        while not is_done():
            left = seconds - (session.clock.monotonic() - started)
            if left <= 0:
                if away is None:
                    return False
                message = f"gave up {doing} after {seconds:g} s: {away.message}"
                raise Unreachable(message, exit_code=Exit.TIMED_OUT, reason=away.reason)
            asyncio.run(session.clock.sleep(min(pause, left)))
            pause = min(1.0, pause * 1.5)
    return True


class _Quiet:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str | float) -> float:
    """Seconds of `90`, `500ms`, `60s`, `5m`, `1h` or `2d`. Raises BadParameter."""
    if not isinstance(text, str):
        return text  # a default, which typer parses as well
    number = text.rstrip("smhd")
    try:
        value = float(number) * _UNITS[text[len(number) :] or "s"]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 < value <= 366 * 86400:
        raise typer.BadParameter(f"{text!r} is not a duration such as 60s, 5m or 1h")
    return value


Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", metavar="DURATION", parser=duration, help="How long to wait, such as 60s or 5m."
    ),
]


__all__ = [
    "Exit",
    "Failure",
    "Session",
    "Timeout",
    "add",
    "duration",
    "request_id",
    "tell",
    "wait_until",
    "with_globals",
]
