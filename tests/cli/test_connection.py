"""Who is spoken to, with which key, and how a failure is told."""

import asyncio
import getpass
import os
import stat
from pathlib import Path

import pytest

from control_plane.cli.connection import Exit, Failure, Peer, Wanted, load_profiles, peer, save_profile
from shared.errors import Fault
from tests.cli.conftest import Run
from tests.support.plane import Plane, running_plane

HERE = Peer(server="127.0.0.1:7401", ca=b"here\n", api_key="sk_here")


def profiles(tmp_path: Path) -> Path:
    """Where this test keeps profiles; `VARIANTD_*` and flags come on top."""
    return tmp_path / "variantd" / "profiles.toml"


def chosen(tmp_path: Path, wanted: Wanted | None = None, **environment: str) -> Peer:
    """The peer for flags and variables, over the stored profiles."""
    return peer(wanted or Wanted(), {"XDG_CONFIG_HOME": str(tmp_path), **environment})


def test_a_profile_is_its_owners_alone(tmp_path: Path) -> None:
    """The file is 0600 in a directory of 0700, also after a second profile, and holds both exactly."""
    there = Peer(server="[::1]:1", ca=None, api_key='sk_"\\there')
    save_profile(profiles(tmp_path), "default", HERE)
    save_profile(profiles(tmp_path), "prod-2", there)
    assert load_profiles(profiles(tmp_path)) == {"default": HERE, "prod-2": there}
    assert stat.S_IMODE(profiles(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE(profiles(tmp_path).parent.stat().st_mode) == 0o700
    assert [path.name for path in profiles(tmp_path).parent.iterdir()] == ["profiles.toml"]


def test_a_profile_others_may_read_is_refused(tmp_path: Path) -> None:
    """Keys that others can read are not used, and the remedy is said."""
    save_profile(profiles(tmp_path), "default", HERE)
    profiles(tmp_path).chmod(0o640)
    with pytest.raises(Failure, match="chmod 600"):
        chosen(tmp_path)


@pytest.mark.parametrize("text", ["profiles = 1", "[profiles.default]\nserver = 1", "[profiles", "\x00"])
def test_a_broken_profile_file_says_so(tmp_path: Path, text: str) -> None:
    """A file that is no profile file costs one sentence."""
    save_profile(profiles(tmp_path), "default", HERE)
    profiles(tmp_path).write_text(text)
    with pytest.raises(Failure, match="log in again"):
        chosen(tmp_path)


def test_flags_come_before_variables_before_the_profile(tmp_path: Path) -> None:
    """Each setting is taken from the first place that says it."""
    save_profile(profiles(tmp_path), "default", HERE)
    (tmp_path / "ca.pem").write_bytes(b"other ca")
    (tmp_path / "key").write_text(" sk_flag \n")
    assert chosen(tmp_path) == HERE
    assert chosen(tmp_path, VARIANTD_API_KEY="sk_env").api_key == "sk_env"
    flag = Wanted(api_key_file=str(tmp_path / "key"))
    assert chosen(tmp_path, flag, VARIANTD_API_KEY="sk_env").api_key == "sk_flag"
    assert chosen(tmp_path, VARIANTD_CA=str(tmp_path / "ca.pem")).ca == b"other ca"
    variables = {"VARIANTD_SERVER": "a:1", "VARIANTD_API_KEY": "sk_env"}
    assert chosen(tmp_path, **variables).server == "a:1"
    assert chosen(tmp_path, Wanted(server="b:2"), **variables).server == "b:2"


def test_a_profiles_key_goes_to_its_own_server_only(tmp_path: Path) -> None:
    """Naming another server does not send it the key of the one in the profile."""
    save_profile(profiles(tmp_path), "default", HERE)
    with pytest.raises(Failure, match="no API key for elsewhere:7401") as caught:
        chosen(tmp_path, Wanted(server="elsewhere:7401"))
    assert caught.value.exit_code is Exit.USAGE
    other = chosen(tmp_path, Wanted(server="elsewhere:7401"), VARIANTD_API_KEY="sk_x")
    assert (other.api_key, other.ca) == ("sk_x", None)
    assert chosen(tmp_path, Wanted(server=HERE.server)) == HERE


def test_who_says_everything_needs_no_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline whose home is another user's, or that has none at all."""
    (tmp_path / "ca.pem").write_bytes(b"ca")
    variables = {
        "VARIANTD_SERVER": "a:1",
        "VARIANTD_API_KEY": "sk_env",
        "VARIANTD_CA": str(tmp_path / "ca.pem"),
    }
    profiles(tmp_path).mkdir(parents=True)  # cannot be read
    assert chosen(tmp_path, **variables) == Peer(server="a:1", ca=b"ca", api_key="sk_env")
    with pytest.raises(Failure, match="cannot read profiles"):
        chosen(tmp_path, **{**variables, "VARIANTD_CA": ""})
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)  # a user that the machine does not know
    assert peer(Wanted(), variables).server == "a:1"
    with pytest.raises(Failure, match="set HOME"):
        peer(Wanted(), {})


def test_a_named_profile_is_used_or_missed(tmp_path: Path) -> None:
    """A profile that is asked for and is not there is an error that names those there are."""
    save_profile(profiles(tmp_path), "prod", HERE)
    assert chosen(tmp_path, VARIANTD_PROFILE="prod") == HERE
    assert chosen(tmp_path, Wanted(profile="prod"), VARIANTD_PROFILE="nope") == HERE
    with pytest.raises(Failure, match="known: prod"):
        chosen(tmp_path, Wanted(profile="nope"))
    with pytest.raises(Failure, match="which control plane"):
        chosen(tmp_path)


@pytest.mark.parametrize("server", ["", "host", "host:0", "host:65536", "a b:1", "host:x", "http://host:1"])
def test_a_server_is_host_and_port(tmp_path: Path, server: str) -> None:
    """What is no HOST:PORT is a usage error before anything is sent."""
    with pytest.raises(Failure) as caught:
        chosen(tmp_path, Wanted(server=server), VARIANTD_API_KEY="sk_x")
    assert caught.value.exit_code is Exit.USAGE


def test_each_fault_has_its_line_and_is_said_once() -> None:
    """The message does not repeat what stands below it."""
    faults = [Fault(field="a", message="is b", remedy="do c"), Fault(field="d", message="is e")]
    joined = "a: is b; d: is e"
    assert Failure(f"not ready: {joined}", reason="NOT_READY", faults=faults).lines() == [
        "variantctl: not ready (NOT_READY)",
        "  a: is b; do c",
        "  d: is e",
    ]
    assert Failure(joined, faults=faults).lines()[0] == "variantctl: the request is not valid"


# -- against a real control plane


async def test_login_makes_a_key_of_ones_own(plane: Plane, run: Run, home: Path) -> None:
    """Logging in locally leaves a personal key in the profile, never the operator's."""
    said = await run("login", "--data-dir", str(plane.data))
    assert (said.code, said.err) == (0, "")
    assert plane.key not in (home / "variantd" / "profiles.toml").read_text()
    said = await run("audit", "--json")
    assert [(item["actor"], item["operation"]) for item in said.json["entities"]] == [
        ("api_key:operator", "AccessService.CreateApiKey")
    ]
    made = await run("participants", "create", "p", "--json")
    assert made.code == 0
    assert (
        (await run("audit", "--json", "--limit", "1"))
        .json["entities"][0]["actor"]
        .startswith(f"api_key:{getpass.getuser()}@")
    )


async def test_login_from_elsewhere_checks_the_key(
    plane: Plane, run: Run, tmp_path: Path, home: Path
) -> None:
    """A wrong key is not stored; a right one is, with the CA's content, so that both files may go."""
    key, ca = tmp_path / "key", tmp_path / "ca.pem"
    ca.write_bytes((plane.data / "ca" / "ca.pem").read_bytes())
    words = ("login", "--server", plane.addresses["operator"], "--ca", str(ca), "--api-key-file", str(key))
    key.write_text("sk_wrong")
    said = await run(*words)
    assert said.code == 1
    assert "BAD_API_KEY" in said.err
    assert not home.exists()
    narrow = await plane.grpc("AccessService.CreateApiKey", name="ci", scopes=["fleet:read"])
    key.write_text(narrow.secret)
    assert (await run(*words)).code == 0
    key.unlink()
    ca.unlink()
    assert (await run("agents", "list")).code == 0
    refused = await run("experiments", "list")
    assert refused.code == 1
    assert "experiment:read" in refused.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("login",), "--data-dir"),
        (("login", "--data-dir", "x", "--server", "a:1"), "says server"),
        (("login", "--data-dir", "x", "--profile", "a b"), "not a profile name"),
        (("experiments", "list"), "which control plane"),
        (("experiments", "get"), "EXPERIMENT"),
        (("experiments", "list", "--no-such"), "--no-such"),
        (("deploy", "e", "-p", "p", "-v", "v", "--timeout", "soon"), "not a duration"),
        (("agents", "token", "--label", "nope"), "NAME=VALUE"),
    ],
)
async def test_usage_errors_are_exit_code_2(run: Run, words: tuple[str, ...], why: str) -> None:
    """What is wrong with the command line alone is 2, and nothing was sent."""
    said = await run(*words)
    assert said.code == 2
    assert why in said.err


async def test_a_data_dir_without_a_control_plane(run: Run, tmp_path: Path) -> None:
    """Logging in where none serves says so once its patience ends."""
    said = await run("login", "--data-dir", str(tmp_path), "--timeout", "50ms")
    assert said.code == 1
    assert said.err.startswith(f"variantctl: no control plane serves from {tmp_path}")


async def test_login_waits_for_a_control_plane_that_starts(run: Run, tmp_path: Path) -> None:
    """Logging in right behind `variantd serve &` works, also over the addresses of an earlier run."""
    data = tmp_path / "data"
    waiting = asyncio.create_task(run("login", "--data-dir", str(data)))
    async with running_plane(data):
        assert (await waiting).code == 0
    waiting = asyncio.create_task(run("login", "--data-dir", str(data)))
    async with running_plane(data):
        assert (await waiting).code == 0
        assert (await run("experiments", "list")).code == 0


async def test_nobody_there_and_the_wrong_one_there(plane: Plane, ctl: Run, tmp_path: Path) -> None:
    """A refused connection and a certificate of another CA are told apart, in one sentence each."""
    key = str(plane.data / "operator.api-key")
    said = await ctl("--server", "127.0.0.1:1", "--api-key-file", key, "experiments", "list")
    assert (said.code, "nothing listens there" in said.err, said.err.count("\n")) == (1, True, 1)
    async with running_plane(tmp_path / "other") as other:
        ca = str(plane.data / "ca" / "ca.pem")
        server = other.addresses["operator"]
        said = await ctl("experiments", "list", "--server", server, "--ca", ca, "--api-key-file", key)
        no_ca = await ctl("experiments", "list", "--server", server, "--ca", key, "--api-key-file", key)
    assert (said.code, "not from the CA we trust" in said.err, said.err.count("\n")) == (1, True, 1)
    assert (no_ca.code, "no certificate as PEM" in no_ca.err, no_ca.err.count("\n")) == (1, True, 1)
