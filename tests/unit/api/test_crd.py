"""The CRD is what the types say, and small enough to live with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from qwen_operator.api import crd
from qwen_operator.api.pod import Resources
from qwen_operator.api.schema import object_schema
from qwen_operator.api.spec import Spec

FILE = Path(__file__).parents[3] / "crds" / crd.FILE_NAME


def test_the_file_is_the_generated_one() -> None:
    assert FILE.read_text(encoding="utf-8") == crd.render(), "run `make crds`"


def test_rendering_is_valid_yaml_of_the_definition_and_small() -> None:
    text = crd.render()
    assert yaml.safe_load(text) == crd.definition()
    assert len(text) < 200 * 1024


def _nodes(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, member in schema.get("properties", {}).items():
        yield from _nodes(member, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from _nodes(schema[key], f"{path}[]")


def test_every_field_is_described_and_every_size_is_bounded() -> None:
    """Unbounded text or lists would exceed the API server's cost budget for rules, and etcd's for objects."""
    root = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    faults = []
    for part in ("spec", "status"):
        for path, node in _nodes(root["properties"][part], part):
            if "[]" not in path.rsplit(".", 1)[-1] and len(node.get("description", "")) < 8:
                faults.append(f"{path}: no description")
            if node.get("type") == "array" and not {"maxItems", "x-kubernetes-list-type"} <= node.keys():
                faults.append(f"{path}: unbounded or untyped list")
            if "additionalProperties" in node and "maxProperties" not in node:
                faults.append(f"{path}: unbounded map")
            bounded = node.get("maxLength") or node.get("enum") or node.get("format")
            if part == "spec" and node.get("type") == "string" and not bounded:
                faults.append(f"{path}: unbounded text")
    assert not faults


def test_only_deliberate_parts_are_passed_through() -> None:
    root = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    through = {path for path, node in _nodes(root, "") if node.get("x-kubernetes-preserve-unknown-fields")}
    assert through == {
        ".spec.engine.env[].valueFrom",
        ".spec.pod.tolerations[]",
        ".spec.pod.affinity",
        ".spec.pod.topologySpreadConstraints[]",
        ".spec.pod.volumes[]",
        ".spec.pod.volumeMounts[]",
        ".spec.pod.securityContext",
    }


def test_required_fields_follow_from_missing_defaults() -> None:
    assert object_schema(Spec)["required"] == ["model"]
    assert "required" not in object_schema(Resources)


def test_scale_and_columns_point_into_the_schema() -> None:
    version = crd.definition()["spec"]["versions"][0]
    root = version["schema"]["openAPIV3Schema"]
    paths = [column["jsonPath"] for column in version["additionalPrinterColumns"]]
    paths += version["subresources"]["scale"].values()
    for path in paths:
        if path.startswith(".metadata"):
            continue
        node = root
        for name in path.strip(".").split("."):
            assert name in node["properties"], f"{path} points nowhere"
            node = node["properties"][name]
    assert [column["name"] for column in version["additionalPrinterColumns"] if column["priority"] == 0] == [
        "Model",
        "GPUs",
        "Ready",
        "Status",
        "Load",
        "Age",
    ]
