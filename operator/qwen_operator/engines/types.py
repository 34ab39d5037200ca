"""The types of everything that depends on the version of SGLang. The folders of the versions have the values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.resources import files

Capability = tuple[int, int]
"""A compute capability, major and minor."""


class Role(StrEnum):
    """A setting of a plan, independent of its option's name in a version of SGLang."""

    TENSOR_PARALLEL = "tensorParallel"
    EXPERT_PARALLEL = "expertParallel"
    PIPELINE_PARALLEL = "pipelineParallel"
    NODES = "nodes"
    GROUP_TIMEOUT = "groupTimeout"
    MEMORY_FRACTION = "memoryFraction"
    MOST_TOKENS = "mostTokens"
    MOST_STATES = "mostStates"
    CONTEXT_LENGTH = "contextLength"
    CHUNKED_PREFILL = "chunkedPrefill"
    DECODE_GRAPH_BATCH = "decodeGraphBatch"
    NO_PREFILL_GRAPHS = "noPrefillGraphs"
    MAX_RUNNING_REQUESTS = "maxRunningRequests"
    KV_CACHE_TYPE = "kvCacheType"
    WEIGHT_TYPE = "weightType"
    STATE_RATIO = "stateRatio"
    MODEL_OVERRIDES = "modelOverrides"
    TOOL_CALL_PARSER = "toolCallParser"
    REASONING_PARSER = "reasoningParser"
    METRICS = "metrics"
    SLEEP_ON_IDLE = "sleepOnIdle"
    QUIET_PATHS = "quietPaths"
    REVISION = "revision"
    EMBEDDING = "embedding"
    MEDIA_DOMAINS = "mediaDomains"
    OVERLAP_WEIGHTS = "overlapWeights"
    PREFETCH_WEIGHTS = "prefetchWeights"
    ADAPTERS = "adapters"
    ADAPTER_PATHS = "adapterPaths"
    ADAPTER_RANK = "adapterRank"
    ADAPTER_SLOTS = "adapterSlots"
    ADAPTER_MODULES = "adapterModules"


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `name` is the canonical name, `spelling` is what the user wrote, and `values` may be empty."""

    name: str
    spelling: str
    values: tuple[str, ...]

    def render(self) -> tuple[str, ...]:
        """The argument list: `--name=value`, `--name`, or `--name` and its values."""
        if len(self.values) == 1:
            return (f"{self.spelling}={self.values[0]}",)
        return (self.spelling, *self.values)


@dataclass(frozen=True, slots=True)
class OptionTable:
    """The options of one version: `options` maps a spelling to its canonical name, `planned` a role to its option.

    An option in `planned` may have a fixed value, e.g. --graphs=off. If the version has no such option, `planned` lacks
    the role. `options` is empty for a version without a folder, and `nearest` has those of the nearest known version:
    an object may set these, and only the chart others.
    """

    version: str
    options: Mapping[str, str]
    planned: Mapping[Role, str]
    nearest: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, package: str, planned: Mapping[Role, str]) -> OptionTable:
        """The table of a version's folder, from its options.json: canonical name -> other spellings."""
        record = json.loads((files(package) / "options.json").read_text(encoding="utf-8"))
        options = {spelling: name for name, others in record["options"].items() for spelling in (name, *others)}
        return cls(record["sglang"], options, planned)

    def option(self, role: Role, *values: str) -> Option | None:
        """The option that sets `role` in this version, None if it has none."""
        name, _, fixed = self.planned.get(role, "").partition("=")
        return Option(name, name, (fixed,) if fixed else values) if name else None

    def name(self, role: Role) -> str:
        """The name of the option that sets `role`, "" if this version has none."""
        return self.planned.get(role, "").partition("=")[0]


@dataclass(frozen=True, slots=True)
class MetricNames:
    """Names on an engine's /metrics page.

    `ticks` are counters that grow about once a second while the scheduler's loop runs, with or without requests.
    `work` are counters that grow only with requests. `tokens` counts the processed tokens: its label `mode` is
    `prefill_mode` or `decode_mode`. `idle` counts the seconds without work. `decoding` counts the seconds between the
    tokens of each request, summed over all requests. All three are also in `ticks` or `work`.
    `first_token` and `output_token` are histograms with one entry for each request: the seconds until its first token,
    and its mean seconds per output token. `weights_gib` and `free_gib` are what the weights took of a GPU's memory, and
    what was free when the engine was ready. `startup` has the seconds that the start took, where its label `phase` is
    `startup_phase`. "" if the version does not report one of these.
    """

    running: str
    queued: str
    grammar_queue: str
    tokens_used: str
    tokens_capacity: str
    token_usage: str
    http_active: str
    ticks: tuple[str, ...]
    work: tuple[str, ...]
    tokens: str
    prefill_mode: str
    decode_mode: str
    idle: str
    decoding: str
    first_token: str
    output_token: str
    weights_gib: str = ""
    free_gib: str = ""
    startup: str = ""
    startup_phase: str = ""

    @property
    def scheduler(self) -> tuple[str, ...]:
        """The gauges of the scheduler, which carry the label model_name."""
        return (
            self.running,
            self.queued,
            self.grammar_queue,
            self.tokens_used,
            self.tokens_capacity,
            self.token_usage,
        )

    @property
    def all(self) -> tuple[str, ...]:
        """Every name."""
        histograms = (
            f"{name}_{part}" for name in (self.first_token, self.output_token) for part in ("bucket", "count")
        )
        start = tuple(name for name in (self.weights_gib, self.free_gib, self.startup) if name)
        return (*self.scheduler, self.http_active, *self.ticks, *self.work, *histograms, *start)


@dataclass(frozen=True, slots=True)
class Tuning:
    """SGLang's memory settings for one size of GPU.

    `fraction` is --mem-fraction-static in thousandths, `chunk` the tokens of a chunked prefill, `graph_batch` the
    largest decode batch with a CUDA graph.
    """

    fraction: int
    chunk: int
    graph_batch: int


@dataclass(frozen=True, slots=True)
class MemoryConstants:
    """The numbers of the memory formula (`planning/memory.py`). GiB are per GPU.

    `context_gib` is the least that the CUDA context, the driver and libraries take. `context_slopes` are (from GiB, to
    GiB, GiB per GiB of the GPU's memory). `pcie_gib`, `nvlink_gib` and `many_gib` are communication buffers. For 2 to
    `few_ranks` ranks, boards below `nvlink_mib` MiB take `pcie_gib`, and larger boards take `nvlink_gib`. More ranks
    take `many_gib`. `weights_alone_gib` (one rank) and `weights_split_gib` (several) are what the loader takes in
    addition to the tensors.

    `margin_gib` is subtracted from the prediction; plans promise the rest. The pool is rounded down to whole
    `page_tokens`. Multimodal models get `multimodal_percent` of the fraction. `state_ratios` are values of
    --mamba-full-memory-ratio in thousandths, SGLang's default first. A hybrid keeps `slots_per_request` state slots
    for each running request. `tunings` are (from MiB, settings), ascending.

    `whole_head_models` keep the output head on every pipeline stage.

    The engine's own default would reserve `reserve_mib`, plus `reserve_mib_per_token` for each token of a chunk (at
    least `reserve_least_tokens`), plus `reserve_mib_per_graph_request` for each request of the largest decode graph.
    """

    context_gib: float
    context_slopes: tuple[tuple[float, float, float], ...]
    pcie_gib: float
    nvlink_gib: float
    many_gib: float
    few_ranks: int
    nvlink_mib: int
    weights_alone_gib: float
    weights_split_gib: float
    margin_gib: float
    page_tokens: int
    multimodal_percent: int
    state_ratios: tuple[int, ...]
    slots_per_request: int
    tunings: tuple[tuple[int, Tuning], ...]
    reserve_mib: float
    reserve_mib_per_token: float
    reserve_least_tokens: int
    reserve_mib_per_graph_request: float
    whole_head_models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KvCacheType:
    """A type of the KV cache: SGLang's `name`, the bytes of one value, and the lowest compute capability."""

    name: str
    value_bytes: int
    capability: Capability


@dataclass(frozen=True, slots=True)
class Formats:
    """The lowest compute capabilities that the kernels of a version need.

    `engine` is for the engine itself, `bfloat16` and `fp8_native` for GPUs that compute in these types, and `weights`
    for each format of the weights. A format that is not in `weights` cannot be planned. `packed_bits` are the widths of
    GPTQ and of AWQ that run. The keys of `kv_cache_types` are the API's names.
    `overlap_models` are the architectures whose weights may load while CUDA graphs are captured. `pipeline_models` are
    those that run in pipeline stages, and whose memory per stage the operator can calculate.
    """

    engine: Capability
    bfloat16: Capability
    fp8_native: Capability
    weights: Mapping[str, Capability]
    packed_bits: Mapping[str, tuple[int, ...]]
    kv_cache_types: Mapping[str, KvCacheType]
    overlap_models: tuple[str, ...] = ()
    pipeline_models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parsers:
    """Names of parsers: `tools` and `coder_tools` for --tool-call-parser, the others for --reasoning-parser.

    `tools` reads calls that are JSON objects, and `coder_tools` reads XML. `thinking` is for models that always reason.
    `hybrid_thinking` is for models whose reasoning a request can switch off, and `requested_thinking` for models that
    reason only if a request switches it on.
    """

    tools: str
    coder_tools: str
    thinking: str
    hybrid_thinking: str
    requested_thinking: str


@dataclass(frozen=True, slots=True)
class Models:
    """What a version has, by its own names; everything is empty for a version without a folder.

    `architectures` are its model classes. `textless` of them never generate text, and `embeds` give a vector instead
    if an option says so. `formats` are the methods of quantization on NVIDIA GPUs.
    """

    architectures: frozenset[str] = frozenset()
    textless: frozenset[str] = frozenset()
    embeds: frozenset[str] = frozenset()
    formats: frozenset[str] = frozenset()
    tool_call_parsers: tuple[str, ...] = ()
    reasoning_parsers: tuple[str, ...] = ()

    @classmethod
    def load(cls, package: str) -> Models:
        """The table of a version's folder, from its models.json."""
        record = json.loads((files(package) / "models.json").read_text(encoding="utf-8"))
        return cls(
            architectures=frozenset(record["architectures"]),
            textless=frozenset(record["textless"]),
            embeds=frozenset(record["embeds"]),
            formats=frozenset(record["formats"]),
            tool_call_parsers=tuple(record["toolCallParsers"]),
            reasoning_parsers=tuple(record["reasoningParsers"]),
        )

    @property
    def known(self) -> bool:
        """Whether the operator has the table of this version."""
        return bool(self.architectures)

    def loads(self, method: str) -> bool:
        """Whether the version loads weights of this method. A checkpoint says gptq where SGLang has gptq_marlin."""
        return method in self.formats or f"{method}_marlin" in self.formats


@dataclass(frozen=True, slots=True)
class EngineVersion:
    """Everything that depends on the version of SGLang. `version` names the folder that it comes from."""

    version: str
    options: OptionTable
    metrics: MetricNames
    memory: MemoryConstants
    formats: Formats
    parsers: Parsers
    models: Models
