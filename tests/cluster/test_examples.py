"""The manifests of docs/examples on the real API server, which checks them without storing them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.testbed.bed import Release
from tests.testbed.kubectl import Kubectl

pytestmark = pytest.mark.cluster
EXAMPLES = sorted((Path(__file__).parents[2] / "docs/examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_is_accepted_as_it_is(kubectl: Kubectl, release: Release, path: Path) -> None:
    # Strict: a field that the CRD does not know is an error, not a warning.
    text = kubectl.run("apply", "--dry-run=server", "--validate=strict", "-n", "default", "-f", str(path))

    assert text.strip().endswith("(server dry run)")
