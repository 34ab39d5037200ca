"""What an engine's /metrics page says about its load: the few lines that matter, read with the official parser.

A whole page of a loaded engine costs that parser some 11 ms, the lines that are needed 0.2 ms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from prometheus_client.parser import text_string_to_metric_families

from qwen_operator import engines
from qwen_operator.api.conditions import Reason
from qwen_operator.engines.types import MetricNames

# Those of every version that has other names than a newer one; the newest first.
KNOWN_NAMES = tuple(dict.fromkeys(engines.of(version).metrics for version in reversed(engines.VERSIONS)))
_OTHER_ENDPOINTS = frozenset({"/generate", "/api/chat", "/invocations", "/vertex_generate"})
# Stands for the size of the KV cache where an engine tells only the share in use.
_WHOLE = 1_000_000


@dataclass(frozen=True, slots=True)
class Reading:
    """One page. `queued` are those that wait in the scheduler's queues, `inside` all requests that the engine has not
    finished with: more while the scheduler does not know of them yet, and for a moment after an answer has ended.
    `beat` changes while the scheduler is alive, if `ticking` also without requests."""

    running: int
    queued: int
    inside: int
    tokens_used: int
    tokens_capacity: int
    beat: float
    ticking: bool


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is no reading: a reason and the details for the log."""

    reason: Reason
    detail: str


def read(page: str, model: str, known: Sequence[MetricNames] = KNOWN_NAMES) -> Reading | Trouble:
    """The load on a page of SGLang; `model` is the wanted value of the label model_name, "" for any.

    A page does not say which version wrote it, so all `known` names are tried in turn. Where none gives a reading, the
    trouble is that of the first.
    """
    results = (_read(page, model, names) for names in known)
    first = next(results)
    if isinstance(first, Reading):
        return first
    return next((one for one in results if isinstance(one, Reading)), first)


def _read(page: str, model: str, names: MetricNames) -> Reading | Trouble:
    """The load on a page with these names.

    The scheduler's gauges are summed over `dp_rank` (each has its own queue); ranks of one tensor- or
    pipeline-parallel group repeat the same numbers, of which the largest counts. With priority scheduling the series
    with an empty `priority` is the total.
    """
    lines = [line for line in page.splitlines() if line.startswith(_prefixes(names))]
    try:
        samples = _samples(lines)
    except (ValueError, KeyError, IndexError) as error:
        return Trouble(Reason.METRICS_INVALID, f"the page cannot be read: {error}")
    scheduler = names.scheduler
    mine = [item for item in samples if item[0] not in scheduler or not model or item[1].get("model_name") == model]
    values = {name: _over_ranks(name, mine) for name in scheduler}
    running, queued = values[names.running], values[names.queued]
    if running is None or queued is None:
        return _missing(names.running if running is None else names.queued, model)
    tokens = _tokens(values, names)
    if tokens is None:
        return _missing(names.tokens_used, model)
    waiting = queued + (values[names.grammar_queue] or 0.0)
    active = sum(value for name, labels, value in mine if name == names.http_active and _generates(labels))
    inside = max(running + waiting, active)
    numbers = (running, waiting, inside, *tokens)
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        return Trouble(Reason.METRICS_INVALID, f"{names.running}, {names.queued} and tokens are no counts: {numbers}")
    beats = [value for name, _, value in mine if name in (*names.ticks, *names.work)]
    ticking = any(name in names.ticks for name, _, _ in mine)
    return Reading(int(running), int(waiting), int(inside), int(tokens[0]), int(tokens[1]), sum(beats), ticking)


@cache
def _prefixes(names: MetricNames) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for name in names.all for end in ("{", " "))


_Sample = tuple[str, Mapping[str, str], float]


def _samples(lines: Iterable[str]) -> list[_Sample]:
    families = text_string_to_metric_families("\n".join(lines) + "\n")
    return [(sample.name, sample.labels, float(sample.value)) for family in families for sample in family.samples]


def _over_ranks(name: str, samples: Iterable[_Sample]) -> float | None:
    found: dict[str, float] = {}
    for series, labels, value in samples:
        if series == name and not labels.get("priority"):
            rank = labels.get("dp_rank", "")
            found[rank] = max(found.get(rank, value), value)
    return sum(found.values()) if found else None


def _tokens(values: Mapping[str, float | None], names: MetricNames) -> tuple[float, float] | None:
    used, capacity, usage = values[names.tokens_used], values[names.tokens_capacity], values[names.token_usage]
    if used is not None and capacity:
        return used, capacity
    return None if usage is None else (usage * _WHOLE, float(_WHOLE))


def _generates(labels: Mapping[str, str]) -> bool:
    endpoint = labels.get("endpoint", "")
    return labels.get("method") == "POST" and (endpoint.startswith("/v1/") or endpoint in _OTHER_ENDPOINTS)


def _missing(name: str, model: str) -> Trouble:
    label = f' with model_name="{model}"' if model else ""
    return Trouble(Reason.METRICS_INVALID, f"the page has no {name}{label}")
