"""Who is refused at the door is in the log, and what it showed is not."""

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from shared import tls, wire
from shared.clock import SystemClock
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from shared.ticket import ticket_from_token
from tests.support.builders import make_hello
from tests.support.fleet import running_fleet
from tests.support.plane import Plane
from tests.support.waiting import PATIENCE, eventually


async def test_refusals_are_logged_and_leak_nothing(tmp_path: Path) -> None:
    """A wrong key, a replayed and a forged token, a foreign and a server's certificate: each leaves its line."""
    async with running_fleet(tmp_path) as fleet:
        data = fleet.plane.data
        ca = (data / "ca" / "ca.pem").read_bytes()
        key = (data / "operator.api-key").read_text().strip()
        log = fleet.plane.process.log
        async with grpc.aio.secure_channel(
            fleet.plane.addresses["operator"], grpc.ssl_channel_credentials(ca)
        ) as channel:
            plane = Plane(
                data=data, addresses=fleet.plane.addresses, key=key, http=fleet.plane.http, operator=channel
            )
            assert (await plane.rest("GET", "/v1/experiments", key="sk_not-a-key-of-ours")).status == 401
            with pytest.raises(grpc.aio.AioRpcError):
                await plane.grpc("ExperimentService.ListExperiments", key="sk_nor-is-this-one")
            token = await plane.token()
            identity = await plane.enroll(token)
            with pytest.raises(grpc.aio.AioRpcError):
                await plane.enroll(token)
        authority = tls.Authority(
            key=tls.key_from_pem((data / "ca" / "key.pem").read_bytes()), certificate=ca
        )
        served = authority.issue_server(["localhost"], now=SystemClock().now())
        foreign_key = tls.new_key()
        foreign = tls.new_authority("other", now=SystemClock().now()).issue_agent(
            tls.new_signing_request(foreign_key, "x"),
            project_id=bytes(16),
            agent_uid=identity.uid,
            now=SystemClock().now(),
        )
        for certificate, private in (served, (foreign, tls.key_to_pem(foreign_key))):
            stranger = replace(identity, certificate=certificate, key=private)
            async with stranger.channel() as channel:
                call = agent_pb2_grpc.AgentServiceStub(channel).Sync()  # type: ignore[no-untyped-call]
                with pytest.raises(grpc.aio.AioRpcError):
                    async with asyncio.timeout(PATIENCE):
                        await call.write(pb.SyncRequest(hello=wire.hello_to_pb(make_hello("p"))))
                        await call.read()
                        await call
        await eventually(lambda: log.read_text().count("request.refused") >= 3, what="refusals are logged")
        await eventually(lambda: "handshake" in log.read_text().lower(), what="the handshake is logged")
        text = log.read_text()
        for reason in ("BAD_API_KEY", "BAD_ENROLLMENT_TOKEN"):
            assert reason in text
        secret = ticket_from_token(token).secret
        for shown in ("not-a-key-of-ours", "nor-is-this-one", token[4:60], secret.hex(), key):
            assert shown not in text
