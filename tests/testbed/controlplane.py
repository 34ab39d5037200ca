"""etcd, API server, controller manager and scheduler: the real programs, with the settings for tests."""

import subprocess

import yaml

from tests.testbed.cache import StepFailed
from tests.testbed.layout import API_PORT, NODE_ADDRESS, SERVICE_RANGE, Layout, write
from tests.testbed.sandbox import Sandbox, wait_for

CLIENT_RATE = ("--kube-api-qps=300", "--kube-api-burst=600")
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


class ControlPlane:
    """Starts and stops the four programs in an existing sandbox."""

    def __init__(self, at: Layout, sandbox: Sandbox) -> None:
        self._at, self._sandbox = at, sandbox

    def up(self) -> None:
        """Starts the programs that do not run. Returns when the API server answers."""
        write(self._at.config / "audit-policy.yaml", yaml.safe_dump(AUDIT_POLICY))
        self._sandbox.start("etcd", self._etcd())
        self.start_apiserver()

    def start_apiserver(self) -> None:
        """Starts the API server and its clients. Returns when it answers. etcd must be running."""
        if not self._sandbox.running("kube-apiserver"):
            self._stop_leaders()
        self._sandbox.start("kube-apiserver", self._apiserver())
        wait_for("the API server", self.ready, log=self._at.logs / "kube-apiserver.log", seconds=120)
        self._sandbox.start("kube-controller-manager", self._controller_manager())
        self._sandbox.start("kube-scheduler", self._scheduler())

    def stop_apiserver(self) -> None:
        """Stops the API server. Nodes, pods and all other clients keep running and retry."""
        self._stop_leaders()
        # After SIGTERM it keeps open watches for a minute, but the outage must start now.
        self._sandbox.stop("kube-apiserver", patience=3)

    def _stop_leaders(self) -> None:
        # With leader election, both end when they cannot renew their Leases, and start again when they can. Here they
        # have no leader election. A controller manager that survived an outage would treat every node as lost after it.
        for name in ("kube-controller-manager", "kube-scheduler"):
            self._sandbox.stop(name, patience=3)

    def ready(self) -> bool:
        """Whether /readyz succeeds, which means that the API server has finished its start-up."""
        if not self._sandbox.running("kube-apiserver"):
            log = self._at.logs / "kube-apiserver.log"
            tail = log.read_text(errors="replace").splitlines()[-30:] if log.exists() else []
            raise StepFailed("\n".join(["the API server has ended; the end of its log:", *tail]))
        kubectl, kubeconfig = str(self._at.bin / "kubectl"), str(self._at.kubeconfig_of("testbed"))
        argv = [kubectl, "--kubeconfig", kubeconfig, "get", "--raw", "/readyz", "--request-timeout=2s"]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    def _etcd(self) -> list[str]:
        # Without fsync, the disk does not limit the speed. A crash of the machine may lose data; no test needs it.
        return [
            f"--data-dir={self._at.root / 'etcd'}",
            "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=default=http://127.0.0.1:2380",
            "--log-level=warn",
        ]

    def _apiserver(self) -> list[str]:
        at = self._at
        return [
            "--etcd-servers=http://127.0.0.1:2379",
            f"--secure-port={API_PORT}",
            # The advertised address must not be loopback, because pods reach the API server at it.
            f"--advertise-address={NODE_ADDRESS}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            f"--client-ca-file={at.pki / 'ca.crt'}",
            f"--tls-cert-file={at.certificate('apiserver')}",
            f"--tls-private-key-file={at.key('apiserver')}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={at.pki / 'service-accounts.pub'}",
            f"--service-account-signing-key-file={at.key('service-accounts')}",
            f"--kubelet-client-certificate={at.certificate('apiserver-kubelet-client')}",
            f"--kubelet-client-key={at.key('apiserver-kubelet-client')}",
            f"--kubelet-certificate-authority={at.pki / 'ca.crt'}",
            # No resolver knows the node's name, so `kubectl logs` and `exec` need its address.
            "--kubelet-preferred-address-types=InternalIP",
            f"--proxy-client-cert-file={at.certificate('front-proxy-client')}",
            f"--proxy-client-key-file={at.key('front-proxy-client')}",
            f"--requestheader-client-ca-file={at.pki / 'ca.crt'}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--audit-policy-file={at.config / 'audit-policy.yaml'}",
            f"--audit-log-path={at.audit_log}",
            # Tests read the log from a stored position, so it must not be rotated.
            "--audit-log-maxsize=2048",
        ]

    def _controller_manager(self) -> list[str]:
        own = self._at.kubeconfig_of("controller-manager")
        return [
            *(f"--{use}kubeconfig={own}" for use in ("", "authentication-", "authorization-")),
            *CLIENT_RATE,
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            "--use-service-account-credentials",
            "--allocate-node-cidrs=false",
            # Of the HorizontalPodAutoscalers; the usual 15 seconds are only waited for.
            "--horizontal-pod-autoscaler-sync-period=3s",
            f"--flex-volume-plugin-dir={self._at.root / 'volume-plugins'}",
            f"--root-ca-file={self._at.pki / 'ca.crt'}",
            f"--service-account-private-key-file={self._at.key('service-accounts')}",
        ]

    def _scheduler(self) -> list[str]:
        own = self._at.kubeconfig_of("scheduler")
        return [
            *(f"--{use}kubeconfig={own}" for use in ("", "authentication-", "authorization-")),
            *CLIENT_RATE,
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
        ]
