"""The pods that read a checkpoint before an engine loads it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from qwen_operator.api.pod import Pod
from qwen_operator.api.spec import Spec
from qwen_operator.hardware.inventory import PRODUCT_LABEL, GpuProduct
from qwen_operator.manifests import names
from qwen_operator.manifests.names import Manifest, PodIdentity
from qwen_operator.manifests.pod_parts import (
    CONTAINER_SECURITY,
    GPU_TOLERATION,
    IMAGE_RUNTIME,
    RuntimeImage,
    common_spec,
    env_entry,
    literal,
    pod_labels,
    pod_security,
    present,
)
from qwen_operator.manifests.quantities import canonical_quantities
from qwen_operator.planning.types import EngineSource

_INSPECTION_SECONDS = 600
# The node first pulls an image with all weights.
_IMAGE_SECONDS = 7200
# The kubelet shows the digest of the image of a container that it could not start, too. Nothing in an image can be this
# program, because the kernel's own files are mounted over its /proc: so nobody can run an image of their choice.
_NO_PROGRAM = "/proc/qwen-operator-wants-only-the-digest"


@dataclass(frozen=True, slots=True)
class InspectionPlace:
    """Where an inspection pod may run. It tolerates the taints of the nodes of `products`.

    `near_gpus`: it must run on these nodes, like the engines. A claim that is not bound yet may bind where its first
    pod runs. Otherwise it stays away from GPUs if it can, so that it does not boot a node of an empty GPU pool.
    """

    products: Sequence[GpuProduct] = ()
    near_gpus: bool = True


def inspection_pod(
    identity: PodIdentity, spec: Spec, source: EngineSource, runtime: RuntimeImage, place: InspectionPlace
) -> Manifest:
    """The pod that reads the checkpoint from the engine's mount, and reports its facts in its termination message.

    It runs as the engines' user. So engines can read what it can read.
    """
    labels = pod_labels(identity, names.ROLE_INSPECTION)
    name = names.inspection_pod_name(identity.owner.name, identity.revision)
    metadata = names.metadata(identity.owner, name, {**spec.pod.labels, **labels})
    metadata["annotations"] = {**spec.pod.annotations, **metadata["annotations"]}
    container = {
        "name": names.INSPECTION_CONTAINER,
        "image": runtime.reference,
        "imagePullPolicy": runtime.pull_policy,
        "command": literal(source.inspection or _inspection_command(source)),
        **present(env=[env_entry(variable) for variable in source.env]),
        "resources": {part: dict(amounts) for part, amounts in runtime.inspection.resources.items()},
        "securityContext": deepcopy(CONTAINER_SECURITY),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": [dict(mount) for mount in source.mounts],
    }
    tolerations = [item for product in place.products for item in product.tolerations]
    selector = runtime.inspection.node_selector or spec.pod.node_selector
    pod = {
        **common_spec(spec.pod, runtime, source, (GPU_TOLERATION, *tolerations)),
        **present(nodeSelector=dict(selector), affinity=_inspection_affinity(spec.pod, runtime, place)),
        "restartPolicy": "Never",
        "activeDeadlineSeconds": _IMAGE_SECONDS if source.image else _INSPECTION_SECONDS,
        "containers": [container, *_image_container(container, source)],
        "volumes": [dict(volume) for volume in source.volumes],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": canonical_quantities(pod)}


def _image_container(inspection: Manifest, source: EngineSource) -> list[Manifest]:
    if source.image is None or not source.image.digest_wanted:
        return []
    container = {
        "name": names.IMAGE_CONTAINER,
        "image": source.image.reference,
        # The volume has just pulled it: another pull might find another image.
        "imagePullPolicy": "IfNotPresent",
        "command": [_NO_PROGRAM],
    }
    return [container | {part: deepcopy(inspection[part]) for part in ("resources", "securityContext")}]


def _inspection_command(source: EngineSource) -> tuple[str, ...]:
    model = ("--path", source.model_path) if source.model_path else ()
    adapters = tuple(f"--adapter={name}={folder}" for name, folder in source.adapters)
    return ("python3", IMAGE_RUNTIME, "inspect", *model, *adapters)


def _inspection_affinity(pod: Pod, runtime: RuntimeImage, place: InspectionPlace) -> Manifest:
    """The user's affinity. If it has no node affinity, it gets one for the nodes of the place's products, or away."""
    affinity = dict(pod.affinity or {})
    if "nodeAffinity" in affinity or runtime.inspection.node_selector:
        return affinity
    if not place.near_gpus:
        absent = {"matchExpressions": [{"key": PRODUCT_LABEL, "operator": "DoesNotExist"}]}
        preferred = [{"weight": 100, "preference": absent}]
        return {**affinity, "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    terms = [
        {
            "matchExpressions": [
                {"key": key, "operator": "In", "values": [value]} for key, value in sorted(product.selector.items())
            ]
        }
        for product in place.products
    ]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {**affinity, "nodeAffinity": required} if terms else affinity


def reads_alike(template: Mapping[str, Any], pod: Pod, source: EngineSource) -> bool:
    """Whether the pods of a pinned template read this source as the same user, so that its facts hold for both."""
    spec = template["spec"]
    commands = [part for container in spec["containers"] for part in container.get("command") or ()]
    return (
        spec.get("securityContext") == json.loads(json.dumps(pod_security(pod)))
        and all(dict(volume) in spec["volumes"] for volume in source.volumes)
        and f"--model-path={source.model_path}" in commands
    )
