"""Admission webhooks and policies that see our pods, and what the API server says to them if it is asked."""

from collections.abc import Iterator

from qwen_operator import objects
from qwen_operator.doctor.selectors import on_pods, selects
from qwen_operator.doctor.types import ClusterFacts, Finding, Listed, Mark, Served
from qwen_operator.objects import mapping, members

NAME, DRY_RUN = "admission", "dry-run"
_TRY = "run this command again with --dry-run-pods to see what the API server says to our pods"
_OURS = "qwen-operator"


def check(facts: ClusterFacts) -> Iterator[Finding]:
    unread = {one.problem for one in _sources(facts) if one.problem}
    for problem in sorted(unread):
        yield Finding(Mark.UNKNOWN, NAME, f"not checked: {problem}")
    sentences = dict.fromkeys((*_webhooks(facts), *_policies(facts)))
    for sentence in sentences:
        yield Finding(Mark.WARNING, NAME, sentence)
    if facts.existing and not sentences and not unread:
        yield Finding(Mark.OK, NAME, "no admission webhook or policy of others sees our pods")


def check_tried(facts: ClusterFacts) -> Iterator[Finding]:
    """The answers of the API server to sample pods that it did not store."""
    for served in facts.existing:
        for pod, rejection in served.tried:
            if rejection:
                message = f"namespace {served.name}: the API server rejects {pod}: {rejection}"
                yield Finding(Mark.BAD, DRY_RUN, message)
            else:
                yield Finding(Mark.OK, DRY_RUN, f"namespace {served.name}: the API server admits {pod}")


def _sources(facts: ClusterFacts) -> tuple[Listed, ...]:
    return facts.webhooks, facts.mutating_webhooks, facts.policies, facts.policy_bindings


def _webhooks(facts: ClusterFacts) -> Iterator[str]:
    kinds = (("reject", facts.webhooks), ("change or reject", facts.mutating_webhooks))
    for effect, listed in kinds:
        for configuration in listed.items:
            for webhook in members(configuration, "webhooks"):
                names = [one.name for one in facts.existing if _webhook_sees(webhook, one)]
                if names and on_pods(webhook.get("rules")):
                    down = (
                        "; it rejects every pod while it does not answer (failurePolicy Fail)"
                        if webhook.get("failurePolicy", "Fail") == "Fail"
                        else ""
                    )
                    yield (
                        f"the webhook {webhook.get('name')} may {effect} our pods in {', '.join(names)}{down}: exempt "
                        f"the label app.kubernetes.io/managed-by=qwen-operator if it is in the way, or {_TRY}"
                    )


def _webhook_sees(webhook: objects.Object, served: Served) -> bool:
    labels = _labels(served)
    return selects(mapping(webhook, "namespaceSelector"), labels) and selects(
        mapping(webhook, "objectSelector"), {"app.kubernetes.io/managed-by": _OURS, "app.kubernetes.io/part-of": _OURS}
    )


def _policies(facts: ClusterFacts) -> Iterator[str]:
    bindings = facts.policy_bindings.items
    for policy in facts.policies.items:
        name = objects.text(policy, "metadata", "name")
        if objects.labels(policy).get("app.kubernetes.io/part-of") == _OURS:
            continue
        constraints = mapping(policy, "spec", "matchConstraints")
        if not on_pods(constraints.get("resourceRules")):
            continue
        for binding in bindings:
            spec = mapping(binding, "spec")
            denies = "Deny" in (spec.get("validationActions") or [])
            if spec.get("policyName") != name or not denies:
                continue
            names = [one.name for one in facts.existing if _policy_sees(constraints, spec, one)]
            if names:
                yield f"the ValidatingAdmissionPolicy {name} may reject our pods in {', '.join(names)}: {_TRY}"


def _policy_sees(constraints: objects.Object, binding: objects.Object, served: Served) -> bool:
    labels = _labels(served)
    selectors = (mapping(constraints, "namespaceSelector"), mapping(binding, "matchResources", "namespaceSelector"))
    return all(selects(one, labels) for one in selectors)


def _labels(served: Served) -> dict[str, object]:
    """The labels of a namespace. Kubernetes itself gives each the label with its name."""
    return {"kubernetes.io/metadata.name": served.name, **objects.labels(served.namespace.first)}
