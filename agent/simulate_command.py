"""`variant-agent simulate`: its options, and how far the fleet is, told on the way.

Light, as the command line is: what simulates is imported when it runs.
"""

import argparse
import asyncio
import json
import math
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import Invalid

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")

if TYPE_CHECKING:
    from agent.simulate import Progress

LINE_SECONDS = 5.0  # between lines where standard output is not a terminal

EPILOG = """\
Every agent enrolls with the token, so it has to be good for all of them; labels of the token are labels of every
participant, by which an experiment chooses them (participants: {labels: {fleet: sim}}):

  variantctl agents token --quiet --max-uses 200 --label fleet=sim > token
  variant-agent simulate --token-file token --agents 200 --participants 2 --reports 6

Agents and participants stay known to the control plane: use one that is there for the purpose. With --dir the same
fleet comes back in a later run; without, its hosts are temporary and named anew each time.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The parser takes the command's options."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    whole, share, number = _within(int, 1, 10_000), _within(float, 0, 1), _within(float, 0, 60_000)
    parser.add_argument(
        "--token-file", metavar="FILE", help="file that holds the token; - reads standard input"
    )
    parser.add_argument("--agents", type=whole, default=10, metavar="N", help="hosts (default: %(default)s)")
    parser.add_argument(
        "--participants", type=whole, default=1, metavar="M", help="on each host (default: %(default)s)"
    )
    parser.add_argument(
        "--name", metavar="TEXT", help="how their names begin (default: sim- and something new)"
    )
    parser.add_argument("--target", default="soul.md", metavar="PATH", help="of each (default: %(default)s)")
    parser.add_argument(
        "--reports",
        type=number,
        default=0.0,
        metavar="R",
        help="impressions per participant and minute (default: 0)",
    )
    parser.add_argument(
        "--conversion",
        type=share,
        default=0.1,
        metavar="C",
        help="share of them that convert (default: %(default)s)",
    )
    parser.add_argument(
        "--event", default="done", metavar="NAME", help="of the conversions (default: %(default)s)"
    )
    parser.add_argument(
        "--dir", type=Path, metavar="DIR", help="where the hosts are, to stay (default: a temporary one)"
    )
    parser.add_argument(
        "--processes",
        type=_within(int, 1, 64),
        metavar="P",
        help="that share them out (default: what suits them)",
    )
    parser.add_argument(
        "--for",
        type=_within(float, 0, 1e7),
        dest="seconds",
        metavar="SECONDS",
        help="stop after so long (default: never)",
    )
    parser.add_argument("--json", action="store_true", help="how far it is, an object a line")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)


def _within(kind: Any, least: float, most: float) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not math.isfinite(value) or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least:g} to {most:g}")
        return value

    parse.__name__ = "number"
    return parse


def run(options: argparse.Namespace, token: str) -> int:
    """The exit code of the command; a fleet is up until it is interrupted or its time is over."""
    from agent import simulate

    _check_target(options.target)
    _check_name(options.name)
    show = _Shown(as_json=options.json)

    async def everything() -> None:
        async with simulate.workspace(options.dir) as directory:
            plan = simulate.Plan(
                directory=str(directory.absolute()),
                token=token,
                name=options.name or ("sim" if options.dir else f"sim-{os.urandom(2).hex()}"),
                agents=options.agents,
                participants=options.participants,
                target=options.target,
                reports=options.reports,
                conversion=options.conversion,
                event=options.event,
            )
            processes = min(options.processes or simulate.processes_for(options.agents), options.agents)
            await simulate.simulate(plan, processes=processes, seconds=options.seconds, tell=show)

    try:
        asyncio.run(everything())
    finally:
        show.end()
    return 0


def _check_target(target: str) -> None:
    if target.startswith("/") or not {"", ".", ".."}.isdisjoint(target.split("/")):
        raise Invalid(f"--target: {target!r} is no file within a workspace; write a relative path")


def _check_name(name: str | None) -> None:
    if name is not None and not _NAME.fullmatch(name):
        raise Invalid(
            f"--name: {name!r} is no name of hosts; take at most 100 letters, digits, . _ and -, no . first"
        )


class _Shown:
    """Progress on standard output: one line kept up to date on a terminal, a line now and then elsewhere."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json, self._live = as_json, sys.stdout.isatty() and not as_json
        self._last, self._said = "", -math.inf

    def __call__(self, progress: "Progress", seconds: float) -> None:
        if self._as_json:
            print(json.dumps({"seconds": round(seconds, 1), **asdict(progress)}), flush=True)
            return
        line = (
            f"{seconds:8.1f} s   enrolled {progress.enrolled:,}   connected {progress.connected:,}"
            f"   applied {progress.applied:,}   failed {progress.failed:,}"
            f"   reported {progress.reported:,}   waiting {progress.waiting:,}"
        )
        if self._live:
            print(f"\r{line:<{len(self._last)}}", end="", flush=True)
        elif seconds - self._said >= LINE_SECONDS:
            self._said = seconds
            print(line, flush=True)
        self._last = line

    def end(self) -> None:
        """What was said last stands."""
        if self._live:
            print()
        elif not self._as_json and self._last:
            print(self._last, flush=True)
