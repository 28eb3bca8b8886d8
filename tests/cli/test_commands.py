"""Every command against a real control plane, with an agent's stream played by hand."""

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared import wire
from shared.ids import new_id
from shared.model import Offer, OfferAction, Reason, ReasonCode, Result
from tests.cli.conftest import Run, Said
from tests.cli.test_watch import ended, watching
from tests.support.builders import make_hello
from tests.support.network import proxied
from tests.support.plane import Plane, running_plane
from tests.support.stream import make_outcome, session
from tests.support.waiting import eventually

REFUSED = Reason(code=ReasonCode.TARGET_NOT_ALLOWED, message="not among the targets", remedy="allow it")


def without(value: Any, names: Sequence[str]) -> Any:
    """The JSON without these keys, anywhere."""
    if isinstance(value, dict):
        return {key: without(item, names) for key, item in value.items() if key not in names}
    return [without(item, names) for item in value] if isinstance(value, list) else value


async def test_json_is_what_rest_answers(plane: Plane, running: Run) -> None:
    """`--json` prints the very resource REST answers: names, nulls, numbers, revisions as text."""
    token = await plane.token()
    identity = await plane.enroll(token)
    async with session(identity, make_hello("bot-1", "bot-2")) as stream:
        first, second = await stream.offer(), await stream.offer()
        await stream.report(first, Result.APPLIED)
        await stream.report(second, Result.REFUSED, reason=REFUSED)
        agent = (await plane.rest("GET", "/v1/agents")).body["entities"][0]["id"]
        for words, path in [
            (("experiments", "get", "soul-tone"), "/v1/experiments/soul-tone"),
            (("experiments", "list"), "/v1/experiments"),
            (("experiments", "assignments", "soul-tone"), "/v1/experiments/soul-tone/assignments"),
            (("experiments", "deployments", "soul-tone"), "/v1/experiments/soul-tone/deployments"),
            (("participants", "list"), "/v1/participants"),
            (("participants", "get", "bot-1"), "/v1/participants/bot-1"),
            (("agents", "list"), "/v1/agents"),
            (("agents", "get", agent), f"/v1/agents/{agent}"),
            (("results", "soul-tone"), "/v1/experiments/soul-tone/results"),
            (("audit",), "/v1/audit-log"),
        ]:
            said = await running(*words, "--json")
            assert (said.code, said.err) == (0, "")
            rest = (await plane.rest("GET", path)).body
            # Moments move on; lists leave the warnings of a create out, where a message has an empty list.
            # The list is whole here, so how much of it one page held is nobody's question.
            besides = ("computedAt", "lastSeenAt", "warnings", "limit")
            assert without(said.json, besides) == without(rest, besides), words


async def test_a_list_is_whole(plane: Plane, ctl: Run) -> None:
    """Lists follow their pages to the end, and --limit stops them."""
    for index in range(130):
        await plane.made("/v1/participants", {"id": f"bot-{index:03}"})
    said = await ctl("participants", "list", "--json")
    assert [item["id"] for item in said.json["entities"]] == [f"bot-{index:03}" for index in range(130)]
    some = (await ctl("participants", "list", "--json", "--limit", "101")).json["entities"]
    assert len(some) == 101
    assert len((await ctl("participants", "list")).out.splitlines()) == 131


async def test_global_options_stand_anywhere(plane: Plane, ctl: Run) -> None:
    """--json and the connection before the command are the same as after it."""
    before = await ctl("--json", "--profile", "default", "experiments", "list")
    after = await ctl("experiments", "list", "--json", "--profile", "default")
    assert before.json == after.json == {"entities": [], "pagination": {"nextCursor": None, "hasMore": False}}


# -- life


async def test_the_verbs_of_a_life(running: Run) -> None:
    """Each verb says the state it led to; a verb that does not fit is a conflict naming those that do."""
    assert (
        "soul-tone is paused; 2 participants: friendly 1, concise 1"
        in (await running("experiments", "pause", "soul-tone")).out
    )
    said = await running("experiments", "pause", "soul-tone")
    assert said.code == 4
    assert said.err.startswith("variantctl: a paused experiment cannot pause; allowed now: resume, ")
    assert "is running" in (await running("experiments", "resume", "soul-tone")).out
    assert "is stopped" in (await running("experiments", "stop", "soul-tone")).out
    words = ("--winner", "concise", "--conclusion", "won", "--comment", "ship it", "--then", "restore")
    said = await running("experiments", "complete", "soul-tone", *words, "--json")
    assert said.json["publishStatus"] == "published"
    ended = said.json["experiment"]
    assert (ended["status"], ended["conclusion"], ended["conclusionComment"]) == (
        "completed",
        "won",
        "ship it",
    )
    assert ended["winnerVariantId"] == ended["variants"][1]["id"]
    described = (await running("experiments", "get", "soul-tone")).out
    assert ["winner", "concise"] in [line.split() for line in described.splitlines()]
    assert (await running("experiments", "delete", "soul-tone")).code == 0
    assert (await running("experiments", "list")).out == "there is no experiment yet\n"


async def test_a_start_that_cannot_be_lists_every_fault(ctl: Run, manifest: Path) -> None:
    """Each field at fault has a line of its own, with what to do."""
    text = manifest.read_text().replace("isControl: true, weight: 50", "weight: 40")
    manifest.write_text(text.replace("[bot-1, bot-2]", "[]"))
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    said = await ctl("experiments", "start", "soul-tone")
    assert said.code == 4
    lines = said.err.splitlines()
    assert lines[0] == "variantctl: the experiment is not ready (NOT_READY)"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "variants.isControl",
        "variants.weight",
        "participants",
    ]
    assert all("; " in line for line in lines[1:])


async def test_what_is_not_there_is_exit_code_1(ctl: Run) -> None:
    """An unknown experiment is an error, told in one line."""
    said = await ctl("experiments", "get", "nope")
    assert (said.code, said.out) == (1, "")
    assert said.err == "variantctl: there is no experiment 'nope' (EXPERIMENT_NOT_FOUND)\n"


async def test_an_experiment_as_json(running: Run) -> None:
    """-o json is the whole resource, as --json is."""
    said = await running("experiments", "get", "soul-tone", "-o", "json")
    assert (said.json["key"], said.json["status"]) == ("soul-tone", "running")
    assert said == await running("experiments", "get", "soul-tone", "--json")


# -- deployments


async def test_deploying_waits_for_the_host(plane: Plane, running: Run) -> None:
    """--wait ends with the host's outcome: 0 once it holds the variant, 3 with its reason and remedy."""
    words = ("deploy", "soul-tone", "-p", "bot-1", "-v", "concise")
    async with session(await plane.enroll(await plane.token()), make_hello("bot-1")) as stream:
        await stream.report(await stream.offer(), Result.APPLIED)
        waiting = asyncio.create_task(running(*words, "--wait"))
        await stream.report(await stream.offer(), Result.APPLIED)
        assert await waiting == Said(code=0, out="concise on bot-1: applied\n", err="")
        waiting = asyncio.create_task(running(*words, "--wait", "--retry", "--overwrite-drift"))
        offer = await stream.offer()
        assert (offer.retry, offer.overwrite_drift) == (True, True)
        await stream.report(offer, Result.REFUSED, reason=REFUSED)
        said = await waiting
    assert (said.code, said.out) == (3, "concise on bot-1: refused\n")
    assert said.err == (
        "variantctl: bot-1 has refused it: TARGET_NOT_ALLOWED: not among the targets; allow it\n"
    )


async def test_a_deployment_that_is_superseded_did_not_converge(plane: Plane, running: Run) -> None:
    """Somebody else's newer deployment ends the wait with 3."""
    words = ("deploy", "soul-tone", "-p", "bot-1", "-v", "concise")
    waiting = asyncio.create_task(running(*words, "--wait"))

    async def there() -> bool:
        found = (await plane.rest("GET", "/v1/experiments/soul-tone/deployments")).body["entities"]
        return bool(found[0]["origin"] != "start")

    await eventually(there)
    assert (await running(*words)).code == 0
    said = await waiting
    assert (said.code, "superseded" in said.err) == (3, True)


async def test_a_health_window_that_something_newer_ends_is_no_confirmation(
    plane: Plane, running: Run
) -> None:
    """Applied, and nobody will know whether the application was well with it: 3, and why."""
    words = ("deploy", "soul-tone", "-p", "bot-1", "-v", "concise")
    async with (
        proxied(plane.addresses["operator"]) as network,
        session(await plane.enroll(await plane.token()), make_hello("bot-1")) as stream,
    ):
        await stream.report(await stream.offer(), Result.APPLIED)
        there = ("--server", network.address, "--ca", str(plane.data / "ca" / "ca.pem"))
        key = ("--api-key-file", str(plane.data / "operator.api-key"))
        waiting = asyncio.create_task(running(*words, "--wait", *there, *key))
        applied = replace(make_outcome(await stream.offer(), Result.APPLIED), confirming=True)
        await stream.send(outcome=wire.outcome_to_pb(applied))
        await stream.receive("outcome_ack")
        for _ in range(2):  # the second answer was asked for when the window ran
            enough = network.forwarded["down"] + 300
            await eventually(lambda: network.forwarded["down"] > enough)  # noqa: B023
        assert (await running(*words)).code == 0
        said = await waiting
    assert (said.code, said.out) == (3, "concise on bot-1: applied\n")
    assert "was given something newer" in said.err
    assert "before its health window was over" in said.err


async def test_nobody_answers(running: Run) -> None:
    """A host that is not connected times out with 5, or is 4 at once where a connection is required."""
    words = ("deploy", "soul-tone", "-p", "bot-1", "-v", "concise")
    said = await running(*words, "--wait", "--timeout", "100ms")
    assert said.code == 5
    assert "still pending after 0.1 s; its agent is not connected" in said.err
    said = await running(*words, "--require-connected")
    assert (said.code, "NOT_CONNECTED" in said.err) == (4, True)
    said = await running("experiments", "wait", "soul-tone", "--timeout", "100ms")
    assert said.code == 5
    assert "  bot-2 is pending; its agent is not connected\n" in said.err


async def test_a_control_plane_that_is_away_is_no_answer_about_hosts(running: Run) -> None:
    """Waiting ends with 5 and says who does not answer, not how many hosts hold what they should."""
    words = ("experiments", "wait", "soul-tone", "--timeout", "100ms")
    for json_too in ((), ("--json",)):
        said = await running(*words, "--server", "127.0.0.1:1", "--api-key-file", "-", *json_too, stdin="k")
        assert (said.code, said.out) == (5, "")
        assert said.err == (
            "variantctl: gave up waiting for the hosts of soul-tone after 0.1 s: cannot reach 127.0.0.1:1:"
            " nothing listens there; is `variantd serve` running?\n"
        )


@pytest.mark.parametrize("heals", [True, False])
async def test_a_control_plane_that_stands_still_is_waited_for(
    plane: Plane, running: Run, monkeypatch: pytest.MonkeyPatch, heals: bool
) -> None:
    """A call without an answer ends no wait before its time, nor later; where none has one in the end, that is said."""
    if heals:
        monkeypatch.setattr("control_plane.cli.session.CALL_SECONDS", 1.5)
    agent = await plane.enroll(await plane.token())
    async with (
        proxied(plane.addresses["operator"]) as network,
        session(agent, make_hello("bot-1")) as stream,
    ):
        await stream.report(await stream.offer(), Result.APPLIED)
        there = ("--server", network.address, "--ca", str(plane.data / "ca" / "ca.pem"))
        key = ("--api-key-file", str(plane.data / "operator.api-key"))
        words = ("deploy", "soul-tone", "-p", "bot-1", "-v", "concise", "--wait", "--timeout")
        waiting = asyncio.create_task(running(*words, "60s" if heals else "4s", *there, *key))
        offer = await stream.offer()
        enough = network.forwarded["down"] + 2000  # it is deployed, and was asked about
        await eventually(lambda: network.forwarded["down"] > enough)
        network.hold()
        if heals:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waiting), 2.5)
            assert not waiting.done()
            network.heal()
            await stream.report(offer, Result.APPLIED)
            assert await waiting == Said(code=0, out="concise on bot-1: applied\n", err="")
        else:
            said = await waiting
            assert (said.code, said.out) == (5, "concise on bot-1: offered\n")
            assert said.err.startswith("variantctl: gave up waiting for bot-1 after 4 s: ")
            asked = re.search(f": {network.address} did not answer within ([0-9]+) s", said.err)
            assert asked is not None
            assert int(asked[1]) <= 4


async def test_waiting_for_an_experiment(plane: Plane, running: Run) -> None:
    """`experiments wait` ends once every participant's newest deployment has: 0, or 3 naming who failed."""
    async with session(await plane.enroll(await plane.token()), make_hello("bot-1", "bot-2")) as stream:
        waiting = asyncio.create_task(running("experiments", "wait", "soul-tone"))
        first, second = await stream.offer(), await stream.offer()
        await stream.report(first, Result.APPLIED)
        await stream.report(second, Result.APPLIED)
        said = await waiting
        assert (said.code, said.out) == (0, "soul-tone: 2 of 2 participants hold what they should\n")
        variant = (await running("experiments", "assignments", "soul-tone", "--json")).json["entities"][0]
        await running("deploy", "soul-tone", "-p", "bot-1", "-v", variant["variantId"])
        await stream.report(await stream.offer(), Result.REFUSED, reason=REFUSED)
        said = await running("experiments", "wait", "soul-tone")
    assert said.code == 3
    assert "1 of 2 participants" in said.out
    assert "  bot-1 has refused it: TARGET_NOT_ALLOWED" in said.err


async def test_a_draft_has_nobody_to_wait_for(ctl: Run, manifest: Path) -> None:
    """`wait` says that nothing was deployed, not that nobody of nobody holds it."""
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    said = await ctl("experiments", "wait", "soul-tone")
    assert (said.code, said.out) == (0, "soul-tone: nothing was deployed for it yet\n")


async def test_hosts_of_a_large_fleet_are_counted(plane: Plane, ctl: Run, manifest: Path) -> None:
    """Where many are waited for, some are named, and the command is that lists all."""
    bots = ", ".join(f"bot-{number:02}" for number in range(1, 54))
    manifest.write_text(manifest.read_text().replace("[bot-1, bot-2]", f"[{bots}]"))
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    assert (await ctl("experiments", "start", "soul-tone")).code == 0
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("bot-01")) as stream:
        await stream.report(await stream.offer(), Result.REFUSED, reason=REFUSED)
    said = await ctl("experiments", "wait", "soul-tone", "--timeout", "100ms")
    lines = said.err.splitlines()
    command = "variantctl experiments deployments soul-tone --current --unsettled"
    assert (said.code, sum(line.startswith("  bot-") for line in lines)) == (3, 51)
    assert f"  and 2 more; all: {command}" in lines
    shown = (await ctl(*command.split()[1:], "--json")).json["entities"]
    assert sorted(item["participantId"] for item in shown) == bots.split(", ")[1:]
    (refused,) = (await ctl("experiments", "deployments", "soul-tone", "--state", "refused", "--json")).json[
        "entities"
    ]
    assert refused["participantId"] == "bot-01"
    assert "none is so" in (await ctl("experiments", "deployments", "soul-tone", "--state", "stuck")).out


async def test_what_is_newest_is_no_matter_of_clocks(run: Run, tmp_path: Path, manifest: Path) -> None:
    """Deployed by a server whose clock is behind, the newest one is waited for and taken back."""
    behind = False

    def ids() -> bytes:
        made = new_id()
        return bytes([made[0] - 1]) + made[1:] if behind else made

    words = ("soul-tone", "-p", "bot-1")
    async with running_plane(tmp_path / "data", ids=ids) as plane:
        assert (await run("login", "--data-dir", str(plane.data))).code == 0
        async with session(await plane.enroll(await plane.token()), make_hello("bot-1", "bot-2")) as stream:
            assert (await run("apply", "-f", str(manifest))).code == 0
            assert (await run("experiments", "start", "soul-tone")).code == 0
            first, second = await stream.offer(), await stream.offer()
            await stream.report(first, Result.APPLIED)
            await stream.report(second, Result.APPLIED)
            behind = True
            assert (await run("deploy", *words, "-v", "concise")).code == 0
            await stream.report(await stream.offer(), Result.REFUSED, reason=REFUSED)
            assert (await run("experiments", "wait", "soul-tone")).code == 3
            assert (await run("deploy", *words, "-v", "concise")).code == 0
            said = await run("withdraw", *words)
            assert (said.code, said.out) == (0, "bot-1: withdrawn\n"), said.err
            assert (await run("experiments", "complete", "soul-tone", "--then", "keep")).code == 0
            async with watching("watch", "soul-tone", "--json") as process:
                last: dict[str, Offer] = {}
                while [offer.action for offer in last.values()] != [OfferAction.CLOSE] * 2:
                    offer = await stream.offer()
                    last[offer.participant] = offer
                for offer in last.values():
                    await stream.report(offer, Result.APPLIED)
                lines = [json.loads(line) for line in await ended(process)]
    newest = {line["participantId"]: line["revision"] for line in lines if line["kind"] == "deployment"}
    assert newest == {"bot-1": "5", "bot-2": "2"}


# -- fleet


async def test_a_token_and_what_to_do_with_it(plane: Plane, ctl: Run) -> None:
    """--quiet prints the token alone, which lets an agent join; else it stands in a block for the host."""
    words = ("--label", "role=support", "--ttl", "30m", "--max-uses", "2", "--name-pattern", "host-*")
    said = await ctl("agents", "token", "--quiet", *words, "--participants", "bot-*")
    identity = await plane.enroll(said.out.strip(), name="host-1")
    assert (await plane.rest("GET", "/v1/agents")).body["entities"][0]["labels"] == {"role": "support"}
    stored = (await plane.rest("GET", "/v1/enrollment-tokens")).body["entities"][0]
    assert (stored["maxUses"], stored["uses"], stored["namePattern"]) == (2, 1, "host-*")
    assert stored["participants"] == ["bot-*"]
    block = (await ctl("agents", "token")).out
    assert "variant-agent enroll --token-file - --state-dir " in block
    assert "\nvt1." in block
    agent = (await ctl("agents", "list", "--json")).json["entities"][0]["id"]
    assert "is banned" in (await ctl("agents", "ban", agent)).out
    assert "banned" in (await ctl("agents", "list")).out
    assert identity.uid


async def test_a_retired_host_is_not_waited_for(plane: Plane, running: Run) -> None:
    """`retire` takes the name; `wait` ends without a failure and says why; a name two hosts have needs the id."""
    identity = await plane.enroll(await plane.token(), name="host-1")
    async with session(identity, make_hello("bot-1", "bot-2")) as stream:
        first, _ = await stream.offer(), await stream.offer()
        await stream.report(first, Result.APPLIED)
    assert (await running("experiments", "wait", "soul-tone", "--timeout", "100ms")).code == 5
    said = await running("agents", "retire", "nobody")
    assert (said.code, "there is no agent 'nobody'" in said.err) == (1, True)
    said = await running("agents", "retire", "host-1")
    assert (said.code, "is retired; nothing waits for it" in said.out) == (0, True), said.err
    said = await running("experiments", "wait", "soul-tone", "--timeout", "100ms")
    assert (said.code, "1 of 2 participants hold what they should; 1 withdrawn" in said.out) == (0, True)
    assert (await running("agents", "retire", "host-1", "--json")).json["presence"] == "retired"
    assert "retired" in (await running("participants", "list")).out
    for _ in range(2):
        await plane.enroll(await plane.token(), name="host-1")
    said = await running("agents", "retire", "host-1")
    assert (said.code, "name the id" in said.err) == (1, True)


async def test_participants_and_their_labels(ctl: Run) -> None:
    """Labels are set and taken away one by one, the others stay."""
    said = await ctl("participants", "create", "bot-1", "-l", "role=support", "-l", "tier=gold")
    assert said.out == "bot-1 exists; is labelled role=support, tier=gold\n"
    said = await ctl("participants", "label", "bot-1", "tier-", "team=a=b")
    assert said.out == "bot-1 is labelled role=support, team=a=b\n"
    assert (await ctl("participants", "label", "bot-1", "tier-")).code == 1
    assert "has no labels" in (await ctl("participants", "label", "bot-1", "role-", "team-")).out
    assert (await ctl("participants", "create", "bot-1")).code == 4
    assert (await ctl("participants", "delete", "bot-1")).code == 0
    assert (await ctl("participants", "list")).out == "there is no participant yet\n"


async def test_text_of_others_cannot_steer_the_terminal(plane: Plane, ctl: Run) -> None:
    """Escape sequences in a name are shown, not sent."""
    await plane.made("/v1/experiments", {"name": "\x1b[2Jgone\x07", "key": "evil"})
    said = await ctl("experiments", "list")
    assert "\x1b" not in said.out
    assert "�[2Jgone�" in said.out


# -- the console script


async def script(*words: str, env: dict[str, str]) -> tuple[int | None, str, str]:
    """(exit code, output, errors) of the real console script."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("variantctl"),
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_where_an_answer_has_no_room_or_nowhere_to_go() -> None:
    """A full disk is no fault of variantctl; a stream that the caller closed is as one nobody reads or writes."""
    command = Path(sys.executable).with_name("variantctl")
    for line, code, said in (
        (f"{command} schema > /dev/full", 1, "cannot write standard output: No space left on device"),
        (f"{command} schema >&-", 0, ""),
        (
            f"{command} apply -f - <&-",
            1,
            "standard input is no manifest: it has to begin with apiVersion: variantd/v1",
        ),
        (f"{command} apply -f - <&- 2>&-", 1, ""),
    ):
        process = await asyncio.create_subprocess_exec("sh", "-c", line, stderr=asyncio.subprocess.PIPE)
        _, err = await process.communicate()
        assert (process.returncode, err.decode()) == (code, f"variantctl: {said}\n" if said else ""), line


async def test_the_console_script(plane: Plane, tmp_path: Path) -> None:
    """Installed, it answers from variables alone, and a failed handshake is one line without gRPC's own."""
    env = {
        "VARIANTD_SERVER": plane.addresses["operator"],
        "VARIANTD_CA": str(plane.data / "ca" / "ca.pem"),
        "VARIANTD_API_KEY": plane.key,
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    code, out, err = await script("experiments", "list", "--json", env=env)
    assert (code, json.loads(out)["entities"], err) == (0, [], "")
    del env["VARIANTD_CA"]
    code, out, err = await script("experiments", "list", env=env)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "its certificate is not from the CA we trust" in err
    code, out, err = await script("--version", env=env)
    assert (code, out.split()[0], err) == (0, "variantctl", "")


async def test_a_closed_pipe_is_no_traceback(plane: Plane, tmp_path: Path) -> None:
    """`variantctl … | head -1` ends quietly."""
    env = {"VARIANTD_SERVER": "127.0.0.1:1", "VARIANTD_API_KEY": "x", "XDG_CONFIG_HOME": str(tmp_path)}
    name = Path(sys.executable).with_name("variantctl")
    process = await asyncio.create_subprocess_shell(
        f"{name} --help | true", stderr=asyncio.subprocess.PIPE, env={**env, "PATH": "/usr/bin:/bin"}
    )
    _, err = await process.communicate()
    assert b"Traceback" not in err


async def test_everything_is_put_back_at_once(running: Run) -> None:
    """`restore --all` completes what is started with restore, asks first, and says what it ended."""
    assert (await running("restore")).code == 2
    refused = await running("restore", "--all", stdin="n\n")
    assert refused.code == 1
    assert (await running("experiments", "get", "soul-tone", "--json")).json["status"] == "running"
    said = await running("restore", "--all", "--yes", "--json")
    assert (said.code, said.json) == (0, {"completed": ["soul-tone"]})
    deployments = (await running("experiments", "deployments", "soul-tone", "--json")).json
    assert {item["action"] for item in deployments["entities"][:2]} == {"restore"}
    assert (await running("restore", "--all", "--yes")).out == "completed with restore: none\n"


async def test_a_fleet_is_frozen_and_a_participant_moved(plane: Plane, running: Run) -> None:
    """`freeze` and `unfreeze` say since when; `participants move` names the new agent."""
    assert "frozen since" in (await running("freeze")).out
    assert (await running("unfreeze")).out == "offers go out again\n"
    await plane.enroll(await plane.token())
    agent = (await plane.rest("GET", "/v1/agents")).body["entities"][0]["id"]
    said = await running("participants", "move", "bot-1", "--to", agent)
    assert (said.code, said.out) == (0, f"bot-1 is served by {agent} (binding 2)\n")
    assert (await running("participants", "move", "bot-1", "--to", "nobody")).code == 1


async def test_what_was_deployed_by_hand_is_taken_back(running: Run) -> None:
    """`withdraw` takes the participant's newest deployment; what a verb of the experiment made is a conflict."""
    words = ("withdraw", "soul-tone", "--participant", "bot-1")
    said = await running(*words)
    assert (said.code, "its origin is start" in said.err) == (4, True), said.err
    assert (await running("deploy", "soul-tone", "-p", "bot-1", "-v", "concise")).code == 0
    said = await running(*words)
    assert (said.code, said.out) == (0, "bot-1: withdrawn\n"), said.err
    said = await running("withdraw", "soul-tone", "-p", "bot-9")
    assert (said.code, "nothing was deployed onto bot-9" in said.err) == (1, True)
