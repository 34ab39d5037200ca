"""Whether a node affinity takes a node, and what is kept of it."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_operator.manifests.kept import kept_pod
from qwen_operator.manifests.names import Manifest
from qwen_operator.replicas.node_affinity import required_terms, takes

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def with_terms(*terms: Any) -> Manifest:
    affinity = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [*terms]}}, "podAffinity": {"preferred": [{}]}}
    return {"metadata": {"name": "a"}, "spec": {"affinity": affinity}}


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        ({"key": "zone", "operator": "In", "values": ["a", "b"]}, True),
        ({"key": "zone", "operator": "NotIn", "values": ["a"]}, False),
        ({"key": "rack", "operator": "NotIn", "values": ["a"]}, True),
        ({"key": "zone", "operator": "Exists"}, True),
        ({"key": "zone", "operator": "DoesNotExist"}, False),
        ({"key": "gpus", "operator": "Gt", "values": ["4"]}, True),
        ({"key": "gpus", "operator": "Lt", "values": ["4"]}, False),
        ({"key": "zone", "operator": "Gt", "values": ["4"]}, False),
        ({"key": "gpus", "operator": "Gt"}, False),
        ({"key": "zone", "operator": "Unknown"}, False),
        ({"key": "zone"}, False),
    ],
)
def test_a_required_affinity(expression: Manifest, matches: bool) -> None:
    labels = {"zone": "a", "gpus": "8"}
    term = {"matchExpressions": [expression]}
    one = with_terms(term)
    assert takes(required_terms(one), "n1", labels) is matches
    other = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
    one = with_terms(term, other, {})
    assert takes(required_terms(one), "n1", labels)
    assert takes(required_terms(one), "n2", labels) is matches


def test_an_affinity_is_kept_as_a_whole_or_not_at_all() -> None:
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}
    fields = {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}
    assert required_terms(kept_pod(with_terms(term, fields))) == (term, fields)
    assert required_terms(kept_pod(with_terms(*[term] * 200))) == ()
    assert "affinity" not in kept_pod({"metadata": {"name": "a"}, "spec": {}})["spec"]
