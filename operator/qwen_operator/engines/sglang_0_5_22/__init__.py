"""SGLang 0.5.22. It has its own options; everything else is the same as in 0.5.23.

Compared with 0.5.23 in both wheels (paths below sglang/srt, lines of 0.5.22):

* Options: 521 instead of 531, see `options.json`. Every option that a plan sets has the same name.
* Metric names: equal. observability/metrics_collector.py:357 to 1258, 1001 to 1045, 1986; utils/common.py:2851 (0.5.23
  moved the active requests to observability/http_request_metrics.py and removed the --extra-metric-labels from them;
  the operator does not read these labels). At metrics_collector.py:1329 every context-parallel rank reports; from
  0.5.23 on only the first does. Ranks repeat the same numbers, so the largest is right for both.
* Memory: the engine reserves the same. arg_groups/memory_hook.py differs only at 234 to 240, the size of prefill graphs
  of MLA models, and plans switch these graphs off. model_executor/pool_configurator.py differs for speculative drafts,
  context parallelism, and models that the operator does not plan.
* Formats: the least compute capabilities of the AWQ, GPTQ, FP8, GGUF and compressed-tensors loaders in
  layers/quantization are equal.
* Overlap of weights and graphs: model_executor/model_runner_components/startup_weight_load.py is equal.
* Pipeline stages: how layers are divided, what does not go together, and which models keep the output head on every
  stage (models/qwen2_moe.py:1245, qwen3_moe.py:1030) are equal.
* Parsers: function_call/parser_names.py and parser/reasoning_parser_names.py lack `beam` and `response_template` of
  0.5.23. The parsers for Qwen are equal.
* Log lines: equal, so this folder has no `log_lines.json` and qwen-runtime uses that of 0.5.23. Compared:
  entrypoints/engine.py:1110, 1947 and 1976, entrypoints/http_server.py:777 and 2506,
  managers/tokenizer_manager.py:4069, model_executor/model_runner.py:1255,
  model_executor/model_runner_components/cuda_graph_setup.py:642, model_executor/pool_configurator.py:93,
  model_loader/loader.py:258 and 579, configs/model_config.py:1190. Both pin torch 2.14.1 and transformers 5.19.0, so
  the lines of these are equal too.

This comes from reading the source. This version was not run.
"""

from __future__ import annotations

from qwen_operator.engines.sglang_0_5_23 import FORMATS, MEMORY, METRICS, PARSERS, PLANNED
from qwen_operator.engines.types import EngineVersion, Models, OptionTable

ENGINE = EngineVersion(
    version="0.5.22",
    options=OptionTable.load(__name__, PLANNED),
    metrics=METRICS,
    memory=MEMORY,
    formats=FORMATS,
    parsers=PARSERS,
    models=Models.load(__name__),
)
