"""Reads the load from an engine's /metrics page.

Only the few lines that matter are read. Lines of the plain form of _LINE are taken apart here, because the official
parser takes ten times as long for them, which is most of the cost of a page. It gets the lines with escaped characters.
An engine may be compromised, and that parser's time is quadratic for long lines: it needs a minute for a page of 4 MB.
So only the first PAGE_BYTES of a page count, and each name may have only so many lines. What one series has wrong does
not hide the others.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

from prometheus_client.parser import text_string_to_metric_families

from qwen_operator import engines
from qwen_operator.api.conditions import Reason
from qwen_operator.api.objective import Objective
from qwen_operator.engines.types import MetricNames
from qwen_operator.scaling.histograms import LARGEST_NUMBER, Buckets, Series, answers, series_names
from qwen_operator.scaling.types import NOTHING_REPORTED, Answers, Reported, Work
from qwen_operator.untrusted import clean, count

# The different sets of metric names of all supported versions, the newest version first.
KNOWN_NAMES = tuple(dict.fromkeys(engines.of(version).metrics for version in reversed(engines.VERSIONS)))
_OTHER_ENDPOINTS = frozenset({"/generate", "/api/chat", "/invocations", "/vertex_generate"})
# The assumed size of the KV cache if an engine reports only the share in use.
_WHOLE = 1_000_000
# No GPU has so much memory.
_MOST_GIB = 1 << 20
PAGE_BYTES = 512 * 1024
"""How much of a page counts. A page of a loaded engine has about 80 KB."""
LINE_BYTES = 4096
MOST_SERIES = 100
"""Series of each name that count. A gauge of the scheduler has one for each GPU and priority."""
NAME_BYTES = 12 * 1024
"""The largest sum of the lines of one name. A line has about 130 bytes."""
# A label with a few escaped characters. The parser is slow for many of them.
_LABEL = r'[A-Za-z_][A-Za-z0-9_]{0,63}="[^"\\]{0,512}(?:\\.[^"\\]{0,512}){0,8}"'
_LABELS = rf"(?:\{{(?P<labels>(?:{_LABEL}(?:,|(?=\}}))){{0,24}})\}} ?| )"
_NAME = r"(?P<name>[A-Za-z_:][A-Za-z0-9_:]{0,127})"
_LINE = re.compile(rf"{_NAME}{_LABELS}(?P<value>[-+0-9.A-Za-z]{{1,512}})(?: -?[0-9]{{1,20}})?\s*")
_PAIR = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="([^"]*)"')

_PARSER_ERRORS = (ValueError, LookupError, ArithmeticError)
_MANY = "more than "


@dataclass(frozen=True, slots=True)
class Reading:
    """The load on one page.

    `queued`: requests that wait in the scheduler's queues. `inside`: all requests that the engine has not finished. It
    also counts requests that the scheduler does not know yet and, for a moment, requests whose answer has ended.
    `work`: counters since the engine's start; None if the page has no counter of idle seconds.
    `answers`: counters too, those in time by the page's objective; None if the page does not say how many those are.
    `reported`: what the start of the engine took.
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
    answers: Answers | None = None
    reported: Reported = NOTHING_REPORTED


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is no reading: a reason and the details for the log."""

    reason: Reason
    detail: str


class Page:
    """A page while it arrives. It keeps only whole lines that matter, and of each name only so many.

    `objective` says which buckets of the histograms matter: of each, the one with the largest bound within the limit.
    """

    def __init__(
        self, objective: Objective | None = None, names_of_versions: Sequence[MetricNames] = KNOWN_NAMES
    ) -> None:
        self._versions = tuple(names_of_versions)
        self._buckets = Buckets(self._versions, objective or Objective())
        self._pattern = _used_lines(self._versions)
        self._size = 0
        self._rest = b""
        self._last = b""
        self._lines: dict[str, list[bytes]] = {}
        self._bytes: Counter[str] = Counter()
        self._problems: dict[str, str] = {}

    def feed(self, content: bytes) -> bool:
        """Take the next bytes. Returns whether the page needs more of them, if there are more."""
        text = self._rest + content[: max(0, PAGE_BYTES - self._size)]
        self._size += len(content)
        whole, end, rest = text.rpartition(b"\n")
        if end:
            self._take(whole)
        # The beginning of a line that is too long is enough to see that.
        self._rest = rest[: LINE_BYTES + 1]
        return self._size <= PAGE_BYTES

    def read(self, model: str) -> Reading | Trouble:
        """The load on the page; `model` is the required value of the label model_name, "" for any.

        A page does not name its SGLang version, so this tries the metric names of each version in turn. If none gives a
        reading, it returns the trouble of the first.
        """
        if self._size > PAGE_BYTES:
            self._leave_out_the_cut_name()
        else:
            self._take(self._rest)
        self._rest = b""
        samples = self._samples()
        results = (_read(samples, self._problems, model, names) for names in self._versions)
        first = next(results)
        result = (
            first if isinstance(first, Reading) else next((one for one in results if isinstance(one, Reading)), first)
        )
        if isinstance(result, Trouble) and self._size > PAGE_BYTES:
            cut = f"the page has more than {PAGE_BYTES} bytes, and the operator reads no more"
            return Trouble(result.reason, f"{cut}; {result.detail}")
        return result

    def _take(self, lines: bytes) -> None:
        self._last = lines[lines.rfind(b"\n") + 1 :]
        for match in self._pattern.finditer(b"\n" + lines):
            name, line = match[1].decode(), match[0][1:]
            if name in self._buckets:
                matters, better = self._buckets.add(name, line)
                if better:
                    self._forget(name)
                if not matters:
                    continue
            kept = self._lines.setdefault(name, [])
            if len(line) > LINE_BYTES:
                self._problem(name, f"a line of more than {LINE_BYTES} bytes")
            elif len(kept) == MOST_SERIES or self._bytes[name] + len(line) > NAME_BYTES:
                # Which ranks the others belong to is not known, so a sum would be too small.
                self._problems[name] = f"{_MANY}{MOST_SERIES} series or {NAME_BYTES} bytes"
            else:
                kept.append(line)
                self._bytes[name] += len(line)

    def _forget(self, name: str) -> None:
        self._lines.pop(name, None)
        self._bytes.pop(name, None)

    def _leave_out_the_cut_name(self) -> None:
        """If the cut may be between two series of one name, leave out all of them, because the sum needs all."""
        match = self._pattern.match(b"\n" + self._last)
        if match is not None and match[1].startswith(self._rest[: len(match[1])]):
            name = match[1].decode()
            self._lines.pop(name, None)
            self._problem(name, "series beyond the end")
        # A page without a histogram means that there was no request yet.
        for name in series_names(self._versions):
            if name not in self._lines:
                self._problem(name, "series beyond the end")

    def _problem(self, name: str, problem: str) -> None:
        self._problems.setdefault(name, problem)

    def _samples(self) -> list[Series]:
        """What the lines say."""
        samples: list[Series] = []
        for name, lines in self._lines.items():
            for line in lines:
                text = line.decode("utf-8", "replace")
                match = _LINE.fullmatch(text)
                if match is None or not _is_number(match["value"]):
                    self._problem(name, f"a line that is no plain series: {clean(text, 80)}")
                    continue
                samples += _series(match)
        return samples


def _read(samples: Sequence[Series], problems: Mapping[str, str], model: str, names: MetricNames) -> Reading | Trouble:
    """The load in the samples of a page with these metric names. `problems`: why lines of a name do not count.

    It sums the scheduler's gauges over `dp_rank`, because each data-parallel rank has its own queue. The ranks of a
    tensor- or pipeline-parallel group repeat the same numbers, and the largest counts. With priority scheduling, the
    series with an empty `priority` is the total.
    """
    scheduler = names.scheduler
    relevant = [item for item in samples if item[0] not in scheduler or not model or item[1].get("model_name") == model]
    good = [item for item in relevant if count(item[2], LARGEST_NUMBER)]
    values = {name: None if _too_many(problems, name) else _over_ranks(name, relevant) for name in scheduler}
    running, queued = values[names.running], values[names.queued]
    if running is None or queued is None:
        return _missing(names.running if running is None else names.queued, model, relevant, problems)
    tokens = _tokens(values, names)
    if tokens is None:
        return _missing(names.tokens_used, model, relevant, problems)
    waiting = queued + (values[names.grammar_queue] or 0.0)
    active = sum(value for name, labels, value in good if name == names.http_active and _generates(labels))
    inside = max(running + waiting, active)
    numbers = (running, waiting, inside, *tokens)
    if not all(count(number, LARGEST_NUMBER) for number in numbers):
        return Trouble(Reason.METRICS_INVALID, f"{names.running}, {names.queued} or tokens are not counts: {numbers}")
    # A series without a number, such as NaN, would make the sum change or stay for ever.
    beats = [value for name, _, value in good if name in (*names.ticks, *names.work)]
    ticking = any(name in names.ticks for name, _, _ in good)
    whole = not any(_too_many(problems, name) for name in (names.idle, names.tokens))
    integers = (int(running), int(waiting), int(inside), int(tokens[0]), int(tokens[1]))
    work = _work(good, names) if whole else None
    found = answers(samples, problems, model, names)
    reported = _reported(relevant, values[names.tokens_capacity], model, names)
    return Reading(*integers, sum(beats), ticking, work, found, reported)


@cache
def _used_lines(names_of_versions: tuple[MetricNames, ...]) -> re.Pattern[bytes]:
    """Matches the lines of these names, each with the line break before it, with the name as its group.

    A search for a fixed beginning takes a fifth of the time of one for any of the names.
    """
    names = sorted({name for names in names_of_versions for name in names.all})
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(names[0], names[-1], strict=False))
    start = "".join(one for one, _ in pairs)
    ends = "|".join(re.escape(name.removeprefix(start)) for name in names)
    return re.compile(rf"\n({re.escape(start)}(?:{ends}))[{{ ][^\n]*".encode())


def _series(line: re.Match[str]) -> list[Series]:
    """The series of a line of the form of _LINE, none if the official parser would refuse the line."""
    text = line["labels"] or ""
    pairs = _PAIR.findall(text)
    labels = dict(pairs)
    # Names with two underscores are reserved.
    if "\\" not in text and "__" not in text and len(labels) == len(pairs):
        return [(line["name"], labels, float(line["value"]))]
    with suppress(*_PARSER_ERRORS):
        families = text_string_to_metric_families(line[0] + "\n")
        return [(sample.name, sample.labels, _number(sample.value)) for family in families for sample in family.samples]
    return []


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        # The parser makes an integer of a text of digits, however long it is.
        return math.inf


def _over_ranks(name: str, samples: Iterable[Series]) -> float | None:
    """The sum of the ranks; None if there is none, or one that has no number of use."""
    by_rank = _by_rank(name, samples)
    return sum(by_rank.values()) if by_rank and min(by_rank.values()) >= 0 else None


def _by_rank(name: str, samples: Iterable[Series]) -> dict[str, float]:
    by_rank: dict[str, float] = {}
    for series, labels, value in samples:
        if series == name and not labels.get("priority"):
            rank = labels.get("dp_rank", "")
            usable = value if count(value, LARGEST_NUMBER) else -1.0
            by_rank[rank] = max(by_rank.get(rank, usable), usable)
    return by_rank


def _work(samples: Sequence[Series], names: MetricNames) -> Work | None:
    """The counters of work. Data-parallel ranks share the tokens, and each has its own idle time: the mean counts.

    A counter of tokens appears with the first tokens, and so does the time between them.
    """
    idle = _by_rank(names.idle, samples)
    modes = (names.prefill_mode, names.decode_mode)
    prefilled, decoded = (
        sum(_by_rank(names.tokens, [item for item in samples if item[1].get("mode") == mode]).values())
        for mode in modes
    )
    if not idle:
        return None
    between = [value for name, _, value in samples if name == names.decoding]
    numbers = (prefilled, decoded, sum(idle.values()) / len(idle), sum(between))
    if not all(count(number, LARGEST_NUMBER) for number in numbers):
        return None
    return Work(*numbers) if between else Work(*numbers[:3])


def _reported(samples: Sequence[Series], capacity: float | None, model: str, names: MetricNames) -> Reported:
    """What the start took. Every rank reports its own memory, and the fullest counts."""
    of_model = [item for item in samples if not model or item[1].get("model_name") == model]

    def of(name: str) -> list[float]:
        return [value for series, _, value in of_model if series == name and count(value, LARGEST_NUMBER)]

    weights, free = of(names.weights_gib), of(names.free_gib)
    seconds = [
        value
        for series, labels, value in of_model
        if series == names.startup and labels.get("phase") == names.startup_phase and count(value, LARGEST_NUMBER)
    ]
    return Reported(
        kv_tokens=int(capacity) if capacity else None,
        weight_bytes=_bytes(max(weights, default=None)),
        free_bytes=_bytes(min(free, default=None)),
        startup_seconds=math.ceil(max(seconds)) if seconds else None,
    )


def _bytes(gib: float | None) -> int | None:
    return None if gib is None or gib > _MOST_GIB else int(gib * (1 << 30))


def _tokens(values: Mapping[str, float | None], names: MetricNames) -> tuple[float, float] | None:
    used, capacity, usage = values[names.tokens_used], values[names.tokens_capacity], values[names.token_usage]
    if used is not None and capacity:
        return used, capacity
    return None if usage is None else (usage * _WHOLE, float(_WHOLE))


def _generates(labels: Mapping[str, str]) -> bool:
    endpoint = labels.get("endpoint", "")
    return labels.get("method") == "POST" and (endpoint.startswith("/v1/") or endpoint in _OTHER_ENDPOINTS)


def _too_many(problems: Mapping[str, str], name: str) -> bool:
    return problems.get(name, "").startswith(_MANY)


def _missing(name: str, model: str, samples: Sequence[Series], problems: Mapping[str, str]) -> Trouble:
    label = f' with model_name="{model}"' if model else ""
    bad = [value for series, _, value in samples if series == name and not count(value, LARGEST_NUMBER)]
    problem = f"the value {bad[0]}, which is no count from 0 to {LARGEST_NUMBER:.0e}" if bad else problems.get(name)
    because = f" that can be used: it has {problem}" if problem else ""
    return Trouble(Reason.METRICS_INVALID, f"the page has no {name}{label}{because}")
