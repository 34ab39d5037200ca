"""How a model answers: text, a vector or a score, and in which format tool calls and reasoning come.

The chat template decides, because it is what the model was trained with and what the engine renders. It is a program
in Jinja from an untrusted file. So nothing here runs it. The rules look for the few texts that tell the formats apart.
The files of sentence-transformers beside the weights say whether the model answers with a vector or with a score.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from qwen_runtime.checkpoints.reading import InvalidFactsError, parse_any_json, parse_json

LARGEST_TEMPLATE = 1 << 17
"""The most characters of a chat template. Real ones have at most 20 000."""
LARGEST_CHAT_FILE = 10_000_000
"""The most bytes of one of the files that `chat_files` names."""

_TEMPLATE = "chat_template.jinja"
# The files that may hold the template if there is no file of its own. The first one that holds it wins.
_WITH_TEMPLATE = ("chat_template.json", "tokenizer_config.json")
# The files of sentence-transformers.
_MODULES, _SENTENCE, _POOLING = "modules.json", "config_sentence_transformers.json", "1_Pooling"


class Task(str, Enum):  # noqa: UP042 - StrEnum needs Python 3.11, engine images may have 3.10
    """What a model answers with: text, a vector of a text, or how well a document matches a query.

    CLASSIFY is a score or a class of a text. Only the model class shows it, never a file beside the weights.
    """

    GENERATE = "Generate"
    EMBED = "Embed"
    RERANK = "Rerank"
    CLASSIFY = "Classify"


class ToolFormat(str, Enum):  # noqa: UP042 - StrEnum needs Python 3.11, engine images may have 3.10
    """How the template writes tool calls.

    JSON: `<tool_call>` with an object. XML: `<function=NAME>` with `<parameter=NAME>`. UNSHOWN: a ChatML template that
    shows the model no tools. OTHER: any other format, and templates that are not ChatML.
    """

    JSON = "Json"
    XML = "Xml"
    UNSHOWN = "Unshown"
    OTHER = "Other"


class Thinking(str, Enum):  # noqa: UP042 - StrEnum needs Python 3.11, engine images may have 3.10
    """When an answer begins with reasoning that ends with `</think>`.

    DEFAULT_ON: unless a request sets `enable_thinking` to false. DEFAULT_OFF: only if a request sets it to true.
    """

    NEVER = "Never"
    ALWAYS = "Always"
    DEFAULT_ON = "DefaultOn"
    DEFAULT_OFF = "DefaultOff"


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a model answers. `template` is false if the checkpoint has no chat template; then it has no formats.

    `ranks` is true if the template itself asks whether a document matches a query, which SGLang needs for reranking.
    """

    template: bool
    tools: ToolFormat = ToolFormat.OTHER
    thinking: Thinking = Thinking.NEVER
    task: Task = Task.GENERATE
    ranks: bool = False

    def to_record(self) -> dict[str, Any]:
        """JSON values by the names of the fields."""
        return {
            "template": self.template,
            "tools": self.tools.value,
            "thinking": self.thinking.value,
            "task": self.task.value,
            "ranks": self.ranks,
        }


# A reranker that answers with yes or no is recognised by this instruction, as SGLang recognises it.
_YES_OR_NO = 'answer can only be "yes" or "no"'
# A template may be hostile, so each of these patterns takes time in proportion to the text. A comment without an end
# goes to the end of the text.
_COMMENT = re.compile(r"\{#.*?(?:#\}|\Z)", re.DOTALL)
_SPACE = re.compile(r"\s+")
# In the source of a template, a line break in a text is a backslash and an n.
_CLOSED = re.compile(r"<think>(?:\\n|\s)*</think>")
_CHATML, _DEEPSEEK = "<|im_start|>", "<｜Assistant｜>"
_SWITCH = "enable_thinking"
# Ways to write "reasoning, unless the request switches it off". Everything else with the switch is off by default.
_ON_BY_DEFAULT = (
    r"enable_thinking\s+is\s+(?:sameas\s*+\(?\s*+)?false",
    r"enable_thinking\s*==\s*false",
    r"enable_thinking\s+is\s+not\s+(?:sameas\s*+\(?\s*+)?false",
    r"enable_thinking\s*!=\s*false",
    r"enable_thinking\s+is\s+defined\s+and\s+not\s+enable_thinking",
    r"enable_thinking\s+is\s+(?:not\s+defined|undefined)\s+or",
    r"not\s+enable_thinking\s+is\s+defined\s+or",
    r"enable_thinking\s*\|\s*d(?:efault)?\s*\(\s*true",
    r"enable_thinking\s+if\s+enable_thinking\s+is\s+defined\s+else\s+true",
    r"true\s+if\s+enable_thinking\s+is\s+(?:not\s+defined|undefined)\s+else",
    r"set\s+enable_thinking\s*=\s*true",
    r"namespace\([^()]*enable_thinking\s*=\s*true",
)
_ON = re.compile("|".join(_ON_BY_DEFAULT), re.IGNORECASE)
# What people write into such a template so that a request has to ask for reasoning. It counts first, because the rest
# of the template still has one of the ways above.
_UNSET = r"(?:enable_thinking\s+is\s+(?:not\s+defined|undefined)|not\s+enable_thinking\s+is\s+defined)"
_OFF_AFTER_ALL = (
    _UNSET + r"\s+or\s+(?:not\s+enable_thinking|enable_thinking\s*==\s*false)",
    _UNSET + r"\s+or\s+enable_thinking\s+is\s+(?:sameas\s*+\(?\s*+)?false",
    # The block of reasoning is closed under this condition, as for a request that switches reasoning on.
    _UNSET + r"\s+or\s+enable_thinking\s*(?:!=|is\s+not)\s*false\s*[-+]?%}\s*\{\{[-+]?\s*.<think>(?:\\n|\s)*</think>",
    _UNSET + r"\s*[-+]?%}\s*\{%[-+]?\s*set\s+enable_thinking\s*=\s*false",
    r"set\s+enable_thinking\s*=\s*\(?\s*enable_thinking\s*\|\s*d(?:efault)?\s*\(\s*false",
    r"\A\s*\{%[-+]?\s*set\s+enable_thinking\s*=\s*false",
)
_OFF = re.compile("|".join(_OFF_AFTER_ALL), re.IGNORECASE)


def chat_files(names: Iterable[str]) -> tuple[str, ...]:
    """The files of a checkpoint that `read_chat` needs, out of the names of all its files."""
    present = frozenset(names)
    templates = (_TEMPLATE,) if _TEMPLATE in present else _WITH_TEMPLATE
    return tuple(name for name in (*templates, _MODULES, _SENTENCE) if name in present)


def read_chat(files: Mapping[str, bytes], names: Iterable[str], tagged: Task = Task.GENERATE) -> ChatFormat:
    """How the model answers, from the contents of its `chat_files` and the names of all its files.

    `tagged` is what a hub's tags say. It counts if no file says more. Raises InvalidFactsError for a file with the
    template that is not valid JSON, because the engine cannot read it either.
    """
    task = _task(names, _loose(files, _MODULES), _loose(files, _SENTENCE))
    template, with_tools = _templates(files)
    return chat_format(template, with_tools, tagged if task is Task.GENERATE else task)


def _templates(files: Mapping[str, bytes]) -> tuple[str | None, str | None]:
    if _TEMPLATE in files:
        return files[_TEMPLATE].decode("utf-8", "replace"), None
    for name in _WITH_TEMPLATE:
        if name in files:
            template, with_tools = _named(parse_json(files[name], name, LARGEST_CHAT_FILE).get("chat_template"))
            if template:
                return template, with_tools
    return None, None


def _loose(files: Mapping[str, bytes], name: str) -> object:
    """A JSON file that no engine reads: None if it is absent or broken."""
    try:
        return parse_any_json(files[name], name, LARGEST_CHAT_FILE) if name in files else None
    except InvalidFactsError:
        return None


def chat_format(template: str | None, tool_template: str | None = None, task: Task = Task.GENERATE) -> ChatFormat:
    """The format that the text of a template shows. `tool_template` is the one for requests with tools, if it differs.

    A template that is longer than LARGEST_TEMPLATE counts as of an unknown format.
    """
    if not template:
        return ChatFormat(template=False, task=task)
    if max(len(template), len(tool_template or "")) > LARGEST_TEMPLATE:
        return ChatFormat(template=True, task=task)
    plain = _COMMENT.sub("", template)
    with_tools = _COMMENT.sub("", tool_template) if tool_template else plain
    ranks = _YES_OR_NO in plain.replace("\\", "").lower()
    if ranks and task is Task.GENERATE:
        task = Task.RERANK
    return ChatFormat(True, _tools(with_tools), _thinking(plain), task, ranks)


def _tools(template: str) -> ToolFormat:
    if _CHATML not in template:
        return ToolFormat.OTHER
    if "<function=" in template and "<parameter=" in template:
        return ToolFormat.XML
    # GLM's format has the same outer marker, but no JSON object in it.
    if "<tool_call>" in template and "<arg_key>" not in template:
        return ToolFormat.JSON
    return ToolFormat.OTHER if re.search(r"\btools\b|tool_call", template) else ToolFormat.UNSHOWN


def _thinking(template: str) -> Thinking:
    """From the end of the prompt, where the template opens an empty or a real block of reasoning, or none.

    Templates also name the markers where they remove reasoning from earlier answers. That says nothing about new ones.
    """
    if _DEEPSEEK in template:
        return Thinking.ALWAYS if "</think>" in template else Thinking.NEVER
    _, found, end = template.rpartition("add_generation_prompt")
    if _SWITCH in template:
        if "<think>" not in template:
            return Thinking.NEVER
        # Several patterns have two neighbouring spaces of any length, and would try all ways to divide a long one.
        text = _SPACE.sub(" ", template)
        return Thinking.DEFAULT_ON if _ON.search(text) and not _OFF.search(text) else Thinking.DEFAULT_OFF
    opens = bool(found) and "<think>" in _CLOSED.sub("", end)
    return Thinking.ALWAYS if opens else Thinking.NEVER


def _named(value: object) -> tuple[str | None, str | None]:
    """The template for chats and the one for tools, from the member `chat_template` of a file.

    It is a text, or a list of named templates of which transformers takes `default` and, with tools, `tool_use`.
    """
    if isinstance(value, str):
        return value, None
    if not isinstance(value, list):
        return None, None
    named = {
        item.get("name"): item.get("template")
        for item in value
        if isinstance(item, Mapping) and isinstance(item.get("template"), str) and isinstance(item.get("name"), str)
    }
    tools = named.get("tool_use")
    return named.get("default") or tools, tools


def _task(names: Iterable[str], modules: object, sentence: object) -> Task:
    """What a model answers with, from the files of sentence-transformers."""
    kinds = (
        [str(item.get("type")) for item in modules if isinstance(item, Mapping)] if isinstance(modules, list) else []
    )
    if any("cross_encoder" in kind or kind.endswith("LogitScore") for kind in kinds):
        return Task.RERANK
    if isinstance(sentence, Mapping) and sentence.get("model_type") == "CrossEncoder":
        return Task.RERANK
    pools = any(kind.endswith(".Pooling") for kind in kinds)
    if pools or any(name == _POOLING or name.startswith(f"{_POOLING}/") for name in names):
        return Task.EMBED
    return Task.GENERATE
