"""A real experiment on this machine, from an empty directory to restored files.

One control plane, three agents on "hosts" of their own, twelve participants whose `config/soul.md` already
holds something else. Uses the console scripts and the public API only, so everything here can be done by
hand. Without --once it goes on until Ctrl-C; then, or after a bounded number of reports with --once, it
completes the experiment, and says whether every report was counted exactly once and every file is back.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
KEY = "soul-tone"
HOSTS = ("host-1", "host-2", "host-3")
PER_HOST = 4
TARGET = "config/soul.md"
SETTLE_SECONDS = 1.0  # settleSeconds of experiment.yaml: what happens sooner after a swap does not count
CONVERSATIONS = 80  # of each participant with --once

Sums = dict[str, tuple[int, int]]
"""Impressions and conversions by variant."""


class Trouble(Exception):
    """The demo cannot go on, or something is not as it has to be."""


def say(text: str = "") -> None:
    """One line, at once."""
    print(text, flush=True)


# -- processes


@dataclass
class Stage:
    """The processes of the demo and the directory they live in."""

    root: Path
    processes: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.root / "logs").mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("VARIANTD_")},
            "XDG_CONFIG_HOME": str(self.root / "config"),  # the caller's own profiles stay as they are
            "VARIANT_AGENT_RECONNECT_JITTER": "0.2",
        }

    def start(self, name: str, *command: str | Path) -> subprocess.Popen[bytes]:
        """A process in the background; its output goes to a log."""
        with (self.root / "logs" / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,  # Ctrl-C is for us; we say when they stop
            )
        self.processes.append((name, process))
        return process

    def run(self, *command: str | Path, stdin: str = "") -> str:
        """What a command printed. Raises Trouble where it failed."""
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            start_new_session=True,
            timeout=60,
        )
        if done.returncode:
            words = " ".join(map(str, command))
            raise Trouble(f"`{words}` ended with {done.returncode}: {done.stderr.strip() or done.stdout}")
        return done.stdout

    def ask(self, *words: str) -> Any:
        """What variantctl answers, as JSON."""
        return json.loads(self.run("variantctl", "--json", *words))

    def wait_for(self, what: str, condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
        """`condition()` holds. Raises Trouble where it does not in time, or a process ended meanwhile."""
        end = time.monotonic() + seconds
        while not condition():
            for name, process in self.processes:
                if process.poll() not in (None, 0):
                    raise Trouble(f"{name} ended with {process.returncode} while waiting until {what}")
            if time.monotonic() > end:
                raise Trouble(f"not within {seconds:.0f} s: {what}")
            time.sleep(0.05)

    def end(self, *names: str) -> None:
        """These processes (none named: all) have stopped, the last started first. Raises Trouble where one
        did not end well."""
        ours = [item for item in reversed(self.processes) if not names or item[0] in names]
        for group in (ours[:-1], ours[-1:]) if not names else (ours,):  # the control plane goes last
            for _, process in group:
                if process.poll() is None:
                    process.terminate()
            for name, process in group:
                try:
                    code = process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    raise Trouble(f"{name} did not stop when asked to") from None
                if code:
                    raise Trouble(f"{name} ended with {code}")
        self.processes = [item for item in self.processes if item not in ours]

    def kill(self) -> None:
        """Nothing of ours runs any more."""
        for _, process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def tails(self) -> str:
        """The last lines of every log."""
        parts = []
        for log in sorted((self.root / "logs").glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-12:]
            parts.append("\n".join([f"--- {log.name}", *lines]))
        return "\n".join(parts)


# -- the hosts


@dataclass(frozen=True)
class Host:
    """A "host": a state directory, an agent.toml, and participants with a root each."""

    name: str
    root: Path
    participants: tuple[str, ...]

    @property
    def state(self) -> Path:
        """The agent's state directory."""
        return self.root / "state"

    @property
    def socket(self) -> Path:
        """The agent's local API."""
        return self.state / "agent.sock"

    def soul(self, participant: str) -> Path:
        """The participant's target file."""
        return self.root / participant / TARGET

    def prepare(self) -> None:
        """Roots, the souls that are there before, and agent.toml exist."""
        lines = [f'[agent]\nname = "{self.name}"\nlocal_http = "127.0.0.1:0"\nsocket = "{self.socket}"\n']
        for participant in self.participants:
            soul = self.soul(participant)
            soul.parent.mkdir(parents=True)
            soul.write_bytes(baseline(participant))
            soul.chmod(0o640)
            lines.append(
                f'[[participants]]\nid = "{participant}"\nroot = "{self.root / participant}"\n'
                f'targets = ["config/*.md"]\ndrift = "report"\n'
            )
        (self.root / "agent.toml").write_text("\n".join(lines))


def baseline(participant: str) -> bytes:
    """What a participant's file holds before the experiment; every one is different."""
    return f"# Soul\n\nYou are {participant}, as you always were.\n\nTone: plain\n".encode()


def tone(content: bytes) -> str:
    """What a soul says its tone is."""
    return content.decode().rpartition("Tone: ")[2].strip()


# -- the demo


class Demo:
    """The experiment, step by step."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.hosts = []
        for index, name in enumerate(HOSTS):
            ids = range(index * PER_HOST + 1, (index + 1) * PER_HOST + 1)
            participants = tuple(f"bot-{number:02}" for number in ids)
            self.hosts.append(Host(name=name, root=stage.root / name, participants=participants))
        self.assigned: dict[str, str] = {}
        self.digests: dict[str, str] = {}

    def souls(self) -> list[tuple[Host, str, Path]]:
        """Every participant's file."""
        return [(host, name, host.soul(name)) for host in self.hosts for name in host.participants]

    def set_up(self) -> None:
        """A control plane serves, and three enrolled agents are connected to it."""
        stage, data = self.stage, self.stage.root / "control-plane"
        addresses = ("--http", "127.0.0.1:0", "--operator", "127.0.0.1:0", "--agents", "127.0.0.1:0")
        stage.start("variantd", "variantd", "serve", "--data-dir", data, *addresses)
        stage.wait_for("the control plane serves", (data / "addresses.json").exists)
        say(stage.run("variantctl", "login", "--data-dir", data).strip())
        words = ("--name", "demo", "--max-uses", str(len(HOSTS)), "--label", f"demo={KEY}")
        token = stage.run("variantctl", "agents", "token", "--quiet", *words)
        enrolling = []
        for host in self.hosts:
            host.root.mkdir()
            host.prepare()
            (host.root / "token").write_text(token)
            options = ("--name", host.name, "--token-file", host.root / "token", "--state-dir", host.state)
            enrolling.append(stage.start(f"enroll-{host.name}", "variant-agent", "enroll", *options))
        stage.wait_for("three hosts have enrolled", lambda: all(item.poll() == 0 for item in enrolling))
        for host in self.hosts:
            paths = ("--config", host.root / "agent.toml", "--state-dir", host.state)
            stage.start(host.name, "variant-agent", "run", *paths)
        stage.wait_for("three agents are connected", self._connected)
        say(f"{len(HOSTS)} agents are connected over mutual TLS and serve {len(self.souls())} participants")

    def _connected(self) -> bool:
        if not all(host.socket.exists() for host in self.hosts):
            return False
        agents = self.stage.ask("agents", "list")["entities"]
        served = sum(len(agent["participantIds"]) for agent in agents if agent["presence"] == "connected")
        return served == len(self.souls())

    def begin(self) -> None:
        """The experiment runs, and every file has changed from its baseline to its variant."""
        say()
        say(self.stage.run("variantctl", "apply", "-f", HERE / "experiment.yaml").strip())
        say(self.stage.run("variantctl", "experiments", "start", KEY).strip())
        say()
        waiting = self.souls()

        def all_changed() -> bool:
            for item in list(waiting):
                host, participant, soul = item
                content = soul.read_bytes()
                if content != baseline(participant):
                    waiting.remove(item)
                    say(
                        f"  {host.name}  {participant}  {TARGET}: {tone(baseline(participant))} → {tone(content)}"
                    )
            return not waiting

        self.stage.wait_for("every file has changed", all_changed)
        self.stage.run("variantctl", "experiments", "wait", KEY, "--timeout", "30s")
        self._check_files()
        time.sleep(SETTLE_SECONDS + 0.2)

    def _check_files(self) -> None:
        variants = self.stage.ask("experiments", "get", KEY)["variants"]
        keys = {variant["id"]: variant["key"] for variant in variants}
        self.digests = {variant["key"]: variant["files"][0]["digest"] for variant in variants}
        found = self.stage.ask("experiments", "assignments", KEY)["entities"]
        self.assigned = {item["participantId"]: keys[item["variantId"]] for item in found}
        for _, participant, soul in self.souls():
            on_disk = "sha256:" + sha256(soul.read_bytes()).hexdigest()
            if on_disk != self.digests[self.assigned[participant]]:
                raise Trouble(
                    f"{participant} was assigned {self.assigned[participant]} and holds something else"
                )

    def measure(self, *, once: bool) -> None:
        """Applications report on every host, and results are shown as they grow."""
        names = []
        for host in self.hosts:
            options: list[str | Path] = ["--socket", host.socket, "--ledger", host.root / "ledger"]
            options += ["--seed", host.name, "--conversations", str(CONVERSATIONS if once else 0)]
            souls = [f"{name}={host.soul(name)}" for name in host.participants]
            name = f"application-{host.name}"
            names.append(name)
            self.stage.start(name, sys.executable, HERE / "application.py", *options, *souls)
        say()
        say("applications read their files and report" + ("" if once else "; Ctrl-C ends the experiment"))
        running = [process for name, process in self.stage.processes if name in names]
        try:
            if sys.stdout.isatty():
                self._show_live(running)
            else:
                while _going(running):
                    say(self._line(self.stage.ask("results", KEY)))
                    time.sleep(0.7)
        except KeyboardInterrupt:
            say("\nending the experiment")
        self.stage.end(*names)

    def _show_live(self, running: Sequence[subprocess.Popen[bytes]]) -> None:
        """The terminal is `variantctl watch`'s until the applications have ended or somebody interrupts."""
        command = ("variantctl", "watch", KEY, "--interval", "700ms")
        view = subprocess.Popen(command, env=self.stage.environment)
        try:
            while _going(running) and view.poll() is None:
                time.sleep(0.1)
            if view.poll() == 0:  # it was told to end, and we may have been started where Ctrl-C is not heard
                raise KeyboardInterrupt
            if view.poll() is not None:
                raise Trouble(f"`{' '.join(command)}` ended with {view.returncode}")
        finally:
            view.terminate()
            try:
                view.wait(timeout=20)
            except subprocess.TimeoutExpired:  # nothing of the demo waits for ever
                view.kill()
                view.wait()

    def _line(self, found: Mapping[str, Any]) -> str:
        parts = [
            f"{item['key']} {item['conversions']}/{item['impressions']} = {_percent(item['conversionRate'])}"
            for item in found["variants"]
        ]
        best = max(found["variants"], key=lambda item: item["probabilityToBeBest"] or 0.0)
        return f"  {',  '.join(parts)},  P({best['key']} is best) {_chance(best['probabilityToBeBest'])}"

    def ledger(self) -> Sums:
        """What the applications' reports add up to, by the variant each participant was assigned."""
        counts: Counter[tuple[str, str]] = Counter()
        for host in self.hosts:
            path = host.root / "ledger"
            text = path.read_text() if path.exists() else ""
            for line in text[: text.rfind("\n") + 1].splitlines():  # the last may be on its way
                entry = json.loads(line)
                variant = self.assigned[entry["participant"]]
                if entry["digest"] != self.digests[variant]:
                    raise Trouble(f"{entry['participant']} read something else than {variant}")
                counts[variant, entry["kind"]] += 1
        return {key: (counts[key, "impression"], counts[key, "conversion"]) for key in self.digests}

    def counted(self, population: str) -> Sums:
        """What the control plane has counted."""
        found = self.stage.ask("results", KEY, "--population", population)
        if found["rejected"] or found["lost"]["count"]:
            raise Trouble(f"{found['rejected']} did not count and {found['lost']['count']} were lost")
        return {item["key"]: (item["impressions"], item["conversions"]) for item in found["variants"]}

    def finish(self) -> None:
        """Every report is counted exactly once, and every file is what it was."""
        ledger = self.ledger()
        if not all(impressions for impressions, _ in ledger.values()):
            raise Trouble(f"the applications reported nothing for one of the variants: {ledger}")
        self.stage.wait_for("every report is counted", lambda: self.counted("assigned") == ledger)
        say()
        say(self.stage.run("variantctl", "experiments", "complete", KEY, "--then", "restore").strip())
        self.stage.run("variantctl", "experiments", "wait", KEY, "--timeout", "30s")
        for _, participant, soul in self.souls():
            if soul.read_bytes() != baseline(participant) or soul.stat().st_mode & 0o777 != 0o640:
                raise Trouble(f"the file of {participant} is not what it was before")
        say(f"every baseline is back, byte for byte: {len(self.souls())} of {len(self.souls())}")
        say()
        say(self.stage.run("variantctl", "results", KEY).rstrip())
        say()
        say(f"  ledger of the applications  {_sums(ledger)}")
        for population in ("assigned", "delivered"):
            counted = self.counted(population)
            say(f"  counted, {population:<17}  {_sums(counted)}")
            if counted != ledger:
                raise Trouble(f"the control plane counted {counted} ({population}), the ledger has {ledger}")
        total = [sum(column) for column in zip(*ledger.values(), strict=True)]
        say(f"ledger and results are equal: {total[0]} impressions, {total[1]} conversions")


def _going(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    return any(process.poll() is None for process in processes)


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"


def _chance(probability: float | None) -> str:
    """A probability, never rounded into a certainty."""
    if probability is not None and 0.0 < probability < 0.001:
        return "< 0.1 %"
    if probability is not None and 0.999 < probability < 1.0:
        return "> 99.9 %"
    return _percent(probability)


def _sums(sums: Sums) -> str:
    return ", ".join(f"{key} {conversions}/{impressions}" for key, (impressions, conversions) in sums.items())


def main() -> int:
    """Runs the demo; 0 where everything was as it has to be."""
    parser = argparse.ArgumentParser(description="A real experiment on this machine.")
    parser.add_argument("--once", action="store_true", help="finish without Ctrl-C")
    options = parser.parse_args()
    missing = [name for name in ("variantd", "variant-agent", "variantctl") if shutil.which(name) is None]
    if missing:
        say(f"{', '.join(missing)} not found on PATH; `make demo` puts them there")
        return 1

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    began = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="variantd-demo-"))
    stage = Stage(root)
    try:
        demo = Demo(stage)
        demo.set_up()
        demo.begin()
        demo.measure(once=options.once)
        demo.finish()
        stage.end()
    except (Trouble, subprocess.TimeoutExpired) as trouble:
        say(f"\n{stage.tails()}\n\nthe demo failed: {trouble}\n{root} is left as it is")
        return 1
    except KeyboardInterrupt:
        say("\ninterrupted; everything is stopped")
        shutil.rmtree(root, ignore_errors=True)
        return 130
    finally:
        stage.kill()
    shutil.rmtree(root)
    say(f"done in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
