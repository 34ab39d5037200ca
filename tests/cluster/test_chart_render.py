"""What the chart renders, by the real Helm; the last tests ask the real API server about it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from qwen_operator.config.load import load
from qwen_operator.config.plans import settings
from qwen_operator.gateway.settings import ProxySettings
from qwen_operator.gateway.tenants import Limits, read_tenants
from qwen_operator.manifests import names
from qwen_operator.tenancy.lists import Setting
from tests.cluster.chart import (
    CHART,
    POOL,
    ROOT,
    TESTBED,
    VALUES,
    Manifest,
    all_values,
    config,
    containers,
    environment,
    helm,
    newer_chart,
    of_kind,
    one,
    pods,
    refused,
    render,
    text,
)
from tests.testbed.kubectl import Kubectl, wait_for

pytestmark = pytest.mark.cluster
# Helm refuses a second release that has it: both would serve all namespaces.
ALL_NAMESPACES = "qwen-operator-serves-all-namespaces"


@all_values
def test_lint_is_clean(values: Manifest) -> None:
    done = helm("lint", "--strict", str(CHART), values=values)
    assert done.returncode == 0, done.stdout + done.stderr


@all_values
def test_two_renders_are_the_same_bytes(values: Manifest) -> None:
    assert text(values) == text(values)


def test_the_objects_have_these_names() -> None:
    """What the documentation, the demo and users rely on."""
    names = {(m["kind"], m["metadata"]["name"]) for m in render({})}
    assert names == {
        ("CustomResourceDefinition", "qwendeployments.qwen-operator.dev"),
        ("ServiceAccount", "qwen-operator"),
        ("ServiceAccount", "qwen-gateway"),
        ("ConfigMap", "qwen-operator"),
        ("ConfigMap", "qwen-gateway-tenants"),
        ("Deployment", "qwen-operator"),
        ("Deployment", "qwen-gateway"),
        ("Service", "qwen-operator"),
        ("Service", "qwen-gateway"),
        ("Service", "qwen-gateway-peers"),
        ("ClusterRole", "qwen-system.qwen-operator"),
        ("ClusterRole", "qwen-system.qwen-gateway"),
        ("ClusterRole", "qwen-system.qwen-view"),
        ("ClusterRole", "qwen-system.qwen-edit"),
        ("ClusterRoleBinding", "qwen-system.qwen-operator"),
        ("ClusterRoleBinding", "qwen-system.qwen-gateway"),
        ("NetworkPolicy", "qwen-operator"),
        ("NetworkPolicy", "qwen-gateway"),
        ("ClusterRole", ALL_NAMESPACES),
        ("ValidatingAdmissionPolicy", "qwen-system.qwen-tenants"),
        ("ValidatingAdmissionPolicyBinding", "qwen-system.qwen-tenants"),
        ("ValidatingAdmissionPolicy", "qwen-system.qwen-operator"),
        ("ValidatingAdmissionPolicyBinding", "qwen-system.qwen-operator"),
        ("PodDisruptionBudget", "qwen-operator"),
        ("PodDisruptionBudget", "qwen-gateway"),
        ("Role", "qwen-operator-lease"),
        ("RoleBinding", "qwen-operator-lease"),
        ("Role", "qwen-gateway-keys"),
        ("RoleBinding", "qwen-gateway-keys"),
        ("Pod", "qwen-test"),
    }
    assert names == {(m["kind"], m["metadata"]["name"]) for m in render({}, release="qwen-operator")}


@all_values
def test_names_stay_short_and_distinct(values: Manifest) -> None:
    one_team, other_team = "n" * 62 + "a", "n" * 62 + "b"
    manifests = render(values, release="r" * 53, namespace=one_team)
    for m in manifests:
        assert m["kind"] == "CustomResourceDefinition" or len(m["metadata"]["name"]) <= 63
        assert all(len(value) <= 63 for value in m["metadata"]["labels"].values())
    kinds = (
        "ClusterRole",
        "ClusterRoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    )
    others = of_kind(render(values, release="r" * 53, namespace=other_team), *kinds)
    mine = {(m["kind"], m["metadata"]["name"]) for m in of_kind(manifests, *kinds)}
    theirs = {(m["kind"], m["metadata"]["name"]) for m in others}
    assert mine & theirs <= {("ClusterRole", ALL_NAMESPACES)}


def test_cluster_scoped_names_of_two_releases_never_meet() -> None:
    """Also not where namespace and release are cut at another hyphen."""

    def roles(release: str, namespace: str) -> set[str]:
        kinds = ("ClusterRole", "ClusterRoleBinding")
        manifests = of_kind(render({}, release=release, namespace=namespace), *kinds)
        return {m["metadata"]["name"] for m in manifests} - {ALL_NAMESPACES}

    assert roles("c", "a-b").isdisjoint(roles("b-c", "a"))
    assert roles("qwen", "team-a").isdisjoint(roles("qwen", "team-b"))


def test_without_keys_there_is_no_secret() -> None:
    manifests = render(VALUES["open"])
    spec = one(manifests, "Deployment", "qwen-gateway")["spec"]["template"]["spec"]
    assert [volume["name"] for volume in spec["volumes"] if "secret" in volume] == []
    assert environment(manifests, "qwen-gateway", "proxy")["QWEN_GATEWAY_AUTH"] == "none"
    assert config(manifests)["gateway"]["auth"] == "none"


def test_with_keys_the_proxy_waits_for_the_secret_that_the_operator_makes() -> None:
    manifests = render({})
    spec = one(manifests, "Deployment", "qwen-gateway")["spec"]["template"]["spec"]
    (volume,) = [volume for volume in spec["volumes"] if "secret" in volume]
    assert volume["secret"] == {"secretName": "qwen-gateway-keys", "defaultMode": 0o440}
    assert config(manifests)["gateway"] == {
        "namespace": "qwen-system",
        "keysSecret": "qwen-gateway-keys",
        "createKeys": True,
        "auth": "keys",
        "holdSeconds": 540,
        "podLabels": {
            "app.kubernetes.io/name": "qwen-operator",
            "app.kubernetes.io/instance": "qwen",
            "app.kubernetes.io/component": "gateway",
        },
    }


def test_somebody_else_may_create_the_keys() -> None:
    manifests = render({"gateway": {"keys": {"create": False}, "keysSecret": "from-the-vault"}})
    spec = one(manifests, "Deployment", "qwen-gateway")["spec"]["template"]["spec"]
    assert [v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v] == ["from-the-vault"]
    assert config(manifests)["gateway"]["createKeys"] is False
    assert "qwen-gateway-keys" not in {m["metadata"]["name"] for m in of_kind(manifests, "Role")}


def test_only_the_proxy_sees_keys_and_is_reached_by_clients() -> None:
    manifests = render({})
    spec = one(manifests, "Deployment", "qwen-gateway")["spec"]["template"]["spec"]
    holders = [c["name"] for c in containers(spec) if "keys" in {m["name"] for m in c["volumeMounts"]}]
    assert holders == ["proxy"]
    ports = {c["name"]: [port["containerPort"] for port in c["ports"]] for c in containers(spec)}
    assert ports == {"agent": [8081], "router": [9090], "proxy": [8000, 9091]}
    # The kubelet stops sidecars after the others, the last one first.
    assert [c["name"] for c in spec["initContainers"] if c["restartPolicy"] == "Always"] == ["agent", "router"]
    assert [c["name"] for c in spec["containers"]] == ["proxy"]


def test_tenants_reach_the_proxy_as_it_reads_them() -> None:
    tenants = {"team-a": {"models": ["Qwen/*"], "tokensPerMinute": 100000000}}
    manifests = render({"gateway": {"tenants": tenants, "corsAllowedOrigins": ["https://a.example.com", "https://b"]}})
    content = one(manifests, "ConfigMap", "qwen-gateway-tenants")["data"]["tenants.json"]
    limits = read_tenants(content)
    assert limits.own["team-a"].models == ("Qwen/*",)
    assert limits.own["team-a"].numbers["tokensPerMinute"] == 100000000
    assert limits.defaults == Limits()
    environ = {name: value or "" for name, value in environment(manifests, "qwen-gateway", "proxy").items()}
    assert ProxySettings.from_env(environ).cors_origins == ("https://a.example.com", "https://b")


@pytest.mark.parametrize(
    "tenant", [{"model": ["a"]}, {"models": "a"}, {"requestsPerMinute": -1}, {"concurrentRequests": 0}]
)
def test_wrong_tenants_are_refused(tenant: Manifest) -> None:
    assert "team-a" in refused({"gateway": {"tenants": {"team-a": tenant}}})


@all_values
def test_every_pod_meets_the_restricted_profile(values: Manifest) -> None:
    templates = list(pods(render(values)))
    assert len(templates) == 3
    for _, spec in templates:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["enableServiceLinks"] is False
        for container in containers(spec):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_only_the_agent_of_a_gateway_pod_holds_a_token() -> None:
    spec = one(render({}), "Deployment", "qwen-gateway")["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    holders = [c["name"] for c in containers(spec) if "api-token" in {m["name"] for m in c["volumeMounts"]}]
    assert holders == ["agent"]


@all_values
def test_a_service_selects_the_pods_of_one_deployment_and_ports_that_exist(values: Manifest) -> None:
    manifests = render(values)
    for service in of_kind(manifests, "Service"):
        selector = service["spec"]["selector"].items()
        (template,) = [spec for metadata, spec in pods(manifests) if selector <= metadata.get("labels", {}).items()]
        ports = {port["name"] for c in containers(template) for port in c["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_the_crd_is_the_generated_one_and_is_kept() -> None:
    source = yaml.safe_load((ROOT / "crds/qwendeployments.qwen-operator.dev.yaml").read_text())
    rendered = of_kind(render({}), "CustomResourceDefinition")[0]
    assert rendered["spec"] == source["spec"]
    assert rendered["metadata"]["name"] == source["metadata"]["name"]
    assert rendered["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_the_crd_has_two_switches() -> None:
    assert of_kind(render({"crds": {"enabled": False}}), "CustomResourceDefinition") == []
    rendered = of_kind(render({"crds": {"keep": False}}), "CustomResourceDefinition")[0]
    assert "helm.sh/resource-policy" not in rendered["metadata"].get("annotations", {})


def test_a_changed_configuration_replaces_the_operator_and_nothing_else_does() -> None:
    def checksum(values: Manifest) -> str:
        template = one(render(values), "Deployment", "qwen-operator")["spec"]["template"]
        digest: str = template["metadata"]["annotations"]["checksum/config"]
        return digest

    assert checksum({"gateway": {"replicas": 5}, "commonLabels": {"team": "ml"}}) == checksum({})
    assert checksum({"engine": {"args": ["--schedule-policy=lpm"]}}) != checksum({})
    assert checksum({"gpuPools": [POOL]}) != checksum({})


def test_the_operator_is_told_the_values() -> None:
    values = {**TESTBED, "gpuPools": [POOL], "imagePullSecrets": [{"name": "registry"}]}
    loaded = config(render(values))
    assert loaded["image"] == {"reference": "localhost/qwen-operator:0.1.0", "pullPolicy": "IfNotPresent"}
    defaults = loaded["engine"].pop("pod")
    network = loaded["engine"].pop("multiNode")
    assert network == {
        "interface": "",
        "resources": {},
        "ipcLock": False,
        "hostNetwork": False,
        "sharedMemoryGiBPerGpu": 1,
        "topologyKey": "",
        "topologyPolicy": "Preferred",
    }
    assert loaded["engine"] == {**TESTBED["engine"], "distinctNodes": True}
    assert not any(defaults.values())
    assert loaded["gpuPools"] == [POOL]
    assert loaded["imagePullSecrets"] == ["registry"]
    assert (loaded["workers"], loaded["resyncSeconds"]) == (8, 300)


@pytest.mark.parametrize(
    ("engine", "pool", "allowed"),
    [
        ({}, {}, ("false", "false")),
        ({"hostNetwork": True}, {}, ("true", "false")),
        ({}, {"multiNode": {"ipcLock": True, "resources": {"rdma/hca": 1}}}, ("false", "true")),
    ],
)
def test_the_policy_allows_what_some_replica_over_several_nodes_gets(
    engine: Manifest, pool: Manifest, allowed: tuple[str, str]
) -> None:
    objects = render({"engine": {"multiNode": engine}, "gpuPools": [POOL, {**POOL, "name": "more", **pool}]})
    policy = one(objects, "ValidatingAdmissionPolicy", "qwen-system.qwen-operator")
    variables = {item["name"]: item["expression"] for item in policy["spec"]["variables"]}
    assert (variables["hostNetwork"], variables["ipcLock"]) == allowed
    assert config(objects)["gpuPools"][1] == {**POOL, "name": "more", **pool}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"resources": {"nvidia.com/gpu": 1}}, "engine.multiNode has the resource nvidia.com/gpu, but the plan alone"),
        ({"resources": {"cpu": 1}}, "engine.multiNode has the resource cpu, but what network device plugins offer"),
        ({"resources": {"rdma/hca": 0}}, "/engine/multiNode/resources/rdma~1hca"),
        ({"interface": "eth 0"}, "/engine/multiNode/interface"),
        ({"topologyPolicy": "Soft"}, "/engine/multiNode/topologyPolicy"),
        ({"sharedMemoryGiBPerGpu": 0}, "/engine/multiNode/sharedMemoryGiBPerGpu"),
    ],
)
def test_a_wrong_network_of_several_nodes_is_refused(values: Manifest, said: str) -> None:
    assert said in refused({"engine": {"multiNode": values}})


def test_a_recording_has_a_volume_of_its_size_and_nothing_has_one_without() -> None:
    def volumes(values: Manifest) -> Manifest:
        (pod,) = [
            item["spec"]["template"]["spec"]
            for item in render(values)
            if item["kind"] == "Deployment" and item["metadata"]["name"] == "qwen-operator"
        ]
        assert len(pod["volumes"]) == len(pod["containers"][0]["volumeMounts"])
        return {volume["name"]: volume for volume in pod["volumes"]}

    recording = {"operator": {"recording": {"deployments": ["team/chat"], "mebibytes": 64}}}
    assert volumes(recording)["recording"]["emptyDir"] == {"sizeLimit": "96Mi"}
    assert config(render(recording))["recording"] == recording["operator"]["recording"]
    assert "recording" not in volumes({})


def test_the_operator_and_the_agents_get_the_same_rights_to_names() -> None:
    rights = {"team-a": ["team-a-*"], "*": []}
    manifests = render({"servedNames": rights})
    assert config(manifests)["servedNames"] == rights
    assert json.loads(str(environment(manifests, "qwen-gateway", "agent")["QWEN_SERVED_NAMES"])) == rights
    assert "QWEN_SERVED_NAMES" not in environment(render({}), "qwen-gateway", "agent")


@all_values
def test_the_operator_can_read_its_configuration(values: Manifest) -> None:
    manifests = render(values)
    environ = {name: value or "" for name, value in environment(manifests, "qwen-operator", "operator").items()}
    loaded = load(environ, yaml.safe_dump(config(manifests)))
    assert loaded.namespaces == tuple(values.get("watchNamespaces", ()))
    assert [pool.product for pool in loaded.pools] == [pool["product"] for pool in values.get("gpuPools", ())]
    assert loaded.gateway.keys_secret == "qwen-gateway-keys"


def test_bounds_reach_the_router_as_plain_numbers() -> None:
    limits = {"bodyBytes": 536870912, "bufferedBytes": 2147483648, "queueSize": 0}
    values = {"gateway": {"limits": limits, "hold": {"maxRequests": 20}, "shutdownGraceSeconds": 600}}
    manifests = render(values)
    env = environment(manifests, "qwen-gateway", "router")
    proxy = environment(manifests, "qwen-gateway", "proxy")
    assert (proxy["QWEN_GATEWAY_MAX_BODY_BYTES"], proxy["QWEN_GATEWAY_MAX_BUFFERED_BYTES"]) == (
        "536870912",
        "2147483648",
    )
    assert (proxy["QWEN_GATEWAY_HOLD_REQUESTS"], proxy["QWEN_GATEWAY_HOLD_SECONDS"]) == ("20", "540")
    assert env["QWEN_GATEWAY_MAX_BODY_BYTES"] == "536870912"
    assert env["QWEN_GATEWAY_QUEUE_SIZE"] == "0"
    assert env["QWEN_GATEWAY_MAX_CONCURRENT_REQUESTS"] == "1024"
    assert env["QWEN_GATEWAY_SHUTDOWN_GRACE_SECONDS"] == "600"
    spec = one(manifests, "Deployment", "qwen-gateway")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == 10 + 600 + 20


@all_values
def test_a_newer_chart_alone_replaces_no_pod(values: Manifest, tmp_path: Path) -> None:
    newer = [doc for doc in yaml.safe_load_all(text(values, chart=newer_chart(tmp_path))) if doc]
    assert {m["metadata"]["labels"]["helm.sh/chart"] for m in newer} == {"qwen-operator-99.0.0"}
    templates = [[m["spec"]["template"] for m in of_kind(each, "Deployment")] for each in (render(values), newer)]
    assert templates[0] == templates[1]


DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("image", "engine", "ours", "theirs"),
    [
        ({}, "lmsysorg/sglang", "localhost/qwen-operator:0.1.0", "lmsysorg/sglang"),
        ({"tag": "1.2"}, "a/b:c", "localhost/qwen-operator:1.2", "a/b:c"),
        ({"digest": DIGEST, "tag": "1.2"}, "a/b", f"localhost/qwen-operator@{DIGEST}", "a/b"),
        ({"registry": "mirror.test:5000"}, "a/b", "mirror.test:5000/qwen-operator:0.1.0", "mirror.test:5000/a/b"),
        ({"registry": "m.test/x/"}, "docker.io/a/b:c", "m.test/x/qwen-operator:0.1.0", "m.test/x/a/b:c"),
        ({"repository": "team/op", "registry": "m.test"}, "sglang", "m.test/team/op:0.1.0", "m.test/sglang"),
    ],
)
def test_images(image: Manifest, engine: str, ours: str, theirs: str) -> None:
    manifests = render({"image": image, "engine": {"image": engine}})
    assert {c["image"] for _, spec in pods(manifests) for c in containers(spec)} == {ours}
    assert config(manifests)["image"]["reference"] == ours
    assert config(manifests)["engine"]["image"] == theirs


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"watchNamespaces": ["team-a"]}, "watchNamespaces is [team-a] and gpuPools is empty"),
        ({"gatway": {}}, "gatway"),
        ({"gateway": {"replica": 2}}, "replica"),
        ({"gateway": {"replicas": 0}}, "/gateway/replicas"),
        ({"gateway": {"auth": "key"}}, "/gateway/auth"),
        ({"gateway": {"limits": {"bodyBytes": "32Mi"}}}, "/gateway/limits/bodyBytes"),
        ({"image": {"tag": 1}}, "/image/tag"),
        ({"image": {"digest": "latest"}}, "/image/digest"),
        ({"watchNamespaces": ["Team A"]}, "/watchNamespaces/0"),
        ({"gpuPools": [{"name": "l4"}]}, "/gpuPools/0"),
        ({"gpuPools": [POOL | {"memoryGiB": 24}]}, "memoryGiB"),
        ({"engine": {"env": [{"name": "A"}]}}, "/engine/env/0"),
        ({"engine": {"args": "--device=cpu"}}, "/engine/args"),
        ({"fullnameOverride": "Qwen"}, "/fullnameOverride"),
        ({"operator": {"replicas": 0}}, "/operator/replicas"),
        ({"cache": {"type": "Disk"}}, "/cache/type"),
        ({"cache": {"type": "HostPath"}}, "cache.type is HostPath and cache.path is empty"),
        ({"cache": {"type": "HostPath", "path": "models"}}, "/cache/path"),
        ({"cache": {"type": "PersistentVolumeClaim"}}, "cache.claimName is empty"),
        ({"servedNames": {"team-a": "x"}}, "/servedNames/team-a"),
        ({"servedNames": {"Team A": ["x"]}}, "Team A"),
        ({"monitoring": {"runbookUrl": "wiki"}}, "/monitoring/runbookUrl"),
        ({"gateway": {"topologySpreadConstraints": [{"topologyKey": "rack"}]}}, "/topologySpreadConstraints/0"),
        ({"tenancy": {"models": ["hf://Qwen/*", "hf://Qwen*"]}}, "/tenancy/models/1"),
        ({"tenancy": {"models": ["hf://Qwen/x@main"]}}, "/tenancy/models/0"),
        ({"tenancy": {"namespaces": {"team-a": {"models": ["Qwen/*"]}}}}, "/tenancy/namespaces/team-a/models/0"),
        ({"tenancy": {"mode": "trusted", "models": ["pvc://*"]}}, "tenancy.mode is trusted, in which no list holds"),
        (
            {"tenancy": {"mode": "trusted", "namespaces": {"team-a": {"models": ["pvc://*"]}}}},
            "tenancy.namespaces.team-a.models has entries",
        ),
        ({"gpuPools": [POOL, POOL]}, "gpuPools has two entries with the name l4"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.create is false: name two existing service accounts"),
        (
            {"serviceAccount": {"operatorName": "x", "gatewayName": "x"}},
            "serviceAccount.operatorName and serviceAccount.gatewayName are both x",
        ),
    ],
)
def test_wrong_values_are_refused_by_name(values: Manifest, words: str) -> None:
    assert words in refused(values)


def test_policy_and_operator_get_the_same_models() -> None:
    tenancy = {"models": ["hf://Qwen/*"], "namespaces": {"team-a": {"models": ["pvc://*"]}}}
    manifests = render({"tenancy": tenancy, "hub": {"default": "modelscope"}})
    policy = one(manifests, "ValidatingAdmissionPolicy", "qwen-system.qwen-tenants")["spec"]
    variables = {entry["name"]: entry["expression"] for entry in policy["variables"]}
    own = '{"team-a":["pvc://*"]}'
    assert variables["allowedModels"] == (
        f'["hf://Qwen/*"] + (request.namespace in {own} ? {own}[request.namespace] : [])'
    )
    assert variables["defaultHub"] == "'modelscope'"
    # A variable sees only those before it.
    assert list(variables).index("allowedModels") < list(variables).index("allowsModel")
    read = settings(config(manifests)).tenancy
    assert read.allowed("team-a", Setting.MODELS) == ("hf://Qwen/*", "pvc://*")
    assert read.hub == "modelscope"


@pytest.mark.parametrize("component", ["operator", "gateway"])
def test_two_pods_are_kept_apart_and_one_is_kept_alive(component: str) -> None:
    manifests = render({})
    deployment = one(manifests, "Deployment", f"qwen-{component}")
    labels = deployment["spec"]["selector"]["matchLabels"]
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert [(c["topologyKey"], c["whenUnsatisfiable"], c["labelSelector"]) for c in spread] == [
        ("kubernetes.io/hostname", "ScheduleAnyway", {"matchLabels": labels}),
        ("topology.kubernetes.io/zone", "ScheduleAnyway", {"matchLabels": labels}),
    ]
    budget = one(manifests, "PodDisruptionBudget", f"qwen-{component}")["spec"]
    assert budget == {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": labels},
    }
    alone = render({component: {"replicas": 1}})
    assert [m["metadata"]["name"] for m in of_kind(alone, "PodDisruptionBudget")] == [
        f"qwen-{other}" for other in ("gateway", "operator") if other != component
    ]


def test_other_spreading_replaces_ours() -> None:
    hard = {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}
    own = hard | {"labelSelector": {"matchLabels": {"app": "x"}}}
    manifests = render({"gateway": {"topologySpreadConstraints": [hard, own]}})
    spec = one(manifests, "Deployment", "qwen-gateway")["spec"]
    assert spec["template"]["spec"]["topologySpreadConstraints"] == [hard | {"labelSelector": spec["selector"]}, own]


def test_everybody_placed_and_labelled_as_told() -> None:
    place = {
        "nodeSelector": {"pool": "cpu"},
        "tolerations": [{"key": "cpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "podAnnotations": {"note": "yes"},
    }
    labels = {"team": "ml", "app.kubernetes.io/name": "mine"}
    manifests = render({"operator": place, "gateway": place, "commonLabels": labels})
    assert all(m["metadata"]["labels"]["team"] == "ml" for m in manifests)
    assert {m["metadata"]["labels"]["app.kubernetes.io/name"] for m in manifests} == {"qwen-operator"}
    for deployment in of_kind(manifests, "Deployment"):
        template = deployment["spec"]["template"]
        assert template["metadata"]["annotations"]["note"] == "yes"
        assert {key: template["spec"][key] for key in place if key != "podAnnotations"} == {
            key: value for key, value in place.items() if key != "podAnnotations"
        }


@all_values
def test_the_notes_begin_with_a_manifest_that_can_be_pasted(values: Manifest) -> None:
    args = ("install", "qwen", str(CHART), "-n", "qwen-system", "--dry-run=client")
    notes = helm(*args, values=values).stdout.partition("\nNOTES:\n")[2]
    pasted = yaml.safe_load(notes.partition("<<'END'\n")[2].partition("   END\n")[0])
    assert pasted == yaml.safe_load((ROOT / "docs/examples/qwen1.5-0.5b.yaml").read_text())
    assert ("get secret -n qwen-system qwen-gateway-keys" in notes) == (values != VALUES["open"])
    # An uninstall prints nothing, so the installation says what will stay.
    assert "the engines keep running" in notes


def test_nothing_of_monitoring_is_made_unasked() -> None:
    assert {m["apiVersion"].partition("/")[0] for m in render({})} & {"monitoring.coreos.com"} == set()


def test_monitors_choose_pods_and_ports_that_exist() -> None:
    manifests = render(VALUES["monitored"])
    monitors = {m["metadata"]["name"]: m for m in of_kind(manifests, "PodMonitor")}
    assert monitors.keys() == {"qwen-operator", "qwen-gateway", "qwen-engines"}
    assert all(m["metadata"]["labels"]["release"] == "prometheus" for m in monitors.values())
    for name in ("qwen-operator", "qwen-gateway"):
        selector = monitors[name]["spec"]["selector"]["matchLabels"].items()
        (template,) = [spec for metadata, spec in pods(manifests) if selector <= metadata.get("labels", {}).items()]
        ports = {port["name"] for c in containers(template) for port in c["ports"]}
        assert {endpoint["port"] for endpoint in monitors[name]["spec"]["podMetricsEndpoints"]} <= ports
    assert monitors["qwen-engines"]["spec"]["namespaceSelector"] == {"any": True}
    confined = one(render(VALUES["monitored"] | VALUES["namespaced"]), "PodMonitor", "qwen-engines")
    assert confined["spec"]["namespaceSelector"] == {"matchNames": ["team-a", "team-b"]}


def test_the_engines_carry_what_their_monitor_looks_for() -> None:
    (endpoint,) = one(render(VALUES["monitored"]), "PodMonitor", "qwen-engines")["spec"]["podMetricsEndpoints"]
    selector = one(render(VALUES["monitored"]), "PodMonitor", "qwen-engines")["spec"]["selector"]["matchLabels"]
    owner = names.Owner("qd", "team-a", "uid")
    labels = names.common_labels(owner, name="sglang", component="engine") | names.engine_labels("qd")
    assert selector.items() <= labels.items()
    sanitized = {"__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", key): key for key in labels}
    (relabeling,) = endpoint["relabelings"]
    assert labels[sanitized[relabeling["sourceLabels"][0]]] == "qd"
    assert (relabeling["targetLabel"], endpoint["port"]) == ("deployment", "http")


def test_alerts_are_about_this_release_and_link_to_their_section() -> None:
    values = VALUES["monitored"] | {"monitoring": {"enabled": True, "runbookUrl": "https://wiki.test/qwen"}}
    groups = one(render(values, release="other"), "PrometheusRule", "other")["spec"]["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    assert 'job="qwen-system/other-operator"' in rules["QwenNoLeader"]["expr"]
    assert 'job="qwen-system/other-gateway"' in rules["QwenGatewaySplit"]["expr"]
    assert [name for name, rule in rules.items() if "_JOB" in rule["expr"]] == []
    assert rules["QwenNotReady"]["annotations"]["runbook_url"] == "https://wiki.test/qwen#qwennotready"
    # The template language of alerts is that of Helm: it must come through as it is.
    assert "{{ $labels.deployment }}" in rules["QwenNotReady"]["annotations"]["summary"]


@pytest.fixture(scope="module")
def restricted(kubectl: Kubectl) -> Iterator[str]:
    """A namespace where pods outside the restricted profile are refused and templates of such pods are warned of."""
    name, level = f"t-{uuid4().hex[:8]}", "pod-security.kubernetes.io"
    kubectl.namespace(name, {f"{level}/enforce": "restricted", f"{level}/warn": "restricted"})
    wait_for("the namespace's service account", lambda: kubectl.get("serviceaccount", "default", name))
    yield name
    kubectl.run("delete", "namespace", name, "--wait=false")


# The kinds of the Prometheus operator and of the Gateway API are not in the test bed.
@pytest.mark.parametrize("name", sorted(VALUES.keys() - {"monitored", "routed"}))
def test_the_api_server_accepts_every_object(kubectl: Kubectl, restricted: str, name: str) -> None:
    values = VALUES[name]
    if "watchNamespaces" in values:
        values = values | {"watchNamespaces": [restricted]}
    rendered = text(values, release="qwen-render", namespace=restricted)
    strict = ("--dry-run=server", "--server-side", "--force-conflicts", "--validate=strict", "--warnings-as-errors")
    accepted = kubectl.run("apply", *strict, "-o", "name", "-f", "-", stdin=rendered).split()
    assert len(accepted) == len([doc for doc in yaml.safe_load_all(rendered) if doc])


def test_the_api_server_accepts_the_examples(kubectl: Kubectl, space: str) -> None:
    examples = kubectl.run("apply", "--dry-run=server", "-n", space, "-o", "name", "-f", str(ROOT / "docs/examples"))
    assert len(examples.split()) == len(list((ROOT / "docs/examples").glob("*.yaml")))


def test_only_a_release_for_all_namespaces_has_the_role_that_a_second_one_may_not_have() -> None:
    [role] = [m for m in of_kind(render({}), "ClusterRole") if m["metadata"]["name"] == ALL_NAMESPACES]
    assert role["rules"] == []
    narrow = render({"watchNamespaces": ["team-a"], "gpuPools": [POOL]})
    assert ALL_NAMESPACES not in {m["metadata"]["name"] for m in of_kind(narrow, "ClusterRole")}
