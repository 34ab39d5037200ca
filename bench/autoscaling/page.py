"""Prints the tables of docs/benchmarks/autoscaling.md from the JSON of a suite.

python -m bench.autoscaling.page FOLDER/results.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

TARGET = 0.99
_FIXED, _SEEING = "fixed", "clairvoyant"

Window = Mapping[str, Any]
"""One entry of the JSON."""


def page(windows: Sequence[Window]) -> Iterator[str]:
    """The windows, a table with a column for each window, and a summary."""
    for number, window in enumerate(windows, 1):
        yield f"{number}. {window['name']}: {window['requests']:,} requests"
    names = list(dict.fromkeys(_name(name) for window in windows for name in window["rules"]))
    yield ""
    yield f"| rule | {' | '.join(str(number) for number in range(1, len(windows) + 1))} |"
    yield f"|---|{'--:|' * len(windows)}"
    for name in names:
        yield f"| {name} | {' | '.join(_cell(window, name) for window in windows)} |"
    yield ""
    yield (
        "| rule | windows at ≥ 99 % | mean kept | worst kept | ÷ lower bound, geometric mean "
        "| ÷ clairvoyant, geometric mean | changes of size |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for name in names:
        yield _summary(windows, name)


def _name(name: str) -> str:
    return _FIXED if name.startswith(_FIXED) else name


def _result(window: Window, name: str) -> Mapping[str, Any] | None:
    rules: Mapping[str, Mapping[str, Any]] = window["rules"]
    return next((result for key, result in rules.items() if _name(key) == name), None)


def _cell(window: Window, name: str) -> str:
    result = _result(window, name)
    if result is None:
        return "-"
    size = f" ({result['largest']})" if name == _FIXED else ""
    text = f"{result['kept']:.2%} @ {result['gpu_hours'] / window['lowerBoundGpuHours']:.2f}{size}".replace("%", " %")
    return f"**{text}**" if result["kept"] >= TARGET else text


def _summary(windows: Sequence[Window], name: str) -> str:
    found = [(window, result) for window in windows if (result := _result(window, name))]
    kept = [result["kept"] for _, result in found]
    bound = _mean([result["gpu_hours"] / window["lowerBoundGpuHours"] for window, result in found])
    pairs = [(result, seeing) for window, result in found if (seeing := _result(window, _SEEING))]
    ratios = [result["gpu_hours"] / seeing["gpu_hours"] for result, seeing in pairs]
    ratio = f"{_mean(ratios):.2f}" if ratios else "-"
    return (
        f"| {name} | {sum(each >= TARGET for each in kept)} of {len(windows)} | {sum(kept) / len(kept):.1%} "
        f"| {min(kept):.1%} | {bound:.2f} | {ratio} | {sum(result['changes'] for _, result in found):,} |"
    ).replace("%", " %")


def _mean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return prod(values) ** (1 / len(values))


if __name__ == "__main__":
    print("\n".join(page(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
