"""What this host says of itself at the beginning of every session."""

import platform
from pathlib import Path
from socket import gethostname

from agent.config import AgentConfig
from agent.policy import fingerprint
from shared import VERSION
from shared.model import (
    ACKS_RIDE,
    KEEP_OLD,
    PREFLIGHT,
    Hello,
    ParticipantState,
    Platform,
    SlotState,
    SpoolState,
)


def greeting(
    config: AgentConfig,
    *,
    session_epoch: int,
    incarnation: bytes,
    slots: tuple[SlotState, ...],
    spool: SpoolState,
    resumes: bool,
) -> Hello:
    """The whole truth about this host at this moment."""
    system = platform.uname()
    return Hello(
        agent_version=VERSION,
        capabilities=(PREFLIGHT, KEEP_OLD, *(() if config.transport == "poll" else (ACKS_RIDE,))),
        boot_id=_boot_id(),
        session_epoch=session_epoch,
        resumes=resumes,
        incarnation=incarnation,
        hostname=gethostname()[:253],
        platform=Platform(os=system.system.lower(), kernel=system.release, arch=system.machine),
        labels=config.labels,
        participants=tuple(
            ParticipantState(
                participant=participant.id,
                labels=participant.labels,
                targets=participant.targets,
                drift=participant.drift,
                exposure=participant.exposure,
                policy=fingerprint(participant),
            )
            for participant in config.participants
        ),
        slots=slots,
        spool=spool,
    )


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
