"""Every plan of the catalog through the real SGLang: its own argument parser in one process, and a start on the CPU."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import cases
from tests.qd import qd, wait_ready
from tests.testbed import images
from tests.testbed.kubectl import Kubectl, Manifest, wait_for

pytestmark = pytest.mark.e2e
SCRIPT = Path(__file__).with_name("parse_engine_args.py")
# Options whose value a machine without a GPU can show to be right; all others are about GPUs and their memory.
ON_CPU = ("--tool-call-parser", "--reasoning-parser", "--json-model-override-args", "--dtype")


def flag_sets(lists: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """The distinct sets of options that mean something on a CPU; those that differ in numbers only count as one."""
    forms: dict[str, tuple[str, ...]] = {}
    for args in lists:
        flags = tuple(arg for arg in args if arg.startswith(ON_CPU))
        forms.setdefault(re.sub(r"[0-9]{2,}", "", " ".join(flags)), flags)
    return sorted(forms.values())


def parser_pod(namespace: str) -> Manifest:
    """A pod under the restricted profile that parses the lists of the ConfigMap `engine-args` and ends."""
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    container = {
        "name": "parse",
        "image": images.ENGINE_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "/check/parse.py", "/check/lists.json"],
        # SGLang and torch look for a home and a cache when they are imported.
        "env": [{"name": "HOME", "value": "/tmp"}],
        "securityContext": security,
        "volumeMounts": [{"name": "check", "mountPath": "/check"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "engine-args", "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "check", "configMap": {"name": "engine-args"}}, {"name": "tmp", "emptyDir": {}}],
        },
    }


def parsed(kubectl: Kubectl, namespace: str, lists: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What the script in the engine image says about the lists."""
    data = {"parse.py": SCRIPT.read_text(), "lists.json": json.dumps(lists)}
    names = {"name": "engine-args", "namespace": namespace}
    # Not applied: an annotation with a copy of all of it would be too long.
    for manifest in ({"apiVersion": "v1", "kind": "ConfigMap", "metadata": names, "data": data}, parser_pod(namespace)):
        kubectl.run("create", "-f", "-", stdin=json.dumps(manifest))

    def ended() -> str | None:
        pod = kubectl.get("pod", "engine-args", namespace) or {}
        phase = str(pod.get("status", {}).get("phase"))
        return phase if phase in {"Succeeded", "Failed"} else None

    phase = wait_for("the parser pod ends", ended, 180)
    log = kubectl.run("logs", "engine-args", "-n", namespace)
    assert phase == "Succeeded", log
    kubectl.run("delete", "pod/engine-args", "configmap/engine-args", "-n", namespace, "--wait=true")
    result: dict[str, Any] = json.loads(log.strip().splitlines()[-1])
    return result


def test_every_catalog_plan_passes_the_real_parser(kubectl: Kubectl, claim_space: str) -> None:
    lists = cases.argument_lists()
    bad = ["--no-such-option=1", "--tool-call-parser=nonsense", "--tp-size=four"]

    result = parsed(kubectl, claim_space, [*lists, *((one,) for one in bad)])

    print(f"{len(lists)} distinct argument lists through the parser of SGLang {result['sglang']}")
    assert result["sglang"] == images.ENGINE_VERSION
    assert result["lists"] == len(lists) + len(bad)
    assert [one["args"] for one in result["refused"]] == [[one] for one in bad], result["refused"][:3]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_flag_set_that_means_something_on_a_cpu_starts(kubectl: Kubectl, claim_space: str) -> None:
    sets = flag_sets(cases.argument_lists())
    assert len(sets) > 1

    for number, flags in enumerate(sets):
        name = f"flags-{number}"
        source = {"uri": "pvc://models/tiny-qwen2"}
        kubectl.apply(qd(claim_space, name, model=name, source=source, engine={"args": list(flags)}))
        served = wait_ready(kubectl, claim_space, name, timeout=300)
        assert [flag for flag in flags if flag not in served["status"]["plan"]["args"]] == []
        print(f"started with {' '.join(flags) or 'none of them'}")
        kubectl.run("delete", "qd", name, "-n", claim_space, "--wait=true")
