"""How a model's answers are read: its task, and the parsers of tool calls and reasoning. docs/parsers.md is the table.

The chat template of the checkpoint decides, never the name of the model. So a fine-tune gets what its base gets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qwen_operator.api.engine import Engine, EnvVar
from qwen_operator.checkpoints.facts import ChatFormat, Checkpoint, Task, Thinking, ToolFormat
from qwen_operator.engines.types import EngineVersion, Models, OptionTable, Parsers, Role

AUTO, NONE = "Auto", "None"
# At level 2 SGLang holds the arguments of every tool call to the schema of the tool, at 0 only if the tool is strict.
STRICT_TOOLS = EnvVar("SGLANG_TOOL_STRICT_LEVEL", "2")

_TOOLS_SEEN: Mapping[ToolFormat, str] = {
    ToolFormat.JSON: "<tool_call> with JSON",
    ToolFormat.XML: "<function=",
    ToolFormat.UNSHOWN: "no tools",
    ToolFormat.OTHER: "no format of tool calls that Qwen models have",
}
_THINKING_SEEN: Mapping[Thinking, str] = {
    Thinking.NEVER: "no open <think>",
    Thinking.ALWAYS: "<think> at the end of every prompt",
    Thinking.DEFAULT_ON: "<think> that enable_thinking switches off",
    Thinking.DEFAULT_OFF: "<think> that enable_thinking switches on",
}
_PATHS: Mapping[Task, str] = {
    Task.EMBED: "it answers with vectors, at /v1/embeddings",
    Task.CLASSIFY: "it answers with scores, at /v1/classify",
}


class RefusedParserError(ValueError):
    """A parser that the version of SGLang does not have. The text is one sentence without a full stop."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model answers with, the names of the parsers or None, and the reason for them in a few words."""

    task: Task
    tools: str | None
    reasoning: str | None
    why: str

    @property
    def embedding(self) -> bool:
        """Whether the engine must be told not to generate text."""
        return self.task in (Task.EMBED, Task.CLASSIFY)

    def line(self, table: OptionTable) -> str:
        """The choice with its reason, as a line of a plan."""
        pairs = ((Role.TOOL_CALL_PARSER, self.tools), (Role.REASONING_PARSER, self.reasoning))
        options = ", ".join(f"{table.name(role)}={name}" for role, name in pairs if name)
        return f"parsers: {options or 'none'} ({self.why})"


def task(checkpoint: Checkpoint, models: Models) -> Task:
    """What the model answers with: by its class if that never generates text, else by its files."""
    if checkpoint.architecture in models.textless:
        return Task.CLASSIFY if "For" in checkpoint.architecture else Task.EMBED
    return checkpoint.chat.task if checkpoint.chat else Task.GENERATE


def answers(checkpoint: Checkpoint, model: str, wanted: Engine, engine: EngineVersion) -> Answers:
    """How this version reads the answers of a model. Raises RefusedParserError for a parser that it does not have."""
    tools = _given("toolCallParser", wanted.tool_call_parser, engine.models.tool_call_parsers, engine)
    reasoning = _given("reasoningParser", wanted.reasoning_parser, engine.models.reasoning_parsers, engine)
    chosen = _chosen(checkpoint, model, engine)
    given = [name for name, value in (("toolCallParser", tools), ("reasoningParser", reasoning)) if value != AUTO]
    fields = " and ".join(f"spec.engine.{name}" for name in given)
    return Answers(
        task=chosen.task,
        tools=chosen.tools if tools == AUTO else _name(tools),
        reasoning=chosen.reasoning if reasoning == AUTO else _name(reasoning),
        why={0: chosen.why, 1: f"{fields} is set; {chosen.why}"}.get(len(given), f"{fields} are set"),
    )


def warnings(checkpoint: Checkpoint, read: Answers, args: Iterable[str]) -> tuple[str, ...]:
    """What a user of such a model must know. `args` are the engine's options."""
    own = any(item.partition("=")[0] == "--chat-template" for item in args)
    if read.task is not Task.RERANK or own or (checkpoint.chat and checkpoint.chat.ranks):
        return ()
    return (
        "a reranker whose chat template does not rank: /v1/rerank works only if --chat-template in spec.engine.args "
        "names a template that asks for yes or no, as SGLang expects it; without one the model only completes text",
    )


def _name(value: str) -> str | None:
    return None if value == NONE else value


def _given(field: str, value: str, names: tuple[str, ...], engine: EngineVersion) -> str:
    if value in (AUTO, NONE) or not engine.models.known or value in names:
        return value
    raise RefusedParserError(
        f"spec.engine.{field} is {value}, which SGLang {engine.version} does not have: set Auto, None or one of "
        f"{', '.join(names)}"
    )


def _chosen(checkpoint: Checkpoint, model: str, engine: EngineVersion) -> Answers:
    kind = task(checkpoint, engine.models)
    if kind in _PATHS:
        return Answers(kind, None, None, _PATHS[kind])
    chat = checkpoint.chat
    if kind is Task.RERANK:
        return Answers(kind, None, None, "it is a reranker: it answers with yes or no, at /v1/rerank")
    if chat is None:
        tools, reasoning = recorded_parsers(checkpoint, model, engine.parsers)
        return Answers(kind, tools, reasoning, "by the model's class and name; its chat template was never read")
    if not chat.template:
        return Answers(kind, None, None, "there is no chat template")
    tools, reasoning = template_parsers(chat, engine.parsers)
    seen = f"the chat template has {_TOOLS_SEEN[chat.tools]} and {_THINKING_SEEN[chat.thinking]}"
    return Answers(kind, tools, reasoning, seen)


def template_parsers(chat: ChatFormat, names: Parsers) -> tuple[str | None, str | None]:
    """(--tool-call-parser, --reasoning-parser) for a template, each None if it has no such format.

    A ChatML template without tools gets the parser of JSON calls: with it, SGLang can force a call that a request
    requires, although the model does not see the tools.
    """
    tools = {ToolFormat.JSON: names.tools, ToolFormat.UNSHOWN: names.tools, ToolFormat.XML: names.coder_tools}
    reasoning = {
        Thinking.ALWAYS: names.thinking,
        Thinking.DEFAULT_ON: names.hybrid_thinking,
        Thinking.DEFAULT_OFF: names.requested_thinking,
    }
    return tools.get(chat.tools), reasoning.get(chat.thinking)


def recorded_parsers(checkpoint: Checkpoint, model: str, names: Parsers) -> tuple[str | None, str | None]:
    """The parsers for facts that were recorded before the operator read chat templates.

    They are those of that time, by the model's class and name, so that a pinned revision keeps what it runs with.
    """
    name, family = model.rpartition("/")[2].casefold(), checkpoint.family
    if family in ("", "Qwen2-VL", "Qwen2.5-VL") or "qwen1.5" in name:
        return None, None
    if any(word in name for word in ("embedding", "reranker", "gte-qwen")):
        return None, None
    if family == "Qwen2":
        return names.tools, names.thinking if "qwq" in name else None
    coder = "coder" in name
    calls = names.coder_tools if coder or family == "Qwen3.5" else names.tools
    if coder or "instruct" in name:
        return calls, None
    return calls, names.thinking if "thinking" in name else names.hybrid_thinking
