"""The files of deploy/ fit the metrics page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from gateway.metrics.catalog import OWN

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"


def test_the_dashboard_asks_for_metrics_and_labels_that_exist() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    names: dict[str, set[str]] = {}
    for metric in OWN:
        shown = {
            "counter": [f"{metric.name}_total"],
            "gauge": [metric.name],
            "histogram": [f"{metric.name}_{part}" for part in ("bucket", "sum", "count")],
        }[metric.kind]
        names |= {name: {*metric.labels, "le", "instance"} for name in shown}
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(expressions) > 30
    for expression in expressions:
        used = re.findall(r"quintet_\w+", expression)
        assert used
        assert set(used) <= set(names), expression
        labels = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")}
        labels |= set(re.findall(r"[{,](\w+)[=!]", expression))
        assert all(labels <= names[name] for name in used), expression


def test_prometheus_is_told_where_the_page_is() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["127.0.0.1:8000"]
