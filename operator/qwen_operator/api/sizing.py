"""`spec.hardware`, `spec.workload` and `spec.parallelism`: what decides how many GPUs a replica takes."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_operator.api.fields import Rule, described, matches
from qwen_operator.api.pod import GPU_RESOURCE

RESOURCE_FORM = (
    r"^nvidia[.]com/(gpu([.-][a-z0-9]([-a-z0-9.]*[a-z0-9])?)?"
    r"|mig-([1-7]c[.])?[1-7]g[.][1-9][0-9]{0,2}gb([.-](me|gfx|all))*([.]shared)?)$"
)
"""Resources that a spec may name: whole GPUs, renamed shares of them, and MIG profiles."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Which GPUs may be used."""

    products: tuple[str, ...] = described(
        "GPU products that the model may use, in order of preference. Each is a value of the node label "
        "nvidia.com/gpu.product, or a short name. Default: any product; the operator takes the cheapest replica if "
        "all costs are known (gpuPools of the chart), else the one with the fewest GPUs. Example: [H100-80GB, "
        "NVIDIA-L40S].",
        default=(),
        max_items=16,
        list_type="atomic",
        items={"min_length": 1, "max_length": 63, "pattern": r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"},
    )
    max_gpus_per_replica: int | None = described(
        "The most GPUs that one replica may use. Default: as many as there are.", default=None, minimum=1, maximum=64
    )
    max_nodes_per_replica: int = described(
        "The most nodes that one replica may use. A replica uses several only if no product holds the model on one "
        "node. All of them have the same product and the same number of GPUs. Default: 1.",
        default=1,
        minimum=1,
        maximum=16,
    )
    resource_name: str = described(
        "Resource that the engine pods request. nvidia.com/gpu: whole GPUs. A MIG profile, for example "
        "nvidia.com/mig-3g.40gb: one slice for each replica. nvidia.com/gpu.shared or another name that the device "
        "plugin gives to shared GPUs: a share of one GPU for each replica, with the memory of the GPU divided by the "
        "number of pods that share it. Nodes may offer slices and shares as nvidia.com/gpu too: then set "
        "spec.hardware.products to their product, which ends with -MIG-3g.40gb or -SHARED. Default: nvidia.com/gpu.",
        default=GPU_RESOURCE,
        max_length=63,
        rules=(
            Rule(
                f"self.matches('{RESOURCE_FORM}')",
                "must be a resource of NVIDIA's device plugin that holds GPUs, slices or shares of them; right would "
                "be nvidia.com/gpu, nvidia.com/mig-3g.40gb or nvidia.com/gpu.shared",
                lambda name: matches(RESOURCE_FORM, name),
            ),
        ),
    )


@dataclass(frozen=True, slots=True)
class Workload:
    """What has to fit at the same time."""

    concurrency: int = described(
        "Number of requests that run at the same time on one replica. Example: 16.", minimum=1, maximum=4096
    )
    input_tokens: int = described(
        "Tokens in the prompt of a typical request. Default: 2048.", default=2048, minimum=1, maximum=16777216
    )
    output_tokens: int = described(
        "Tokens in the answer to a typical request. Default: 512.", default=512, minimum=1, maximum=16777216
    )

    @property
    def tokens(self) -> int:
        """Tokens of all running requests together."""
        return self.concurrency * (self.input_tokens + self.output_tokens)


@dataclass(frozen=True, slots=True)
class Parallelism:
    """Overrides of the planned split."""

    tensor: int | None = described(
        "Number of GPUs over which the model is split (tensor parallelism, SGLang's --tp-size). This is also the "
        "number of GPUs per replica, unless pipeline is set. Default: the smallest power of two that fits. The "
        "operator rejects a value that is not valid for the model or does not fit, and lists the valid values.",
        default=None,
        minimum=1,
        maximum=64,
    )
    pipeline: int | None = described(
        "Number of stages into which the layers of the model are divided (pipeline parallelism, SGLang's --pp-size). A "
        "replica then has so many times the GPUs of tensor. 1: never more than one. Default: 1; only if "
        "hardware.maxNodesPerReplica is more than 1 and no tensor parallelism over so many nodes fits, the smallest "
        "number of stages that does.",
        default=None,
        minimum=1,
        maximum=16,
    )
