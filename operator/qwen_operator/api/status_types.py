"""The status of a QwenDeployment as typed Python: only the source of its schema and its manual.

`status.build` makes the dict; a test holds it against this schema.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen_operator.api.fields import described

_TEXT = 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    names: tuple[str, ...] = described(
        "Names that clients may ask for at the gateway.", default=(), max_items=4, list_type="atomic"
    )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    architecture: str = described("Architecture in config.json, for example Qwen2ForCausalLM.", max_length=128)
    quantization: str = described("Format of the weights, for example bfloat16 or gptq 4 bit.", max_length=160)
    weight_bytes: int = described("Bytes of all weights.", minimum=0)
    facts_from: str = described(
        "Catalog (facts that ship with the operator), Hub (read from the repository) or Inspection (read from the "
        "files).",
        max_length=32,
    )
    commit: str = described(
        "Commit of the hub's repository in which they were read. Not set: other sources.", default="", max_length=64
    )


@dataclass(frozen=True, slots=True)
class PlannedParallelism:
    tensor: int = described("GPUs that the model is split over.")
    expert: int = described("Groups that the experts are divided among. Not set: 1.", default=1)


@dataclass(frozen=True, slots=True)
class PlanStatus:
    hash: str = described("Revision of the plan; it is part of the names of the pods.", max_length=16)
    gpu_product: str = described("Value of the node label nvidia.com/gpu.product.", max_length=128)
    gpus_per_replica: int = described("GPUs that each replica takes.")
    parallelism: PlannedParallelism = described("How the model is split.")
    context_tokens: int = described("Longest request in tokens, input and output together.")
    kv_tokens: int = described("Predicted room for tokens of all running requests together, per replica.")
    startup_seconds: int = described("Predicted seconds from the start of the container until it answers.")
    engine_version: str = described("Version of SGLang.", max_length=64)
    args: tuple[str, ...] = described(
        "Options of SGLang in force, but for model, name and address.", max_items=512, list_type="atomic"
    )
    steps: tuple[str, ...] = described(
        "The arithmetic behind the plan, line by line, and what is not known.", max_items=64, list_type="atomic"
    )
    nodes_per_replica: int = described("Nodes that each replica takes.", default=1)
    max_running_requests: int = described("Requests that a replica runs at the same time; more wait.", default=0)
    typical_requests: int = described(
        "How many requests of spec.workload (not set: 2048 + 512 tokens) fit into kvTokens.", default=0
    )
    kv_cache_type: str = described("Type of the values in the KV cache, as SGLang calls it.", default="", max_length=32)


@dataclass(frozen=True, slots=True)
class AlternativeStatus:
    context_tokens: int = described("Longest request in tokens.")
    gpu_product: str = described("On GPUs of this product.", max_length=128)
    gpus_per_replica: int = described("Number of GPUs per replica.")
    kind: str = described(
        "What is changed: Quantization, KvCache, Context, Workload, Limits, Product or Nodes.",
        default="",
        max_length=32,
    )
    patch: str = described(
        "What to set, as a JSON merge patch: kubectl patch qd NAME --type merge -p PATCH. {}: nothing but hardware.",
        default="",
        max_length=_TEXT,
    )
    hardware: str = described(
        "Nodes of a product that would have to be there in all: PRODUCT=GPUSxNODES. Empty: what is there suffices.",
        default="",
        max_length=128,
    )
    kv_tokens: int = described("Predicted room for tokens of all running requests together.", default=0)
    nodes_per_replica: int = described("Number of nodes per replica.", default=1)


@dataclass(frozen=True, slots=True)
class NoFitStatus:
    steps: tuple[str, ...] = described(
        "The arithmetic that ends in what is missing.", default=(), max_items=64, list_type="atomic"
    )
    alternatives: tuple[AlternativeStatus, ...] = described(
        "What would fit; each is a plan when done.", default=(), max_items=16, list_type="atomic"
    )


@dataclass(frozen=True, slots=True)
class FailureStatus:
    reason: str = described("Why the engine ended, for example CudaOutOfMemory.", max_length=64)
    phase: str = described("What it was doing: Starting, LoadWeights, CaptureGraphs, WarmUp or Serving.", max_length=64)
    pod: str = described("The pod.", max_length=253)
    exit_code: int = described("Exit code of the container.")
    time: str = described("When it ended.", format="date-time")
    count: int = described("How many ends of this reason there were.", minimum=1)
    log: tuple[str, ...] = described(
        "Last lines of the engine's log.", default=(), max_items=10, list_type="atomic", items={"max_length": _TEXT}
    )


@dataclass(frozen=True, slots=True)
class ScalingStatus:
    wanted: int = described(
        "Replicas that are wanted: by the load, or spec.replicas, or one where neither is set.", minimum=0
    )
    ready: int = described("Replicas that answer.", minimum=0)
    reason: str = described(
        "Why this many, the reason of the condition ScalingActive: Steady, ScalingUp, ScalingDown or AtMaximum while "
        "the load decides; ReplicasSet, NotConfigured, NothingToMeasure or a reason that begins with Metrics while it "
        "does not.",
        max_length=64,
    )
    message: str = described(
        "The numbers behind it, as they were when it was decided: they do not follow every request.", max_length=_TEXT
    )
    since: str = described("When the wanted number or the reason changed last.", format="date-time")


@dataclass(frozen=True, slots=True)
class Condition:
    type: str = described(
        "Always there: Ready (a request is answered), Planned (GPUs and options are known), ModelLoaded (at least one "
        "engine holds the model), ScalingActive (the load decides about the number of replicas). Only while true: "
        "Reconciling, Stalled (a person is needed), Degraded, ScalingLimited (the load needs more than "
        "spec.scaling.maxReplicas).",
        max_length=64,
    )
    status: str = described("True, False or Unknown.", enum=["True", "False", "Unknown"])
    observed_generation: int = described("metadata.generation that this speaks of.", minimum=0)
    last_transition_time: str = described("When the status changed last.", format="date-time")
    reason: str = described("One word for programs.", max_length=64, pattern="^[A-Za-z]+$")
    message: str = described("One sentence for people: what is, and what to do.", max_length=_TEXT)


@dataclass(frozen=True, slots=True)
class Summary:
    gpus: str = described('GPUs per replica, for example "4xH100-80GB"; "-" without a plan.', max_length=96)
    ready: str = described('Replicas that answer / wanted, for example "1/2".', max_length=16)
    status: str = described("Serving, or in one word why not.", max_length=64)
    message: str = described("One sentence.", max_length=_TEXT)
    load: str = described(
        "Class of the load: idle (no request), low, high (half of the requests that run at once, or of the KV tokens), "
        'over (requests wait); "?" when the metrics cannot be read, "-" without a replica that answers.',
        default="-",
        max_length=16,
    )


@dataclass(frozen=True, slots=True)
class Status:
    """What is; written by the operator only."""

    observed_generation: int = described("metadata.generation that this status speaks of.", minimum=0)
    replicas: int = described("Engine replicas that exist and are not draining.", default=0, minimum=0)
    ready_replicas: int = described("Replicas that answer.", default=0, minimum=0)
    selector: str = described(
        "Label selector of the replicas, for kubectl scale and autoscalers.", default="", max_length=512
    )
    endpoint: Endpoint = described("How clients reach it.", default=Endpoint)
    model: ModelFacts | None = described("What the model is.", default=None)
    plan: PlanStatus | None = described("How a replica runs.", default=None)
    no_fit: NoFitStatus | None = described("Why there is no plan, in numbers.", default=None)
    last_failure: FailureStatus | None = described("The last end of an engine that nobody asked for.", default=None)
    scaling: ScalingStatus | None = described("How many replicas are wanted, and why.", default=None)
    conditions: tuple[Condition, ...] = described(
        "The state as conditions.", default=(), max_items=16, list_type="map", list_map_keys=["type"]
    )
    summary: Summary | None = described("The state in a line, as kubectl get prints it.", default=None)
