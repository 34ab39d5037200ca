"""Whether the user's own mounts have paths of the operator's mounts in the engine. Pure.

The operator's depend on the plan, on the source and on the chart, so the API server cannot check it with the spec.
"""

from __future__ import annotations

import posixpath

from qwen_operator.api.conditions import Reason
from qwen_operator.api.reading import shown
from qwen_operator.api.spec import Spec
from qwen_operator.manifests import model_cache
from qwen_operator.manifests.engine_container import RUNTIME_MOUNT, own_mounts
from qwen_operator.planning.types import EngineSource, NoFit, Plan


def mountable(planned: Plan | NoFit, spec: Spec, source: EngineSource, namespace: str) -> Plan | NoFit:
    """The plan, or a refusal if `spec.pod.volumeMounts` has a path of the operator."""
    if isinstance(planned, NoFit) or not spec.pod.volume_mounts:
        return planned
    own = _own(planned, source, namespace)
    problems = [
        f"spec.pod.volumeMounts[{index}].mountPath: {shown(mount.get('mountPath'))} is a path of the operator, which "
        f"mounts its volume {own[path]} at {path}; choose another path"
        for index, mount in enumerate(spec.pod.volume_mounts)
        for path in own
        if _collides(str(mount.get("mountPath")), path)
    ]
    return NoFit(Reason.INVALID_OVERRIDE, "; ".join(problems), planned.steps) if problems else planned


def _own(plan: Plan, source: EngineSource, namespace: str) -> dict[str, str]:
    """The volume of each path at which the operator mounts one."""
    source = model_cache.with_compile_cache(model_cache.mounted(source, namespace), plan)
    before, after = own_mounts(plan, source)
    return {str(mount["mountPath"]): str(mount["name"]) for mount in (*before, *after)}


def _collides(wanted: str, path: str) -> bool:
    """Whether a mount hides that of the operator. Below most of them, users may mount what they like."""
    wanted = posixpath.normpath("/" + wanted.lstrip("/"))
    return wanted == path or (path == RUNTIME_MOUNT and wanted.startswith(f"{path}/"))
