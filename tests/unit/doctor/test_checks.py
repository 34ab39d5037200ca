"""Each check: facts in, findings out."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_operator.api.crd import definition
from qwen_operator.controller import hub_reader
from qwen_operator.doctor import checks
from qwen_operator.doctor.checks import hub, kubernetes
from qwen_operator.doctor.types import ClusterFacts, Finding, Listed, Mark, Page, Right
from qwen_operator.manifests.multi_node import MultiNode, MultiNodes
from tests.unit.doctor.facts import cluster, installed, named, operator, served
from tests.unit.world import CONFIG

ROOT = Path(__file__).parents[3]
UNREAD = Listed(problem="you may not list it")
NODE = named(
    "gpu-1",
    labels={"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034"},
    status={"allocatable": {"nvidia.com/gpu": "4"}, "capacity": {"nvidia.com/gpu": "4"}},
)
BARE = named("bare", status={"allocatable": {"cpu": "8"}})
POD_RULE = {"apiGroups": [""], "resources": ["pods"], "operations": ["CREATE"]}


def of(name: str, facts: ClusterFacts) -> list[Finding]:
    return [one for one in checks.run(facts) if one.name == name]


def only(name: str, facts: ClusterFacts) -> Finding:
    (finding,) = of(name, facts)
    return finding


@pytest.mark.parametrize(
    ("version", "mark"),
    [("v1.36.0", Mark.OK), ("v1.30.4-gke.1", Mark.OK), ("v1.29.9", Mark.BAD), ("1.9", Mark.BAD), ("x", Mark.UNKNOWN)],
)
def test_kubernetes_version(version: str, mark: Mark) -> None:
    assert only("kubernetes", cluster(version=Listed([{"gitVersion": version}]))).mark is mark


def test_the_oldest_version_is_that_of_the_chart() -> None:
    chart = yaml.safe_load((ROOT / "charts/qwen-operator/Chart.yaml").read_text())
    assert chart["kubeVersion"] == ">=" + ".".join(map(str, kubernetes.OLDEST)) + ".0-0"


def test_gpus_are_read_as_for_a_plan() -> None:
    shared = deepcopy(NODE)
    shared["metadata"] |= {"name": "shared", "labels": {**NODE["metadata"]["labels"], "nvidia.com/gpu.replicas": "4"}}
    plain = named("plain", status={"allocatable": {"nvidia.com/gpu": "8"}})

    rows = of("gpus", cluster(nodes=Listed([NODE, shared, plain, BARE])))

    assert [one.mark for one in rows] == [Mark.OK, Mark.WARNING, Mark.WARNING]
    assert "4 x NVIDIA-L4 (23034 MiB each) on 1 node" in rows[0].message
    assert "kubectl label node plain" in rows[1].message
    assert "shared" in rows[2].message
    assert "nvidia.com/gpu.replicas=4" in rows[2].message


def test_a_cluster_without_gpus() -> None:
    assert only("gpus", cluster(nodes=Listed([BARE]))).mark is Mark.BAD
    assert only("gpus", cluster(nodes=UNREAD)).message == "not checked: you may not list it"


@pytest.mark.parametrize(
    ("facts", "mark", "part"),
    [
        (cluster(nodes=Listed([NODE])), Mark.OK, "1 node offers"),
        (cluster(nodes=Listed([BARE])), Mark.BAD, "install the NVIDIA GPU operator"),
        (
            cluster(
                nodes=Listed([BARE]), daemon_sets=Listed([named("nvidia-device-plugin-daemonset", "gpu-operator")])
            ),
            Mark.BAD,
            "gpu-operator/nvidia-device-plugin-daemonset runs, but no node offers",
        ),
        (
            cluster(nodes=Listed([BARE]), resource_slices=Listed([named("s", spec={"driver": "gpu.nvidia.com"})])),
            Mark.BAD,
            "by DRA only",
        ),
        (cluster(nodes=UNREAD), Mark.UNKNOWN, "may not list"),
    ],
)
def test_the_device_plugin(facts: ClusterFacts, mark: Mark, part: str) -> None:
    finding = only("device-plugin", facts)
    assert (finding.mark, part in finding.message) == (mark, True), finding.message


def test_storage_classes() -> None:
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    one, two, other = named("a", annotations=default), named("b", annotations=default), named("c")
    for classes, mark, part in (
        ([one, other], Mark.OK, "is a"),
        ([one, two], Mark.WARNING, "a, b are all default"),
        ([other], Mark.WARNING, "no StorageClass is the default"),
        ([], Mark.WARNING, "has no StorageClass"),
    ):
        finding = only("storage", cluster(storage_classes=Listed(classes)))
        assert finding.mark is mark
        assert part in finding.message


def quota(**hard: str) -> Any:
    return named("q", spec={"hard": hard}, status={"hard": hard, "used": {}})


@pytest.mark.parametrize(
    ("hard", "parts"),
    [
        ({"limits.cpu": "8"}, ["limits.cpu", "does not state", "an engine pod"]),
        ({"limits.memory": "8Gi"}, ["limits.memory, which container engine does not state"]),
        ({"requests.nvidia.com/gpu": "0"}, ["allows 0 requests.nvidia.com/gpu"]),
        ({"pods": "0"}, ["allows 0 pods"]),
        ({"requests.memory": "100Mi"}, ["allows 100Mi requests.memory"]),
    ],
)
def test_a_quota_that_rejects_our_pods(hard: dict[str, str], parts: list[str]) -> None:
    rows = of("quota", cluster(served=(served(quotas=Listed([quota(**hard)])),)))
    text = " | ".join(one.message for one in rows)
    assert {one.mark for one in rows} == {Mark.BAD}, text
    assert all(part in text for part in parts), text


def test_a_quota_with_room_or_in_use() -> None:
    free = quota(**{"requests.nvidia.com/gpu": "2", "pods": "9", "count/services": "3"})
    used = deepcopy(free)
    used["status"]["used"] = {"requests.nvidia.com/gpu": "2"}
    assert only("quota", cluster(served=(served(quotas=Listed([free])),))).mark is Mark.OK
    assert only("quota", cluster(served=(served(quotas=Listed([used])),))).mark is Mark.WARNING
    scoped = named("q", spec={"scopes": ["BestEffort"], "hard": {"pods": "0"}})
    assert only("quota", cluster(served=(served(quotas=Listed([scoped])),))).mark is Mark.UNKNOWN


def test_a_limit_range_can_give_the_limits_that_a_quota_wants() -> None:
    defaults = {"type": "Container", "default": {"cpu": "64", "memory": "900Gi"}}
    ranges = Listed([named("r", spec={"limits": [defaults]})])
    facts = cluster(served=(served(quotas=Listed([quota(**{"limits.cpu": "200"})]), limit_ranges=ranges),))
    assert only("quota", facts).mark is Mark.OK
    assert only("limit-range", facts).mark is Mark.OK


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        ({"type": "Container", "max": {"memory": "1Gi"}}, "container engine has no limit for memory"),
        ({"type": "Container", "default": {"memory": "1Gi"}}, "and its default limit is 1Gi"),
        ({"type": "Container", "max": {"cpu": "100m"}, "default": {"cpu": "100m"}}, "default limit is 100m"),
        ({"type": "Container", "min": {"memory": "128Mi"}}, "requests 64Mi memory, and the least is 128Mi"),
        ({"type": "Container", "maxLimitRequestRatio": {"memory": "2"}}, "the ratio may be 2"),
        ({"type": "Pod", "max": {"memory": "1Gi"}}, "the pod has no limit for memory"),
    ],
)
def test_a_limit_range_that_rejects_our_pods(rule: dict[str, Any], part: str) -> None:
    rows = of("limit-range", cluster(served=(served(limit_ranges=Listed([named("r", spec={"limits": [rule]})])),)))
    assert {one.mark for one in rows} == {Mark.BAD}
    assert part in " | ".join(one.message for one in rows)


@pytest.mark.parametrize(
    ("level", "pod", "mark", "part"),
    [
        ("restricted", {}, Mark.OK, "enforces restricted"),
        (None, {}, Mark.WARNING, "enforces no Pod Security Standard"),
        ("baseline", {"volumes": [{"name": "h", "hostPath": {}}]}, Mark.BAD, "spec.pod.volumes h (hostPath)"),
        ("restricted", {"volumes": [{"name": "n", "nfs": {}}]}, Mark.BAD, "spec.pod.volumes n (nfs)"),
        ("baseline", {"volumes": [{"name": "n", "nfs": {}}]}, Mark.OK, "enforces baseline"),
        ("restricted", {"securityContext": {"runAsUser": 0}}, Mark.BAD, "runAsUser (0)"),
        ("restricted", {"securityContext": {"runAsNonRoot": False}}, Mark.BAD, "runAsNonRoot (false)"),
        ("baseline", {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, Mark.BAD, "seccompProfile"),
    ],
)
def test_pod_security(level: str | None, pod: dict[str, Any], mark: Mark, part: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": level} if level else {}
    deployment = named("root", "team-a", spec={"pod": pod})
    one = served(namespace=Listed([named("team-a", labels=labels)]), deployments=[deployment])
    finding = only("pod-security", cluster(served=(one,)))
    assert finding.mark is mark
    assert part in finding.message


@pytest.mark.parametrize(
    ("level", "most", "mark", "part"),
    [
        ("baseline", 2, Mark.BAD, "forbids multiNode.hostNetwork of the chart, but QwenDeployment wide may run over"),
        ("baseline", 1, Mark.OK, "enforces baseline"),
        ("privileged", 2, Mark.OK, "enforces privileged"),
        ("privileged", 1, Mark.WARNING, "enforces no Pod Security Standard"),
    ],
)
def test_pod_security_of_what_the_chart_gives_replicas_over_several_nodes(
    level: str, most: int, mark: Mark, part: str
) -> None:
    config = replace(CONFIG, multi_nodes=MultiNodes(MultiNode(host_network=True)))
    labels = {"pod-security.kubernetes.io/enforce": level}
    wide = named("wide", "team-a", spec={"hardware": {"maxNodesPerReplica": most}})
    one = served(namespace=Listed([named("team-a", labels=labels)]), deployments=[wide])
    finding = only("pod-security", cluster(installation=installed(config), served=(one,)))
    assert finding.mark is mark
    assert part in finding.message


@pytest.mark.parametrize(
    ("labels", "annotations", "warned"),
    [
        ({"istio-injection": "enabled"}, {}, True),
        ({"istio-injection": "disabled"}, {}, False),
        ({"istio.io/rev": "canary"}, {}, True),
        ({"istio.io/dataplane-mode": "ambient"}, {}, True),
        ({"istio.io/dataplane-mode": "none"}, {}, False),
        ({}, {"linkerd.io/inject": "enabled"}, True),
        ({}, {}, False),
    ],
)
def test_meshes(labels: dict[str, str], annotations: dict[str, str], warned: bool) -> None:
    one = served(namespace=Listed([named("team-a", labels=labels, annotations=annotations)]))
    assert only("mesh", cluster(served=(one,))).mark is (Mark.WARNING if warned else Mark.OK)


@pytest.mark.parametrize(
    ("webhook", "warned"),
    [
        ({"rules": [POD_RULE]}, True),
        ({"rules": [{**POD_RULE, "apiGroups": ["*"], "resources": ["*/*"], "operations": ["*"]}]}, True),
        ({"rules": [{**POD_RULE, "operations": ["DELETE"]}]}, False),
        ({"rules": [{**POD_RULE, "resources": ["pods/exec"]}]}, False),
        ({"rules": [{**POD_RULE, "apiGroups": ["apps"]}]}, False),
        ({"rules": [POD_RULE], "namespaceSelector": {"matchLabels": {"guard": "on"}}}, False),
        (
            {
                "rules": [POD_RULE],
                "namespaceSelector": {
                    "matchExpressions": [
                        {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["team-a"]}
                    ]
                },
            },
            False,
        ),
        ({"rules": [POD_RULE], "objectSelector": {"matchLabels": {"app": "theirs"}}}, False),
        ({"rules": "many"}, False),
    ],
)
def test_webhooks_that_see_our_pods(webhook: dict[str, Any], warned: bool) -> None:
    configuration = named("w", webhooks=[{"name": "w.example", **webhook}])
    for field in ("webhooks", "mutating_webhooks"):
        finding = only("admission", cluster(**{field: Listed([configuration])}))
        assert finding.mark is (Mark.WARNING if warned else Mark.OK)
        assert ("w.example" in finding.message) is warned


def test_admission_policies() -> None:
    policy = named("p", spec={"matchConstraints": {"resourceRules": [POD_RULE]}})
    deny = named("b", spec={"policyName": "p", "validationActions": ["Deny"]})
    audit = named("b", spec={"policyName": "p", "validationActions": ["Audit"]})
    ours = named("p", labels={"app.kubernetes.io/part-of": "qwen-operator"}, spec=policy["spec"])
    for one, binding, mark in ((policy, deny, Mark.WARNING), (policy, audit, Mark.OK), (ours, deny, Mark.OK)):
        facts = cluster(policies=Listed([one]), policy_bindings=Listed([binding]))
        assert only("admission", facts).mark is mark
    assert only("admission", cluster(policies=UNREAD)).mark is Mark.UNKNOWN


def test_dry_runs() -> None:
    tried = (("an engine pod", ""), ("an inspection pod", "exceeded quota"))
    rows = of("dry-run", cluster(served=(served(tried=tried),)))
    assert [one.mark for one in rows] == [Mark.OK, Mark.BAD]
    assert "exceeded quota" in rows[1].message


def crd(**changes: Any) -> dict[str, Any]:
    stored = deepcopy(definition())
    stored["metadata"] |= {"annotations": {"meta.helm.sh/release-name": "qwen", "meta.helm.sh/release-namespace": "q"}}
    stored["status"] = {"conditions": [{"type": "Established", "status": "True"}]}
    return stored | changes


def test_the_definition() -> None:
    assert "Helm release q/qwen" in only("definition", cluster(definition=Listed([crd()]))).message
    other = crd()
    schema = other["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["replicas"]["maximum"] = 3
    finding = only("definition", cluster(definition=Listed([other])))
    assert finding.mark is Mark.WARNING
    assert "properties.spec.properties.replicas.maximum" in finding.message
    extra = crd()
    extra["spec"]["versions"].append({"name": "v2"})
    assert "more versions: v2" in only("definition", cluster(definition=Listed([extra]))).message
    waiting = crd(status={"conditions": [{"type": "Established", "status": "False", "message": "names taken"}]})
    assert "names taken" in of("definition", cluster(definition=Listed([waiting])))[0].message
    absent = Listed(problem="404", absent=True)
    assert only("definition", cluster(definition=absent)).mark is Mark.BAD
    assert only("definition", cluster(definition=absent, installation=installed(operator=absent))).mark is Mark.OK
    applied = crd()
    applied["metadata"] = {
        "name": "x",
        "managedFields": [{"manager": "argocd"}, {"manager": "api", "subresource": "status"}],
    }
    assert "managed by argocd" in only("definition", cluster(definition=Listed([applied]))).message


def test_operator_pods() -> None:
    assert only("operator", cluster()).mark is Mark.OK
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    waiting = named("qwen-operator-1", status={"containerStatuses": [{"state": state}]})
    facts = cluster(installation=installed(operator=Listed([operator(ready=0)])), operator_pods=Listed([waiting]))
    assert "0 of 2 pods are ready: qwen-operator-1 waits: ImagePullBackOff" in only("operator", facts).message
    absent = cluster(installation=installed(operator=Listed(problem="404", absent=True)))
    assert only("operator", absent).mark is Mark.WARNING
    hidden = cluster(installation=installed(operator=UNREAD))
    assert only("operator", hidden).mark is Mark.UNKNOWN


@pytest.mark.parametrize(
    ("spec", "mark", "part"),
    [
        (
            {"holderIdentity": "qwen-operator-1_2026", "renewTime": "2026-11-28T11:59:58Z"},
            Mark.OK,
            "qwen-operator-1 holds",
        ),
        ({"holderIdentity": "qwen-operator-1_2026", "renewTime": "2026-11-28T11:00:00Z"}, Mark.BAD, "for 3600 s"),
        ({"holderIdentity": "laptop_2026", "renewTime": "2026-11-28T11:59:58Z"}, Mark.WARNING, "make dev"),
        ({"holderIdentity": ""}, Mark.BAD, "no operator pod holds"),
        ({}, Mark.BAD, "no operator pod holds"),
    ],
)
def test_the_lease(spec: dict[str, str], mark: Mark, part: str) -> None:
    pods = Listed([named("qwen-operator-1", status={})])
    finding = only("lease", cluster(lease=Listed([named("l", spec=spec)]), operator_pods=pods))
    assert finding.mark is mark
    assert part in finding.message


@pytest.mark.parametrize(
    ("mine", "other", "clash"),
    [("", "", "all namespaces"), ("team-a", "", "team-a"), ("team-a", "team-a,team-b", "team-a"), ("team-a", "b", "")],
)
def test_a_second_release(mine: str, other: str, clash: str) -> None:
    own = operator(watched=mine)
    listed = Listed([own, operator("other", "o-operator", watched=other)])
    finding = only("second-release", cluster(installation=installed(operator=Listed([own])), operators=listed))
    assert finding.mark is (Mark.BAD if clash else Mark.OK)
    assert clash in finding.message


@pytest.mark.parametrize(("other", "what"), [("", "all namespaces"), ("team-b,team-a", "team-a, team-b")])
def test_another_release_before_the_own_one_is_installed(other: str, what: str) -> None:
    """Nothing acts twice yet. Perhaps the release has another name than --release says."""
    listed = Listed([operator("other", "o-operator", watched=other)])
    absent = installed(None, operator=Listed(absent=True))
    finding = only("second-release", cluster(installation=absent, operators=listed))
    assert finding.mark is Mark.WARNING
    assert f"other/o-operator serves {what}: give a new release" in finding.message
    assert "--release" in finding.message


def test_rights() -> None:
    account = "system:serviceaccount:qwen-system:qwen-operator"
    rights = [
        Right("", "create", "qwendeployments.qwen-operator.dev", "team-a", True),
        Right("", "get", "pods/log", "team-a", False),
        Right(account, "create", "pods", "", True),
    ]
    user, operators = of("rights", cluster(rights=rights))
    assert user.mark is Mark.WARNING
    assert "you may not get pods/log in team-a" in user.message
    assert operators.mark is Mark.OK
    assert "qwen-system/qwen-operator" in operators.message
    some = replace(installed(), operator=Listed([operator(watched="team-a,team-b")]))
    (part,) = of("rights", cluster(installation=some, rights=[Right(account, "create", "pods", "team-a", True)]))
    assert part.message.endswith("all rights that this version needs in the 1 of 2 namespaces that were checked")
    (lacks,) = of("rights", cluster(rights=[Right(account, "create", "pods", "", False)]))
    assert lacks.mark is Mark.BAD
    (unknown,) = of("rights", cluster(rights=[Right(account, "create", "pods", "", False, "you may not ask")]))
    assert unknown.mark is Mark.UNKNOWN


FAILURE = json.dumps({"level": "WARNING", "message": hub.FAILED, "error": "hub.example cannot be reached"})


@pytest.mark.parametrize(
    ("log", "from_hub", "mark"),
    [
        (FAILURE, True, Mark.BAD),
        ("", True, Mark.OK),
        ("", False, Mark.UNKNOWN),
        ('{"x": "cannot read the hub"', True, Mark.OK),
    ],
)
def test_the_hub_by_what_the_operator_has_experienced(log: str, from_hub: bool, mark: Mark) -> None:
    deployment = named("d", "team-a", status={"model": {"factsFrom": "Hub" if from_hub else "Catalog"}})
    facts = cluster(
        installation=installed(replace(CONFIG, hub_lookup=True)), log=Page(log, 200), deployments=Listed([deployment])
    )
    finding = only("hub", facts)
    assert finding.mark is mark, finding.message


def test_a_hub_that_is_not_asked() -> None:
    assert only("hub", cluster(installation=installed(replace(CONFIG, hub_lookup=False)))).mark is Mark.OK
    assert only("hub", cluster(installation=installed(None))).mark is Mark.UNKNOWN


def test_the_log_message_of_a_failed_reading_is_that_of_the_reader() -> None:
    assert f'log.warning("{hub.FAILED}"' in Path(hub_reader.__file__).read_text()


def prometheus(**labels: str) -> Listed:
    return Listed([named("p", "monitoring", spec={"podMonitorSelector": {"matchLabels": labels} if labels else {}})])


@pytest.mark.parametrize(
    ("monitors", "prometheuses", "mark", "part"),
    [
        (Listed(absent=True, problem="404"), Listed(), Mark.OK, "leave monitoring.enabled at false"),
        (UNREAD, Listed(), Mark.UNKNOWN, "may not"),
        (Listed(), Listed(), Mark.WARNING, "set monitoring.enabled to true"),
        (Listed([named("m", labels={"release": "kps"})]), prometheus(release="kps"), Mark.OK, "monitoring/p selects"),
        (Listed([named("m", labels={})]), prometheus(), Mark.OK, "selects"),
        (Listed([named("m", labels={})]), prometheus(release="kps"), Mark.WARNING, "set monitoring.labels"),
    ],
)
def test_monitoring(monitors: Listed, prometheuses: Listed, mark: Mark, part: str) -> None:
    finding = only("monitoring", cluster(pod_monitors=monitors, prometheuses=prometheuses))
    assert finding.mark is mark
    assert part in finding.message


@pytest.mark.parametrize(
    ("page", "mark"),
    [
        (Page("{}", 200), Mark.OK),
        (Page("", 401, "no key"), Mark.OK),
        (Page("", 404, "no such Service"), Mark.BAD),
        (Page("", 503, "no endpoints available"), Mark.BAD),
        (Page("", 403, "you may not get services/proxy"), Mark.UNKNOWN),
        (Page("", 0, "no answer within 20 s"), Mark.UNKNOWN),
        (Page("", 503, '{"error": "no model"}', proxied=True), Mark.WARNING),
        (Page("", 503, "Error trying to reach service: 'dial tcp'", proxied=True), Mark.BAD),
    ],
)
def test_the_gateway(page: Page, mark: Mark) -> None:
    assert only("gateway", cluster(gateway=page)).mark is mark


def test_an_api_server_without_a_way_to_pods_is_no_fault_of_the_gateway() -> None:
    page = Page("", 502, "Error trying to reach service: 'dial tcp: timeout'", proxied=True)
    ready = Listed([named("qwen-gateway", spec={"replicas": 2}, status={"readyReplicas": 2})])
    finding = only("gateway", cluster(gateway=page, gateways=ready))
    assert finding.mark is Mark.UNKNOWN
    assert "2 of 2 pods are ready" in finding.message


def test_namespaces() -> None:
    gone = served(namespace=Listed(problem="404", absent=True))
    rows = of("namespaces", cluster(served=(gone,), served_problem="only 50 of 60"))
    assert [one.mark for one in rows] == [Mark.UNKNOWN, Mark.BAD]
    assert not of("quota", cluster(served=(gone,)))


@pytest.mark.parametrize("junk", [{}, [], "x", 7, None, {"spec": []}, {"spec": {"hard": [], "limits": {"a": 1}}}])
def test_objects_of_any_form_end_no_check(junk: Any) -> None:
    listed = Listed([{**named("x"), "spec": junk, "status": junk, "webhooks": junk, "data": junk}])
    fields = ("version", "nodes", "daemon_sets", "resource_slices", "storage_classes", "operators", "webhooks",
              "mutating_webhooks", "policies", "policy_bindings", "definition", "deployments", "lease",
              "operator_pods", "pod_monitors", "prometheuses")  # fmt: skip
    one = served(namespace=listed, quotas=listed, limit_ranges=listed, deployments=listed.items)
    facts = cluster(**dict.fromkeys(fields, listed), served=(one,), installation=installed(operator=listed))
    assert not [row for row in checks.run(facts) if "please report" in row.message]


def test_a_check_that_fails_becomes_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_facts: ClusterFacts) -> list[Finding]:
        raise KeyError("x")

    monkeypatch.setitem(checks.CHECKS, "storage", broken)
    finding = only("storage", cluster())
    assert finding.mark is Mark.UNKNOWN
    assert "KeyError" in finding.message
