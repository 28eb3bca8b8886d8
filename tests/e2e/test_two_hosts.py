"""A control plane and an agent on different hosts: names in certificates, tokens and what enrollment returns.

Across two loopback addresses everywhere, across two network namespaces where root may make them; real
processes in both.
"""

import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509

from shared.ticket import ticket_from_token
from tests.support.fleet import BIN, ControlPlane, Fleet, Host, Process, run
from tests.support.privileged import run_or_skip
from tests.support.waiting import PATIENCE, eventually

EVERYWHERE = ("--http", "127.0.0.1:0", "--operator", "0.0.0.0:0", "--agents", "0.0.0.0:0")


@asynccontextmanager
async def serving(folder: Path, *options: str) -> AsyncIterator[Fleet]:
    """A control plane over `folder`/data with these options; every process is stopped at the end."""
    command = [str(BIN / "variantd"), "serve", "--data-dir", str(folder / "data"), *options]
    process = Process(command=command, log=folder / "variantd.log")
    async with aiohttp.ClientSession() as http:
        fleet = Fleet(folder=folder, plane=ControlPlane(data=folder / "data", process=process, http=http))
        try:
            await fleet.plane.start()
            yield fleet
        finally:
            for part in [*(host.process for host in fleet.hosts), process]:
                assert await part.stop() == 0, part.log.read_text()[-2000:]


def port(address: str) -> str:
    return address.rpartition(":")[2]


def names(address: str) -> set[str]:
    """What the certificate of a listener names."""
    pem = ssl.get_server_certificate(("127.0.0.1", int(port(address))))
    found = x509.load_pem_x509_certificate(pem.encode()).extensions
    alternatives = found.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = map(str, alternatives.get_values_for_type(x509.IPAddress))
    return {*alternatives.get_values_for_type(x509.DNSName), *addresses}


def session(host: Host) -> dict[str, object]:
    """What the running agent says of its way to the control plane."""
    done = subprocess.run(
        [str(BIN / "variant-agent"), "status", "--state-dir", str(host.state), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout)["session"])


async def test_what_is_advertised_is_in_certificates_tokens_and_enrollment(tmp_path: Path) -> None:
    """A host connects to the first name that answers, and stays connected over a restart."""
    async with serving(tmp_path, *EVERYWHERE, "--advertise", "127.0.0.2,localhost,variantd.example") as fleet:
        operator, agents = (port(fleet.plane.addresses[name]) for name in ("operator", "agents"))
        # The agents' listener wants a certificate first; both are shown the same one.
        assert {"127.0.0.2", "localhost", "variantd.example"} <= names(fleet.plane.addresses["operator"])
        token = (await fleet.plane.post("/v1/enrollment-tokens", {"name": "host"}))["token"]
        assert ticket_from_token(token).addresses == (
            f"127.0.0.2:{operator}",
            f"localhost:{operator}",
            f"variantd.example:{operator}",
        )
        host = await fleet.add_host("host", "bot-1")
        returned = json.loads((host.state / "identity" / "addresses.json").read_text())
        assert returned["agents"] == [
            f"127.0.0.2:{agents}",
            f"localhost:{agents}",
            f"variantd.example:{agents}",
        ]
        await eventually(lambda: session(host)["state"] == "connected")
        assert session(host)["address"] == f"127.0.0.2:{agents}"


async def test_where_it_listens_is_a_name_too(tmp_path: Path) -> None:
    """Without --advertise a listener's own address is in its certificate and in what hosts are told."""
    options = ("--http", "127.0.0.1:0", "--operator", "127.0.0.2:0", "--agents", "127.0.0.3:0")
    async with serving(tmp_path, *options) as fleet:
        token = (await fleet.plane.post("/v1/enrollment-tokens", {"name": "host"}))["token"]
        assert ticket_from_token(token).addresses == (fleet.plane.addresses["operator"],)
        host = await fleet.add_host("host", "bot-1")
        await eventually(lambda: session(host)["state"] == "connected")
        assert session(host)["address"] == fleet.plane.addresses["agents"]


async def test_a_name_that_is_not_advertised_is_refused_by_the_host(tmp_path: Path) -> None:
    """Neither enrollment nor the daemon believes a server whose certificate has another name; both say so."""
    async with serving(tmp_path, *EVERYWHERE, "--advertise", "127.0.0.2") as fleet:
        host = await fleet.add_host("host", "bot-1")
        await eventually(lambda: session(host)["state"] == "connected")
        token = (await fleet.plane.post("/v1/enrollment-tokens", {"name": "late"}))["token"]
        assert await fleet.plane.process.stop() == 0
        fleet.plane.process.command += ["--advertise", "127.0.0.9"]
        await fleet.plane.start()
        code, _, said = await run(
            "variant-agent", "enroll", "--token-file", "-", "--state-dir", str(tmp_path / "late"),
            stdin=token, ok=False,
        )  # fmt: skip
        assert code == 1
        assert "certificate does not name this address" in said, said
        assert "--advertise" in said

        def refused() -> bool:
            return "certificate does not name this address" in str(session(host)["lastError"])

        await eventually(refused)
        assert host.file("bot-1").read_bytes() == host.baseline("bot-1")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--http", "0.0.0.0:0"), ("http 0.0.0.0:0 is not loopback", "http_tls", "insecure = true")),
        (("--operator", "0.0.0.0:0"), ("operator 0.0.0.0:0 is every address", "set advertise")),
        (("--agents", "[::]:0"), ("agents [::]:0 is every address", "set advertise")),
        (("--advertise", "plane.example:7401"), ("advertise:", "without port and scheme")),
        (("--advertise", "plane.example,,b"), ("advertise:", "''")),
        (("--advertise", "0.0.0.0"), ("advertise:", "0.0.0.0")),
    ],
)
async def test_what_hosts_could_not_use_is_refused(
    tmp_path: Path, options: tuple[str, ...], told: tuple[str, ...]
) -> None:
    """Told at the start, by the setting's name, with the remedy; nothing was made."""
    code, _, said = await run("variantd", "serve", "--data-dir", str(tmp_path / "data"), *options, ok=False)
    assert code == 1
    assert [text for text in told if text not in said] == [], said
    assert not (tmp_path / "data").exists()


async def test_plain_http_elsewhere_only_where_told(tmp_path: Path) -> None:
    """`insecure = true` in the file lets it be served; names may stand in the file or the environment."""
    (tmp_path / "variantd.toml").write_text('insecure = true\nadvertise = ["127.0.0.2"]\n')
    everywhere = ("--http", "0.0.0.0:0", "--operator", "0.0.0.0:0", "--agents", "0.0.0.0:0")
    async with serving(tmp_path, "--config", str(tmp_path / "variantd.toml"), *everywhere) as fleet:
        url = f"http://127.0.0.2:{port(fleet.plane.addresses['http'])}/readyz"
        async with fleet.plane.http.get(url) as answer:
            assert answer.status == 200
        assert "127.0.0.2" in names(fleet.plane.addresses["operator"])


APART = """
mount -t tmpfs none /run
mount --bind "$T/hosts" /etc/hosts
ip link set lo up
ip netns add other
ip link add to-other type veth peer name to-plane netns other
ip addr add 10.77.0.1/24 dev to-other && ip link set to-other up
ip -n other addr add 10.77.0.2/24 dev to-plane && ip -n other link set to-plane up && ip -n other link set lo up

variantd serve --data-dir "$T/d" --operator 0.0.0.0:7401 --agents 0.0.0.0:7402 --advertise plane.test \\
  >"$T/plane.log" 2>&1 &
variantctl login --data-dir "$T/d"
variantctl agents token --quiet > "$T/token"
ip netns exec other variant-agent enroll --token-file "$T/token" --state-dir "$T/s"
ip netns exec other variant-agent run --config "$T/agent.toml" --state-dir "$T/s" >"$T/agent.log" 2>&1 &
variantctl apply -f "$T/experiment.yaml"
variantctl experiments start soul
variantctl experiments wait soul --timeout 30s
echo == file; cat "$T/bots/bot-1/SOUL.md"
ip netns exec other variant-agent report impression --participant bot-1 --socket "$T/agent.sock"
echo == link; ip netns exec other variant-agent status --state-dir "$T/s" --json
echo == http; ip netns exec other variantctl experiments list --server 10.77.0.1:7401 --ca "$T/d/ca/ca.pem" \\
  --api-key-file "$T/d/operator.api-key" 2>&1 || true
echo == end
"""


def test_across_two_network_namespaces(tmp_path: Path) -> None:
    """A host that has nothing but a network in common with the control plane takes part by its name."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip")
    apart = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc")
    probe = "mount -t tmpfs none /run && ip netns add x && ip link add to-x type veth peer name x0 netns x"
    run_or_skip(*apart, "bash", "-ec", probe)
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n10.77.0.1 plane.test\n")
    (tmp_path / "bots" / "bot-1").mkdir(parents=True)
    (tmp_path / "bots" / "bot-1" / "SOUL.md").write_text("I am bot 1.\n")
    (tmp_path / "agent.toml").write_text(
        '[agent]\nsocket = "agent.sock"\n[[participants]]\nid = "bot-1"\nroot = "bots/bot-1"\n'
        'targets = ["SOUL.md"]\n'
    )
    (tmp_path / "experiment.yaml").write_text(
        "{apiVersion: variantd/v1, kind: Experiment, key: soul, name: Soul, targetFile: SOUL.md,"
        " participants: [bot-1], metrics: {primary: {eventName: done, goal: increase}}, variants: ["
        "{name: A, isControl: true, weight: 50, content: over there}, {name: B, weight: 50, content: over there}]}"
    )
    done = subprocess.run(
        [*apart, "bash", "-euo", "pipefail", "-c", APART],
        env={
            **os.environ,
            "T": str(tmp_path),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE,
    )
    logs = "".join(
        (tmp_path / f"{name}.log").read_text()
        for name in ("plane", "agent")
        if (tmp_path / f"{name}.log").exists()
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + logs[-2000:]
    assert "over there" in done.stdout.partition("== file\n")[2].partition("== link")[0]
    link = json.loads(done.stdout.partition("== link\n")[2].partition("== http")[0])["session"]
    assert (link["state"], link["address"]) == ("connected", "plane.test:7402")
    said = done.stdout.partition("== http\n")[2].partition("== end")[0]
    assert "certificate does not name this address" in said, said
