"""The pictures of README.md: the plan of one model, and a measured scale-up.

    python -m bench.readme_pictures

The plan comes from the planner, the other operators' numbers from their rules (bench/peers.py), the scale-up from the
recorded run in data/scale_up.json. Writes docs/images.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bench import oracle, peers
from bench.cases import DEFAULTS, DOWNLOADED, node_of
from bench.oracle import CARDS
from bench.picture import PARTS, WIDTH, frame, legend
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints import catalog
from qwen_operator.planning.memory import Budget
from qwen_operator.planning.plan import explore

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
PLAN, SCALE_UP = "plan.svg", "scale-up.svg"
_DATA = Path(__file__).parent / "data" / "scale_up.json"
_MODEL, _PRODUCT = "Qwen/Qwen1.5-72B-Chat", "NVIDIA-H100-80GB-HBM3"
_SMALL = 'font-size="12"'
_PIXELS = 8.8  # for a second of the run
_STARTING, _SERVING, _DRAINING, _LOAD = "#9a6700", "#1a7f37", "#6e7781", "#4477aa"


def write() -> tuple[Path, ...]:
    """Writes both pictures and returns their paths."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    files = {IMAGES / PLAN: plan_picture(), IMAGES / SCALE_UP: scale_up_picture()}
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return tuple(files)


def plan_picture() -> str:
    """One bar of GPU memory for each split of the model, and the GPUs per replica of this and of other operators."""
    return frame(f"{_MODEL.removeprefix('Qwen/')} on H100-80GB GPUs, context of 32 768 tokens", 344, _plan_body())


def _plan_body() -> Iterator[str]:
    card = next(one for one in CARDS if one.product == _PRODUCT)
    entry = catalog.entry(_MODEL)
    assert entry
    outcome = explore(Spec(model=_MODEL), entry.checkpoint, node_of(card), DEFAULTS, DOWNLOADED)
    assert outcome.best
    assert outcome.best.chosen
    yield from legend(8, 36)
    left, scale = 60, 4.0
    for index, one in enumerate(outcome.best.budgets):
        yield from _split(one, outcome.wanted.tokens, (left, 66 + index * 32, scale), chosen=one == outcome.best.chosen)
    memory = outcome.best.chosen.total
    edge = left + memory * scale
    yield f'<path d="M{edge:.1f} 60V194" stroke="#cf222e" stroke-width="1.5" stroke-dasharray="5 3"/>'
    yield f'<text x="{edge - 6:.1f}" y="207" text-anchor="end" {_SMALL}>memory of one GPU: {memory:.1f} GiB</text>'
    model = next(one for one in oracle.models() if one.repository == _MODEL)
    others = peers.ome(model)
    assert others
    chosen = (
        ("qwen-operator", outcome.best.chosen.tp, _LOAD),
        ("OME's rule", others.gpus, _DRAINING),
        ("KAITO's rule", peers.kaito(model, card).gpus, _DRAINING),
    )
    yield '<text x="8" y="232" font-weight="600">GPUs per replica</text>'
    for index, (name, gpus, colour) in enumerate(chosen):
        yield from _gpus(name, gpus, colour, 244 + index * 24)
    yield (
        f'<text x="{WIDTH - 8}" y="334" text-anchor="end" {_SMALL}>Calculated, not run on a GPU. '
        "Other operators: their published rules, applied by bench/peers.py</text>"
    )


def _split(one: Budget, wanted: int, place: tuple[int, int, float], *, chosen: bool) -> Iterator[str]:
    """The bar of one split: weights, KV cache and the rest of the GPU; `place` is left, top and pixels per GiB."""
    x, top, scale = float(place[0]), place[1], place[2]
    kv = max(0.0, one.kv)
    weight = ' font-weight="600"' if chosen else ""
    yield f'<text x="{x - 10:.0f}" y="{top + 15}" text-anchor="end"{weight}>TP {one.tp}</text>'
    for (_, colour), value in zip(PARTS, (one.weights, kv, max(0.0, one.total - one.weights - kv)), strict=True):
        width = value * scale
        yield f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="22" fill="{colour}"/>'
        if width > 34:
            yield f'<text class="in" x="{x + width / 2:.1f}" y="{top + 15}" text-anchor="middle">{value:.1f}</text>'
        x += width
    yield f'<text x="{x + 10:.1f}" y="{top + 15}"{weight}>{_verdict(one, wanted, chosen=chosen)}</text>'


def _verdict(one: Budget, wanted: int, *, chosen: bool) -> str:
    tokens = f"{one.kv_tokens:,}".replace(",", " ")
    if one.weights > one.static:
        return "weights do not fit"
    if one.kv_tokens < wanted:
        return f"{tokens} tokens: not enough for one request"
    return f"{tokens} tokens: the plan, smallest that fits" if chosen else f"{tokens} tokens: more GPUs than needed"


def _gpus(name: str, number: int, colour: str, top: int) -> Iterator[str]:
    yield f'<text x="120" y="{top + 13}" text-anchor="end">{name}</text>'
    for index in range(number):
        yield f'<rect x="{132 + index * 26}" y="{top}" width="20" height="16" rx="3" fill="{colour}"/>'
    yield f'<text x="{132 + number * 26 + 6}" y="{top + 13}">{number}</text>'


@cache
def _run() -> Mapping[str, Any]:
    run: Mapping[str, Any] = json.loads(_DATA.read_text(encoding="utf-8"))
    return run


def scale_up_picture() -> str:
    """Load, replicas and events of the recorded run over its seconds."""
    return frame("One measured scale-up: six parallel streams, two requests at once per replica", 262, _run_body())


def _run_body() -> Iterator[str]:
    at = _run()["seconds"]
    end = 90.0
    for second in range(0, 91, 10):
        x = _x(second)
        yield f'<path d="M{x:.1f} 48V196" stroke="#6e7781" stroke-opacity="0.25"/>'
        yield f'<text x="{x:.1f}" y="212" text-anchor="middle" {_SMALL}>{second} s</text>'
    load = f"{_run()['streamsAtOnce']} streams at a time: {_run()['streamsComplete']} complete, none cut"
    yield from _lane("load", 56, [(at["loadStarts"], at["loadEnds"], _LOAD, load)])
    yield from _lane("replica", 92, [(0.0, end, _SERVING, "serving")])
    added = [
        (at["twoPods"], at["twoAnswer"], _STARTING, "second pod starts and loads the model"),
        (at["twoAnswer"], at["oneWanted"], _SERVING, "serving"),
        (at["oneWanted"], at["onePod"], _DRAINING, ""),
    ]
    yield from _lane("replica", 128, added)
    moments = (
        (at["twoWanted"], "start", f"{at['twoWanted']} s: 4 requests wait; 2 replicas wanted"),
        (at["twoAnswer"], "end", f"{at['twoAnswer']} s: 2 replicas answer"),
        (at["onePod"], "end", f"{at['onePod']} s: drained, 1 pod"),
    )
    for second_of, anchor, text in moments:
        x = _x(second_of)
        shift = 5 if anchor == "start" else -5
        yield f'<path d="M{x:.1f} 50V188" stroke="#cf222e" stroke-width="1.5" stroke-dasharray="4 3"/>'
        y = 170 if anchor == "start" or second_of < at["loadEnds"] else 188
        yield f'<text x="{x + shift:.1f}" y="{y}" text-anchor="{anchor}" {_SMALL}>{text}</text>'
    yield (
        f'<text x="8" y="234" {_SMALL}>Real SGLang 0.5.23 on a CPU, tiny model, '
        "scaling: {maxReplicas: 2, stabilizationSeconds: 10}. The default waits 300 s before it scales down.</text>"
    )
    yield (
        f'<text x="8" y="252" {_SMALL}>At {at["shortQueue"]} s only {_run()["waitingWithTwoReplicas"]} requests wait. '
        f"At {at['loadEnds']} s the load ends; at {at['oneWanted']} s the operator starts to drain a replica.</text>"
    )


def _x(second: float) -> float:
    return 76 + second * _PIXELS


def _lane(name: str, top: int, parts: list[tuple[float, float, str, str]]) -> Iterator[str]:
    """One row of coloured spans: from, to, colour, text."""
    yield f'<text x="66" y="{top + 15}" text-anchor="end">{name}</text>'
    for start, end, colour, text in parts:
        left, width = _x(start), (end - start) * _PIXELS
        yield f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="22" rx="2" fill="{colour}"/>'
        if text:
            yield f'<text class="in" x="{left + width / 2:.1f}" y="{top + 15}" text-anchor="middle">{text}</text>'


if __name__ == "__main__":
    for written in write():
        print(written, file=sys.stderr)
