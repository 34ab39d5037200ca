"""What a plan on a MIG slice or on a shared GPU sets, and what it warns of."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_operator.engines.types import Role
from qwen_operator.hardware.inventory import GpuProduct
from qwen_operator.hardware.shares import ShareKind
from qwen_operator.planning.fits import Fit, Search


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """`fraction` is --mem-fraction-static in thousandths. `limits` are the largest numbers of tokens and states."""

    fraction: int
    limits: tuple[tuple[Role, str], ...] = ()


def settings(search: Search, fit: Fit) -> MemorySettings:
    """The memory settings for the chosen split. An engine that shares its GPU gets limits beside the fraction."""
    one = fit.best
    if one.split.shares == 1:
        return MemorySettings(one.tuning.fraction)
    limits = [(Role.MOST_TOKENS, str(one.kv_tokens))]
    if one.most_requests is not None:
        limits.append((Role.MOST_STATES, str(one.most_requests * search.engine.memory.slots_per_request)))
    return MemorySettings(one.shared_fraction, tuple(limits))


def brings_own_shm(product: GpuProduct) -> bool:
    """Whether the device plugin mounts a /dev/shm of its own into the pod, which a volume of ours would hide."""
    return product.share is not None and product.share.kind is ShareKind.MPS


def warnings(product: GpuProduct) -> tuple[str, ...]:
    """What a person must know who plans on this part of a GPU. Empty for whole GPUs."""
    share = product.share
    if share is None:
        return ()
    if share.kind is ShareKind.MIG:
        return (
            f"MIG slice: {product.product} has its {product.memory_mib} MiB for itself, but only a part of the GPU's "
            "compute; the engine uses one slice and cannot be split over several",
        )
    gpu = product.product.removesuffix("-SHARED")
    divided = (
        f"shared GPU: {share.pods} pods share one {gpu}, and the plan gives this engine "
        f"{product.memory_mib} MiB, an equal part of its memory"
    )
    if share.kind is ShareKind.MPS:
        return (
            f"{divided}; MPS limits each pod to that part of memory and compute, but a fatal GPU error in one pod ends "
            "all of them, all must run with the same user ID (engines: 65532), and /dev/shm is the device plugin's "
            "small one; this project never ran an engine under MPS",
        )
    return (
        f"{divided}; time slicing isolates no memory: a pod that takes more than its part makes the others fail with "
        "out of memory, and every pod slows the others down",
    )
