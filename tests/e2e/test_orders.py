"""A real control plane fed over mutual TLS in every order of arrival counts the same."""

from itertools import permutations
from pathlib import Path

import grpc

from shared import wire
from shared.clock import SystemClock
from shared.ids import new_id
from shared.model import Event, EventKind, Record, View, ViewState, digest
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from tests.support.builders import Spooled, make_hello, seconds
from tests.support.fleet import Fleet, running_fleet
from tests.support.plane import Identity, Plane
from tests.support.stream import session

ORDERS = list(permutations(("view", "impression", "conversion")))
PARTICIPANTS = [f"p{n}" for n in range(len(ORDERS))]


def facts(participant: str, variant: str, now: int) -> dict[str, Record]:
    """A view, an impression on it, and a conversion after that."""
    bodies: dict[str, View | Event] = {
        "view": View(
            participant=participant,
            path="soul.md",
            digest=digest(variant.encode()),
            state=ViewState.APPLIED,
            from_at=now + seconds(1),
        ),
        "impression": Event(participant=participant, kind=EventKind.IMPRESSION, occurred_at=now + seconds(2)),
        "conversion": Event(
            participant=participant,
            kind=EventKind.CONVERSION,
            event_name="done",
            occurred_at=now + seconds(3),
        ),
    }
    return {name: Record(id=new_id(), recorded_at=now, body=body) for name, body in bodies.items()}


async def started(fleet: Fleet) -> dict[str, str]:
    """Variant key by participant of a running experiment whose contents are its keys."""
    variants = [
        {"name": key, "key": key, "content": key, "weight": 50, "isControl": key == "a"} for key in ("a", "b")
    ]
    values = {
        "name": "Tone",
        "targetFile": "soul.md",
        "variants": variants,
        "participantIds": PARTICIPANTS,
        "exposureCriteria": {"settleSeconds": 0},
    }
    await fleet.plane.post("/v1/experiments", values)
    await fleet.plane.post("/v1/experiments/tone/start")
    return await fleet.assigned("tone")


async def enrolled(fleet: Fleet) -> Identity:
    """The identity of an agent that serves every participant."""
    ca = (fleet.plane.data / "ca" / "ca.pem").read_bytes()
    key = (fleet.plane.data / "operator.api-key").read_text().strip()
    async with grpc.aio.secure_channel(
        fleet.plane.addresses["operator"], grpc.ssl_channel_credentials(ca)
    ) as channel:
        plane = Plane(
            data=fleet.plane.data,
            addresses=fleet.plane.addresses,
            key=key,
            http=fleet.plane.http,
            operator=channel,
        )
        return await plane.enroll(await plane.token())


async def test_all_six_orders_of_view_impression_and_conversion(tmp_path: Path) -> None:
    """Each participant's facts arrive in another order, one batch each; all count once, in both populations."""
    async with running_fleet(tmp_path) as fleet:
        identity = await enrolled(fleet)
        async with session(identity, make_hello(*PARTICIPANTS)), identity.channel() as channel:
            stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
            assigned = await started(fleet)
            now = SystemClock().now()
            for participant, order in zip(PARTICIPANTS, ORDERS, strict=True):
                spool = Spooled(epoch=new_id())
                records = facts(participant, assigned[participant], now)
                for name in order:
                    answer = await stub.ReportSpool(wire.batch_to_pb(spool.batch(records[name])))
                assert answer.through_seq == 3
        expected = {"a": (3, 3), "b": (3, 3)}
        assert await fleet.plane.results("tone", "done") == expected
        assert await fleet.plane.results("tone", "done", "delivered") == expected
