"""Sizing: which GPUs, how many, which options; and why not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.api.engine import Engine
from qwen_operator.api.sizing import Hardware, Parallelism, Workload
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.facts import INSPECTION, Quantization
from qwen_operator.hardware.inventory import GpuPool, Inventory, inventory
from qwen_operator.planning.memory import GIB
from qwen_operator.planning.plan import explore, plan, runnable
from qwen_operator.planning.types import EngineDefaults, EngineSource, NoFit, Plan
from tests.unit.planning.models import DEFAULTS, DOWNLOADED, facts, pool, pools, spec

ALL = ("T4", "L4", "L40S", "H100-80GB", "H200")
H100 = "NVIDIA-H100-80GB-HBM3"


def _planned(asked: Spec, model: str, hardware: Inventory, source: EngineSource = DOWNLOADED) -> Plan:
    result = plan(asked, facts(model), hardware, DEFAULTS, source)
    assert isinstance(result, Plan), result
    return result


def _refused(asked: Spec, model: str, hardware: Inventory, defaults: EngineDefaults = DEFAULTS) -> NoFit:
    result = plan(asked, facts(model), hardware, defaults, DOWNLOADED)
    assert isinstance(result, NoFit), result
    return result


SMALLEST: dict[str, list[int | None]] = {
    # GPUs on L4, L40S, H100, H200 for one request of the model's own context; None: not on 8 of them
    "Qwen1.5-0.5B": [1, 1, 1, 1],
    "Qwen1.5-7B-Chat": [2, 1, 1, 1],
    "Qwen1.5-14B-Chat-GPTQ-Int4": [2, 1, 1, 1],
    "Qwen1.5-32B-Chat": [4, 2, 1, 1],
    "Qwen1.5-72B-Chat": [None, 8, 4, 2],
    "Qwen1.5-72B-Chat-AWQ": [8, 4, 2, 1],
    "Qwen1.5-MoE-A2.7B": [2, 1, 1, 1],
    "Qwen2.5-7B-Instruct": [1, 1, 1, 1],
    "Qwen3-235B-A22B-FP8": [None, 8, 4, 2],
}


@pytest.mark.parametrize(("model", "gpus"), SMALLEST.items())
def test_smallest_number_of_gpus(model: str, gpus: list[int | None]) -> None:
    results = [plan(spec(), facts(model), pools(product), DEFAULTS, DOWNLOADED) for product in ALL[1:]]
    assert [one.gpus_per_replica if isinstance(one, Plan) else None for one in results] == gpus


def test_a_plan_in_full() -> None:
    result = _planned(spec(), "Qwen1.5-72B-Chat", pools("H100-80GB"))
    assert (result.gpus, result.tensor_parallel, result.context_tokens) == ("4xH100-80GB", 4, 32768)
    # 0.9 x (79.65 - 1.22 - 1.08) - 134.65 / 4 - 0.25 - 0.5 = 35.2 GiB, at 640 KiB per token, in whole pages of 64
    assert result.kv_tokens == 57408
    assert result.kv_bytes_per_token_per_rank == 640 * 1024
    assert result.weight_bytes_per_rank == pytest.approx(144575840256 / 4, rel=0.001)
    assert result.startup_seconds == 1446 + 120 + 145 + 120
    assert (result.engine_image, result.engine_version) == ("lmsysorg/sglang:v0.5.23", "0.5.23")
    assert result.args == (
        "--tp-size=4",
        "--mem-fraction-static=0.9",
        "--context-length=32768",
        "--chunked-prefill-size=4096",
        "--cuda-graph-max-bs-decode=256",
        "--max-running-requests=256",
        "--kv-cache-dtype=auto",
        "--tool-call-parser=qwen",
        "--cuda-graph-backend-prefill=disabled",
        "--enable-metrics",
        "--sleep-on-idle",
        "--uvicorn-access-log-exclude-prefixes",
        "/health",
        "/ready",
        "/metrics",
        "/v1/loads",
    )
    assert result.selector == {"nvidia.com/gpu.product": H100}
    assert (result.shm_bytes, result.cpu_millis, result.host_memory_bytes) == (4 * GIB, 2000, 8 * GIB)
    assert (result.nodes_per_replica, result.gpus_per_node) == (1, 4)
    assert (result.max_running_requests, result.typical_requests) == (256, 22)
    assert "35.0 GiB KV per GPU" in result.message
    assert "catalog" in result.message
    lines = "\n".join(result.steps)
    assert "TP 2: 77.18 GiB free x 0.9 - 67.57 weights" in lines
    assert "holds 1 request of 32768 tokens, or 22 of 2048 + 512; at most 256 run at once" in lines
    assert [line.partition(":")[0] for line in result.steps[-2:]] == ["not known", "not known"]
    assert result.warnings == ()


def test_the_status_of_a_plan_fits_beside_everything_else() -> None:
    status = _planned(spec(), "Qwen1.5-72B-Chat", pools("H100-80GB")).status("12345678")
    assert status["hash"] == "12345678"
    assert status["parallelism"] == {"tensor": 4}
    assert (status["nodesPerReplica"], status["maxRunningRequests"], status["kvCacheType"]) == (1, 256, "auto")
    assert len(json.dumps(status)) < 3000


CHOICE = {
    "fewest GPUs": (Hardware(), "NVIDIA-H200", 2),
    "the order of the user": (Hardware(("NVIDIA-L40S", "H200")), "NVIDIA-L40S", 8),
    "the first that fits": (Hardware(("L4", "H100-80GB", "H200")), H100, 4),
    "what is there": (Hardware(("B200", "h100-80gb")), H100, 4),
    "within the limit": (Hardware(("L40S", "H200"), 2), "NVIDIA-H200", 2),
}


@pytest.mark.parametrize(("hardware", "product", "gpus"), CHOICE.values(), ids=CHOICE.keys())
def test_choice_between_products(hardware: Hardware, product: str, gpus: int) -> None:
    result = _planned(spec(hardware=hardware), "Qwen1.5-72B-Chat", pools(*ALL))
    assert (result.gpu_product, result.gpus_per_replica) == (product, gpus)


def test_equal_numbers_of_gpus_take_the_smaller_memory() -> None:
    assert _planned(spec(), "Qwen1.5-0.5B", pools(*ALL)).gpu_product == "Tesla-T4"


def test_cost_decides_where_every_candidate_has_one() -> None:
    cheap, dear = pool("L40S", cost_per_gpu_hour=500), pool("H200", cost_per_gpu_hour=2500)
    result = _planned(spec(), "Qwen1.5-72B-Chat", inventory([], [cheap, dear]))
    assert (result.gpu_product, result.gpus_per_replica) == ("NVIDIA-L40S", 8)
    assert "cost: 8 x 0.50 = 4.00 per hour and replica (gpuPools)" in result.steps
    # 8 x 0.70 is more than 2 x 2.50
    dearer = inventory([], [replace(cheap, cost_per_gpu_hour=700), dear])
    assert _planned(spec(), "Qwen1.5-72B-Chat", dearer).gpu_product == "NVIDIA-H200"
    # a cost that only some have decides nothing
    mixed = inventory([], [cheap, replace(dear, cost_per_gpu_hour=None)])
    assert _planned(spec(), "Qwen1.5-72B-Chat", mixed).gpu_product == "NVIDIA-H200"


def test_many_gpus_without_nvlink_are_said_to_be_slow() -> None:
    lines = {name: "\n".join(_planned(spec(), "Qwen1.5-72B-Chat", pools(name)).steps) for name in ("L40S", "H100-80GB")}
    assert "slow: 8 x NVIDIA-L40S exchange every layer over PCIe" in lines["L40S"]
    assert "slow" not in lines["H100-80GB"]


def test_a_pool_places_the_pods() -> None:
    placed = GpuPool("p", "NVIDIA-L4", 23034, 8, {"pool": "l4"}, ({"key": "l4"},))
    result = _planned(spec(), "Qwen1.5-0.5B", inventory([], [placed]))
    assert (result.selector, result.tolerations) == ({"pool": "l4"}, ({"key": "l4"},))


def test_a_workload_asks_for_room_beyond_one_request() -> None:
    model, hardware = "Qwen1.5-7B-Chat", pools("L40S")
    assert _planned(spec(), model, hardware).gpus_per_replica == 1
    busy = spec(context_tokens=8192, workload=Workload(16, 2048, 512))
    result = _planned(busy, model, hardware)
    assert result.kv_tokens >= 16 * 2560
    assert "workload: 16 requests x (2048 + 512) = 40960 tokens; with contextTokens 40960 are needed" in result.steps
    assert result.typical_requests >= 16
    # a workload below one long request changes nothing
    idle = spec(workload=Workload(1))
    assert _planned(idle, model, hardware).gpus_per_replica == 1
    many = _planned(spec(context_tokens=512, workload=Workload(300, 128, 128)), "Qwen1.5-0.5B", pools("L4"))
    assert many.max_running_requests == 300
    assert "--cuda-graph-max-bs-decode=48" in many.args


def test_few_tokens_run_few_requests() -> None:
    tight = _planned(spec(context_tokens=64), "Qwen1.5-32B-Chat", pools("H100-80GB"))
    assert tight.max_running_requests == 256
    states = _planned(spec(context_tokens=2048), "Qwen3.5-27B", pools("H100-80GB"))
    assert states.max_running_requests < 256
    assert f"--cuda-graph-max-bs-decode={states.max_running_requests}" in states.args
    assert "--mamba-full-memory-ratio=0.9" in states.args
    assert any("of state per slot" in line for line in states.steps)


def test_longer_contexts_by_yarn() -> None:
    result = _planned(spec(context_tokens=65536), "Qwen2.5-7B-Instruct", pools("H100-80GB"))
    assert "--context-length=65536" in result.args
    (override,) = [arg for arg in result.args if arg.startswith("--json-model-override-args=")]
    assert json.loads(override.partition("=")[2])["max_position_embeddings"] == 65536
    assert any("by YaRN, beyond the model's own 32768" in line for line in result.steps)


def test_experts_are_grouped_where_the_split_asks_for_it() -> None:
    result = _planned(spec(parallelism=Parallelism(8)), "Qwen3-235B-A22B-FP8", pools("H100-80GB"))
    assert (result.tensor_parallel, result.expert_parallel) == (8, 2)
    assert "--ep-size=2" in result.args
    assert result.status("x")["parallelism"] == {"tensor": 8, "expert": 2}
    assert "TP 8, EP 2" in result.message


def test_several_nodes_only_where_one_does_not_do() -> None:
    model = "Qwen3-Coder-480B-A35B-Instruct"
    result = _planned(spec(), model, pools("H100-80GB", nodes=4))
    assert (result.tensor_parallel, result.nodes_per_replica, result.gpus_per_node) == (16, 2, 8)
    assert "--nnodes=2" in result.args
    assert (result.shm_bytes, result.cpu_millis) == (8 * GIB, 4000)
    one = _planned(spec(), model, inventory([], [pool("H100-80GB", max_nodes=4), pool("B200")]))
    assert (one.gpu_product, one.nodes_per_replica) == ("NVIDIA-B200", 1)
    assert _refused(spec(), model, pools("H100-80GB")).reason is Reason.DOES_NOT_FIT
    limited = spec(hardware=Hardware(max_gpus_per_replica=8))
    assert _refused(limited, model, pools("H100-80GB", nodes=4)).reason is Reason.DOES_NOT_FIT


def test_several_nodes_only_where_the_spec_allows_them() -> None:
    model = "Qwen3-Coder-480B-A35B-Instruct"
    wide = plan(spec(), facts(model), pools("H100-80GB", nodes=4), DEFAULTS, DOWNLOADED)
    refused = runnable(wide, facts(model), DOWNLOADED)
    assert isinstance(refused, NoFit)
    assert refused.reason is Reason.DOES_NOT_FIT
    assert "needs 2 nodes" in refused.message
    assert refused.message.endswith(
        "spec.hardware.maxNodesPerReplica is 1: set it to 2 to run each replica over 2 nodes"
    )
    (change,) = refused.alternatives
    assert change.patch() == {"spec": {"hardware": {"maxNodesPerReplica": 2}}}
    allowed = spec(hardware=Hardware(max_nodes_per_replica=2))
    planned = plan(allowed, facts(model), pools("H100-80GB", nodes=4), DEFAULTS, DOWNLOADED)
    assert runnable(planned, facts(model), DOWNLOADED, 2) == wide


def test_an_alternative_over_several_nodes_says_what_the_spec_must_allow() -> None:
    narrow = _refused(spec(), "Qwen1.5-72B-Chat", pools("L4"))
    wide = [one for one in narrow.alternatives if one.nodes_per_replica > 1]
    assert [dict(one.changes) for one in wide] == [{"hardware.maxNodesPerReplica": wide[0].nodes_per_replica}]
    assert runnable(narrow, facts("Qwen1.5-72B-Chat"), DOWNLOADED) is narrow
    own = _refused(spec(hardware=Hardware(max_nodes_per_replica=2)), "Qwen1.5-72B-Chat", pools("L4"))
    assert [one.changes for one in own.alternatives if one.nodes_per_replica > 1] == [()]


def test_few_nodes_of_a_product_win_over_many_of_another() -> None:
    model = "Qwen3-Coder-480B-A35B-Instruct"
    both = inventory([], [pool("L40S", max_nodes=8), pool("H100-80GB", max_nodes=2)])
    wanted = ("L40S", "H100-80GB")
    any_number = _planned(spec(hardware=Hardware(wanted)), model, both)
    assert (any_number.gpu_product, any_number.nodes_per_replica) == ("NVIDIA-L40S", 4)
    few = _planned(spec(hardware=Hardware(wanted, max_nodes_per_replica=2)), model, both)
    assert (few.gpu_product, few.nodes_per_replica) == ("NVIDIA-H100-80GB-HBM3", 2)


def test_what_the_operator_cannot_run_is_refused() -> None:
    file = facts("Qwen1.5-7B-Chat-GGUF")
    fits = plan(spec(), file, pools("H100-80GB"), DEFAULTS, DOWNLOADED)
    unnamed = runnable(fits, file, DOWNLOADED)
    assert isinstance(unnamed, NoFit)
    assert "a GGUF repository holds several files: set spec.source.uri" in unnamed.message
    assert runnable(fits, file, EngineSource("/models/source/a.gguf")) is fits
    plain = _planned(spec(), "Qwen1.5-7B-Chat", pools("H100-80GB"))
    assert runnable(plain, facts("Qwen1.5-7B-Chat"), DOWNLOADED) is plain


def test_gguf_is_planned_for_one_gpu_with_the_types_of_its_tensors() -> None:
    types = (("Q4_K", 3 * GIB), ("Q6_K", GIB))
    catalog = facts("Qwen1.5-7B-Chat-GGUF")
    file = replace(catalog, source=INSPECTION, quantization=Quantization("gguf", 4, None, types=types))
    result = plan(spec(), file, pools("H100-80GB", "L4"), DEFAULTS, EngineSource("/models/source/a.gguf"))
    assert isinstance(result, Plan)
    assert result.tensor_parallel == 1
    assert "tensors: Q4_K 3.00 GiB, Q6_K 1.00 GiB" in result.steps
    assert result.host_memory_bytes == (2 + 5) * GIB
    refused = _refused(spec(parallelism=Parallelism(tensor=2)), "Qwen1.5-7B-Chat-GGUF", pools("H100-80GB"))
    assert "GGUF weights run on one GPU only, not on TP 2" in refused.message


NODE = {"metadata": {"name": "gpu-3"}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}}
SHARED = {
    "metadata": {"name": "s", "labels": {"nvidia.com/gpu.product": "A-SHARED"}},
    "status": {"allocatable": {"nvidia.com/gpu": "8"}},
}
NO_HARDWARE = {
    "nothing": (spec(), inventory([], []), Reason.NO_GPUS, "declares no gpuPools"),
    "unlabelled": (
        spec(),
        inventory([NODE], []),
        Reason.UNLABELLED_GPUS,
        "kubectl label node gpu-3 nvidia.com/gpu.product=PRODUCT nvidia.com/gpu.memory=MIB --overwrite, with what "
        "nvidia-smi --query-gpu=name,memory.total",
    ),
    "several unlabelled": (spec(), inventory([NODE, NODE], []), Reason.UNLABELLED_GPUS, "(and on 1 more)"),
    "shared": (spec(), inventory([SHARED], []), Reason.NO_GPUS, "left out: s: A-SHARED is shared"),
    "other products": (
        spec(hardware=Hardware(("B200",))),
        pools("L4"),
        Reason.NO_GPUS,
        "is B200, but the cluster has NVIDIA-L4 (L4)",
    ),
}


@pytest.mark.parametrize(("asked", "hardware", "reason", "says"), NO_HARDWARE.values(), ids=NO_HARDWARE.keys())
def test_without_usable_gpus(asked: Spec, hardware: Inventory, reason: Reason, says: str) -> None:
    refusal = _refused(asked, "Qwen1.5-0.5B", hardware)
    assert refusal.reason == reason
    assert says in refusal.message
    assert refusal.alternatives == ()


def test_a_model_too_large_for_the_gpus_says_what_is_missing() -> None:
    refusal = _refused(spec(), "Qwen1.5-72B-Chat", pools("L4"))
    assert refusal.reason == Reason.DOES_NOT_FIT
    assert "8 x NVIDIA-L4 (22.5 GiB): 17.1 weights + 10.0 KV for 32768 tokens" in refusal.message
    assert refusal.message.endswith("would fit 8xL4: spec.model: Qwen/Qwen1.5-72B-Chat-GPTQ-Int4")
    assert refusal.missing == "12.7 GiB of memory per GPU on 8 x NVIDIA-L4"
    assert refusal.status()["steps"] == list(refusal.steps)


def test_nodes_without_labels_are_mentioned_when_the_others_do_not_suffice() -> None:
    hardware = inventory([NODE], [pool("L4")])
    assert "kubectl label node gpu-3" in _refused(spec(), "Qwen1.5-72B-Chat", hardware).message


def test_labels_that_disagree_are_part_of_the_arithmetic() -> None:
    labels = {"nvidia.com/gpu.product": H100, "nvidia.com/gpu.memory": "40960"}
    node = {"metadata": {"name": "n", "labels": labels}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}}
    for model in ("Qwen1.5-7B-Chat", "Qwen1.5-110B-Chat"):
        result = plan(spec(), facts(model), inventory([node], []), DEFAULTS, DOWNLOADED)
        assert any("planned with 40960" in line for line in result.steps)


INVALID: dict[str, tuple[Spec, str]] = {
    "heads": (
        spec(parallelism=Parallelism(3)),
        "spec.parallelism.tensor is 3: 64 attention heads are not divisible by TP 3; valid here: 1, 2, 4, 8",
    ),
    "more than a node": (spec(parallelism=Parallelism(16)), "at most 8 GPUs here; valid here: 1, 2, 4, 8"),
    "context beyond YaRN": (
        spec(context_tokens=200000),
        "spec.contextTokens is 200000, but the model's own limit is 32768 (131072 with YaRN): set at most 131072",
    ),
    "request beyond the context": (
        spec(workload=Workload(1, 32000, 1000)),
        "requests of 32000 + 1000 tokens, but the context is 32768",
    ),
    "version of a fixed image": (spec(engine=Engine(version="0.5.20")), "the chart fixes the image x/sglang:cpu"),
    "reserved option": (spec(engine=Engine(args=("--port=1",))), "spec.engine.args[0]: --port cannot be set here"),
    "option against the cache type": (
        spec(engine=Engine(kv_cache_type="Fp8E4m3", args=("--kv-cache-dtype=bf16",))),
        "spec.engine.args sets --kv-cache-dtype=bf16, but spec.engine.kvCacheType is Fp8E4m3",
    ),
    "option against YaRN": (
        spec(context_tokens=65536, engine=Engine(args=("--json-model-override-args={}",))),
        "which spec.contextTokens 65536 needs for YaRN",
    ),
    "option against the workload": (
        spec(workload=Workload(8), engine=Engine(args=("--max-running-requests=4",))),
        "--max-running-requests=4, but spec.workload.concurrency is 8",
    ),
}


@pytest.mark.parametrize(("asked", "says"), INVALID.values(), ids=INVALID.keys())
def test_invalid_overrides(asked: Spec, says: str) -> None:
    defaults = EngineDefaults("x/sglang:cpu", "0.5.23")
    refusal = _refused(asked, "Qwen1.5-72B-Chat", pools("H100-80GB"), defaults)
    assert refusal.reason == Reason.INVALID_OVERRIDE
    assert says in refusal.message


def test_options_that_agree_with_the_fields_are_no_contradiction() -> None:
    args = ("--kv-cache-dtype=fp8_e4m3", "--json-model-override-args={}", "--max-running-requests=16")
    asked = spec(workload=Workload(8), engine=Engine(kv_cache_type="Fp8E4m3", args=args))
    result = _planned(asked, "Qwen1.5-7B-Chat", pools("H100-80GB"))
    assert set(args) <= set(result.args)
    assert result.max_running_requests == 16
    assert "--cuda-graph-max-bs-decode=16" in result.args
    assert result.warnings == ("prediction void: spec.engine.args sets --json-model-override-args={}",)
    odd = _planned(spec(engine=Engine(args=("--max-running-requests=many",))), "Qwen1.5-7B-Chat", pools("H100-80GB"))
    assert odd.max_running_requests == 256


def test_a_split_over_nodes_must_be_even() -> None:
    # 16 GPUs on nodes of 6 would be 6 + 6 + 4
    hardware = inventory([], [pool("H100-80GB", 6, max_nodes=4)])
    refusal = _refused(spec(parallelism=Parallelism(16)), "Qwen1.5-72B-Chat", hardware)
    assert refusal.reason is Reason.INVALID_OVERRIDE
    assert "cannot be split evenly over nodes of 6 GPUs" in refusal.message
    even = _planned(spec(parallelism=Parallelism(16)), "Qwen1.5-72B-Chat", pools("H100-80GB", nodes=4))
    assert (even.tensor_parallel, even.nodes_per_replica) == (16, 2)


def test_an_unknown_option_of_the_chart_names_the_chart() -> None:
    refusal = _refused(spec(), "Qwen1.5-0.5B", pools("L4"), replace(DEFAULTS, args=("--nope",)))
    assert (refusal.reason, refusal.message) == (
        Reason.UNKNOWN_FLAG,
        "the chart's engine.args[0]: SGLang 0.5.23 has no option --nope",
    )


def test_an_override_of_the_split_is_taken_or_does_not_fit() -> None:
    hardware = pools("L4", "H100-80GB")
    assert _planned(spec(parallelism=Parallelism(8)), "Qwen1.5-72B-Chat", hardware).gpus == "8xH100-80GB"
    limited = _refused(spec(parallelism=Parallelism(2)), "Qwen1.5-72B-Chat", hardware)
    assert limited.reason == Reason.DOES_NOT_FIT
    assert limited.message.endswith("would fit 4xH100-80GB: without spec.parallelism.tensor")
    small = inventory([], [pool("L4", 1), pool("L40S", 2)])
    assert _refused(spec(parallelism=Parallelism(2)), "Qwen1.5-72B-Chat", small).reason == Reason.DOES_NOT_FIT


def test_a_split_that_only_smaller_nodes_lack_is_valid() -> None:
    """TP 5 is valid for a model with 40 heads and an even width, and no power of two."""
    checkpoint = replace(facts("Qwen1.5-14B-Chat"), intermediate=14080)
    result = plan(spec(parallelism=Parallelism(5)), checkpoint, pools("H100-80GB"), DEFAULTS, DOWNLOADED)
    assert isinstance(result, Plan)
    assert result.tensor_parallel == 5


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ("Qwen3OmniMoeForConditionalGeneration", "SGLang 0.5.23 has Qwen3OmniMoeForConditionalGeneration, but this"),
        ("LlamaForCausalLM", "SGLang 0.5.23 has LlamaForCausalLM, but this version of the operator cannot calculate"),
        ("Qwen2ForProcessRewardModel", "SGLang 0.5.23 does not have the architecture Qwen2ForProcessRewardModel"),
        ("Qwen4ExpForCausalLM", "SGLang 0.5.23 does not have the architecture Qwen4ExpForCausalLM: correct"),
    ],
)
def test_unknown_architectures(architecture: str, says: str) -> None:
    checkpoint = replace(facts("Qwen1.5-7B-Chat"), architecture=architecture)
    refusal = plan(spec(), checkpoint, pools("H200"), DEFAULTS, DOWNLOADED)
    assert isinstance(refusal, NoFit)
    assert refusal.reason == Reason.UNKNOWN_ARCHITECTURE
    assert says in refusal.message


def test_what_an_unknown_version_has_is_never_claimed() -> None:
    checkpoint = replace(facts("Qwen1.5-7B-Chat"), architecture="Qwen9ForCausalLM")
    refusal = plan(spec(engine=Engine(version="9.9.9")), checkpoint, pools("H200"), DEFAULTS, DOWNLOADED)
    assert isinstance(refusal, NoFit)
    assert refusal.message.startswith("the model class is Qwen9ForCausalLM, but this version of the operator cannot")


def test_no_possible_split_is_said() -> None:
    hardware = inventory([], [pool("L4", 8)])
    quantized = replace(facts("Qwen1.5-14B-Chat-GPTQ-Int4"), intermediate=13696)
    refusal = plan(spec(parallelism=Parallelism(2)), quantized, hardware, DEFAULTS, DOWNLOADED)
    assert isinstance(refusal, NoFit)
    assert "valid here: 1" in refusal.message
    hybrid = _refused(spec(workload=Workload(500, 16, 16)), "Qwen3.5-27B", inventory([], [pool("H100-80GB", 2)]))
    assert "hold the states of 123 requests at TP 2, 500 wanted" in hybrid.message
    assert hybrid.missing == "states for 377 requests"


def test_a_hybrid_gives_up_requests_for_a_long_context_and_tokens_for_many_requests() -> None:
    hardware = inventory([], [pool("L40S", 2)])
    ratios = {}
    for asked in (spec(context_tokens=8192), spec(), spec(context_tokens=4096, workload=Workload(30, 64, 64))):
        result = _planned(asked, "Qwen3.5-27B", hardware)
        (ratio,) = [arg.partition("=")[2] for arg in result.args if arg.startswith("--mamba-full-memory-ratio")]
        ratios[ratio] = (result.kv_tokens, result.max_running_requests)
    assert list(ratios) == ["0.9", "0.25", "2"]
    assert ratios["0.25"][0] >= 262144
    assert ratios["2"][1] >= 30


def test_a_product_that_is_barred_is_no_place_for_a_split() -> None:
    hardware = inventory([], [pool("T4", 8), pool("L4", 1)])
    refusal = _refused(spec(parallelism=Parallelism(2)), "Qwen1.5-7B-Chat-GPTQ-Int4", hardware)
    assert refusal.message.startswith("GPTQ weights need compute capability 8.0, Tesla-T4 has 7.5; would fit")


def test_only_what_is_on_a_claim_starts_without_a_download() -> None:
    model = "Qwen1.5-72B-Chat"
    claimed = _planned(spec(), model, pools("H100-80GB"), EngineSource("/models/source/chat"))
    assert claimed.startup_seconds == 120 + 145 + 120
    assert "start-up: 120 s imports + 144.6 GB at 1 GB/s + 120 s graphs = 385 s (assumed)" in claimed.steps
    [step] = [step for step in _planned(spec(), model, pools("H100-80GB")).steps if step.startswith("start-up")]
    assert step.startswith("start-up: 144.6 GB from the hub at 0.1 GB/s + 120 s imports")


def test_a_start_up_time_of_the_users_own_is_taken() -> None:
    result = _planned(spec(engine=Engine(startup_seconds=33)), "Qwen1.5-0.5B", pools("L4"))
    assert result.startup_seconds == 33
    assert "start-up: 33 s (spec.engine.startupSeconds)" in result.steps


def test_facts_from_an_inspection_are_not_called_a_catalogs() -> None:
    checkpoint = replace(facts("Qwen1.5-0.5B"), source=INSPECTION)
    result = plan(spec(), checkpoint, pools("L4"), DEFAULTS, DOWNLOADED)
    assert isinstance(result, Plan)
    assert "catalog" not in " ".join((result.message, *result.steps))


def test_everything_that_was_looked_at_can_be_shown() -> None:
    fits = explore(spec(), facts("Qwen1.5-72B-Chat"), pools("H100-80GB", "H200"), DEFAULTS, DOWNLOADED)
    assert fits.best
    assert fits.best.product.product == "NVIDIA-H200"
    assert [one.tp for one in fits.best.budgets] == [1, 2, 4, 8]
    assert [tp for tp, _ in fits.best.refused] == [3, 5, 6, 7]
    assert len(fits.tried) == 2


@pytest.mark.parametrize("broken", [{}, {"gpu_product": "x"}])
def test_a_stored_plan_of_another_shape_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError)):
        Plan.from_json(broken)


def test_a_stored_plan_of_the_previous_version_is_read() -> None:
    result = _planned(spec(), "Qwen1.5-7B-Chat", pools("H100-80GB"))
    assert Plan.from_json(json.loads(json.dumps(result.to_json()))) == result
    previous = {
        "gpu_product", "gpus_per_replica", "tensor_parallel", "context_tokens", "kv_tokens", "startup_seconds",
        "engine_image", "engine_version", "args", "env", "shm_bytes", "steps", "selector", "tolerations", "warnings",
        "message",
    }  # fmt: skip
    record = {key: value for key, value in json.loads(json.dumps(result.to_json())).items() if key in previous}
    old = Plan.from_json({**record, "of_a_later_version": 1})
    assert (old.nodes_per_replica, old.expert_parallel, old.gpus_per_node) == (1, 1, result.gpus_per_replica)
    assert (old.cpu_millis, old.host_memory_bytes) == (500, 2 * GIB)
    assert old.args == result.args
