"""The least that an agent can be, to measure it beside: a process that only imports, one that only holds a stream.

Run with a role: `imports` (the modules' names, as JSON, on standard input) or `stream ADDRESS`. Prints `ready` once it
is, and rests then. Imports nothing for itself beyond what its role takes.
"""

import sys


def imports() -> None:
    """The modules are there; nothing else happens."""
    import importlib
    import json
    import signal

    for name in json.load(sys.stdin):
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # made by its package, not to be found by name
    tell_ready()
    signal.pause()


def stream(address: str) -> None:
    """One grpc.aio stream, ready with the first answer; a message every ten seconds, as an agent beats."""
    import asyncio

    import grpc.aio

    async def hold() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.stream_stream("/bench/Talk")()
            while True:
                await call.write(b"beat")
                await call.read()
                tell_ready()
                await asyncio.sleep(10.0)

    asyncio.run(hold())


def tell_ready() -> None:
    """Whoever waits for this process reads a line."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()


if __name__ == "__main__":
    {"imports": imports, "stream": stream}[sys.argv[1]](*sys.argv[2:])
