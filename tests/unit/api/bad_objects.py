"""Objects that must be refused, by the API server and by `parse` alike, and what the refusal must say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Bad:
    """`spec` is merged over a valid one; `says` are parts of the refusal by either side."""

    id: str
    spec: dict[str, Any] = field(default_factory=dict)
    name: str = "bad"
    says: tuple[str, ...] = ()

    def manifest(self) -> dict[str, Any]:
        return {
            "apiVersion": "qwen-operator.dev/v1alpha1",
            "kind": "QwenDeployment",
            "metadata": {"name": self.name, "namespace": "default"},
            "spec": {"model": "Qwen/Qwen1.5-7B-Chat"} | self.spec,
        }


SCHEDULE = {"name": "day", "start": "0 8 * * *", "end": "0 19 * * *", "minReplicas": 2}

BAD = (
    Bad("name too long", name="q" * 41, says=("metadata.name", "at most 40 characters")),
    Bad("name with a dot", name="qwen1.5-7b", says=("metadata.name", "no dot", "qwen15-7b")),
    Bad("name begins with a digit", name="7b", says=("metadata.name", "begin with a letter")),
    Bad(
        "affinity with many members",
        {"pod": {"affinity": {f"a{number}": {} for number in range(33)}}},
        says=("spec.pod.affinity", "at most 32"),
    ),
    Bad("model of the wrong type", {"model": 7}, says=("spec.model",)),
    Bad("model empty", {"model": ""}, says=("spec.model", "at least 1")),
    Bad("model with a colon", {"model": "Qwen/Qwen:7B"}, says=("spec.model", "Qwen/Qwen:7B", "colon")),
    Bad("model with a space", {"model": "Qwen 7B"}, says=("spec.model", "white space", "Right would be")),
    Bad("model too long", {"model": "q" * 97}, says=("spec.model", "96")),
    Bad("served name with a colon", {"servedNames": ["ok", "a:b"]}, says=("spec.servedNames[1]", "colon")),
    Bad("served name twice", {"servedNames": ["a", "a"]}, says=("spec.servedNames", '"a"')),
    Bad("too many served names", {"servedNames": ["a", "b", "c", "d", "e"]}, says=("spec.servedNames", "at most 4")),
    Bad("source without scheme", {"source": {"uri": "models/7b"}}, says=("spec.source.uri", "pvc://", "hf://")),
    Bad("source of another scheme", {"source": {"uri": "ftp://b/7b"}}, says=("spec.source.uri", "pvc://CLAIM/PATH")),
    Bad("claim path that leaves", {"source": {"uri": "pvc://m/../x"}}, says=("spec.source.uri", "'..'")),
    Bad("claim path that ends above", {"source": {"uri": "pvc://m/x/.."}}, says=("spec.source.uri", "'..'")),
    Bad("claim without name", {"source": {"uri": "pvc:///x"}}, says=("spec.source.uri", "pvc://CLAIM/PATH")),
    Bad("hub without organisation", {"source": {"uri": "hf://7b"}}, says=("spec.source.uri", "hf://Qwen/")),
    Bad(
        "other hub without organisation",
        {"source": {"uri": "modelscope://7b"}},
        says=("spec.source.uri", "modelscope://ORGANISATION/NAME"),
    ),
    Bad(
        "revision of a claim",
        {"source": {"uri": "pvc://m/7b", "revision": "v1"}},
        says=("spec.source", "revision is for repositories of a hub"),
    ),
    *(
        Bad(name, {"source": {"uri": f"oci://{rest}"}}, says=("spec.source.uri", "oci://REGISTRY/REPOSITORY:TAG/PATH"))
        for name, rest in (
            ("image without tag and digest", "ghcr.io/team/qwen"),
            ("image without registry", "team/qwen:7b"),
            ("image in capitals", "ghcr.io/Team/qwen:7b"),
            ("image by half a digest", "ghcr.io/team/qwen@sha256:abc"),
            ("image with a folder that climbs", "ghcr.io/team/qwen:7b/../a"),
            ("image with a folder that ends above", "ghcr.io/team/qwen:7b/.."),
            ("image with an empty part", "ghcr.io/team/qwen:7b/a//b"),
        )
    ),
    Bad(
        "image with a revision",
        {"source": {"uri": "oci://ghcr.io/team/qwen:7b", "revision": "v1"}},
        says=("spec.source", "revision is for repositories of a hub"),
    ),
    Bad("bucket with a space", {"source": {"uri": "s3://weights/a b"}}, says=("spec.source.uri", "s3://BUCKET/PREFIX")),
    Bad("bucket that climbs", {"source": {"uri": "s3://weights/../a"}}, says=("spec.source.uri", "s3://BUCKET/PREFIX")),
    *(
        Bad(f"bucket with an empty part: {path}", {"source": {"uri": f"s3://{path}"}}, says=("'..' and without '//'",))
        for path in ("weights//a", "weights/a//b", "weights/a//", "weights//")
    ),
    Bad(
        "branch of a bucket",
        {"source": {"uri": "s3://weights/a", "revision": "main"}},
        says=("spec.source", "40 hexadecimal digits of status.model.commit"),
    ),
    Bad(
        "endpoint of a hub",
        {"source": {"uri": "hf://Qwen/Qwen3-8B", "endpoint": "https://minio:9000"}},
        says=("spec.source", "endpoint is for s3://"),
    ),
    Bad(
        "endpoint with a path",
        {"source": {"uri": "s3://weights/a", "endpoint": "https://minio:9000/weights"}},
        says=("spec.source.endpoint", "right would be https://minio.example.com:9000"),
    ),
    Bad(
        "revision that leaves",
        {"source": {"uri": "hf://Qwen/Qwen3-8B", "revision": "a/../b"}},
        says=("spec.source.revision", "a branch, a tag or a commit"),
    ),
    Bad(
        "revision with a space",
        {"source": {"uri": "hf://Qwen/Qwen3-8B", "revision": "v 1"}},
        says=("spec.source.revision", "v 1"),
    ),
    Bad("source without uri", {"source": {}}, says=("spec.source.uri",)),
    Bad("context of no tokens", {"contextTokens": 0}, says=("spec.contextTokens", "1")),
    Bad("context as text", {"contextTokens": "32k"}, says=("spec.contextTokens",)),
    Bad("context with a fraction", {"contextTokens": 1.5}, says=("spec.contextTokens",)),
    Bad(
        "min > max",
        {"parallelism": {"tensor": 8}, "hardware": {"maxGpusPerReplica": 4}},
        says=("parallelism.tensor must be at most hardware.maxGpusPerReplica",),
    ),
    Bad("workload without concurrency", {"workload": {"inputTokens": 5}}, says=("spec.workload.concurrency",)),
    Bad("workload of nothing", {"workload": {"concurrency": 0}}, says=("spec.workload.concurrency", "1")),
    Bad(
        "request longer than the context",
        {"contextTokens": 2048, "workload": {"concurrency": 1}},
        says=("contextTokens must hold one request of workload", "raise the first or lower the others"),
    ),
    Bad("cache type of the engine", {"engine": {"kvCacheType": "fp8"}}, says=("spec.engine.kvCacheType", "Fp8E4m3")),
    Bad("negative replicas", {"replicas": -1}, says=("spec.replicas", "0")),
    Bad("replicas as text", {"replicas": "2"}, says=("spec.replicas",)),
    Bad("scaling without a limit", {"scaling": {"minReplicas": 2}}, says=("spec.scaling.maxReplicas",)),
    Bad(
        "scaling below nothing",
        {"scaling": {"minReplicas": -1, "maxReplicas": 2}},
        says=("spec.scaling.minReplicas", "0"),
    ),
    Bad("scaling without end", {"scaling": {"maxReplicas": 65}}, says=("spec.scaling.maxReplicas", "64")),
    Bad(
        "bounds the wrong way round",
        {"scaling": {"minReplicas": 3, "maxReplicas": 2}},
        says=("spec.scaling", "minReplicas must be at most maxReplicas"),
    ),
    Bad(
        "an objective for all requests",
        {"scaling": {"maxReplicas": 2, "objective": {"attainmentPercent": 100}}},
        says=("spec.scaling.objective.attainmentPercent", "99"),
    ),
    Bad(
        "an objective faster than any engine measures",
        {"scaling": {"maxReplicas": 2, "objective": {"timeToFirstTokenMilliseconds": 99}}},
        says=("spec.scaling.objective.timeToFirstTokenMilliseconds", "100"),
    ),
    *(
        Bad(
            case,
            {"scaling": {"maxReplicas": 4, "schedules": [SCHEDULE | changed]}},
            says=(f"spec.scaling.schedules[0]{field}", *says),
        )
        for case, changed, field, says in (
            ("schedule with a short start", {"start": "0 8 * *"}, ".start", ("cron expression with five fields",)),
            ("schedule with a wrong end", {"end": "@daily"}, ".end", ("cron expression with five fields",)),
            ("schedule in no zone", {"timeZone": "Berlin time"}, ".timeZone", ("Berlin time", "Europe/Berlin")),
            ("schedule without limits", {"minReplicas": None}, "", ("set minReplicas, maxReplicas or both",)),
            ("schedule that never ends", {"end": SCHEDULE["start"]}, "", ("start and end must differ",)),
            ("schedule with a wrong name", {"name": "Day"}, ".name", ("a-z0-9",)),
        )
    ),
    Bad(
        "schedule above the most",
        {"scaling": {"maxReplicas": 1, "schedules": [SCHEDULE]}},
        says=("spec.scaling", "in every schedule the first must be at most the second"),
    ),
    Bad(
        "schedule twice",
        {"scaling": {"maxReplicas": 4, "schedules": [SCHEDULE, SCHEDULE]}},
        says=("spec.scaling.schedules", "day"),
    ),
    Bad("a window of days", {"scaling": {"maxReplicas": 2, "stabilizationSeconds": 86400}}, says=("3600",)),
    Bad("endless draining", {"rollout": {"drainSeconds": 86401}}, says=("spec.rollout.drainSeconds", "86400")),
    Bad(
        "a rollout that replaces nothing",
        {"rollout": {"maxSurge": 0, "maxUnavailable": 0}},
        says=("spec.rollout", "must not both be 0", "set maxUnavailable to 1"),
    ),
    Bad("no surge alone", {"rollout": {"maxSurge": 0}}, says=("spec.rollout", "must not both be 0")),
    Bad("a surge in per cent", {"rollout": {"maxSurge": "25%"}}, says=("spec.rollout.maxSurge",)),
    Bad("a surge without end", {"rollout": {"maxSurge": 65}}, says=("spec.rollout.maxSurge", "64")),
    Bad("less than nothing", {"rollout": {"maxUnavailable": -1}}, says=("spec.rollout.maxUnavailable", "0")),
    Bad("no time to start", {"rollout": {"progressDeadlineSeconds": 9}}, says=("progressDeadlineSeconds", "10")),
    Bad("unknown field", {"replica": 2}, says=("spec.replica",)),
    Bad("unknown nested field", {"engine": {"arguments": []}}, says=("spec.engine.arguments",)),
    Bad("args as a map", {"engine": {"args": {"log-level": "info"}}}, says=("spec.engine.args",)),
    Bad("version with a v", {"engine": {"version": "v0.5.23"}}, says=("spec.engine.version", "v0.5.23", "without a v")),
    Bad("image with a space", {"engine": {"image": "a b"}}, says=("spec.engine.image",)),
    Bad("variable twice", {"engine": {"env": [{"name": "A"}, {"name": "A"}]}}, says=("spec.engine.env", "A")),
    Bad(
        "variable with two values",
        {"engine": {"env": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]}},
        says=("spec.engine.env[0]", "not both"),
    ),
    Bad("product with a space", {"hardware": {"products": ["H100 80GB"]}}, says=("spec.hardware.products[0]",)),
    Bad("label of ours", {"pod": {"labels": {"qwen-operator.dev/role": "x"}}}, says=("spec.pod.labels", "operator")),
    Bad(
        "GPUs as resource",
        {"pod": {"resources": {"limits": {"nvidia.com/gpu": 2}}}},
        says=("spec.pod.resources.limits", "spec.parallelism.tensor"),
    ),
    Bad("toleration as text", {"pod": {"tolerations": ["nvidia.com/gpu"]}}, says=("spec.pod.tolerations[0]",)),
)
