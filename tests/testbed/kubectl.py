"""kubectl for the tests, the demo and the benchmarks. It takes real arguments and returns parsed objects."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from qwen_operator import objects

T = TypeVar("T")
Manifest = dict[str, Any]


class KubectlError(RuntimeError):
    """kubectl ended with an exit code other than 0. The text is its error output."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """One kubectl binary and one kubeconfig file."""

    binary: Path
    kubeconfig: Path

    def run(self, *args: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Run kubectl and return its standard output. Raises KubectlError."""
        # The home folder must keep nothing of a temporary cluster.
        cache = f"--cache-dir={self.kubeconfig.parent / 'kubectl-cache'}"
        command = [str(self.binary), f"--kubeconfig={self.kubeconfig}", cache, *args]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode != 0:
            raise KubectlError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def json(self, *args: str) -> Any:
        return json.loads(self.run(*args, "-o", "json"))

    def get(self, kind: str, name: str, namespace: str) -> Manifest | None:
        """The object, or None if it does not exist."""
        text = self.run("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, namespace: str, labels: str = "") -> list[Manifest]:
        selector = ["-l", labels] if labels else []
        items: list[Manifest] = self.json("get", kind, "-n", namespace, *selector)["items"]
        return items

    def apply(self, *manifests: Manifest) -> None:
        self.run("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests, sort_keys=False))

    def apply_as_helm(self, live: Manifest) -> None:
        """Write an object of the chart, as it was read and changed, with Helm as the owner of its fields.

        Otherwise Helm's next upgrade would find a conflict with kubectl.
        """
        server = ("resourceVersion", "uid", "creationTimestamp", "generation", "managedFields")
        metadata = {name: value for name, value in live["metadata"].items() if name not in server}
        manifest = {**{name: part for name, part in live.items() if name != "status"}, "metadata": metadata}
        options = ("--server-side", "--force-conflicts", "--field-manager=helm")
        self.run("apply", *options, "-f", "-", stdin=json.dumps(manifest))

    def refused(self, manifest: Manifest) -> str:
        """The API server's message when it rejects the object. Raises AssertionError if it accepts it."""
        try:
            self.run("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(manifest))
        except KubectlError as error:
            return str(error)
        raise AssertionError(f"the API server accepted {manifest}")

    def namespace(self, name: str, labels: dict[str, str] | None = None) -> None:
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}})


def wait_for(label: str, probe: Callable[[], T | None], timeout: float = 60, every: float = 0.5) -> T:
    """Call `probe` until it returns a true value. `label` names it in the error. Times are in seconds."""
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            last = value = probe()
            if value:
                return value
        except KubectlError as error:
            last = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"{label}: not within {timeout:g} s; last seen: {last}")
        time.sleep(every)


def condition(obj: Manifest | None, kind: str) -> Manifest:
    """The condition of that type, or an empty dict."""
    return dict(objects.condition(obj or {}, kind))
