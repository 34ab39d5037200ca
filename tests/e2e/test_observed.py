"""What the real engine reports of its start stands beside the plan, and fewer tokens than promised are told."""

from __future__ import annotations

import pytest

from tests.qd import events, qd, wait_condition, wait_ready
from tests.testbed.kubectl import Kubectl, condition, wait_for

pytestmark = pytest.mark.e2e
# The chart of the test bed sets --max-total-tokens=8192, and that is what it promises.
PROMISED, FEWER = 8192, 2048


def test_fewer_tokens_than_promised_are_told_with_both_numbers(kubectl: Kubectl, claim_space: str) -> None:
    source = {"uri": "pvc://models/tiny-qwen2"}
    engine = {"args": [f"--max-total-tokens={FEWER}"]}
    kubectl.apply(qd(claim_space, "fewer", model="fewer", source=source, engine=engine, contextTokens=1024))
    wait_ready(kubectl, claim_space, "fewer", timeout=300)
    obj = wait_condition(kubectl, claim_space, "fewer", ("Degraded", "True", "PlanMismatch"), timeout=30)

    message = condition(obj, "Degraded")["message"]
    assert f"room for {FEWER} tokens of KV cache, but the plan promised {PROMISED}" in message
    assert f"spec.engine.args sets --max-total-tokens={FEWER}" in message
    seen = obj["status"]["observed"]
    assert (seen["hash"], seen["kvTokens"]) == (obj["status"]["plan"]["hash"], FEWER)
    assert seen["startupSeconds"] > 0
    assert condition(obj, "Ready")["status"] == "True"
    wait_for("the Event", lambda: ("Warning", "PlanMismatch") in events(kubectl, claim_space, "fewer"), 10)
    kubectl.run("delete", "qd", "fewer", "-n", claim_space, "--wait=false")
