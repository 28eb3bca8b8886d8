"""What a host says of content before it is assigned: as an offer would go, and without a trace."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig
from agent.policy import fingerprint
from agent.preflight import BUDGET_SECONDS, Preflights
from shared import preflight as messages
from shared.clock import Clock, SystemClock
from shared.errors import Invalid
from shared.ids import new_id
from shared.model import (
    MAX_PREFLIGHT_FILES,
    PREFLIGHT,
    OfferedFile,
    Preflight,
    PreflightResult,
    ReasonCode,
    Result,
    Verdict,
    digest,
)
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from tests.support.clock import FakeClock
from tests.support.control_plane import ScriptedControlPlane
from tests.support.host import OTHER_SLOT, Host, make_config, make_offer, make_participant, running_host
from tests.support.link import linked
from tests.support.waiting import eventually

NO_ATS = (sys.executable, "-c", "import sys; sys.exit('@' in open(sys.argv[1]).read())", "{staged}")
"""A check that refuses content with an @ in it."""


@pytest.fixture
async def control_plane() -> AsyncIterator[ScriptedControlPlane]:
    """A control plane that admits and acknowledges."""
    server = ScriptedControlPlane()
    async with server.running():
        yield server


def file(path: str, text: str, *, inline: bool = True) -> OfferedFile:
    content = text.encode()
    return OfferedFile(
        path=path, digest=digest(content), size=len(content), content=content if inline else None
    )


def question(*files: OfferedFile, participant: str = "bot-1") -> Preflight:
    return Preflight(request_id=new_id(), participant=participant, files=files)


class Asked:
    """The preflights of a host, and its answers."""

    def __init__(self, host: Host, config: AgentConfig, clock: Clock) -> None:
        self.results: list[PreflightResult] = []
        self.preflights = Preflights(
            config, judge=host.reconciler.judge, tell=self.results.append, clock=clock
        )

    async def verdicts(self, *files: OfferedFile) -> dict[tuple[str, bytes], ReasonCode | None]:
        """The reason code by path and digest, None where the content would be taken."""
        asked = question(*files)
        self.preflights.ask(asked)
        await eventually(lambda: self.results and self.results[-1].request_id == asked.request_id)
        return {(v.path, v.digest): v.refused and v.refused.code for v in self.results[-1].verdicts}


@asynccontextmanager
async def asked(
    tmp_path: Path, *, clock: Clock | None = None, **participant: Any
) -> AsyncIterator[tuple[Host, Asked]]:
    """A host whose one participant has these rules, and what it is asked."""
    config = make_config(tmp_path, make_participant(tmp_path / "root", **participant))
    async with running_host(tmp_path, **participant) as host:
        found = Asked(host, config, clock or SystemClock())
        try:
            yield host, found
        finally:
            await found.preflights.stop()


def trace(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file and folder beneath a root: inode, time of its last change, content."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (status.st_ino, status.st_ctime_ns if content else 0, content)
    return found


async def test_every_file_of_every_variant_is_judged_and_nothing_is_touched(tmp_path: Path) -> None:
    """Policy, size, check and the way to the file decide, each for itself; targets, folders and journal stay."""
    async with asked(tmp_path, check=NO_ATS, max_bytes=20) as (host, host_asked):
        (host.root / "soul.md").write_text("mine")
        (host.root / "link.md").symlink_to("soul.md")
        os.mkfifo(host.root / "pipe.md")
        before, journal = trace(host.root), trace(host.state_dir / "journal")
        files = [
            (file("soul.md", "kind"), None),
            (file("soul.md", "m@il"), ReasonCode.CHECK_FAILED),
            (file("soul.md", "x" * 21), ReasonCode.TOO_LARGE),
            (file("config/new.md", "kind"), None),
            (file("deep/er/new.md", "k@nd"), ReasonCode.CHECK_FAILED),
            (file("secrets.txt", "kind"), ReasonCode.TARGET_NOT_ALLOWED),
            (file("../soul.md", "kind"), ReasonCode.PATH_ESCAPES_ROOT),
            (file("link.md", "kind"), ReasonCode.SYMLINK_REFUSED),
            (file("pipe.md", "kind"), ReasonCode.NOT_A_REGULAR_FILE),
        ]
        found = await host_asked.verdicts(*(item for item, _ in files))
        assert found == {(item.path, item.digest): code for item, code in files}
        [result] = host_asked.results
        assert [(v.path, v.digest) for v in result.verdicts] == [(f.path, f.digest) for f, _ in files]
        assert result.policy == fingerprint(make_participant(host.root, check=NO_ATS, max_bytes=20))
        assert trace(host.root) == before
        assert (host.leftovers(), host.views, host.outcomes) == ([], [], [])
        assert host.reconciler.slots() == ()
        assert trace(host.state_dir / "journal") == journal


async def test_content_that_the_file_holds_already_is_checked_too(tmp_path: Path) -> None:
    """It may be written again later, by a switchback or a restored variant, and would be refused then."""
    async with asked(tmp_path, check=NO_ATS) as (host, host_asked):
        (host.root / "soul.md").write_text("m@ine")
        assert list((await host_asked.verdicts(file("soul.md", "m@ine"))).values()) == [
            ReasonCode.CHECK_FAILED
        ]


async def test_an_offer_is_refused_for_the_very_same_reason(tmp_path: Path) -> None:
    """Message and remedy too: both say what one and the same code found."""
    async with asked(tmp_path, check=NO_ATS, max_bytes=20) as (host, host_asked):
        (host.root / "link.md").symlink_to("soul.md")
        texts = {"soul.md": "m@il", "config/a.md": "x" * 21, "no.txt": "a", "link.md": "a"}
        await host_asked.verdicts(*(file(path, text) for path, text in texts.items()))
        refused = {verdict.path: verdict.refused for verdict in host_asked.results[0].verdicts}
        for number, (path, text) in enumerate(texts.items(), start=1):
            outcome = await host.apply(make_offer({path: text}, slot_id=number.to_bytes(16)))
            assert outcome.result is Result.REFUSED
            assert outcome.reason == refused[path]


async def test_larger_content_is_fetched_and_what_does_not_come_has_no_verdict(tmp_path: Path) -> None:
    """What policy forbids is not even fetched, and content that is not the one announced is refused."""
    async with asked(tmp_path, max_bytes=10) as (host, host_asked):
        there, gone, big = (file("soul.md", text, inline=False) for text in ("here", "gone", "x" * 11))
        forged = OfferedFile(path="soul.md", digest=digest(b"other"), size=4)
        host.contents = {there.digest or b"": b"here", forged.digest or b"": b"evil"}
        assert await host_asked.verdicts(gone, there, big, forged) == {
            ("soul.md", there.digest): None,
            ("soul.md", big.digest): ReasonCode.TOO_LARGE,
            ("soul.md", forged.digest): ReasonCode.DIGEST_MISMATCH,
        }


async def test_two_paths_that_are_one_file_are_not_both_taken(tmp_path: Path) -> None:
    """As an offer of both is not; several contents for one path are nothing of the kind."""
    async with asked(tmp_path, follow_symlinks=True) as (host, host_asked):
        (host.root / "soul.md").write_text("mine")
        (host.root / "link.md").symlink_to("soul.md")
        one, other, linked_file = file("soul.md", "a"), file("soul.md", "b"), file("link.md", "a")
        assert await host_asked.verdicts(one, other, linked_file) == {
            ("soul.md", one.digest): None,
            ("soul.md", other.digest): None,
            ("link.md", linked_file.digest): ReasonCode.SYMLINK_REFUSED,
        }


async def test_a_host_on_hold_says_nothing(tmp_path: Path) -> None:
    """It writes nothing, not even beside a target, and the answer has no verdict; afterwards it has."""
    async with asked(tmp_path) as (host, host_asked):
        await host.reconciler.hold()
        assert await host_asked.verdicts(file("soul.md", "a")) == {}
        await host.reconciler.release()
        assert list((await host_asked.verdicts(file("soul.md", "a"))).values()) == [None]


async def test_a_file_that_the_host_holds_is_refused_to_any_content(tmp_path: Path) -> None:
    """Somebody changed it and the host's drift policy keeps it so; a file of another slot is none of that."""
    async with asked(tmp_path, max_bytes=8) as (host, host_asked):
        await host.apply(make_offer({"soul.md": "A"}, slot_id=OTHER_SLOT))
        assert list((await host_asked.verdicts(file("soul.md", "B"))).values()) == [None]
        (host.root / "soul.md").write_text("too long to put back")
        assert list((await host_asked.verdicts(file("soul.md", "B"))).values()) == [ReasonCode.TOO_LARGE]


async def test_the_newest_question_of_a_participant_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    """The older one is given up, its staged content gone and its check killed; only the newer is answered."""
    running = tmp_path / "running"
    slow = (  # it would sleep far longer than the test lasts, and is killed
        sys.executable,
        "-c",
        "import sys, time, pathlib\nif 'slow' in open(sys.argv[1]).read():\n"
        f" pathlib.Path({str(running)!r}).touch(); time.sleep(60)",
        "{staged}",
    )
    async with asked(tmp_path, check=slow) as (host, host_asked):
        host_asked.preflights.ask(question(file("soul.md", "slow")))
        await eventually(running.exists)
        assert len(host.leftovers()) == 1
        assert list((await host_asked.verdicts(file("soul.md", "quick"))).values()) == [None]
        assert len(host_asked.results) == 1
        assert host.leftovers() == []


async def test_a_stop_leaves_nothing_that_was_staged(tmp_path: Path) -> None:
    """Nor does a lost session: nobody waits for the answer any more."""
    running = tmp_path / "running"
    check = ("sh", "-c", f"touch {running}; sleep 60", "{staged}")
    for ending in ("stop", "drop"):
        async with asked(tmp_path, check=check) as (host, host_asked):
            running.unlink(missing_ok=True)
            host_asked.preflights.ask(question(file("soul.md", "a")))
            await eventually(running.exists)
            if ending == "drop":
                host_asked.preflights.drop()
            else:
                await host_asked.preflights.stop()
            await eventually(lambda: host.leftovers() == [])
            assert host_asked.results == []


async def test_an_answer_is_given_with_what_was_judged_once_its_time_is_up() -> None:
    """No file is begun after it; the others are left out, and may be asked again."""
    clock = FakeClock()
    results: list[PreflightResult] = []

    async def judge(participant: str, one: OfferedFile) -> str:
        await clock.advance(BUDGET_SECONDS * 0.6)
        return one.path

    config = make_config(Path(), make_participant(Path(), root_is_made=False))
    preflights = Preflights(config, judge=judge, tell=results.append, clock=clock)
    preflights.ask(question(*(file(f"{name}.md", name) for name in "abcd")))
    await eventually(lambda: results)
    assert [verdict.path for verdict in results[0].verdicts] == ["a.md", "b.md"]


async def test_a_flood_of_questions_costs_a_bounded_number_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it they stay without answer; those under way are answered."""
    monkeypatch.setattr("agent.preflight.MAX_WAITING", 20)
    results: list[PreflightResult] = []
    go = asyncio.Event()

    async def judge(participant: str, one: OfferedFile) -> str:
        await go.wait()
        return one.path

    config = make_config(Path(), make_participant(Path(), root_is_made=False))
    preflights = Preflights(config, judge=judge, tell=results.append, clock=SystemClock())
    for number in range(25):
        preflights.ask(question(file("a.md", "a"), participant=f"bot-{number}"))
    go.set()
    await eventually(lambda: len(results) == 20)
    await preflights.stop()
    assert len(results) == 20


def test_the_fingerprint_follows_what_decides() -> None:
    """Another limit, check, root or target is another fingerprint; a label or a reload command is not."""
    config = make_participant(Path("/srv/bot"), root_is_made=False)
    same = [
        make_participant(Path("/srv/bot"), root_is_made=False, labels={"a": "b"}),
        make_participant(Path("/srv/bot"), root_is_made=False, reload=("true",)),
    ]
    others = [
        make_participant(Path("/srv/cat"), root_is_made=False),
        make_participant(Path("/srv/bot"), root_is_made=False, max_bytes=7),
        make_participant(Path("/srv/bot"), root_is_made=False, check=("true",)),
        make_participant(Path("/srv/bot"), root_is_made=False, targets=("a.md",)),
        make_participant(Path("/srv/bot"), root_is_made=False, follow_symlinks=True),
    ]
    assert {fingerprint(item) for item in same} == {fingerprint(config)}
    assert len({fingerprint(item) for item in (config, *others)}) == 6


def test_messages_and_nouns_are_the_same_both_ways() -> None:
    """What a correct peer never sends is refused by its field."""
    asked_for = question(file("a.md", "a"), file("a.md", "b", inline=False))
    assert messages.from_pb(messages.to_pb(asked_for)) == asked_for
    found = PreflightResult(
        request_id=new_id(), verdicts=(Verdict(path="a.md", digest=digest(b"a")),), policy=b"x" * 32
    )
    assert messages.result_from_pb(messages.result_to_pb(found)) == found
    one = pb.OfferedFile(path="a.md", digest=bytes(32))
    for wrong in (
        pb.Preflight(request_id=bytes(16), participant_id="bot"),
        pb.Preflight(request_id=bytes(16), participant_id="bot", files=[one] * (MAX_PREFLIGHT_FILES + 1)),
        pb.Preflight(request_id=bytes(3), participant_id="bot", files=[one]),
        pb.Preflight(request_id=bytes(16), participant_id="../bot", files=[one]),
        pb.Preflight(request_id=bytes(16), participant_id="bot", files=[pb.OfferedFile(path="a.md")]),
    ):
        with pytest.raises(Invalid, match="preflight"):
            messages.from_pb(wrong)
    with pytest.raises(Invalid, match="policy"):
        messages.result_from_pb(pb.PreflightResult(policy=bytes(33)))


@pytest.mark.parametrize("transport", ["stream", "poll"])
async def test_a_session_asks_and_is_told(
    tmp_path: Path, control_plane: ScriptedControlPlane, transport: str
) -> None:
    """On a stream and in polls; Hello says that it can be asked, and by which policy it decides."""
    asked_for = question(
        OfferedFile(path="SOUL.md", digest=digest(b"a"), size=1, content=b"a"),
        OfferedFile(path="other", digest=digest(b"a"), size=1, content=b"a"),
    )
    async with linked(tmp_path, control_plane, transport=transport):
        said = pb.SyncResponse(preflight=messages.to_pb(asked_for))
        if transport == "stream":
            sync = await control_plane.session()
            hello = sync.hello
            await sync.send(preflight=said.preflight)
            heard = sync.heard
        else:
            await eventually(lambda: control_plane.polls)
            control_plane.to_poll.append(said)
            heard = []

        def told() -> list[pb.PreflightResult]:
            in_polls = [message for poll in control_plane.polls for message in poll.messages]
            found = [*heard, *in_polls]
            return [m.preflight_result for m in found if m.WhichOneof("message") == "preflight_result"]

        await eventually(told)
        [result] = told()
        if transport == "poll":
            first = control_plane.polls[0].messages[0].hello
            assert PREFLIGHT in first.capabilities
            policy = first.participants[0].policy
        else:
            assert PREFLIGHT in hello.capabilities
            policy = hello.participants[0].policy
        assert len(policy) == 32
        found = messages.result_from_pb(result)
        assert (found.request_id, found.policy) == (asked_for.request_id, policy)
        codes = [verdict.refused and verdict.refused.code for verdict in found.verdicts]
        assert codes == [None, ReasonCode.TARGET_NOT_ALLOWED]
        assert not (tmp_path / "bot-1" / "SOUL.md").exists()


async def test_a_question_that_is_withdrawn_leaves_no_content(tmp_path: Path) -> None:
    """A newer question, a session's end or a reload cancels it at any moment, the staging included."""
    async with running_host(tmp_path, check=("true",)) as host:
        [file] = make_offer({"soul.md": "secret"}).files
        asked = asyncio.create_task(host.reconciler.judge("bot-1", file))
        await asyncio.sleep(0)  # it has begun to stage
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        assert host.leftovers() == []
