"""What to do about each cause of an engine's end: one sentence, shown in conditions behind what happened."""

from __future__ import annotations

from collections.abc import Mapping

from qwen_operator.api.conditions import Reason

ADVICE: Mapping[Reason, str] = {
    Reason.BAD_FLAG: "Correct or remove that item of spec.engine.args",
    Reason.CONFIG_MISMATCH: "Change the item of spec.engine.args, the quantization or the model that the line names",
    Reason.CONTEXT_TOO_LONG: (
        "Lower spec.contextTokens or --context-length to what the model's config.json allows, "
        "or extend it there with a rope_scaling"
    ),
    Reason.UNKNOWN_ARCHITECTURE: (
        "Correct architectures in config.json, or set a spec.engine.version of SGLang that has this model"
    ),
    Reason.INVALID_CONFIG: "Copy config.json again, or correct the field that the line names",
    Reason.MODEL_NOT_FOUND: "Check that spec.source.uri names a folder with config.json and all weight files",
    Reason.TRUNCATED_WEIGHTS: "Copy the weight files again: one is shorter than its own header says",
    Reason.UNREADABLE_WEIGHTS: "Let the engine's user read the files: chmod -R a+rX on the checkpoint's folder",
    Reason.TOKENIZER_MISSING: "Copy tokenizer.json and tokenizer_config.json beside the weights",
    Reason.CUDA_OUT_OF_MEMORY: (
        "Lower spec.contextTokens or --mem-fraction-static, or allow more GPUs by spec.hardware.maxGpusPerReplica"
    ),
    Reason.HOST_OUT_OF_MEMORY: (
        "Raise limits.memory in spec.pod.resources; if that is not set, the node itself has too little memory"
    ),
    Reason.NCCL_FAILURE: (
        "Check the GPUs and links of the node, and other ends of the same moment: a partner may have gone first"
    ),
    Reason.AUTH_REQUIRED: "Give the engine a token of the model hub: HF_TOKEN from a Secret, in spec.engine.env",
    Reason.DISK_FULL: (
        "Free room on the node or the claim, or mount a larger volume with spec.pod.volumes and spec.pod.volumeMounts"
    ),
    Reason.PORT_IN_USE: "Remove the container of the pod that listens on port 8000, or hostNetwork",
    Reason.HUNG: "Look for the cause above these lines in kubectl logs --previous; report it with them if it repeats",
    Reason.STARTUP_OVERDUE: (
        "Set spec.engine.startupSeconds to what a start takes here, or put the weights where they are read faster"
    ),
    Reason.ENGINE_KILLED: "Look on the node for who sent SIGKILL: the kernel did not for want of memory",
    Reason.EVICTED: (
        "It is replaced by itself; give the node room, or the pod higher requests or a spec.pod.priorityClassName"
    ),
    Reason.UNKNOWN: "See kubectl logs --previous of the pod",
}
"""Every reason that an engine's end can have; without a full stop."""
