"""Whether the gateway answers, asked through the API server's proxy to its Service."""

from collections.abc import Iterator

from qwen_operator.doctor.types import ClusterFacts, Finding, Mark

NAME = "gateway"


def check(facts: ClusterFacts) -> Iterator[Finding]:
    page, installation = facts.gateway, facts.installation
    service = f"{installation.namespace}/{installation.base}-gateway"
    if not installation.installed:
        return
    if page.status in (200, 401):
        needs = "" if page.status == 200 else "; it asks for a key, as it should"
        yield Finding(Mark.OK, NAME, f"the gateway {service} answers GET /v1/models{needs}")
    elif page.status == 404:
        yield Finding(
            Mark.BAD, NAME, f"the Service {service} does not exist: install the chart again, or give --release"
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
