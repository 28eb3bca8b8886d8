"""What is served is what the page, the alerts and the dashboard name."""

import json
import re
from pathlib import Path

import yaml

from tests.support.fleet import running_fleet

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = re.compile(r"\bvariant(?:d|_agent)_[a-z_]+")
OPTIONAL = {
    # Where several servers share a database.
    "variantd_hints_total",
    "variantd_leads",
    "variantd_other_replicas",
    "variantd_fenced_writes",
}

FROM_0 = {
    "variant_agent_opens_unseen_total": ("overflow", "replaced", "unwatched", "too_many", "not_running"),
    "variant_agent_spool_lost_total": ("torn", "corrupt", "missing_segment", "unreadable", "spool_full"),
    "variantd_outcomes_total": ("refused", "rolled_back", "stuck"),
    "variantd_operations_total": ("internal",),
}
"""What an alert wants the increase of: to Prometheus, a counter that is there from its first event on has none then."""


def served(text: str) -> set[str]:
    """Names in Prometheus text, without the parts of a histogram."""
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    return {name for name in names if not name.endswith("_created")}


async def test_metrics_are_named_where_they_are_used(tmp_path: Path) -> None:
    """The reference page lists exactly what both processes serve; alerts and dashboard use nothing else."""
    async with running_fleet(tmp_path) as fleet:
        host = await fleet.add_host("one", "p")
        await fleet.plane.get("/v1/experiments")
        pages = []
        for file in (fleet.plane.data / "addresses.json", host.state / "addresses.json"):
            address = json.loads(file.read_text())["http"]
            async with fleet.plane.http.get(f"http://{address}/metrics") as answer:
                pages.append(await answer.text())
    names = served(pages[0]) | served(pages[1])
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    listed = set(re.findall(r"^\| `(variant\w+)", page, re.MULTILINE))
    assert listed - OPTIONAL <= names | OPTIONAL
    assert {name for name in names if name.startswith("variant")} <= listed
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
    expressions = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "variantd.json").read_text())
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for expression in expressions:
        for name in NAME.findall(expression):
            assert name.removesuffix("_bucket") in listed, expression
    for metric in set(re.findall(r"increase\((\w+)", " ".join(expressions))) - OPTIONAL:
        for value in FROM_0.get(metric, ("",)):
            sample = rf'^{metric}({{.*"{value}".*}})? \S+$'
            assert re.search(sample, "\n".join(pages), re.MULTILINE), (metric, value)
    for group in alerts["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["summary"], rule
            assert rule["annotations"]["description"], rule
