"""Inspection reports for the tests of facts: of a small dense model, and of a hybrid with every field."""

from __future__ import annotations

from typing import Any

V1: dict[str, Any] = {
    "version": 1,
    "architecture": "Qwen2ForCausalLM",
    "modelType": "qwen2",
    "dtype": "bfloat16",
    "layers": 24,
    "hidden": 1024,
    "heads": 16,
    "kvHeads": 16,
    "headDim": 64,
    "intermediate": 2816,
    "vocab": 151936,
    "maxPositions": 32768,
    "tieWordEmbeddings": True,
    "quantization": None,
    "experts": None,
    "weightBytes": 927975424,
    "tensors": 290,
    "files": 1,
    "tokenizer": True,
    "configSha256": "ab" * 32,
}
REPORT: dict[str, Any] = V1 | {
    "version": 2,
    "attentionLayers": 24,
    "denseLayers": 24,
    "expertIntermediate": None,
    "sharedIntermediate": None,
    "linear": None,
    "rope": None,
    "multimodal": False,
    "idleBytes": 0,
    "kvWeightBytes": 100663296,
    "replicatedBytes": 100352,
}
HYBRID: dict[str, Any] = REPORT | {
    "architecture": "Qwen3NextForCausalLM",
    "layers": 48,
    "attentionLayers": 12,
    "denseLayers": 1,
    "experts": 512,
    "expertIntermediate": 512,
    "sharedIntermediate": 256,
    "linear": {"layers": 36, "valueHeads": 32, "keyHeads": 16, "keyDim": 128, "valueDim": 128, "convKernel": 4,
               "stateValueBytes": 2},
    "rope": {"type": "yarn", "factor": 4.0, "originalMaxPositions": 32768},
    "multimodal": True,
    "idleBytes": 5000,
    "kvWeightBytes": 2000,
    "replicatedBytes": 1000,
}  # fmt: skip
GPTQ: dict[str, Any] = {"method": "GPTQ", "bits": 4, "groupSize": 128, "symmetric": True, "descAct": False}
