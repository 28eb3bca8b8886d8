"""API keys: whom they let in, until when, and what is kept of that."""

import pytest

from control_plane.domain import requests
from control_plane.services import access
from control_plane.store.store import Store
from shared.errors import Invalid, Unauthenticated
from shared.moment import SECOND, to_rfc3339
from tests.support.builders import World


async def holder(world: World, secret: str) -> access.Holder:
    """Who the secret lets in now."""
    now = world.clock.now()
    return await world.database.read(lambda tx: access.authenticate(Store(tx), secret, now=now))


async def make(world: World, **fields: object) -> access.NewKey:
    """A fresh key."""
    wanted = requests.parse(requests.CreateApiKey, {"name": "pipeline", **fields})
    made: access.NewKey = await world.do(access.create_api_key, wanted)
    return made


async def test_a_key_ends_at_its_moment_and_not_before(world: World) -> None:
    """A microsecond before `expiresAt` it lets in; at it, it does not, and says why."""
    ends = world.clock.now() + 3600 * SECOND
    made = await make(world, scopes=["fleet:read"], expiresAt=to_rfc3339(ends))
    await world.clock.advance(3599.999)
    assert (await holder(world, made.secret or "")).caller.scopes == {"fleet:read"}
    await world.clock.advance(0.001)
    with pytest.raises(Unauthenticated) as refused:
        await holder(world, made.secret or "")
    assert refused.value.reason == "API_KEY_EXPIRED"
    with pytest.raises(Invalid, match="expiresAt: is not ahead of now"):
        await make(world, expiresAt=to_rfc3339(world.clock.now()))


async def test_a_revoked_key_lets_nobody_in_and_keeps_its_moment(world: World) -> None:
    """Revoking is idempotent: the first moment stays, and so does the key on record."""
    made = await make(world)
    shown = requests.ById(id=made.key.id.hex())
    first = world.clock.now()
    for _ in range(2):
        await world.do(access.revoke_api_key, shown)
        await world.clock.advance(60)
    with pytest.raises(Unauthenticated) as refused:
        await holder(world, made.secret or "")
    assert refused.value.reason == "API_KEY_REVOKED"
    assert (await world.do(access.get_api_key, shown)).key.revoked_at == first


async def test_a_use_is_noted_at_most_once_a_minute(world: World) -> None:
    """A busy key costs one write a minute, and an earlier clock moves nothing back."""
    made = await make(world)
    used = world.clock.now()
    assert (await holder(world, made.secret or "")).unnoted
    for moment in (used, used - SECOND):
        at = moment
        await world.database.write(lambda tx: Store(tx).access.use_api_key(made.key.id, now=at))  # noqa: B023
    await world.clock.advance(59)
    assert not (await holder(world, made.secret or "")).unnoted
    await world.clock.advance(1)
    assert (await holder(world, made.secret or "")).unnoted
    assert (await world.do(access.get_api_key, requests.ById(id=made.key.id.hex()))).key.last_used_at == used
