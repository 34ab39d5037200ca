"""SGLang 0.5.23.

Where the values come from (paths below sglang/srt in the wheel):

* Options: `options.json`, written by `make engine-table VERSION=0.5.23`.
* Pipeline stages: distributed/utils.py:110, mem_cache/kv_cache_configurator.py:3107 (the smallest pool of all stages
  counts), arg_groups/validation_hook.py:122 (what does not go together), managers/scheduler.py:1238 (micro-batches).
* Metric names: observability/metrics_collector.py:365 to 1290 (gauges of the scheduler), 1033 to 1077 (ticks and
  work), 2040 to 2065 (histograms); observability/http_request_metrics.py:41 (active requests).
  What the start took: 1301, 1343 and 1842. managers/scheduler.py:1264 and model_executor/model_runner.py:1365 measure
  it in GiB. observability/startup_time.py has the phases, of which tokenizer_e2e is the whole start.
  Data-parallel ranks each report their own queue; the other ranks repeat the numbers of their group.
* Memory: arg_groups/memory_hook.py (what the engine reserves), model_executor/pool_configurator.py (the pool),
  mem_cache/kv_cache_configurator.py:2990 to 3100 and 3303 (what it measures, and the limits on tokens and states).
* Parsers: function_call/parser_names.py, parser/reasoning_parser_names.py. When a parser takes an answer as reasoning:
  entrypoints/openai/serving_chat.py:3518 and parser/reasoning_parser.py:1338.
* Architectures, formats, fields of the context length, parsers: `models.json`, written by `make engine-table`.
* Log lines: `log_lines.json`. entrypoints/engine.py:1118, 1978 and 2007 (start-up timings, a child's death),
  entrypoints/http_server.py:793 and 2600 (health check, ready), managers/tokenizer_manager.py:4074 (SIGQUIT),
  model_executor/model_runner.py:1274 (weights), model_executor/model_runner_components/cuda_graph_setup.py:685
  (graphs), model_executor/pool_configurator.py:96 (no memory), model_loader/loader.py:262 and 581,
  configs/model_config.py:1299 (context). The other lines are of argparse, uvicorn, huggingface_hub, transformers,
  safetensors, torch and NCCL. The logs in tests/unit/runtime/data are from real failures of this version.
"""

from __future__ import annotations

from qwen_operator.engines.types import (
    EngineVersion,
    Formats,
    KvCacheType,
    MemoryConstants,
    MetricNames,
    Models,
    OptionTable,
    Parsers,
    Role,
    Tuning,
)

PLANNED = {
    Role.TENSOR_PARALLEL: "--tp-size",
    Role.EXPERT_PARALLEL: "--ep-size",
    Role.PIPELINE_PARALLEL: "--pp-size",
    Role.NODES: "--nnodes",
    Role.GROUP_TIMEOUT: "--dist-timeout",
    Role.MEMORY_FRACTION: "--mem-fraction-static",
    Role.MOST_TOKENS: "--max-total-tokens",
    Role.MOST_STATES: "--max-mamba-cache-size",
    Role.CONTEXT_LENGTH: "--context-length",
    Role.CHUNKED_PREFILL: "--chunked-prefill-size",
    Role.DECODE_GRAPH_BATCH: "--cuda-graph-max-bs-decode",
    Role.NO_PREFILL_GRAPHS: "--cuda-graph-backend-prefill=disabled",
    Role.MAX_RUNNING_REQUESTS: "--max-running-requests",
    Role.KV_CACHE_TYPE: "--kv-cache-dtype",
    Role.WEIGHT_TYPE: "--dtype",
    Role.STATE_RATIO: "--mamba-full-memory-ratio",
    Role.MODEL_OVERRIDES: "--json-model-override-args",
    Role.TOOL_CALL_PARSER: "--tool-call-parser",
    Role.REASONING_PARSER: "--reasoning-parser",
    Role.METRICS: "--enable-metrics",
    Role.SLEEP_ON_IDLE: "--sleep-on-idle",
    Role.QUIET_PATHS: "--uvicorn-access-log-exclude-prefixes",
    Role.REVISION: "--revision",
    Role.EMBEDDING: "--is-embedding",
    Role.MEDIA_DOMAINS: "--allowed-media-domains",
    Role.OVERLAP_WEIGHTS: "--startup-weight-load-mode",
    Role.PREFETCH_WEIGHTS: "--weight-loader-prefetch-checkpoints",
    Role.ADAPTERS: "--enable-lora",
    Role.ADAPTER_PATHS: "--lora-paths",
    Role.ADAPTER_RANK: "--max-lora-rank",
    Role.ADAPTER_SLOTS: "--max-loras-per-batch",
    Role.ADAPTER_MODULES: "--lora-target-modules",
}

METRICS = MetricNames(
    running="sglang:num_running_reqs",
    queued="sglang:num_queue_reqs",
    grammar_queue="sglang:num_grammar_queue_reqs",
    tokens_used="sglang:num_used_tokens",
    tokens_capacity="sglang:max_total_num_tokens",
    token_usage="sglang:token_usage",
    http_active="sglang:http_requests_active",
    ticks=(
        "sglang:scheduler_stage_seconds_total",
        "sglang:scheduler_idle_seconds_total",
        "sglang:scheduler_process_cpu_seconds_total",
    ),
    work=("sglang:realtime_tokens_total", "sglang:inter_token_latency_seconds_sum"),
    tokens="sglang:realtime_tokens_total",
    prefill_mode="prefill_compute",
    decode_mode="decode",
    idle="sglang:scheduler_idle_seconds_total",
    decoding="sglang:inter_token_latency_seconds_sum",
    first_token="sglang:time_to_first_token_seconds",
    output_token="sglang:request_time_per_output_token_seconds",
    weights_gib="sglang:weight_memory_usage_gb",
    free_gib="sglang:startup_available_gpu_memory_gb",
    startup="sglang:startup_time_seconds",
    startup_phase="tokenizer_e2e",
)

MEMORY = MemoryConstants(
    # The context grows with the number of SMs (small dies against large ones), and the driver's reserve grows with
    # memory. Neither is linear over all boards. The values come from logs that bench/sizing does not score: 0.74 GiB of
    # 22.5 (L4), 1.14 to 1.22 of 79.6 (its M13, M20, M23), 1.27 of 140.4 (M19), 1.8 of 277.5 (M04, with the total that
    # our table has for a B300).
    context_gib=0.78,
    context_slopes=((24.0, 80.0, 0.0079), (80.0, float("inf"), 0.003)),
    # These also come from logs that are not scored. With NVLink the number of ranks changes little: 1.25 on 8 H100, 1.3
    # on 2, 2.0 on 8 H200. On PCIe it is 0.26 on 2 x 4090 (SGLang issue 16920). A log of four newer cards has 0.39; the
    # margin covers that. No log of more than 4 PCIe cards is known, so they count as on NVLink. Nearly all boards from
    # 61440 MiB on have NVLink. For the others the value is too high, which is safe.
    pcie_gib=0.26,
    nvlink_gib=1.25,
    many_gib=2.0,
    few_ranks=4,
    nvlink_mib=61440,
    # Alignment and scales. Logs have 0.02 to 0.14 GiB on one GPU, and 0.2 to 0.3 if split; 0.2 is the scored point M05.
    weights_alone_gib=0.07,
    weights_split_gib=0.25,
    # In a small pool, every error of the prediction is a large part of the tokens.
    margin_gib=0.5,
    # The largest page that a default backend uses.
    page_tokens=64,
    # These models need memory for images in addition to the activations. SGLang also lowers its own fraction by 5 %.
    multimodal_percent=95,
    # The default, then three with more tokens and fewer requests, then one with fewer tokens and more requests.
    state_ratios=(900, 500, 250, 100, 2000),
    # With the prefix cache enabled.
    slots_per_request=3,
    # The fraction leaves about 3 GiB on 16 and 24 GB, 5 on 48, 8 on 80 and 11 on 141 GB. From 35840 MiB on that is at
    # least what SGLang itself reserves for such a chunk and batch (`Formula.engine_reserve_mib`). A log of an L4
    # confirms the 24 GB row; logs of H100s at 0.9 and 0.93 confirm the 80 GB row.
    tunings=(
        (0, Tuning(fraction=780, chunk=2048, graph_batch=8)),
        (20480, Tuning(fraction=850, chunk=2048, graph_batch=48)),
        (35840, Tuning(fraction=880, chunk=2048, graph_batch=160)),
        (61440, Tuning(fraction=900, chunk=4096, graph_batch=256)),
        (102400, Tuning(fraction=920, chunk=4096, graph_batch=512)),
        (180000, Tuning(fraction=920, chunk=8192, graph_batch=512)),
    ),
    # From arg_groups/memory_hook.py, without prefill graphs and communication.
    reserve_mib=512,
    reserve_mib_per_token=1.5,
    reserve_least_tokens=2048,
    reserve_mib_per_graph_request=2,
    # models/qwen2_moe.py:1237, qwen3_moe.py:1018: no stage is without it, unlike in qwen2.py and qwen3.py.
    whole_head_models=("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"),
)

FORMATS = Formats(
    engine=(7, 5),
    bfloat16=(8, 0),
    fp8_native=(8, 9),
    # SGLang 0.5.21 removed GPTQ's own kernel. Only Marlin is left.
    weights={"awq": (7, 5), "gptq": (8, 0), "fp8": (8, 0), "gguf": (7, 5), "compressed-tensors": (8, 0)},
    # Marlin unpacks 8 bits of GPTQ only. With zero points, which AWQ has, it takes 4 (layers/quantization/
    # marlin_utils.py).
    packed_bits={"gptq": (4, 8), "awq": (4,)},
    kv_cache_types={
        "Auto": KvCacheType("auto", 2, (7, 5)),
        "BFloat16": KvCacheType("bf16", 2, (8, 0)),
        "Fp8E4m3": KvCacheType("fp8_e4m3", 1, (8, 9)),
    },
    # _SUPPORTED_ARCHITECTURES of model_executor/model_runner_components/startup_weight_load.py, without Llama.
    overlap_models=("Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    # SGLang asks whether a model's forward() takes what the stage before it made: model_executor/model_runner.py:508.
    # Qwen2.5-VL, Qwen3-VL and Qwen3.5 do so too, but keep vision towers or states that are not divided by layers.
    pipeline_models=("Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
)

PARSERS = Parsers(
    tools="qwen",
    coder_tools="qwen3_coder",
    thinking="qwen3-thinking",
    hybrid_thinking="qwen3",
    # The same format as qwen3, but without a request that sets enable_thinking the answer is no reasoning
    # (`_MimoDetector`). With qwen3 the whole answer of such a model would count as reasoning.
    requested_thinking="mimo",
)

ENGINE = EngineVersion(
    version="0.5.23",
    options=OptionTable.load(__name__, PLANNED),
    metrics=METRICS,
    memory=MEMORY,
    formats=FORMATS,
    parsers=PARSERS,
    models=Models.load(__name__),
)
