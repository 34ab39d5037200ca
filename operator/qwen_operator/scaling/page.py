"""Reads the load from an engine's /metrics page, with the official parser.

The parser gets only the few lines that matter. It needs about 11 ms for a whole page of a loaded engine, and 0.2 ms
for these lines. An engine may be compromised, and the parser's time is quadratic for long lines: it needs a minute for
a page of 4 MB. So the lines must have the plain form of _LINE, and there must not be too many of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from prometheus_client.parser import text_string_to_metric_families

from qwen_operator import engines
from qwen_operator.api.conditions import Reason
from qwen_operator.engines.types import MetricNames
from qwen_operator.scaling.types import Work
from qwen_operator.untrusted import clean, count

# The different sets of metric names of all supported versions, the newest version first.
KNOWN_NAMES = tuple(dict.fromkeys(engines.of(version).metrics for version in reversed(engines.VERSIONS)))
_OTHER_ENDPOINTS = frozenset({"/generate", "/api/chat", "/invocations", "/vertex_generate"})
# The assumed size of the KV cache if an engine reports only the share in use.
_WHOLE = 1_000_000
PAGE_BYTES = 512 * 1024
"""The largest page. A page of a loaded engine has about 80 KB."""
LINE_CHARACTERS = 4096
USED_CHARACTERS = 64 * 1024
"""The largest sum of the lines that are used. A loaded engine has 2 to 4 KB of them for each GPU."""
LARGEST_NUMBER = 1e15
"""No engine has so many requests or tokens. Whole numbers up to here are exact, also as sums over many engines."""
# A label with a few escaped characters. The parser is slow for many of them.
_LABEL = r'[A-Za-z_][A-Za-z0-9_]{0,63}="[^"\\]{0,512}(?:\\.[^"\\]{0,512}){0,8}"'
_LABELS = rf"(?:\{{(?:{_LABEL},?){{0,24}}\}})?"
_LINE = re.compile(rf"[A-Za-z0-9_:]{{1,128}}{_LABELS} ?[-+0-9.A-Za-z]{{1,512}}(?: -?[0-9]{{1,20}})?\s*")


_Sample = tuple[str, Mapping[str, str], float]


@dataclass(frozen=True, slots=True)
class Reading:
    """The load on one page.

    `queued`: requests that wait in the scheduler's queues. `inside`: all requests that the engine has not finished. It
    also counts requests that the scheduler does not know yet and, for a moment, requests whose answer has ended.
    `work`: counters since the engine's start; None if the page has no counter of idle seconds.
    `beat`: a number that changes while the scheduler is alive. `ticking`: it also changes without requests.
    """

    running: int
    queued: int
    inside: int
    tokens_used: int
    tokens_capacity: int
    beat: float
    ticking: bool
    work: Work | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is no reading: a reason and the details for the log."""

    reason: Reason
    detail: str


def read_page(page: str, model: str, names_of_versions: Sequence[MetricNames] = KNOWN_NAMES) -> Reading | Trouble:
    """The load on a page of SGLang; `model` is the required value of the label model_name, "" for any.

    A page does not name its SGLang version, so this tries the metric names of each version in turn. If none gives a
    reading, it returns the trouble of the first.
    """
    if len(page) > PAGE_BYTES:
        return Trouble(Reason.METRICS_INVALID, f"the page has more than {PAGE_BYTES} bytes")
    try:
        samples = _samples(_used_lines(tuple(names_of_versions)).findall(page))
    except (ValueError, LookupError, ArithmeticError) as error:
        return Trouble(Reason.METRICS_INVALID, f"cannot parse the page: {clean(error, 200)}")
    results = (_read(samples, model, names) for names in names_of_versions)
    first = next(results)
    if isinstance(first, Reading):
        return first
    return next((result for result in results if isinstance(result, Reading)), first)


def _read(samples: Sequence[_Sample], model: str, names: MetricNames) -> Reading | Trouble:
    """The load in the samples of a page with these metric names.

    It sums the scheduler's gauges over `dp_rank`, because each data-parallel rank has its own queue. The ranks of a
    tensor- or pipeline-parallel group repeat the same numbers, and the largest counts. With priority scheduling, the
    series with an empty `priority` is the total.
    """
    scheduler = names.scheduler
    relevant = [item for item in samples if item[0] not in scheduler or not model or item[1].get("model_name") == model]
    values = {name: _over_ranks(name, relevant) for name in scheduler}
    running, queued = values[names.running], values[names.queued]
    if running is None or queued is None:
        return _missing(names.running if running is None else names.queued, model)
    tokens = _tokens(values, names)
    if tokens is None:
        return _missing(names.tokens_used, model)
    waiting = queued + (values[names.grammar_queue] or 0.0)
    active = sum(value for name, labels, value in relevant if name == names.http_active and _generates(labels))
    inside = max(running + waiting, active)
    numbers = (running, waiting, inside, *tokens)
    if not all(count(number, LARGEST_NUMBER) for number in numbers):
        return Trouble(Reason.METRICS_INVALID, f"{names.running}, {names.queued} or tokens are not counts: {numbers}")
    # A series without a number, such as NaN, would make the sum change or stay for ever.
    beating = [(name, value) for name, _, value in relevant if name in (*names.ticks, *names.work)]
    beats = [value for _, value in beating if count(value, LARGEST_NUMBER)]
    ticking = any(name in names.ticks and count(value, LARGEST_NUMBER) for name, value in beating)
    integers = (int(running), int(waiting), int(inside), int(tokens[0]), int(tokens[1]))
    return Reading(*integers, sum(beats), ticking, _work(relevant, names))


@cache
def _used_lines(names_of_versions: tuple[MetricNames, ...]) -> re.Pattern[str]:
    """Matches the lines of these names."""
    names = sorted({re.escape(name) for names in names_of_versions for name in names.all})
    return re.compile(rf"^(?:{'|'.join(names)})[{{ ][^\n]*", re.MULTILINE)


def _samples(lines: Sequence[str]) -> list[_Sample]:
    """What the parser makes of the lines. Raises ValueError for a line that no engine prints, and for too many."""
    if sum(map(len, lines)) > USED_CHARACTERS:
        raise ValueError(f"the lines that matter have more than {USED_CHARACTERS} characters")
    for line in lines:
        if len(line) > LINE_CHARACTERS or not _LINE.fullmatch(line):
            raise ValueError(f"a line is not a plain series: {line[:80]}")
    families = text_string_to_metric_families("\n".join(lines) + "\n")
    return [(sample.name, sample.labels, _number(sample.value)) for family in families for sample in family.samples]


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        # The parser makes an integer of a text of digits, however long it is.
        return math.inf


def _over_ranks(name: str, samples: Iterable[_Sample]) -> float | None:
    by_rank = _by_rank(name, samples)
    return sum(by_rank.values()) if by_rank else None


def _by_rank(name: str, samples: Iterable[_Sample]) -> dict[str, float]:
    by_rank: dict[str, float] = {}
    for series, labels, value in samples:
        if series == name and not labels.get("priority"):
            rank = labels.get("dp_rank", "")
            by_rank[rank] = max(by_rank.get(rank, value), value)
    return by_rank


def _work(samples: Sequence[_Sample], names: MetricNames) -> Work | None:
    """The counters of work. Data-parallel ranks share the tokens, and each has its own idle time: the mean counts.

    A counter of tokens appears with the first tokens.
    """
    idle = _by_rank(names.idle, samples)
    modes = (names.prefill_mode, names.decode_mode)
    prefilled, decoded = (
        sum(_by_rank(names.tokens, [item for item in samples if item[1].get("mode") == mode]).values())
        for mode in modes
    )
    if not idle:
        return None
    numbers = (prefilled, decoded, sum(idle.values()) / len(idle))
    return Work(*numbers) if all(count(number, LARGEST_NUMBER) for number in numbers) else None


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
