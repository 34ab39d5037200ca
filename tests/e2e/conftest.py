"""Fixtures of the end-to-end tests: a namespace whose claim holds the models, and the gateway as clients see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest

from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl
from tests.testbed.volumes import claim_manifests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What judges the audit log of all the others comes last."""
    items.sort(key=lambda item: item.path.name == "test_rights.py")


@dataclass(frozen=True, slots=True)
class Gateway:
    """The gateway's Service and a valid key."""

    url: str
    key: str

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=60)

    def chat(self, model: str, text: str = "hello world", **body: object) -> httpx.Response:
        message = {"role": "user", "content": text}
        with self.client() as client:
            return client.post("/v1/chat/completions", json={"model": model, "messages": [message], **body})


@pytest.fixture(scope="session")
def gateway(kubectl: Kubectl, release: Release) -> Gateway:
    address = kubectl.json("get", "service", release.gateway, "-n", release.namespace)["spec"]["clusterIP"]
    return Gateway(f"http://{address}", release.key(kubectl))


@pytest.fixture(scope="module")
def claim_space(bed: Cluster, kubectl: Kubectl, release: Release) -> Iterator[str]:
    """A namespace under the restricted profile with the claim `models`."""
    name = f"e-{uuid4().hex[:8]}"
    kubectl.namespace(name, {"pod-security.kubernetes.io/enforce": "restricted"})
    manifests = claim_manifests("models", name, bed.models_dir)
    kubectl.apply(*manifests)
    yield name
    kubectl.run("delete", "namespace", name, "--wait=false")
    for manifest in manifests:
        if manifest["kind"] == "PersistentVolume":
            kubectl.run("delete", "pv", manifest["metadata"]["name"], "--wait=false")
