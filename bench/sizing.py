"""The difference between the predicted KV pool and the pool in public start-up logs of SGLang.

    python -m bench.sizing [--points FILE] [--json] [--write-docs]

Inputs are labels, architecture and the run's flags; bench/prediction.py lists them. A prediction uses no memory size
from the log. FILE is a list of points, or an object with the list as `points`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import sizing_page
from bench.prediction import POINTS, Report, evaluate, read_points


def render(report: Report) -> str:
    """The report for people."""
    lines = [f"{'id':5} {'predicted':>10} {'logged':>10} {'error':>8}  run"]
    for one in report.results:
        lines.append(f"{one.id:5} {one.predicted:>10} {one.logged:>10} {one.error_percent:>+7.2f}%  {one.label}")
    lines.append(
        f"{len(report.results)} points: mean {report.mean_percent:.2f} %, max {report.max_percent:.2f} %, "
        f"over-promise {report.over_promise_percent:.2f} %"
    )
    lines += [f"left out {one.id}: {one.reason}" for one in report.left_out]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sizing", description=__doc__)
    parser.add_argument("--points", type=Path, default=POINTS, help="file of points; default: the repository's points")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--write-docs", action="store_true", help="write docs/benchmarks/sizing.md from the repository's points"
    )
    options = parser.parse_args(argv)
    report = evaluate(read_points(options.points))
    if options.write_docs:
        sizing_page.write()
    print(json.dumps(report.to_json(), indent=2) if options.json else render(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
