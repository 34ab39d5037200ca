"""The agent keeps what says whether, and when, a replica will answer."""

from typing import Any

from qwen_operator.gateway.kept import keep
from tests.unit.gateway.objects import deployment


def test_what_is_kept_of_a_deployment() -> None:
    made = deployment("d", replicas=0, scaling={"maxReplicas": 2}, contextTokens=4096)
    condition = {"type": "Stalled", "status": "True", "reason": "InvalidSpec", "message": "long", "extra": 1}
    plan = {"startupSeconds": 90, "args": ["--a"], "steps": ["b"]}
    seen = {"startupSeconds": 120, "kvTokens": 8192}
    parts: dict[str, Any] = {
        "conditions": [condition],
        "plan": plan,
        "observed": seen,
        "summary": {"ready": "0/1"},
        "noFit": {},
    }
    parts["progress"] = {"phase": "Download", "percent": 4, "finishTime": "2026-01-01T00:10:00Z"}
    status = {**made["status"], **parts}

    kept = keep("qwendeployments", {**made, "status": status})

    assert kept["spec"] == {"model": "m", "replicas": 0}
    assert kept["status"] == {
        **made["status"],
        "conditions": [{"type": "Stalled", "status": "True"}],
        "plan": {"startupSeconds": 90},
        "observed": {"startupSeconds": 120},
        "progress": {"phase": "Download", "finishTime": "2026-01-01T00:10:00Z"},
    }


def test_parts_of_another_type_are_left_out() -> None:
    made = deployment("d")
    kept = keep("qwendeployments", {**made, "status": {"conditions": {"a": 1}, "plan": ["x"]}})
    assert kept["status"] == {"conditions": None, "plan": None}
