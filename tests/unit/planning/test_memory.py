"""The memory formula: what it rests on, and that more memory is never worse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_operator import engines
from qwen_operator.hardware.boards import boards
from qwen_operator.planning.memory import GIB, Formula, Split
from tests.unit.planning.models import facts

FORMULA = Formula(engines.newest().memory)
budget, tuning = FORMULA.budget, FORMULA.tuning
SIZES = st.integers(8_000, 400_000)
RANKS = st.sampled_from([1, 2, 4, 8, 16])
MODELS = st.sampled_from(["Qwen1.5-7B", "Qwen1.5-72B-Chat-AWQ", "Qwen3-30B-A3B", "Qwen3.5-27B", "Qwen2.5-0.5B"])


@settings(deadline=None)
@given(MODELS, SIZES, SIZES, RANKS, st.sampled_from([1, 2]))
def test_more_memory_never_gives_fewer_tokens(model: str, one: int, two: int, tp: int, value: int) -> None:
    less, more = sorted((one, two))
    checkpoint = facts(model)
    small, large = (budget(checkpoint, mib, Split(tp), value) for mib in (less, more))
    assert small.kv_tokens <= large.kv_tokens
    assert small.pool_tokens <= large.pool_tokens
    assert (small.most_requests or 0) <= (large.most_requests or 0)


@settings(deadline=None)
@given(MODELS, SIZES, RANKS)
def test_the_promise_stays_below_the_prediction_and_the_parts_below_the_whole(model: str, mib: int, tp: int) -> None:
    one = budget(facts(model), mib, Split(tp))
    assert one.kv_tokens <= one.pool_tokens
    assert one.kv_tokens % 64 == 0
    if one.kv_tokens:
        assert one.weights + one.state + one.kv + one.margin == pytest.approx(one.static)
        assert one.static < one.free < one.total
        # what is needed for exactly that many tokens is there, and for many more it is not
        assert one.need(one.kv_tokens) <= one.free
        assert one.need(2 * one.kv_tokens + GIB // one.kv_bytes_per_token) > one.free


@pytest.mark.parametrize("mib", [row[0] for row in FORMULA.constants.tunings[1:]])
def test_a_step_of_the_table_is_no_step_down(mib: int) -> None:
    below, above = tuning(mib - 1), tuning(mib)
    assert below != above
    assert below.fraction <= above.fraction
    assert below.chunk <= above.chunk
    assert below.graph_batch <= above.graph_batch


def test_from_40_gb_on_the_slack_is_what_sglang_itself_would_reserve() -> None:
    for board in boards():
        settings_ = tuning(board.memory_mib)
        if board.memory_mib >= 35840:
            for ranks in (1, 8):
                slack = FORMULA.free_before_load(board.memory_mib, ranks) * (1000 - settings_.fraction) / 1000
                assert slack * 1024 >= FORMULA.engine_reserve_mib(settings_), board.product


# (total MiB, ranks, GiB that a public log shows as free before load)
LOGGED = [
    (16303, 1, 15.16),
    (23034, 1, 21.75),
    (24564, 4, 23.08),
    (81559, 1, 78.43),
    (143771, 1, 139.13),
    (284208, 1, 275.75),
]


@pytest.mark.parametrize(("mib", "ranks", "logged"), LOGGED)
def test_free_memory_is_never_above_what_logs_show_and_never_far_below(mib: int, ranks: int, logged: float) -> None:
    predicted = FORMULA.free_before_load(mib, ranks)
    assert logged - 0.6 <= predicted <= logged + 0.005


def test_communication_needs_memory_by_ranks_and_kind_of_board() -> None:
    l4 = [round(FORMULA.communication_gib(23034, ranks), 2) for ranks in (1, 2, 4, 8, 16)]
    h100 = [round(FORMULA.communication_gib(81559, ranks), 2) for ranks in (1, 2, 4, 8, 16)]
    assert l4 == [0, 0.26, 0.26, 2.0, 2.0]
    assert h100 == [0, 1.25, 1.25, 2.0, 2.0]


def test_a_public_log_of_an_h100() -> None:
    """Qwen3-32B on one H100 at 0.9 with SGLang 0.5.19 printed max_total_num_tokens=39078."""
    predicted = FORMULA.pool_tokens(facts("Qwen3-32B"), 81559, Split(1), 0.9)
    assert predicted == pytest.approx(39078, rel=0.01)
    assert predicted <= 39078


def test_no_memory_is_no_room() -> None:
    one = budget(facts("Qwen1.5-72B"), 0, Split(1))
    assert (one.free, one.kv_tokens, one.pool_tokens) == (0, 0, 0)


def test_a_hybrid_divides_its_pool_between_states_and_cache() -> None:
    checkpoint = facts("Qwen3.5-27B")
    one = budget(checkpoint, 81559, Split(2))
    assert one.state == pytest.approx(0.9 * one.kv)
    slots = one.state * GIB / checkpoint.state_bytes_per_request(2)
    assert one.most_requests == int(slots) // 3
    # less for the states is more for the cache
    longer = budget(checkpoint, 81559, Split(2), state_ratio=100)
    assert longer.state == pytest.approx(0.1 * longer.kv)
    assert longer.kv_tokens > one.kv_tokens
    assert longer.most_requests is not None
    assert longer.most_requests < one.most_requests
    assert longer.need(longer.kv_tokens) <= longer.free


def test_multimodal_models_keep_five_percent_for_images() -> None:
    checkpoint = facts("Qwen1.5-7B")
    plain, seeing = (budget(replace(checkpoint, multimodal=flag), 81559, Split(1)) for flag in (False, True))
    assert (plain.tuning.fraction, seeing.tuning.fraction) == (900, 855)
    assert seeing.kv_tokens < plain.kv_tokens


def test_one_byte_values_double_the_tokens() -> None:
    wide, narrow = (budget(facts("Qwen1.5-7B"), 81559, Split(1), value) for value in (2, 1))
    assert narrow.kv_bytes_per_token * 2 == wide.kv_bytes_per_token
    assert narrow.pool_tokens // 2 == wide.pool_tokens
