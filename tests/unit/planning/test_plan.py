"""Sizing: which GPUs, how many, which options; and why not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import Engine, EnvVar, Hardware, Parallelism, Spec
from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.facts import INSPECTION, Checkpoint, Quantization
from qwen_operator.hardware.inventory import GpuPool, Inventory, inventory
from qwen_operator.planning.memory import GIB, budget
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import EngineDefaults, NoFit, Plan

# The machine that runs the tests may be busy; that is not what they are about.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

DEFAULTS = EngineDefaults("lmsysorg/sglang", "0.5.23")
MEMORY = {
    "Tesla-T4": 15360,
    "NVIDIA-L4": 23034,
    "NVIDIA-L40S": 46068,
    "NVIDIA-H100-80GB-HBM3": 81559,
    "NVIDIA-H200": 143771,
}


def _inventory(*products: str, gpus: int = 8) -> Inventory:
    return inventory([], [GpuPool(product, product, MEMORY[product], gpus) for product in products])


def _model(size: str) -> Checkpoint:
    facts = catalog.lookup(f"Qwen/Qwen1.5-{size}")
    assert facts is not None
    return facts


def _spec(**changes: Any) -> Spec:
    return Spec(model="Qwen/Qwen1.5-72B", **changes)


def _planned(spec: Spec, size: str, found: Inventory, defaults: EngineDefaults = DEFAULTS) -> Plan:
    result = plan(spec, _model(size), found, defaults)
    assert isinstance(result, Plan), result
    return result


def _refused(spec: Spec, size: str, found: Inventory, defaults: EngineDefaults = DEFAULTS) -> NoFit:
    result = plan(spec, _model(size), found, defaults)
    assert isinstance(result, NoFit), result
    return result


SMALLEST: dict[str, tuple[str, list[int | None]]] = {
    # GPUs on L4, L40S, H100, H200 for one request of 32768 tokens; None: not on 8 of them
    "0.5B": ("0.5B", [1, 1, 1, 1]),
    "7B": ("7B-Chat", [2, 1, 1, 1]),
    "72B": ("72B-Chat", [None, 8, 4, 2]),
}


@pytest.mark.parametrize(("size", "gpus"), SMALLEST.values(), ids=SMALLEST.keys())
def test_smallest_number_of_gpus(size: str, gpus: list[int | None]) -> None:
    results = [plan(_spec(), _model(size), _inventory(product), DEFAULTS) for product in list(MEMORY)[1:]]
    assert [one.gpus_per_replica if isinstance(one, Plan) else None for one in results] == gpus


def test_a_plan_in_full() -> None:
    result = _planned(_spec(), "72B", _inventory("NVIDIA-H100-80GB-HBM3"))
    assert (result.gpus, result.tensor_parallel, result.context_tokens) == ("4xH100-80GB", 4, 32768)
    # 0.9 x (79.65 - 0.9 - 0.36 - 0.3) - 134.65 / 4 - 0.25 - 0.5 = 35.87 GiB, at 640 KiB per token
    assert result.kv_tokens == pytest.approx(58766, abs=2)
    assert result.startup_seconds == 120 + 145 + 120
    assert (result.engine_image, result.engine_version) == ("lmsysorg/sglang:v0.5.23", "0.5.23")
    assert result.args[:6] == (
        "--tp-size=4",
        "--mem-fraction-static=0.9",
        "--context-length=32768",
        "--chunked-prefill-size=4096",
        "--cuda-graph-max-bs-decode=32",
        "--cuda-graph-backend-prefill=disabled",
    )
    assert "--enable-metrics" in result.args
    assert result.selector == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert result.shm_bytes == 4 * GIB
    assert "35.9 GiB KV per GPU" in result.message
    assert "catalog" in result.message
    assert "TP 2: 78.09 GiB free x 0.9 - 67.57 weights" in "\n".join(result.steps)
    assert [line.partition(":")[0] for line in result.steps[-3:]] == ["not known", "not known", "not considered yet"]
    assert result.warnings == ()
    status = result.status("12345678")
    assert (status["hash"], status["parallelism"]) == ("12345678", {"tensor": 4})


TUNED = {"Tesla-T4": ("0.78", 2048), "NVIDIA-L4": ("0.85", 2048), "NVIDIA-L40S": ("0.88", 4096)}
TUNED |= {"NVIDIA-H100-80GB-HBM3": ("0.9", 4096), "NVIDIA-H200": ("0.92", 8192)}


@pytest.mark.parametrize(("product", "expected"), TUNED.items())
def test_settings_follow_from_the_size_of_the_gpu(product: str, expected: tuple[str, int]) -> None:
    args = _planned(_spec(), "0.5B", _inventory(product)).args
    assert f"--mem-fraction-static={expected[0]}" in args
    assert f"--chunked-prefill-size={expected[1]}" in args


CHOICE = {
    "fewest GPUs": (Hardware(), "NVIDIA-H200", 2),
    "the order of the user": (Hardware(("NVIDIA-L40S", "H200")), "NVIDIA-L40S", 8),
    "the first that fits": (Hardware(("L4", "H100-80GB", "H200")), "NVIDIA-H100-80GB-HBM3", 4),
    "what is there": (Hardware(("B200", "h100-80gb")), "NVIDIA-H100-80GB-HBM3", 4),
    "within the limit": (Hardware(("L40S", "H200"), 2), "NVIDIA-H200", 2),
}


@pytest.mark.parametrize(("hardware", "product", "gpus"), CHOICE.values(), ids=CHOICE.keys())
def test_choice_between_products(hardware: Hardware, product: str, gpus: int) -> None:
    result = _planned(_spec(hardware=hardware), "72B", _inventory(*MEMORY))
    assert (result.gpu_product, result.gpus_per_replica) == (product, gpus)


def test_equal_numbers_of_gpus_take_the_smaller_memory() -> None:
    assert _planned(_spec(), "0.5B", _inventory(*MEMORY)).gpu_product == "Tesla-T4"


def test_a_pool_places_the_pods() -> None:
    pool = GpuPool("p", "NVIDIA-L4", 23034, 8, {"pool": "l4"}, ({"key": "l4"},))
    result = _planned(_spec(), "0.5B", inventory([], [pool]))
    assert (result.selector, result.tolerations) == ({"pool": "l4"}, ({"key": "l4"},))


NODE = {"metadata": {"name": "gpu-3"}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}}
SHARED = {
    "metadata": {"name": "s", "labels": {"nvidia.com/gpu.product": "A-SHARED"}},
    "status": {"allocatable": {"nvidia.com/gpu": "8"}},
}
NO_HARDWARE = {
    "nothing": (_spec(), inventory([], []), Reason.NO_GPUS, "declares no gpuPools"),
    "unlabelled": (
        _spec(),
        inventory([NODE], []),
        Reason.UNLABELLED_GPUS,
        "kubectl label node gpu-3 nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3 nvidia.com/gpu.memory=81559",
    ),
    "several unlabelled": (_spec(), inventory([NODE, NODE], []), Reason.UNLABELLED_GPUS, "(and on 1 more)"),
    "shared": (_spec(), inventory([SHARED], []), Reason.NO_GPUS, "left out: s: A-SHARED is shared"),
    "other products": (
        _spec(hardware=Hardware(("B200",))),
        _inventory("NVIDIA-L4"),
        Reason.NO_GPUS,
        "asks for B200; here are NVIDIA-L4 (L4)",
    ),
}


@pytest.mark.parametrize(("spec", "found", "reason", "says"), NO_HARDWARE.values(), ids=NO_HARDWARE.keys())
def test_without_usable_gpus(spec: Spec, found: Inventory, reason: Reason, says: str) -> None:
    refusal = _refused(spec, "0.5B", found)
    assert refusal.reason == reason
    assert says in refusal.message


def test_a_model_too_large_for_the_gpus_says_what_is_missing() -> None:
    refusal = _refused(_spec(), "72B", _inventory("NVIDIA-L4"))
    assert refusal.reason == Reason.DOES_NOT_FIT
    assert "8 x NVIDIA-L4 (22.5 GiB): 17.1 weights + 10.0 KV for 32768 tokens" in refusal.message
    assert "no context fits" in refusal.message
    assert refusal.alternatives == ()
    assert refusal.status()["steps"] == list(refusal.steps)


def test_every_alternative_is_itself_a_plan() -> None:
    spec = _spec(hardware=Hardware(max_gpus_per_replica=2))
    found = _inventory("NVIDIA-L40S", "NVIDIA-H100-80GB-HBM3", gpus=2)
    refusal = _refused(spec, "72B", found)
    assert "spec.contextTokens: 1792 fits 2xH100-80GB" in refusal.message
    assert [one["contextTokens"] for one in refusal.status()["alternatives"]] == [1792]
    for one in refusal.alternatives:
        again = _planned(replace(spec, context_tokens=one.context_tokens), "72B", found)
        assert (again.gpu_product, again.gpus_per_replica) == (one.gpu_product, one.gpus_per_replica)


def test_nodes_without_labels_are_mentioned_when_the_others_do_not_suffice() -> None:
    found = inventory([NODE], [GpuPool("p", "NVIDIA-L4", 23034, 8)])
    assert "kubectl label node gpu-3" in _refused(_spec(), "72B", found).message


INVALID: dict[str, tuple[Spec, str]] = {
    "heads": (
        _spec(parallelism=Parallelism(3)),
        "64 attention heads are not divisible by TP 3; valid here: 1, 2, 4, 8",
    ),
    "more than a node": (_spec(parallelism=Parallelism(16)), "at most 8 GPUs for a replica; valid here: 1, 2, 4, 8"),
    "context": (_spec(context_tokens=65536), "spec.contextTokens is 65536, but the model's own limit is 32768"),
    "version of a fixed image": (_spec(engine=Engine(version="0.5.20")), "the chart fixes the image x/sglang:cpu"),
    "reserved option": (_spec(engine=Engine(args=("--port=1",))), "spec.engine.args[0]: --port cannot be set here"),
}


@pytest.mark.parametrize(("spec", "says"), INVALID.values(), ids=INVALID.keys())
def test_invalid_overrides(spec: Spec, says: str) -> None:
    defaults = EngineDefaults("x/sglang:cpu", "0.5.23")
    refusal = _refused(spec, "72B", _inventory("NVIDIA-H100-80GB-HBM3"), defaults)
    assert refusal.reason == Reason.INVALID_OVERRIDE
    assert says in refusal.message


def test_an_unknown_option_of_the_chart_names_the_chart() -> None:
    refusal = _refused(_spec(), "0.5B", _inventory("NVIDIA-L4"), replace(DEFAULTS, args=("--nope",)))
    assert (refusal.reason, refusal.message) == (
        Reason.UNKNOWN_FLAG,
        "the chart's engine.args[0]: SGLang 0.5.23 has no option --nope",
    )


def test_an_override_of_the_split_is_taken_or_does_not_fit() -> None:
    found = _inventory("NVIDIA-L4", "NVIDIA-H100-80GB-HBM3")
    assert _planned(_spec(parallelism=Parallelism(8)), "72B", found).gpus == "8xH100-80GB"
    limited = _refused(_spec(parallelism=Parallelism(2)), "72B", found)
    assert limited.reason == Reason.DOES_NOT_FIT
    assert limited.message.endswith("without spec.parallelism.tensor 2, TP 4 fits: 4xH100-80GB")
    small = inventory([], [GpuPool("a", "NVIDIA-L4", 23034, 1), GpuPool("b", "NVIDIA-L40S", 46068, 2)])
    assert _refused(_spec(parallelism=Parallelism(2)), "72B", small).reason == Reason.DOES_NOT_FIT


@pytest.mark.parametrize(
    ("architecture", "says"),
    [("Qwen3NextForCausalLM", "cannot work out its memory yet"), ("LlamaForCausalLM", "is not a Qwen architecture")],
)
def test_unknown_architectures(architecture: str, says: str) -> None:
    facts = replace(_model("7B"), architecture=architecture)
    refusal = plan(_spec(), facts, _inventory("NVIDIA-H200"), DEFAULTS)
    assert isinstance(refusal, NoFit)
    assert refusal.reason == Reason.UNKNOWN_ARCHITECTURE
    assert says in refusal.message


IMAGES: dict[str, tuple[Engine, str, tuple[str, str]]] = {
    "chart": (Engine(), "lmsysorg/sglang", ("lmsysorg/sglang:v0.5.23", "0.5.23")),
    "chart with a tag": (Engine(), "localhost:5000/sglang:cpu", ("localhost:5000/sglang:cpu", "0.5.23")),
    "chart with a tag, same version": (Engine(version="0.5.23"), "a/sglang:cpu", ("a/sglang:cpu", "0.5.23")),
    "another version": (Engine(version="0.5.20"), "lmsysorg/sglang", ("lmsysorg/sglang:v0.5.20", "0.5.20")),
    "own image": (Engine(image="r:5000/sglang"), "x", ("r:5000/sglang:v0.5.23", "0.5.23")),
    "own tag says the version": (Engine(image="r/sglang:v0.5.20-cu129"), "x", ("r/sglang:v0.5.20-cu129", "0.5.20")),
    "own tag and version": (Engine(image="r/sglang:mine", version="0.5.20"), "x:1", ("r/sglang:mine", "0.5.20")),
    "digest": (Engine(image="r/sglang@sha256:ab"), "x", ("r/sglang@sha256:ab", "0.5.23")),
}


@pytest.mark.parametrize(("own", "chart", "expected"), IMAGES.values(), ids=IMAGES.keys())
def test_image_and_version(own: Engine, chart: str, expected: tuple[str, str]) -> None:
    result = _planned(_spec(engine=own), "0.5B", _inventory("NVIDIA-L4"), EngineDefaults(chart, "0.5.23"))
    assert (result.engine_image, result.engine_version) == expected
    assert any("not checked" in warning for warning in result.warnings) is (expected[1] != "0.5.23")


def test_options_and_variables_of_the_object_win_over_the_charts_over_the_plans() -> None:
    chart = replace(
        DEFAULTS,
        args=("--device=cpu", "--mem-fraction-static=0.5", "--log-level=warning"),
        env=(EnvVar("SGLANG_USE_CPU_ENGINE", "1"), EnvVar("A", "chart")),
    )
    own = Engine(
        args=("--mem-fraction-static", "0.7", "--chunked-prefill-size=2048", "--log-level=info"),
        env=(EnvVar("A", "own"), EnvVar("SGLANG_PYSPY_DUMP_BEFORE_CRASH", "true")),
        startup_seconds=33,
    )
    result = _planned(_spec(engine=own), "0.5B", _inventory("NVIDIA-L4"), chart)
    assert {"--device=cpu", "--mem-fraction-static=0.7", "--log-level=info"} <= set(result.args)
    assert len([item for item in result.args if item.startswith("--mem-fraction-static")]) == 1
    assert {one.name: one.value for one in result.env} == {
        "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "false",
        "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "true",
        "SGLANG_USE_CPU_ENGINE": "1",
        "A": "own",
    }
    assert result.startup_seconds == 33
    assert "33 s (spec.engine.startupSeconds)" in "\n".join(result.steps)
    # what equals the plan (the chunk) and what changes no memory (the log level) is no reason to warn
    assert [warning.partition(", ")[0] for warning in result.warnings] == [
        "the chart's engine.args sets --device=cpu",
        "the chart's engine.args sets --mem-fraction-static=0.5",
        "spec.engine.args sets --mem-fraction-static=0.7",
    ]
    # Planned's message is made of both: a warning in each would stand there twice
    assert not any(warning in result.message for warning in result.warnings)
    assert result.status("x")["steps"][-1].startswith("warning: spec.engine.args")


def test_facts_from_an_inspection_are_not_called_a_catalogs() -> None:
    facts = replace(_model("0.5B"), source=INSPECTION)
    result = plan(_spec(), facts, _inventory("NVIDIA-L4"), DEFAULTS)
    assert "catalog" not in " ".join((result.message, *result.steps))


@pytest.mark.parametrize("broken", [{}, {"gpu_product": "x"}])
def test_a_stored_plan_of_another_shape_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError)):
        Plan.from_json(broken)


_POWERS = st.sampled_from([1, 2, 4, 8, 16, 32, 64])
_CHECKPOINTS = st.builds(
    Checkpoint,
    architecture=st.sampled_from(["Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"]),
    dtype=st.just("bfloat16"),
    layers=st.integers(1, 128),
    hidden=st.just(1024),
    heads=st.sampled_from([16, 20, 32, 40, 64]),
    kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([64, 128]),
    intermediate=st.sampled_from([2816, 11008, 13696, 24576]),
    vocab=st.just(151936),
    max_positions=st.integers(512, 262144),
    tied=st.booleans(),
    quantization=st.none() | st.just(Quantization("gptq", 4, 128)),
    experts=st.none() | st.just(60),
    weight_bytes=st.integers(1 << 20, 400 << 30),
    source=st.just(INSPECTION),
    digest=st.just(""),
)
_INVENTORIES = st.lists(st.sampled_from(sorted(MEMORY)), min_size=1, unique=True).flatmap(
    lambda products: _POWERS.map(lambda gpus: _inventory(*products, gpus=gpus))
)


@UNHURRIED
@given(_CHECKPOINTS, _INVENTORIES)
def test_a_plan_is_valid_deterministic_and_survives_storage(checkpoint: Checkpoint, found: Inventory) -> None:
    result = plan(_spec(), checkpoint, found, DEFAULTS)
    assert result == plan(_spec(), checkpoint, found, DEFAULTS)
    if isinstance(result, NoFit):
        assert result.message
        return
    assert Plan.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert checkpoint.tensor_parallel_refusal(result.tensor_parallel) is None
    assert result.kv_tokens >= result.context_tokens
    product = next(one for one in found.products if one.product == result.gpu_product)
    assert result.gpus_per_replica <= product.gpus_per_node
    one = budget(checkpoint, product.memory_mib, result.tensor_parallel)
    held = one.weights + result.context_tokens * one.kv_bytes_per_token / GIB
    assert held < one.free < one.total
    assert held <= one.static


@UNHURRIED
@given(_CHECKPOINTS, _INVENTORIES, st.integers(1, 262144), st.integers(1, 262144))
def test_more_context_never_needs_fewer_gpus(checkpoint: Checkpoint, found: Inventory, one: int, two: int) -> None:
    short, long = sorted(min(value, checkpoint.max_positions) for value in (one, two))
    lesser = plan(_spec(context_tokens=short), checkpoint, found, DEFAULTS)
    greater = plan(_spec(context_tokens=long), checkpoint, found, DEFAULTS)
    if isinstance(greater, Plan):
        assert isinstance(lesser, Plan)
        assert lesser.gpus_per_replica <= greater.gpus_per_replica


@UNHURRIED
@given(_CHECKPOINTS, _INVENTORIES)
def test_alternatives_are_plans(checkpoint: Checkpoint, found: Inventory) -> None:
    result = plan(_spec(), checkpoint, found, DEFAULTS)
    for one in result.alternatives if isinstance(result, NoFit) else ():
        spec = _spec(context_tokens=one.context_tokens, hardware=Hardware((one.gpu_product,)))
        again = plan(spec, checkpoint, found, DEFAULTS)
        assert isinstance(again, Plan)
        assert again.gpus_per_replica == one.gpus_per_replica
