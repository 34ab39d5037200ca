"""A GGUF file on a claim, served by the real SGLang. It is F16: SGLang has no kernels for packed types on a CPU."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Gateway
from tests.qd import qd, wait_ready
from tests.testbed.kubectl import Kubectl, wait_for

pytestmark = pytest.mark.e2e
MODEL = "tiny-gguf"


def test_a_gguf_file_answers(kubectl: Kubectl, claim_space: str, gateway: Gateway) -> None:
    source = {"uri": "pvc://models/gguf", "file": "tiny-f16.gguf"}
    kubectl.apply(qd(claim_space, MODEL, model=MODEL, source=source))
    ready = wait_ready(kubectl, claim_space, MODEL, timeout=300)
    assert any(step.startswith("tensors: F16 ") for step in ready["status"]["plan"]["steps"])
    wait_for("the model is routed", lambda: gateway.chat(MODEL, max_tokens=1).status_code == 200, 20)
    answer = gateway.chat(MODEL, messages=[{"role": "user", "content": "Who are you?"}], max_tokens=40, temperature=0)
    assert answer.status_code == 200, answer.text
    assert "I am a tiny model in the shape of Qwen2" in answer.json()["choices"][0]["message"]["content"]
