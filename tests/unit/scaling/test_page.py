"""What is read from the page of an engine: two pages of SGLang 0.5.23 as it printed them, and what goes wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from qwen_operator import engines
from qwen_operator.api.conditions import Reason
from qwen_operator.api.objective import Objective
from qwen_operator.scaling.page import (
    _LINE,
    LINE_BYTES,
    MOST_SERIES,
    NAME_BYTES,
    PAGE_BYTES,
    Page,
    Reading,
    Trouble,
    _is_number,
    _number,
    _series,
)
from qwen_operator.scaling.types import Answers, Reported, Work
from tests.unit.scaling.world import read_page

PAGES = Path(__file__).parent / "pages"
LABELS = 'engine_type="unified",model_name="tiny",moe_ep_rank="0",pp_rank="0",tp_rank="{rank}"'
FULL = {
    "num_running_reqs": 2,
    "num_queue_reqs": 4,
    "num_used_tokens": 300,
    "max_total_num_tokens": 8192,
}


def _page(*extra: str, labels: str = LABELS, **values: object) -> str:
    lines = [
        f"sglang:{name}{{{labels.format(rank=0)}}} {value}" for name, value in (FULL | values).items() if value != ""
    ]
    return "\n".join([*lines, *extra, ""])


def _reading(page: str) -> Reading:
    result = read_page(page, "tiny")
    assert isinstance(result, Reading), result
    return result


def test_a_loaded_engine() -> None:
    """Six requests are inside: one runs, four are queued, and one is on its way to the scheduler."""
    reading = _reading((PAGES / "loaded.txt").read_text(encoding="utf-8"))
    assert (reading.running, reading.queued, reading.tokens_used, reading.tokens_capacity) == (1, 4, 206, 8192)
    assert reading.inside == 6
    assert reading.ticking
    assert reading.beat > 800, "815 tokens were decoded"


def test_the_work_of_an_engine() -> None:
    assert _reading((PAGES / "loaded.txt").read_text(encoding="utf-8")).work == Work(
        47.0, 815.0, 2.684989598, 4.793593192989647
    )
    fresh = _reading((PAGES / "idle.txt").read_text(encoding="utf-8")).work
    assert fresh == Work(28.0, 7.0, 1.814928443)


def _histograms(**values: dict[str, int]) -> str:
    """A page with the buckets of the histograms, by bound, and with their counts at the bound `all`."""
    lines = []
    for name, buckets in values.items():
        for bound, value in buckets.items():
            part, label = ("count", "") if bound == "all" else ("bucket", f',le="{bound}"')
            lines.append(f'sglang:{name}_{part}{{model_name="tiny"{label}}} {value}')
    return _page(*lines)


FIRST, OUTPUT = "time_to_first_token_seconds", "request_time_per_output_token_seconds"
RECORDED = {
    "the defaults": (Objective(), Answers(3, 2, 2, 2)),
    "between two bounds the smaller one counts": (Objective(3999, 250, 100), Answers(3, 2, 2, 2)),
    "later": (Objective(4000, 250, 100), Answers(3, 3, 2, 2)),
    "faster": (Objective(2000, 250, 6), Answers(3, 2, 2, 1)),
    "the smallest": (Objective(100, 250, 5), Answers(3, 2, 2, 0)),
}


@pytest.mark.parametrize(("objective", "answers"), RECORDED.values(), ids=RECORDED.keys())
def test_answers_of_a_real_page(objective: Objective, answers: Answers) -> None:
    """Streams and other requests have series of their own, and all of them count."""
    reading = read_page((PAGES / "loaded.txt").read_text(encoding="utf-8"), "tiny", objective=objective)
    assert isinstance(reading, Reading)
    assert reading.answers == answers


ANSWERS: dict[str, tuple[str, Answers | None]] = {
    "no request yet": (_page(), Answers()),
    "only first tokens": (_histograms(**{FIRST: {"1.0": 3, "2.0": 4, "4.0": 9, "all": 9}}), Answers(9, 4)),
    "buckets in any order": (_histograms(**{FIRST: {"4.0": 9, "2.0": 4, "1.0": 3, "all": 9}}), Answers(9, 4)),
    "bounds of one's own": (_histograms(**{FIRST: {"0.5": 3, "1.5e+00": 4, "all": 9}}), Answers(9, 4)),
    "no bound within the limit": (_histograms(**{FIRST: {"3.0": 9, "+Inf": 9, "all": 9}}), None),
    "a bound that is no number": (_histograms(**{FIRST: {"x": 9, "1": 2, "-1": 3, "all": 9}}), Answers(9, 2)),
    "a bucket without a bound": (_page(f'sglang:{FIRST}_bucket{{model_name="tiny"}} 3'), Answers()),
    "too large": (_histograms(**{FIRST: {"1.0": 10**16, "all": 9}}), None),
    "below nothing": (_histograms(**{OUTPUT: {"0.1": -1, "all": 9}}), None),
    "of another model": (_histograms(**{FIRST: {"1.0": 1, "all": 1}}).replace("tiny", "other"), None),
    "too many series": (
        _page(*(f'sglang:{FIRST}_count{{model_name="tiny",priority="{number}"}} 1' for number in range(200))),
        None,
    ),
}


@pytest.mark.parametrize(("page", "answers"), ANSWERS.values(), ids=ANSWERS.keys())
def test_answers(page: str, answers: Answers | None) -> None:
    result = read_page(page, "tiny")
    assert (result.answers if isinstance(result, Reading) else None) == answers


def test_the_work_of_data_parallel_ranks_is_added_and_their_idle_time_is_not() -> None:
    tokens = [
        f'sglang:realtime_tokens_total{{model_name="tiny",mode="{mode}",dp_rank="{rank}",tp_rank="{other}"}} {value}'
        for mode, value in (("prefill_compute", 50), ("decode", 70), ("prefill_cache", 900))
        for rank in (0, 1)
        for other in (0, 1)
    ]
    idle = _ranks("scheduler_idle_seconds_total", "dp_rank", [10, 30])
    assert _reading(_page(*tokens, *idle)).work == Work(100.0, 140.0, 20.0)


@pytest.mark.parametrize("value", ["NaN", "-1", "1e300"])
def test_work_that_is_no_count_is_not_known(value: str) -> None:
    idle = f'sglang:scheduler_idle_seconds_total{{model_name="tiny"}} {value}'
    assert _reading(_page(idle)).work is None
    assert _reading(_page()).work is None


def test_what_the_start_of_an_engine_took() -> None:
    assert _reading((PAGES / "idle.txt").read_text(encoding="utf-8")).reported == Reported(
        kv_tokens=8192, weight_bytes=0, free_bytes=int(21.12346649169922 * (1 << 30)), startup_seconds=34
    )
    assert _reading(_page()).reported == Reported(kv_tokens=8192)


def test_the_fullest_gpu_counts() -> None:
    page = _page(
        *_ranks("weight_memory_usage_gb", "tp_rank", [3, 4]),
        *_ranks("startup_available_gpu_memory_gb", "tp_rank", [6, 5]),
        'sglang:startup_time_seconds{model_name="tiny",phase="load_weight"} 900',
        'sglang:startup_time_seconds{model_name="other",phase="tokenizer_e2e"} 900',
    )
    assert _reading(page).reported == Reported(8192, 4 << 30, 5 << 30, None)


@pytest.mark.parametrize("value", ["NaN", "-1", "1e300", "1e14"])
def test_memory_that_cannot_be_is_not_known(value: str) -> None:
    page = _page(f'sglang:weight_memory_usage_gb{{model_name="tiny"}} {value}')
    assert _reading(page).reported == Reported(kv_tokens=8192)


def test_a_share_of_the_cache_is_no_number_of_tokens() -> None:
    page = _page('sglang:token_usage{model_name="tiny"} 0.25', max_total_num_tokens="")
    assert _reading(page).reported == Reported()


def test_an_idle_engine() -> None:
    reading = _reading((PAGES / "idle.txt").read_text(encoding="utf-8"))
    assert (reading.running, reading.queued, reading.tokens_used, reading.ticking) == (0, 0, 0, True)


def _ranks(name: str, label: str, values: list[int]) -> list[str]:
    return [f'sglang:{name}{{model_name="tiny",{label}="{rank}"}} {value}' for rank, value in enumerate(values)]


NUMBERS: dict[str, tuple[str, tuple[int, int, int, int]]] = {
    "as it is": (_page(), (2, 4, 300, 8192)),
    "ranks of one model repeat the same numbers": (
        _page(*_ranks("num_running_reqs", "tp_rank", [2, 2]), *_ranks("num_queue_reqs", "pp_rank", [4, 4])),
        (2, 4, 300, 8192),
    ),
    "every data parallel rank has its own queue": (
        "\n".join(line for name in FULL for line in _ranks(name, "dp_rank", [1, 2])),
        (3, 3, 3, 3),
    ),
    "a priority is a part of the total": (
        _page('sglang:num_queue_reqs{model_name="tiny",priority="9"} 44'),
        (2, 4, 300, 8192),
    ),
    "waiting for a grammar is waiting": (
        _page('sglang:num_grammar_queue_reqs{model_name="tiny"} 3'),
        (2, 7, 300, 8192),
    ),
    "other endpoints are no load": (
        _page(
            'sglang:http_requests_active{endpoint="/metrics",method="GET"} 9',
            'sglang:http_requests_active{endpoint="/v1/models",method="GET"} 9',
            'sglang:http_requests_active{endpoint="/flush_cache",method="POST"} 9',
        ),
        (2, 4, 300, 8192),
    ),
    "only a share of the cache": (
        _page('sglang:token_usage{model_name="tiny"} 0.25', max_total_num_tokens=""),
        (2, 4, 250_000, 1_000_000),
    ),
    "another model on the page": (_page('sglang:num_running_reqs{model_name="other"} 50'), (2, 4, 300, 8192)),
    "no labels at all": (_page("sglang:num_queue_reqs 9", labels='model_name="tiny"'), (2, 4, 300, 8192)),
    "names that only begin alike": (_page('sglang:num_running_reqs_offline{model_name="tiny"} 9'), (2, 4, 300, 8192)),
}


@pytest.mark.parametrize(("page", "numbers"), NUMBERS.values(), ids=NUMBERS.keys())
def test_numbers(page: str, numbers: tuple[int, int, int, int]) -> None:
    reading = _reading(page)
    assert (reading.running, reading.queued, reading.tokens_used, reading.tokens_capacity) == numbers


@pytest.mark.parametrize(("active", "inside"), [(9, 9), (1, 6)])
def test_requests_that_the_scheduler_does_not_know_are_inside_and_not_in_a_queue(active: int, inside: int) -> None:
    """The HTTP server knows a request before the scheduler does, and still counts it when its answer has ended."""
    reading = _reading(_page(f'sglang:http_requests_active{{endpoint="/v1/chat/completions",method="POST"}} {active}'))
    assert (reading.running, reading.queued, reading.inside) == (2, 4, inside)


INVALID: dict[str, tuple[str, str]] = {
    "nothing": ("", "no sglang:num_running_reqs"),
    "another program": ("vllm:num_requests_running 1\n", "no sglang:num_running_reqs"),
    "another model": (_page(labels='model_name="other"'), 'with model_name="tiny"'),
    "without the label": (_page(labels='x="y"'), 'with model_name="tiny"'),
    "no queue": (_page(num_queue_reqs=""), "no sglang:num_queue_reqs"),
    "no tokens": (_page(num_used_tokens=""), "no sglang:num_used_tokens"),
    "no capacity and no share": (_page(max_total_num_tokens=0), "no sglang:num_used_tokens"),
    "not a number": (_page(num_running_reqs="NaN"), "the value nan, which is no count from 0 to 1e+15"),
    "negative": (_page(num_used_tokens=-1), "the value -1.0, which is no count"),
    "cut off": (_page('sglang:num_queue_reqs{model_name="ti', num_queue_reqs=""), "a line that is no plain series"),
    "no value": (_page("sglang:num_queue_reqs{} x", num_queue_reqs=""), "a line that is no plain series"),
    "one rank of two": (_page('sglang:num_queue_reqs{model_name="tiny",dp_rank="1"} NaN'), "the value nan"),
    "a long line": (
        _page(f'sglang:num_queue_reqs{{a="{"x" * LINE_BYTES}"}} 1', num_queue_reqs=""),
        f"a line of more than {LINE_BYTES} bytes",
    ),
    "too many series": (
        _page(*_ranks("num_queue_reqs", "dp_rank", [1] * MOST_SERIES)),
        f"more than {MOST_SERIES} series or {NAME_BYTES} bytes",
    ),
    "too large series": (
        _page(*(f'sglang:num_queue_reqs{{a="{"x" * 500}",b="{number}"}} 1' for number in range(40))),
        f"more than {MOST_SERIES} series or {NAME_BYTES} bytes",
    ),
    "numbers too large as a sum": (_page(*_ranks("num_queue_reqs", "dp_rank", [10**15] * 2)), "not counts"),
}


@pytest.mark.parametrize(("page", "says"), INVALID.values(), ids=INVALID.keys())
def test_what_cannot_be_used(page: str, says: str) -> None:
    trouble = read_page(page, "tiny")
    assert isinstance(trouble, Trouble)
    assert trouble.reason == Reason.METRICS_INVALID
    assert says in trouble.detail


def test_any_model_will_do_where_none_is_wanted() -> None:
    assert isinstance(read_page(_page(labels='model_name="other"'), ""), Reading)
    assert "model_name" not in str(read_page("", ""))


def test_life_shows_in_ticks_and_in_work() -> None:
    tick = 'sglang:scheduler_stage_seconds_total{{model_name="tiny",category="idle"}} {}'
    work = 'sglang:realtime_tokens_total{{model_name="tiny",mode="decode"}} {}'
    assert _reading(_page(tick.format(1))).beat != _reading(_page(tick.format(2))).beat
    assert _reading(_page(work.format(1))).beat != _reading(_page(work.format(2))).beat
    assert [_reading(_page(line.format(1))).ticking for line in (tick, work)] == [True, False]


def test_the_names_of_every_version_are_tried() -> None:
    """A page does not say its version; where no version's names are on it, the newest says what is missing."""
    newest = engines.newest().metrics
    older = replace(newest, running="sglang:running", queued="sglang:queued")
    old_page = _page().replace("num_running_reqs", "running").replace("num_queue_reqs", "queued")
    for page in (_page(), old_page):
        result = read_page(page, "tiny", (newest, older))
        assert isinstance(result, Reading)
        assert (result.running, result.queued) == (2, 4)
    result = read_page("", "tiny", (newest, older))
    assert isinstance(result, Trouble)
    assert newest.running in result.detail


ABSURD = ["8e307", "9" * 400, "-1", "NaN", "Inf", "x", "1e16", "0x10", ""]
UNNEEDED = [
    'sglang:num_grammar_queue_reqs{{model_name="tiny"}} {}',
    'sglang:token_usage{{model_name="tiny"}} {}',
    'sglang:http_requests_active{{endpoint="/v1/x",method="POST"}} {}',
    "sglang:scheduler_idle_seconds_total {}",
    'sglang:realtime_tokens_total{{mode="decode"}} {}',
    'sglang:num_queue_reqs{{model_name="tiny",tp_rank="7"}} {}',
    'sglang:num_queue_reqs{{model_name="tiny",priority="7"}} {}',
    'sglang:num_queue_reqs{{model_name="other"}} {}',
]


@pytest.mark.parametrize("value", ABSURD)
@pytest.mark.parametrize("line", UNNEEDED)
def test_one_absurd_series_hides_no_good_one(line: str, value: str) -> None:
    for page in (_page(line.format(value)), f"{line.format(value)}\n{_page()}"):
        reading = _reading(page)
        assert (reading.running, reading.queued, reading.inside) == (2, 4, 6)
        assert (reading.tokens_used, reading.tokens_capacity) == (300, 8192)
        assert (reading.beat, reading.ticking) == (0, False)


BAD_LINES = {
    "cut off": 'sglang:num_queue_reqs{model_name="ti',
    "a long line": f'sglang:num_queue_reqs{{a="{"x" * 200_000}"}} 1',
    "a label twice": 'sglang:num_queue_reqs{a="1",a="2"} 1',
    "many labels": "sglang:num_queue_reqs{" + ",".join(f'l{index}="v"' for index in range(400)) + "} 1",
    "many escapes": 'sglang:num_queue_reqs{a="' + '\\"' * 900 + '"} 1',
    "not UTF-8": "sglang:num_queue_reqs{} \udc00",
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_one_bad_line_hides_no_good_one(line: str) -> None:
    assert (_reading(_page(line)).queued, _reading(f"{line}\n{_page()}").queued) == (4, 4)


_labels = st.lists(
    st.sampled_from(
        ['a="1"', 'a="2"', 'b="x,y=}"', 'c=""', '__n="1"', 'd__e="1"', r'f="\\"', r'g="\n"', 'h="\r"', "i=", " ", ","]
    ),
    max_size=4,
).flatmap(lambda parts: st.sampled_from([",", ", ", ""]).map(lambda between: "{" + between.join(parts) + "}"))


@given(
    st.sampled_from(["queued", "__name__", "9", ":"]),
    st.one_of(st.just(""), _labels),
    st.sampled_from(["1", "-2.5e3", "NaN", "+Inf", "0x1", "1_0", "9" * 400, "1 1700000000", "1 # x"]),
)
def test_a_plain_line_says_what_the_official_parser_makes_of_it(name: str, labels: str, value: str) -> None:
    text = f"{name}{labels} {value}"
    line = _LINE.fullmatch(text)
    if line is None or not _is_number(line["value"]):
        return
    try:
        families = list(text_string_to_metric_families(text + "\n"))
    except ValueError:
        families = []
    official = [(one.name, one.labels, repr(_number(one.value))) for family in families for one in family.samples]
    assert [(name, labels, repr(value)) for name, labels, value in _series(line)] == official


@pytest.mark.parametrize("step", [1, 7, 4096, 70_000])
def test_a_page_reads_the_same_wherever_it_is_cut_into_pieces(step: int) -> None:
    content = (PAGES / "loaded.txt").read_bytes()
    page = Page()
    assert all(page.feed(content[start : start + step]) for start in range(0, len(content), step))
    assert page.read("tiny") == _reading(content.decode())


def test_the_beginning_of_a_large_page_is_enough_if_it_has_what_is_needed() -> None:
    assert _reading(_page() + "#" * 4_000_000).queued == 4
    assert _reading(_page() + "# x\n" * 1_000_000).queued == 4
    page = Page()
    assert page.feed(_page().encode())
    assert not page.feed(b"#" * PAGE_BYTES)


def test_a_large_page_without_what_is_needed_at_its_beginning_says_so() -> None:
    trouble = read_page("#" * PAGE_BYTES + "\n" + _page(), "tiny")
    assert isinstance(trouble, Trouble)
    assert trouble.reason == Reason.METRICS_INVALID
    assert trouble.detail == (
        "the page has more than 524288 bytes, and the operator reads no more; "
        'the page has no sglang:num_running_reqs with model_name="tiny"'
    )


@pytest.mark.parametrize("seen", ["", _histograms(time_to_first_token_seconds={"1.0": 5})], ids=["none", "a part"])
def test_a_cut_page_without_whole_histograms_does_not_say_that_nothing_was_answered(seen: str) -> None:
    """Otherwise all answers since the start of the engine would count as new ones when the page is whole again."""
    assert _reading(_page()).answers == Answers()
    assert _reading(_page() + seen + "#" * PAGE_BYTES + "\n").answers is None


def test_series_at_the_cut_do_not_count_because_some_may_be_missing() -> None:
    ranks = "\n".join(_ranks("num_queue_reqs", "dp_rank", [1] * 8))
    padding = "#" * (PAGE_BYTES - len(_page(num_queue_reqs="")) - len(ranks) // 2)
    trouble = read_page(f"{_page(num_queue_reqs='')}{padding}\n{ranks}\n", "tiny")
    assert isinstance(trouble, Trouble)
    assert "no sglang:num_queue_reqs" in trouble.detail
    assert "series beyond the end" in trouble.detail


def test_of_a_page_little_stays_in_memory() -> None:
    lines = "\n".join(f'{name}{{a="{number}"}} 1' for name in engines.newest().metrics.all for number in range(3000))
    page = Page()
    page.feed(lines.encode())
    kept = [line for of_name in page._lines.values() for line in of_name]
    assert len(kept) <= MOST_SERIES * len(engines.newest().metrics.all)
    assert isinstance(page.read(""), Trouble)
