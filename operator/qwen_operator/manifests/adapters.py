"""The claims with LoRA adapters in the pods of engines and inspections. Pure.

Each claim is one volume, which both mount read-only as a whole.
"""

from __future__ import annotations

from dataclasses import replace

from qwen_operator.api import uris
from qwen_operator.api.spec import Spec
from qwen_operator.planning.adapters import MOUNT, path_of
from qwen_operator.planning.types import EngineSource


def mounted(source: EngineSource, spec: Spec) -> EngineSource:
    """The source with the volumes and folders of the spec's adapters; unchanged without adapters."""
    on_claims = [one.source for one in spec.sorted_adapters if one.source.scheme == uris.PVC.scheme]
    claims = dict.fromkeys(source.claim for source in on_claims)
    volumes = [
        {"name": f"adapters-{index}", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        for index, claim in enumerate(claims)
    ]
    mounts = [
        {"name": f"adapters-{index}", "mountPath": f"{MOUNT}/{claim}", "readOnly": True}
        for index, claim in enumerate(claims)
    ]
    return replace(
        source,
        volumes=(*source.volumes, *volumes),
        mounts=(*source.mounts, *mounts),
        adapters=tuple((adapter.name, path_of(adapter.source.place)) for adapter in spec.sorted_adapters),
    )
