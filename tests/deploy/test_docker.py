"""The recipes for containers: linted, true to the code, and carried out without a builder.

Images are built where a builder and the base image are at hand; everything else runs everywhere.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

import agent.__main__ as agent_program
from agent import config as agent_config
from control_plane.config import Settings
from shared import VERSION
from tests.support.fleet import ControlPlane, Process
from tests.support.privileged import run_or_skip
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKER = ROOT / "deploy" / "docker"
BIN = Path(sys.executable).parent
RECIPES = ("control-plane", "agent")


def instructions(recipe: str) -> Iterator[tuple[str, str]]:
    """(instruction, arguments) of a Containerfile in order, continued lines joined."""
    text = (DOCKER / f"Containerfile.{recipe}").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            yield name, " ".join(rest.split())


def of(recipe: str, name: str) -> list[str]:
    return [rest for instruction, rest in instructions(recipe) if instruction == name]


def environment(recipe: str) -> dict[str, str]:
    """What the final image sets."""
    return dict(pair.split("=", 1) for pair in shlex.split(of(recipe, "ENV")[-1]))


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DOCKER / "compose.yaml").read_text()))


@pytest.mark.parametrize("recipe", RECIPES)
def test_lint(recipe: str) -> None:
    """Nothing to say, not even a hint."""
    done = subprocess.run(
        [BIN / "hadolint", "--no-color", DOCKER / f"Containerfile.{recipe}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_copied_is_there_and_in_the_builders_sight(recipe: str) -> None:
    """Every source exists, and nothing but what .dockerignore lets through can be one."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    sources = [part for rest in of(recipe, "COPY") if "--from" not in rest for part in rest.split()[:-1]]
    assert len(sources) >= 6
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{Path(source).parts[0]}" in ignored, source


@pytest.mark.parametrize("recipe", RECIPES)
def test_pinned_unprivileged_and_without_secrets(recipe: str) -> None:
    """One base of an exact version, hashes for what is installed, a user that is not root, no secret."""
    bases = {rest.split()[0] for rest in of(recipe, "FROM")}
    assert len(bases) == 1
    assert re.search(r":\d+\.\d+\.\d+-slim-\w+$", bases.pop())
    installs = re.findall(r"pip install [^&]+-r \S+", " ".join(of(recipe, "RUN")))
    assert len(installs) == 2
    assert all("--require-hashes" in install for install in installs)
    assert of(recipe, "USER")[-1].split(":")[0] not in ("root", "0")
    assert f'version="{VERSION}"' in of(recipe, "LABEL")[0]
    said = " ".join(of(recipe, "ENV") + of(recipe, "ARG"))
    assert not re.search(r"TOKEN|SECRET|PASSWORD|API_KEY", said)


def test_every_name_is_one_of_the_code() -> None:
    """Settings, ports, paths, commands: the recipes and compose.yaml name only what there is."""
    control_plane, agent = (compose()["services"][recipe] for recipe in RECIPES)
    settings = {f"VARIANTD_{name.upper()}" for name in Settings.model_fields}
    named = [*environment("control-plane"), *control_plane["environment"]]
    assert {name for name in named if name.startswith("VARIANTD_")} <= settings
    ports = {Settings.model_fields[name].default.rpartition(":")[2] for name in ("operator", "agents")}
    assert set(of("control-plane", "EXPOSE")[0].split()) == ports
    assert {entry.split(":")[-1] for entry in control_plane["ports"]} == ports
    # What is published is published on this machine only; everybody else is the reader's decision.
    assert {entry.split(":")[0] for entry in control_plane["ports"]} == {"127.0.0.1"}

    data = environment("control-plane")["VARIANTD_DATA_DIR"]
    assert of("control-plane", "VOLUME") == [data]
    assert control_plane["volumes"] == [f"data:{data}"]
    places = [str(agent_program.STATE_DIR), str(agent_program.SOCKET.parent)]
    assert json.loads(of("agent", "VOLUME")[0]) == places
    mounts = dict(reversed(entry.removesuffix(":ro").rsplit(":", 1)) for entry in agent["volumes"])
    assert {*places, str(agent_program.CONFIG)} < set(mounts)
    assert str(agent_config.load(DOCKER / "agent.toml").participants[0].root) in mounts
    assert (DOCKER / mounts[str(agent_program.CONFIG)]).is_file()
    for recipe, service in (("control-plane", control_plane), ("agent", agent)):
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).name == f"Containerfile.{recipe}"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(compose()["volumes"]) == {"data", "state", "socket"}


def test_compose_accepts_the_file() -> None:
    """By Compose itself, where it is installed."""
    if shutil.which("docker") is None:
        pytest.skip("needs docker")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("needs docker's compose plugin")
    subprocess.run(["docker", "compose", "config", "--quiet"], cwd=DOCKER, check=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_image_is_built(recipe: str) -> None:
    """By a builder, where there is one that has the base image; and the program in it starts."""
    base = of(recipe, "FROM")[0].split()[0]
    for builder in ("docker", "podman"):
        if (
            shutil.which(builder)
            and not subprocess.run([builder, "info"], capture_output=True, check=False).returncode
        ):
            break
    else:
        pytest.skip("needs docker or podman with a daemon to build with")
    pulled = subprocess.run([builder, "pull", base], capture_output=True, text=True, check=False)
    if pulled.returncode:
        pytest.skip(f"needs {base}, and it cannot be pulled here: {pulled.stderr.strip()[-200:]}")
    tag = f"variantd-test/{recipe}"
    command = [builder, "build", "-f", DOCKER / f"Containerfile.{recipe}", "-t", tag, ROOT]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [builder, "run", "--rm", "--read-only", tag, "--version"], capture_output=True, text=True, check=True
    )
    assert VERSION in done.stdout


# -- without a builder -------------------------------------------------------------------------------


async def carry_out(recipe: str, place: Path) -> Path:
    """The first stage's steps were done beneath `place`; the programs' folder.

    The command lines are the file's own; only /opt is elsewhere, and the downloads of earlier runs count.
    """
    source = place / "src"
    source.mkdir(parents=True)
    for name, rest in instructions(recipe):
        if name == "COPY" and "--from" not in rest:
            *parts, target = rest.split()
            (source / target).mkdir(exist_ok=True)
            for part in parts:
                if (ROOT / part).is_dir():
                    shutil.copytree(ROOT / part, source / target, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / part, source / target)
        elif name == "RUN" and "/opt/" in rest:
            command = rest.replace("/opt/", f"{place}/opt/").replace("python -m", f"{sys.executable} -m")
            child = await asyncio.create_subprocess_exec(
                "bash",
                "-euc",
                command,
                cwd=source,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await child.communicate()
            if child.returncode and unreachable(said.decode()) and not os.environ.get("CI"):
                pytest.skip(f"needs a package index: {said.decode()[-300:]}")
            assert child.returncode == 0, said.decode()[-3000:]
        elif name == "LABEL":
            break
    return place / "opt" / "variantd" / "bin"


def unreachable(said: str) -> bool:
    """Whether pip found no index, rather than anything wrong with what it was asked."""
    words = ("Failed to establish a new connection", "Name or service not known", "name resolution")
    return any(text in said for text in words)


def check_of(recipe: str, address: str) -> list[str]:
    """The health check's command for a listener that is elsewhere."""
    command = json.loads(of(recipe, "HEALTHCHECK")[0].partition("CMD ")[2])
    return [re.sub(r"127\.0\.0\.1:\d+", address, part) for part in command]


def healthy(bin_: Path, recipe: str, address: str) -> bool:
    command = check_of(recipe, address)
    done = subprocess.run([bin_ / command[0], *command[1:]], capture_output=True, check=False)
    return done.returncode == 0


async def ended(*command: str | Path) -> tuple[int, str]:
    """(exit code, everything it said) of a command."""
    child = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await child.communicate()
    return child.returncode or 0, said.decode()


async def test_the_recipes_carried_out(tmp_path: Path) -> None:
    """Their install steps make two environments; a control plane from one, an agent from the other, both healthy."""
    server, host = await asyncio.gather(*(carry_out(recipe, tmp_path / recipe) for recipe in RECIPES))
    code, told = await ended(host / "variantd", "serve")
    assert (code, told.count("the control plane is not installed here")) == (1, 1), told

    command = [str(server / "variantd"), *json.loads(of("control-plane", "CMD")[0])]
    data = tmp_path / "data"
    given = {"VARIANTD_DATA_DIR": str(data), "VARIANTD_ADVERTISE": "localhost"}
    given |= {f"VARIANTD_{name}": "127.0.0.1:0" for name in ("HTTP", "OPERATOR", "AGENTS")}
    process = Process(
        command=["env", *(f"{k}={v}" for k, v in given.items()), *command], log=tmp_path / "p.log"
    )
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    text = (DOCKER / "agent.toml").read_text().replace("/workspace", str(workspace))
    (tmp_path / "agent.toml").write_text(
        text + f'[agent]\nlocal_http = "127.0.0.1:0"\nsocket = "{tmp_path}/agent.sock"\n'
    )
    state = ["--state-dir", str(tmp_path / "state")]
    daemon = Process(
        command=[str(host / "variant-agent"), "run", "--config", str(tmp_path / "agent.toml"), *state],
        log=tmp_path / "a.log",
    )
    async with aiohttp.ClientSession() as http:
        plane = ControlPlane(data=data, process=process, http=http)
        try:
            await plane.start()
            await eventually(lambda: healthy(server, "control-plane", plane.addresses["http"]))
            token = (await plane.post("/v1/enrollment-tokens", {"name": "container"}))["token"]
            (tmp_path / "token").write_text(token)
            code, told = await ended(
                host / "variant-agent", "enroll", "--token-file", tmp_path / "token", *state
            )
            assert code == 0, told
            await daemon.start()
            at = tmp_path / "state" / "addresses.json"
            await eventually(lambda: daemon.running() and at.exists())
            await eventually(lambda: healthy(host, "agent", json.loads(at.read_text())["http"]))
        finally:
            await daemon.stop()
            await process.stop()
    assert not healthy(server, "control-plane", plane.addresses["http"]), "a check that cannot fail"


# What stands in for Docker: each container is a process of its image's user without capabilities, with the
# image's environment, in places that only this test sees.
COMPOSE = """#!/bin/bash
set -euo pipefail
[ "$1" = compose ]; verb=$2; shift 2
while [[ $1 == -* ]]; do shift; done
service=$1; shift
case $service in control-plane) uid=7400;; agent) uid=$BOT_UID;; esac
mapfile -t given < "$T/$service.env"
as() { env -i "${given[@]}" setpriv --reuid $uid --regid $uid --clear-groups --bounding-set=-all --no-new-privs "$@"; }
case "$verb $service" in
"up control-plane") install -d -m 0700 -o $uid -g $uid /var/lib/variantd
  as variantd serve >"$T/plane.log" 2>&1 & ;;
"up agent") install -d -m 0755 -o $uid -g $uid /run/variant-agent
  as variant-agent run >"$T/agent.log" 2>&1 & ;;
"run agent") install -d -m 0700 -o $uid -g $uid /var/lib/variant-agent
  as variant-agent "$@" ;;
exec*) as "$@" ;;
esac
[ "$verb" = up ] || exit 0
for _ in $(seq 300); do as $(cat "$T/$service.check") 2>/dev/null && exit 0; sleep 0.1; done
cat "$T"/*.log; exit 1
"""

PREPARED = """
ip link set lo up
cp -a /etc "$T/etc" && mount --bind "$T/etc" /etc
mkdir "$T/checkout" && mount --bind "$CHECKOUT" "$T/checkout"
for place in /srv /run /var/lib /tmp; do mount -t tmpfs none $place; done
chmod 1777 /tmp
mkdir -p "$CHECKOUT" && mount --bind "$T/checkout" "$CHECKOUT"  # it may lie in one of those places
echo 'variantd:x:7400:7400::/var/lib/variantd:/bin/sh' >> /etc/passwd
cp -r "$DOCKER" /srv/docker && cd /srv/docker && mkdir workspace && chown 1000:1000 workspace
mkdir /etc/variant-agent && sed 's|"/workspace"|"/srv/docker/workspace"|' agent.toml > /etc/variant-agent/agent.toml
"""


def test_every_command_of_the_page(tmp_path: Path) -> None:
    """An agent joins without its token touching a file; each program has no more than its container would."""
    if shutil.which("ip") is None or shutil.which("setpriv") is None:
        pytest.skip("needs ip and setpriv")
    apart = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc")
    run_or_skip(*apart, "mount", "-t", "tmpfs", "none", "/srv")
    reach = ("setpriv", "--reuid", "7400", "--regid", "7400", "--clear-groups", BIN / "variantd", "--version")
    run_or_skip(*reach)
    # The namespace has a /tmp of its own, so what is brought along lies beside it.
    place = Path(tempfile.mkdtemp(prefix="variantd-test-", dir="/var/tmp"))
    try:
        (place / "bin").mkdir()
        (place / "bin" / "docker").write_text(COMPOSE)
        (place / "bin" / "docker").chmod(0o755)
        for recipe in RECIPES:
            given = environment(recipe) | compose()["services"][recipe].get("environment", {})
            given |= {"PATH": f"{BIN}:{os.environ['PATH']}"}
            lines = [f"{name}={value}".replace("${ADVERTISE:-}", "") for name, value in given.items()]
            (place / f"{recipe}.env").write_text("\n".join(lines) + "\n")
            command = json.loads(of(recipe, "HEALTHCHECK")[0].partition("CMD ")[2])
            (place / f"{recipe}.py").write_text(command[-1])
            (place / f"{recipe}.py").chmod(0o644)
            (place / f"{recipe}.check").write_text(f"{BIN}/python {place}/{recipe}.py")
        place.chmod(0o755)
        page = "\n".join(re.findall(r"```bash\n(.*?)```", (DOCKER / "README.md").read_text(), re.DOTALL))
        shown = "echo == backup; stat -c %a backup.tar; tar -tf backup.tar; ls -A /srv/docker"
        done = subprocess.run(
            [*apart, "bash", "-euo", "pipefail", "-c", PREPARED + page + shown],
            env={
                **os.environ,
                "T": str(place),
                "DOCKER": str(DOCKER),
                "CHECKOUT": str(ROOT),
                "PATH": f"{place}/bin:{BIN}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        logs = "".join(log.read_text() for log in place.glob("*.log"))
    finally:
        shutil.rmtree(place)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + logs[-2000:]
    assert "Traceback" not in done.stderr + logs
    assert "participant   bot-1  /srv/docker/workspace" in done.stdout
    mode, *listed = done.stdout.partition("== backup\n")[2].splitlines()
    assert mode == "600"
    assert any(name.endswith("variantd.db") for name in listed)
    assert not any("token" in name for name in listed)
