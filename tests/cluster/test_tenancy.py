"""What tenants and the operator's account may ask for, by the policies in the real API server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from qwen_operator.config.plans import settings
from qwen_operator.tenancy.judge import refused
from tests.cluster.admission import refuses, without_policy
from tests.qd import SIMULATED, alive, qd, simulated, wait_condition, wait_ready
from tests.tenancy import (
    ALLOWED,
    HOST,
    MODELS,
    MODELS_ALLOWED,
    MODELS_RATCHET,
    MODELS_REFUSED,
    RATCHET,
    REFUSED,
    Case,
)
from tests.testbed.bed import Release, install
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, KubectlError, Manifest, wait_for

pytestmark = pytest.mark.cluster
L4 = "NVIDIA-L4"
TENANT = "tenant@example.com"
GROUP = "qwen-operator.dev"
MODEL_IMAGE = {"name": "source", "image": {"reference": "registry.example.com/models/qwen:7b"}}
EVERYBODY = {
    # What Kubernetes gives to every account.
    ("selfsubjectreviews.authentication.k8s.io", "create"),
    ("selfsubjectaccessreviews.authorization.k8s.io", "create"),
    ("selfsubjectrulesreviews.authorization.k8s.io", "create"),
}


def manifest(space: str, number: int, spec: Manifest) -> Manifest:
    usual = {"model": "Qwen/Qwen1.5-0.5B-Chat", "servedNames": [f"{space}-{number}"], "replicas": 0}
    return qd(space, f"case-{number}", **{**usual, **spec})


def messages(kubectl: Kubectl, manifests: list[Manifest], *words: str) -> dict[int, str]:
    """What the API server says to each object that it refuses, by the number in its name."""
    text = yaml.safe_dump_all(manifests, sort_keys=False)

    def said() -> dict[int, str]:
        try:
            kubectl.run(*words, "--dry-run=server", "-f", "-", stdin=text, timeout=300)
        except KubectlError as error:
            lines = [line for line in str(error).splitlines() if "case-" in line]
            return {int(match[1]): line for line in lines if (match := re.search(r'"case-([0-9]+)"', line))}
        return {}

    found = said()
    for _ in range(4):
        # The operator may write a status between the two requests of kubectl replace.
        if not any("(Conflict)" in line for line in found.values()):
            break
        found = said()
    return found


def faults(cases: tuple[Case, ...], said: dict[int, str]) -> list[str]:
    """The cases in which the API server and the table differ."""
    found = []
    for number, case in enumerate(cases):
        message = said.get(number, "")
        right = not message if not case.refused else f"denied request: {case.refused}:" in message
        found += [] if right or _of_the_crd(message) else [f"{case.id}: {message or 'accepted'}"]
    return found


def _of_the_crd(message: str) -> bool:
    """Whether the schema refuses it before the policy sees it."""
    return "is invalid: " in message and "ValidatingAdmissionPolicy" not in message


@contextmanager
def as_tenant(kubectl: Kubectl, space: str) -> Iterator[tuple[str, ...]]:
    """Words that make kubectl act as somebody who may only edit QwenDeployments in one namespace."""
    verbs = ["create", "get", "list", "update", "patch", "delete"]
    about = {"name": "tenant", "namespace": space}
    role = {"rules": [{"apiGroups": [GROUP], "resources": ["qwendeployments"], "verbs": verbs}]}
    subject = {"kind": "User", "name": TENANT, "apiGroup": "rbac.authorization.k8s.io"}
    reference = {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tenant"}}
    api = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": about}
    kubectl.apply({**api, "kind": "Role", **role}, {**api, "kind": "RoleBinding", **reference, "subjects": [subject]})
    yield (f"--as={TENANT}",)


def test_the_table_holds_in_the_api_server(kubectl: Kubectl, space: str, release: Release) -> None:
    cases = (*ALLOWED, *REFUSED)
    with as_tenant(kubectl, space) as tenant:
        said = messages(kubectl, [manifest(space, n, case.spec) for n, case in enumerate(cases)], "create", *tenant)
    assert faults(cases, said) == []
    sentence = next(text for n, text in said.items() if cases[n].id == "critical")
    assert "spec.pod.priorityClassName: system-node-critical: not allowed here" in sentence
    assert sentence.endswith("may allow it with the chart value tenancy.priorityClasses")


def test_the_largest_object_costs_less_than_the_limit(kubectl: Kubectl, space: str, release: Release) -> None:
    """CEL has a budget for each request. Too large an object would be refused, whatever it asks for."""
    many = {
        "labels": {f"name-{n}": "x" for n in range(32)},
        "annotations": {f"name-{n}": "x" * 4000 for n in range(32)},
        "tolerations": [{"key": "nvidia.com/gpu", "value": f"{n}"} for n in range(32)],
        "volumes": [
            {"name": f"v{n}", "projected": {"sources": [{"secret": {"name": f"s{m}"}} for m in range(60)]}}
            for n in range(32)
        ],
        "volumeMounts": [{"name": f"v{n}", "mountPath": f"/mnt/{n}", "subPath": "x" * 200} for n in range(32)],
    }
    words = [f"--schedule-policy={'x' * 1000}" for _ in range(64)]
    env = [{"name": "HF_TOKEN" if n == 0 else f"V{n}", "value": "x" * 1000} for n in range(64)]
    objects = [
        manifest(space, 0, {"pod": many, "engine": {"args": words}}),
        manifest(space, 1, {"pod": many, "engine": {"args": words, "env": env}}),
    ]
    said = messages(kubectl, objects, "create")
    assert set(said) == {1}
    assert "denied request: spec.engine.env: V1, V2" in said[1]


@pytest.mark.alone
def test_what_was_there_may_stay_and_nothing_is_added(kubectl: Kubectl, space: str, release: Release) -> None:
    with without_policy(kubectl, space):
        kubectl.apply(*(manifest(space, n, case.before) for n, case in enumerate(RATCHET)))
    said = messages(kubectl, [manifest(space, n, case.spec) for n, case in enumerate(RATCHET)], "replace")
    assert faults(RATCHET, said) == []
    # The operator judges the same objects by itself. The test bed's lists allow more than the usual ones.
    text = kubectl.json("get", "configmap", "qwen-operator", "-n", release.namespace)["data"]["config.yaml"]
    tenancy = settings(yaml.safe_load(text)).tenancy
    for number, case in enumerate(RATCHET):
        if case.id != "dropped" and refused(manifest(space, number, case.before or {})["spec"], tenancy, space):
            wait_condition(kubectl, space, f"case-{number}", ("Planned", "False", "NotAllowed"))


@pytest.mark.alone
def test_the_list_of_models_holds_in_the_api_server(
    kubectl: Kubectl, bed: Cluster, space: str, release: Release
) -> None:
    cases = (*MODELS_ALLOWED, *MODELS_REFUSED)
    kubectl.apply(*(manifest(space, n, case.before) for n, case in enumerate(MODELS_RATCHET)))
    foreign = qd(space, "probe", model="evil/chat")
    try:
        # Only this namespace is narrowed: other tests' objects stay as they are.
        install(bed, "--set-json", f"tenancy.namespaces={json.dumps({space: {'models': MODELS}})}")
        wait_for("the list holds", lambda: refuses(kubectl, foreign))
        assert kubectl.refused(foreign).endswith(
            "denied request: spec.model: hf://evil/chat: not allowed here: tenants of this namespace may serve only "
            "hf://Qwen/*, hf://Qwen/Qwen3-8B@v*, hf://own/chat@refs/pr/7 and 5 more; the platform team may allow it "
            "with the chart value tenancy.models"
        )
        with as_tenant(kubectl, space) as tenant:
            # The objects of MODELS_RATCHET have the first numbers.
            new = [manifest(space, 100 + n, case.spec) for n, case in enumerate(cases)]
            said = {number - 100: text for number, text in messages(kubectl, new, "create", *tenant).items()}
        assert faults(cases, said) == []
        proposal = next(text for n, text in said.items() if cases[n].id == "a proposal")
        assert "(an entry without @ allows only the main branch)" in proposal
        said = messages(kubectl, [manifest(space, n, case.spec) for n, case in enumerate(MODELS_RATCHET)], "replace")
        assert faults(MODELS_RATCHET, said) == []
        # The operator judges by itself. These were stored before the list, and none of them could run.
        for number in (n for n, case in enumerate(MODELS_RATCHET) if "pod" not in case.before):
            wait_condition(kubectl, space, f"case-{number}", ("Planned", "False", "NotAllowed"))
    finally:
        install(bed)


@pytest.mark.alone
def test_an_upgrade_ends_no_engine(kubectl: Kubectl, bed: Cluster, space: str, release: Release) -> None:
    """A pod with a forbidden toleration runs on, is replaced when it is lost, and its object can still be changed."""
    everything = [*SIMULATED, {"operator": "Exists"}]
    try:
        install(bed, "--set", "tenancy.mode=trusted")
        kubectl.apply(simulated(space, "old", L4, pod={"tolerations": everything}))
        wait_ready(kubectl, space, "old")
    finally:
        install(bed)
    [pod] = alive(kubectl, space, "old")
    kubectl.apply(simulated(space, "old", L4, pod={"tolerations": everything}, rollout={"drainSeconds": 2}))
    wait_ready(kubectl, space, "old")
    assert [one["metadata"]["uid"] for one in alive(kubectl, space, "old")] == [pod["metadata"]["uid"]]
    kubectl.run("delete", "pod", pod["metadata"]["name"], "-n", space, "--grace-period=0", "--force")
    wait_for(
        "another pod", lambda: {p["metadata"]["uid"] for p in alive(kubectl, space, "old")} - {pod["metadata"]["uid"]}
    )
    wait_ready(kubectl, space, "old")
    kubectl.apply(simulated(space, "old", L4, pod={"tolerations": everything, "labels": {"new": "label"}}))
    wait_for(
        "the next revision", lambda: any("new" in p["metadata"]["labels"] for p in alive(kubectl, space, "old")), 90
    )
    wait_ready(kubectl, space, "old")
    kubectl.run("delete", "qd", "old", "-n", space)


def engine_pod(space: str, name: str = "chat-0123abcd-0", owner: str = "chat", **changes: Any) -> Manifest:
    """A pod as the operator makes it; `changes` replace members of its spec."""
    container = {
        "name": "engine",
        "image": "localhost/sglang-cpu:v0.5.23",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"automountServiceAccountToken": False, "securityContext": security, "containers": [container], **changes}
    labels = {f"{GROUP}/deployment": owner, f"{GROUP}/role": "engine"}
    reference = {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "QwenDeployment",
        "name": owner,
        "uid": "0",
        "controller": True,
    }
    metadata = {"name": name, "namespace": space, "labels": labels, "ownerReferences": [reference]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def without(pod: Manifest, member: str) -> Manifest:
    pod["metadata"].pop(member)
    return pod


def container_with(space: str, **security: Any) -> Manifest:
    pod = engine_pod(space)
    pod["spec"]["containers"][0]["securityContext"] |= security
    return pod


def engine_member(space: str, **changes: Any) -> Manifest:
    """A pod of a replica over several nodes."""
    pod = engine_pod(space, **changes)
    pod["metadata"]["labels"][f"{GROUP}/replica"] = "chat-0123abcd-0"
    return pod


def bad_pods(space: str) -> dict[str, Manifest]:
    """Pods that a stolen token might try, by what is wrong."""
    return {
        "kube-system": engine_pod("kube-system"),
        "no owner": without(engine_pod(space), "ownerReferences"),
        "no labels": without(engine_pod(space), "labels"),
        "another name": engine_pod(space, "other"),
        "hostNetwork": engine_pod(space, hostNetwork=True),
        "hostPID": engine_pod(space, hostPID=True),
        "a chosen node": engine_pod(space, nodeName="control-plane"),
        "a token": engine_pod(space, automountServiceAccountToken=True),
        "hostPath": engine_pod(space, volumes=[HOST]),
        "hostPath in place of the model": engine_pod(space, volumes=[{**HOST, "name": "source"}]),
        "an image beside the model": engine_pod(space, volumes=[{**MODEL_IMAGE, "name": "other"}]),
        "root": engine_pod(space, securityContext={"runAsUser": 0}),
        "no security": engine_pod(space, securityContext={}),
        "account": engine_pod(space, serviceAccountName="builder"),
        "critical": engine_pod(space, priorityClassName="system-node-critical"),
        "privileged": container_with(space, privileged=True, allowPrivilegeEscalation=True),
        "the network of the node without the chart": engine_member(space, hostNetwork=True),
        "IPC_LOCK without the chart": container_with(space, capabilities={"add": ["IPC_LOCK"], "drop": ["ALL"]}),
        "root without the chart": container_with(space, runAsUser=0, runAsNonRoot=False),
        "capability": container_with(space, capabilities={"add": ["SYS_ADMIN"], "drop": ["ALL"]}),
        "escalation": container_with(space, allowPrivilegeEscalation=True),
    }


def denied(kubectl: Kubectl, obj: Manifest, *words: str) -> str:
    """What the policy says to the operator's account; "" if it accepts the object."""
    try:
        kubectl.run("create", "--dry-run=server", "-f", "-", *words, stdin=json.dumps(obj))
    except KubectlError as error:
        return str(error)
    return ""


def test_a_stolen_token_makes_no_other_pods(kubectl: Kubectl, bed: Cluster, release: Release) -> None:
    operator = f"--as={release.operator_user}"
    # Without the profile of the namespace, only the policy is in the way.
    space = "tenancy-open"
    kubectl.namespace(space)
    kubectl.run("create", "serviceaccount", "builder", "-n", space)
    try:
        assert denied(kubectl, engine_pod(space), operator) == ""
        assert denied(kubectl, engine_pod(space, volumes=[MODEL_IMAGE]), operator) == ""
        said = {name: denied(kubectl, pod, operator) for name, pod in bad_pods(space).items()}
        assert {name: text for name, text in said.items() if "qwen-system.qwen-operator" not in text} == {}
        assert "never in kube-system" in said["kube-system"]
        # Only the operator is bound, not who debugs a node.
        assert denied(kubectl, bad_pods(space)["hostPath"]) == ""
        foreign = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "foreign", "namespace": space}}
        kubectl.apply({**foreign, "spec": {"containers": [{"name": "x", "image": "localhost/none"}]}})
        with pytest.raises(KubectlError, match="may change and delete only pods of QwenDeployments"):
            kubectl.run("delete", "pod", "foreign", "-n", space, "--dry-run=server", operator)
        with pytest.raises(KubectlError, match="may write only pods that a QwenDeployment controls"):
            kubectl.run("label", "pod", "foreign", "-n", space, "a=b", "--dry-run=server", operator)
    finally:
        kubectl.run("delete", "namespace", space, "--wait=false")


def test_a_stolen_token_makes_no_other_secrets_and_leases(kubectl: Kubectl, release: Release) -> None:
    operator, about = f"--as={release.operator_user}", {"namespace": release.namespace}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "other", **about}}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "other", **about}}
    for obj in (secret, lease):
        assert "only its own Lease and the Secret" in denied(kubectl, obj, operator)


def rights(kubectl: Kubectl, user: str, space: str, *groups: str) -> set[tuple[str, str]]:
    """(resource with group and the object's name, verbs) that an account has beyond what everybody has."""
    as_groups = [f"--as-group={group}" for group in ("system:authenticated", *groups)]
    text = kubectl.run("auth", "can-i", "--list", "-n", space, "--no-headers", f"--as={user}", *as_groups)
    rows = [re.match(r"(\S+)\s+\[(.*?)\]\s+\[(.*?)\]\s+\[(.*?)\]$", line) for line in text.splitlines()]
    found = {(row[1] + (f"/{row[3]}" if row[3] else ""), row[4]) for row in rows if row}
    return found - EVERYBODY


def test_each_account_has_exactly_these_rights(kubectl: Kubectl, space: str, release: Release) -> None:
    operator = rights(kubectl, release.operator_user, space)
    assert operator == {
        ("pods", "get list watch create patch delete"),
        ("controllerrevisions.apps", "get list watch create patch delete"),
        ("poddisruptionbudgets.policy", "get list watch create patch"),
        ("resourcequotas", "list watch"),
        ("events", "create"),
        ("persistentvolumeclaims", "get"),
        ("networkpolicies.networking.k8s.io", "list watch create"),
        (f"networkpolicies.networking.k8s.io/{release.namespace}.qwen-engines", "update delete"),
        ("nodes", "list watch"),
        ("priorityclasses.scheduling.k8s.io", "list watch"),
        (f"qwendeployments.{GROUP}", "list watch"),
        (f"qwendeployments.{GROUP}/status", "patch"),
        (f"qwendeployments.{GROUP}/finalizers", "update"),
    }
    assert rights(kubectl, release.operator_user, release.namespace) - operator == {
        ("leases.coordination.k8s.io", "create"),
        (f"leases.coordination.k8s.io/{release.operator}", "get update"),
        ("secrets", "create"),
    }
    gateway = {("pods", "list watch"), (f"qwendeployments.{GROUP}", "list watch")}
    for name in (space, release.namespace):
        assert rights(kubectl, f"system:serviceaccount:{release.namespace}:{release.gateway}", name) == gateway


TENANT_RIGHTS = {
    "view": {
        (f"qwendeployments.{GROUP}", "get list watch"),
        (f"qwendeployments.{GROUP}/status", "get"),
        (f"qwendeployments.{GROUP}/scale", "get"),
    },
    "edit": {
        (f"qwendeployments.{GROUP}", "create update patch delete deletecollection get list watch"),
        (f"qwendeployments.{GROUP}/status", "get"),
        (f"qwendeployments.{GROUP}/scale", "update patch get"),
    },
}


@pytest.mark.parametrize("role", TENANT_RIGHTS)
def test_a_tenant_has_exactly_these_rights(kubectl: Kubectl, space: str, release: Release, role: str) -> None:
    user = f"{role}@example.com"
    kubectl.run("create", "rolebinding", role, f"--clusterrole={role}", f"--user={user}", "-n", space)
    # The aggregation of ClusterRoles is a controller's work.
    mine = wait_for("the roles", lambda: {one for one in rights(kubectl, user, space) if GROUP in one[0]})
    assert _sorted(mine) == _sorted(TENANT_RIGHTS[role])
    assert not [one for one in rights(kubectl, user, "kube-system") if GROUP in one[0]]


def _sorted(granted: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """With the verbs in order: several roles may give them."""
    return {(resource, " ".join(sorted(set(verbs.split())))) for resource, verbs in granted}
