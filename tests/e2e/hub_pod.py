"""A hub in a pod, which speaks the protocol of Hugging Face, and counts what it sends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import yaml

from tests.testbed.bed import VALUES
from tests.testbed.kubectl import Kubectl, Manifest, condition, wait_for
from tests.unit.fetch import hub as hub_module

IMAGE = yaml.safe_load(VALUES.read_text())["image"]
PROGRAM = """
import json, pathlib, sys, threading
sys.path.insert(0, "/hub")
from hub import REPOSITORY, FileHub, serving, zeros
host, given = sys.argv[1], json.loads(sys.argv[2])
fillers = {size: zeros(size) for size in given["fillers"].values()}

def files(repository, folder):
    found = {path.name: path.read_bytes() for path in pathlib.Path("/models", folder).iterdir() if path.is_file()}
    size = given["fillers"].get(repository)
    return {**found, "filler.safetensors": fillers[size]} if size else found

repositories = {repository: files(repository, folder) for repository, folder in given["folders"].items()}
hub = FileHub(repositories.pop(REPOSITORY), token=given["token"], others=repositories, rates=given["rates"])
for repository in repositories:
    hub.list_of(repository)
with serving(hub, (8000, 8001), host):
    threading.Event().wait()
"""


@dataclass(frozen=True, slots=True)
class Repositories:
    """What the hub has: by repository, the folder with its files in the hub's claim.

    `token`: who asks must have it; "" if nobody needs one. `rates`: bytes that a repository sends in a second, over all
    connections. `fillers`: bytes of one more file of weights.
    """

    folders: Mapping[str, str]
    token: str = ""
    rates: Mapping[str, int] = field(default_factory=dict)
    fillers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hub:
    """The hub's pod: its name in the cluster, and its address."""

    name: str
    address: str

    @property
    def url(self) -> str:
        """For pods of the cluster."""
        return f"http://{self.name}:8000"

    def sent(self, repository: str = "") -> int:
        """The bytes of files that it has sent, of all repositories or of one."""
        counted = httpx.get(f"http://{self.address}:8000/sent", timeout=30).json()
        return int(counted["of"].get(repository, 0) if repository else counted["sent"])


def start_hub(kubectl: Kubectl, namespace: str, has: Repositories, claim: str = "models") -> Hub:
    """Starts the hub, whose files are in the claim. Returns when it answers."""
    kubectl.apply(*_manifests(namespace, has, claim))

    def up() -> Manifest | None:
        pod = kubectl.get("pod", "hub", namespace) or {}
        return pod if condition(pod, "Ready").get("status") == "True" else None

    pod = wait_for("the hub is up", up, 120)
    return Hub(f"hub.{namespace}.svc", pod["status"]["podIP"])


def _manifests(namespace: str, has: Repositories, claim: str) -> list[Manifest]:
    labels = {"app": "hub"}
    content = {"hub.py": Path(hub_module.__file__).read_text(encoding="utf-8"), "main.py": PROGRAM}
    container = {
        "name": "hub",
        "image": f"{IMAGE['repository']}:{IMAGE['tag']}",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "/hub/main.py", f"hub.{namespace}.svc", json.dumps(asdict(has))],
        "readinessProbe": {"httpGet": {"path": "/sent", "port": 8000}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "hub", "mountPath": "/hub"}, {"name": "models", "mountPath": "/models"}],
    }
    user = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    volumes = [
        {"name": "hub", "configMap": {"name": "hub"}},
        {"name": "models", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
    ]
    ports = [{"name": name, "port": port} for name, port in (("hub", 8000), ("network", 8001))]
    meta = {"name": "hub", "namespace": namespace}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": content},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"selector": labels, "ports": ports}},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**meta, "labels": labels},
            "spec": {"containers": [container], "securityContext": user, "volumes": volumes},
        },
    ]
