"""From a grant to the pods that it lets a deployment create."""

from __future__ import annotations

import pytest

from qwen_operator.actions.types import ActionReason, Create, Kind
from qwen_operator.arbiter.asking import granted, takes_part
from qwen_operator.arbiter.fits import HOSTNAME
from qwen_operator.arbiter.types import Grant, Size
from qwen_operator.manifests.names import ANNOTATION_TOPOLOGY, ENGINE_CONTAINER, LABEL_REPLICA
from qwen_operator.replicas.groups import SortedReplicas

GPU, MIG = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"


def creations(gpus: int, pods: int, resource: str = GPU) -> tuple[Create, ...]:
    """One new replica."""
    return tuple(
        Create(
            Kind.POD,
            {
                "metadata": {"name": f"chat-1-{rank}", "labels": {LABEL_REPLICA: "chat-1"}},
                "spec": {"containers": [{"name": ENGINE_CONTAINER, "resources": {"limits": {resource: str(gpus)}}}]},
            },
            ActionReason.REPLICA_MISSING,
        )
        for rank in range(pods)
    )


def test_the_pods_go_where_the_grant_says() -> None:
    grant = Grant(1, places=(("n1", "n2"),), size=Size(GPU, 2, 2))
    made = granted(creations(gpus=2, pods=2), grant, SortedReplicas())
    assert [one.manifest["spec"]["nodeSelector"] for one in made if isinstance(one, Create)] == [
        {HOSTNAME: "n1"},
        {HOSTNAME: "n2"},
    ]


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (creations(gpus=1, pods=3), "more pods"),
        (creations(gpus=1, pods=1), "fewer pods"),
        (creations(gpus=2, pods=2), "more GPUs"),
        (creations(gpus=1, pods=2, resource=MIG), "another resource"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_grant_for_another_size_lets_nobody_create_anything(made: tuple[Create, ...], what: str) -> None:
    """The spec has changed since the deployment asked."""
    grant = Grant(1, places=(("n1", "n2"),), size=Size(GPU, 1, 2))
    assert granted(made, grant, SortedReplicas()) == (), what


@pytest.mark.parametrize(
    ("labels", "annotations", "takes"),
    [
        ({}, {}, True),
        ({"kueue.x-k8s.io/queue-name": "q"}, {}, False),
        ({}, {ANNOTATION_TOPOLOGY: "rack=Preferred"}, True),
        ({}, {ANNOTATION_TOPOLOGY: "rack=Required"}, False),
    ],
)
def test_who_takes_part(labels: dict[str, str], annotations: dict[str, str], takes: bool) -> None:
    assert takes_part({"metadata": {"name": "a", "labels": labels, "annotations": annotations}}) is takes
