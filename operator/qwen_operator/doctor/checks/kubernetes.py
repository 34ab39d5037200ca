"""The version of Kubernetes."""

import re
from collections.abc import Iterator

from qwen_operator import objects
from qwen_operator.doctor.types import ClusterFacts, Finding, Mark

NAME = "kubernetes"
OLDEST = (1, 30)
"""The chart's `kubeVersion`. A test compares them."""
_VERSION = re.compile(r"v?([0-9]{1,4})\.([0-9]{1,4})")


def check(facts: ClusterFacts) -> Iterator[Finding]:
    text = objects.text(facts.version.first, "gitVersion")
    match = _VERSION.match(text)
    if match is None:
        why = facts.version.problem or f"the API server names its version {text!r}"
        yield Finding(Mark.UNKNOWN, NAME, f"not checked: {why}")
        return
    wanted = ".".join(map(str, OLDEST))
    if (int(match[1]), int(match[2])) < OLDEST:
        yield Finding(
            Mark.BAD, NAME, f"Kubernetes is {text}, the chart needs {wanted} or newer: upgrade the control plane"
        )
    else:
        yield Finding(Mark.OK, NAME, f"Kubernetes is {text}; the chart needs {wanted} or newer")
