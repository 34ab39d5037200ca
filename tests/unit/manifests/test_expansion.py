"""Nothing that users write is expanded by the kubelet: every way from an object or the chart into a container."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.api.engine import EnvVar
from qwen_operator.api.spec import parse
from qwen_operator.checkpoints import records
from qwen_operator.hardware.inventory import inventory
from qwen_operator.manifests.engine_pods import engine_template
from qwen_operator.manifests.expansion import escaped, unescaped
from qwen_operator.manifests.inspection_pods import InspectionPlace, inspection_pod
from qwen_operator.manifests.names import Owner, PodIdentity
from qwen_operator.manifests.pod_parts import RuntimeImage
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import EngineDefaults, Plan
from qwen_operator.sources import registry
from tests.unit.world import REPORT, deployment, node

DEFAULTS = EngineDefaults(
    image="example/sglang",
    version="0.5.23",
    args=("--schedule-policy=$(CHART)",),
    env=(EnvVar("CHART", "$(CHART)"),),
)
SPECS: dict[str, dict[str, Any]] = {
    "option": {"engine": {"args": ["--log-level=$(A)"]}},
    "value of an option": {"engine": {"args": ["--log-level", "$(A)"]}},
    "variable": {"engine": {"env": [{"name": "B", "value": "$(A)"}]}},
    "model": {"model": "$(A)", "source": {"uri": "pvc://models"}},
    "folder of a claim": {"source": {"uri": "pvc://models/$(A)/x"}},
    "escaped by the user": {"engine": {"args": ["--log-level=$$(A)"]}},
}
IDENTITY = PodIdentity(Owner("chat", "team", "uid"), "01234567")


def kubelet(text: str, variables: dict[str, str]) -> str:
    """The kubelet's expansion (third_party/forked/golang/expansion/expand.go of Kubernetes)."""

    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)


@given(st.text(alphabet="$()aA=- "))
def test_the_kubelet_gives_back_what_was_written(text: str) -> None:
    assert kubelet(escaped(text), {"a": "wrong", "A": "wrong"}) == text
    assert "$(" in text or "$$" in text or escaped(text) == text


@given(st.text(alphabet="$()a"))
def test_what_was_escaped_can_be_read_back(text: str) -> None:
    if "$(" in text or "$$" in text:
        assert unescaped(escaped(text)) == text


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod of the engine, and that of the inspection if there is one."""
    parsed, facts = parse(deployment(**spec)), records.from_inspection(REPORT)
    source = registry.engine_source(parsed, facts, DEFAULTS)
    planned = plan(parsed, facts, inventory([node()], ()), DEFAULTS, source)
    assert isinstance(planned, Plan), planned
    template = engine_template(IDENTITY, parsed, planned, source, RuntimeImage("own:1"))
    return [template, inspection_pod(IDENTITY, parsed, source, RuntimeImage("own:1"), InspectionPlace())]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_every_way_into_a_container_is_literal(spec: dict[str, Any]) -> None:
    seen = []
    for pod in pods(spec):
        for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())):
            assert "args" not in container
            values = [variable.get("value", "") for variable in container.get("env", ())]
            for text in (*container["command"], *values):
                assert kubelet(text, {"A": "expanded", "CHART": "expanded"}) == unescaped(text)
                assert "expanded" not in kubelet(text, {"A": "expanded", "CHART": "expanded"})
                seen += [text] if "$" in text else []
    assert seen
