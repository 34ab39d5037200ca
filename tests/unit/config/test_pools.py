"""Declared pools: cost, size and generation, and one clear sentence for every mistake."""

from __future__ import annotations

import pytest

from qwen_operator.config.load import load
from qwen_operator.config.section import ConfigError
from tests.unit.config.files import GOOD


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ("maxNodes: 0", "maxNodes is 0: it must be a whole number of at least 1"),
        ("maxNodes: true", "maxNodes is true: it must be a whole number"),
        ('maxNodes: "2"', "maxNodes is '2': it must be a whole number"),
        ("computeCapability: sm90", "computeCapability is 'sm90': it must be MAJOR.MINOR"),
        ('costPerGpuHour: "-1"', "costPerGpuHour is '-1': it must be dollars per GPU and hour from 0 to 1000000, for"),
        ("costPerGpuHour: true", "costPerGpuHour is true: it must be dollars"),
        ("costPerGpuHour: []", "costPerGpuHour is a list: it must be dollars"),
    ],
)
def test_wrong_members_of_a_pool(member: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({}, GOOD.replace("gpusPerNode: 4", f"gpusPerNode: 4, {member}"))
    assert str(caught.value).startswith(f"gpuPools[0].{says}")


def test_cost_size_and_generation_of_a_pool() -> None:
    more = 'gpusPerNode: 4, costPerGpuHour: "0.80", maxNodes: 3, computeCapability: "8.9"'
    (pool,) = load({}, GOOD.replace("gpusPerNode: 4", more)).pools
    assert (pool.cost_per_gpu_hour, pool.max_nodes, pool.compute_capability) == (800, 3, (8, 9))
    (pool,) = load({}, GOOD.replace("gpusPerNode: 4", "gpusPerNode: 4, computeCapability: 9.0")).pools
    assert (pool.cost_per_gpu_hour, pool.max_nodes, pool.compute_capability) == (None, None, (9, 0))
