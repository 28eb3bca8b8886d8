"""Certificates that live on: renewed over mutual TLS, recovered once they have ended, refused uniformly."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import grpc
import pytest

from control_plane.api.sealed import Opener, seal
from control_plane.data import DataDir, backup, left_behind, restore
from control_plane.services.enrollment import follows
from shared import tls
from shared.clock import SystemClock
from shared.errors import FailedPrecondition, Invalid
from shared.ids import new_id
from shared.moment import SECOND
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from shared.ticket import ticket_from_token
from tests.support.builders import make_hello
from tests.support.plane import Identity, Plane, running_plane
from tests.support.stream import session
from tests.support.waiting import PATIENCE

DAY = 86_400 * SECOND


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path / "data") as running:
        yield running


class Ahead(SystemClock):
    """The machine's clock, ahead by as much."""

    by = 365 * DAY

    def now(self) -> int:
        return super().now() + self.by


def aged(plane: Plane, identity: Identity, *, days: float) -> Identity:
    """The same agent with the certificate it would hold had it been issued so many days ago."""
    authority = DataDir(plane.data).authority(SystemClock())
    known = tls.identity(identity.certificate)
    assert known is not None
    certificate = authority.issue_agent(
        tls.new_signing_request(tls.key_from_pem(identity.key), "host"),
        project_id=known.project_id,
        agent_uid=known.agent_uid,
        now=SystemClock().now() - round(days * DAY),
    )
    return replace(identity, certificate=certificate)


async def renew(identity: Identity, signing_request: bytes) -> pb.RenewCertificateResponse:
    """What RenewCertificate answers this agent."""
    async with identity.channel() as channel:
        stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
        answer: pb.RenewCertificateResponse = await stub.RenewCertificate(
            pb.RenewCertificateRequest(signing_request=signing_request), timeout=PATIENCE
        )
        return answer


async def recover(plane: Plane, certificate: bytes, signing_request: bytes) -> pb.RecoverResponse:
    """What Recover answers for a certificate (DER)."""
    stub = agent_pb2_grpc.EnrollmentServiceStub(plane.operator)  # type: ignore[no-untyped-call]
    answer: pb.RecoverResponse = await stub.Recover(
        pb.RecoverRequest(certificate=certificate, signing_request=signing_request), timeout=PATIENCE
    )
    return answer


async def recovered(plane: Plane, identity: Identity) -> pb.RecoverResponse:
    """What Recover answers the holder of this identity."""
    request = tls.new_signing_request(tls.key_from_pem(identity.key), "host")
    return await recover(plane, tls.pem_to_der(identity.certificate), request)


async def not_recovered(plane: Plane, certificate: bytes, signing_request: bytes) -> tuple[str, str, str]:
    """(status, text, reason) with which Recover refuses."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await recover(plane, certificate, signing_request)
    error = failure.value
    reason = dict(error.trailing_metadata() or ())["reason"]
    return error.code().name, str(error.details()), str(reason)


async def banned(plane: Plane) -> None:
    """The only agent there is may not come back."""
    agent = (await plane.rest("GET", "/v1/agents")).body["entities"][0]["id"]
    await plane.made(f"/v1/agents/{agent}:ban", None)


# -- enrollment --------------------------------------------------------------------------------------


async def test_a_rack_that_enrolls_at_once_waits_for_its_turns(plane: Plane) -> None:
    """As many as the token is for have identities of their own, and nobody is sent away for coming at once."""
    hosts, wanted = 120, 100
    ticket = ticket_from_token(await plane.token(maxUses=wanted))
    stub = agent_pb2_grpc.EnrollmentServiceStub(plane.operator)  # type: ignore[no-untyped-call]
    request = tls.new_signing_request(tls.new_key(), "host")
    answers = await asyncio.gather(
        *(
            stub.Enroll(
                pb.EnrollRequest(secret=ticket.secret, signing_request=request, name=f"host-{number}"),
                timeout=PATIENCE,
            )
            for number in range(hosts)
        ),
        return_exceptions=True,
    )
    refusals = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert {answer.code() for answer in refusals} == {grpc.StatusCode.UNAUTHENTICATED}
    assert len({answer.agent_uid for answer in answers if answer not in refusals}) == wanted


# -- renewal -----------------------------------------------------------------------------------------


async def test_a_renewed_certificate_is_the_same_agents_and_the_old_one_goes_on(plane: Plane) -> None:
    """The next certificate is for the fresh key and opens a session; the present one is not taken away."""
    identity = aged(plane, await plane.enroll(await plane.token()), days=25)
    key = tls.new_key()
    answer = await renew(identity, tls.new_signing_request(key, "anything"))
    fresh = replace(
        identity, key=tls.key_to_pem(key), certificate=tls.der_to_pem(answer.certificate), ca=identity.ca
    )
    assert [tls.der_to_pem(der) for der in answer.ca_certificates] == [identity.ca]
    known = tls.identity(fresh.certificate)
    assert known is not None
    assert known.agent_uid == identity.uid
    assert tls.not_after(fresh.certificate) - tls.not_after(identity.certificate) > 24 * DAY
    for who, epoch in ((fresh, 1), (identity, 2)):
        async with session(who, make_hello("p", session_epoch=epoch)):
            pass
    (shown,) = (await plane.rest("GET", "/v1/agents")).body["entities"]
    assert shown["certificate"]["serial"] == f"{known.serial:x}"
    assert shown["certificate"]["daysLeft"] in (29, 30)


async def test_a_renewal_takes_nothing_but_the_key_from_the_request(plane: Plane) -> None:
    """Another agent's uid as the name of the request changes nothing: the uid is the certificate's."""
    identity, other = await plane.enroll(await plane.token()), await plane.enroll(await plane.token())
    answer = await renew(identity, tls.new_signing_request(tls.new_key(), other.uid.hex()))
    known = tls.identity(tls.der_to_pem(answer.certificate))
    assert known is not None
    assert known.agent_uid == identity.uid


async def test_a_banned_agent_is_not_renewed(plane: Plane) -> None:
    """Its certificate still opens the connection, and nothing behind it."""
    identity = await plane.enroll(await plane.token())
    await banned(plane)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await renew(identity, tls.new_signing_request(tls.new_key(), "host"))
    assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_malformed_request_is_told_as_such(plane: Plane) -> None:
    """Bytes that are no request are the caller's fault, not ours."""
    identity = await plane.enroll(await plane.token())
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await renew(identity, b"not a request")
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


# -- recovery ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [30.01, 59.9])
async def test_an_expired_certificate_is_replaced(plane: Plane, days: float) -> None:
    """Just expired, or nearly for 30 days: the key's holder gets a valid one and opens a session with it."""
    expired = aged(plane, await plane.enroll(await plane.token()), days=days)
    answer = await recovered(plane, expired)
    fresh = replace(expired, certificate=tls.der_to_pem(answer.certificate))
    known = tls.identity(fresh.certificate)
    assert known is not None
    assert known.agent_uid == expired.uid
    async with session(fresh, make_hello("p")):
        pass
    again = await recovered(plane, expired)
    assert again.certificate != answer.certificate, "an answer that got lost can be had again"


async def test_everything_that_does_not_fit_is_refused_alike(plane: Plane) -> None:
    """Nobody learns from a refusal which certificates, agents or bans there are."""
    identity = await plane.enroll(await plane.token())
    expired = aged(plane, identity, days=31)
    der = tls.pem_to_der(expired.certificate)
    own = tls.new_signing_request(tls.key_from_pem(expired.key), "host")
    foreign = tls.new_authority("other", now=SystemClock().now() - 90 * DAY)
    forged = foreign.issue_agent(
        own, project_id=new_id(), agent_uid=identity.uid, now=SystemClock().now() - 31 * DAY
    )
    authority = DataDir(plane.data).authority(SystemClock())
    unknown = authority.issue_agent(
        own, project_id=new_id(), agent_uid=new_id(), now=SystemClock().now() - 31 * DAY
    )
    server, server_key = authority.issue_server(["x"], now=SystemClock().now() - 91 * DAY)
    flipped = bytearray(own)
    flipped[-1] ^= 1
    refusals = [
        await not_recovered(plane, certificate, request)
        for certificate, request in (
            (tls.pem_to_der(aged(plane, identity, days=29).certificate), own),  # not expired
            (tls.pem_to_der(aged(plane, identity, days=60.1).certificate), own),  # for too long
            (der, tls.new_signing_request(tls.new_key(), "host")),  # another key's request
            (der, bytes(flipped)),  # not signed by its key
            (der, b"garbage"),
            (b"garbage", own),
            (b"", b""),
            (tls.pem_to_der(forged), own),
            (tls.pem_to_der(unknown), own),
            (tls.pem_to_der(server), tls.new_signing_request(tls.key_from_pem(server_key), "x")),
        )
    ]
    assert await recovered(plane, expired)
    await banned(plane)
    refusals.append(await not_recovered(plane, der, own))
    assert {(code, reason) for code, _, reason in refusals} == {("UNAUTHENTICATED", "NOT_RECOVERABLE")}
    assert len(set(refusals)) == 1


async def test_recovery_waits_for_the_turns_of_enrollment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who would wait for too long is told to come back, whichever of the two it asks for, and has used nothing up."""
    monkeypatch.setattr("control_plane.api.rpc.ENROLLING_AT_ONCE", 0)
    monkeypatch.setattr("control_plane.api.rpc.PATIENCE_SECONDS", 0.0)
    async with running_plane(tmp_path / "data") as plane:
        code, _, _ = await not_recovered(plane, b"", b"")
        assert code == "RESOURCE_EXHAUSTED"
        with pytest.raises(grpc.aio.AioRpcError, match="try again in a minute"):
            await plane.enroll(await plane.token())
        (token,) = (await plane.rest("GET", "/v1/enrollment-tokens")).body["entities"]
        assert token["uses"] == 0


# -- one authority after the other


async def welcomed(identity: Identity, *, epoch: int) -> bool:
    """Whether the agent, which gets a session, is asked to renew its certificate."""
    async with session(identity, make_hello("p", session_epoch=epoch)) as stream:
        assert stream.welcome is not None
        return stream.welcome.renew_certificate


async def renewed(identity: Identity) -> Identity:
    """The agent with its next certificate and what it trusts from then on."""
    key = tls.new_key()
    answer = await renew(identity, tls.new_signing_request(key, "anything"))
    return replace(
        identity,
        key=tls.key_to_pem(key),
        certificate=tls.der_to_pem(answer.certificate),
        ca=b"".join(map(tls.der_to_pem, answer.ca_certificates)),
    )


def at(identity: Identity, plane: Plane) -> Identity:
    """The agent, that finds the control plane where it is now."""
    return replace(identity, address=plane.addresses["agents"])


@pytest.mark.fault(40)
async def test_the_authority_is_replaced_while_agents_of_both_are_served(tmp_path: Path) -> None:
    """Old and new certificates get in; renewing makes an agent trust both; only who never renewed is left behind."""
    data, clock = DataDir(tmp_path / "data"), SystemClock()
    async with running_plane(data.path) as plane:
        early, late = (
            await plane.enroll(await plane.token(), name="early"),
            await plane.enroll(await plane.token()),
        )
        assert not await welcomed(early, epoch=1)
    data.introduce_authority(clock)
    with pytest.raises(FailedPrecondition, match="already"):
        data.introduce_authority(clock)
    async with running_plane(data.path) as plane:
        early, late = at(early, plane), at(late, plane)
        assert await welcomed(early, epoch=2)
        assert await welcomed(late, epoch=2)
        early = await renewed(early)
        assert early.ca.count(b"BEGIN CERTIFICATE") == 2
        fresh = await plane.enroll(await plane.token(), name="fresh")
        assert not await welcomed(early, epoch=3)
        assert not await welcomed(fresh, epoch=1)
        assert await left_behind(data, None, clock) == ["host"]
        expired = aged(plane, late, days=31)
        assert await recovered(plane, expired), "certificates of both are recovered"
    data.retire_authority(clock)
    with pytest.raises(FailedPrecondition, match="no next authority"):
        data.retire_authority(clock)
    async with running_plane(data.path) as plane:
        assert not await welcomed(at(early, plane), epoch=4)
        code, _, _ = await not_recovered(plane, tls.pem_to_der(expired.certificate), b"")
        assert code == "UNAUTHENTICATED"
        for who in (late, replace(late, ca=early.ca)):
            with pytest.raises((grpc.aio.AioRpcError, AssertionError)):
                await welcomed(at(who, plane), epoch=9)
        again = await renewed(at(early, plane))
        assert again.ca.count(b"BEGIN CERTIFICATE") == 1
        assert not await welcomed(again, epoch=5)


@pytest.mark.fault(40)
def test_a_replacement_that_was_cut_short_is_whole_on_one_side(tmp_path: Path) -> None:
    """After every write of both commands there is an authority that signs, and repeating them finishes."""
    data, clock = DataDir(tmp_path), SystemClock()
    data.prepare()
    first = data.authority(clock)
    folder = tmp_path / "ca"
    (folder / "next-key.pem").write_bytes(tls.key_to_pem(tls.new_key()))  # and not its certificate
    assert data.authorities(clock).ders == [first.der]
    data.introduce_authority(clock)
    both = data.authorities(clock)
    assert both.second is not None
    (folder / "ca.pem").write_bytes(both.second.certificate)  # and not its key
    assert data.authorities(clock).ders == [both.second.der]
    data.retire_authority(clock)
    assert data.authorities(clock).ders == [both.second.der]
    assert not (folder / "next-key.pem").exists()


async def test_an_authority_in_a_file_of_its_own_is_every_server_s(tmp_path: Path) -> None:
    """Made once, used by every directory, replaced for all of them, and in each one's backup."""
    file, clock = tmp_path / "authority.pem", SystemClock()
    one, two = DataDir(tmp_path / "one", file), DataDir(tmp_path / "two", file)
    for data in (one, two):
        data.prepare()
    first = one.authority(clock)
    assert two.authority(clock).der == first.der
    assert (two.path / "ca" / "ca.pem").read_bytes() == first.certificate
    assert not one.has_key
    assert file.stat().st_mode & 0o777 == 0o600
    one.introduce_authority(clock)
    both = two.authorities(clock)
    assert both.second is not None
    assert both.first.der == first.der
    (two.path / "database").write_bytes(b"PostgreSQL\n")
    with pytest.raises(Invalid, match="VARIANTD_CA_KEY_FILE"):
        backup(DataDir(two.path), tmp_path / "b.tar")
    backup(two, tmp_path / "b.tar")
    await restore(DataDir(tmp_path / "three"), tmp_path / "b.tar", new_id=new_id)
    assert DataDir(tmp_path / "three").authorities(clock).ders == both.ders
    two.retire_authority(clock)
    assert one.authorities(clock).ders == [both.second.der]


def test_servers_follow_each_other_through_a_replacement() -> None:
    """One step ahead is the next authority introduced, or the former retired; a step behind is an old copy."""
    a, b, c = bytes(32), b"b" * 32, b"c" * 32
    steps = [(), (a,), (a, b), (b,), (b, c)]
    for known, own in pairwise(steps):
        assert follows(known, own)
        assert follows(own, own)
    for known, own in ((own, known) for known, own in pairwise(steps[1:])):
        assert not follows(known, own)
    assert not follows((a,), (b,))


def test_what_is_sealed_is_for_one_alone() -> None:
    """Nobody else opens it, nor it as an answer to something else."""
    asked, other = Opener(), Opener()
    body = seal(b"a prompt", for_whom=asked.for_whom, about=b"question")
    assert asked.open(body, about=b"question") == b"a prompt"
    for opener, about in ((other, b"question"), (asked, b"another")):
        with pytest.raises(ValueError, match="not sealed"):
            opener.open(body, about=about)


@pytest.mark.fault(43)
async def test_a_listener_that_started_ahead_of_time_is_believed_once_the_clock_is_right(
    tmp_path: Path,
) -> None:
    """Its certificate was issued a year from now; whoever comes after the clock was set back gets one that is valid."""
    async with running_plane(tmp_path / "data"):
        pass  # the authority is older than all of that
    clock = Ahead()
    async with running_plane(tmp_path / "data", clock=clock) as plane:
        clock.by = 0
        async with asyncio.timeout(PATIENCE):
            await plane.grpc("ExperimentService.ListExperiments")
            async with session(await plane.enroll(await plane.token()), make_hello("p")) as stream:
                assert stream.welcome is not None
