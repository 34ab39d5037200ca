"""The operator's pods, the Lease, and other releases that serve the same namespaces."""

from collections.abc import Iterator
from datetime import timedelta

from qwen_operator import objects
from qwen_operator.doctor.release import watched
from qwen_operator.doctor.types import ClusterFacts, Finding, Mark
from qwen_operator.objects import mapping, moment

NAME, LEASE, OTHERS = "operator", "lease", "second-release"
# A leader renews every two seconds. The clocks of this machine and of the cluster may differ.
_STALE = timedelta(seconds=60)


def check(facts: ClusterFacts) -> Iterator[Finding]:
    installation = facts.installation
    where = f"{installation.namespace}/{installation.base}-operator"
    if installation.operator.absent:
        yield Finding(
            Mark.WARNING,
            NAME,
            f"no release is installed as {where}: install the chart (docs/install.md), or give --namespace and "
            f"--release",
        )
        return
    if not installation.installed:
        yield Finding(Mark.UNKNOWN, NAME, f"not checked: {installation.operator.problem}")
        return
    if installation.problem:
        yield Finding(Mark.WARNING, NAME, f"the settings of {where} are not known: {installation.problem}")
    deployment = installation.operator.first
    wanted = mapping(deployment, "spec").get("replicas", 1)
    ready = mapping(deployment, "status").get("readyReplicas") or 0
    version = objects.labels(deployment).get("app.kubernetes.io/version", "an unknown version")
    if wanted == 0:
        yield Finding(
            Mark.BAD, NAME, f"{where} has 0 replicas, so nothing is reconciled: run kubectl scale deployment/"
            f"{installation.base}-operator -n {installation.namespace} --replicas=2"
        )  # fmt: skip
    elif ready < wanted:
        yield Finding(Mark.BAD, NAME, f"{where}: {ready} of {wanted} pods are ready: {_waiting(facts)}")
    else:
        yield Finding(Mark.OK, NAME, f"{where}: {ready} of {wanted} pods of {version} are ready")


def _waiting(facts: ClusterFacts) -> str:
    """Why the first pod that is not ready is not, as the kubelet or the scheduler says it."""
    for pod in facts.operator_pods.items:
        if objects.holds(pod, "Ready"):
            continue
        name = objects.text(pod, "metadata", "name")
        for status in objects.members(pod, "status", "containerStatuses"):
            waiting = mapping(status, "state", "waiting")
            if waiting:
                return f"{name} waits: {waiting.get('reason')} {waiting.get('message') or ''}".strip()
        scheduled = objects.condition(pod, "PodScheduled")
        if scheduled.get("status") == "False":
            return f"{name} is not scheduled: {scheduled.get('message')}"
        return f"read kubectl logs -n {facts.installation.namespace} {name}"
    return f"see kubectl describe deployment -n {facts.installation.namespace} {facts.installation.base}-operator"


def check_lease(facts: ClusterFacts) -> Iterator[Finding]:
    if not facts.installation.installed:
        return
    if facts.lease.problem and not facts.lease.absent:
        yield Finding(Mark.UNKNOWN, LEASE, f"not checked: {facts.lease.problem}")
        return
    spec = mapping(facts.lease.first, "spec")
    holder = objects.text(spec, "holderIdentity")
    if not holder:
        yield Finding(
            Mark.BAD, LEASE, "no operator pod holds the Lease, so nothing is reconciled: read the logs of the pods"
        )
        return
    pod = holder.rpartition("_")[0] or holder
    renewed, now = moment(spec.get("renewTime")), moment(facts.now)
    pods = [objects.text(one, "metadata", "name") for one in facts.operator_pods.items]
    if renewed and now and now - renewed > _STALE:
        seconds = int((now - renewed).total_seconds())
        yield Finding(
            Mark.BAD,
            LEASE,
            f"{pod} has not renewed the Lease for {seconds} s, so nothing is reconciled: read its log and check that "
            "it reaches the API server",
        )
    elif facts.operator_pods.items and pod not in pods:
        yield Finding(
            Mark.WARNING,
            LEASE,
            f"the Lease is held by {pod}, which is no pod of this release: an operator outside the cluster (make "
            f"dev) acts",
        )
    else:
        yield Finding(Mark.OK, LEASE, f"{pod} holds the Lease and acts")


def check_others(facts: ClusterFacts) -> Iterator[Finding]:
    if facts.operators.problem:
        yield Finding(Mark.UNKNOWN, OTHERS, f"not checked: {facts.operators.problem}")
        return
    own = (facts.installation.namespace, f"{facts.installation.base}-operator")
    mine = watched(facts.installation.operator.first)
    others = [one for one in facts.operators.items if _key(one) != own]
    clashing = [one for one in others if _overlap(mine, watched(one))]
    for one in clashing:
        namespace, name = _key(one)
        same = ", ".join(sorted(set(mine or watched(one)) & set(watched(one) or mine))) or "all namespaces"
        if not facts.installation.installed:
            yield Finding(
                Mark.WARNING,
                OTHERS,
                f"{namespace}/{name} serves {same}: give a new release watchNamespaces that do not overlap, or name "
                "that one with --namespace and --release",
            )
            continue
        yield Finding(
            Mark.BAD,
            OTHERS,
            f"{namespace}/{name} also serves {same}, so two operators act on the same objects: give the releases "
            "watchNamespaces that do not overlap, or uninstall one",
        )
    if not clashing:
        yield Finding(Mark.OK, OTHERS, "no other release serves the same namespaces")


def _key(deployment: objects.Object) -> tuple[str, str]:
    return objects.text(deployment, "metadata", "namespace"), objects.text(deployment, "metadata", "name")


def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two lists of namespaces have one in common. An empty list means all of them."""
    return not one or not other or bool(set(one) & set(other))
