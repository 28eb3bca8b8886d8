"""Everything an operator asks first about this agent, once as JSON and once as metrics.

Hides where each answer comes from. Both are made at the moment of asking, from the same parts.
"""

from collections.abc import Iterable, Iterator, Mapping
from socket import gethostname

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.config import AgentConfig
from agent.epochs import CAUSES
from agent.health import Health
from agent.link import Link
from agent.local_api import LocalApi
from agent.opens import REASONS, Opens
from agent.reconciler import Reconciler
from agent.spool import Spool
from agent.uplink import Uplink
from shared import VERSION
from shared.clock import Clock
from shared.ids import show_id
from shared.model import Condition
from shared.moment import SECOND, to_rfc3339

Family = GaugeMetricFamily | CounterMetricFamily


class Status(Collector):
    """The agent as it is now; `api` is set once there is one."""

    def __init__(
        self,
        *,
        config: AgentConfig,
        health: Health,
        link: Link,
        reconciler: Reconciler,
        spool: Spool,
        uplink: Uplink,
        opens: Opens,
        clock: Clock,
    ) -> None:
        self._config, self._health, self._link = config, health, link
        self._reconciler, self._spool, self._uplink, self._clock = reconciler, spool, uplink, clock
        self._opens = opens
        self._started_at = clock.now()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.api: LocalApi | None = None

    def reconfigure(self, config: AgentConfig) -> None:
        """What is shown goes by `config`."""
        self._config = config

    def show(self) -> dict[str, object]:
        """The JSON of /status."""
        unready = self._health.unready()
        return {
            "name": self._config.name,
            "hostname": gethostname(),
            "version": VERSION,
            "startedAt": to_rfc3339(self._started_at),
            "now": to_rfc3339(self._clock.now()),
            "ready": not unready,
            "unready": list(unready),
            "identity": self._link.identity(),
            "session": self._link.status(),
            "participants": [
                {
                    "id": participant.id,
                    "root": str(participant.root),
                    "targets": list(participant.targets),
                    "labels": participant.labels,
                    "drift": participant.drift.value,
                    "exposure": participant.exposure.value,
                }
                for participant in self._config.participants
            ],
            "hold": self._show_hold(),
            "slots": self._reconciler.status(),
            "spool": self._show_spool(),
            "conditions": [_shown(condition) for condition in self._health.conditions()],
            "findings": [_shown(finding) for finding in self._link.findings],
        }

    def _show_hold(self) -> dict[str, object] | None:
        since = self._reconciler.held_since
        if since is None:
            return None
        return {"sinceAt": to_rfc3339(since), "waitingOffers": self._reconciler.waiting}

    def _show_spool(self) -> dict[str, object]:
        state = self._spool.state()
        return {
            "epoch": show_id(state.epoch),
            "depth": state.depth,
            "bytes": state.size,
            "oldestAt": to_rfc3339(state.oldest_at) if state.oldest_at else None,
            "lost": self._spool.lost(),
            "dropped": self._spool.dropped,
            "acknowledged": self._uplink.acknowledged,
        }

    def metrics(self) -> tuple[bytes, str]:
        """(text, content type) of /metrics."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def describe(self) -> Iterator[Metric]:
        """Nothing: what is collected depends on the moment."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        info = _family("info")
        info.add_metric([VERSION, self._config.name], 1)
        yield info
        yield _one("ready", not self._health.unready())
        yield _one("connected", self._link.connected)
        if self._link.enrolled is not None:
            left = self._link.enrolled.not_after - self._clock.now()
            yield _one("certificate_seconds_left", left / SECOND)
        state = self._spool.state()
        yield _one("spool_records", state.depth)
        yield _one("spool_bytes", state.size)
        age = (self._clock.now() - state.oldest_at) / SECOND if state.oldest_at else 0.0
        yield _one("spool_oldest_age_seconds", age)
        yield _one("spool_acknowledged", self._uplink.acknowledged)
        yield _one("spool_dropped", self._spool.dropped)
        lost = _family("spool_lost")
        for reason, count in _from_nothing(CAUSES, self._spool.lost()):
            lost.add_metric([reason], count)
        yield lost
        yield from self._collect_reports()
        conditions = _family("condition")
        for code, severity in sorted({(c.code, c.severity) for c in self._health.conditions()}):
            conditions.add_metric([code, severity], 1)
        yield conditions
        results: dict[str, int] = {}
        for slot in self._reconciler.status():
            results[str(slot["result"])] = results.get(str(slot["result"]), 0) + 1
        slots = _family("slots")
        for result, count in results.items():
            slots.add_metric([result], count)
        yield slots
        yield _one("quarantined", self._reconciler.quarantined)
        yield _one("opens", self._opens.counted.total())
        unseen = _family("opens_unseen")
        for reason, count in _from_nothing(REASONS, self._opens.declared):
            unseen.add_metric([reason], count)
        yield unseen

    def _collect_reports(self) -> Iterator[Metric]:
        if self.api is None:
            return
        accepted = _family("reports")
        for kind, count in self.api.accepted.items():
            accepted.add_metric([kind], count)
        yield accepted
        refused = _family("requests_refused")
        for status, count in self.api.refused.items():
            refused.add_metric([str(status)], count)
        yield refused


METRICS: Mapping[str, tuple[type[Family], str, tuple[str, ...]]] = {
    "info": (GaugeMetricFamily, "always 1", ("version", "name")),
    "ready": (GaugeMetricFamily, "1 where the agent does its work", ()),
    "connected": (GaugeMetricFamily, "1 while a session with the control plane is open", ()),
    "certificate_seconds_left": (
        GaugeMetricFamily,
        "until this host's certificate ends, where it has one",
        (),
    ),
    "slots": (GaugeMetricFamily, "slots by how their last attempt stands", ("result",)),
    "quarantined": (GaugeMetricFamily, "contents that this host found fault with and does not try again", ()),
    "condition": (GaugeMetricFamily, "1 while it holds", ("code", "severity")),
    "reports": (CounterMetricFamily, "reports accepted, durably", ("kind",)),
    "opens": (CounterMetricFamily, "openings of targets recorded as impressions, durably", ()),
    "opens_unseen": (
        CounterMetricFamily,
        "times that openings went unseen, and were declared so",
        ("reason",),
    ),
    "requests_refused": (CounterMetricFamily, "requests to the local API that failed", ("status",)),
    "spool_records": (GaugeMetricFamily, "records not acknowledged yet", ()),
    "spool_bytes": (GaugeMetricFamily, "bytes of the spool on disk", ()),
    "spool_oldest_age_seconds": (GaugeMetricFamily, "age of the oldest record not acknowledged", ()),
    "spool_acknowledged": (CounterMetricFamily, "records the control plane acknowledged", ()),
    "spool_lost": (CounterMetricFamily, "records declared lost, and acknowledged as such", ("reason",)),
    "spool_dropped": (CounterMetricFamily, "reports that a full spool took without keeping them", ()),
}
"""Every metric without its prefix: kind, what it says, labels."""


def _shown(condition: Condition) -> dict[str, object]:
    return {
        "code": condition.code,
        "severity": condition.severity,
        "sinceAt": to_rfc3339(condition.since_at),
        "message": condition.message,
    }


def described() -> list[Metric]:
    """Every metric there is, without samples."""
    return [_family(name) for name in METRICS]


def _from_nothing(known: Iterable[str], counts: Mapping[str, int]) -> Iterable[tuple[str, int]]:
    """The counts, with those that are 0: to Prometheus, what begins at 1 has not increased."""
    return {**dict.fromkeys(known, 0), **counts}.items()


def _family(name: str) -> Family:
    kind, text, labels = METRICS[name]
    return kind(f"variant_agent_{name}", text, labels=list(labels))


def _one(name: str, value: float) -> Family:
    family = _family(name)
    family.add_metric([], value)
    return family
