"""Tasks and parsers: by the chat template and the class, never by the name of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from qwen_operator import engines
from qwen_operator.api.engine import Engine, EnvVar
from qwen_operator.checkpoints import catalog, records
from qwen_operator.checkpoints.facts import ChatFormat, Checkpoint, Task
from qwen_operator.planning.answers import Answers, RefusedParserError, answers, recorded_parsers, warnings
from qwen_operator.planning.plan import plan
from qwen_operator.planning.types import EngineDefaults, EngineSource, NoFit, Plan
from qwen_runtime.checkpoints.chat import chat_format
from tests.unit.checkpoints.templates import KINDS, QWEN3, RERANKER
from tests.unit.planning.models import facts, pools, spec

ENGINE = engines.newest()
PLAIN = Engine()
DEFAULTS = EngineDefaults("lmsysorg/sglang", ENGINE.version)
BY_KIND = {
    "Qwen1.5": ("qwen", None),
    "Qwen2.5": ("qwen", None),
    "QwQ": ("qwen", "qwen3-thinking"),
    "Qwen3": ("qwen", "qwen3"),
    "Qwen3-2507 Instruct": ("qwen", None),
    "Qwen3-Coder": ("qwen3_coder", None),
    "Qwen3.5": ("qwen3_coder", "qwen3"),
    "small Qwen3.5": ("qwen3_coder", "mimo"),
    "R1 distilled": (None, "qwen3-thinking"),
}
PUBLISHED = [
    ("Qwen1.5-7B-Chat", "qwen", None),
    ("Qwen2.5-7B-Instruct", "qwen", None),
    ("QwQ-32B", "qwen", "qwen3-thinking"),
    ("QwQ-32B-Preview", "qwen", None),
    ("Qwen3-8B", "qwen", "qwen3"),
    ("Qwen3-30B-A3B", "qwen", "qwen3"),
    ("Qwen3-4B-Instruct-2507", "qwen", None),
    ("Qwen3-4B-Thinking-2507-FP8", "qwen", "qwen3-thinking"),
    ("Qwen3-Coder-30B-A3B-Instruct", "qwen3_coder", None),
    ("Qwen3-Coder-480B-A35B-Instruct", "qwen3_coder", None),
    ("Qwen3-Next-80B-A3B-Instruct", "qwen", None),
    ("Qwen3-Next-80B-A3B-Thinking", "qwen", "qwen3-thinking"),
    ("Qwen3.5-27B", "qwen3_coder", "qwen3"),
    ("Qwen3.6-35B-A3B", "qwen3_coder", "qwen3"),
]


def chosen(checkpoint: Checkpoint, model: str = "support-bot", wanted: Engine = PLAIN) -> Answers:
    return answers(checkpoint, model, wanted, ENGINE)


def planned(checkpoint: Checkpoint, model: str = "support-bot", engine: Engine = PLAIN) -> Plan:
    wanted = replace(spec(engine=engine), model=model)
    result = plan(wanted, checkpoint, pools("H100-80GB"), DEFAULTS, EngineSource("m"))
    assert isinstance(result, Plan), result
    return result


def options(result: Plan) -> set[str]:
    return {item for item in result.args if item.startswith(("--tool-call", "--reasoning", "--is-embedding"))}


@pytest.mark.parametrize(("model", "tools", "reasoning"), PUBLISHED)
def test_parsers_of_published_models(model: str, tools: str | None, reasoning: str | None) -> None:
    got = chosen(facts(model), f"Qwen/{model}")
    assert (got.tools, got.reasoning) == (tools, reasoning)


@pytest.mark.parametrize("model", catalog.names())
def test_another_name_changes_nothing(model: str) -> None:
    entry = catalog.entry(model)
    assert entry is not None
    assert chosen(entry.checkpoint, model) == chosen(entry.checkpoint, "team/support-bot")


@pytest.mark.parametrize("kind", KINDS)
def test_the_template_decides(kind: str) -> None:
    checkpoint = replace(facts("Qwen3-8B"), chat=chat_format(KINDS[kind][0]))
    got = chosen(checkpoint)
    assert (got.tools, got.reasoning) == BY_KIND[kind]
    for parser, names in ((got.tools, "tool_call_parsers"), (got.reasoning, "reasoning_parsers")):
        assert parser is None or parser in getattr(ENGINE.models, names)


def test_the_plan_says_why() -> None:
    result = planned(replace(facts("Qwen3-8B"), chat=chat_format(QWEN3)))
    assert (
        "parsers: --tool-call-parser=qwen, --reasoning-parser=qwen3 (the chat template has <tool_call> with JSON and "
        "<think> that enable_thinking switches off)" in result.steps
    )
    bare = planned(replace(facts("Qwen3-8B"), chat=ChatFormat(template=False)))
    assert "parsers: none (there is no chat template)" in bare.steps
    assert not options(bare)


def test_facts_without_a_template_keep_the_parsers_of_their_time() -> None:
    old = replace(facts("Qwen3-8B"), chat=None)
    assert chosen(old, "team/support-bot").reasoning == "qwen3"
    assert chosen(old, "Qwen/Qwen3-4B-Thinking-2507").reasoning == "qwen3-thinking"
    assert recorded_parsers(replace(facts("Qwen1.5-7B"), chat=None), "Qwen/Qwen1.5-7B-Chat", ENGINE.parsers) == (
        None,
        None,
    )


def test_fields_replace_what_the_template_says() -> None:
    checkpoint = replace(facts("Qwen3-8B"), chat=chat_format(QWEN3))
    none = planned(checkpoint, engine=Engine(tool_call_parser="None", reasoning_parser="None"))
    assert not options(none)
    assert "parsers: none (spec.engine.toolCallParser and spec.engine.reasoningParser are set)" in none.steps
    own = planned(checkpoint, engine=Engine(tool_call_parser="hermes"))
    assert options(own) == {"--tool-call-parser=hermes", "--reasoning-parser=qwen3"}
    assert any("spec.engine.toolCallParser is set; the chat template" in step for step in own.steps)


def tools(name: str) -> Engine:
    return Engine(tool_call_parser=name)


def reasoning(name: str) -> Engine:
    return Engine(reasoning_parser=name)


@pytest.mark.parametrize("wanted", [tools, reasoning])
def test_an_unknown_parser_is_refused_with_the_list_of_its_version(wanted: Callable[[str], Engine]) -> None:
    with pytest.raises(RefusedParserError, match=r"SGLang 0\.5\.23 does not have: set Auto, None or one of apertus"):
        chosen(facts("Qwen3-8B"), wanted=wanted("qwen4"))
    with pytest.raises(RefusedParserError, match=r"is beam, which SGLang 0\.5\.22"):
        answers(facts("Qwen3-8B"), "m", wanted("beam"), engines.of("0.5.22"))
    # Nothing is known about this version, so nothing is refused.
    unchecked = answers(facts("Qwen3-8B"), "m", wanted("qwen4"), engines.of("9.9.9"))
    assert "qwen4" in (unchecked.tools, unchecked.reasoning)


def test_field_and_option_that_differ_are_refused() -> None:
    wanted = spec(engine=Engine(tool_call_parser="qwen", args=("--tool-call-parser=hermes",)))
    result = plan(wanted, facts("Qwen3-8B"), pools("H100-80GB"), DEFAULTS, EngineSource("m"))
    assert isinstance(result, NoFit)
    assert "--tool-call-parser=hermes, but spec.engine.toolCallParser is qwen" in result.message
    assert options(planned(facts("Qwen3-8B"), engine=Engine(args=("--tool-call-parser=hermes",)))) == {
        "--tool-call-parser=hermes",
        "--reasoning-parser=qwen3",
    }


def test_arguments_of_tools_are_held_to_their_schema_unless_the_user_says_otherwise() -> None:
    checkpoint, name = facts("Qwen3-8B"), "SGLANG_TOOL_STRICT_LEVEL"
    assert EnvVar(name, "2") in planned(checkpoint).env
    own = planned(checkpoint, engine=Engine(env=(EnvVar(name, "0"),)))
    assert [one.value for one in own.env if one.name == name] == ["0"]
    assert name not in {one.name for one in planned(checkpoint, engine=Engine(tool_call_parser="None")).env}
    bare = replace(checkpoint, chat=ChatFormat(template=False))
    assert name not in {one.name for one in planned(bare).env}
    given = Engine(args=("--tool-call-parser=hermes",))
    assert EnvVar(name, "2") in planned(bare, engine=given).env


@pytest.mark.parametrize("vocab", [151665, 151669, 151936])
def test_an_embedding_model_is_known_by_its_files(vocab: int) -> None:
    chat = replace(chat_format(QWEN3), task=Task.EMBED)
    result = planned(replace(facts("Qwen3-8B"), vocab=vocab, chat=chat))
    assert options(result) == {"--is-embedding"}
    assert any("at /v1/embeddings" in step for step in result.steps)
    # A chat model whose vocabulary was cut to its tokens stays a chat model.
    same = planned(replace(facts("Qwen3-8B"), vocab=vocab, chat=chat_format(QWEN3)), "team/embedding-helper")
    assert options(same) == {"--tool-call-parser=qwen", "--reasoning-parser=qwen3"}


@pytest.mark.parametrize(
    ("architecture", "path"),
    [
        ("Qwen2ForRewardModel", "/v1/classify"),
        ("Qwen3ForRewardModel", "/v1/classify"),
        ("Qwen2ForSequenceClassification", "/v1/classify"),
        ("Qwen3ForSequenceClassification", "/v1/classify"),
        ("Qwen3Model", "/v1/embeddings"),
    ],
)
def test_classes_that_never_generate_text(architecture: str, path: str) -> None:
    result = planned(replace(facts("Qwen3-8B"), architecture=architecture, chat=chat_format(QWEN3)))
    assert options(result) == {"--is-embedding"}
    assert any(path in step for step in result.steps)


def test_an_embedding_model_of_a_class_that_makes_none_is_refused() -> None:
    chat = replace(chat_format(QWEN3), task=Task.EMBED)
    checkpoint = replace(facts("Qwen3-30B-A3B"), chat=chat)
    result = plan(spec(), checkpoint, pools("H100-80GB"), DEFAULTS, EngineSource("m"))
    assert isinstance(result, NoFit)
    assert "SGLang 0.5.23 makes no embeddings with Qwen3MoeForCausalLM; it does with Qwen2ForCausalLM" in result.message


def test_a_reranker_generates_and_needs_a_template_that_ranks() -> None:
    plain = replace(facts("Qwen3-8B"), chat=replace(chat_format(QWEN3), task=Task.RERANK))
    result = planned(plain)
    assert not options(result)
    assert any("--chat-template" in warning for warning in result.warnings)
    assert not warnings(plain, chosen(plain), ["--chat-template=/t.jinja"])
    assert not planned(replace(plain, chat=chat_format(RERANKER))).warnings


def test_chat_facts_survive_their_record() -> None:
    for chat in (None, chat_format(QWEN3), chat_format(RERANKER), ChatFormat(template=False, task=Task.EMBED)):
        checkpoint = replace(facts("Qwen3-8B"), chat=chat)
        assert records.from_json(checkpoint.to_json()) == checkpoint
    assert "chat" not in replace(facts("Qwen3-8B"), chat=None).to_json()
