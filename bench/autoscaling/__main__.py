"""Replays traces through scaling rules in a simulator and prints a table.

    python -m bench.autoscaling --suite design --traces FOLDER [--rules TEXT ...] [--out FILE.json]
    python -m bench.autoscaling --trace FILE --model 7b-gqa [--start-hour H] [--hours H] [--start-seconds S]

Without options it replays the small synthetic trace of the repository. A suite needs the files that
bench/autoscaling/traces.py names. A run needs no GPU; one window with all rules takes about a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.autoscaling import traces
from bench.autoscaling.engine import SPEEDS
from bench.autoscaling.fleet import Case, Result, lower_bound, simulate
from bench.autoscaling.rules import RULES, Static
from bench.autoscaling.windows import SUITES, Window

SYNTHETIC = Path(__file__).parent / "data" / "synthetic.csv"
_TARGET = 0.99
_LARGEST_STATIC = 64


def case_of(window: Window, path: Path) -> Case:
    """Raises OSError, KeyError or ValueError if the trace cannot be read."""
    requests = traces.read(path, window.start_hour, window.hours)
    return Case(requests, SPEEDS[window.model], window.start, window.unscored)


def best_static(case: Case) -> tuple[str, Result] | None:
    """The smallest fixed size that keeps the objective; None if no size does."""
    low, high, best = 1, _LARGEST_STATIC, None
    while low <= high:
        size = (low + high) // 2
        result = simulate(case, Static(size))
        if result.kept >= _TARGET:
            best, high = (f"fixed: {size}", result), size - 1
        else:
            low = size + 1
    return best


def rows(case: Case, chosen: Iterable[str]) -> Iterator[tuple[str, Result]]:
    """The result of each rule, and of the best fixed size."""
    for name in chosen:
        yield name, simulate(case, RULES[name]())
    static = best_static(case)
    if static:
        yield static


def line(name: str, result: Result, bound: float) -> str:
    """A line of the table."""
    kept = f"{result.kept:.2%}" if result.kept < _TARGET else f"**{result.kept:.2%}**"
    ratio = f"{result.gpu_hours / bound:.2f}"
    return (
        f"| {name} | {kept} | {result.late:.2%} | {result.slow:.2%} | {result.gpu_hours:.1f} | {ratio} "
        f"| {result.changes} | {result.largest} |"
    )


HEAD = (
    "| rule | kept | late first token | slow decoding | GPU-hours | ÷ lower bound | changes of size | largest size |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|"
)


def replay(window: Window, path: Path, chosen: Sequence[str]) -> dict[str, Any]:
    """Prints the table of a window and returns its numbers."""
    case = case_of(window, path)
    bound = lower_bound(case)
    print(f"\n{window.name}: {len(case.requests)} requests, lower bound {bound:.2f} GPU-hours\n\n{HEAD}", flush=True)
    results: dict[str, Any] = {}
    for name, result in rows(case, chosen):
        print(line(name, result, bound), flush=True)
        results[name] = asdict(result)
    return {"window": asdict(window), "lowerBoundGpuHours": bound, "rules": results}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("bench.autoscaling", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--suite", choices=sorted(SUITES), help="replay the windows of the published table")
    parser.add_argument("--traces", type=Path, help="the folder with the suite's traces")
    parser.add_argument("--trace", type=Path, default=SYNTHETIC, help="one trace: CSV or gzip")
    parser.add_argument("--model", choices=sorted(SPEEDS), default="7b-gqa", help="the simulated replica")
    parser.add_argument("--start-hour", type=float, default=0.0)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--unscored", type=float, default=900.0, help="seconds at the start that do not count")
    parser.add_argument("--start-seconds", type=float, default=180.0, help="how long a replica takes to start")
    parser.add_argument("--rules", nargs="*", default=[""], help="parts of the names of the rules; all by default")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    given = parser.parse_args(arguments)
    chosen = [name for name in RULES if any(part in name for part in given.rules)]
    if given.suite:
        if given.traces is None:
            parser.error(f"--suite needs --traces, a folder with these files:\n{traces.SOURCES}")
        windows = [(window, given.traces / f"{window.trace}.csv.gz") for window in SUITES[given.suite]]
    else:
        one = Window(given.trace.name, given.model, given.start_hour, given.hours, given.unscored, given.start_seconds)
        windows = [(one, given.trace)]
    try:
        results = [replay(window, path, chosen) for window, path in windows]
    except OSError as error:
        print(f"cannot read a trace: {error}\n{traces.SOURCES}", file=sys.stderr)
        return 1
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
