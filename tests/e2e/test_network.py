"""NetworkPolicies in force: who reaches an engine, the gateway and the operator, and what an engine answers to whom.

One engine start. The test bed enforces policies only while these tests run.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.e2e.conftest import Gateway
from tests.qd import own_namespace, pods, qd, wait_ready
from tests.testbed import images
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl, KubectlError, Manifest, wait_for
from tests.testbed.layout import NODE

pytestmark = pytest.mark.e2e
MODEL = "closed-model"
POLICY = "qwen-system.qwen-engines"
CLOSED = ("/flush_cache", "/server_info", "/get_server_info", "/abort_request", "/freeze_gc", "/health_generate")

# Prints the HTTP status, or `closed` if no connection comes about.
ASK = """\
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=3).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError:
    print("closed")
"""


def asking_pod(namespace: str) -> Manifest:
    """A pod that does nothing. `ask` runs in it."""
    container = {
        "name": "main",
        "image": images.operator_image(),
        "command": ["sleep", "3600"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "foreign", "namespace": namespace},
        "spec": {
            "nodeName": NODE,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }


class Cast:
    """The engine and those who ask it. `ask` returns an HTTP status, or `closed`."""

    def __init__(self, kubectl: Kubectl, release: Release, engine: Manifest, foreign: str) -> None:
        self.kubectl, self.release, self.foreign = kubectl, release, foreign
        self.namespace, self.pod = engine["metadata"]["namespace"], engine["metadata"]["name"]
        self.engine: str = engine["status"]["podIP"]

    def address(self, part: str) -> str:
        """The address of the gateway's or the operator's pod."""
        labels = f"app.kubernetes.io/component={part}"
        [pod, *_] = self.kubectl.list("pods", self.release.namespace, labels)
        address: str = pod["status"]["podIP"]
        return address

    def ask(self, who: str, address: str, port: int, path: str) -> str:
        place = {
            "foreign": ("foreign", "-n", self.foreign),
            "neighbour": ("foreign", "-n", self.namespace),
            "gateway": (f"deployment/{self.release.gateway}", "-n", self.release.namespace, "-c", "agent"),
            "operator": (f"deployment/{self.release.operator}", "-n", self.release.namespace),
        }[who]
        url = f"http://{address}:{port}{path}"
        return self.kubectl.run("exec", *place, "--", "python3", "-c", ASK, url).strip()

    def policy(self) -> Manifest | None:
        return self.kubectl.get("networkpolicy", POLICY, self.namespace)


@pytest.fixture(scope="module")
def actors(bed: Cluster, kubectl: Kubectl, release: Release, claim_space: str) -> Iterator[Cast]:
    """The engine is Ready, and policies are in force."""
    with own_namespace(kubectl, "f") as foreign:
        source = {"uri": "pvc://models/tiny-qwen2"}
        kubectl.apply(qd(claim_space, "closed", model=MODEL, servedNames=[MODEL], source=source))
        wait_ready(kubectl, claim_space, "closed", timeout=300)
        [engine] = pods(kubectl, claim_space, "closed")
        kubectl.apply(asking_pod(foreign), asking_pod(claim_space))
        for namespace in (foreign, claim_space):
            kubectl.run("wait", "pod/foreign", "-n", namespace, "--for=condition=Ready", "--timeout=60s")
        made = Cast(kubectl, release, engine, foreign)
        assert made.ask("foreign", made.engine, 8000, "/v1/models") == "200", "without enforcement it is reachable"
        with bed.enforcing_policies():
            wait_for("the policy is in force", lambda: made.ask("foreign", made.engine, 8000, "/ready") == "closed", 60)
            yield made


@pytest.mark.parametrize("who", ["foreign", "neighbour"])
def test_another_pod_reaches_no_engine_and_no_metrics(actors: Cast, who: str) -> None:
    gateway, operator = actors.address("gateway"), actors.address("operator")
    closed = [(actors.engine, 8000, "/v1/models"), (actors.engine, 8000, "/metrics"), (operator, 8080, "/metrics")]
    closed += [(gateway, 8081, "/metrics"), (gateway, 9090, "/metrics"), (gateway, 9091, "/metrics")]
    assert {actors.ask(who, *place) for place in closed} == {"closed"}
    assert actors.ask(who, gateway, 8000, "/v1/models") != "closed"


@pytest.mark.parametrize("who", ["gateway", "operator"])
def test_gateway_and_operator_reach_the_engine_but_not_its_administrative_endpoints(actors: Cast, who: str) -> None:
    for path in ("/v1/models", "/metrics", "/ready"):
        assert actors.ask(who, actors.engine, 8000, path) == "200"
    assert {actors.ask(who, actors.engine, 8000, path) for path in CLOSED} == {"403"}


def test_only_the_operator_reads_how_far_a_start_is(actors: Cast) -> None:
    assert actors.ask("operator", actors.engine, 8001, "/progress") == "200"
    assert {actors.ask(who, actors.engine, 8001, "/progress") for who in ("foreign", "neighbour", "gateway")} == {
        "closed"
    }


def test_requests_go_through_the_gateway(actors: Cast, gateway: Gateway) -> None:
    wait_for(f"{MODEL} is routed", lambda: gateway.chat(MODEL, max_tokens=1).status_code == 200, 20)
    [engine] = pods(actors.kubectl, actors.namespace, "closed")
    [state] = engine["status"]["containerStatuses"]
    assert (state["ready"], state["restartCount"]) == (True, 0), "the kubelet's probes still reach the engine"


@contextmanager
def forwarded(bed: Cluster, namespace: str, target: str, port: int) -> Iterator[str]:
    """`kubectl port-forward`: a URL on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        local = free.getsockname()[1]
    command = [str(bed.bin_dir / "kubectl"), f"--kubeconfig={bed.kubeconfig}", "port-forward", "-n", namespace]
    process = subprocess.Popen([*command, target, f"{local}:{port}"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "Forwarding from" in process.stdout.readline()
        yield f"http://127.0.0.1:{local}"
    finally:
        process.terminate()
        process.communicate()


def test_port_forward_reaches_all_of_an_engine_and_the_operator_s_metrics(actors: Cast, bed: Cluster) -> None:
    with forwarded(bed, actors.namespace, f"pod/{actors.pod}", 8000) as url:
        assert httpx.get(f"{url}/server_info", timeout=30).json()["served_model_name"] == MODEL
        assert httpx.post(f"{url}/flush_cache", timeout=30).status_code == 200
        # Also here an engine opens no file for a request.
        asks = {"text": "hi", "image_data": "/etc/passwd", "sampling_params": {"max_new_tokens": 1}}
        refused = httpx.post(f"{url}/generate", json=asks, timeout=30)
        assert refused.status_code == 400
        assert "image '/etc/passwd' is no address that the engine may open" in refused.text
    release = actors.release
    with forwarded(bed, release.namespace, f"deployment/{release.operator}", 8080) as url:
        assert "qwen_operator_build_info" in httpx.get(f"{url}/metrics", timeout=30).text


def test_an_edited_or_deleted_policy_comes_back(actors: Cast) -> None:
    kubectl, wanted = actors.kubectl, actors.policy()
    assert wanted is not None
    opened = '[{"op": "replace", "path": "/spec/ingress", "value": [{}]}]'
    kubectl.run("patch", "networkpolicy", POLICY, "-n", actors.namespace, "--type=json", "-p", opened)
    wait_for("the edit is undone", lambda: (actors.policy() or {}).get("spec") == wanted["spec"], 15)
    kubectl.run("label", "networkpolicy", POLICY, "-n", actors.namespace, "app.kubernetes.io/managed-by-")
    labels = wanted["metadata"]["labels"]
    wait_for("the labels are back", lambda: (actors.policy() or wanted)["metadata"].get("labels") == labels, 15)
    kubectl.run("delete", "networkpolicy", POLICY, "-n", actors.namespace)
    wait_for("the policy is back", lambda: actors.policy() is not None, 15)
    wait_for("it is in force", lambda: actors.ask("foreign", actors.engine, 8000, "/ready") == "closed", 30)


def test_the_policy_goes_with_the_last_deployment(actors: Cast) -> None:
    actors.kubectl.run("delete", "qd", "closed", "-n", actors.namespace)
    wait_for("the policy is removed", lambda: actors.policy() is None, 90)
    with pytest.raises(KubectlError):
        actors.kubectl.run("get", "networkpolicy", POLICY, "-n", actors.namespace)
