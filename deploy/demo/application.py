"""A simulated application: assistants that read their soul before every conversation and behave by it.

It knows nothing of experiments. It reads the file it always read, and tells the agent on its host two
facts: a conversation began (an impression), and it was resolved (a conversion). The ledger it keeps holds
one line for each report the agent accepted, and is what the demo compares the control plane with.

    application.py --socket AGENT_SOCKET --ledger FILE --seed N [--conversations N] PARTICIPANT=FILE …
"""

import argparse
import hashlib
import http.client
import json
import random
import signal
import socket
import time
from pathlib import Path
from typing import Any, TextIO

PATIENCE_SECONDS = 30.0


class LocalApi(http.client.HTTPConnection):
    """The agent's local API on its Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def report(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The agent has the report on its disk; its answer.

        Asked again while the agent restarts or its spool is full: the event id in `body` makes that safe.
        """
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                response = self.getresponse()
                text = response.read().decode()
                if response.status == 202:
                    answer: dict[str, Any] = json.loads(text)
                    return answer
                trouble = f"{response.status} {text}"
                if response.status not in (429, 503):
                    raise SystemExit(f"the agent refused {path} {body}: {trouble}")
            except (OSError, http.client.HTTPException) as error:
                self.close()
                trouble = repr(error)
            if time.monotonic() > end:
                raise SystemExit(f"the agent did not accept {path} {body}: {trouble}")
            time.sleep(0.05)


class Assistant:
    """One participant: reads its file, converses, sometimes resolves."""

    def __init__(self, participant: str, soul: Path, *, seed: str) -> None:
        self.participant, self.soul = participant, soul
        self.chance = random.Random(f"{seed}/{participant}")
        self.skill = self.chance.uniform(-0.05, 0.05)  # hosts differ, whatever they are told to be
        self.count = 0

    def converse(self, agent: LocalApi, ledger: TextIO) -> None:
        """One conversation, reported and in the ledger."""
        content = self.soul.read_bytes()
        self.count += 1
        self._report("impression", content, agent, ledger)
        if self.chance.random() < self.skill + resolving(content.decode()):
            self._report("conversion", content, agent, ledger, eventName="resolved")

    def _report(self, kind: str, content: bytes, agent: LocalApi, ledger: TextIO, **fields: str) -> None:
        event = f"{self.participant}-{self.count}-{kind}"
        body = {"participantId": self.participant, "eventId": event, **fields}
        agent.report(f"/v1/{kind}s", body)
        line = {
            "participant": self.participant,
            "kind": kind,
            "digest": "sha256:" + hashlib.sha256(content).hexdigest(),
        }
        ledger.write(json.dumps(line) + "\n")
        ledger.flush()


def resolving(soul: str) -> float:
    """How often a conversation ends resolved, by what the soul says."""
    rate = 0.30
    if "answer comes first" in soul:
        rate += 0.15
    if "what happens next" in soul:
        rate += 0.03
    return rate


def main() -> None:
    """Converses until told to stop, or until every assistant has had its conversations."""
    parser = argparse.ArgumentParser(description="Simulated assistants of one host.")
    parser.add_argument("--socket", required=True, help="the agent's local API")
    parser.add_argument("--ledger", required=True, type=Path, help="one line for each accepted report")
    parser.add_argument("--seed", required=True)
    parser.add_argument("--conversations", type=int, default=0, help="of each assistant; 0: until stopped")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two rounds")
    parser.add_argument("assistants", nargs="+", metavar="PARTICIPANT=FILE")
    options = parser.parse_args()
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        # A report that is under way is finished first: the ledger has to know how it ended.
        signal.signal(number, lambda received, _: stopping.append(received))
    pairs = [text.split("=", 1) for text in options.assistants]
    assistants = [Assistant(name, Path(file), seed=options.seed) for name, file in pairs]
    agent = LocalApi(options.socket)
    with options.ledger.open("a", encoding="utf-8") as ledger:
        while not stopping and (not options.conversations or assistants[-1].count < options.conversations):
            for assistant in assistants:
                assistant.converse(agent, ledger)
            time.sleep(options.pause)
    agent.close()


if __name__ == "__main__":
    main()
