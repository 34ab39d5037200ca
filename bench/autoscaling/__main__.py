"""Replays traces through scaling rules in a simulator and prints a table.

    python -m bench.autoscaling --trace FILE [--start-hour H --hours H] --model M --gpu P --tp N [--policies TEXT ...]
                                [--seed S] --out FOLDER
    python -m bench.autoscaling --suite design --traces FOLDER [--policies TEXT ...] [--sweep] [--no-references]
                                [--out FOLDER]
    python -m bench.autoscaling --llmd-slo-aware [--seed S] [--out FOLDER]

Without options it replays the small synthetic trace of the repository. M is a model of the catalog with --gpu and --tp,
or a replica of bench/autoscaling/engine.py such as 7b-gqa. A suite needs the files that bench/autoscaling/traces.py
names. Needs no GPU and one core: a window of eight hours takes 2 to 10 s for each rule. FOLDER gets a table, the
numbers as JSON and a picture for each window; a name that ends with .json gets the numbers alone.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.autoscaling import llmd, traces
from bench.autoscaling.clairvoyant import clairvoyant
from bench.autoscaling.engine import SPEEDS, Speed
from bench.autoscaling.fleet import Case, Result, Rule, Story, lower_bound, simulate
from bench.autoscaling.picture import Lane, picture
from bench.autoscaling.replicas import replica
from bench.autoscaling.rules import RULES, SWEEP, Static
from bench.autoscaling.windows import SUITES, Window

SYNTHETIC = Path(__file__).parent / "data" / "synthetic.csv"
_TARGET = 0.99
_LARGEST_STATIC = 64
Makers = Mapping[str, Callable[[], Rule]]


@dataclass(frozen=True, slots=True)
class Job:
    """A case, its name, and the rules to replay.

    `references`: also the best fixed size and the clairvoyant schedule. `target`: the share that must be kept.
    """

    name: str
    case: Case
    rules: Makers
    references: bool = True
    target: float = _TARGET


@dataclass(slots=True)
class Outcome:
    """The numbers of a job. A rule without a story is a reference."""

    job: Job
    bound: float
    results: dict[str, Result]
    stories: dict[str, Story]

    def record(self) -> dict[str, Any]:
        case = self.job.case
        return {
            "name": self.job.name,
            "requests": len(case.requests),
            "speed": asdict(case.speed),
            "startSeconds": case.start,
            "unscoredSeconds": case.unscored,
            "objective": asdict(case.objective),
            "seed": case.seed,
            "lowerBoundGpuHours": self.bound,
            "rules": {name: asdict(result) for name, result in self.results.items()},
        }

    def lanes(self) -> list[Lane]:
        return [(name, self.results[name], story) for name, story in self.stories.items()]


def case_of(window: Window, path: Path) -> Case:
    """Raises OSError, KeyError or ValueError if the trace cannot be read."""
    requests = traces.read(path, window.start_hour, window.hours)
    return Case(requests, SPEEDS[window.model], window.start, window.unscored)


def best_static(case: Case, target: float = _TARGET) -> tuple[str, Result] | None:
    """The smallest fixed size that keeps the objective; None if no size does."""
    low, high, best = case.least, min(case.most, _LARGEST_STATIC), None
    while low <= high:
        size = (low + high) // 2
        result = simulate(replace(case, least=size), Static(size))
        if result.kept >= target:
            best, high = (f"fixed: {size}", result), size - 1
        else:
            low = size + 1
    return best


def rows(job: Job) -> Iterator[tuple[str, Result, Story | None]]:
    """The result of each rule, of the best fixed size, and of the clairvoyant schedule."""
    for name, make in job.rules.items():
        story = Story()
        yield name, simulate(job.case, make(), story), story
    if job.references:
        static = best_static(job.case, job.target)
        if static:
            yield *static, None
        seeing = clairvoyant(job.case, job.target, static[1].largest if static else 0)
        if seeing:
            yield "clairvoyant", seeing, None


HEAD = (
    "| rule | kept | late first token | slow decoding | GPU-hours | ÷ lower bound | mean replicas | changes of size "
    "| largest size | first token, s: 50, 95, 99 % | ms per token: 50, 95, 99 % |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def line(name: str, result: Result, bound: float, target: float = _TARGET) -> str:
    """A line of the table."""
    kept = f"{result.kept:.2%}" if result.kept < target else f"**{result.kept:.2%}**"
    ratio = f"{result.gpu_hours / bound:.2f}" if bound else "-"
    first = ", ".join(f"{value:.2f}" for value in result.first_token) or "-"
    token = ", ".join(f"{value * 1000:.0f}" for value in result.output_token) or "-"
    return (
        f"| {name} | {kept} | {result.late:.2%} | {result.slow:.2%} | {result.gpu_hours:.1f} | {ratio} "
        f"| {result.replicas:.2f} | {result.changes} | {result.largest} | {first} | {token} |"
    )


def run(job: Job) -> tuple[Outcome, str]:
    """Prints the table of a case while it grows. Returns the numbers and the table."""
    outcome = Outcome(job, lower_bound(job.case), {}, {})
    title = f"{job.name}: {len(job.case.requests)} requests, lower bound {outcome.bound:.2f} GPU-hours"
    lines = [title, "", HEAD]
    print(f"\n{title}\n\n{HEAD}", flush=True)
    for name, result, story in rows(job):
        lines.append(line(name, result, outcome.bound, job.target))
        print(lines[-1], flush=True)
        outcome.results[name] = result
        if story is not None:
            outcome.stories[name] = story
    if seeing := outcome.results.get("clairvoyant"):
        lines += ["", "÷ clairvoyant: " + "; ".join(_ratios(outcome, seeing))]
        print(f"\n{lines[-1]}", flush=True)
    return outcome, "\n".join(lines)


def _ratios(outcome: Outcome, seeing: Result) -> Iterator[str]:
    for name, result in outcome.results.items():
        if name != "clairvoyant":
            kept = "" if result.kept >= outcome.job.target else ", missed"
            yield f"{name} {result.gpu_hours / seeing.gpu_hours:.2f}{kept}"


def write(outcomes: Sequence[tuple[Outcome, str]], out: Path) -> None:
    """The numbers; in a folder also the tables and pictures."""
    numbers = json.dumps([outcome.record() for outcome, _ in outcomes], indent=1) + "\n"
    if out.suffix == ".json":
        out.write_text(numbers, encoding="utf-8")
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(numbers, encoding="utf-8")
    (out / "tables.md").write_text("\n\n".join(table for _, table in outcomes) + "\n", encoding="utf-8")
    for outcome, _ in outcomes:
        name = re.sub(r"[^a-z0-9]+", "-", outcome.job.name.lower()).strip("-")
        image = picture(outcome.job.name, outcome.job.case, outcome.lanes())
        (out / f"{name}.svg").write_text(image, encoding="utf-8")


def jobs(given: argparse.Namespace) -> Iterator[Job]:
    """What to replay. Raises OSError, KeyError or ValueError for input that cannot be used."""
    if given.llmd_slo_aware:
        for poisson in (False, True):
            arrivals = "random instants" if poisson else "even instants"
            case = llmd.case(given.seed or 0, poisson=poisson)
            yield Job(f"llm-d SLO-aware, {arrivals}", case, llmd.rules(), references=False, target=llmd.PUBLISHED[0])
        return
    known = SWEEP if given.sweep else RULES
    chosen = {name: known[name] for name in known if any(part in name for part in given.policies)}
    if given.suite:
        for window in SUITES[given.suite]:
            case = case_of(window, given.traces / f"{window.trace}.csv.gz")
            yield Job(window.name, replace(case, seed=given.seed), chosen, references=not given.no_references)
        return
    speed, start = _replica(given)
    requests = traces.read(given.trace, given.start_hour, given.hours)
    hours = "" if given.hours is None else f" {given.start_hour:g}-{given.start_hour + given.hours:g} h"
    where = f" on {given.tp} {given.gpu}" if given.gpu else ""
    name = f"{given.trace.name.partition('.')[0]}{hours}, {given.model}{where}, start {start:g} s"
    yield Job(
        name, Case(requests, speed, start, given.unscored, seed=given.seed), chosen, references=not given.no_references
    )


def _replica(given: argparse.Namespace) -> tuple[Speed, float]:
    """The replica and the seconds of its start. Raises ValueError."""
    if given.model in SPEEDS:
        if given.gpu or given.tp:
            raise ValueError(f"--model is {given.model}, which names its GPUs itself: leave out --gpu and --tp")
        return SPEEDS[given.model], 180.0 if given.start_seconds is None else given.start_seconds
    if not given.gpu or not given.tp:
        raise ValueError(f"--model is {given.model}: it needs --gpu and --tp, or must be one of {', '.join(SPEEDS)}")
    speed, start = replica(given.model, given.gpu, given.tp)
    return speed, start if given.start_seconds is None else given.start_seconds


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("bench.autoscaling", description=__doc__.splitlines()[0] if __doc__ else "")
    made.add_argument("--suite", choices=sorted(SUITES), help="replay the windows of the published table")
    made.add_argument("--traces", type=Path, help="the folder with the suite's traces")
    made.add_argument("--llmd-slo-aware", action="store_true", help="the published benchmark of llm-d")
    made.add_argument("--trace", type=Path, default=SYNTHETIC, help="one trace: CSV or gzip")
    made.add_argument("--model", default="7b-gqa", help=f"a model of the catalog, or one of {', '.join(SPEEDS)}")
    made.add_argument("--gpu", help="the GPU product, for a model of the catalog")
    made.add_argument("--tp", type=int, help="GPUs of a replica, for a model of the catalog")
    made.add_argument("--start-hour", type=float, default=0.0)
    made.add_argument("--hours", type=float)
    made.add_argument("--unscored", type=float, default=900.0, help="seconds at the start that do not count")
    made.add_argument("--start-seconds", type=float, help="start of a replica (default: 180, or by plan)")
    made.add_argument(
        "--policies", "--rules", nargs="*", default=[""], help="parts of the names of the rules; all by default"
    )
    made.add_argument("--sweep", action="store_true", help="every number that was tried for the rules of others")
    made.add_argument(
        "--no-references", action="store_true", help="without the best fixed size and the clairvoyant schedule"
    )
    made.add_argument("--seed", type=int, help="give the looks the operator's jitter (default: none)")
    made.add_argument("--out", type=Path, help="a folder for table, JSON and pictures, or a file .json")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser()
    given = options.parse_args(arguments)
    if given.suite and given.traces is None:
        options.error(f"--suite needs --traces, a folder with these files:\n{traces.SOURCES}")
    try:
        outcomes = [run(job) for job in jobs(given)]
    except OSError as error:
        print(f"cannot read a trace: {error}\n{traces.SOURCES}", file=sys.stderr)
        return 1
    except (KeyError, ValueError) as error:
        print(f"bench.autoscaling: {error}", file=sys.stderr)
        return 1
    if given.out:
        write(outcomes, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
