"""How the weights load: which options are safe where, what is refused before a GPU is taken, and the memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_operator.api.adapters import Adapter, AdapterSource
from qwen_operator.api.conditions import Reason
from qwen_operator.api.engine import Engine
from qwen_operator.api.sizing import Parallelism
from qwen_operator.checkpoints.adapters import InspectedAdapter
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import CacheType, EngineDefaults, EngineSource, ModelCache, ModelFetch, NoFit, Plan
from qwen_runtime.checkpoints.adapter import MODULES, AdapterFacts
from tests.unit.planning.models import DEFAULTS, DOWNLOADED, facts, pools, spec

OVERLAP = "--startup-weight-load-mode=overlap"
PREFETCH = "--weight-loader-prefetch-checkpoints"
CLAIM = EngineSource("/models/source", volumes=({"name": "m", "persistentVolumeClaim": {"claimName": "m"}},))
SEVEN, BIG = facts("Qwen1.5-7B-Chat"), facts("Qwen1.5-72B-Chat")
GPTQ, EXPERTS = facts("Qwen1.5-7B-Chat-GPTQ-Int4"), facts("Qwen1.5-MoE-A2.7B-Chat")


def cached(type_: CacheType) -> EngineSource:
    fetch = ModelFetch(ModelCache(type_, "m", 100), Hub.HUGGING_FACE, "team/model", "c" * 40)
    return EngineSource("/models/cached", fetch=fetch)


def planned(
    checkpoint: Checkpoint,
    *args: str,
    fast: bool = False,
    tensor: int | None = None,
    source: EngineSource = DOWNLOADED,
    defaults: EngineDefaults = DEFAULTS,
) -> Plan | NoFit:
    wanted = spec(engine=Engine(args=args, fast_start=fast), parallelism=Parallelism(tensor=tensor))
    return plan(wanted, checkpoint, pools("H100-80GB"), defaults, source)


def made(result: Plan | NoFit) -> Plan:
    assert isinstance(result, Plan), result
    return result


@pytest.mark.parametrize(
    ("checkpoint", "tensor", "source", "on", "why"),
    [
        (SEVEN, 1, DOWNLOADED, OVERLAP, "while CUDA graphs are captured"),
        (SEVEN, 2, CLAIM, OVERLAP, "while CUDA graphs are captured"),
        (SEVEN, 4, CLAIM, PREFETCH, "SGLang has it for 1 and 2 GPUs, this plan has 4"),
        (SEVEN, 4, cached(CacheType.CLAIM), PREFETCH, "share the reading of the files"),
        (SEVEN, 4, cached(CacheType.HOST_PATH), "", "nothing to switch on; no overlap: SGLang has it for 1 and 2 GPUs"),
        (SEVEN, 4, DOWNLOADED, "", "nothing to switch on"),
        (
            BIG,
            4,
            CLAIM,
            PREFETCH,
            f"so each pod requests {BIG.weight_bytes / 1e9:.1f} GB more host memory for the files",
        ),
        (GPTQ, 1, CLAIM, "", "SGLang has it for weights of 16 bits, these are gptq 4 bit"),
        (EXPERTS, 1, CLAIM, "", "the model is Qwen2MoeForCausalLM"),
        (EXPERTS, 2, CLAIM, PREFETCH, "the model is Qwen2MoeForCausalLM"),
    ],
)
def test_a_fast_start_switches_on_what_is_safe_here(
    checkpoint: Checkpoint, tensor: int, source: EngineSource, on: str, why: str
) -> None:
    slow = made(planned(checkpoint, tensor=tensor, source=source))
    fast = made(planned(checkpoint, fast=True, tensor=tensor, source=source))
    assert set(fast.args) - set(slow.args) == ({on} if on else set())
    more = checkpoint.weight_bytes if on else 0
    assert fast.host_memory_bytes - slow.host_memory_bytes == more
    assert [why in line for line in fast.steps if line.startswith("fast start: ")] == [True]
    assert (fast.kv_tokens, fast.warnings) == (slow.kv_tokens, slow.warnings), "the prediction holds"
    assert not any("fast start" in line for line in slow.steps)


@pytest.mark.parametrize(
    "options",
    [
        ["--startup-weight-load-mode=serial"],
        [PREFETCH],
        ["--load-format=runai_streamer"],
    ],
)
def test_what_the_user_says_about_loading_stays(options: list[str]) -> None:
    fast = made(planned(SEVEN, *options, fast=True, tensor=4, source=CLAIM))
    assert [option for option in fast.args if option.startswith(("--startup-w", "--weight-l", "--load"))] == options


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--enable-lora"], "it does not run with --enable-lora"),
        (["--cpu-offload-gb", "8"], "it does not run with --cpu-offload-gb=8"),
        (["--device=cpu"], "it does not run with --device=cpu"),
        (["--disable-cuda-graph"], "it does not run with --disable-cuda-graph"),
    ],
)
def test_options_against_overlap_keep_it_off_or_refuse_it(args: list[str], why: str) -> None:
    fast = made(planned(SEVEN, *args, fast=True, tensor=1))
    assert OVERLAP not in fast.args
    assert any(why in line for line in fast.steps)
    refused = planned(SEVEN, *args, OVERLAP, tensor=1)
    assert isinstance(refused, NoFit)
    assert refused.reason is Reason.INVALID_OVERRIDE
    assert refused.message == f"spec.engine.args: --startup-weight-load-mode=overlap cannot be used here: {why}"


def test_harmless_values_of_these_options_are_no_obstacle() -> None:
    args = ("--cpu-offload-gb=0", "--load-format=safetensors", "--dtype=bfloat16")
    assert OVERLAP in made(planned(SEVEN, *args, fast=True, tensor=1)).args


def test_an_overlap_of_the_chart_is_refused_in_the_chart_s_name() -> None:
    chart = replace(DEFAULTS, args=(OVERLAP,))
    refused = planned(GPTQ, defaults=chart)
    assert isinstance(refused, NoFit)
    assert refused.message.startswith("the chart's engine.args: --startup-weight-load-mode=overlap cannot be used here")
    assert made(planned(SEVEN, tensor=1, defaults=chart)).host_memory_bytes > SEVEN.weight_bytes


@pytest.mark.parametrize("option", [OVERLAP, PREFETCH])
def test_options_that_read_ahead_get_memory_for_the_files(option: str) -> None:
    plain, ahead = made(planned(SEVEN, tensor=1)), made(planned(SEVEN, option, tensor=1))
    assert ahead.host_memory_bytes - plain.host_memory_bytes == SEVEN.weight_bytes


@pytest.mark.parametrize(
    ("config", "right"),
    [
        ('{"enable_multithread_load": true, "num_threads": 16}', True),
        ("{}", True),
        ("[]", False),
        ("{", False),
        ("[" * 5000, False),
        ('{"threads": 16}', False),
    ],
)
def test_an_extra_config_that_sglang_would_refuse_is_refused_before(config: str, right: bool) -> None:
    result = planned(SEVEN, f"--model-loader-extra-config={config}", tensor=1)
    assert isinstance(result, Plan) is right
    if isinstance(result, NoFit):
        assert result.message.startswith("spec.engine.args: --model-loader-extra-config ")
    other = planned(SEVEN, f"--model-loader-extra-config={config}", "--load-format=runai_streamer", tensor=1)
    assert isinstance(other, Plan) is (right or config == '{"threads": 16}'), "other loaders have keys of their own"


def test_reading_without_mmap_warns_of_memory() -> None:
    warnings = made(planned(SEVEN, "--weight-loader-disable-mmap", tensor=1)).warnings
    assert any("every rank holds the files" in warning for warning in warnings)


def test_both_known_versions_have_the_options() -> None:
    for version in ("0.5.22", "0.5.23"):
        assert OVERLAP in made(planned(SEVEN, fast=True, tensor=1, defaults=replace(DEFAULTS, version=version))).args


def test_an_unknown_version_gets_none_and_may_be_given_any() -> None:
    chart = replace(DEFAULTS, version="9.9.9")
    fast = made(planned(BIG, fast=True, tensor=4, source=CLAIM, defaults=chart))
    assert not {OVERLAP, PREFETCH} & set(fast.args)
    unknown = "fast start: nothing to switch on; no overlap: the operator does not know the options of SGLang 9.9.9"
    assert unknown in fast.steps
    assert OVERLAP in made(planned(BIG, OVERLAP, tensor=4, defaults=chart)).args


def test_adapters_keep_the_overlap_off() -> None:
    adapter = AdapterFacts(16, MODULES[:4], SEVEN.layers, SEVEN.hidden, SEVEN.hidden, SEVEN.hidden, 0, 1 << 26)
    checkpoint = replace(SEVEN, adapters=(InspectedAdapter("a", "pvc://claim/a", adapter),))
    wanted = spec(adapters=(Adapter("a", AdapterSource("pvc://claim/a")),), engine=Engine(fast_start=True))
    result = made(plan(wanted, checkpoint, pools("H100-80GB"), DEFAULTS, DOWNLOADED))
    assert OVERLAP not in result.args
    assert any("no overlap: it does not run with --enable-lora" in line for line in result.steps)
