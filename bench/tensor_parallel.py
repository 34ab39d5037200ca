"""GPUs per replica: the operator's plan, the smallest valid number, and the numbers that OME and KAITO would take.

    python -m bench.tensor_parallel [--json] [--write-docs]

It plans every published checkpoint of the catalog on one node with eight GPUs of each product. The manifest only names
the model, so one request of the model's own context must fit. The plans are compared with the oracle of
bench/oracle.py, which shares no code with the planner. Cases within 5 % of a boundary of memory are counted, but not
compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from bench import cases, report
from bench.comparison import BOUNDARY, NO_DATA, Summary, summarize


def render(summary: Summary) -> str:
    """The summary for people. The whole table is in the docs."""
    lines = [
        f"{len(summary.rows)} cases, {len(summary.compared)} compared; left out: {summary.left_out(BOUNDARY)} within "
        f"5 % of a boundary, {summary.left_out(NO_DATA)} without independent data",
        f"GPUs per replica / smallest valid: {summary.ratio:.4f} (target 1.00); "
        f"{len(summary.disagreements)} disagreements",
    ]
    for row in summary.disagreements:
        smallest = row.verdict.gpus if row.verdict else None
        lines.append(
            f"  {row.case.entry.repository} on {row.case.card.product}: plan {row.planned}, smallest valid {smallest}"
        )
    for name, peer in (("OME", summary.ome), ("KAITO", summary.kaito)):
        lines.append(
            f"{name}: {peer.cases} cases, takes {peer.ratio:.2f} times the GPUs; {peer.refused} splits that the engine "
            f"rejects, {peer.too_few} with too little memory"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tensor_parallel", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write-docs", action="store_true", help="write the table and the picture to docs/benchmarks")
    options = parser.parse_args(argv)
    summary = summarize(cases.every())
    if options.write_docs:
        for path in report.write(summary):
            print(path, file=sys.stderr)
    print(json.dumps(summary.to_json(), indent=2) if options.json else render(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
