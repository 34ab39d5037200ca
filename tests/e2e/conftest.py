"""Fixtures of the end-to-end tests: a namespace whose claim holds the models, and the gateway as clients see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest

from tests.qd import own_namespace
from tests.testbed.bed import Release
from tests.testbed.cluster import Cluster
from tests.testbed.kubectl import Kubectl
from tests.testbed.volumes import claim_manifests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What judges the audit log of all the others comes last."""
    items.sort(key=lambda item: item.path.name == "test_rights.py")


PATIENCE_SECONDS = 600
"""As patient as the OpenAI client is by itself: longer than a request may wait for a replica."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """The gateway's Service and a valid key."""

    url: str
    key: str

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_SECONDS)

    def chat(self, model: str, text: str = "hello world", **body: object) -> httpx.Response:
        message = {"role": "user", "content": text}
        with self.client() as client:
            return client.post("/v1/chat/completions", json={"model": model, "messages": [message], **body})

    def stream(self, model: str, tokens: int) -> str:
        """One streamed answer of `tokens` tokens; its finish reason, or what went wrong instead of a full one.

        Raises httpx.HTTPError when the connection breaks."""
        # The router sends what begins alike to one replica: these begin differently.
        message = {"role": "user", "content": f"{uuid4().hex} {uuid4().hex}: tell me"}
        body = {"model": model, "messages": [message], "stream": True, "max_tokens": tokens, "ignore_eos": True}
        with self.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                return f"HTTP {answer.status_code}: {answer.read().decode()}"
            return finish_reason(answer.iter_lines())


def finish_reason(lines: Iterator[str]) -> str:
    """Of a stream of events; `no end` for one that was cut."""
    reason = "no end"
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            choices = json.loads(line.removeprefix("data: ")).get("choices") or [{}]
            reason = choices[0].get("finish_reason") or reason
    return reason


@pytest.fixture(scope="session")
def gateway(kubectl: Kubectl, release: Release) -> Gateway:
    address = kubectl.json("get", "service", release.gateway, "-n", release.namespace)["spec"]["clusterIP"]
    return Gateway(f"http://{address}", release.key(kubectl))


@pytest.fixture(scope="module")
def claim_space(bed: Cluster, kubectl: Kubectl, release: Release) -> Iterator[str]:
    """A namespace under the restricted profile with the claim `models`."""
    with own_namespace(kubectl, "e") as name:
        manifests = claim_manifests("models", name, bed.models_dir)
        kubectl.apply(*manifests)
        yield name
    for manifest in manifests:
        if manifest["kind"] == "PersistentVolume":
            kubectl.run("delete", "pv", manifest["metadata"]["name"], "--wait=false")
