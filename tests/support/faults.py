"""The faults variantd has to survive, and which tests inject them; docs/faults.md is written from this.

A test that injects a fault and checks what has to hold says so: `@pytest.mark.fault(11, 14)`, on the function,
on one `pytest.param(…, marks=…)`, or as a module's `pytestmark`. The numbers are those of `FAULTS` and stay what
they are. Markers are read from the source, so that the page needs no test run; they are therefore literal.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent

FAULTS: Mapping[int, tuple[str, str]] = {
    1: (
        "The agent is killed at any system call of an apply",
        "Every file is old or new; a restart finishes or undoes, runs the hook that is owed, leaves nothing behind",
    ),
    2: (
        "Power is cut at any step of an apply",
        "Every file is one accepted version; what was reported applied is still there",
    ),
    3: (
        "The control plane is killed while it offers and takes reports in",
        "What it accepted is kept, nothing counts twice, delivery goes on",
    ),
    4: (
        "The agent is stopped for seconds or minutes and goes on",
        "It is shown lost within its lease; on its return it takes the newest order, never an old one",
    ),
    5: (
        "The control plane is stopped and goes on",
        "Agents notice, keep their files and their reports, and come back",
    ),
    6: (
        "The database server stops, dies, restarts or fails over",
        "Errors are bounded, no acknowledged report is lost, agents stay connected",
    ),
    7: (
        "SQLite is locked by another process",
        "Calls wait a bounded time, then say unavailable; nothing crashes, and it recovers",
    ),
    8: ("A lock or a query in PostgreSQL lasts long", "Statements time out; heartbeats do not notice"),
    9: ("The connection pool is used up", "Service degrades and recovers"),
    10: ("A notification between replicas is lost", "Replicas converge by their cursor"),
    11: (
        "The target's disk is full",
        "The offer is refused with the reason; the old content stays; no temporary file is left",
    ),
    12: (
        "The spool's disk is full",
        "Callers are told, or the exact count is declared lost; it recovers by itself",
    ),
    13: (
        "The database's disk is full",
        "Writes are refused with a clear error; reads and sessions go on; it recovers",
    ),
    14: ("The target's disk has no inode left", "As with a full disk"),
    15: ("A quota or file size limit is reached", "As with a full disk"),
    16: (
        "The file system is read-only, or becomes so",
        "The offer is refused with the reason; the agent is degraded and recovers",
    ),
    17: (
        "fsync fails, once or always",
        "A failed fsync is never repeated as if it had worked: content is written anew or refused",
    ),
    18: (
        "The target is a bind-mounted file",
        "The offer is refused with the reason; nothing is written in place",
    ),
    19: (
        "The target's directory is on another file system",
        "It is written all the same: the temporary file is beside the target",
    ),
    20: ("The target is immutable or append-only", "The offer is refused and names the cause"),
    21: (
        "The target becomes a symlink, directory, FIFO or device",
        "It is refused; no link is followed out, no FIFO blocks",
    ),
    22: (
        "A parent directory is swapped for a symlink during an apply",
        "Nothing outside the root is touched",
    ),
    23: (
        "The target is deleted, truncated, edited, replaced, or changes its mode",
        "Drift of the right kind is seen, once, in time",
    ),
    24: (
        "The directory watch overflows, hits its limit, or loses its directory",
        "The periodic re-hash goes on alone, and the agent says so",
    ),
    25: (
        "Another tool keeps rewriting the target",
        "Repairs are limited in rate, then held, and an operator is told",
    ),
    26: (
        "The network is cut in both directions",
        "Both sides notice within the lease, and go on when it returns",
    ),
    27: ("The network loses one direction", "Heartbeats both ways notice"),
    28: ("A connection is open at one end only", "Heartbeats notice"),
    29: ("The network is slow, loses or reorders", "Nobody is called lost below the bound"),
    30: (
        "A peer does not read",
        "Its write deadline ends the session; memory stays bounded",
    ),
    31: (
        "A stream is cut within a message or content, or a byte of it is changed",
        "Nothing damaged is accepted; a fetch goes on where it was",
    ),
    32: (
        "The whole fleet returns at once",
        "Sessions are opened so many at a time, in the order in which hosts came; the operator API answers throughout",
    ),
    33: ("Every stream is refused at once", "Attempts are spaced; nobody loops"),
    34: (
        "A connection is ended by age, GOAWAY or too many pings",
        "The next session is open before the old one ends; back-off grows",
    ),
    35: (
        "Two agents have one identity",
        "The newest wins or both are quarantined; their counts are never mixed",
    ),
    36: (
        "An agent's state directory is restored from an image",
        "The regress is noticed; nothing is counted twice or lost in silence",
    ),
    37: (
        "The control plane's database is restored from a backup",
        "Agents refuse to go backwards; an operator's order goes on",
    ),
    38: ("The desired state of everything is gone", "Nothing is withdrawn in mass"),
    39: (
        "A certificate expires while its agent is offline",
        "The agent says so, keeps its files, and returns with its own key",
    ),
    40: ("The authority is replaced, half of the fleet knows", "Both overlap, both ways"),
    41: (
        "An agent is banned while its session is open",
        "The session ends within a second, and none opens",
    ),
    42: (
        "An enrollment token is used twice, at once, or after its time",
        "It lets in exactly as many as it says",
    ),
    43: (
        "The wall clock jumps: a day, backwards, to 2038",
        "Leases and back-off do not notice; assignments stay; certificates tolerate skew",
    ),
    44: ("The machine is suspended and resumed", "As an agent that was stopped"),
    45: (
        "The spool is damaged: torn, flipped, zeroed, missing, foreign, from the future",
        "Only what is damaged is lost, counted and declared; the rest goes on",
    ),
    46: (
        "Ten million records wait at the start",
        "Memory stays flat; the agent is ready in two seconds",
    ),
    47: (
        "The journal or state is damaged, empty or from a newer version",
        "It is rebuilt from the disk and the control plane, never guessed",
    ),
    48: (
        "A hook hangs, forks, floods its output, fails, kills its parent",
        "Its process group ends at the limit; the outcome is right",
    ),
    49: ("The hook succeeds and the application is unhealthy", "Rolled back, and the content quarantined"),
    50: ("The rollback fails as well", "Stuck, loudly, without a loop"),
    51: (
        "The control plane is hostile",
        "Paths, sizes, digests, revisions and floods are refused with bounded memory",
    ),
    52: ("An agent is hostile", "Limits hold; who it is comes from its certificate; it can be banned"),
    53: ("A process runs out of memory", "It restarts and goes on; no acknowledged report is lost"),
    54: ("File descriptors run out", "New connections are refused, old ones live, and it recovers"),
    55: ("There is next to no processor time", "Nobody is called lost below the bound"),
    56: (
        "Names resolve wrongly, slowly or not at all",
        "Attempts are spaced; it goes on once they resolve",
    ),
    57: (
        "systemd stops the agent during an apply",
        "The apply is finished or undone within the limit",
    ),
    58: (
        "Agents and control planes of two versions meet, in every order",
        "Desired content arrives; nobody goes backwards",
    ),
    59: ("Two replicas believe they lead", "The write of the one that does not is refused"),
    60: (
        "A part of the fleet is away for days during a delivery",
        "On its return it takes the present order, not an old one",
    ),
    61: (
        "Lifecycle verbs and new revisions come in any order",
        "The table of states holds, and what is desired follows from it",
    ),
    62: (
        "The log's disk is full, or nobody reads the log",
        "The agent works on: nothing waits for a log line",
    ),
}
"""By number: the fault, and what variantd must do."""


def injected() -> dict[int, list[str]]:
    """By number of the fault, the tests that say they inject it: `path::name`, or the path for a whole module.

    Raises ValueError for a marker that is not made of literal numbers.
    """
    found: dict[int, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        shown = path.relative_to(TESTS.parent).as_posix()
        for name, numbers in _marked(path):
            for number in numbers:
                found.setdefault(number, []).append(f"{shown}::{name}" if name else shown)
    return found


def _marked(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    text = path.read_text()
    if "mark.fault" not in text:
        return
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            marks = [number for part in node.decorator_list for number in _numbers(part, path)]
            if marks:
                yield node.name, tuple(dict.fromkeys(marks))
        elif isinstance(node, ast.Assign) and any(ast.unparse(t) == "pytestmark" for t in node.targets):
            yield "", tuple(_numbers(node.value, path))


def _numbers(within: ast.expr, path: Path) -> Iterator[int]:
    for node in ast.walk(within):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            for argument in node.args:
                if not isinstance(argument, ast.Constant) or not isinstance(argument.value, int):
                    raise ValueError(f"{path}:{node.lineno}: a fault is marked by its literal number")
                yield argument.value
