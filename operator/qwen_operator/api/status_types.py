"""The status of a QwenDeployment as typed Python. It only serves as the source of the schema and the manual.

`status.build` makes the dict. A test compares it with this schema.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen_operator.api.fields import described

_TEXT = 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    names: tuple[str, ...] = described(
        "Names that clients can use at the gateway.", default=(), max_items=4, list_type="atomic"
    )


@dataclass(frozen=True, slots=True)
class NameHeld:
    name: str = described("Served name.", max_length=96)
    since: str = described(
        "When the operator granted the name. If an earlier version granted it, the creation time of this object.",
        max_length=32,
    )


@dataclass(frozen=True, slots=True)
class NameAwaited:
    name: str = described("Served name.", max_length=96)
    namespace: str = described("Namespace of the QwenDeployment that holds the name, or held it last.", max_length=63)
    holder: str = described("Identifies that QwenDeployment. It is a hash of its uid.", max_length=16)
    since: str = described("When the holder got the name.", default="", max_length=32)
    until: str = described(
        "The holder was deleted. Until this time the name is reserved for its namespace.", default="", max_length=32
    )


@dataclass(frozen=True, slots=True)
class NamesStatus:
    uid: str = described(
        "The metadata.uid of the object that this part is about. For another object it is void.", max_length=64
    )
    held: tuple[NameHeld, ...] = described(
        "Names that this QwenDeployment holds. It keeps them until it no longer asks for them.",
        default=(),
        max_items=4,
        list_type="atomic",
    )
    waiting: tuple[NameAwaited, ...] = described(
        "Names that another QwenDeployment holds.", default=(), max_items=4, list_type="atomic"
    )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    architecture: str = described("Architecture in config.json, for example Qwen2ForCausalLM.", max_length=128)
    quantization: str = described("Format of the weights, for example bfloat16 or gptq 4 bit.", max_length=160)
    weight_bytes: int = described("Size of all weights in bytes.", minimum=0)
    facts_from: str = described(
        "Where these facts come from: Catalog (part of the operator), Hub (read from the repository) or Inspection "
        "(read from the files).",
        max_length=32,
    )
    commit: str = described(
        "Commit of the hub's repository from which the operator read the facts. For s3://, a digest of the names, "
        "sizes and ETags of the files. For oci://, the digest of the image, without sha256:. Not set for other "
        "sources.",
        default="",
        max_length=64,
    )


@dataclass(frozen=True, slots=True)
class PlannedParallelism:
    tensor: int = described("Number of GPUs over which the model is split.")
    expert: int = described("Number of groups over which the experts are divided. Default: 1.", default=1)
    pipeline: int = described("Number of stages into which the layers are divided. Default: 1.", default=1)


@dataclass(frozen=True, slots=True)
class PlanStatus:
    hash: str = described("Revision of the plan. It is part of the names of the pods.", max_length=16)
    gpu_product: str = described(
        "GPU product: the value of the node label nvidia.com/gpu.product. Of a MIG slice or a shared GPU, it ends with "
        "-MIG-3g.40gb or -SHARED.",
        max_length=128,
    )
    gpus_per_replica: int = described("Number of GPUs that each replica takes. 1 for a slice or a share of a GPU.")
    parallelism: PlannedParallelism = described("How the model is split over GPUs.")
    context_tokens: int = described("Longest request in tokens, input and output together.")
    kv_tokens: int = described(
        "Predicted number of tokens that the KV cache of one replica holds, for all running requests together."
    )
    startup_seconds: int = described("Predicted seconds from the start of the container until the engine answers.")
    engine_version: str = described("Version of SGLang.", max_length=64)
    args: tuple[str, ...] = described(
        "Options of SGLang in use, except model, name and address.", max_items=512, list_type="atomic"
    )
    steps: tuple[str, ...] = described(
        "The calculation behind the plan, line by line, and what is not known.", max_items=64, list_type="atomic"
    )
    nodes_per_replica: int = described("Number of nodes that each replica takes.", default=1)
    max_running_requests: int = described(
        "Number of requests that a replica runs at the same time. More requests wait.", default=0
    )
    typical_requests: int = described(
        "How many requests of spec.workload (default: 2048 + 512 tokens) fit into kvTokens.", default=0
    )
    kv_cache_type: str = described("Type of the values in the KV cache, with SGLang's name.", default="", max_length=32)
    resource_name: str = described(
        "Resource that the pods request. Not set for whole GPUs, which are nvidia.com/gpu.", default="", max_length=63
    )
    share: str = described(
        "How a replica gets a part of a GPU: MIG, TimeSlicing or MPS. Not set for whole GPUs.",
        default="",
        max_length=32,
    )


@dataclass(frozen=True, slots=True)
class ObservedStatus:
    hash: str = described("Revision of the replicas that this is about: status.plan.hash at that time.", max_length=16)
    kv_tokens: int | None = described(
        "Number of tokens for which the KV cache has room, as the engines report it. The smallest of all replicas.",
        default=None,
        minimum=0,
    )
    weight_bytes: int | None = described(
        "Memory that the weights took on a GPU, in bytes, as the engines report it. The largest of all GPUs.",
        default=None,
        minimum=0,
    )
    free_memory_bytes: int | None = described(
        "Memory that was free on a GPU when the engine was ready, in bytes. The smallest of all GPUs.",
        default=None,
        minimum=0,
    )
    startup_seconds: int | None = described(
        "Seconds that the start of the engine took. The largest of all replicas.", default=None, minimum=0
    )


@dataclass(frozen=True, slots=True)
class AlternativeStatus:
    context_tokens: int = described("Longest request in tokens.")
    gpu_product: str = described("GPU product of this alternative.", max_length=128)
    gpus_per_replica: int = described("Number of GPUs per replica.")
    kind: str = described(
        "What changes: Quantization, KvCache, Context, Workload, Limits, Pipeline, Product or Nodes.",
        default="",
        max_length=32,
    )
    patch: str = described(
        "The change of the spec as a JSON merge patch: kubectl patch qd NAME --type merge -p PATCH. {} means that "
        "only the hardware changes.",
        default="",
        max_length=_TEXT,
    )
    hardware: str = described(
        "Nodes of one product that the cluster must have in total: PRODUCT=GPUSxNODES. Empty: the present hardware is "
        "enough.",
        default="",
        max_length=128,
    )
    kv_tokens: int = described(
        "Predicted number of tokens that the KV cache holds, for all running requests together.", default=0
    )
    nodes_per_replica: int = described("Number of nodes per replica.", default=1)


@dataclass(frozen=True, slots=True)
class NoFitStatus:
    steps: tuple[str, ...] = described(
        "The calculation, line by line, down to what is missing.", default=(), max_items=64, list_type="atomic"
    )
    alternatives: tuple[AlternativeStatus, ...] = described(
        "Changes that would fit. Each was planned before it is shown.", default=(), max_items=16, list_type="atomic"
    )


@dataclass(frozen=True, slots=True)
class FailureStatus:
    reason: str = described("Why the engine ended, for example CudaOutOfMemory.", max_length=64)
    phase: str = described(
        "What the engine was doing: Starting, LoadWeights, CaptureGraphs, WarmUp or Serving.", max_length=64
    )
    pod: str = described("Name of the pod.", max_length=253)
    exit_code: int = described("Exit code of the container.")
    time: str = described("When the engine ended.", format="date-time")
    count: int = described(
        "How many times in a row an engine ended for this reason. The count starts again after an engine that served "
        "and ran for ten minutes.",
        minimum=1,
    )
    log: tuple[str, ...] = described(
        "Last lines of the engine's log.", default=(), max_items=10, list_type="atomic", items={"max_length": _TEXT}
    )


@dataclass(frozen=True, slots=True)
class AttainmentStatus:
    hour: int | None = described("Of the requests of the last hour.", default=None, minimum=0, maximum=100)
    day: int | None = described("Of the requests of the last day.", default=None, minimum=0, maximum=100)


@dataclass(frozen=True, slots=True)
class ScalingStatus:
    wanted: int = described(
        "Number of wanted replicas: by load, or from spec.replicas, or one if neither is set.", minimum=0
    )
    ready: int = described("Number of replicas that answer.", minimum=0)
    reason: str = described(
        "Why this many: the reason of the condition ScalingActive. While the load decides it is Steady, ScalingUp, "
        "ScalingDown or AtMaximum, or Asleep or Waking. Otherwise it is ReplicasSet, Advisory, Suspended, "
        "NotConfigured, NothingToMeasure, GatewaySilent or a reason that begins with Metrics.",
        max_length=64,
    )
    message: str = described(
        "The numbers behind the decision, as they were at that moment. They do not follow every request.",
        max_length=_TEXT,
    )
    since: str = described("When the wanted number or the reason changed last.", format="date-time")
    advised: int | None = described(
        "Number of replicas that spec.scaling would choose by load, while something else decides.",
        default=None,
        minimum=0,
    )
    attainment_percent: AttainmentStatus | None = described(
        "How many of 100 requests kept spec.scaling.objective (or its defaults), as the engines measured it, rounded "
        "down. At least so many: what the engines do not say counts as missed. Not set without requests, and if the "
        "engines do not report it. It changes every five minutes at most.",
        default=None,
    )
    granted: int | None = described(
        "For how many replicas the GPUs suffice, while other deployments use the rest.", default=None, minimum=0
    )
    schedules: tuple[str, ...] = described(
        "Names of the schedules in force. They set the limits in place of spec.scaling.",
        default=(),
        max_items=16,
        list_type="atomic",
        items={"max_length": 40},
    )


@dataclass(frozen=True, slots=True)
class ProgressStatus:
    phase: str = described("What is in progress: Download, LoadWeights, CaptureGraphs or WarmUp.", max_length=32)
    time: str = described("When these numbers were read.", format="date-time")
    percent: int | None = described(
        "Part of the phase that is done, in percent: of the bytes, of the files of weights, or of the CUDA graphs. Not "
        "set if the engine does not count.",
        default=None,
        minimum=0,
        maximum=100,
    )
    bytes_done: int | None = described(
        "Bytes that have arrived, or weights that are loaded. For the latter, all files of weights count as equally "
        "large.",
        default=None,
        minimum=0,
    )
    bytes_total: int | None = described("Bytes of the model, or of its weights.", default=None, minimum=0)
    pod: str = described("Name of the pod.", default="", max_length=253)
    bytes_per_second: int = described(
        "Mean rate of the last 15 seconds of a download, or of the phase so far.", default=0, minimum=0
    )
    finish_time: str = described("When the phase ends at this rate.", default="", max_length=32)


@dataclass(frozen=True, slots=True)
class WaitingAdapter:
    name: str = described("Name of the adapter.", max_length=40)
    reason: str = described(
        "Why clients cannot ask for it: the reason why the present spec does not run, or Starting, Replacing (a "
        "replica that answers does not have it), Downloading or the reason why that fails, Loading (engines load it "
        "while they serve), AdapterNotLoaded (an engine could not; Degraded says why), or why there is no replica.",
        max_length=64,
    )


@dataclass(frozen=True, slots=True)
class AdaptersStatus:
    ready: int = described("Number of adapters that every replica that answers has.", minimum=0)
    total: int = described("Number of adapters in the spec.", minimum=0)
    waiting: tuple[WaitingAdapter, ...] = described(
        "The adapters that are not ready. All others are.",
        default=(),
        max_items=16,
        list_type="map",
        list_map_keys=["name"],
    )


@dataclass(frozen=True, slots=True)
class Condition:
    type: str = described(
        "Always present: Ready (the model answers requests), Planned (GPUs and options are known), ModelLoaded (at "
        "least one engine has the model in memory), ScalingActive (the load decides the number of replicas). Present "
        "only while true: Reconciling, Stalled (a person must act), Degraded, ScalingLimited (the load needs more "
        "than spec.scaling.maxReplicas).",
        max_length=64,
    )
    status: str = described("True, False or Unknown.", enum=["True", "False", "Unknown"])
    observed_generation: int = described("The metadata.generation that this condition is about.", minimum=0)
    last_transition_time: str = described("When the status of the condition changed last.", format="date-time")
    reason: str = described("One word for programs.", max_length=64, pattern="^[A-Za-z]+$")
    message: str = described("One sentence for people: what happens, and what to do.", max_length=_TEXT)


@dataclass(frozen=True, slots=True)
class Summary:
    gpus: str = described('GPUs per replica, for example "4xH100-80GB". "-" without a plan.', max_length=96)
    ready: str = described('Replicas that answer / wanted replicas, for example "1/2".', max_length=16)
    status: str = described("Serving, or one word that says why not.", max_length=64)
    message: str = described("One sentence about the state.", max_length=_TEXT)
    load: str = described(
        "Class of the load: idle (no request), low, high (half or more of the requests that run at once, or of the KV "
        'tokens), over (requests wait). "?" if the metrics cannot be read, "-" if no replica answers.',
        default="-",
        max_length=16,
    )
    cache: str = described(
        "How the present pods got the model, if the chart has a cache: how many found it in the cache, and how many "
        'bytes the others got from the hub, for example "1 hit, 15.2 GB". With spec.prefetch and a cache of nodes also '
        'how many nodes have it: "1 hit, 2/3 nodes".',
        default="",
        max_length=48,
    )


@dataclass(frozen=True, slots=True)
class Status:
    """What is; written by the operator only."""

    observed_generation: int = described("The metadata.generation that this status is about.", minimum=0)
    replicas: int = described("Number of engine replicas that exist and are not draining.", default=0, minimum=0)
    ready_replicas: int = described("Number of replicas that answer.", default=0, minimum=0)
    selector: str = described(
        "Label selector of the replicas, for kubectl scale and autoscalers.", default="", max_length=512
    )
    endpoint: Endpoint = described("How clients reach the model.", default=Endpoint)
    names: NamesStatus | None = described("Which served names this object holds, and since when.", default=None)
    model: ModelFacts | None = described("Facts about the model.", default=None)
    plan: PlanStatus | None = described("How one replica runs.", default=None)
    observed: ObservedStatus | None = described(
        "What the engines report of their start, to compare with status.plan. It stays while no engine answers.",
        default=None,
    )
    no_fit: NoFitStatus | None = described("Why there is no plan, in numbers.", default=None)
    last_failure: FailureStatus | None = described("The last unexpected end of an engine.", default=None)
    scaling: ScalingStatus | None = described("How many replicas are wanted, and why.", default=None)
    progress: ProgressStatus | None = described(
        "How far the download of the model into the cache is, or the start of an engine. Only while a pod downloads or "
        "loads it. The operator writes steps of 5 percent of a download, 10 of the weights and 25 of the CUDA graphs, "
        "and within a phase not more than one in 10 seconds.",
        default=None,
    )
    adapters: AdaptersStatus | None = described("Which adapters clients can ask for.", default=None)
    conditions: tuple[Condition, ...] = described(
        "The state as conditions.", default=(), max_items=16, list_type="map", list_map_keys=["type"]
    )
    summary: Summary | None = described("The state in one line, as kubectl get shows it.", default=None)
