"""What chat templates and the files beside the weights say about a model's answers."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_runtime.checkpoints.chat import (
    LARGEST_TEMPLATE,
    ChatFormat,
    Task,
    Thinking,
    ToolFormat,
    chat_files,
    chat_format,
    read_chat,
)
from qwen_runtime.checkpoints.reading import InvalidFactsError
from tests.unit.checkpoints import templates
from tests.unit.checkpoints.templates import CLOSE_IF_FALSE, KINDS, QWEN2_5, QWEN3, QWQ, TURNS, prompt

POOLING = [{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Pooling"}]
SCORE = [{"type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"}]


OFF_UNLESS = "{%- if WHEN %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"


def files(**contents: Any) -> dict[str, bytes]:
    named = {name.replace("__", "."): value for name, value in contents.items()}
    return {name: value if isinstance(value, bytes) else json.dumps(value).encode() for name, value in named.items()}


def read(contents: dict[str, bytes], *others: str, tagged: Task = Task.GENERATE) -> ChatFormat:
    names = {*contents, *others}
    return read_chat({name: contents[name] for name in chat_files(names)}, names, tagged)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_template_is_told_apart(kind: str) -> None:
    template, tools, thinking = KINDS[kind]
    assert chat_format(template) == ChatFormat(True, tools, thinking)


@pytest.mark.parametrize(
    ("end", "thinking"),
    [
        ("{% if enable_thinking is undefined or enable_thinking %}<think>\\n{% endif %}", Thinking.DEFAULT_ON),
        ("{% if enable_thinking is not defined or enable_thinking %}<think>\\n{% endif %}", Thinking.DEFAULT_ON),
        ("{% if enable_thinking == false %}<think>\\n\\n</think>{% endif %}", Thinking.DEFAULT_ON),
        ("{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}", Thinking.DEFAULT_ON),
        ("{% if enable_thinking | default(true) %}<think>{% endif %}", Thinking.DEFAULT_ON),
        ("{% if enable_thinking|default(True) %}<think>{% endif %}", Thinking.DEFAULT_ON),
        ("{% if enable_thinking | default(false) %}<think>{% endif %}", Thinking.DEFAULT_OFF),
        ("{% if enable_thinking %}<think>\\n{% endif %}", Thinking.DEFAULT_OFF),
        # People switch reasoning off in the template of a model that reasons by default.
        (
            OFF_UNLESS.replace("WHEN", "enable_thinking is not defined or enable_thinking is false"),
            Thinking.DEFAULT_OFF,
        ),
        (OFF_UNLESS.replace("WHEN", "enable_thinking is undefined or not enable_thinking"), Thinking.DEFAULT_OFF),
        (
            OFF_UNLESS.replace("WHEN", "enable_thinking is not defined or enable_thinking != false"),
            Thinking.DEFAULT_OFF,
        ),
        ("{% set enable_thinking = enable_thinking | default(false) %}" + CLOSE_IF_FALSE, Thinking.DEFAULT_OFF),
        (
            "{%- if enable_thinking is not defined -%}{%- set enable_thinking = false -%}{%- endif -%}"
            + CLOSE_IF_FALSE,
            Thinking.DEFAULT_OFF,
        ),
        (
            "{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}" + CLOSE_IF_FALSE,
            Thinking.DEFAULT_ON,
        ),
        # What ends reasoning for one turn is no default.
        (
            "{% if '/no_think' in text %}{% set enable_thinking = false %}{% endif %}" + CLOSE_IF_FALSE,
            Thinking.DEFAULT_ON,
        ),
        ("{% if not enable_thinking %}<think>\\n\\n</think>{% endif %}", Thinking.DEFAULT_OFF),
        ("<think>\\n\\n</think>\\n\\n", Thinking.NEVER),
        ("{% if enable_thinking %}/think{% endif %}", Thinking.NEVER),
        ("{# <think> #}", Thinking.NEVER),
        ("{# enable_thinking #}<think>", Thinking.ALWAYS),
    ],
)
def test_the_switch_in_other_words(end: str, thinking: Thinking) -> None:
    assert chat_format(TURNS + prompt(end)).thinking is thinking


def test_formats_of_other_models_are_not_taken_for_those_of_qwen() -> None:
    assert chat_format("[INST] {{ messages }} [/INST] <tool_call>").tools is ToolFormat.OTHER
    glm = QWEN2_5.replace("<args-json-object>", "<arg_key>")
    assert chat_format(glm).tools is ToolFormat.OTHER
    assert chat_format(TURNS + "{% if tools %}[TOOLS]{% endif %}").tools is ToolFormat.OTHER


def test_no_template_and_a_template_that_is_too_large() -> None:
    assert chat_format(None) == chat_format("") == ChatFormat(template=False)
    assert chat_format(QWEN3 + " " * LARGEST_TEMPLATE) == ChatFormat(template=True)


def test_the_first_file_with_a_template_wins() -> None:
    config, jinja = {"chat_template": QWEN2_5}, QWQ.encode()
    assert read(files(tokenizer_config__json=config)) == chat_format(QWEN2_5)
    assert read(files(tokenizer_config__json=config, chat_template__jinja=jinja)) == chat_format(QWQ)
    processor = files(tokenizer_config__json=config, chat_template__json={"chat_template": QWEN3})
    assert read(processor) == chat_format(QWEN3)
    assert read(files(tokenizer_config__json={"model_max_length": 10**30})) == ChatFormat(template=False)
    assert read({}) == ChatFormat(template=False)


def test_named_templates() -> None:
    named = [{"name": "default", "template": QWQ}, {"name": "tool_use", "template": templates.QWEN3_CODER}]
    assert read(files(tokenizer_config__json={"chat_template": named})) == ChatFormat(
        True, ToolFormat.XML, Thinking.ALWAYS
    )
    for odd in ([1, {"name": 1}, {"template": "x"}], 7, {"a": 1}):
        assert not read(files(tokenizer_config__json={"chat_template": odd})).template


def test_a_broken_file_with_the_template_is_refused_as_the_engine_refuses_it() -> None:
    with pytest.raises(InvalidFactsError, match=r"tokenizer_config\.json is not valid JSON"):
        read(files(tokenizer_config__json=b"{"))
    # No engine reads this one.
    assert read(files(modules__json=b"{", tokenizer_config__json={"chat_template": QWEN3})).task is Task.GENERATE


@pytest.mark.parametrize(
    ("contents", "others", "task"),
    [
        (files(modules__json=POOLING), (), Task.EMBED),
        (files(), ("1_Pooling",), Task.EMBED),
        (files(), ("1_Pooling/config.json",), Task.EMBED),
        (files(modules__json=SCORE), ("1_Pooling",), Task.RERANK),
        (files(config_sentence_transformers__json={"model_type": "CrossEncoder"}), (), Task.RERANK),
        (files(config_sentence_transformers__json={"model_type": "SentenceTransformer"}), (), Task.GENERATE),
        (files(chat_template__jinja=templates.RERANKER.encode()), (), Task.RERANK),
        (files(modules__json={"odd": 1}), ("1_Poolings",), Task.GENERATE),
        (files(tokenizer_config__json={"chat_template": QWEN3}), ("model.safetensors",), Task.GENERATE),
    ],
)
def test_the_task_comes_from_the_files(contents: dict[str, bytes], others: tuple[str, ...], task: Task) -> None:
    assert read(contents, *others).task is task


def test_tags_count_only_if_no_file_says_more() -> None:
    chat = files(tokenizer_config__json={"chat_template": QWEN3})
    assert read(chat, tagged=Task.EMBED).task is Task.EMBED
    assert read({**chat, **files(modules__json=SCORE)}, tagged=Task.EMBED).task is Task.RERANK


def test_only_a_template_that_ranks_is_said_to_rank() -> None:
    assert chat_format(templates.RERANKER).ranks
    escaped = templates.RERANKER.replace('"', '\\"')
    assert chat_format(escaped).ranks
    assert not read(files(modules__json=SCORE, chat_template__jinja=QWEN3.encode())).ranks


@given(st.text(), st.sampled_from([one[0] for one in KINDS.values()]))
def test_comments_change_nothing(comment: str, template: str) -> None:
    hidden = "{# " + comment.replace("#}", "") + " #}"
    assert chat_format(hidden + template) == chat_format(template)


@given(st.text(st.sampled_from("<>think/ _enabl{}%#\\n|'"), max_size=400))
def test_any_text_is_read_without_an_error(text: str) -> None:
    chat_format(text)
    chat_format(TURNS + text + prompt(CLOSE_IF_FALSE))


HOSTILE = (
    "{#",
    "{# #",
    "namespace(",
    "namespace(enable_thinking ",
    "enable_thinking is sameas" + " " * 60_000,
    "enable_thinking is not sameas (" + " " * 60_000,
    "enable_thinking" + " " * 9_000,
    "set ",
    "not enable_thinking is ",
    "<think>\\n",
    "add_generation_prompt",
    "enable_thinking is not defined or enable_thinking != false %}{{- '<think>",
    "set enable_thinking = (enable_thinking | default(",
)


@pytest.mark.parametrize("part", HOSTILE)
def test_a_hostile_template_is_read_quickly(part: str) -> None:
    """Some of these took minutes. Matching holds the interpreter's lock, so nothing else runs meanwhile."""
    head = "<|im_start|>enable_thinking <think> add_generation_prompt "
    text = (head + part * (LARGEST_TEMPLATE // len(part) + 1))[:LARGEST_TEMPLATE]
    began = time.process_time()
    chat_format(text)
    assert time.process_time() - began < 1
