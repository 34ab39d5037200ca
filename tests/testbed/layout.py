"""The paths and addresses of the test bed.

All paths are below one state folder, so the path shows what belongs to the test bed.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.cache import StepFailed

STATE_VARIABLE = "QWEN_TESTBED_STATE"
DEFAULT_STATE = "/var/lib/qwen-operator-testbed"

NAME = "qwen-testbed"
"""The name of the machine's end of the link into the test bed's network, and of the test bed's cgroups."""

NODE = "testbed-node"
"""The first real node. The control plane and CoreDNS are beside it."""
MOST_NODES = 5
CLUSTER_DOMAIN = "cluster.local"
NODE_ADDRESS = "10.244.0.1"
"""The bridge of the real node. API server, kubelet and CoreDNS listen here, and it is the gateway of the pods."""
POD_RANGE = "10.244.0.0/16"
SIMULATED_POD_RANGE = "10.244.128.0/17"
SIMULATED_METRICS_RANGE = "10.244.192.0/19"
"""The addresses that an exporter answers for. Only pods of nodes that are made for it get them: kwok takes all others
from the beginning of SIMULATED_POD_RANGE."""
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
HOST_ADDRESS = "10.244.255.1"
"""The address of the machine for pods: they can reach servers that listen here."""
LINK_ADDRESS = "10.244.255.2"
API_PORT = 16443
API_URL = f"https://{NODE_ADDRESS}:{API_PORT}"

# The path of a Unix socket has at most 107 bytes. This is the longest one below the state folder.
LONGEST_SOCKET = "kubelet/device-plugins/kubelet.sock-padding"


@dataclass(frozen=True, slots=True)
class RealNodeNames:
    """How the real node of a number, from 1, is called, and its addresses."""

    number: int

    @property
    def name(self) -> str:
        return NODE if self.number == 1 else f"{NODE}-{self.number}"

    @property
    def user(self) -> str:
        """The kubelet's certificate and kubeconfig."""
        return "kubelet" if self.number == 1 else f"kubelet-{self.number}"

    @property
    def address(self) -> str:
        """The address of its bridge, where the kubelet listens. For its pods, this is the gateway."""
        return f"10.244.{self.number - 1}.1"

    @property
    def pod_range(self) -> str:
        return f"10.244.{self.number - 1}.0/24"

    @property
    def first_pod(self) -> str:
        return f"10.244.{self.number - 1}.10"

    @property
    def folder(self) -> str:
        """Of a node that is not the first: its folder in the state folder, its cgroup, and the link to it."""
        return f"node-{self.number}"

    @property
    def link(self) -> tuple[str, str]:
        """The two addresses of the link between the first node and this one, in a network of 4 addresses."""
        return f"10.244.255.{4 * self.number - 3}", f"10.244.255.{4 * self.number - 2}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below the state folder, or below the folder of another real node."""

    root: Path

    @property
    def bin(self) -> Path:
        """Programs for people and tests: kubectl and helm."""
        return self.root / "bin"

    @property
    def libexec(self) -> Path:
        """Programs of the test bed. A process that runs one of these files is the test bed's."""
        return self.root / "libexec"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def config(self) -> Path:
        return self.root / "config"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.root / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def containerd_socket(self) -> Path:
        return self.root / "containerd.sock"

    @property
    def content(self) -> Path:
        """What containerd holds of the images, by SHA-256."""
        return self.root / "containerd" / "root" / "io.containerd.content.v1.content" / "blobs" / "sha256"

    def of_node(self, node: RealNodeNames) -> "Layout":
        """Where the node has its programs, configuration, images and logs. Keys and kubeconfigs are not there."""
        return self if node.number == 1 else Layout(self.root / node.folder)

    def kubeconfig_of(self, user: str) -> Path:
        return self.config / f"{user}.kubeconfig"

    def certificate(self, name: str) -> Path:
        return self.pki / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.pki / f"{name}.key"


def layout() -> Layout:
    """The layout at `$QWEN_TESTBED_STATE`, else /var/lib/qwen-operator-testbed. It creates nothing."""
    root = Path(os.environ.get(STATE_VARIABLE) or DEFAULT_STATE)
    if not root.is_absolute() or root.resolve() != root or len(root.parts) < 3:
        raise StepFailed(
            f"{STATE_VARIABLE}={root} cannot be the test bed's folder: set an absolute path of two or more levels "
            "without links"
        )
    if len(str(root / LONGEST_SOCKET)) > 107:
        raise StepFailed(
            f"{STATE_VARIABLE}={root} is too long for the sockets below it: set a path of at most 60 characters"
        )
    return Layout(root)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Writes a file completely or not at all, so that a killed run leaves no partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.touch(mode=mode)
    partial.chmod(mode)
    partial.write_text(text)
    partial.rename(path)
