"""An engine that enforces NetworkPolicies on the real node: the firewall part of kube-router, beside kube-proxy.

kube-network-policies, of the Kubernetes project, cannot run on every machine: it needs the nftables expression `queue`
(CONFIG_NFT_QUEUE). kube-router needs iptables and ipset. It lives in the test bed's network namespace, like everything
else, and disappears with it.
"""

from tests.testbed.layout import NODE, SERVICE_RANGE, Layout, write
from tests.testbed.sandbox import Sandbox, wait_for

DAEMON = "kube-router"

# Pods on one bridge reach each other without the node's IP layer, unless the bridge shows their packets to iptables.
_BRIDGED = """\
for family in iptables ip6tables; do echo 1 > /proc/sys/net/bridge/bridge-nf-call-$family; done
"""
# The table `filter` is kube-router's alone: kube-proxy uses tables of nftables, and the CNI plugins use `nat`.
# Packets of the bridge stay visible, as in a new bed. Otherwise a pod could not reach a pod of its node by a Service.
_CLEAN = """\
for family in iptables ip6tables; do $family -F; $family -X; done
ipset destroy
"""


class PolicyEngine:
    """Starts and stops the enforcement in a sandbox whose node is up."""

    def __init__(self, at: Layout, sandbox: Sandbox) -> None:
        self._at, self._sandbox = at, sandbox

    def start(self) -> None:
        """Returns when policies are in force."""
        self._run("policies-on.sh", _BRIDGED)
        self._sandbox.start(DAEMON, self._arguments())
        wait_for("the policy engine", self._in_force, log=self._at.logs / f"{DAEMON}.log", seconds=60)

    def stop(self) -> None:
        """Returns when no policy has an effect any more."""
        self._sandbox.stop(DAEMON)
        self._run("policies-off.sh", _CLEAN)

    def _arguments(self) -> list[str]:
        return [
            "--run-firewall=true",
            "--run-router=false",
            "--run-service-proxy=false",
            f"--kubeconfig={self._at.kubeconfig_of(DAEMON)}",
            f"--hostname-override={NODE}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--health-port=0",
            "--metrics-port=0",
        ]

    def _in_force(self) -> bool:
        return self._sandbox.succeeds(["iptables", "-n", "-L", "KUBE-ROUTER-FORWARD"])

    def _run(self, name: str, script: str) -> None:
        path = self._at.config / name
        write(path, script)
        self._sandbox.call(["/bin/sh", "-eu", str(path)])
