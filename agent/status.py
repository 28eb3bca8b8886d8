"""Everything an operator asks first about this agent, once as JSON and once as metrics.

Hides where each answer comes from. Both are made at the moment of asking, from the same parts.
"""

from collections.abc import Iterator
from socket import gethostname

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.config import AgentConfig
from agent.health import Health
from agent.link import Link
from agent.local_api import LocalApi
from agent.reconciler import Reconciler
from agent.spool import Spool
from agent.uplink import Uplink
from shared import VERSION
from shared.clock import Clock
from shared.ids import show_id
from shared.moment import SECOND, to_rfc3339


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
        clock: Clock,
    ) -> None:
        self._config, self._health, self._link = config, health, link
        self._reconciler, self._spool, self._uplink, self._clock = reconciler, spool, uplink, clock
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
            "conditions": [
                {
                    "code": condition.code,
                    "severity": condition.severity,
                    "sinceAt": to_rfc3339(condition.since_at),
                    "message": condition.message,
                }
                for condition in self._health.conditions()
            ],
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
        info = GaugeMetricFamily("variant_agent_info", "Always 1", labels=["version", "name"])
        info.add_metric([VERSION, self._config.name], 1)
        yield info
        yield _gauge("ready", "1 where the agent does its work", not self._health.unready())
        yield _gauge("connected", "1 while a session is open", self._link.connected)
        state = self._spool.state()
        yield _gauge("spool_records", "Records not acknowledged", state.depth)
        yield _gauge("spool_bytes", "Bytes of the spool on disk", state.size)
        age = (self._clock.now() - state.oldest_at) / SECOND if state.oldest_at else 0.0
        yield _gauge("spool_oldest_age_seconds", "Age of the oldest record not acknowledged", age)
        yield CounterMetricFamily(
            "variant_agent_spool_acknowledged", "Records acknowledged", value=self._uplink.acknowledged
        )
        lost = CounterMetricFamily("variant_agent_spool_lost", "Records declared lost", labels=["reason"])
        for reason, count in self._spool.lost().items():
            lost.add_metric([reason], count)
        yield lost
        yield from self._collect_reports()
        conditions = GaugeMetricFamily(
            "variant_agent_condition", "1 while it holds", labels=["code", "severity"]
        )
        for code, severity in sorted({(c.code, c.severity) for c in self._health.conditions()}):
            conditions.add_metric([code, severity], 1)
        yield conditions
        results: dict[str, int] = {}
        for slot in self._reconciler.status():
            results[str(slot["result"])] = results.get(str(slot["result"]), 0) + 1
        slots = GaugeMetricFamily("variant_agent_slots", "Slots by how they stand", labels=["result"])
        for result, count in results.items():
            slots.add_metric([result], count)
        yield slots

    def _collect_reports(self) -> Iterator[Metric]:
        if self.api is None:
            return
        accepted = CounterMetricFamily("variant_agent_reports", "Reports accepted, durably", labels=["kind"])
        for kind, count in self.api.accepted.items():
            accepted.add_metric([kind.value], count)
        yield accepted
        refused = CounterMetricFamily(
            "variant_agent_requests_refused", "Requests to the local API that failed", labels=["status"]
        )
        for status, count in self.api.refused.items():
            refused.add_metric([str(status)], count)
        yield refused


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"variant_agent_{name}", text, value=value)
