"""The spec of a QwenDeployment: what users write, as typed Python.

The descriptions are the manual that `kubectl explain qd.spec` prints. source.py, sizing.py, engine.py, objective.py
and pod.py have parts of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from qwen_operator.api import reading, uris
from qwen_operator.api.adapters import MOST_ADAPTERS, VOLUME_FORM, Adapter
from qwen_operator.api.engine import Engine
from qwen_operator.api.fields import Rule, camel, described, matches
from qwen_operator.api.objective import Objective
from qwen_operator.api.pod import CACHE_VOLUME, ENGINE_CACHE_VOLUME, OWN_VOLUMES, Pod
from qwen_operator.api.schedules import MOST_SCHEDULES, Schedule, limits_in_order
from qwen_operator.api.schema import object_schema
from qwen_operator.api.sizing import Hardware, Parallelism, Workload
from qwen_operator.api.source import Source
from qwen_operator.objects import mapping

REPLAN_ANNOTATION = "qwen-operator.dev/replan"
NAME_LIMIT = 40
UNKEPT = "qwen-operator.dev/unkept"
"""A top-level member of a stored object: why its content is not kept. The API server stores no such member."""
MOST_VALUES = 4096
MOST_CHARACTERS = 131072
"""Limits of a whole spec. Every copy of the spec in pods, revisions and memory is about as large."""

_NAME_FORM = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
# Visible ASCII without the colon, which separates model and adapter in SGLang.
_CLIENT_NAME = r"^[!-9;-~]+$"


NAME_RULES = (
    Rule(
        f"size(self.metadata.name) <= {NAME_LIMIT}",
        f"metadata.name must have at most {NAME_LIMIT} characters, so that the names of its pods fit",
        lambda name: len(name) <= NAME_LIMIT,
    ),
    Rule(
        f"self.metadata.name.matches('{_NAME_FORM}')",
        "metadata.name must begin with a letter and contain only a-z, 0-9 and '-' (no dot: write qwen15-7b), because "
        "its pods' host names begin with it",
        lambda name: matches(_NAME_FORM, name),
    ),
)


class InvalidSpec(Exception):
    """A spec that cannot be used. `problems` has one sentence for each fault, with the field's path and value."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


_CLIENT_NAME_RULE = Rule(
    f"self.matches('{_CLIENT_NAME}')",
    "must not contain a colon, white space or characters beyond ASCII: SGLang reads a colon as model:adapter. "
    "Right would be, for example, Qwen/Qwen1.5-7B-Chat or qwen-7b",
    lambda value: matches(_CLIENT_NAME, value),
    uris.cure,
)


def _bounds_in_order(scaling: Mapping[str, Any]) -> bool:
    least, most = scaling.get("minReplicas"), scaling.get("maxReplicas")
    return least is None or most is None or bool(least <= most)


@dataclass(frozen=True, slots=True)
class Scaling:
    """Between which sizes, and how calmly, the operator scales by load."""

    RULES: ClassVar = (
        Rule(
            "!has(self.minReplicas) || self.minReplicas <= self.maxReplicas",
            "minReplicas must be at most maxReplicas: lower the first or raise the second",
            _bounds_in_order,
        ),
        Rule(
            "!has(self.schedules) || self.schedules.all(one, (has(one.minReplicas) ? one.minReplicas : "
            "has(self.minReplicas) ? self.minReplicas : 1) <= "
            "(has(one.maxReplicas) ? one.maxReplicas : self.maxReplicas))",
            "a schedule that sets only minReplicas or only maxReplicas has the other from spec.scaling, and in every "
            "schedule the first must be at most the second: set both in the schedule",
            limits_in_order,
        ),
    )

    max_replicas: int = described(
        "The most replicas that the operator may run, whatever the load. Each replica takes its own GPUs. Example: 4.",
        minimum=1,
        maximum=64,
    )
    min_replicas: int = described(
        "The fewest replicas, even without load. 0: after idleSeconds without requests the operator removes all "
        "replicas, and the model sleeps. The next request waits in the gateway, and the operator starts a replica for "
        "it. A new deployment sleeps until its first request. Default: 1.",
        default=1,
        minimum=0,
        maximum=64,
    )
    stabilization_seconds: int = described(
        "The operator removes a replica only if the load needed fewer replicas for all of these seconds. It adds "
        "replicas at once, whatever the value is. Set it above the time that a replica takes to start "
        "(status.plan.startupSeconds). Otherwise the operator removes a replica in every short pause and must start "
        "it again. Default: 300.",
        default=300,
        minimum=0,
        maximum=3600,
    )
    policy: str = described(
        "What the number of replicas follows. Queue: waiting requests and KV tokens; cheap, but answers become slow "
        "before it adds replicas. Objective: it aims at the times in objective; it measures how fast the replicas are, "
        "and keeps spare replicas for the time that a start takes. It costs more GPUs than Queue. Default: Queue.",
        default="Queue",
        enum=["Queue", "Objective"],
    )
    objective: Objective = described(
        "How soon answers should come. The policy Objective aims at it, and status.scaling.attainmentPercent shows "
        "how many requests keep it, with every policy. Changing it restarts nothing. Default: the first token within "
        "2 s and then 100 ms per token, for 99 % of the requests.",
        default=Objective,
    )
    mode: str = described(
        "Auto: the operator changes the number of replicas by load. Advisory: it decides and shows what it would do, "
        "in status.scaling and in its metrics, and changes nothing. It does that too while spec.replicas is set. "
        "Default: Auto.",
        default="Auto",
        enum=["Auto", "Advisory"],
    )
    idle_seconds: int = described(
        "With minReplicas 0: how long a model must be without requests, in seconds, before it sleeps. Each wake takes "
        "the whole start of a replica (status.plan.startupSeconds). Default: 600.",
        default=600,
        minimum=30,
        maximum=86400,
    )
    schedules: tuple[Schedule, ...] = described(
        "Times with their own minReplicas and maxReplicas, for load that is known in advance. While several are in "
        "force, the larger minReplicas and the larger maxReplicas count. Example: [{name: office-hours, start: "
        "45 7 * * MON-FRI, end: 0 19 * * MON-FRI, timeZone: Europe/Berlin, minReplicas: 3}].",
        default=(),
        max_items=MOST_SCHEDULES,
        list_type="map",
        list_map_keys=["name"],
    )

    @property
    def advises(self) -> bool:
        """Whether the load changes nothing."""
        return self.mode == "Advisory"


def _can_replace(rollout: Mapping[str, Any]) -> bool:
    return rollout.get("maxSurge") != 0 or bool(rollout.get("maxUnavailable"))


@dataclass(frozen=True, slots=True)
class Rollout:
    """How replicas are replaced and removed."""

    RULES: ClassVar = (
        Rule(
            "!has(self.maxSurge) || self.maxSurge > 0 || (has(self.maxUnavailable) && self.maxUnavailable > 0)",
            "maxSurge and maxUnavailable (default: 0) must not both be 0, because then no replica could be replaced: "
            "set maxUnavailable to 1, or maxSurge to 1",
            _can_replace,
        ),
    )

    drain_seconds: int = described(
        "The longest time, in seconds, that a replica gets to finish its running requests before the operator removes "
        "it. It gets no new requests. The operator cuts requests that run longer. Default: 600. Example: 1800 for "
        "long answers.",
        default=600,
        minimum=0,
        maximum=86400,
    )
    max_surge: int = described(
        "How many replicas of a changed spec the operator may start beside the replicas that they will replace. Each "
        "needs free GPUs. 0: a replica drains and is deleted first, and its successor starts in its place; this needs "
        "maxUnavailable. Default: 1.",
        default=1,
        minimum=0,
        maximum=64,
    )
    max_unavailable: int = described(
        "How many replicas a rollout may remove before their successors answer. With a single replica and 1, requests "
        "wait in the gateway until the successor answers. Default: 0.",
        default=0,
        minimum=0,
        maximum=64,
    )
    progress_deadline_seconds: int | None = described(
        "How long, in seconds, a replica of a changed spec may take until it answers. After that the operator holds "
        "the change back: the earlier revision keeps serving, and the condition Stalled has the reason RevisionHeld "
        "and the cause. Default: 600, or twice status.plan.startupSeconds if that is more.",
        default=None,
        minimum=10,
        maximum=86400,
    )


@dataclass(frozen=True, slots=True)
class Disruption:
    """What evictions may do, such as those of a node drain or of a node autoscaler."""

    policy: str = described(
        "Strict: nobody may evict a ready replica; before a node is drained, the operator starts a replacement on "
        "another node. Node autoscalers that ask before they cordon, such as Karpenter, then never remove such a node. "
        "AllowOne: one ready replica at a time may be evicted, and the operator replaces it afterwards. With a single "
        "replica that is an outage. Default: Strict.",
        default="Strict",
        enum=["Strict", "AllowOne"],
    )

    @property
    def allows_one(self) -> bool:
        """Whether one ready replica at a time may be evicted."""
        return self.policy == "AllowOne"


def _request_within_context(spec: Mapping[str, Any]) -> bool:
    workload, context = mapping(spec, "workload"), spec.get("contextTokens")
    given = [workload.get(name) or default for name, default in (("inputTokens", 2048), ("outputTokens", 512))]
    return context is None or not spec.get("workload") or sum(given) <= context


def _adaptable(spec: Mapping[str, Any]) -> bool:
    source = mapping(spec, "source")
    if not spec.get("adapters"):
        return True
    bucket = str(source.get("uri")).startswith(uris.S3.prefix)
    return source.get("secretRef") is None and source.get("file") is None and not bucket


def _tensor_within_limit(spec: Mapping[str, Any]) -> bool:
    tensor = mapping(spec, "parallelism").get("tensor")
    limit = mapping(spec, "hardware").get("maxGpusPerReplica")
    return tensor is None or limit is None or bool(tensor <= limit)


@dataclass(frozen=True, slots=True)
class Spec:
    """What to serve. Only `model` is required; everything else is derived and shown in the status."""

    RULES: ClassVar = (
        Rule(
            "!has(self.parallelism) || !has(self.parallelism.tensor) || !has(self.hardware) || "
            "!has(self.hardware.maxGpusPerReplica) || self.parallelism.tensor <= self.hardware.maxGpusPerReplica",
            "parallelism.tensor must be at most hardware.maxGpusPerReplica: lower the first or raise the second",
            _tensor_within_limit,
        ),
        Rule(
            "!has(self.contextTokens) || !has(self.workload) || (has(self.workload.inputTokens) ? "
            "self.workload.inputTokens : 2048) + (has(self.workload.outputTokens) ? self.workload.outputTokens : 512) "
            "<= self.contextTokens",
            "contextTokens must hold one request of workload, inputTokens (2048) and outputTokens (512) together: "
            "raise the first or lower the others",
            _request_within_context,
        ),
        Rule(
            "!has(self.adapters) || size(self.adapters) == 0 || !has(self.source) || (!has(self.source.secretRef) && "
            f"!has(self.source.file) && !self.source.uri.startsWith('{uris.S3.prefix}'))",
            "adapters do not go together with source.secretRef, source.file or a source in a bucket: put the "
            "model on a claim as safetensors, and set source.uri to pvc://CLAIM/PATH",
            _adaptable,
        ),
    )

    model: str = described(
        "The model: the id of its repository. Clients use this name, unless servedNames is set. The engine gets the "
        "files from this repository, unless source is set. Example: Qwen/Qwen1.5-72B-Chat.",
        min_length=1,
        max_length=96,
        rules=(_CLIENT_NAME_RULE,),
        changes_pods=True,
    )
    served_names: tuple[str, ...] = described(
        "All names that clients can use for this model. A name has one holder, which keeps it until it gives it up. "
        "Changing this field restarts nothing. Default: the model. Example: [qwen-72b, chat-default].",
        default=(),
        max_items=4,
        list_type="set",
        items={"min_length": 1, "max_length": 96, "rules": [_CLIENT_NAME_RULE]},
        changes_pods=False,
    )
    source: Source | None = described(
        "Where the model's files are. Default: the repository with the name of the model on the chart's hub, which is "
        "Hugging Face unless the chart sets another one. The chart's tenancy may limit which sources are allowed.",
        default=None,
        changes_pods=True,
    )
    adapters: tuple[Adapter, ...] = described(
        "LoRA adapters that every engine loads beside the model. Clients ask for one as the model SERVEDNAME:NAME, at "
        "/v1/chat/completions and /v1/completions. The operator reads each adapter's files before an engine loads "
        "them. Engines that have room load an added adapter and unload a removed one while they serve. Otherwise a "
        "change of this list starts new replicas. Example: [{name: support, source: {uri: "
        "pvc://models/adapters/support}}].",
        default=(),
        max_items=MOST_ADAPTERS,
        list_type="map",
        list_map_keys=["name"],
        changes_pods=True,
    )
    context_tokens: int | None = described(
        "Longest request in tokens, input and output together. A smaller value needs less GPU memory. A larger value, "
        "up to four times the model's limit, uses YaRN, which makes answers to short requests slightly worse. "
        "Default: the model's own limit. Example: 8192.",
        default=None,
        minimum=1,
        maximum=16777216,
        changes_pods=True,
    )
    workload: Workload | None = described(
        "Requests that must fit on one replica at the same time. The operator calculates the tokens that they need. "
        "Default: one request of contextTokens; the status then reports how many typical requests fit. Example: "
        "{concurrency: 16, inputTokens: 2048, outputTokens: 512}.",
        default=None,
        changes_pods=True,
    )
    hardware: Hardware = described("GPUs that the model may use. Default: any.", default=Hardware, changes_pods=True)
    parallelism: Parallelism = described(
        "Your own values for the split over GPUs, in place of the planned ones.",
        default=Parallelism,
        changes_pods=True,
    )
    engine: Engine = described(
        "Your own image, options and environment for the engine, in place of the chart's and the planned ones. The "
        "chart's tenancy decides which are allowed.",
        default=Engine,
        changes_pods=True,
    )
    replicas: int | None = described(
        "Number of replicas, each with its own GPUs. If set, there are exactly this many and spec.scaling only "
        "advises. You, kubectl scale, a HorizontalPodAutoscaler or KEDA can set this field. If not set, spec.scaling "
        "decides; without spec.scaling there is one replica. 0 stops all replicas and keeps the plan; requests do not "
        "wake them. To return to spec.scaling, remove this field: kubectl patch qd NAME --type=json -p "
        '\'[{"op":"remove","path":"/spec/replicas"}]\'.',
        default=None,
        minimum=0,
        maximum=64,
        changes_pods=False,
    )
    suspend: bool = described(
        "True: the operator removes all replicas, whatever replicas and scaling say, and clients get 503. It keeps the "
        "plan and the names. Requests do not wake a suspended model. Default: false.",
        default=False,
        changes_pods=False,
    )
    prefetch: bool = described(
        "True: with the chart's cache, pods without GPUs download the model before engine pods need it: on the nodes "
        "that replicas may use, at most as many as there may be replicas, or into the claim. They do so also while "
        "there are no replicas. A new replica waits for a download that has begun where it can run, so that it takes "
        "no GPU meanwhile. Changing it restarts nothing. Default: false.",
        default=False,
        changes_pods=False,
    )
    scaling: Scaling | None = described(
        "Lets the operator choose the number of replicas by load: waiting requests, running requests, and tokens in "
        "the KV caches. While spec.replicas is set, it only advises. Changing it restarts nothing. Default: one "
        "replica, or the number in spec.replicas. Example: {maxReplicas: 4}.",
        default=None,
        changes_pods=False,
    )
    rollout: Rollout = described("How the operator replaces and removes replicas.", default=Rollout, changes_pods=False)
    disruption: Disruption = described(
        "Whether node drains and node autoscalers may evict a replica before there is another one.",
        default=Disruption,
        changes_pods=False,
    )
    pod: Pod = described(
        "Additions to the engine pods. Fields about placement, identity and access also apply to the inspection pod. "
        "The chart's tenancy decides which values are allowed.",
        default=Pod,
        changes_pods=True,
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The served names: `servedNames`, or the model if there are none."""
        return self.served_names or (self.model,)

    @property
    def sorted_adapters(self) -> tuple[Adapter, ...]:
        """The adapters by name, because their order in the spec has no meaning."""
        return tuple(sorted(self.adapters, key=lambda adapter: adapter.name))

    @property
    def repository(self) -> str | None:
        """The hub repository that the files come from, or None if the source is no hub."""
        return self.source.repository if self.source else self.model


_POD_FIELDS = frozenset(camel(field.name) for field in fields(Spec) if field.metadata["changes_pods"])


def parse(obj: Mapping[str, Any]) -> Spec:
    """The typed spec of a whole QwenDeployment object (metadata and spec). Raises only InvalidSpec."""
    metadata, spec = obj.get("metadata"), obj.get("spec")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str):
        raise InvalidSpec([f"metadata.name: {reading.shown(name)} must be text"])
    sentences = [f"metadata.name: {reading.shown(name)}: {rule.message}" for rule in NAME_RULES if not rule.holds(name)]
    if unkept := obj.get(UNKEPT):
        raise InvalidSpec([*sentences, *unkept])
    if fault := reading.size_fault(spec, MOST_VALUES, MOST_CHARACTERS):
        # Which part of it is too deep or too large?
        sentences += reading.problems(spec, object_schema(Spec), "spec") or [f"spec: {fault}"]
        raise InvalidSpec(sentences)
    sentences += reading.problems(spec, object_schema(Spec), "spec")
    if sentences:
        raise InvalidSpec(sentences)
    assert isinstance(spec, Mapping)
    built = reading.build(Spec, spec)
    taken = [
        f"spec.pod.volumes[{index}].name: {reading.shown(volume.get('name'))} is one of the operator's own volumes "
        f"({', '.join(OWN_VOLUMES)}); choose another name"
        for index, volume in enumerate(built.pod.volumes)
        if volume.get("name") in OWN_VOLUMES
    ]
    taken += [
        f"spec.pod.volumeMounts[{index}].name: {mount['name']} is the operator's own volume with the models of others "
        "too; name one of spec.pod.volumes"
        for index, mount in enumerate(built.pod.volume_mounts)
        if mount.get("name") in (CACHE_VOLUME, ENGINE_CACHE_VOLUME)
    ]
    taken += [
        f"spec.pod.volumes[{index}].name: {reading.shown(volume.get('name'))} is the volume of an adapter; choose "
        "another name"
        for index, volume in enumerate(built.pod.volumes if built.adapters else ())
        if matches(VOLUME_FORM, str(volume.get("name")))
    ]
    if taken:
        raise InvalidSpec(taken)
    return built


def revision_hash(spec: Mapping[str, Any], annotations: Mapping[str, str]) -> str:
    """Eight hexadecimal digits that change when the pods must change.

    The hash covers the fields of the spec that are declared with `changes_pods`, and the value of the annotation
    qwen-operator.dev/replan. The input is the spec as the user wrote it, so a new field of the API changes no hash.
    Members of the first two levels that are null or empty count as not set, and the order of adapters does not count.
    """
    kept = {key: _without_empty(value) for key, value in spec.items() if key in _POD_FIELDS}
    if isinstance(adapters := kept.get("adapters"), list):
        kept["adapters"] = sorted(adapters, key=str)
    record = {"spec": _without_empty(kept), "replan": annotations.get(REPLAN_ANNOTATION)}
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def hash_without_adapters(spec: Mapping[str, Any], annotations: Mapping[str, str]) -> str:
    """The hash of the same spec without adapters: equal for two specs that differ only in them."""
    return revision_hash({key: value for key, value in spec.items() if key != "adapters"}, annotations)


def _without_empty(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: member for key, member in value.items() if member is not None and member not in ({}, [], "")}
