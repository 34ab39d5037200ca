"""What a person can do about each cause of an engine's end. Conditions show it after what happened."""

from __future__ import annotations

from collections.abc import Mapping

from qwen_operator.api.conditions import Reason

ADVICE: Mapping[Reason, str] = {
    Reason.BAD_FLAG: "Correct or remove that item of spec.engine.args",
    Reason.CONFIG_MISMATCH: "Change the item of spec.engine.args, the quantization or the model that the line names",
    Reason.CONTEXT_TOO_LONG: (
        "Lower spec.contextTokens or --context-length to the limit in the model's config.json, "
        "or raise that limit there with rope_scaling"
    ),
    Reason.UNKNOWN_ARCHITECTURE: (
        "Correct architectures in config.json, or set a spec.engine.version of SGLang that has this model"
    ),
    Reason.INVALID_CONFIG: "Copy config.json again, or correct the field that the line names",
    Reason.MODEL_NOT_FOUND: "Check that spec.source.uri names a folder with config.json and all weight files",
    Reason.ADAPTER_MISMATCH: "Correct the adapter's files or remove it from spec.adapters",
    Reason.TRUNCATED_WEIGHTS: "Copy the weight files again: one is shorter than its own header says",
    Reason.UNREADABLE_WEIGHTS: "Let the engine's user read the files: chmod -R a+rX on the checkpoint's folder",
    Reason.TOKENIZER_MISSING: "Copy tokenizer.json and tokenizer_config.json beside the weights",
    Reason.CUDA_OUT_OF_MEMORY: (
        "Lower spec.contextTokens or --mem-fraction-static, or allow more GPUs with spec.hardware.maxGpusPerReplica"
    ),
    Reason.HOST_OUT_OF_MEMORY: (
        "Raise limits.memory in spec.pod.resources; if that is not set, the node itself has too little memory"
    ),
    Reason.NCCL_FAILURE: (
        "Check the node's GPUs and the links between them; if other engines ended at the same time, look at the "
        "one that ended first"
    ),
    Reason.AUTH_REQUIRED: "Give the engine a token of the model hub: HF_TOKEN from a Secret, in spec.engine.env",
    Reason.DISK_FULL: (
        "Free space on the node or the claim, or mount a larger volume with spec.pod.volumes and spec.pod.volumeMounts"
    ),
    Reason.PORT_IN_USE: "Remove the pod's other container that listens on port 8000, or turn hostNetwork off",
    Reason.HUNG: (
        "Look for the cause above these lines in kubectl logs --previous; if it repeats, report it with these lines"
    ),
    Reason.STARTUP_OVERDUE: (
        "Raise spec.engine.startupSeconds to the time that a start takes here, or put the weights on faster storage"
    ),
    Reason.ENGINE_KILLED: "Find out on the node what sent SIGKILL; it was not the kernel's out-of-memory killer",
    Reason.EVICTED: (
        "The operator replaces the pod; to prevent more evictions, free resources on the node, raise the pod's "
        "requests, or set spec.pod.priorityClassName"
    ),
    Reason.GROUP_INCOMPLETE: (
        "See why that pod did not start with kubectl describe pod; if it runs, let the pods of a replica reach each "
        "other on all TCP ports"
    ),
    Reason.MEMBER_ENDED: "Look at the pod that ended first; the others of its replica end with it and start again",
    Reason.UNKNOWN: "See kubectl logs --previous of the pod",
}
"""One text for every reason that an engine's end can have, without a full stop at its end."""
