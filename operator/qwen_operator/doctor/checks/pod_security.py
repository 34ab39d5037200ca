"""The Pod Security Standard that a namespace enforces, and what QwenDeployments there ask for."""

from collections.abc import Iterator

from qwen_operator import objects
from qwen_operator.doctor.types import ClusterFacts, Finding, Mark, Served
from qwen_operator.objects import mapping, members

NAME = "pod-security"
LABEL = "pod-security.kubernetes.io/enforce"
_HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC")
_BELOW_PRIVILEGED = ("baseline", "restricted")
_BASELINE_VOLUMES = "hostPath"
# The restricted profile's list.
_RESTRICTED_VOLUMES = (
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
)  # fmt: skip


def check(facts: ClusterFacts) -> Iterator[Finding]:
    for served in facts.existing:
        if served.namespace.problem:
            yield Finding(Mark.UNKNOWN, NAME, f"namespace {served.name} not checked: {served.namespace.problem}")
            continue
        level = str(objects.labels(served.namespace.first).get(LABEL) or "privileged")
        faults = [*_faults(served, level), *_of_multi_node(facts, served, level)]
        yield from faults
        if not faults and level == "privileged" and not _needs_privileged(facts, served):
            yield Finding(
                Mark.WARNING,
                NAME,
                f"namespace {served.name} enforces no Pod Security Standard: our pods meet the strictest one, so run "
                f"kubectl label namespace {served.name} {LABEL}=restricted",
            )
        elif not faults:
            yield Finding(Mark.OK, NAME, f"namespace {served.name} enforces {level}, which our pods meet")


def _needs_privileged(facts: ClusterFacts, served: Served) -> bool:
    """Whether the chart gives pods of this namespace what only the standard `privileged` allows."""
    config = facts.installation.config
    return bool(config and config.multi_nodes.beyond_baseline) and any(map(_over_nodes, served.deployments))


def _faults(served: Served, level: str) -> Iterator[Finding]:
    for deployment in served.deployments:
        for field in _forbidden(mapping(deployment, "spec", "pod"), level):
            name = objects.text(deployment, "metadata", "name")
            yield Finding(
                Mark.BAD,
                NAME,
                f"namespace {served.name} enforces {level}, which forbids {field} of QwenDeployment {name}: change "
                "that field, or enforce a lower standard",
            )


def _of_multi_node(facts: ClusterFacts, served: Served, level: str) -> Iterator[Finding]:
    """QwenDeployments over several nodes whose pods get more from the chart than the standard allows."""
    config = facts.installation.config
    given = config.multi_nodes.beyond_baseline if config else ()
    if not given or level not in _BELOW_PRIVILEGED:
        return
    for deployment in served.deployments:
        if not _over_nodes(deployment):
            continue
        yield Finding(
            Mark.BAD,
            NAME,
            f"namespace {served.name} enforces {level}, which forbids {' and '.join(given)} of the chart, but "
            f"QwenDeployment {objects.text(deployment, 'metadata', 'name')} may run over several nodes: turn that off, "
            f"or run kubectl label --overwrite namespace {served.name} {LABEL}=privileged",
        )


def _over_nodes(deployment: objects.Object) -> bool:
    most = mapping(deployment, "spec", "hardware").get("maxNodesPerReplica")
    return isinstance(most, int) and most > 1


def _forbidden(pod: objects.Object, level: str) -> Iterator[str]:
    if level not in _BELOW_PRIVILEGED:
        return
    for volume in members(pod, "volumes"):
        kinds = [key for key in volume if key != "name"]
        if _BASELINE_VOLUMES in kinds:
            yield f"spec.pod.volumes {volume.get('name')} (hostPath)"
        elif level == "restricted" and not set(kinds) <= set(_RESTRICTED_VOLUMES):
            yield f"spec.pod.volumes {volume.get('name')} ({', '.join(sorted(kinds))})"
    yield from (f"spec.pod.{field}" for field in _HOST_FIELDS if pod.get(field) is True)
    context = mapping(pod, "securityContext")
    if mapping(context, "seccompProfile").get("type") == "Unconfined":
        yield "spec.pod.securityContext.seccompProfile (Unconfined)"
    if level == "restricted":
        if context.get("runAsNonRoot") is False:
            yield "spec.pod.securityContext.runAsNonRoot (false)"
        if context.get("runAsUser") == 0:
            yield "spec.pod.securityContext.runAsUser (0)"
