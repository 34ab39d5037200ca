"""Parses the declared pools of GPUs: `gpuPools`. Pure."""

from __future__ import annotations

from qwen_operator.api.fields import matches
from qwen_operator.api.sizing import RESOURCE_FORM
from qwen_operator.config.section import Section
from qwen_operator.hardware.boards import capability
from qwen_operator.hardware.pools import MOST_DOLLARS, GpuPool, thousandths


def gpu_pools(root: Section) -> tuple[GpuPool, ...]:
    """All pools. Raises ConfigError."""
    return tuple(gpu_pool(section) for section in root.sections("gpuPools"))


def gpu_pool(section: Section) -> GpuPool:
    """One entry of `gpuPools`. Raises ConfigError."""
    cost, compute = section.raw("costPerGpuHour"), section.raw("computeCapability")
    amount, compute_capability = thousandths(cost), capability(str(compute))
    if cost is not None and amount is None:
        raise section.wrong("costPerGpuHour", f'dollars per GPU and hour from 0 to {MOST_DOLLARS}, for example "2.90"')
    if compute is not None and compute_capability is None:
        raise section.wrong("computeCapability", 'MAJOR.MINOR, for example "9.0"')
    resource_name, pods = section.text("resourceName", "nvidia.com/gpu"), section.number("podsPerGpu", 1)
    if not matches(RESOURCE_FORM, resource_name):
        raise section.wrong("resourceName", "nvidia.com/gpu, a MIG profile such as nvidia.com/mig-3g.40gb, or a share")
    if resource_name.startswith("nvidia.com/gpu") and resource_name != "nvidia.com/gpu" and pods < 2:
        raise section.wrong("podsPerGpu", f"the number of pods that share one GPU as {resource_name}, for example 4")
    return GpuPool(
        resource_name=resource_name,
        pods_per_gpu=pods,
        name=section.text("name"),
        product=section.text("product"),
        memory_mib=section.number("memoryMiB"),
        gpus_per_node=section.number("gpusPerNode"),
        node_selector=section.texts("nodeSelector"),
        tolerations=tuple(one.content for one in section.sections("tolerations")),
        max_nodes=section.number("maxNodes") if section.has("maxNodes") else None,
        cost_per_gpu_hour=amount,
        compute_capability=compute_capability,
    )
