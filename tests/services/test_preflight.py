"""Who may take part, by what hosts said of every variant's content: known, refused, unknown, stale."""

from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.domain.preflight import ACCEPTED_FOR, LOOKED_AT_FOR, REFUSED_FOR, Said, due
from control_plane.services import (
    experiments,
    findings,
    fleet,
    lifecycle,
    phases,
    preflight,
    preview,
)
from control_plane.store.database import Tx
from control_plane.store.store import Store
from shared.errors import FailedPrecondition
from shared.ids import new_id
from shared.model import (
    PREFLIGHT,
    Digest,
    ParticipantState,
    PreflightResult,
    Reason,
    ReasonCode,
    Verdict,
    digest,
)
from tests.support.builders import World, content_digest, make_variant

NAMES = [f"bot-{n}" for n in range(6)]
POLICY = b"p" * 32
TEST = requests.ById(id="test")


async def connected(world: World, *names: str, policy: bytes = POLICY, uid: bytes | None = None) -> bytes:
    """The uid of an agent that judges content, with these participants, connected."""
    uid = uid or await world.agent(*names)
    states = tuple(ParticipantState(participant=name, targets=("*.md",), policy=policy) for name in names)
    await world.session(uid, participants=states, capabilities=(PREFLIGHT,))
    return uid


async def says(
    world: World,
    uid: bytes,
    name: str,
    *,
    refuses: tuple[str, ...] = (),
    contents: tuple[str, ...] = ("a", "b"),
    path: str = "soul.md",
    policy: bytes = POLICY,
) -> bool:
    """The host's word on contents, some refused; whether it was taken."""
    reason = Reason(code=ReasonCode.TOO_LARGE, message="it has more bytes than the host takes")
    result = PreflightResult(
        request_id=new_id(),
        verdicts=tuple(
            Verdict(path=path, digest=content_digest(text), refused=reason if text in refuses else None)
            for text in contents
        ),
        policy=policy,
    )

    def record(tx: Tx) -> bool:
        store = Store(tx)
        participant = store.fleet.participant(world.caller.project_id, name)
        assert participant is not None
        return store.preflights.record(participant.id, uid, result, now=world.clock.now())

    return await world.database.write(record)


async def everybody_says(world: World, uid: bytes, *, but: dict[str, tuple[str, ...]] | None = None) -> None:
    """Every one of NAMES takes everything, `but` what these refuse."""
    for name in NAMES:
        await says(world, uid, name, refuses=(but or {}).get(name, ()))


async def wanted(world: World, *, since: int | None = None) -> dict[str, set[Digest]]:
    """Whom to ask about which digests now."""
    found = await world.do(lambda work, request: preflight.wanting(work, request, since=since), TEST)
    return {one.participant: {value for _, value in one.contents} for one in found}


async def changed(world: World, **fields: Any) -> None:
    await world.do(experiments.update, requests.parse(requests.UpdateExperiment, {"id": "test", **fields}))


async def told(world: World) -> dict[str, tuple[str, str]]:
    """(code, severity) by participant of a preview."""
    found = await world.do(preview.preview, TEST)
    return {item.participant: (item.code, item.severity) for item in found.findings}


async def test_who_refuses_any_variant_gets_none(world: World) -> None:
    """Whichever it is, the control included: no seat, claim or deployment; answer, preview and findings say so."""
    uid = await connected(world, *NAMES)
    await world.experiment(*NAMES)
    await everybody_says(world, uid, but={"bot-1": ("a",), "bot-4": ("b",)})
    assert await told(world) == dict.fromkeys(("bot-1", "bot-4"), ("PREFLIGHT_REFUSED", "warning"))
    ahead = await world.do(preview.preview, TEST)
    assert "its host refuses a: it has more bytes" in ahead.findings[0].message
    assert {item.participant for item in ahead.assignments} == set(NAMES) - {"bot-1", "bot-4"}
    draft = await world.do(findings.get, TEST)
    assert [item.code for item in draft.findings if "PREFLIGHT" in item.code] == ["PREFLIGHT_REFUSED"]

    view = await world.do(lifecycle.start, TEST)
    assert [code for code, _ in view.warnings][:2] == ["PREFLIGHT_REFUSED"] * 2
    assert "bot-1 takes part in no variant" in view.warnings[0][1]
    assert set(await world.assigned(view.experiment)) == set(NAMES) - {"bot-1", "bot-4"}
    for table in ("claim", "slot", "deployment"):
        rows = await world.rows(
            f"select public_id from {table} t join participant p on p.id = t.participant_id"
        )
        assert {row["public_id"] for row in rows} == set(NAMES) - {"bot-1", "bot-4"}
    # What the start went by stays on record, whatever the hosts say later.
    await everybody_says(world, uid)
    [found] = [item for item in (await world.do(findings.get, TEST)).findings if "PREFLIGHT" in item.code]
    assert found.evidence == {"participants": ["bot-1", "bot-4"], "byReason": {"TOO_LARGE": 2}}


async def test_whoever_was_not_heard_takes_part_and_the_answer_says_so(world: World) -> None:
    """An old agent, one that is away and one that has not answered; with `requirePreflight` they stay out."""
    uid = await connected(world, *NAMES)
    await world.agent("old")
    everybody = [*NAMES, "old", "never"]
    await world.experiment(*everybody)
    for name in NAMES[1:]:
        await says(world, uid, name)
    await says(world, uid, "bot-0", contents=("a",))  # one variant is not all
    assert await told(world) == {
        "bot-0": ("PREFLIGHT_UNKNOWN", "info"),
        "old": ("PREFLIGHT_UNKNOWN", "info"),
        "never": ("NEVER_SEEN", "info"),
    }
    await changed(world, requirePreflight=True)
    assert await told(world) == dict.fromkeys(("bot-0", "old", "never"), ("PREFLIGHT_UNKNOWN", "warning"))
    ahead = await world.do(preview.preview, TEST)
    assert {item.participant for item in ahead.assignments} == set(NAMES[1:])
    await changed(world, requirePreflight=False)
    view = await world.do(lifecycle.start, TEST)
    assert set(await world.assigned(view.experiment)) == set(everybody)
    unheard = dict(view.warnings)["PREFLIGHT_UNKNOWN"]
    assert unheard.startswith("bot-0, never, old take part though nobody knows")


async def test_a_start_that_hosts_leave_nobody_for_is_refused(world: World) -> None:
    """The fault says that it is the hosts, and where to look."""
    uid = await connected(world, *NAMES)
    await world.experiment(*NAMES)
    await everybody_says(world, uid, but=dict.fromkeys(NAMES, ("b",)))
    with pytest.raises(FailedPrecondition) as refused:
        await world.do(lifecycle.start, TEST)
    assert [fault.message for fault in refused.value.faults] == ["nobody takes part; hosts keep 6 out"]
    assert "preview" in refused.value.faults[0].remedy
    assert await world.rows("select * from kept_out") == []


async def test_a_word_counts_for_agent_and_policy_that_gave_it(world: World) -> None:
    """Another policy, or another agent, and it is unknown again; back under the first, it counts again."""
    uid = await connected(world, *NAMES)
    await world.experiment(*NAMES)
    await everybody_says(world, uid, but={"bot-1": ("b",)})
    assert set(await told(world)) == {"bot-1"}
    other = b"q" * 32
    await connected(world, *NAMES, policy=other, uid=uid)
    assert set((await told(world)).values()) == {("PREFLIGHT_UNKNOWN", "info")}
    assert not await says(world, uid, "bot-1"), "the answer to an older policy is not taken"
    assert await says(world, uid, "bot-1", policy=other)
    assert "bot-1" not in await told(world)
    stranger = await connected(world, "elsewhere")
    assert not await says(world, stranger, "bot-1", refuses=("a",), policy=other)
    await world.do(fleet.move_participant, requests.MoveParticipant(id="bot-1", agentId=stranger.hex()))
    assert (await told(world))["bot-1"][0] == "PREFLIGHT_UNKNOWN"
    await connected(world, *NAMES, policy=b"", uid=uid)  # the agent was replaced by an older one
    assert set(await wanted(world)) == set()


async def test_hosts_are_asked_what_is_not_known_and_again_in_time(world: World) -> None:
    """Only connected ones, only what changed; refusals sooner than the rest, and at once when somebody looks."""
    uid = await connected(world, *NAMES)
    await world.experiment(*NAMES, "never", trafficAllocation=100)
    everything = {content_digest("a"), content_digest("b")}
    assert await wanted(world) == dict.fromkeys(NAMES, everything)
    await everybody_says(world, uid, but={"bot-2": ("b",)})
    assert await wanted(world) == {}
    looked_at = world.clock.now() + 1
    assert await wanted(world, since=looked_at) == {"bot-2": {content_digest("b")}}
    content = ("soul.md", content_digest("a"))
    ages = {None: ACCEPTED_FOR, looked_at: LOOKED_AT_FOR}
    for since, age in ages.items():
        said = {content: Said(reason=None, at=0)}
        assert not due([content], said, now=age, since=since)
        assert due([content], said, now=age + 1, since=since)
    refused = {content: Said(reason={"code": "x", "message": ""}, at=0)}
    assert not due([content], refused, now=REFUSED_FOR)
    assert due([content], refused, now=REFUSED_FOR + 1)
    await world.do(
        experiments.update_variant,
        requests.parse(requests.UpdateVariant, {"id": "test", "variantId": "b", "content": "c"}),
    )
    assert await wanted(world) == {name: {digest(b"c")} for name in NAMES}
    await world.clock.advance(60)  # no lease is renewed here
    assert await wanted(world) == {}


async def test_every_variant_that_anybody_may_get_is_asked_about_and_no_other(world: World) -> None:
    """Excluded variants are not; of a personalization all are, whomever rules mean; a switchback's too."""
    await connected(world, *NAMES)
    three = [make_variant("a", control=True), make_variant("b"), make_variant("c", weight=0)]
    await world.experiment(*NAMES, variants=three, analysis={"excludedVariantIds": ["c"]})
    assert (await wanted(world))["bot-0"] == {content_digest("a"), content_digest("b")}
    for key, fields in {
        "personal": {"type": "personalization"},
        "switch": {"type": "switchback", "switchback": {"blockDuration": "PT1H", "blocks": 3}},
    }.items():
        made = [
            {
                **item,
                "targetingRules": {"labels": [{"key": "tier", "operator": "equals", "value": item["key"]}]},
            }
            if key == "personal"
            else item
            for item in three
        ]
        await world.experiment(*NAMES, key=key, name=key, variants=made, **fields)
        found = await world.do(preflight.wanting, requests.ById(id=key))
        assert {value for _, value in found[0].contents} == {content_digest(text) for text in "abc"}


async def test_a_multivariate_experiment_needs_every_file_of_every_combination(world: World) -> None:
    """Who refuses one level of one factor is in no cell."""
    uid = await connected(world, *NAMES)
    factors = [
        {
            "key": name,
            "targetFile": f"{name}.md",
            "levels": [{"key": f"{name}{n}", "content": f"{name}{n}"} for n in "12"],
        }
        for name in ("tone", "length")
    ]
    await world.experiment(*NAMES, type="multivariate", targetFile=None, factors=factors, variants=[])
    assert len((await wanted(world))["bot-0"]) == 4
    for name in NAMES:
        for factor in ("tone", "length"):
            refuses = ("length2",) if name == "bot-3" else ()
            contents = (f"{factor}1", f"{factor}2")
            await says(world, uid, name, refuses=refuses, contents=contents, path=f"{factor}.md")
    assert await told(world) == {"bot-3": ("PREFLIGHT_REFUSED", "warning")}
    ahead = await world.do(preview.preview, TEST)
    assert {item.participant for item in ahead.assignments} == set(NAMES) - {"bot-3"}


async def test_a_late_joiner_is_heard_first(world: World) -> None:
    """One whose host can say waits until it has; who refuses stays out, and comes in once that is mended."""
    uid = await connected(world, *NAMES)
    for name in NAMES:
        await world.do(fleet.update_participant, requests.CreateParticipant(id=name, labels={"role": "x"}))
    await everybody_says(world, uid)
    await world.start(await world.experiment(participants={"labels": {"role": "x"}}))
    late = ("late-1", "late-2")
    other = await connected(world, *late)
    for name in (*late, "offline"):
        known = await world.rows(f"select 1 from participant where public_id = '{name}'")
        does = fleet.update_participant if known else fleet.create_participant
        await world.do(does, requests.CreateParticipant(id=name, labels={"role": "x"}))
    assert await world.do(phases.admit, TEST) == ["offline"]  # nobody can ask it: as at a start
    assert set(await wanted(world)) == set(late)
    before = await world.rows("select max(updated_at) as at from participant")
    await world.clock.advance(1)
    await says(world, other, "late-1")
    await says(world, other, "late-2", refuses=("a",))
    after = await world.rows("select max(updated_at) as at from participant")
    assert after[0]["at"] > before[0]["at"], "so that the running intake looks again"
    assert await world.do(phases.admit, TEST) == ["late-1"]
    [found] = [item for item in (await world.do(findings.get, TEST)).findings if "PREFLIGHT" in item.code]
    assert found.evidence["participants"] == ["late-2"]
    await says(world, other, "late-2")
    assert await world.do(phases.admit, TEST) == ["late-2"]
    assert not [item for item in (await world.do(findings.get, TEST)).findings if "PREFLIGHT" in item.code]


async def test_old_words_are_forgotten(world: World) -> None:
    """A month after they were said."""
    uid = await connected(world, "bot-0")
    await says(world, uid, "bot-0", contents=("old",))
    await world.clock.advance(31 * 86_400)
    await says(world, uid, "bot-0", contents=("new",))
    rows = await world.rows("select digest from preflight")
    assert [row["digest"] for row in rows] == [content_digest("new")]


async def test_drafts_that_nobody_touches_are_left_alone(world: World) -> None:
    """Unless they are scheduled; running ones are asked about where labels choose, and archived ones never."""

    async def open_ones(changed_since: int) -> int:
        found = await world.ask(lambda store: store.preflights.open_experiments(changed_since=changed_since))
        return len(found)

    await world.experiment("p")
    now = world.clock.now()
    assert (await open_ones(now), await open_ones(now + 1)) == (1, 0)
    await world.experiment("q", key="soon", schedule={"startAt": "2100-01-01T00:00:00Z"})
    assert await open_ones(now + 1) == 1
    await world.do(lifecycle.archive, TEST)
    assert await open_ones(now) == 1


class _Counted:
    """A transaction that counts the rows that were read."""

    def __init__(self, tx: Tx) -> None:
        self._tx, self.rows = tx, 0

    def one(self, sql: str, parameters: Any = ()) -> Any:
        self.rows += 1
        return self._tx.one(sql, parameters)

    def all(self, sql: str, parameters: Any = ()) -> Any:
        found = self._tx.all(sql, parameters)
        self.rows += len(found)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)


async def test_a_word_costs_the_same_however_many_have_said_theirs(world: World) -> None:
    """The whole fleet is asked about the same contents: what is read for one host does not grow with the others."""
    said = PreflightResult(
        request_id=b"", policy=POLICY, verdicts=(Verdict(path="soul.md", digest=content_digest("a")),)
    )
    read = []
    for number in range(12):
        uid = await connected(world, f"host-{number}")
        (row,) = await world.rows(f"select id from participant where public_id = 'host-{number}'")

        def record(tx: Tx, whose: bytes = row["id"], agent: bytes = uid) -> None:
            counted = _Counted(tx)
            assert Store(counted).preflights.record(whose, agent, said, now=world.clock.now())
            read.append(counted.rows)

        await world.database.write(record)
    assert set(read) == {read[0]}
