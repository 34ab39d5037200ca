"""The CustomResourceDefinition, generated from the API's types: `python -m qwen_operator.api.crd` prints it."""

from __future__ import annotations

import sys
from typing import Any

import yaml

from qwen_operator.api.fields import Rule
from qwen_operator.api.schema import RULES, object_schema
from qwen_operator.api.spec import NAME_RULES, Spec
from qwen_operator.api.status_types import Status

GROUP = "qwen-operator.dev"
VERSION = "v1alpha1"
KIND = "QwenDeployment"
PLURAL = "qwendeployments"
FILE_NAME = f"{PLURAL}.{GROUP}.yaml"

_COLUMNS = (
    ("Model", "string", ".spec.model", 0, "The model"),
    ("GPUs", "string", ".status.summary.gpus", 0, "GPUs of one replica"),
    ("Ready", "string", ".status.summary.ready", 0, "Replicas that answer / wanted"),
    ("Status", "string", ".status.summary.status", 0, "Serving, or in one word why not"),
    ("Load", "string", ".status.summary.load", 0, "idle, low, high or over; ? when the metrics cannot be read"),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Time since creation"),
    ("TP", "integer", ".status.plan.parallelism.tensor", 1, "GPUs that the model is split over"),
    ("Nodes", "integer", ".status.plan.nodesPerReplica", 1, "Nodes of one replica"),
    ("Context", "integer", ".status.plan.contextTokens", 1, "Longest request in tokens"),
    ("Cache", "string", ".status.summary.cache", 1, "Pods that found the model in the cache; bytes from the hub"),
    ("Message", "string", ".status.summary.message", 1, "One sentence"),
)


def definition() -> dict[str, Any]:
    """The CustomResourceDefinition as a plain dict."""
    names = {"plural": PLURAL, "singular": "qwendeployment", "kind": KIND, "listKind": f"{KIND}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {**names, "shortNames": ["qd"], "categories": ["ai"]},
            "scope": "Namespaced",
            "versions": [_version()],
        },
    }


def render() -> str:
    """The CRD as YAML. The same types always give the same bytes."""
    head = "# Generated from operator/qwen_operator/api by `make crds`. Do not edit.\n"
    return head + yaml.dump(definition(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def _version() -> dict[str, Any]:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "priority": priority, "description": description}
            for name, kind, path, priority, description in _COLUMNS
        ],
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "schema": {"openAPIV3Schema": _plain(_root_schema())},
    }


def _root_schema() -> dict[str, Any]:
    return {
        "description": "A Qwen model served by SGLang. Only spec.model is required: which GPUs, how many and which "
        "options is worked out and shown in status.plan with its arithmetic.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": {"description": str(Spec.__doc__), **object_schema(Spec)},
            "status": {"description": str(Status.__doc__), **object_schema(Status)},
        },
        RULES: list(NAME_RULES),
    }


def _plain(node: Any) -> Any:
    if isinstance(node, Rule):
        return {"rule": node.cel, "message": node.message}
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(item) for item in node] if isinstance(node, list) else node


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature is PyYAML's
        return True


if __name__ == "__main__":
    sys.stdout.write(render())
