"""A fine-tune under its own name gets the parsers of its chat template, and they work in the real SGLang."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.conftest import Gateway
from tests.qd import qd, wait_ready
from tests.testbed.kubectl import Kubectl, Manifest, wait_for

pytestmark = pytest.mark.e2e
MODEL = "support-bot"
TOOL = {
    "type": "function",
    "function": {
        "name": "order",
        "parameters": {
            "type": "object",
            "properties": {"size": {"enum": ["small", "large"]}, "count": {"enum": [1, 2, 3]}},
            "required": ["size", "count"],
            "additionalProperties": False,
        },
    },
}
QUIET = {"enable_thinking": False}


@pytest.fixture(scope="module")
def served(kubectl: Kubectl, claim_space: str, gateway: Gateway) -> Manifest:
    """A QwenDeployment whose checkpoint has the template of a hybrid model."""
    source = {"uri": "pvc://models/support-bot"}
    engine = {"args": ["--constrained-json-disable-any-whitespace"]}
    kubectl.apply(qd(claim_space, MODEL, model=MODEL, source=source, engine=engine))
    ready = wait_ready(kubectl, claim_space, MODEL, timeout=300)
    wait_for("the model is routed", lambda: gateway.chat(MODEL, max_tokens=1).status_code == 200, 20)
    return ready


def test_the_template_chose_the_parsers(served: Manifest) -> None:
    args = served["status"]["plan"]["args"]
    assert {"--tool-call-parser=qwen", "--reasoning-parser=qwen3"} <= set(args)
    assert any("<tool_call> with JSON" in step for step in served["status"]["plan"]["steps"])


# Slow: a model with random weights ends a call only by chance. The router takes temperatures up to 2.
@pytest.mark.slow
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "order"}}])
def test_arguments_follow_the_schema_although_the_tool_is_not_strict(
    gateway: Gateway, served: Manifest, choice: Any
) -> None:
    calls: list[Manifest] = []
    for seed in range(20):
        hot: dict[str, Any] = {"max_tokens": 300, "temperature": 2, "seed": seed, "parallel_tool_calls": False}
        answer = gateway.chat(MODEL, tools=[TOOL], tool_choice=choice, chat_template_kwargs=QUIET, **hot)
        assert answer.status_code == 200, answer.text
        calls += answer.json()["choices"][0]["message"].get("tool_calls") or []
        if calls:
            break
    call = calls[0]
    arguments = json.loads(call["function"]["arguments"])
    assert call["function"]["name"] == "order"
    assert arguments.keys() == {"size", "count"}
    assert arguments["size"] in ("small", "large")
    assert arguments["count"] in (1, 2, 3)


def test_reasoning_is_separate_and_can_be_switched_off(gateway: Gateway, served: Manifest) -> None:
    thinking = gateway.chat(MODEL, max_tokens=8, temperature=0).json()["choices"][0]["message"]
    assert thinking["reasoning_content"]
    assert not thinking["content"]
    quiet = gateway.chat(MODEL, max_tokens=8, temperature=0, chat_template_kwargs=QUIET).json()["choices"][0]["message"]
    assert quiet["content"]
    assert not quiet.get("reasoning_content")
