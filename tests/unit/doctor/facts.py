"""Small cluster facts for the tests of the checks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qwen_operator.cli.settings import chart_settings
from qwen_operator.config.types import Config
from qwen_operator.doctor.samples import sample_pods
from qwen_operator.doctor.types import ClusterFacts, Installation, Listed, Served
from tests.unit.world import CONFIG

NOW = "2026-11-28T12:00:00+00:00"
SAMPLES = sample_pods(chart_settings(None))


def named(name: str, namespace: str = "", **members: Any) -> dict[str, Any]:
    """An object with this name; `labels` and `annotations` go into its metadata."""
    metadata: dict[str, Any] = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    for part in ("labels", "annotations"):
        if part in members:
            metadata[part] = members.pop(part)
    return {"metadata": metadata, **members}


def operator(namespace: str = "qwen-system", name: str = "qwen-operator", *, watched: str = "", ready: int = 2) -> Any:
    """The Deployment of an operator."""
    env = [{"name": "QWEN_WATCH_NAMESPACES", "value": watched}]
    pod = {"serviceAccountName": name, "containers": [{"name": "operator", "env": env}]}
    return named(
        name,
        namespace,
        labels={"app.kubernetes.io/version": "0.1.0"},
        spec={"replicas": 2, "template": {"spec": pod}},
        status={"readyReplicas": ready},
    )


def installed(config: Config | None = CONFIG, **changes: Any) -> Installation:
    release = Installation("qwen-system", "qwen", Listed([operator()]), config)
    return replace(release, **changes)


def served(**changes: Any) -> Served:
    """The namespace team-a, without rules."""
    return replace(Served("team-a", Listed([named("team-a")])), **changes)


def cluster(**changes: Any) -> ClusterFacts:
    """An installed release in a cluster about which nothing else is known."""
    return replace(ClusterFacts(NOW, installed(), SAMPLES, (served(),)), **changes)
