"""Engines that share a GPU: what each takes, in every order of starts, by the formula and a simulation of SGLang."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.api.sizing import Hardware, Parallelism
from qwen_operator.engines.sglang_0_5_23 import MEMORY
from qwen_operator.hardware.inventory import GpuPool, Inventory, inventory
from qwen_operator.planning.plan import explore, plan
from qwen_operator.planning.types import NoFit, Plan
from tests.unit.planning.models import DEFAULTS, DOWNLOADED, facts, spec

GIB = 1 << 30
SHARED, MIG = "nvidia.com/gpu.shared", "nvidia.com/mig-3g.40gb"
BOARDS = {"NVIDIA-A10": 23028, "NVIDIA-L40S": 46068, "NVIDIA-H100-80GB-HBM3": 81559, "NVIDIA-H200": 143771}


def shared(product: str, pods: int) -> Inventory:
    return inventory([], [GpuPool("s", product, BOARDS[product], 8, resource_name=SHARED, pods_per_gpu=pods)])


def planned(model: str, hardware: Inventory, resource: str = SHARED, **changes: object) -> Plan | NoFit:
    asked = spec(hardware=Hardware(resource_name=resource), context_tokens=2048, **changes)
    return plan(asked, facts(model), hardware, DEFAULTS, DOWNLOADED)


def option(result: Plan, name: str) -> str | None:
    return next((arg.partition("=")[2] for arg in result.args if arg.startswith(f"--{name}=")), None)


@dataclass
class Engine:
    """What SGLang 0.5.23 does with one GPU, in GiB (mem_cache/kv_cache_configurator.py:2990 to 3100, 3303).

    The steps are those between which another engine may load: measure, load the weights, measure and allocate the
    pool, capture graphs and run.
    """

    weights: float
    context: float
    fraction: float
    per_token: int
    most_tokens: int
    most_states: float
    reserve: float
    used: float = 0.0
    before: float = 0.0
    tokens: int = 0

    def step(self, number: int, free: float) -> float:
        """Does the step and returns what it allocates. `free` is what the GPU has free."""
        if number == 0:
            self.before = free - self.context
            return self.context
        if number == 1:
            return self.weights
        if number == 2:
            rest = free - self.before * (1 - self.fraction) - self.most_states
            self.tokens = min(self.most_tokens, max(0, int(rest * GIB // self.per_token)))
            return self.tokens * self.per_token / GIB + self.most_states
        return self.reserve


def engine(result: Plan, product: str, pods: int) -> Engine:
    outcome = explore(
        spec(hardware=Hardware(resource_name=SHARED), context_tokens=2048),
        facts(MODELS[result.message]),
        shared(product, pods),
        DEFAULTS,
        DOWNLOADED,
    )
    assert outcome.best is not None
    best = outcome.best.best
    fraction, tokens = option(result, "mem-fraction-static"), option(result, "max-total-tokens")
    assert fraction is not None
    assert tokens is not None
    return Engine(
        weights=best.weights,
        context=best.total - best.free,
        fraction=float(fraction),
        per_token=best.kv_bytes_per_token,
        most_tokens=int(tokens),
        most_states=best.state,
        reserve=best.free - best.static,
    )


MODELS: dict[str, str] = {}


def fitting(model: str, product: str, pods: int) -> Plan | None:
    result = planned(model, shared(product, pods))
    if isinstance(result, NoFit):
        return None
    MODELS[result.message] = model
    return result


@given(
    st.sampled_from(sorted(BOARDS)),
    st.integers(2, 8),
    st.sampled_from(["Qwen2.5-0.5B-Instruct", "Qwen2.5-7B-Instruct-AWQ", "Qwen3.5-27B-FP8"]),
    st.data(),
)
def test_engines_on_one_gpu_get_their_tokens_and_never_exceed_it(
    product: str, pods: int, model: str, data: st.DataObject
) -> None:
    """In every interleaving of their steps: all at once, one after the other, and everything between."""
    result = fitting(model, product, pods)
    if result is None:
        return
    engines = [engine(result, product, pods) for _ in range(pods)]
    order = data.draw(st.permutations([index for index in range(pods) for _ in range(4)]))
    done = [0] * pods
    total = BOARDS[product] / 1024
    used = 0.0
    for index in order:
        used += engines[index].step(done[index], total - used)
        done[index] += 1
        assert used <= total + 1e-6
    assert [one.tokens for one in engines] == [result.kv_tokens] * pods


def test_two_engines_that_start_at_once_with_the_fraction_of_a_share_would_fail() -> None:
    """Why the fraction is that of the whole GPU: the smaller one leaves the second engine less than its weights."""
    result = fitting("Qwen2.5-7B-Instruct-AWQ", "NVIDIA-A10", 2)
    assert result is not None
    first, second = engine(result, "NVIDIA-A10", 2), engine(result, "NVIDIA-A10", 2)
    second.fraction = 0.42
    used = sum(first.step(number, BOARDS["NVIDIA-A10"] / 1024) for number in range(4))
    for number in range(3):
        used += second.step(number, BOARDS["NVIDIA-A10"] / 1024 - used)
    assert second.tokens == 0


def test_a_share_gets_limits_and_a_warning() -> None:
    result = planned("Qwen2.5-3B-Instruct", shared("NVIDIA-A10", 2))
    assert isinstance(result, Plan)
    assert (result.resource_name, result.share, result.gpu_product) == (SHARED, "TimeSlicing", "NVIDIA-A10-SHARED")
    assert option(result, "mem-fraction-static") == "0.898"
    assert option(result, "max-total-tokens") == str(result.kv_tokens)
    assert option(result, "max-mamba-cache-size") is None
    (warning,) = result.warnings
    assert "2 pods share one NVIDIA-A10" in warning
    assert "time slicing isolates no memory" in warning
    assert result.gpus == "1xA10-SHARED"


def test_the_states_of_a_hybrid_are_limited_too() -> None:
    result = planned("Qwen3.5-27B-FP8", shared("NVIDIA-H200", 2))
    assert isinstance(result, Plan)
    states = option(result, "max-mamba-cache-size")
    assert states is not None
    assert int(states) >= result.max_running_requests * MEMORY.slots_per_request


def test_a_slice_is_alone_and_keeps_the_settings_of_its_memory() -> None:
    hardware = inventory([], [GpuPool("m", "NVIDIA-H100-80GB-HBM3", 40320, 14, resource_name=MIG)])
    result = planned("Qwen2.5-7B-Instruct", hardware, MIG)
    assert isinstance(result, Plan)
    assert option(result, "mem-fraction-static") == "0.88"
    assert option(result, "max-total-tokens") is None
    assert "MIG slice: NVIDIA-H100-80GB-HBM3-MIG-3g.40gb has its 40320 MiB for itself" in result.warnings[0]
    assert result.status("r")["resourceName"] == MIG
    assert Plan.from_json(result.to_json()) == result


def test_mps_brings_its_own_shm() -> None:
    node = {
        "metadata": {
            "name": "n",
            "labels": {
                "nvidia.com/gpu.product": "NVIDIA-A10",
                "nvidia.com/gpu.memory": "23028",
                "nvidia.com/gpu.replicas": "2",
                "nvidia.com/gpu.sharing-strategy": "mps",
            },
        },
        "status": {"allocatable": {SHARED: "2"}},
    }
    result = planned("Qwen2.5-0.5B-Instruct", inventory([node], []))
    assert isinstance(result, Plan)
    assert (result.share, result.shm_bytes) == ("MPS", 0)
    assert "never ran an engine under MPS" in result.warnings[0]


@given(st.integers(2, 8), st.integers(2, 64), st.sampled_from([SHARED, MIG]))
def test_a_part_of_a_gpu_never_gets_two_ranks(pods: int, tensor: int, resource: str) -> None:
    pool = (
        GpuPool("s", "NVIDIA-H200", 143771, 64, resource_name=SHARED, pods_per_gpu=pods, max_nodes=4)
        if resource == SHARED
        else GpuPool("m", "NVIDIA-H200", 71000, 64, resource_name=MIG, max_nodes=4)
    )
    result = planned("Qwen2.5-32B-Instruct", inventory([], [pool]), resource)
    assert isinstance(result, NoFit) or (result.tensor_parallel, result.gpus_per_replica) == (1, 1)
    refused = planned("Qwen2.5-7B-Instruct", inventory([], [pool]), resource, parallelism=Parallelism(tensor=tensor))
    assert isinstance(refused, NoFit)
    assert "an engine cannot be split over MIG slices or shared GPUs; valid here: 1" in refused.message


def test_whole_gpus_have_nothing_of_this() -> None:
    result = planned("Qwen2.5-7B-Instruct", inventory([], [GpuPool("p", "NVIDIA-L40S", 46068, 8)]), "nvidia.com/gpu")
    assert isinstance(result, Plan)
    assert (result.share, result.warnings) == ("", ())
    assert not {"resource_name", "share"} & set(result.to_json())
    assert not {"resourceName", "share"} & set(result.status("r"))


def test_a_resource_that_no_node_offers_is_answered_with_those_that_they_offer() -> None:
    result = planned("Qwen2.5-7B-Instruct", shared("NVIDIA-A10", 2), MIG)
    assert isinstance(result, NoFit)
    assert f"spec.hardware.resourceName is {MIG}, but no node offers it" in result.message
    assert f"the nodes offer {SHARED}" in result.message


def test_a_model_that_is_too_large_for_a_slice_is_offered_larger_ones_and_whole_gpus() -> None:
    hardware = inventory(
        [],
        [
            GpuPool("a", "NVIDIA-H100-80GB-HBM3", 9984, 7, resource_name="nvidia.com/mig-1g.10gb"),
            GpuPool("b", "NVIDIA-H100-80GB-HBM3", 40320, 2, resource_name=MIG),
            GpuPool("c", "NVIDIA-H100-80GB-HBM3", 81559, 8),
        ],
    )
    result = planned("Qwen2.5-7B-Instruct", hardware, "nvidia.com/mig-1g.10gb")
    assert isinstance(result, NoFit)
    changes = [dict(one.changes) for one in result.alternatives]
    assert {"hardware.resourceName": MIG} in changes
    assert {"hardware.resourceName": None} in changes


@pytest.mark.parametrize("names", [("NVIDIA-A10",), ("A10",), ("A10-SHARED",), ("NVIDIA-A10-SHARED",)])
def test_a_renamed_share_is_called_by_its_gpu_too(names: tuple[str, ...]) -> None:
    asked = spec(hardware=Hardware(products=names, resource_name=SHARED), context_tokens=2048)
    result = plan(asked, facts("Qwen2.5-0.5B-Instruct"), shared("NVIDIA-A10", 4), DEFAULTS, DOWNLOADED)
    assert isinstance(result, Plan)
