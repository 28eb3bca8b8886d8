"""What REST and gRPC cost beside a handler that does nothing: `make bench BENCH=api`.

Every contender is a server of its own process, so its processor time is its own; all are asked in turn within each
round, so that a busy machine slows them alike. Figures are ratios to the bare handler of the same transport (bare
aiohttp, bare grpc.aio), of processor time per call and of wall time per call, as medians over rounds of the pairs.
Nothing is asserted.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from aiohttp import web

from shared.pb.variantd.operator.v1 import operator_pb2 as pb
from tests.bench.stage import cpu_seconds, keep, median
from tests.support.waiting import eventually

VARIANTS = [
    {"name": "Friendly", "content": "You are friendly.", "weight": 50, "isControl": True},
    {"name": "Concise", "content": "You are concise.", "weight": 50},
]
GET = "/variantd.operator.v1.ExperimentService/GetExperiment"


@dataclass(frozen=True)
class Server:
    """A process and how it is reached."""

    pid: int
    http: str = ""
    channel: grpc.aio.Channel | None = None
    key: str = ""


# -- the bare handlers


async def bare(kind: str, at: Path) -> None:
    """Serves one handler that answers at once; its address is in `at`."""
    if kind == "aiohttp":

        async def answer(request: web.Request) -> web.Response:
            await request.read()
            return web.json_response({"id": "x", "name": "Tone"})

        app = web.Application()
        app.router.add_route("*", "/{any:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
    else:

        async def tell(request: Any, context: Any) -> pb.Experiment:
            return pb.Experiment(id="x", name="Tone")

        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(
            tell,
            request_deserializer=pb.GetExperimentRequest.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        service = "variantd.operator.v1.ExperimentService"
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"GetExperiment": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
    at.with_suffix(".part").write_text(f"127.0.0.1:{port}")
    at.with_suffix(".part").rename(at)
    await asyncio.Event().wait()


# -- measuring


Call = Callable[[int], Awaitable[object]]


async def timed(server: Server, call: Call, calls: int, width: int) -> tuple[float, float]:
    """(processor, wall) microseconds per call, `width` of them under way at a time."""
    numbers = iter(range(calls))

    async def some() -> None:
        for number in numbers:
            await call(number)

    cpu, wall = cpu_seconds(server.pid), time.perf_counter()
    await asyncio.gather(*(some() for _ in range(width)))
    wall = time.perf_counter() - wall
    return (cpu_seconds(server.pid) - cpu) / calls * 1e6, wall / calls * 1e6


def rest_calls(http: aiohttp.ClientSession, server: Server, tag: str) -> dict[str, Call]:
    """Create, get, list and start over HTTP."""
    base, headers = f"http://{server.http}/v1/experiments", {"Authorization": f"Bearer {server.key}"}

    async def ask(method: str, path: str, body: Any = None) -> None:
        async with http.request(method, base + path, json=body, headers=headers) as response:
            await response.read()
            if response.status >= 400:
                raise RuntimeError(await response.text())

    async def create(number: int) -> None:
        await ask("POST", "", draft(tag, number))

    async def get(number: int) -> None:
        await ask("GET", f"/{tag}-0")

    async def page(number: int) -> None:
        await ask("GET", "?limit=25")

    async def start(number: int) -> None:
        await ask("POST", f"/{tag}-{number}/start")

    return {"create": create, "get": get, "list": page, "start": start}


def grpc_calls(server: Server, tag: str) -> dict[str, Call]:
    """The same over gRPC."""
    metadata = (("authorization", f"Bearer {server.key}"),)
    assert server.channel is not None
    channel = server.channel

    def method(name: str, answer: Any) -> Any:
        return channel.unary_unary(
            f"/variantd.operator.v1.ExperimentService/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )

    make, one = method("CreateExperiment", pb.Experiment), method("GetExperiment", pb.Experiment)
    several = method("ListExperiments", pb.ListExperimentsResponse)
    begin = method("StartExperiment", pb.LifecycleResponse)

    async def create(number: int) -> None:
        wanted = draft(tag, number)
        variants = [
            pb.VariantSpec(
                name=str(item["name"]),
                content=str(item["content"]),
                weight=50,
                is_control=bool(item.get("isControl")),
            )
            for item in VARIANTS
        ]
        request = pb.CreateExperimentRequest(
            name=wanted["name"],
            key=wanted["key"],
            target_file="soul.md",
            variants=variants,
            participant_ids=wanted["participantIds"],
        )
        await make(request, metadata=metadata)

    async def get(number: int) -> None:
        await one(pb.GetExperimentRequest(id=f"{tag}-0"), metadata=metadata)

    async def page(number: int) -> None:
        await several(pb.ListExperimentsRequest(page_size=25), metadata=metadata)

    async def start(number: int) -> None:
        await begin(pb.StartExperimentRequest(id=f"{tag}-{number}"), metadata=metadata)

    return {"create": create, "get": get, "list": page, "start": start}


def draft(tag: str, number: int) -> dict[str, Any]:
    """An experiment of two participants of its own."""
    key = f"{tag}-{number}"
    people = [f"{key}-a", f"{key}-b"]
    return {"name": key, "key": key, "targetFile": "soul.md", "variants": VARIANTS, "participantIds": people}


async def measure(folder: Path, rounds: int, calls: int, width: int) -> list[dict[str, Any]]:
    """The rows of the table."""
    started = []
    try:
        for kind in ("aiohttp", "grpc"):
            words = ("-m", "tests.bench.api", "--bare", kind, "--at", str(folder / kind))
            started.append(await asyncio.create_subprocess_exec(sys.executable, *words))
        serve = ("serve", "--data-dir", str(folder / "data"))
        ports = [word for name in ("http", "operator", "agents") for word in (f"--{name}", "127.0.0.1:0")]
        log = (folder / "log").open("wb")
        started.append(
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "control_plane", *serve, *ports, stdout=log, stderr=log
            )
        )
        data = folder / "data"
        for path in (folder / "aiohttp", folder / "grpc", data / "addresses.json"):
            await eventually(path.exists, within=300)
        at = json.loads((data / "addresses.json").read_text())
        key = (data / "operator.api-key").read_text().strip()
        trusted = grpc.ssl_channel_credentials((data / "ca" / "ca.pem").read_bytes())
        bare_http = Server(pid=started[0].pid, http=(folder / "aiohttp").read_text())
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
            grpc.aio.insecure_channel((folder / "grpc").read_text()) as plain,
            grpc.aio.secure_channel(at["operator"], trusted) as secure,
        ):
            bare_grpc = Server(pid=started[1].pid, channel=plain)
            ours = Server(pid=started[2].pid, http=at["http"], channel=secure, key=key)
            return await compare(http, bare_http, bare_grpc, ours, rounds=rounds, calls=calls, width=width)
    finally:
        for process in started:
            if process.returncode is None:
                process.terminate()
                await process.wait()


async def compare(
    http: aiohttp.ClientSession,
    bare_http: Server,
    bare_grpc: Server,
    ours: Server,
    *,
    rounds: int,
    calls: int,
    width: int,
) -> list[dict[str, Any]]:
    """Every operation on both transports beside the bare handler, in turn within each round."""
    found: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for number in range(rounds + 1):
        contenders = {
            "REST": (bare_http, rest_calls(http, bare_http, "x"), rest_calls(http, ours, f"r{number}")),
            "gRPC": (bare_grpc, grpc_calls(bare_grpc, "x"), grpc_calls(ours, f"g{number}")),
        }
        for name in ("create", "get", "list", "start"):
            for transport, (beside, plain, own) in contenders.items():
                # The bare handler is asked the same question where it has one, else its only one.
                question = plain[name] if transport == "REST" else plain["get"]
                least = await timed(beside, question, calls, width)
                ran = await timed(ours, own[name], calls, width)
                if number:  # the first round warms up
                    found.setdefault((transport, name), []).append((*least, *ran))
    return [_row(transport, name, pairs) for (transport, name), pairs in found.items()]


def _row(transport: str, name: str, pairs: list[tuple[float, float, float, float]]) -> dict[str, Any]:
    return {
        "transport": transport,
        "operation": name,
        "rounds": len(pairs),
        "cpuRatio": median([ran / max(least, 1e-9) for least, _, ran, _ in pairs]),
        "wallRatio": median([ran / max(least, 1e-9) for _, least, _, ran in pairs]),
        "cpuMicros": median([ran for _, _, ran, _ in pairs]),
        "bareCpuMicros": median([least for least, _, _, _ in pairs]),
        "wallMicros": median([ran for _, _, _, ran in pairs]),
    }


def main() -> None:
    """The table, then the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=300, help="calls of each kind in a round")
    parser.add_argument("--width", type=int, default=8, help="calls under way at a time")
    parser.add_argument("--bare", choices=("aiohttp", "grpc"), help=argparse.SUPPRESS)
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bare:
        asyncio.run(bare(given.bare, given.at))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(Path(folder), given.rounds, given.calls, given.width))
    print(f"{'':16}{'CPU ×bare':>10}{'wall ×bare':>12}{'CPU µs':>9}{'bare CPU µs':>13}{'wall µs':>9}")
    for row in rows:
        name = f"{row['transport']} {row['operation']}"
        print(
            f"{name:16}{row['cpuRatio']:>10}{row['wallRatio']:>12}{row['cpuMicros']:>9.0f}"
            f"{row['bareCpuMicros']:>13.0f}{row['wallMicros']:>9.0f}"
        )
    keep("api", rounds=given.rounds, calls=given.calls, width=given.width, rows=rows)


if __name__ == "__main__":
    main()
