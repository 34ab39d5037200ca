"""The one parser of the operator's configuration: what the chart renders, and the environment.

It checks every setting once and freezes it, and does no I/O. A wrong setting raises ConfigError, which names the
setting, its value, and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qwen_operator.config.plans import hub_config, settings
from qwen_operator.config.section import ConfigError, Section
from qwen_operator.config.tenancy import name_rights
from qwen_operator.config.types import Config, GatewayConfig, NetworkPolicyConfig, RecordingConfig

_DEPLOYMENTS = re.compile(r"[-a-z0-9]+/[-.a-z0-9]+\*?|[-a-z0-9]+/?\*|\*", re.ASCII)


def load(environ: Mapping[str, str], text: str) -> Config:
    """The operator's configuration, from the environment and the text of the rendered YAML. Raises ConfigError."""
    content = _yaml(text)
    root, common = Section("", content), settings(content)
    namespace = environ.get("QWEN_OPERATOR_NAMESPACE") or root.section("gateway").text("namespace", "default")
    return Config(
        namespaces=_namespaces(environ),
        namespace=namespace,
        pod_name=environ.get("QWEN_POD_NAME", "qwen-operator"),
        image=common.image,
        engine=common.engine,
        pools=common.pools,
        gateway=_gateway(root, namespace),
        tenancy=common.tenancy,
        workers=root.number("workers", 8),
        resync_seconds=root.number("resyncSeconds", 300),
        http_port=_port(environ),
        read_nodes=environ.get("QWEN_READ_NODES", "true") != "false",
        lease_name=environ.get("QWEN_LEASE_NAME") or "qwen-operator",
        distinct_nodes=root.section("engine").flag("distinctNodes", default=True),
        arbiter=root.section("arbiter").flag("enabled", default=True),
        multi_nodes=common.multi_nodes,
        hub_lookup=hub_config(root).lookup,
        pod=common.pod,
        name_rights=name_rights(content),
        network_policy=_network_policy(root),
        recording=_recording(root.section("recording"), environ),
    )


def _yaml(text: str) -> Mapping[str, Any]:
    import yaml  # noqa: PLC0415 - half of the start-up time of `plan`, which reads no YAML

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"the configuration file is not YAML: {error}") from error


def _gateway(root: Section, namespace: str) -> GatewayConfig:
    gateway = root.section("gateway")
    return GatewayConfig(
        namespace=gateway.text("namespace", namespace),
        keys_secret=gateway.text("keysSecret", "qwen-gateway-keys"),
        auth=gateway.choice("auth", ("keys", "none"), "keys"),
        create_keys=gateway.flag("createKeys", default=True),
        pod_labels=",".join(f"{name}={value}" for name, value in gateway.texts("podLabels").items()),
        hold_seconds=gateway.number("holdSeconds", 0, least=0),
    )


def _network_policy(root: Section) -> NetworkPolicyConfig:
    if not root.has("networkPolicy"):
        return NetworkPolicyConfig()
    policy = root.section("networkPolicy")
    return NetworkPolicyConfig(
        enabled=policy.flag("enabled", default=False),
        name=policy.text("name"),
        ingress=tuple(rule.content for rule in policy.sections("ingress")),
    )


def _recording(section: Section, environ: Mapping[str, str]) -> RecordingConfig:
    patterns = section.words("deployments")
    for index, pattern in enumerate(patterns):
        if not _DEPLOYMENTS.fullmatch(pattern):
            raise section.wrong_entry("deployments", index, "NAMESPACE/NAME, or its beginning and *, or *")
    return RecordingConfig(
        deployments=patterns,
        mebibytes=section.number("mebibytes", 128),
        folder=environ.get("QWEN_RECORDING_FOLDER") or RecordingConfig().folder,
    )


def _port(environ: Mapping[str, str]) -> int:
    text = environ.get("QWEN_OPERATOR_PORT", "8080")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ConfigError(f"QWEN_OPERATOR_PORT is {text!r}: it must be a number from 1 to 65535")
    return int(text)


def _namespaces(environ: Mapping[str, str]) -> tuple[str, ...]:
    names = environ.get("QWEN_WATCH_NAMESPACES", "").split(",")
    return tuple(name.strip() for name in names if name.strip())
