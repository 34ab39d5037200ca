"""What the status says about downloads before engine pods need the model. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_operator.api.conditions import Reason
from qwen_operator.replicas.prefetch import Prefetch, failing
from qwen_operator.status.progress import sentence


def held_back(prefetch: Prefetch, progress: Mapping[str, Any] | None) -> tuple[Reason, str]:
    """Why a new replica waits: the reason and message of the download that it waits for."""
    pod = prefetch.telling
    if pod is None:
        return Reason.STARTING, f"the operator creates a pod that downloads the model; {_NO_GPU}"
    if failing(pod):
        return pod.reason, f"{pod.message}; {_NO_GPU}"
    if pod.reason is not Reason.DOWNLOADING:
        return Reason.STARTING, f"a pod without GPUs will download the model: {pod.message}; {_NO_GPU}"
    numbers = f": {sentence(progress)}" if progress and progress.get("pod") == pod.name else ""
    return Reason.DOWNLOADING, f"{pod.message}{numbers}; {_NO_GPU}"


_NO_GPU = "no GPU is taken until it is there"


def prefetched(prefetch: Prefetch) -> str:
    """The part of the column CACHE, such as "1/3 nodes"; "" if no nodes are to have the model."""
    return f"{prefetch.filled}/{prefetch.wanted} nodes" if prefetch.wanted else ""


def broken(prefetch: Prefetch) -> str:
    """What the condition Planned says of a download that fails; "" if none does."""
    failed = [pod for pod in prefetch.pods if failing(pod)]
    return f"spec.prefetch: {failed[0].message}" if failed and not prefetch.useless else ""
