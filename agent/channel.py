"""How this host speaks gRPC: the options of every channel, which one is open, and what a failed call means.

Hides the transport's names. Liveness options are those of the control plane's listener; see also
`agent.session` for the heartbeats, which are the authority.
"""

from collections.abc import Callable

import grpc

from agent.identity import Identity
from shared import errors

CONNECTS_AGAIN_MS = 300_000
"""After that a channel that failed tries by itself; for another attempt before, another channel is opened."""

OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_receive_message_length", 8 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),  # two identities in one process never share a connection
    # When to try again is decided by `agent.link`, with jitter and state on disk. A channel that failed to connect
    # would by itself, soon and for ever, even closed, until the last of its calls is collected: it does not for long.
    ("grpc.initial_reconnect_backoff_ms", CONNECTS_AGAIN_MS),
    ("grpc.max_reconnect_backoff_ms", CONNECTS_AGAIN_MS),
]

NOT_RETRIED_SOON = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
)

_ERRORS: dict[grpc.StatusCode, type[errors.Error]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.Invalid,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.ABORTED: errors.Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.UNIMPLEMENTED: errors.FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
}

_OTHER_NAME = ("Hostname Verification Check failed", "is not in peer certificate")  # of newer and older gRPC


def open_channel(address: str, *, ca: bytes, identity: Identity | None = None) -> grpc.aio.Channel:
    """A TLS channel to whoever proves to be `address` under `ca` (PEM); mutual TLS with an identity."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=ca,
        private_key=identity.key if identity else None,
        certificate_chain=identity.certificate if identity else None,
    )
    return grpc.aio.secure_channel(address, credentials, options=OPTIONS)


class Way:
    """The way to the control plane: one of the addresses that `identity` has, and the channel to it, if one is open."""

    def __init__(self, identity: Callable[[], Identity | None]) -> None:
        self._identity = identity
        self._turn = 0
        self._channel: grpc.aio.Channel | None = None

    @property
    def address(self) -> str:
        """The one whose turn it is."""
        addresses = self._known().addresses
        return addresses[self._turn % len(addresses)]

    def channel(self) -> grpc.aio.Channel:
        """The channel that is open, from now on if not before."""
        if self._channel is None:
            self._channel = self.another()
        return self._channel

    def another(self) -> grpc.aio.Channel:
        """A channel beside it, which is the caller's until it is taken."""
        identity = self._known()
        return open_channel(self.address, ca=identity.ca, identity=identity)

    def take(self, channel: grpc.aio.Channel) -> grpc.aio.Channel | None:
        """`channel` is the open one, the one before the caller's."""
        former, self._channel = self._channel, channel
        return former

    async def close(self, *, grace: float | None = None) -> None:
        """No channel is open; calls under way on it have `grace` seconds."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(grace)

    async def give_up(self) -> None:
        """A channel that is about to connect, or failed to and does not try for CONNECTS_AGAIN_MS, is closed."""
        trying = grpc.ChannelConnectivity.CONNECTING, grpc.ChannelConnectivity.TRANSIENT_FAILURE
        if self._channel is not None and self._channel.get_state() in trying:
            await self.close()

    async def try_next(self) -> None:
        """It is the next address's turn, where there are several."""
        if len(self._known().addresses) > 1:
            self._turn += 1
            await self.close()

    def _known(self) -> Identity:
        identity = self._identity()
        assert identity is not None
        return identity


def failure(error: grpc.aio.AioRpcError) -> errors.Error:
    """The failure of a call as one of ours."""
    kind = _ERRORS.get(error.code(), errors.Unavailable)
    return kind(first_line(error.details()) or error.code().name, reason=error.code().name)


def first_line(text: str | None) -> str:
    """What a sentence may quote of a text from elsewhere; gRPC's for a certificate of another name, in ours."""
    line = (text or "").partition("\n")[0][:500]
    if any(words in line for words in _OTHER_NAME):
        return "its certificate does not name this address; `variantd serve --advertise` has to"
    return line
