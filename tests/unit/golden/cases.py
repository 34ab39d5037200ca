"""What `qwen-operator render` prints for every catalog row and for manifests that use many fields, as hashes.

`python -m tests.unit.golden.cases > tests/unit/golden/rendered.json` writes the hashes anew. Do that only for a change
that is meant to give every QwenDeployment new pods: equal output means equal revision hashes and equal pods.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from qwen_operator import cli
from qwen_operator.checkpoints import catalog

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "docs/examples"
HARDWARE = ("--gpu", "NVIDIA-H100-80GB-HBM3=8x4", "--gpu", "NVIDIA-L40S=8x2")
CHART = {
    "engine": {
        "image": "registry.example.com/sglang",
        "args": ["--log-level=info"],
        "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}],
    },
    "hub": {"default": "modelscope", "url": "https://mirror.example.com"},
    "image": {"repository": "registry.example.com/qwen-operator", "tag": "0.1.0"},
    "imagePullSecrets": ["pull"],
}
SPECS: dict[str, dict[str, Any]] = {
    "claim": {"model": "Qwen/Qwen1.5-7B-Chat", "source": {"uri": "pvc://models/qwen/7b-chat"}},
    "hub": {"model": "seven", "source": {"uri": "hf://Qwen/Qwen1.5-7B-Chat", "revision": "v1.0"}},
    "modelscope": {"model": "seven", "source": {"uri": "modelscope://Qwen/Qwen1.5-7B-Chat", "revision": "v1.0"}},
    "many fields": {
        "model": "Qwen/Qwen1.5-32B-Chat",
        "servedNames": ["b", "a"],
        "contextTokens": 65536,
        "workload": {"concurrency": 8, "inputTokens": 1000, "outputTokens": 500},
        "hardware": {"products": ["L40S", "H100-80GB"], "maxGpusPerReplica": 8},
        "parallelism": {"tensor": 4},
        "engine": {
            "version": "0.5.23",
            "args": ["--schedule-policy", "lpm", "--max-running-requests=64"],
            "env": [{"name": "A", "value": "1"}],
            "kvCacheType": "Fp8E4m3",
            "startupSeconds": 700,
        },
        "replicas": 3,
        "scaling": {"minReplicas": 2, "maxReplicas": 4},
        "rollout": {"drainSeconds": 30},
        "pod": {
            "labels": {"team": "a"},
            "annotations": {"note": "b"},
            "nodeSelector": {"zone": "c"},
            "tolerations": [{"key": "d", "operator": "Exists"}],
            "imagePullSecrets": [{"name": "own"}],
            "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "64Gi"}},
            "volumes": [{"name": "extra", "emptyDir": {}}],
            "volumeMounts": [{"name": "extra", "mountPath": "/extra"}],
        },
    },
}


def rendered() -> dict[str, str]:
    """The hash of what `render` prints (exit code, standard output, standard error), by case."""
    return {name: _hash(*words) for name, words in _cases()}


def _cases() -> Iterator[tuple[str, tuple[str, ...]]]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "values.json"
        config.write_text(json.dumps(CHART))
        manifest = Path(folder) / "manifest.json"
        for model in catalog.names():
            manifest.write_text(json.dumps(_manifest({"model": model})))
            yield model, ("-f", str(manifest))
        for name, spec in SPECS.items():
            manifest.write_text(json.dumps(_manifest(spec)))
            yield name, ("-f", str(manifest))
            yield f"{name}, chart", ("-f", str(manifest), "--config", str(config))
        for example in sorted(EXAMPLES.glob("*.yaml")):
            yield example.name, ("-f", str(example))


def _manifest(spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "golden", "namespace": "team", "annotations": {"qwen-operator.dev/replan": "1"}}
    return {"apiVersion": "qwen-operator.dev/v1alpha1", "kind": "QwenDeployment", "metadata": metadata, "spec": spec}


def _hash(*words: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["render", *words, *HARDWARE])
    # Sentences may improve; what is rendered may not.
    objects = json.dumps(list(yaml.load_all(out.getvalue(), Loader=yaml.CSafeLoader)))
    text = objects if code == 0 else err.getvalue().split(":", maxsplit=1)[0]
    return f"{code} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


if __name__ == "__main__":
    json.dump(rendered(), sys.stdout, indent=1)
    sys.stdout.write("\n")
