"""variantctl: everything an operator or a pipeline does, over the operator protocol.

This module puts the commands together; each module beside it is one kind of them.
"""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli import (
    access,
    apply,
    audit,
    create,
    deploying,
    doctor,
    drift,
    experiments,
    export,
    findings,
    fleet,
    holdouts,
    metrics,
    offline,
    phases,
    preview,
    results,
    schema,
    series,
    settings,
    show,
    survey,
    tail,
    watching,
)
from control_plane.cli.session import Exit, Failure, Session, add, tell, with_globals
from shared import VERSION

app = typer.Typer(
    name="variantctl",
    epilog="Exit codes: 0 ok, 1 error, 2 usage, 3 hosts did not converge or manifests differ, 4 conflict, 5 timed out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:  # noqa: FBT001  # typer hands callbacks the value
    if wanted:
        print(f"variantctl {VERSION}")
        raise typer.Exit


def _root(
    _: Session,
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Controlled experiments on files: apply a manifest, start, deploy, see what the numbers say.

    Global options may stand before or after the command. Without them, VARIANTD_SERVER, VARIANTD_CA and
    VARIANTD_API_KEY count, then the profile that `variantctl login` wrote.
    """


def _group(name: str, text: str) -> typer.Typer:
    made = typer.Typer(help=text, no_args_is_help=True)
    app.add_typer(made, name=name)
    return made


app.callback()(with_globals(_root))

add(
    app,
    "login",
    access.login,
    """variantctl login --data-dir /var/lib/variantd
    variantctl login --profile prod --server ab.example.org:7401 --ca ca.pem --api-key-file - < key""",
)
add(
    app,
    "apply",
    apply.apply,
    """variantctl apply -f experiment.yaml --dry-run
    variantctl apply -f experiment.yaml && variantctl experiments start soul-tone""",
)
add(
    app,
    "diff",
    drift.diff,
    """variantctl diff -f experiment.yaml
    variantctl diff -f soul.yaml -f tone.yaml || test $? -eq 3 && echo drifted""",
)
add(app, "schema", schema.schema, "variantctl schema > experiment.schema.json")
add(
    app,
    "deploy",
    deploying.deploy,
    """variantctl deploy soul-tone --participant bot-7 --variant concise --wait --timeout 2m
    variantctl deploy soul-tone -p bot-7 -v concise --wait --overwrite-drift""",
)
add(app, "withdraw", deploying.withdraw, "variantctl withdraw soul-tone --participant bot-7")
add(
    app,
    "results",
    results.results,
    """variantctl results soul-tone
    variantctl results soul-tone --watch
    variantctl results soul-tone --by-day --from 2026-01-01 --to 2026-01-31
    variantctl results soul-tone --population delivered --event resolved --json""",
)
add(
    app,
    "recalculate",
    series.recalculate,
    """variantctl recalculate soul-tone --wait
    variantctl recalculate soul-tone --metric escalated --json""",
)
add(
    app,
    "analyze",
    offline.analyze,
    """variantctl analyze counts.json
    variantctl results soul-tone --inputs | variantctl analyze -""",
)
add(
    app,
    "sample-size",
    offline.sample_size,
    """variantctl sample-size --baseline 0.25 --effect 0.2
    variantctl sample-size --baseline 0.25 --impressions 150 --icc 0.15 --participants 30""",
)
add(app, "aa", offline.aa, "variantctl aa soul-tone --runs 1000")
add(
    app,
    "watch",
    watching.watch,
    """variantctl watch
    variantctl watch soul-tone --interval 500ms
    variantctl watch soul-tone --json""",
)
add(
    app,
    "export",
    export.export,
    """variantctl export soul-tone --what tallies > tallies.ndjson
    variantctl export soul-tone --what events --format parquet -o events.parquet""",
)
add(app, "freeze", fleet.freeze, "variantctl freeze")
add(app, "unfreeze", fleet.unfreeze, "variantctl unfreeze")
add(app, "release-withdrawals", fleet.release_withdrawals, "variantctl release-withdrawals")
add(
    app,
    "restore",
    experiments.restore_all,
    "variantctl restore --all --yes",
)
add(
    app,
    "audit",
    audit.audit,
    """variantctl audit --limit 20
    variantctl audit --resource soul-tone --from 2026-01-31T00:00:00Z --changes""",
)

_experiments = _group("experiments", "Experiments and the steps of their life.")
add(_experiments, "list", experiments.list_experiments, "variantctl experiments list --status running")
add(_experiments, "get", experiments.get, "variantctl experiments get soul-tone -o yaml")
add(
    _experiments,
    "create",
    create.create,
    """variantctl experiments create --from bot-7:SOUL.md --edit
    variantctl experiments create --target SOUL.md --control a.md --variant b.md -p ant,bee --metric resolved""",
)
add(_experiments, "preview", preview.preview, "variantctl experiments preview soul-tone")
add(_experiments, "start", experiments.start, "variantctl experiments start soul-tone")
add(
    _experiments,
    "pause",
    experiments.pause,
    "variantctl experiments pause soul-tone --on-pause revert",
)
add(_experiments, "resume", experiments.resume)
add(_experiments, "stop", experiments.stop)
add(
    _experiments,
    "complete",
    experiments.complete,
    """variantctl experiments complete soul-tone --then restore
    variantctl experiments complete soul-tone --winner concise --conclusion won --comment 'shipped'""",
)
add(_experiments, "ship", experiments.ship, "variantctl experiments ship soul-tone --variant concise")
add(_experiments, "reset", experiments.reset, "variantctl experiments reset soul-tone --then restore")
add(_experiments, "archive", experiments.archive)
add(_experiments, "unarchive", experiments.unarchive)
add(
    _experiments,
    "duplicate",
    experiments.duplicate,
    "variantctl experiments duplicate soul-tone --name 'Tone, second round'",
)
add(
    _experiments,
    "phase",
    phases.open_phase,
    """variantctl experiments phase soul-tone --weight friendly=20 --weight concise=80
    variantctl experiments phase soul-tone --allocation 100""",
)
add(_experiments, "phases", phases.list_phases)
add(
    _experiments,
    "force",
    phases.force,
    "variantctl experiments force soul-tone --participant bot-7 --variant concise",
)
add(
    _experiments,
    "unforce",
    phases.unforce,
    "variantctl experiments unforce soul-tone --participant bot-7",
)
add(_experiments, "wait", deploying.wait_for, "variantctl experiments wait soul-tone --timeout 2m")
add(_experiments, "findings", findings.findings, "variantctl experiments findings soul-tone")
add(_experiments, "targets", survey.targets, "variantctl experiments targets --search soul")
add(
    _experiments,
    "instrumentation",
    survey.instrumentation,
    "variantctl experiments instrumentation soul-tone",
)
add(_experiments, "stats", survey.stats, "variantctl experiments stats")
add(_experiments, "assignments", experiments.show_assignments)
add(_experiments, "deployments", deploying.show_deployments)
add(_experiments, "delete", experiments.delete)

_agents = _group("agents", "Agents: the daemons on hosts, and what lets one join.")
add(_agents, "list", fleet.list_agents)
add(_agents, "get", fleet.get_agent)
add(
    _agents,
    "token",
    fleet.token,
    """variantctl agents token --ttl 1h
    variantctl agents token --quiet --max-uses 20 --label role=support --name-pattern 'host-*' > token""",
)
add(_agents, "ban", fleet.ban_agent)
add(_agents, "retire", fleet.retire_agent, "variantctl agents retire host-1")
add(_agents, "release", fleet.release_agent, "variantctl agents release host-1")

_api_keys = _group("api-keys", "API keys: what operators and pipelines prove themselves with.")
add(_api_keys, "list", access.list_keys)
add(
    _api_keys,
    "create",
    access.create_key,
    "variantctl api-keys create --name pipeline --scope experiment:read --scope deployment:write --expires-in 90d",
)
add(_api_keys, "rename", access.rename_key)
add(_api_keys, "revoke", access.revoke_key)

_events = _group("events", "Events: what applications report, as it comes in.")
add(_events, "tail", tail.tail, "variantctl events tail --experiment soul-tone --kind conversion")

_holdouts = _group(
    "holdouts", "Holdouts: shares of participants that stay out of every experiment that names them."
)
add(_holdouts, "list", holdouts.list_holdouts)
add(_holdouts, "get", holdouts.get)
add(_holdouts, "create", holdouts.create, "variantctl holdouts create --name 'Left alone in 2027' --share 5")
add(_holdouts, "update", holdouts.update, "variantctl holdouts update left-alone-in-2027 --share 10")
add(_holdouts, "delete", holdouts.delete)

_metrics = _group("metrics", "Saved metrics: what several experiments measure, said once.")
add(_metrics, "list", metrics.list_metrics)
add(_metrics, "get", metrics.get)
add(
    _metrics,
    "create",
    metrics.create,
    "variantctl metrics create --name Resolved --key resolved-rate --event resolved --minimum-effect 0.1",
)
add(_metrics, "update", metrics.update, "variantctl metrics update resolved-rate --window P7D")
add(_metrics, "delete", metrics.delete)

_doctor = _group("doctor", "Looking for what should never be.")
add(
    _doctor,
    "tallies",
    doctor.tallies,
    """variantctl doctor tallies soul-tone
    variantctl doctor tallies --json""",
)

_settings = _group(
    "settings", "What experiments may touch, what contents must be, and what designs say by default."
)
add(_settings, "get", settings.get, "variantctl settings get -o yaml > settings.yaml")
add(
    _settings,
    "update",
    settings.update,
    """variantctl settings update --allow 'config/**' --allow SOUL.md
    variantctl settings update --file settings.yaml""",
)
add(_settings, "edit", settings.edit)

_participants = _group("participants", "Participants: the workspaces that take part.")
add(_participants, "list", fleet.list_participants)
add(_participants, "get", fleet.get_participant)
add(
    _participants,
    "read",
    fleet.read_file,
    "variantctl participants read bot-7 config/soul.md > soul.md",
)
add(
    _participants,
    "create",
    fleet.create_participant,
    "variantctl participants create bot-7 --label role=support",
)
add(
    _participants,
    "label",
    fleet.label_participant,
    "variantctl participants label bot-7 tier=gold trial-",
)
add(_participants, "delete", fleet.delete_participant)
add(
    _participants,
    "move",
    fleet.move_participant,
    "variantctl participants move bot-7 --to 01a1fc0c-7b81-75d9-9764-5f47a7d3a98d",
)


def _whole_streams() -> None:
    """A caller may have closed one (`>&-`): what is said there goes nowhere, and nothing is read."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  # for as long as the process is there


def main() -> None:
    """The console script; leaves with an exit code, never with a traceback."""
    _whole_streams()
    for stream in (sys.stdout, sys.stderr):
        # Names may hold what an old locale cannot show; a ? is better than no answer.
        show.degrade(stream)
    try:
        app()
    except Exception as error:
        # Files are named where they are opened: what else has no room is where the answer goes.
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            failure = Failure(f"cannot write standard output: {error.strerror}")
        else:
            failure = Failure(f"something is wrong with variantctl itself: {type(error).__name__}: {error}")
        tell(show.console(error=True), failure)
        sys.exit(Exit.ERROR)
