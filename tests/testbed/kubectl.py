"""kubectl as the tests, the demo and the benchmarks call it: real arguments in, parsed objects out."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")
Manifest = dict[str, Any]


class KubectlError(RuntimeError):
    """kubectl ended with an exit code other than 0; the text is what it wrote to standard error."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """One kubectl binary and one kubeconfig file."""

    binary: Path
    kubeconfig: Path

    def run(self, *args: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Run kubectl and return what it wrote to standard output. Raises KubectlError."""
        # Nothing of a cluster that comes and goes stays in the home folder.
        cache = f"--cache-dir={self.kubeconfig.parent / 'kubectl-cache'}"
        command = [str(self.binary), f"--kubeconfig={self.kubeconfig}", cache, *args]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode != 0:
            raise KubectlError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def json(self, *args: str) -> Any:
        return json.loads(self.run(*args, "-o", "json"))

    def get(self, kind: str, name: str, namespace: str) -> Manifest | None:
        """The object, or None when there is none."""
        text = self.run("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, namespace: str, labels: str = "") -> list[Manifest]:
        selector = ["-l", labels] if labels else []
        items: list[Manifest] = self.json("get", kind, "-n", namespace, *selector)["items"]
        return items

    def apply(self, *manifests: Manifest) -> None:
        self.run("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests, sort_keys=False))

    def refused(self, manifest: Manifest) -> str:
        """The API server's refusal of an object; an error when it is accepted."""
        try:
            self.run("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(manifest))
        except KubectlError as error:
            return str(error)
        raise AssertionError(f"the API server accepted {manifest}")

    def namespace(self, name: str, labels: dict[str, str] | None = None) -> None:
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}})


def wait_for(what: str, probe: Callable[[], T | None], timeout: float = 60, every: float = 0.5) -> T:
    """Call `probe` until it returns something true; `what` names it in the error. Times in seconds."""
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            last = found = probe()
            if found:
                return found
        except KubectlError as error:
            last = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s; last seen: {last}")
        time.sleep(every)


def condition(obj: Manifest | None, kind: str) -> Manifest:
    """The condition of that type, or an empty dict."""
    found: Iterable[Manifest] = ((obj or {}).get("status") or {}).get("conditions") or []
    return next((c for c in found if c["type"] == kind), {})
