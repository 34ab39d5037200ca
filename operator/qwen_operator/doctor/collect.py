"""Reads what the checks look at. Only GET requests, reviews, which are questions, and, if asked for, dry runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen_operator import objects
from qwen_operator.config.load import load
from qwen_operator.config.section import ConfigError
from qwen_operator.config.types import Config, Settings
from qwen_operator.doctor import needed, release
from qwen_operator.doctor.bundle import ObjectFacts
from qwen_operator.doctor.reader import Reader, kept
from qwen_operator.doctor.samples import sample_pods, to_try
from qwen_operator.doctor.types import ClusterFacts, Installation, Listed, Page, Right, Served
from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    EVENTS,
    LEASES,
    NODES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    QWENDEPLOYMENTS,
    RESOURCE_QUOTAS,
    Manifest,
    Resource,
)
from qwen_operator.manifests.names import LABEL_DEPLOYMENT, budget_name, is_pod_name
from qwen_operator.objects import mapping, members

MOST_NAMESPACES = 50
_LOG_BYTES = 2_000_000
_LOG_LINES = 2000
_ENGINE_LOG_BYTES, _ENGINE_LOG_LINES = 400_000, 200
_MOST_LOGGED_PODS = 8

NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
LIMIT_RANGES = Resource("", "v1", "limitranges", "LimitRange")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
DAEMON_SETS = Resource("apps", "v1", "daemonsets", "DaemonSet")
STORAGE_CLASSES = Resource("storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False)
RESOURCE_SLICES = Resource("resource.k8s.io", "v1", "resourceslices", "ResourceSlice", namespaced=False)
DEFINITIONS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
POD_MONITORS = Resource("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor")
PROMETHEUSES = Resource("monitoring.coreos.com", "v1", "prometheuses", "Prometheus")
_ADMISSION = "admissionregistration.k8s.io"
WEBHOOKS, MUTATING_WEBHOOKS, POLICIES, POLICY_BINDINGS = (
    Resource(_ADMISSION, "v1", f"{kind.lower()}{ending}", kind, namespaced=False)
    for kind, ending in (
        ("ValidatingWebhookConfiguration", "s"),
        ("MutatingWebhookConfiguration", "s"),
        ("ValidatingAdmissionPolicies", ""),
        ("ValidatingAdmissionPolicyBinding", "s"),
    )
)
_DEFINITION = f"{QWENDEPLOYMENTS.plural}.{QWENDEPLOYMENTS.group}"
_OPERATORS = "app.kubernetes.io/part-of=qwen-operator,app.kubernetes.io/component=operator"


@dataclass(frozen=True, slots=True)
class Request:
    """What to look at. `namespaces` are those that engines will run in, besides the ones that are known.

    `defaults` are the chart's settings, for a cluster without a release. `now` is in RFC 3339.
    """

    now: str
    namespace: str
    release: str
    namespaces: tuple[str, ...]
    defaults: Settings
    dry_run_pods: bool = False


async def cluster(reader: Reader, request: Request) -> ClusterFacts:
    """Everything that the checks need. It never raises ApiError: what could not be read says why."""
    installation = await read_installation(reader, request.namespace, request.release)
    deployments = await _deployments(reader, installation)
    settings = request.defaults
    if installation.config:
        config = installation.config
        settings = replace(settings, image=config.image, engine=config.engine, pools=config.pools)
    samples = sample_pods(settings)
    names, problem = _namespaces(request, installation, deployments)
    general, served, rights, log = await asyncio.gather(
        _general(reader, installation),
        asyncio.gather(
            *(_served(reader, name, deployments, samples if request.dry_run_pods else ()) for name in names)
        ),
        _rights(reader, installation, names),
        _leader_log(reader, installation),
    )
    gateway = await _gateway(reader, installation)
    return ClusterFacts(
        now=request.now,
        installation=installation,
        samples=samples,
        served=served,
        served_problem=problem,
        deployments=deployments,
        rights=rights,
        log=log,
        gateway=gateway,
        **general,
    )


async def read_installation(reader: Reader, namespace: str, release_name: str) -> Installation:
    """The release of this name, with its settings if they can be read."""
    base = release.base_name(release_name)
    operator = await reader.one(DEPLOYMENTS, namespace, f"{base}-operator")
    if not operator.items:
        return Installation(namespace, base, operator)
    name = release.config_map(operator.first)
    settings = await reader.one(CONFIG_MAPS, namespace, name) if name else Listed(problem="it mounts none")
    config, problem = _config(operator.first, settings, namespace)
    return Installation(namespace, base, operator, config, problem)


def _config(operator: objects.Object, settings: Listed, namespace: str) -> tuple[Config | None, str]:
    if not settings.items:
        return None, settings.problem
    environ = {**release.environment(operator), "QWEN_OPERATOR_NAMESPACE": namespace}
    try:
        return load(environ, objects.text(settings.first, "data", release.SETTINGS)), ""
    except ConfigError as error:
        return None, str(error)


async def _deployments(reader: Reader, installation: Installation) -> Listed:
    """The QwenDeployments that the release serves."""
    watched = release.watched(installation.operator.first)
    if not watched:
        return await reader.listed(QWENDEPLOYMENTS, keep=kept("spec", "status"))
    parts = await asyncio.gather(
        *(reader.listed(QWENDEPLOYMENTS, one, keep=kept("spec", "status")) for one in watched[:MOST_NAMESPACES])
    )
    problem = next((one.problem for one in parts if one.problem), "")
    return Listed([item for one in parts for item in one.items], problem)


def _namespaces(request: Request, installation: Installation, deployments: Listed) -> tuple[tuple[str, ...], str]:
    """The namespaces to look at, and what is not known about them."""
    watched = release.watched(installation.operator.first)
    used = sorted({objects.text(one, "metadata", "namespace") for one in deployments.items})
    names = tuple(dict.fromkeys((*request.namespaces, *watched, *used)))
    problem = "" if deployments.absent or watched else deployments.problem
    if problem:
        problem = f"namespaces with QwenDeployments are not known: {problem}; name them with --watch-namespace"
    elif not names:
        problem = (
            "no namespace checked: none has a QwenDeployment yet; name those that engines will run in with "
            "--watch-namespace"
        )
    elif len(names) > MOST_NAMESPACES:
        problem = f"only {MOST_NAMESPACES} of {len(names)} namespaces were checked; name others with --watch-namespace"
    return names[:MOST_NAMESPACES], problem


async def _general(reader: Reader, installation: Installation) -> dict[str, Any]:
    """The facts of the whole cluster and of the release, by the names of the fields of ClusterFacts."""
    namespace, base = installation.namespace, installation.base
    config = installation.config
    lease = config.lease_name if config else f"{base}-operator"
    reads = {
        "version": reader.json("/version"),
        "nodes": reader.listed(NODES, keep=_node),
        "daemon_sets": reader.listed(DAEMON_SETS, keep=kept()),
        "resource_slices": reader.listed(RESOURCE_SLICES, keep=_driver),
        "storage_classes": reader.listed(STORAGE_CLASSES, keep=kept()),
        "operators": reader.listed(DEPLOYMENTS, labels=_OPERATORS, keep=kept("spec", "status")),
        "webhooks": reader.listed(WEBHOOKS, keep=kept("webhooks")),
        "mutating_webhooks": reader.listed(MUTATING_WEBHOOKS, keep=kept("webhooks")),
        "policies": reader.listed(POLICIES, keep=kept("spec")),
        "policy_bindings": reader.listed(POLICY_BINDINGS, keep=kept("spec")),
        "definition": reader.one(DEFINITIONS, None, _DEFINITION),
        "lease": reader.one(LEASES, namespace, lease),
        "gateways": reader.one(DEPLOYMENTS, namespace, f"{base}-gateway"),
        "operator_pods": reader.listed(PODS, namespace, _own_pods(installation), kept("spec", "status")),
        "pod_monitors": reader.listed(POD_MONITORS, namespace, "app.kubernetes.io/part-of=qwen-operator", kept()),
        "prometheuses": reader.listed(PROMETHEUSES, keep=kept("spec")),
    }
    return dict(zip(reads, await asyncio.gather(*reads.values()), strict=True))


def _own_pods(installation: Installation) -> str:
    labels = mapping(installation.operator.first, "spec", "selector", "matchLabels")
    return ",".join(f"{key}={value}" for key, value in labels.items()) or _OPERATORS


def _node(item: objects.Object) -> Manifest:
    status = mapping(item, "status")
    parts = {key: status[key] for key in ("allocatable", "capacity", "conditions") if key in status}
    return {**kept("spec")(item), "status": parts}


def _driver(item: objects.Object) -> Manifest:
    return {"metadata": {"name": item["metadata"]["name"]}, "spec": {"driver": objects.text(item, "spec", "driver")}}


async def _served(reader: Reader, name: str, deployments: Listed, to_dry_run: Sequence[Mapping[str, Any]]) -> Served:
    namespace, quotas, ranges = await asyncio.gather(
        reader.one(NAMESPACES, None, name), reader.listed(RESOURCE_QUOTAS, name), reader.listed(LIMIT_RANGES, name)
    )
    tried = [(str(pod["metadata"]["name"]), await reader.rejection(PODS, to_try(pod, name))) for pod in to_dry_run]
    own = [one for one in deployments.items if objects.text(one, "metadata", "namespace") == name]
    return Served(name, namespace, quotas, ranges, own, tried)


async def _rights(reader: Reader, installation: Installation, names: tuple[str, ...]) -> list[Right]:
    """The answers to one review for each right of the user and, if there is a release, of its operator.

    These are up to fifteen hundred reviews, a few at a time. The API server stores none of them.
    """
    questions = [("", one) for one in needed.of_user(names, installed=installation.installed)]
    if installation.installed:
        operator, config = installation.operator.first, installation.config
        account = f"system:serviceaccount:{installation.namespace}:{release.service_account(operator)}"
        watched = release.watched(operator)[:MOST_NAMESPACES]
        reads_nodes = config.read_nodes if config else False
        rights = list(needed.of_operator(watched, reads_nodes=reads_nodes))
        # Without the right to ask, one question is enough to say so.
        allowed = await reader.reviewed(needed.review(rights[0], account))
        questions += [(account, one) for one in (rights[:1] if allowed[1] else rights)]
    answers = await asyncio.gather(*(reader.reviewed(needed.review(one, account)) for account, one in questions))
    return [
        Right(account, verb, resource, namespace, allowed, problem)
        for (account, (verb, resource, namespace)), (allowed, problem) in zip(questions, answers, strict=True)
    ]


async def _leader_log(reader: Reader, installation: Installation) -> Page:
    """The log of the pod that holds the Lease."""
    if not installation.installed:
        return Page(problem="there is no operator")
    namespace, config = installation.namespace, installation.config
    name = config.lease_name if config else f"{installation.base}-operator"
    lease = await reader.one(LEASES, namespace, name)
    holder = objects.text(lease.first, "spec", "holderIdentity")
    if not holder:
        return Page(problem=lease.problem or "no pod holds the Lease")
    query = {"container": release.CONTAINER, "tailLines": str(_LOG_LINES)}
    pod = holder.rpartition("_")[0] or holder
    return await reader.page(f"get pods/log in {namespace}", PODS.path(namespace, pod, "log"), query, _LOG_BYTES)


async def _gateway(reader: Reader, installation: Installation) -> Page:
    if not installation.installed:
        return Page()
    namespace = installation.namespace
    path = f"/api/v1/namespaces/{namespace}/services/http:{installation.base}-gateway:http/proxy/v1/models"
    return await reader.page(f"get services/proxy in {namespace}", path, {}, 10_000)


async def deployment(reader: Reader, request: Request, name: str, version: str) -> ObjectFacts:
    """Everything about the QwenDeployment `name` in `request.namespaces[0]`."""
    namespace = request.namespaces[0]
    selector = f"{LABEL_DEPLOYMENT}={name}"
    found, pods, events, revisions, installation = await asyncio.gather(
        reader.one(QWENDEPLOYMENTS, namespace, name),
        reader.listed(PODS, namespace, selector, kept("spec", "status")),
        reader.listed(EVENTS, namespace),
        reader.listed(CONTROLLER_REVISIONS, namespace, selector, _revision),
        read_installation(reader, request.namespace, request.release),
    )
    logs, nodes, log = await asyncio.gather(
        _logs(reader, namespace, pods), _nodes_of(reader, pods), _leader_log(reader, installation)
    )
    return ObjectFacts(
        now=request.now,
        version=version,
        name=name,
        namespace=namespace,
        deployment=found,
        pods=pods,
        events=_about(name, pods, events),
        revisions=revisions,
        nodes=nodes,
        logs=logs,
        operator_log=log,
    )


def _revision(item: objects.Object) -> Manifest:
    return {"metadata": {"name": item["metadata"]["name"]}, "revision": item.get("revision")}


def _about(name: str, pods: Listed, events: Listed) -> Listed:
    """The Events of the object, of its PodDisruptionBudget and of its pods, also of those that are gone."""
    present = {objects.text(pod, "metadata", "name") for pod in pods.items}
    exact = {(QWENDEPLOYMENTS.kind, name), (POD_DISRUPTION_BUDGETS.kind, budget_name(name))}

    def is_about(event: Mapping[str, Any]) -> bool:
        kind, target = (objects.text(event, "involvedObject", part) for part in ("kind", "name"))
        return (kind, target) in exact or (kind == PODS.kind and (target in present or is_pod_name(name, target)))

    return Listed([event for event in events.items if is_about(event)], events.problem)


async def _nodes_of(reader: Reader, pods: Listed) -> Listed:
    names = sorted({node for pod in pods.items if (node := objects.node_of(pod))})[:_MOST_LOGGED_PODS]
    nodes = await asyncio.gather(*(reader.one(NODES, None, name) for name in names))
    problem = next((one.problem for one in nodes if one.problem), "")
    return Listed([item for one in nodes for item in one.items], problem)


async def _logs(reader: Reader, namespace: str, pods: Listed) -> dict[str, Page]:
    """The last lines of each container, and those of its previous run if it has restarted."""
    wanted = [
        (pod, container, previous)
        for pod in list(pods.items)[:_MOST_LOGGED_PODS]
        for key in ("initContainerStatuses", "containerStatuses")
        for container in members(pod, "status", key)
        for previous in (True, False)
        if not previous or container.get("restartCount")
    ]
    reads: dict[str, Any] = {}
    for pod, container, previous in wanted:
        name, label = objects.text(pod, "metadata", "name"), str(container.get("name"))
        query = {"container": label, "tailLines": str(_ENGINE_LOG_LINES)} | ({"previous": "true"} if previous else {})
        title = f"log of {name}/{label}{' before its last restart' if previous else ''}"
        path = PODS.path(namespace, name, "log")
        reads[title] = reader.page(f"get pods/log in {namespace}", path, query, _ENGINE_LOG_BYTES)
    return dict(zip(reads, await asyncio.gather(*reads.values()), strict=True))
