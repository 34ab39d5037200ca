"""Reads the release from its objects. Pure."""

from __future__ import annotations

from qwen_operator import objects
from qwen_operator.objects import mapping, members

CONTAINER, SETTINGS = "operator", "config.yaml"
_NAMESPACES = "QWEN_WATCH_NAMESPACES"


def base_name(release: str) -> str:
    """What the names of the release's objects start with, as the chart's template `qwen.base` makes it."""
    return release.removesuffix("-operator")[:40].removesuffix("-")


def environment(operator: objects.Object) -> dict[str, str]:
    """The variables with a plain value in the operator's container, from its Deployment."""
    containers = members(operator, "spec", "template", "spec", "containers")
    variables = members(objects.named(containers, CONTAINER), "env")
    return {str(one["name"]): str(one["value"]) for one in variables if "name" in one and "value" in one}


def watched(operator: objects.Object) -> tuple[str, ...]:
    """The namespaces that an operator serves, from its Deployment. () means all of them."""
    names = environment(operator).get(_NAMESPACES, "").split(",")
    return tuple(name.strip() for name in names if name.strip())


def service_account(operator: objects.Object) -> str:
    """The ServiceAccount of the operator's pods."""
    return objects.text(operator, "spec", "template", "spec", "serviceAccountName") or "default"


def config_map(operator: objects.Object) -> str:
    """The ConfigMap with the settings, "" if the Deployment mounts none."""
    for volume in members(operator, "spec", "template", "spec", "volumes"):
        if volume.get("name") == "config":
            return str(mapping(volume, "configMap").get("name", ""))
    return ""
