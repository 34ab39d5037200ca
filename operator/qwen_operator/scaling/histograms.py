"""Reads how many requests kept the objective from the histograms on an engine's /metrics page. Pure.

Of a histogram with 20 buckets only one bucket and the count matter. A bucket says how many requests took at most its
bound. If no bound equals the limit, the next smaller one counts, so requests between the two count as too slow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from qwen_operator.api.objective import Objective
from qwen_operator.engines.types import MetricNames
from qwen_operator.scaling.types import Answers
from qwen_operator.untrusted import count

LARGEST_NUMBER = 1e15
"""No engine has so many requests or tokens. Whole numbers up to here are exact, also as sums over many engines."""
_BOUND = re.compile(rb'[{,]le="([0-9]{1,32}(?:\.[0-9]{1,32})?(?:e[-+]?[0-9]{1,4})?)"')

Series = tuple[str, Mapping[str, str], float]
"""One series of a page: its name, labels and value."""


def series_names(names_of_versions: Sequence[MetricNames]) -> frozenset[str]:
    """The names of all series that `answers` reads."""
    names = (name for names in names_of_versions for name in (names.first_token, names.output_token))
    return frozenset(f"{name}_{part}" for name in names for part in ("count", "bucket"))


class Buckets:
    """Which buckets matter: of each name, those with the largest bound within its limit."""

    def __init__(self, names_of_versions: Sequence[MetricNames], objective: Objective) -> None:
        self._limits: dict[str, float] = {}
        for names in names_of_versions:
            self._limits[f"{names.first_token}_bucket"] = objective.first_token_seconds
            self._limits[f"{names.output_token}_bucket"] = objective.output_token_seconds
        self._bounds: dict[str, float] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._limits

    def add(self, name: str, line: bytes) -> tuple[bool, bool]:
        """Whether this line matters, and whether it is the first with a larger bound than all before, which go."""
        match = _BOUND.search(line)
        best = self._bounds.get(name, -1.0)
        bound = float(match[1]) if match else -1.0
        if bound < 0 or not best <= bound <= self._limits[name]:
            return False, False
        self._bounds[name] = bound
        return True, bound > best


def answers(samples: Sequence[Series], problems: Mapping[str, str], model: str, names: MetricNames) -> Answers | None:
    """The requests in the histograms; None if a part of them is unknown.

    `problems`: why lines of a name do not count. `model`: the value of the label model_name, "" for any.
    """
    mine = [item for item in samples if not model or item[1].get("model_name") == model]
    first = _histogram(names.first_token, mine, problems)
    output = _histogram(names.output_token, mine, problems)
    return None if first is None or output is None else Answers(*first, *output)


def _histogram(name: str, samples: Sequence[Series], problems: Mapping[str, str]) -> tuple[int, int] | None:
    """The number of all requests and of those within the limit. A histogram appears with its first request.

    Each request is in one series, so the sum of all series counts.
    """
    parts = (f"{name}_count", f"{name}_bucket")
    counts, buckets = ([value for other, _, value in samples if other == one] for one in parts)
    if any(one in problems for one in parts) or not all(count(value, LARGEST_NUMBER) for value in counts + buckets):
        return None
    if counts and not buckets:
        # Even the smallest bound is above the limit.
        return None
    return int(sum(counts)), int(sum(buckets))
