"""How often scaling rules change the size under a constant load.

    python -m bench.autoscaling.constant [--models 72b-mha ...] [--rules TEXT ...]

Poisson arrivals at each rate for five hours, of which the last three count: by then a rule should have found its size.
Prompts have about 1,000 tokens and answers about 170. One model with one rule takes less than a minute.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

from bench.autoscaling.engine import SPEEDS, Request
from bench.autoscaling.fleet import Case, simulate
from bench.autoscaling.rules import RULES

HOURS, UNSCORED_HOURS = 5, 2
RATES: dict[str, tuple[float, ...]] = {
    "7b-mha": (3.5, 4, 7, 7.5, 8, 8.5, 9, 11),
    "72b-gqa": (1.3, 1.6, 2.5, 3.5, 4.5, 5.5, 6.5, 8),
    "7b-gqa": (4, 5, 6, 7, 10, 12, 17),
    "72b-mha": (1, 2, 3, 4),
}
"""Requests per second, by the simulated replica. Many of these loads are near the border of two sizes."""


def poisson(rate: float, seed: int = 7) -> list[Request]:
    """Requests at `rate` per second for HOURS, with lengths that vary."""
    chance, at = random.Random(seed), 0.0
    requests: list[Request] = []
    while True:
        at += chance.expovariate(rate)
        if at > HOURS * 3600:
            return requests
        prompt, output = int(chance.gammavariate(2, 500)), int(chance.gammavariate(2, 85))
        requests.append(Request(at, max(1, prompt), max(1, output)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("bench.autoscaling.constant", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="*", choices=sorted(RATES), default=list(RATES), help="simulated replicas")
    parser.add_argument("--rules", nargs="*", default=["Objective"], help="parts of the names of the rules")
    given = parser.parse_args(arguments)
    print("| replica | rule | loads | with changes | changes | GPU-hours | worst kept |\n|---|---|--:|--:|--:|--:|--:|")
    for model in given.models:
        cases = [Case(poisson(rate), SPEEDS[model], unscored=UNSCORED_HOURS * 3600) for rate in RATES[model]]
        for name in (name for name in RULES if any(part in name for part in given.rules)):
            results = [simulate(case, RULES[name]()) for case in cases]
            moved, changes = sum(one.changes > 0 for one in results), sum(one.changes for one in results)
            hours, kept = sum(one.gpu_hours for one in results), min(one.kept for one in results)
            print(f"| {model} | {name} | {len(cases)} | {moved} | {changes} | {hours:.1f} | {kept:.2%} |", flush=True)


if __name__ == "__main__":
    main()
