"""docs/benchmarks/sizing.md, written by `python -m bench.sizing --write-docs`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench import held_out
from bench.prediction import POINTS, Point, Report, Result, evaluate, read_points

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "sizing.md"
_INFERRED = "inferred"


def write() -> None:
    """Writes the page of the repository's own points."""
    points = read_points(POINTS)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(markdown(points, evaluate(points)), encoding="utf-8")


def markdown(points: Sequence[Point], report: Report) -> str:
    """The page for the repository's own points."""
    by_id = {str(point["id"]): point for point in points}
    return "\n".join([*_head(), *_results(by_id, report), *_held_out(points), *_left_out(by_id, report), ""])


def _head() -> Iterator[str]:
    yield "# How good is the predicted KV pool?"
    yield ""
    yield (
        "Written by `python -m bench.sizing --write-docs`; `python -m bench.sizing --points FILE [--json]` does the "
        "same for a file of your own. This project has not run SGLang on a GPU. It compares its formula with start-up "
        "logs that others published: `max_total_num_tokens`, the tokens that the KV pool holds."
    )
    yield ""
    yield (
        "What goes into a prediction: the label `nvidia.com/gpu.memory`, the architecture and format of the model, the "
        "tensor parallel size, the version of SGLang, and flags that the run set. What does not: any memory that a log "
        "printed. Where a run left `--mem-fraction-static` at its default, the default of its version is computed "
        "(`bench/sglang_defaults.py`). The planner promises 0.5 GiB per GPU less than what is predicted here."
    )
    yield ""


def _results(by_id: Mapping[str, Point], report: Report) -> Iterator[str]:
    yield "## Points"
    yield ""
    yield "| id | model | GPUs | SGLang | fraction | predicted | logged | error |"
    yield "|---|---|---|---|---|--:|--:|--:|"
    for one in report.results:
        point = by_id[one.id]
        version = str(point["sglang"]).split(" (")[0]
        mark = " ¹" if _inferred(point) else ""
        yield (
            f"| {one.id} | {point['model']} | {point['tp']} x {point['gpu']} | {version} | {one.fraction:g}{mark} | "
            f"{one.predicted} | {one.logged} | {one.error_percent:+.2f} % |"
        )
    yield ""
    yield "A positive error promises more than there was."
    yield ""
    yield "| | mean | max | over-promise |"
    yield "|---|--:|--:|--:|"
    yield "| target | 2 % | 5 % | 1 % |"
    yield f"| all {len(report.results)} points | {_numbers(report)} |"
    kept = tuple(one for one in report.results if not _inferred(by_id[one.id]))
    yield f"| without ¹ | {_numbers(Report(kept, ()))} |"
    yield ""
    yield (
        "¹ The log does not print the fraction; 0.9 is the round number that its own memory figures give, so this "
        "point checks the rest of the formula only."
    )
    yield ""
    yield (
        "Five points are few. None of them is a Qwen1.5 model, a GPTQ or AWQ checkpoint, an L40S, an A100 or eight "
        "GPUs, and the oldest ran SGLang 0.4: no public log of those was found that has all inputs."
    )
    yield ""


def _held_out(points: Sequence[Point]) -> Iterator[str]:
    yield "## Constants that did not see the point"
    yield ""
    yield (
        "The formula has a few constants. What the CUDA context and the driver take is that of logs which are not "
        "scored above: an L4, the H100s of M13, M20 and M23, the H200 of M19, the B300 of M04 (its total "
        "from our table). What communication between GPUs takes is that of logs outside of this list: 2 x 4090, 2 and "
        "8 x H100, 8 x H200; one of four newer PCIe cards shows 0.13 GiB more, which the planner's margin covers. What "
        "weights take beyond their tensors is 0.07 GiB on one GPU (logs: 0.02 to 0.14) and 0.25 GiB on several, where "
        "M05 is one of few logs (0.2). So that nothing rests on the point that it is judged by, context and weights "
        "are set here once more, from the logs of one half of the ids, and tested on the other half "
        "(`bench/held_out.py`)."
    )
    yield ""
    yield "| | errors | mean | max | over-promise |"
    yield "|---|---|--:|--:|--:|"
    for name, report in held_out.both_ways(points).items():
        yield f"| {name} | {', '.join(map(_short, report.results))} | {_numbers(report)} |"
    yield ""


def _left_out(by_id: Mapping[str, Point], report: Report) -> Iterator[str]:
    yield "## Left out"
    yield ""
    for one in report.left_out:
        yield f"* {one.id}, {by_id[one.id]['model']}: {one.reason}."


def _short(one: Result) -> str:
    return f"{one.id} {one.error_percent:+.2f} %"


def _numbers(report: Report) -> str:
    return f"{report.mean_percent:.2f} % | {report.max_percent:.2f} % | {report.over_promise_percent:.2f} %"


def _inferred(point: Point) -> bool:
    return str(point.get("mem_fraction_source", "")).startswith(_INFERRED)
