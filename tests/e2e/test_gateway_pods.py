"""Two gateway pods hear of each other by the cluster's DNS, and leave each other out when one is gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbed.bed import Release
from tests.testbed.kubectl import Kubectl, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.alone]
LABELS = "app.kubernetes.io/component=gateway"
PAGE = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9091/metrics', timeout=5).read().decode())"


def known_peers(kubectl: Kubectl, release: Release) -> list[str]:
    """How many others each gateway pod that is not ending knows."""
    found = []
    for pod in kubectl.list("pods", release.namespace, LABELS):
        name = pod["metadata"]["name"]
        if "deletionTimestamp" not in pod["metadata"]:
            page = kubectl.run("exec", name, "-n", release.namespace, "-c", "proxy", "--", "python3", "-c", PAGE)
            found += [line.split()[1] for line in page.splitlines() if line.startswith("qwen_gateway_peers ")]
    return found


@pytest.fixture
def two_pods(kubectl: Kubectl, release: Release) -> Iterator[None]:
    def scale(replicas: int) -> None:
        kubectl.run("scale", f"deployment/{release.gateway}", "-n", release.namespace, f"--replicas={replicas}")
        kubectl.run("rollout", "status", f"deployment/{release.gateway}", "-n", release.namespace, "--timeout=180s")

    scale(2)
    yield
    scale(1)


@pytest.mark.usefixtures("two_pods")
def test_each_gateway_pod_knows_what_the_other_counts(kubectl: Kubectl, release: Release) -> None:
    wait_for("both know each other", lambda: known_peers(kubectl, release) == ["1", "1"], 90)
    kubectl.run("scale", f"deployment/{release.gateway}", "-n", release.namespace, "--replicas=1")
    wait_for("the other one has ended", lambda: known_peers(kubectl, release) == ["0"], 90)
