"""`make dev`: where its settings come from."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from qwen_operator.config.load import load
from tests.unit.fakes import FakeKube
from tools.dev import CONFIG_MAPS, DEPLOYMENTS, PORT, NoReleaseError, environment, read_release

CONFIG = """\
image: {reference: "registry.example.com/qwen-operator:0.1.0"}
engine: {image: lmsysorg/sglang, version: 0.5.23}
"""


def _release(name: str = "qwen-operator") -> tuple[dict[str, Any], dict[str, Any]]:
    """The Deployment and the ConfigMap, with what matters here of the chart's."""
    env = [
        {"name": "QWEN_CONFIG", "value": "/etc/qwen-operator/config.yaml"},
        {"name": "QWEN_WATCH_NAMESPACES", "value": "team-a,team-b"},
        {"name": "QWEN_LEASE_NAME", "value": "qwen-operator"},
        {"name": "QWEN_LOG_LEVEL", "value": "info"},
        {"name": "QWEN_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]
    volumes = [{"name": "tmp", "emptyDir": {}}, {"name": "config", "configMap": {"name": f"{name}-settings"}}]
    pod = {"containers": [{"name": "sidecar"}, {"name": "operator", "env": env}], "volumes": volumes}
    deployment = {"metadata": {"name": name, "namespace": "here"}, "spec": {"template": {"spec": pod}}}
    return deployment, {
        "metadata": {"name": f"{name}-settings", "namespace": "here"},
        "data": {"config.yaml": CONFIG},
    }


@pytest.mark.parametrize("release", ["qwen", "qwen-operator"])
async def test_the_release_is_read_by_its_name(release: str) -> None:
    deployment, config_map = _release()
    api = FakeKube()
    api.put(DEPLOYMENTS, deployment)
    api.put(CONFIG_MAPS, config_map)

    got = await read_release(api, "here", release)

    assert [item["metadata"]["name"] for item in got] == ["qwen-operator", "qwen-operator-settings"]


async def test_a_missing_release_is_named() -> None:
    with pytest.raises(NoReleaseError, match=r"other-operator.*RELEASE="):
        await read_release(FakeKube(), "here", "other")


def test_the_operator_gets_the_settings_of_the_release(tmp_path: Path) -> None:
    deployment, _ = _release()

    env = environment(deployment, tmp_path / "config.yaml", {"HOME": "/root", "QWEN_LOG_LEVEL": "debug"})

    config = load(env, CONFIG)
    assert env["QWEN_CONFIG"] == str(tmp_path / "config.yaml")
    assert env["QWEN_LOG_LEVEL"] == "debug"
    assert "HOME" not in env
    assert callable(resolve_name(env["PYTHONBREAKPOINT"]))
    assert (config.namespace, config.namespaces) == ("here", ("team-a", "team-b"))
    assert (config.lease_name, config.http_port) == ("qwen-operator", int(PORT))
    assert config.pod_name.startswith("dev-")
