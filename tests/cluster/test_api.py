"""The CRD on the real API server: what it refuses, in which words, and what it explains."""

from __future__ import annotations

from typing import Any

import pytest

from tests.testbed.bed import Release
from tests.testbed.kubectl import Kubectl
from tests.unit.api.bad_objects import BAD, Bad

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("bad", BAD, ids=[bad.id for bad in BAD])
def test_refuses_bad_input_by_field(kubectl: Kubectl, release: Release, bad: Bad) -> None:
    message = kubectl.refused(bad.manifest())

    assert [word for word in bad.says if word not in message] == [], message


def test_every_field_is_explained(kubectl: Kubectl, release: Release) -> None:
    crd = kubectl.json("get", "crd", "qwendeployments.qwen-operator.dev")
    root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]

    assert list(_undescribed("spec", root["spec"])) + list(_undescribed("status", root["status"])) == []
    assert "GPU" in kubectl.run("explain", "qd.spec.hardware")


def _undescribed(path: str, schema: dict[str, Any]) -> list[str]:
    missing = [] if schema.get("description") else [path]
    for name, child in (schema.get("properties") or {}).items():
        missing += _undescribed(f"{path}.{name}", child)
    items = schema.get("items") or {}
    for name, child in (items.get("properties") or {}).items():
        missing += _undescribed(f"{path}[].{name}", child)
    return missing
