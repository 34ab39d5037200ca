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
        "`python -m bench.sizing --write-docs` writes this page. `python -m bench.sizing --points FILE [--json]` does "
        "the same for your own file. This project has not run SGLang on a GPU. It compares its formula with startup "
        "logs that others published: with `max_total_num_tokens`, the number of tokens that the KV pool holds."
    )
    yield ""
    yield (
        "A prediction uses the label `nvidia.com/gpu.memory`, the architecture and format of the model, the tensor "
        "parallel size, the version of SGLang, and the flags of the run. It uses no memory size from the log. If a "
        "run did not set `--mem-fraction-static`, `bench/sglang_defaults.py` calculates the default of its version. "
        "The planner promises less than this page predicts: it leaves 0.5 GiB per GPU free."
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
    yield "A positive error means that the prediction was larger than the real pool."
    yield ""
    yield "| | mean | max | over-promise |"
    yield "|---|--:|--:|--:|"
    yield "| target | 2 % | 5 % | 1 % |"
    yield f"| all {len(report.results)} points | {_numbers(report)} |"
    kept = tuple(one for one in report.results if not _inferred(by_id[one.id]))
    yield f"| without ¹ | {_numbers(Report(kept, ()))} |"
    yield ""
    yield (
        "¹ The log does not print the fraction. Its memory figures give the round number 0.9, so this point checks "
        "only the rest of the formula."
    )
    yield ""
    yield (
        "Five points are few. None of them is a Qwen1.5 model, a GPTQ or AWQ checkpoint, an L40S, an A100 or a run on "
        "eight GPUs: the project found no public log of these that has all inputs. The oldest point ran SGLang 0.4."
    )
    yield ""


def _held_out(points: Sequence[Point]) -> Iterator[str]:
    yield "## Constants tested on points that did not set them"
    yield ""
    yield ("The formula has a few constants. The project took them from these logs:")
    yield ""
    yield (
        "* **CUDA context and driver:** logs that are not scored above. These are an L4, the H100s of M13, M20 and "
        "M23, the H200 of M19, and the B300 of M04 (its total comes from our table)."
    )
    yield (
        "* **Communication between GPUs:** logs outside this list. These are 2 x 4090, 2 and 8 x H100, and 8 x H200. "
        "One of four newer PCIe cards shows 0.13 GiB more. The planner's margin covers that."
    )
    yield (
        "* **Weights beyond their tensors:** 0.07 GiB on one GPU (logs: 0.02 to 0.14), and 0.25 GiB on several. M05 "
        "is one of few logs for several GPUs (0.2)."
    )
    yield ""
    yield (
        "No point should be judged with constants that it set itself. So `bench/held_out.py` sets the constants for "
        "context and weights again from the logs of one half of the ids, and tests them on the other half."
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
