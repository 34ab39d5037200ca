"""Points of public start-up logs, and the operator's prediction of their KV pools.

A prediction reads only what was known before the run: `model`, `quant`, `gpu_mem_mib` (the label
nvidia.com/gpu.memory), `tp`, `sglang`, the run's flags `mem_fraction_static`, `chunked_prefill_size`,
`cuda_graph_max_bs` and `page_size`, and, if the catalog lacks the model, the architecture `layers`, `kv_heads`,
`head_dim`, `params`. `mem_fraction_source` and `capped` only say whether a flag is known. It uses no memory size from
the log. The result is compared with `max_total_num_tokens`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import sglang_defaults
from qwen_operator import engines
from qwen_operator.checkpoints import catalog, parallel
from qwen_operator.checkpoints.facts import CATALOG, Checkpoint
from qwen_operator.planning.memory import Formula, Split

POINTS = Path(__file__).parent / "data" / "memory_points.json"
Point = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """One point: predicted and logged tokens, and the fraction. With a positive error, the prediction is too large."""

    id: str
    predicted: int
    logged: int
    fraction: float
    label: str = ""

    @property
    def error_percent(self) -> float:
        return (self.predicted / self.logged - 1) * 100


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A point without a prediction, because an input is missing."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """All points of a file, in its order."""

    results: tuple[Result, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def mean_percent(self) -> float:
        """Mean of the absolute errors."""
        errors = [abs(one.error_percent) for one in self.results]
        return sum(errors) / len(errors) if errors else 0.0

    @property
    def max_percent(self) -> float:
        """Largest absolute error."""
        return max((abs(one.error_percent) for one in self.results), default=0.0)

    @property
    def over_promise_percent(self) -> float:
        """Largest error towards too many tokens, 0 if there is none."""
        return max((one.error_percent for one in self.results if one.error_percent > 0), default=0.0)

    def to_json(self) -> dict[str, Any]:
        points = [
            {
                "id": one.id,
                "predicted": one.predicted,
                "logged": one.logged,
                "errorPercent": round(one.error_percent, 3),
            }
            for one in self.results
        ]
        return {
            "points": points,
            "meanPercent": round(self.mean_percent, 3),
            "maxPercent": round(self.max_percent, 3),
            "overPromisePercent": round(self.over_promise_percent, 3),
            "leftOut": [{"id": one.id, "reason": one.reason} for one in self.left_out],
        }


def read_points(path: Path) -> list[Point]:
    """The points of a file, which is a list of them or an object with the list as `points`."""
    document = json.loads(path.read_text(encoding="utf-8"))
    points: list[Point] = document["points"] if isinstance(document, dict) else document
    return points


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a prediction: facts of the checkpoint, total MiB of a GPU, ranks, --mem-fraction-static."""

    checkpoint: Checkpoint
    memory_mib: int
    tp: int
    fraction: float


def evaluate(points: Sequence[Point]) -> Report:
    """Predicts every point whose inputs exist."""
    formula = Formula(engines.newest().memory)
    results, left_out = [], []
    for point in points:
        scored = inputs(point)
        if isinstance(scored, str):
            left_out.append(LeftOut(str(point["id"]), scored))
            continue
        tokens = formula.pool_tokens(scored.checkpoint, scored.memory_mib, Split(scored.tp), scored.fraction)
        page = int(point.get("page_size") or 1)
        label = f"{point['model']}, {point['tp']} x {point['gpu']}, f {scored.fraction:g}"
        logged = int(point["max_total_num_tokens"])
        results.append(Result(str(point["id"]), tokens // page * page, logged, scored.fraction, label))
    return Report(tuple(results), tuple(left_out))


def inputs(point: Point) -> Inputs | str:
    """The inputs for the prediction of a point, or the reason why there are none."""
    fraction = _unusable(point) or _fraction(point)
    if isinstance(fraction, str):
        return fraction
    checkpoint = _checkpoint(point)
    if isinstance(checkpoint, str):
        return checkpoint
    if checkpoint.multimodal and point.get("mem_fraction_static") is None:
        return "SGLang lowers its default fraction for this multimodal model by its vision part, which is not known"
    if why := parallel.refusal(checkpoint, int(point["tp"])):
        return f"the operator refuses this split: {why}"
    return Inputs(checkpoint, int(point["gpu_mem_mib"]), int(point["tp"]), fraction)


def _unusable(point: Point) -> str:
    if not point.get("max_total_num_tokens"):
        return "the log shows no number of tokens to compare with"
    if point.get("capped"):
        return "the run itself caps the pool (--max-total-tokens), so memory did not decide"
    if not point.get("gpu_mem_mib"):
        return "the memory of the GPU (label nvidia.com/gpu.memory) is not known"
    if any("-kt" in str(point.get(key)) or "KTransformers" in str(point.get(key)) for key in ("sglang", "model")):
        return "a fork that keeps experts on the CPU; how much stays on the GPU is not known"
    return ""


def _fraction(point: Point) -> float | str:
    """The value of --mem-fraction-static, or the default of the run's version, or why it is not known."""
    given = point.get("mem_fraction_static")
    if given is not None:
        return float(given)
    if not str(point.get("mem_fraction_source", "")).startswith("default"):
        return "neither --mem-fraction-static is known nor that it was left at its default"
    version = sglang_defaults.read_version(str(point.get("sglang", "")))
    if version is None:
        return "the fraction was left at its default, but the version of SGLang is not known"
    run = sglang_defaults.Run(
        mib=int(point["gpu_mem_mib"]),
        tp=int(point["tp"]),
        chunk=point.get("chunked_prefill_size"),
        graph_batch=point.get("cuda_graph_max_bs"),
    )
    return sglang_defaults.mem_fraction(run, version)


def _checkpoint(point: Point) -> Checkpoint | str:
    """The facts of the catalog, else of a dense 16-bit model with the point's architecture, else why there are none."""
    catalog_facts = catalog.lookup(str(point["model"]))
    if catalog_facts is not None:
        return catalog_facts
    if point.get("hybrid"):
        return f"{point['model']} is not in the catalog, and the state of a hybrid is not in the point"
    if not str(point.get("quant", "")).startswith(("bf16", "fp16")) or not point.get("params"):
        return f"{point['model']} is not in the catalog, and its architecture is not in the point"
    layers, kv_heads, head_dim = (int(point[key]) for key in ("layers", "kv_heads", "head_dim"))
    return Checkpoint(
        architecture="Qwen2ForCausalLM",
        dtype="bfloat16",
        layers=layers,
        hidden=kv_heads * head_dim,
        heads=kv_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=kv_heads * head_dim,
        vocab=64,
        max_positions=int(point.get("context_len") or 32768),
        tied=True,
        quantization=None,
        experts=None,
        weight_bytes=int(point["params"]) * 2,
        source=CATALOG,
        digest="",
        attention_layers=layers,
        dense_layers=layers,
        expert_intermediate=None,
        shared_intermediate=None,
        linear=None,
        rope=None,
        multimodal=False,
        replicated_bytes=0,
        kv_weight_bytes=0,
    )
