"""A real node: containerd, kubelet and kube-proxy in a sandbox. CoreDNS is beside those of the first node."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import yaml

from tests.testbed.binaries import PAUSE_IMAGE
from tests.testbed.cache import StepFailed
from tests.testbed.layout import (
    CLUSTER_DOMAIN,
    NAME,
    NODE_ADDRESS,
    POD_RANGE,
    Layout,
    RealNodeNames,
    write,
)
from tests.testbed.sandbox import Sandbox, processes_of, wait_for
from tests.testbed.simulated import real_node_taints

DAEMONS = ("kubelet", "kube-proxy", "coredns", "containerd")
"""The order in which to stop them."""
SHIM = "containerd-shim-runc-v2"
CONTAINERD_TOOLS = (SHIM, "ctr")
"""Programs that belong to containerd and must be of its version."""


class RealNode:
    """Starts the node's programs in a sandbox with a connected network, and imports images into the node."""

    def __init__(self, at: Layout, sandbox: Sandbox, node: RealNodeNames) -> None:
        self._cluster, self._at = at, at.of_node(node)
        self._sandbox, self._node = sandbox, node

    def up(self, pause_archive: Path) -> bool:
        """Starts the programs that do not run. Returns whether it started the kubelet, which may not be ready yet."""
        self._write_config()
        self._start_containerd("containerd.toml")
        self.load(pause_archive)
        fresh = not self._sandbox.running("kubelet")
        self._sandbox.start("kubelet", self._kubelet())
        self._sandbox.start("kube-proxy", self._kube_proxy())
        if self._node.number == 1:
            self.start_dns()
        return fresh

    def take_images(self, other: Layout) -> None:
        """Takes the images of the node whose layout is `other`, if this one was never started. It costs no disk.

        The files are hard links: containerd never writes to those of an image.
        """
        taken = self._at.root / "images"
        if taken.exists():
            return
        self._sandbox.stop("containerd")
        target = self._at.root / "containerd" / "root"
        shutil.rmtree(target, ignore_errors=True)
        script = self._at.config / "take-images.sh"
        write(script, _TAKE_IMAGES)
        [containerd, *_] = processes_of(other.libexec / "containerd")
        # In a session of its own, so that an interrupt from the keyboard does not leave the other containerd stopped.
        argv = [
            "/bin/sh",
            "-eu",
            str(script),
            str(containerd.pid),
            str(other.root / "containerd" / "root"),
            str(target),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, start_new_session=True)
        if done.returncode != 0:
            raise StepFailed(f"the images could not be taken from the first node: {done.stderr.strip()}")
        self._forget_containers()
        shutil.copytree(other.root / "images", taken)

    def _forget_containers(self) -> None:
        """Removes the other node's pods from the copied database, while nothing else reads it."""
        self._write_config()
        self._start_containerd("containerd-without-cri.toml")
        if containers := self._ctr("containers", "ls", "-q").split():
            self._ctr("containers", "rm", *containers)
        if sandboxes := [line.split()[0] for line in self._ctr("sandboxes", "ls").splitlines()[1:]]:
            # Without force, ctr leaves those that do not run here.
            self._ctr("sandboxes", "rm", "--force", *sandboxes)
        # A lease of a pod keeps what its image volumes were mounted from.
        if leases := self._ctr("leases", "ls", "-q").split():
            self._ctr("leases", "rm", *leases)
        self._sandbox.stop("containerd")

    def _start_containerd(self, config: str) -> None:
        self._sandbox.start("containerd", [f"--config={self._at.config / config}"])
        wait_for("containerd", self._containerd_answers, log=self._at.logs / "containerd.log")

    def start_dns(self) -> None:
        self._sandbox.start("coredns", [f"-conf={self._at.config / 'Corefile'}", "-p=53"])

    def stop_dns(self) -> None:
        self._sandbox.stop("coredns")

    def restart_kubelet(self) -> None:
        """Restarts the kubelet. Pods keep running. The kubelet may not be ready yet when this returns."""
        self._sandbox.stop("kubelet")
        self._sandbox.start("kubelet", self._kubelet())

    def load(self, archive: Path) -> None:
        """Imports the images of an OCI or Docker archive, unless the node still has the images of this file."""
        state = archive.stat()
        mark = self._at.root / "images" / f"{archive.name}-{state.st_ino}-{state.st_size}-{state.st_mtime_ns}"
        if mark.exists() and set(mark.read_text().splitlines()) <= self._digests():
            return
        output = self._ctr("images", "import", "--local", str(archive))
        write(mark, "\n".join(" ".join(image) for image in re.findall(r"unpacking (\S+) \((sha256:\w+)\)", output)))

    def images(self) -> list[str]:
        """The references of all images in the node."""
        return self._ctr("images", "ls", "-q").split()

    def digest(self, image: str) -> str:
        """Of an image that the node has."""
        return next(digest for name, digest in map(str.split, self._digests()) if name == image)

    def _digests(self) -> set[str]:
        """`reference digest` of all images in the node."""
        rows = [line.split() for line in self._ctr("images", "ls").splitlines()[1:]]
        return {f"{row[0]} {row[2]}" for row in rows}

    def _ctr(self, *arguments: str) -> str:
        return self._sandbox.call([*self._ctr_argv, "--namespace=k8s.io", *arguments])

    @property
    def _ctr_argv(self) -> list[str]:
        return [str(self._at.libexec / "ctr"), f"--address={self._at.containerd_socket}"]

    def _containerd_answers(self) -> bool:
        if not self._at.containerd_socket.exists():
            return False
        return self._sandbox.succeeds([*self._ctr_argv, "--connect-timeout=2s", "version"])

    def _write_config(self) -> None:
        write(self._at.config / "containerd.toml", self._containerd_config())
        write(self._at.config / "containerd-without-cri.toml", self._containerd_config("grpc.v1.cri"))
        write(self._at.config / "registries" / "localhost" / "hosts.toml", 'server = "http://localhost"\n')
        write(self._at.config / "cni" / "10-testbed.conflist", json.dumps(self._cni(), indent=1))
        write(self._at.config / "kubelet.yaml", yaml.safe_dump(self._kubelet_config()))
        # The sandbox cannot reach the machine's own resolver. Pods that use the node's resolver get the cluster's.
        write(self._at.config / "resolv.conf", f"nameserver {NODE_ADDRESS}\n")
        write(self._at.config / "Corefile", self._corefile())

    def _containerd_config(self, *disabled: str) -> str:
        root = self._at.root / "containerd"
        unused = ("snapshotter.v1.blockfile", "snapshotter.v1.devmapper", "snapshotter.v1.zfs", "nri.v1.nri")
        return f"""\
version = 3
root = "{root / "root"}"
state = "{root / "state"}"
disabled_plugins = {json.dumps([f"io.containerd.{name}" for name in (*unused, *disabled)])}
[grpc]
address = "{self._at.containerd_socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{root / "opt"}"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{self._at.config / "registries"}"
[plugins."io.containerd.cri.v1.runtime"]
# A machine without CAP_SYS_RESOURCE may not lower its oom_score_adj: without this every pod fails there.
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
# A shim of another version on PATH would be taken first.
runtime_path = "{self._at.libexec / SHIM}"
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{self._at.config / "cni"}"
"""

    def _kubelet(self) -> list[str]:
        return [
            f"--config={self._at.config / 'kubelet.yaml'}",
            f"--kubeconfig={self._cluster.kubeconfig_of(self._node.user)}",
            f"--hostname-override={self._node.name}",
            f"--node-ip={self._node.address}",
        ]

    def _kubelet_config(self) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._cluster.pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(self._cluster.certificate(self._node.user)),
            "tlsPrivateKeyFile": str(self._cluster.key(self._node.user)),
            "containerRuntimeEndpoint": f"unix://{self._at.containerd_socket}",
            "cgroupDriver": "cgroupfs",
            # The pods' cgroups are below our own, which distinguishes them from those of any other kubelet.
            "cgroupRoot": f"/{NAME}" if self._node.number == 1 else f"/{NAME}/{self._node.folder}",
            "registerWithTaints": real_node_taints(self._node),
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            # A container that ends again and again is started after 5 seconds instead of up to 5 minutes.
            "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
            "clusterDomain": CLUSTER_DOMAIN,
            "clusterDNS": [NODE_ADDRESS],
            "resolvConf": str(self._at.config / "resolv.conf"),
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            # Images come from archives, so a removed image cannot be pulled again.
            "imageGCHighThresholdPercent": 100,
            "volumePluginDir": str(self._at.root / "volume-plugins"),
            "serializeImagePulls": False,
            "registryPullQPS": 0,
        }

    def _kube_proxy(self) -> list[str]:
        return [
            f"--kubeconfig={self._cluster.kubeconfig_of('kube-proxy')}",
            f"--hostname-override={self._node.name}",
            "--proxy-mode=nftables",
            f"--cluster-cidr={POD_RANGE}",
            "--conntrack-max-per-core=0",
            "--oom-score-adj=0",
        ]

    def _corefile(self) -> str:
        # Only zones of the cluster. Any other name is rejected at once, so that nothing waits for an outside resolver.
        return f"""\
{CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
    bind {NODE_ADDRESS}
    ready 127.0.0.1:8181
    errors
    cache 5
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {self._cluster.kubeconfig_of("coredns")}
        pods insecure
        ttl 5
    }}
}}
"""

    def _cni(self) -> dict[str, object]:
        node = self._node
        addresses = {"subnet": node.pod_range, "rangeStart": node.first_pod, "gateway": node.address}
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": [[addresses]], "routes": [{"dst": "0.0.0.0/0"}]},
        }
        return {
            "cniVersion": "0.4.0",
            "name": "testbed",
            "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}],
        }


_TAKE_IMAGES = """\
containerd=$1 from=$2 to=$3
layers=io.containerd.snapshotter.v1.overlayfs content=io.containerd.content.v1.content
names=io.containerd.metadata.v1.bolt
mkdir -p "$to/$layers/snapshots" "$to/$names"
# A database that is copied while its owner stands still is one that a crash would leave: it can be opened.
trap 'kill -CONT "$containerd"' EXIT
kill -STOP "$containerd"
cp "$from/$names/meta.db" "$to/$names/"
cp "$from/$layers/metadata.db" "$to/$layers/"
for layer in "$from/$layers/snapshots"/*; do
    # What a container writes to is no layer of an image.
    [ -e "$layer/work/work" ] || cp -al "$layer" "$to/$layers/snapshots/"
done
cp -al "$from/$content" "$to/"
"""
