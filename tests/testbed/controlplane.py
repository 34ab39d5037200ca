"""etcd, API server, controller manager and scheduler: the real programs, with the settings that tests need."""

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
    """Starts and stops the four programs in a sandbox that exists."""

    def __init__(self, at: Layout, sandbox: Sandbox) -> None:
        self._at, self._sandbox = at, sandbox

    def up(self) -> None:
        """Starts what does not run; returns when the API server answers."""
        write(self._at.config / "audit-policy.yaml", yaml.safe_dump(AUDIT_POLICY))
        self._sandbox.start("etcd", self._etcd())
        self.start_apiserver()

    def start_apiserver(self) -> None:
        """Starts the API server and its clients; returns when it answers. etcd must run."""
        if not self._sandbox.running("kube-apiserver"):
            self._stop_leaders()
        self._sandbox.start("kube-apiserver", self._apiserver())
        wait_for("the API server", self.ready, log=self._at.logs / "kube-apiserver.log", seconds=120)
        self._sandbox.start("kube-controller-manager", self._controller_manager())
        self._sandbox.start("kube-scheduler", self._scheduler())

    def stop_apiserver(self) -> None:
        """Nodes, pods and all other clients go on, and retry."""
        self._stop_leaders()
        # It keeps open watches for a minute when asked to end: an outage is to start now.
        self._sandbox.stop("kube-apiserver", patience=3)

    def _stop_leaders(self) -> None:
        # In a cluster with leader election both end when they cannot renew their leases, and start anew when they can.
        # Without that, a controller manager that outlives an outage takes every node for lost when it is over.
        for name in ("kube-controller-manager", "kube-scheduler"):
            self._sandbox.stop(name, patience=3)

    def ready(self) -> bool:
        """Whether /readyz is good; it starts to be when the API server's own start-up work is done."""
        if not self._sandbox.running("kube-apiserver"):
            log = self._at.logs / "kube-apiserver.log"
            tail = log.read_text(errors="replace").splitlines()[-30:] if log.exists() else []
            raise StepFailed("\n".join(["the API server has ended; its last words:", *tail]))
        kubectl, kubeconfig = str(self._at.bin / "kubectl"), str(self._at.kubeconfig_of("testbed"))
        argv = [kubectl, "--kubeconfig", kubeconfig, "get", "--raw", "/readyz", "--request-timeout=2s"]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    def _etcd(self) -> list[str]:
        # Without fsync: a crash of the machine may lose data, which no test is about; the disk is not the limit then.
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
            # The advertised address must not be loopback: pods reach the API server at it.
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
            # The node's name means nothing to a resolver: `kubectl logs` and `exec` need its address.
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
            # Tests read the log from one place to another: it must not be rotated away under them.
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
