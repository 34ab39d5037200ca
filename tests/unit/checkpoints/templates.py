"""Chat templates with the distinguishing parts of the published ones, and what each shows.

They were written for these tests after reading the published templates. What does not decide anything was left out.
"""

from __future__ import annotations

from qwen_runtime.checkpoints.chat import Thinking, ToolFormat

TURNS = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
)
# As the published templates do with earlier answers: it names the markers, and says nothing about new answers.
FORGET = "{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
JSON_TOOLS = (
    "{%- if tools %}{{- '# Tools\\n<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}"
    '{{- \'</tools>\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>\' }}'
    "{%- endif %}"
)
XML_TOOLS = (
    "{%- if tools %}{{- '<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '</tools>\\n"
    "<tool_call>\\n<function=example_function>\\n<parameter=example>\\nvalue\\n</parameter>\\n</function>\\n</tool_call>'"
    " }}{%- endif %}"
)


def prompt(end: str = "") -> str:
    """The part that opens the answer."""
    return "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}" + end + "{%- endif %}"


CLOSE_IF_FALSE = (
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)
OPEN_UNLESS_FALSE = CLOSE_IF_FALSE.replace("{%- endif %}", "{%- else %}{{- '<think>\\n' }}{%- endif %}")
OPEN_IF_TRUE = (
    "{%- if enable_thinking is defined and enable_thinking is true %}{{- '<think>\\n' }}{%- else %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)
ALWAYS_OPEN = "{{- '<think>\\n' }}"

QWEN1_5 = TURNS + prompt()
QWEN2_5 = JSON_TOOLS + TURNS + prompt()
QWQ = JSON_TOOLS + FORGET + TURNS + prompt(ALWAYS_OPEN)
QWEN3 = JSON_TOOLS + FORGET + TURNS + prompt(CLOSE_IF_FALSE)
QWEN3_INSTRUCT = JSON_TOOLS + FORGET + TURNS + prompt()
QWEN3_CODER = XML_TOOLS + TURNS + prompt()
QWEN3_5 = XML_TOOLS + FORGET + TURNS + prompt(OPEN_UNLESS_FALSE)
QWEN3_5_SMALL = XML_TOOLS + FORGET + TURNS + prompt(OPEN_IF_TRUE)
RERANKER = (
    '{{- \'<|im_start|>system\\nNote that the answer can only be "yes" or "no".<|im_end|>\\n\' }}'
    "{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}"
)
DISTILLED = (
    "{%- for message in messages %}{{- message.content.split('</think>')[-1] }}"
    "{{- '<｜tool▁calls▁begin｜>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<｜Assistant｜>' }}{%- endif %}"
)

KINDS = {
    "Qwen1.5": (QWEN1_5, ToolFormat.UNSHOWN, Thinking.NEVER),
    "Qwen2.5": (QWEN2_5, ToolFormat.JSON, Thinking.NEVER),
    "QwQ": (QWQ, ToolFormat.JSON, Thinking.ALWAYS),
    "Qwen3": (QWEN3, ToolFormat.JSON, Thinking.DEFAULT_ON),
    "Qwen3-2507 Instruct": (QWEN3_INSTRUCT, ToolFormat.JSON, Thinking.NEVER),
    "Qwen3-Coder": (QWEN3_CODER, ToolFormat.XML, Thinking.NEVER),
    "Qwen3.5": (QWEN3_5, ToolFormat.XML, Thinking.DEFAULT_ON),
    "small Qwen3.5": (QWEN3_5_SMALL, ToolFormat.XML, Thinking.DEFAULT_OFF),
    "R1 distilled": (DISTILLED, ToolFormat.OTHER, Thinking.ALWAYS),
}
