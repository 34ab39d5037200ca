"""What a pod takes of its node, as kube-scheduler counts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from qwen_operator import objects
from qwen_operator.manifests.names import Manifest
from qwen_operator.manifests.quantities import amount

Amounts = dict[str, Decimal]


def resources_of(pod: Manifest) -> Amounts:
    """What the pod takes of its node, by resource.

    As kube-scheduler counts (pkg/api/v1/resource, PodRequests): the sum over the containers and the sidecars, or the
    largest init container with the sidecars before it, and the overhead.
    """
    total: Amounts = {}
    for container in objects.members(pod, "spec", "containers"):
        add(total, _needs(container))
    sidecars: Amounts = {}
    largest: Amounts = {}
    for container in objects.members(pod, "spec", "initContainers"):
        needs = _needs(container)
        if container.get("restartPolicy") == "Always":
            add(sidecars, needs)
            needs = {}
        for name in {*needs, *sidecars}:
            at_once = needs.get(name, Decimal(0)) + sidecars.get(name, Decimal(0))
            largest[name] = max(largest.get(name, Decimal(0)), at_once)
    add(total, sidecars)
    for name, value in largest.items():
        total[name] = max(total.get(name, Decimal(0)), value)
    add(total, amounts(objects.mapping(pod, "spec", "overhead")))
    return total


def amounts(values: objects.Object) -> Amounts:
    """The quantities as numbers, without what is none."""
    return {str(name): number for name, value in values.items() if (number := amount(value)) is not None}


def add(total: Amounts, more: Mapping[str, Decimal]) -> None:
    """Add each resource to the total."""
    for name, value in more.items():
        total[name] = total.get(name, Decimal(0)) + value


def _needs(container: objects.Object) -> Amounts:
    """Requests of a container. A limit without a request is its request."""
    resources = objects.mapping(container, "resources")
    return {**amounts(objects.mapping(resources, "limits")), **amounts(objects.mapping(resources, "requests"))}
