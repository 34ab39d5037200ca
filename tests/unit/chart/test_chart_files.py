"""The chart's files without Helm: its copy of the CRD, its schema, and the words in values.yaml."""

from __future__ import annotations

import copy
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.chart import manual
from tests.unit.chart.manual import CHART, ROOT, VALUES

SCHEMA: dict[str, Any] = json.loads(manual.SCHEMA.read_text())


def test_the_chart_carries_the_generated_crds() -> None:
    """Helm reads no file outside the chart, so it carries a copy; `make crds` writes both."""
    source = {path.name: path.read_text() for path in (ROOT / "crds").glob("*.yaml")}
    copy = {path.name: path.read_text() for path in (CHART / "files/crds").glob("*.yaml")}
    assert source
    assert copy == source


def keys_without_comment(text: str) -> list[str]:
    """Keys of a YAML text whose line follows neither a comment nor the opening line of a commented mapping."""
    bare, before = [], ""
    for line in text.splitlines():
        key = re.match(r" *([A-Za-z]+):(.*)", line)
        if key and not before.lstrip().startswith("#"):
            bare.append(key[1])
        before = line
    return bare


def test_every_value_is_commented() -> None:
    # Sections whose name says all; the values in them are commented one by one. Resources are Kubernetes' own words.
    sections = {"operator", "gateway", "hub", "service", "crds", "rbac", "serviceAccount", "monitoring"}
    sections |= {"networkPolicy", "engines"}
    assert set(keys_without_comment(VALUES.read_text())) == sections | {"requests", "limits"}


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    (reference,) = schema.get("allOf", [schema])
    name = reference.get("$ref", "").removeprefix("#/definitions/")
    return SCHEMA["definitions"][name] if name else schema


def difference(values: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths that only one of values.yaml and the schema knows."""
    properties = resolve(schema).get("properties")
    if properties is None or not isinstance(values, dict):
        return
    yield from (f"{path}.{key}" for key in properties.keys() ^ values.keys())
    for key in properties.keys() & values.keys():
        yield from difference(values[key], properties[key], f"{path}.{key}")


def test_schema_and_values_know_the_same_names() -> None:
    optional = {".global"}  # Helm's own, given to subcharts
    # What a pod may ask for beyond the defaults is for the user to say.
    optional |= {f".gateway.affinity.{kind}" for kind in ("nodeAffinity", "podAffinity", "podAntiAffinity")}
    optional |= {f".operator.affinity.{kind}" for kind in ("nodeAffinity", "podAffinity", "podAntiAffinity")}
    optional |= {f".engine.pod.resources.{part}" for part in ("requests", "limits")}
    assert set(difference(yaml.safe_load(VALUES.read_text()), SCHEMA)) == optional


def test_table_and_schema_say_what_the_comments_say() -> None:
    """After a change: python -m tests.unit.chart.manual"""
    values, page = VALUES.read_text(), manual.PAGE.read_text()
    assert manual.page(page, values) == page
    assert manual.dump(manual.described(copy.deepcopy(SCHEMA), values)) == manual.SCHEMA.read_text()


def test_the_table_is_made_of_comments_and_defaults() -> None:
    comment = "  # One | two <name>.\n  # Each entry has these fields:\n  #   - a: 1\n"
    text = f"# A part.\nouter:\n{comment}  inner: [x]\n  bare: 1\n"
    assert manual.table(text).splitlines()[2:] == [
        "| `outer` |  | A part. |",
        "| `outer.inner` | `[x]` | One \\| two &lt;name>. |",
    ]


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object schema with named properties, at any depth."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for part in schema.values():
            yield from objects(part)
    if isinstance(schema, list):
        for part in schema:
            yield from objects(part)


def test_the_schema_lets_no_unknown_name_pass() -> None:
    schemas = list(objects(SCHEMA))
    assert len(schemas) > 10
    assert [schema for schema in schemas if schema.get("additionalProperties") is not False] == []


def test_the_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project
    assert chart["appVersion"] == project[1]
    assert yaml.safe_load((ROOT / "tests/testbed/values.yaml").read_text())["image"]["tag"] == project[1]


@pytest.mark.parametrize("path", sorted((ROOT / "docs/examples").glob("*.yaml")), ids=lambda path: path.name)
def test_an_example_is_one_short_deployment(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("qwen-operator.dev/v1alpha1", "QwenDeployment")
    assert len(manifest["metadata"]["name"]) <= 40
    assert len(path.read_text().splitlines()) <= 30


@pytest.mark.parametrize(
    ("status", "text", "right"),
    [
        (200, '{"object":"list","data":[]}', True),
        (401, '{"error":{"code":"invalid_api_key"}}', True),
        (502, '{"error":{"code":"router_unavailable"}}', False),
        (503, '{"error":{"code":"gateway_unavailable"}}', False),
        (404, "", False),
        (0, "Connection refused", False),
    ],
)
def test_what_helm_test_takes_for_a_working_gateway(status: int, text: str, right: bool) -> None:
    script = runpy.run_path(str(CHART / "files/helm-test.py"))
    assert script["is_model_list"]((status, text)) is right
