"""Whether the gateway answers, asked through the API server's proxy to its Service."""

from collections.abc import Iterator

from qwen_operator.doctor.types import ClusterFacts, Finding, Mark
from qwen_operator.objects import mapping

NAME = "gateway"
# The API server's text if it has no way to a pod.
_UNREACHED = "trying to reach service"


def check(facts: ClusterFacts) -> Iterator[Finding]:
    page, installation = facts.gateway, facts.installation
    service = f"{installation.namespace}/{installation.base}-gateway"
    if not installation.installed:
        return
    if page.status in (200, 401):
        needs = "" if page.status == 200 else "; it asks for a key, as it should"
        yield Finding(Mark.OK, NAME, f"the gateway {service} answers GET /v1/models{needs}")
    elif page.status == 404 and not page.proxied:
        yield Finding(
            Mark.BAD, NAME, f"the Service {service} does not exist: install the chart again, or give --release"
        )
    elif page.proxied and _UNREACHED in page.problem.lower():
        yield _unreached(facts, service)
    elif page.proxied:
        yield Finding(
            Mark.WARNING,
            NAME,
            f"the gateway {service} answers GET /v1/models with {page.status} ({page.problem}): a 503 is normal "
            "as long as no engine is ready, so look at kubectl get qd -A",
        )
    elif page.status >= 500:
        yield Finding(
            Mark.BAD,
            NAME,
            f"the gateway {service} does not answer ({page.problem}): look at its pods with kubectl get pods -n "
            f"{installation.namespace} -l qwen-operator.dev/role=gateway",
        )
    else:
        yield Finding(Mark.UNKNOWN, NAME, f"not checked: {page.problem}")


def _unreached(facts: ClusterFacts, service: str) -> Finding:
    """The API server has no way to the pods, which does not mean that clients have none."""
    gateway = facts.gateways.first
    wanted, ready = mapping(gateway, "spec").get("replicas", 1), mapping(gateway, "status").get("readyReplicas") or 0
    if ready:
        return Finding(
            Mark.UNKNOWN,
            NAME,
            f"not checked: the API server cannot reach the gateway {service} ({facts.gateway.problem}), of which "
            f"{ready} of "
            f"{wanted} pods are ready: run helm test, which asks it from inside the cluster",
        )
    return Finding(
        Mark.BAD,
        NAME,
        f"no pod of the gateway {service} is ready: run kubectl describe pods -n "
        f"{facts.installation.namespace} -l qwen-operator.dev/role=gateway",
    )
