"""A short configuration file that is complete."""

from __future__ import annotations

GOOD = """
image: {reference: "example/qwen-operator:1"}
engine: {image: example/sglang, version: 0.5.23, args: [--device=cpu], env: [{name: A, value: "1"}]}
gpuPools: [{name: p, product: NVIDIA-L4, memoryMiB: 23034, gpusPerNode: 4, tolerations: [{operator: Exists}]}]
imagePullSecrets: [regcred]
gateway: {auth: none}
"""
