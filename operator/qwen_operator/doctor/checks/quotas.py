"""ResourceQuotas and LimitRanges that would reject our pods, tried with pods as this version makes them."""

from collections.abc import Iterator, Mapping
from typing import Any

from qwen_operator import objects
from qwen_operator.actions.types import ActionReason, Create, Kind
from qwen_operator.doctor.limits import refusals, unstated, with_defaults
from qwen_operator.doctor.types import ClusterFacts, Finding, Listed, Mark, Served
from qwen_operator.objects import mapping
from qwen_operator.replicas.quotas import within_quotas

NAMES, QUOTA, RANGE = "namespaces", "quota", "limit-range"


def check_namespaces(facts: ClusterFacts) -> Iterator[Finding]:
    """Which namespaces are looked at, and whether they exist."""
    if facts.served_problem:
        yield Finding(Mark.UNKNOWN, NAMES, facts.served_problem)
    for served in facts.served:
        if served.namespace.absent:
            yield Finding(
                Mark.BAD,
                NAMES,
                f"namespace {served.name} does not exist: run kubectl create namespace {served.name}, or take it out "
                "of watchNamespaces",
            )
    names = [served.name for served in facts.existing]
    if names:
        yield Finding(Mark.OK, NAMES, f"checked as namespaces with engines: {', '.join(names)}")


def check_quotas(facts: ClusterFacts) -> Iterator[Finding]:
    for served in facts.existing:
        count = len(served.quotas.items)
        has = (
            f"{count} ResourceQuota{'s have' if count > 1 else ' has'} room for" if count else "no ResourceQuota limits"
        )
        yield from _findings(QUOTA, served.name, served.quotas, _quota_faults(served, facts), f"{has} our pods")


def check_limit_ranges(facts: ClusterFacts) -> Iterator[Finding]:
    for served in facts.existing:
        faults = _range_faults(served, facts)
        yield from _findings(RANGE, served.name, served.limit_ranges, faults, "no LimitRange rejects our pods")


def _findings(name: str, namespace: str, read: Listed, faults: Iterator[Finding], good: str) -> Iterator[Finding]:
    """The faults. Without any, that it is good; or that it could not be read."""
    if read.problem:
        yield Finding(Mark.UNKNOWN, name, f"namespace {namespace} not checked: {read.problem}")
        return
    first = next(faults, None)
    yield first or Finding(Mark.OK, name, f"namespace {namespace}: {good}")
    yield from faults


def _quota_faults(served: Served, facts: ClusterFacts) -> Iterator[Finding]:
    for quota in served.quotas.items:
        yield from _faults_of_quota(served, quota, facts)


def _faults_of_quota(served: Served, quota: objects.Object, facts: ClusterFacts) -> Iterator[Finding]:
    name = objects.text(quota, "metadata", "name")
    if mapping(quota, "spec").get("scopes") or mapping(quota, "spec").get("scopeSelector"):
        scoped = f'namespace {served.name}: ResourceQuota "{name}" has scopes, which this check does not evaluate'
        yield Finding(Mark.UNKNOWN, QUOTA, scoped)
        return
    for sample in facts.samples:
        pod = with_defaults(sample, served.limit_ranges.items)
        missing = unstated(pod, quota)
        if missing:
            yield Finding(
                Mark.BAD,
                QUOTA,
                f'namespace {served.name}: ResourceQuota "{name}" limits {missing}, so {_named(pod)} is rejected: '
                "add a LimitRange with a default for it that is above our request, or set it in spec.pod.resources",
            )
            continue
        creation = [Create(Kind.POD, pod, ActionReason.REPLICA_MISSING)]
        _, message = within_quotas(creation, [dict(quota)])
        if message:
            _, never = within_quotas(creation, [_unused(quota)])
            mark = Mark.BAD if never else Mark.WARNING
            yield Finding(mark, QUOTA, f"namespace {served.name}: {message}")


def _unused(quota: objects.Object) -> dict[str, Any]:
    """The same quota in a namespace without pods."""
    return {"metadata": quota["metadata"], "spec": mapping(quota, "spec")}


def _range_faults(served: Served, facts: ClusterFacts) -> Iterator[Finding]:
    for limit_range in served.limit_ranges.items:
        name = objects.text(limit_range, "metadata", "name")
        for sample in facts.samples:
            # One sentence for each pod is enough: a person changes the LimitRange as a whole.
            fault = next(refusals(with_defaults(sample, [limit_range]), [limit_range]), "")
            if fault:
                yield Finding(
                    Mark.BAD,
                    RANGE,
                    f'namespace {served.name}: LimitRange "{name}" rejects {_named(sample)}, because {fault}: change '
                    "the LimitRange, or set spec.pod.resources",
                )


def _named(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["name"])
