"""The certificate's life, over real mutual TLS, against a control plane that follows a script."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import grpc
import pytest

from agent import identity as identities
from agent.config import parse
from agent.enrollment import enroll
from agent.identity import Identity
from agent.link import Link
from agent.reconciler import Reconciler
from agent.renewal import Renewal
from shared import tls
from shared.clock import SystemClock
from shared.errors import Unavailable
from shared.ids import new_id, parse_id
from shared.model import CHAIN_START, Batch, SpoolState, View
from shared.moment import SECOND
from tests.support.clock import FakeClock
from tests.support.control_plane import ScriptedControlPlane, in_background
from tests.support.waiting import PATIENCE, eventually, ticked

DAY = 86_400 * SECOND


class Host:
    """A link and the renewal of its certificate, at a moment that a test chooses."""

    def __init__(self, tmp_path: Path, *, days_later: float = 0.0) -> None:
        self.state = tmp_path / "state"
        self.clock = FakeClock(now=SystemClock().now() + round(days_later * DAY))
        config = parse({"agent": {"name": "host-1"}, "participants": []}, relative_to=tmp_path)
        reconciler = Reconciler(
            config=config,
            state_dir=self.state,
            clock=self.clock,
            new_id=new_id,
            record_view=self._record,
            fetch=lambda wanted, size: self.link.calls.fetch(wanted, size),
            on_outcome=lambda outcome: self.link.outcome(outcome),
            on_change=lambda: None,
        )
        self.link = Link(
            config=config,
            state_dir=self.state,
            reconciler=reconciler,
            spool=lambda: SpoolState(epoch=bytes(16)),
            clock=self.clock,
            random=Random(7),
            reconnect_jitter=0.05,
        )
        self.renewal = Renewal(link=self.link, state_dir=self.state, clock=self.clock, random=Random(7))

    def _record(self, view: View) -> None:
        raise AssertionError("nothing is on disk here")

    @property
    def stored(self) -> Identity:
        """The identity that a next start would have."""
        found = identities.load(self.state)
        assert found is not None
        return found

    def conditions(self) -> dict[str, str]:
        """Message by code."""
        return {condition.code: condition.message for condition in self.renewal.conditions()}

    @asynccontextmanager
    async def running(self) -> "AsyncIterator[Host]":
        async with in_background(self.link.run()), in_background(self.renewal.run()):
            yield self


@pytest.fixture
async def control_plane() -> AsyncIterator[ScriptedControlPlane]:
    async with ScriptedControlPlane().running() as plane:
        yield plane


async def enrolled(tmp_path: Path, control_plane: ScriptedControlPlane, *, days_ago: float = 0.0) -> Identity:
    """The state directory holds an identity whose certificate was issued so many days ago."""
    state = tmp_path / "state"
    with identities.hold(state):
        identity = await enroll(control_plane.token(), state, name="host-1")
        uid = parse_id(identity.uid)
        assert uid is not None
        certificate = control_plane.authority.issue_agent(
            tls.new_signing_request(tls.key_from_pem(identity.key), "host-1"),
            project_id=control_plane.project_id,
            agent_uid=uid,
            now=SystemClock().now() - round(days_ago * DAY),
        )
        identity = replace(
            identity,
            certificate=certificate,
            not_before=tls.not_before(certificate),
            not_after=tls.not_after(certificate),
        )
        identities.store(state, identity)
    return identity


@pytest.mark.fault(40)
async def test_a_control_plane_that_wishes_for_a_renewal_gets_it(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Long before the certificate's end, once, and never on the word of one that is not believed."""
    await enrolled(tmp_path, control_plane, days_ago=1)
    control_plane.wishes_renewal = True
    async with Host(tmp_path).running() as host:
        await control_plane.session()
        before = host.stored
        control_plane.wishes_renewal = False
        await ticked(host.clock, 1, lambda: len(control_plane.syncs) == 2)
        assert host.stored.not_after > before.not_after
        assert len(control_plane.renewals) == 1
        control_plane.wishes_renewal = True
        control_plane.signature, control_plane.incarnation = b"garbage", new_id()
        control_plane.syncs[-1].end(grpc.StatusCode.UNAVAILABLE)
        await ticked(host.clock, 1, lambda: len(control_plane.syncs) == 3)
        await host.clock.advance(120)
        assert len(control_plane.renewals) == 1


# -- renewal -----------------------------------------------------------------------------------------


async def test_a_certificate_past_two_thirds_is_replaced_and_the_link_moves_over(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """A fresh key, durable; the session says Goodbye `renew`, and the next one is opened with the new certificate."""
    old = await enrolled(tmp_path, control_plane, days_ago=25)
    async with Host(tmp_path).running() as host:
        assert "ends in 4 days" in host.conditions()["CERTIFICATE_EXPIRES_SOON"]
        first = await control_plane.session()
        assert tls.identity(first.certificate) == tls.identity(old.certificate)
        await ticked(host.clock, 5, lambda: len(control_plane.syncs) == 2)
        assert first.goodbye == "renew"
        new = host.stored
        assert new.key != old.key
        assert new.uid == old.uid
        assert new.not_after > old.not_after + 24 * DAY
        assert control_plane.syncs[1].certificate == new.certificate
        assert len(control_plane.fetches) == 1, "the candidate was tried before it was taken"
        assert host.conditions() == {}
        assert host.link.status()["attempt"] == 0
        for _ in range(5):
            await host.clock.advance(60)
        assert len(control_plane.renewals) == 1


@pytest.mark.fault(43)
async def test_nothing_is_asked_for_before_two_thirds(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """By the host's own clock, jumps included: not on the twentieth day, surely on the twenty-second."""
    await enrolled(tmp_path, control_plane)
    async with Host(tmp_path).running() as host:
        await control_plane.session()
        await eventually(lambda: host.link.trusted)
        host.clock.jump(19.9 * 86_400)
        await host.clock.advance(61)
        assert control_plane.renewals == []
        assert host.conditions() == {}
        host.clock.jump(2 * 86_400)
        await ticked(host.clock, 5, lambda: control_plane.renewals)


async def test_a_renewal_that_fails_is_tried_again_and_says_why(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """With back-off while it may succeed; the present certificate goes on and the session stays."""
    old = await enrolled(tmp_path, control_plane, days_ago=25)
    control_plane.certify = [(grpc.StatusCode.UNAVAILABLE, "the database is away")] * 3
    async with Host(tmp_path).running() as host:
        await ticked(host.clock, 5, lambda: control_plane.renewals)
        await eventually(lambda: "database is away" in host.conditions()["CERTIFICATE_EXPIRES_SOON"])
        assert host.stored == old
        assert len(control_plane.syncs) == 1
        await ticked(host.clock, 5, lambda: len(control_plane.syncs) == 2)
        assert len(control_plane.renewals) == 4
        assert host.conditions() == {}


@pytest.mark.parametrize("candidate", ["garbage", "other agent", "other key", "other authority"])
async def test_a_candidate_that_does_not_serve_is_not_taken(
    tmp_path: Path, control_plane: ScriptedControlPlane, candidate: str
) -> None:
    """Whatever a faulty control plane sends, the certificate that works is kept."""
    old = await enrolled(tmp_path, control_plane, days_ago=25)
    host = Host(tmp_path)
    uid, key = parse_id(old.uid), tls.new_key()
    assert uid is not None

    def forged(signing_request: bytes) -> bytes:
        authority = tls.new_authority("other", now=SystemClock().now())
        certificate = (authority if candidate == "other authority" else control_plane.authority).issue_agent(
            tls.new_signing_request(key, "x") if candidate == "other key" else signing_request,
            project_id=control_plane.project_id,
            agent_uid=new_id() if candidate == "other agent" else uid,
            now=SystemClock().now(),
        )
        return b"garbage" if candidate == "garbage" else tls.pem_to_der(certificate)

    real = host.link.calls.renew

    async def renew(signing_request: bytes) -> tuple[bytes, tuple[bytes, ...]]:
        _, authorities = await real(signing_request)
        return forged(signing_request), authorities

    host.link.calls.renew = renew  # type: ignore[method-assign]  # what a faulty control plane would answer
    async with host.running():
        await ticked(host.clock, 5, lambda: control_plane.renewals)
        await eventually(lambda: "(" in host.conditions()["CERTIFICATE_EXPIRES_SOON"])
        assert host.stored == old
        assert host.link.enrolled == old
        assert len(control_plane.syncs) == 1


async def test_a_call_under_way_when_the_link_moves_is_one_to_try_again(
    tmp_path: Path, control_plane: ScriptedControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a moment to end; then it fails like any call that lost its connection, and the next one succeeds."""
    monkeypatch.setattr("agent.link.RETIRE_SECONDS", 0.1)
    await enrolled(tmp_path, control_plane, days_ago=25)
    control_plane.answers_batches.clear()
    batch = Batch(epoch=new_id(), first_seq=1, chain=CHAIN_START, records=(b"a",), tail_seq=1)
    async with Host(tmp_path).running() as host:
        report = asyncio.create_task(host.link.calls.report(batch))
        await eventually(lambda: control_plane.batches_asked == 1)
        await ticked(host.clock, 5, lambda: len(control_plane.syncs) == 2)
        with pytest.raises(Unavailable, match="another connection"):
            await asyncio.wait_for(report, PATIENCE)
        control_plane.answers_batches.set()
        assert (await host.link.calls.report(batch)).through_seq == 1


# -- recovery ----------------------------------------------------------------------------------------


async def test_an_expired_certificate_is_recovered_at_start(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """No person, no token: the key proves who asks, where the host once enrolled; then there is no more waiting."""
    old = await enrolled(tmp_path, control_plane, days_ago=40)
    identities.save_session_state(tmp_path / "state", identities.SessionState(epoch=41, attempt=12))
    host = Host(tmp_path)
    assert "asks for another by itself" in host.conditions()["CERTIFICATE_EXPIRED"]
    async with host.running():
        await control_plane.session()
        (request,) = control_plane.recoveries
        assert tls.der_to_pem(request.certificate) == old.certificate
        assert (host.stored.uid, host.stored.key) == (old.uid, old.key)
        assert control_plane.syncs[0].certificate == host.stored.certificate
        assert host.conditions() == {}


@pytest.mark.fault(39)
async def test_a_certificate_that_ends_while_offline_is_recovered_once_somebody_answers(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """The attempts go on with back-off and grow no faster than five minutes apart."""
    await enrolled(tmp_path, control_plane, days_ago=31)
    await control_plane.stop()
    async with Host(tmp_path).running() as host:
        await eventually(lambda: "no control plane" in host.conditions()["CERTIFICATE_EXPIRED"])
        assert "by itself" in host.conditions()["CERTIFICATE_EXPIRED"]
        await control_plane.start()
        await ticked(host.clock, 20, lambda: control_plane.syncs)
        assert host.conditions() == {}


async def test_who_is_refused_is_told_to_enroll_again(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """Banned, or expired for too long: a condition with the remedy, and seldom another attempt."""
    await enrolled(tmp_path, control_plane, days_ago=31)
    control_plane.certify = [(grpc.StatusCode.UNAUTHENTICATED, "this certificate is not replaced")] * 9
    async with Host(tmp_path).running() as host:
        await eventually(lambda: "enroll again" in host.conditions()["CERTIFICATE_EXPIRED"])
        assert "by itself" not in host.conditions()["CERTIFICATE_EXPIRED"]
        await host.clock.advance(1790)
        assert len(control_plane.recoveries) == 1


async def test_after_thirty_days_the_condition_says_to_enroll_again(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """By the host's own clock, before anybody was asked; so does a host that does not know whom to ask."""
    identity = await enrolled(tmp_path, control_plane)
    host = Host(tmp_path, days_later=59)
    assert "by itself" in host.conditions()["CERTIFICATE_EXPIRED"]
    host.clock.jump(86_400 * 2)
    assert "enroll again" in host.conditions()["CERTIFICATE_EXPIRED"]
    identities.store(tmp_path / "state", replace(identity, operators=()))
    assert "enroll again" in Host(tmp_path, days_later=31).conditions()["CERTIFICATE_EXPIRED"]


async def test_an_identity_of_an_older_version_is_read(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """One that notes neither where it enrolled nor when its certificate began is renewed in time all the same."""
    identity = await enrolled(tmp_path, control_plane, days_ago=25)
    directory = tmp_path / "state" / "identity"
    (directory / "addresses.json").write_text(f'{{"agents": ["{identity.addresses[0]}"]}}')
    (directory / "about.json").write_text(f'{{"uid": "{identity.uid}", "notAfter": {identity.not_after}}}')
    async with Host(tmp_path).running() as host:
        await ticked(host.clock, 5, lambda: len(control_plane.syncs) == 2)
        assert len(control_plane.renewals) == 1


async def test_a_process_that_ends_between_trial_and_commit_has_the_old_identity(
    tmp_path: Path, control_plane: ScriptedControlPlane
) -> None:
    """The candidate beside it is worth nothing until it is committed, and the next one takes its place."""
    old = await enrolled(tmp_path, control_plane, days_ago=25)
    candidate = replace(old, key=tls.key_to_pem(tls.new_key()))
    identities.stage(tmp_path / "state", candidate)
    assert identities.load(tmp_path / "state") == old
    identities.stage(tmp_path / "state", replace(candidate, incarnation=bytes(16)))
    identities.commit(tmp_path / "state")
    assert identities.load(tmp_path / "state") == replace(candidate, incarnation=bytes(16))


async def test_a_commit_that_failed_half_way_costs_no_identity(tmp_path: Path) -> None:
    """The next candidate is staged beside the identity there is, not in its place."""
    async with ScriptedControlPlane().running() as plane:
        state = tmp_path / "state"
        with identities.hold(state):
            known = await enroll(plane.token(), state, name="host-1")
        identities.stage(state, known)
        shutil.rmtree(state / "identity.new")  # so that the second rename fails
        with pytest.raises(FileNotFoundError):
            identities.commit(state)
        identities.stage(state, known)  # and the agent stops before that is proven
        assert identities.load(state) == known
