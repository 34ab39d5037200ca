"""The input and the results of planning: engine defaults, sources, plans, refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any

from qwen_operator.api.conditions import Reason
from qwen_operator.api.engine import EnvVar
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.hardware.inventory import GPU_RESOURCE, short_name

_GIB = 1 << 30
_OF_PARTS = ("resource_name", "share")


def _repository(image: str) -> str:
    """An image reference without its tag and digest."""
    path, _, last = image.partition("@")[0].rpartition("/")
    return f"{path}/{last.partition(':')[0]}"


class CacheType(StrEnum):
    """Where a cache is: a folder of each node, or a claim in the namespace of each QwenDeployment.

    POD is a folder of one pod, which ends with it. The chart cannot choose it: it is for sources that SGLang cannot
    download, or not at a commit, where the chart has no cache.
    """

    HOST_PATH = "HostPath"
    CLAIM = "PersistentVolumeClaim"
    POD = "EmptyDir"


@dataclass(frozen=True, slots=True)
class ModelCache:
    """The chart's `cache`: where models of hubs are kept. `place` is the path on the node, or the name of the claim.

    `size_gib` is the most that it may have: on each node and in each namespace, or in each claim. `compile`: it also
    keeps what engines compile.
    """

    type: CacheType
    place: str
    size_gib: int
    compile: bool = False


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """The chart's `objectStore`: where buckets are.

    `endpoint` is "" for AWS. A QwenDeployment may name another one of `endpoints`, or any if there are none.
    """

    endpoint: str = ""
    endpoints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outbound:
    """The chart's `outbound`: how pods reach hubs and stores.

    `proxy` is the address of an HTTP proxy, "" without one, and `no_proxy` the hosts that need none. `config_map` has
    the certificates of the authorities under `key`; "" for those of the image.
    """

    proxy: str = ""
    no_proxy: str = ".svc,.cluster.local"
    config_map: str = ""
    key: str = "ca.crt"


@dataclass(frozen=True, slots=True)
class ModelFetch:
    """A model that a container fetches into the cache before the engine starts.

    `hub` and `repository` name its folder there. `commit` has 40 hexadecimal digits. `hub_url` is the address of a
    mirror, or "". `token` is where the token of a private repository is: a variable with the value of a Secret. `file`:
    the only file to fetch, a GGUF file; "" for all that an engine needs.

    What is not on a hub has its place in `options`, options of `qwen-operator fetch`, and its credentials in `env`.
    `mounts` are further mounts of the container.
    """

    cache: ModelCache
    hub: str
    repository: str
    commit: str
    hub_url: str = ""
    token: EnvVar | None = None
    file: str = ""
    options: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    mounts: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class ImageVolume:
    """An image that a pod mounts as a volume. `reference` is what the node pulls.

    `pull_secrets` are names of Secrets with credentials for its registry. `digest_wanted`: the reference is a tag, and
    the status of the pod must show the digest behind it.
    """

    reference: str
    pull_secrets: tuple[str, ...] = ()
    digest_wanted: bool = False


@dataclass(frozen=True, slots=True)
class EngineDefaults:
    """The chart's engine settings. The settings of an object win over them. An `image` without a tag gets :v`version`.

    Engines download a model without a source from `hub`. `hub_url` is the address of its mirror, or "". With a `cache`,
    a container downloads it before the engine starts.
    """

    image: str
    version: str
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    hub: Hub = Hub.HUGGING_FACE
    hub_url: str = ""
    cache: ModelCache | None = None
    store: ObjectStore = ObjectStore()
    outbound: Outbound = Outbound()

    def at_version_of(self, plan: Plan) -> EngineDefaults:
        """These settings with the image and version of a plan, if its image is of the same repository."""
        repository, running = (_repository(image) for image in (self.image, plan.engine_image))
        if repository != running:
            return self
        return replace(self, image=plan.engine_image, version=plan.engine_version)

    def mirror(self, hub: Hub) -> str:
        """The address of the mirror of a hub, "" for the hub itself."""
        return self.hub_url if hub is self.hub else ""


@dataclass(frozen=True, slots=True)
class EngineSource:
    """Where SGLang finds the model: what the scheme of the source adds to the command, the environment and the pod.

    `model_path` is for --model-path: a folder in the container, or a repository. `revision` is for --revision; None
    means no such option. If `downloads` is true, every start loads the weights from a hub. Variables of chart and
    object win over `env`. `volumes` and `mounts` have the form that they have in a pod.

    `fetch` is what a container must fetch before the engine starts; its volumes are not in `volumes`. `inspection` is
    the command of the inspection pod, () if it reads the folder `model_path`. `adapters` are the names of LoRA adapters
    and their folders in the container. `image` is the image among `volumes`, if the model is in one. `adapter_fetches`
    are those adapters that a container must fetch, with their folders; `fetch_env` and `fetch_mounts` are what this
    container has besides, if it fetches no model.
    """

    model_path: str
    revision: str | None = None
    downloads: bool = False
    env: tuple[EnvVar, ...] = ()
    volumes: tuple[Mapping[str, Any], ...] = ()
    mounts: tuple[Mapping[str, Any], ...] = ()
    fetch: ModelFetch | None = None
    inspection: tuple[str, ...] = ()
    adapters: tuple[tuple[str, str], ...] = ()
    image: ImageVolume | None = None
    adapter_fetches: tuple[tuple[str, ModelFetch], ...] = ()
    fetch_env: tuple[EnvVar, ...] = ()
    fetch_mounts: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """How one replica runs. Tokens are of the KV cache of the whole replica. `shm_bytes` is the size of /dev/shm.

    `engine_image` is the complete reference. `args` are all engine options, except those for the model and the
    listening address. `selector` and `tolerations` place the pod. `steps` is the arithmetic as readable lines.
    `warnings` say which settings make the prediction wrong or could not be checked. `message` is one sentence.

    `kv_tokens` is a promise, with a margin. `max_running_requests` is the number of requests that the engine runs at
    once. `typical_requests` is how many requests of the workload's size the tokens hold. `cpu_millis` and
    `host_memory_bytes` are requests of one pod. Some stored records are older than the fields with a default.

    `weight_bytes_per_rank` and `kv_bytes_per_token_per_rank` are the most that any rank has.

    `promised_tokens`: how many tokens an engine has at least, with the chart's options; 0 if these make that unknown.
    None: `kv_tokens`, or unknown if a warning says that options make the prediction wrong.

    `adapter_host_bytes`: the part of `host_memory_bytes` for adapters. A stored record without adapters lacks it.

    Pods request `resource_name`. `share` is a `ShareKind` if that is a part of a GPU, "" for whole GPUs. A stored
    record has these two members only for parts.
    """

    gpu_product: str
    gpus_per_replica: int
    tensor_parallel: int
    context_tokens: int
    kv_tokens: int
    startup_seconds: int
    engine_image: str
    engine_version: str
    args: tuple[str, ...]
    env: tuple[EnvVar, ...]
    shm_bytes: int
    steps: tuple[str, ...]
    selector: Mapping[str, str]
    tolerations: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    message: str = ""
    nodes_per_replica: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    kv_cache_dtype: str = "auto"
    max_running_requests: int = 0
    typical_requests: int = 0
    weight_bytes_per_rank: int = 0
    kv_bytes_per_token_per_rank: int = 0
    cpu_millis: int = 500
    host_memory_bytes: int = 2 * _GIB
    promised_tokens: int | None = None
    adapter_host_bytes: int = 0
    resource_name: str = GPU_RESOURCE
    share: str = ""

    @property
    def gpus(self) -> str:
        """The short form of the GPUs per replica, e.g. 4xH100-80GB."""
        return f"{self.gpus_per_replica}x{short_name(self.gpu_product)}"

    @property
    def gpus_per_node(self) -> int:
        """GPUs that one pod of the replica takes."""
        return self.gpus_per_replica // self.nodes_per_replica

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns back into an equal value."""
        members = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        left_out = {
            *(() if self.share else _OF_PARTS),
            *(("promised_tokens",) if self.promised_tokens is None else ()),
            *(() if self.adapter_host_bytes else ("adapter_host_bytes",)),
        }
        return {key: value for key, value in members.items() if key not in left_out}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Plan:
        """The inverse of `to_json`. It also reads records of earlier versions, which lack the later fields.

        Raises TypeError or KeyError for a record of another shape.
        """
        present = [field for field in fields(cls) if field.name in record or _required(field)]
        members = {field.name: record[field.name] for field in present}
        lists = {key: tuple(value) for key, value in members.items() if isinstance(value, list)}
        return cls(**{**members, **lists, "env": tuple(EnvVar(**item) for item in members["env"])})

    def status(self, revision: str) -> dict[str, Any]:
        """The plan in the form of `status.plan`."""
        sizes = {"expert": self.expert_parallel, "pipeline": self.pipeline_parallel}
        more = {name: size for name, size in sizes.items() if size > 1}
        return {
            "hash": revision,
            "gpuProduct": self.gpu_product,
            **({"resourceName": self.resource_name, "share": self.share} if self.share else {}),
            "gpusPerReplica": self.gpus_per_replica,
            "nodesPerReplica": self.nodes_per_replica,
            "parallelism": {"tensor": self.tensor_parallel, **more},
            "contextTokens": self.context_tokens,
            "kvTokens": self.kv_tokens,
            "maxRunningRequests": self.max_running_requests,
            "typicalRequests": self.typical_requests,
            "kvCacheType": self.kv_cache_dtype,
            "startupSeconds": self.startup_seconds,
            "engineVersion": self.engine_version,
            "args": list(self.args),
            "steps": [*self.steps, *(f"warning: {warning}" for warning in self.warnings)],
        }


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


class AlternativeKind(StrEnum):
    """What an alternative changes."""

    QUANTIZATION = "Quantization"
    KV_CACHE = "KvCache"
    CONTEXT = "Context"
    WORKLOAD = "Workload"
    LIMITS = "Limits"
    PIPELINE = "Pipeline"
    PRODUCT = "Product"
    NODES = "Nodes"


@dataclass(frozen=True, slots=True)
class NodesNeeded:
    """All nodes of a product that the cluster would need. `str` gives PRODUCT=GPUSxNODES, the form of --gpu."""

    product: str
    gpus_per_node: int
    nodes: int

    def __str__(self) -> str:
        return f"{self.product}={self.gpus_per_node}x{self.nodes}"


@dataclass(frozen=True, slots=True)
class Alternative:
    """A change that would fit. With `changes` in the spec and `hardware` in the cluster, this would be the plan.

    `changes` are pairs of a field's path below spec, for example engine.kvCacheType, and its value. None removes the
    field.
    """

    kind: AlternativeKind
    context_tokens: int
    gpu_product: str
    gpus_per_replica: int
    nodes_per_replica: int = 1
    kv_tokens: int = 0
    changes: tuple[tuple[str, Any], ...] = ()
    hardware: NodesNeeded | None = None

    def patch(self) -> dict[str, Any]:
        """The changes as a JSON merge patch of a whole object, {} if only hardware changes."""
        spec: dict[str, Any] = {}
        for path, value in self.changes:
            *parents, last = path.split(".")
            holder = spec
            for name in parents:
                holder = holder.setdefault(name, {})
            holder[last] = list(value) if isinstance(value, tuple) else value
        return {"spec": spec} if spec else {}

    def describe(self) -> str:
        """What to set, in words."""
        done = [
            f"spec.{path}: {', '.join(value) if isinstance(value, tuple) else value}"
            if value is not None
            else f"without spec.{path}"
            for path, value in self.changes
        ]
        return ", ".join([*done, *([f"nodes {self.hardware}"] if self.hardware else [])])

    @property
    def gpus(self) -> str:
        """The short form of the GPUs per replica, e.g. 4xH100-80GB."""
        return f"{self.gpus_per_replica}x{short_name(self.gpu_product)}"

    def to_json(self) -> dict[str, Any]:
        """The form of an entry of `status.noFit.alternatives`, but with the patch as an object."""
        return {
            "kind": str(self.kind),
            "patch": self.patch(),
            "hardware": str(self.hardware) if self.hardware else "",
            "contextTokens": self.context_tokens,
            "kvTokens": self.kv_tokens,
            "gpuProduct": self.gpu_product,
            "gpusPerReplica": self.gpus_per_replica,
            "nodesPerReplica": self.nodes_per_replica,
        }


@dataclass(frozen=True, slots=True)
class NoFit:
    """Why there is no plan. `message` is for the condition, `steps` is the arithmetic, `alternatives` would fit.

    `missing` says in a few words how much is missing, "" if that cannot be counted.
    """

    reason: Reason
    message: str
    steps: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    missing: str = ""

    def status(self) -> dict[str, Any]:
        """The refusal in the form of `status.noFit`."""
        return {
            "steps": list(self.steps),
            "alternatives": [
                {**record, "patch": json.dumps(record["patch"], separators=(",", ":"))}
                for record in (alternative.to_json() for alternative in self.alternatives)
            ],
        }
