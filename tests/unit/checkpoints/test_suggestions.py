"""A suggestion for a mistyped model never changes what the user meant without a word."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.checkpoints import catalog
from qwen_operator.checkpoints.suggestions import differences, suggestion

SPELLED = {
    "Qwen/Qwen1.5-72B-Caht": "Qwen/Qwen1.5-72B-Chat",
    "qwen1.5-7b-chat": "Qwen/Qwen1.5-7B-Chat",
    "qwen15-7b-chat": "Qwen/Qwen1.5-7B-Chat",
    "qwen-2.5-7b-instruct": "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen25-7B-Instruct": "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen2.5-7B-Instrcut": "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/QwQ-32b-preveiw": "Qwen/QwQ-32B-Preview",
    "Qwen3 8B": "Qwen/Qwen3-8B",
    "Qwen3_8B": "Qwen/Qwen3-8B",
}
OTHERS = {
    "Qwen/Qwen3.5-4B": "size 27b instead of 4b",
    "Qwen/Qwen2.5-VL-7B-Instruct": "without vl",
    "Qwen/Qwen2-VL-7B-Instruct": "without vl",
    "Qwen/Qwen2.5-Omni-7B": "without omni",
    "Qwen/Qwen3-7B": "size 1.7b instead of 7b",
    "Qwen/Qwen3.7-27B": "generation 3.8 instead of 3.7",
    "Qwen/Qwen3-30B-A3B-Instruct": "with 2507",
    "Qwen/Qwen3-Coder-30B-A3B": "with instruct",
}


@pytest.mark.parametrize("name", SPELLED)
def test_another_spelling_is_meant(name: str) -> None:
    assert suggestion(name) == f"; did you mean {SPELLED[name]}?"


@pytest.mark.parametrize("name", OTHERS)
def test_another_model_is_named_with_what_differs(name: str) -> None:
    text = suggestion(name)
    assert text.startswith("; the most similar model there is ")
    assert OTHERS[name] in text
    assert "did you mean" not in text


@pytest.mark.parametrize("name", ["team/support-bot", "meta-llama/Llama-3-8B", "", "Qwen"])
def test_nothing_similar_is_not_made_up(name: str) -> None:
    assert suggestion(name) == ""


@given(st.sampled_from(catalog.names()), st.sampled_from(catalog.names()))
def test_only_equal_models_have_no_difference(one: str, two: str) -> None:
    assert bool(differences(one, two)) == (one != two)


@given(st.sampled_from(catalog.names()), st.sampled_from(["1.5", "2", "2.5", "3", "3.5", "3.6", "4"]))
def test_a_generation_is_never_crossed_in_silence(name: str, generation: str) -> None:
    changed = re.sub(r"Qwen\d(\.\d)?", f"Qwen{generation}", name)
    if catalog.lookup(changed) is None and "did you mean" in (text := suggestion(changed)):
        assert f"Qwen{generation}-" in text


@given(st.sampled_from(catalog.names()), st.sampled_from(["VL", "Omni", "Embedding", "Audio", "Reranker"]))
def test_a_kind_is_never_dropped_in_silence(name: str, kind: str) -> None:
    changed = re.sub(r"-(\d)", rf"-{kind}-\1", name, count=1)
    assert changed == name or "did you mean" not in suggestion(changed)
