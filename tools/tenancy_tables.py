"""The tables in docs/security.md, made from the rules: `python -m tools.tenancy_tables` writes them anew."""

from __future__ import annotations

from pathlib import Path

from qwen_operator.tenancy import models
from qwen_operator.tenancy.lists import BUILT_IN, Setting
from qwen_operator.tenancy.options import ENGINE_OPTIONS, ENGINE_VARIABLES
from qwen_operator.tenancy.rules import FREE, RULES, Rule

PAGE = Path(__file__).parents[1] / "docs/security.md"
START, END = "<!-- tables: made from the rules -->\n", "<!-- end of tables -->\n"


def tables() -> str:
    """The escalation table, and what engines may be told."""
    head = [
        "| field | `restricted` | `trusted` | what tenants may write | list below `tenancy` |",
        "|---|---|---|---|---|",
    ]
    model = f"| `spec.model`, `spec.source` | by the list | allowed | {models.RIGHT} | `{Setting.MODELS}` |"
    rows = [model, *(_row(rule) for rule in RULES)]
    free = [f"| `{field}` | allowed | allowed | anything: {why} | |" for field, why in FREE.items()]
    return "\n".join(
        [
            *head,
            *sorted([*rows, *free]),
            "",
            "Options that every tenant may set: " + _words(ENGINE_OPTIONS),
            "",
            "Variables that every tenant may set: " + _words(ENGINE_VARIABLES),
            "",
        ]
    )


def _row(rule: Rule) -> str:
    verdict = "tightened" if BUILT_IN[rule.setting] or "may" in rule.right else "refused"
    return f"| `{rule.name}` | {verdict} | allowed | {rule.right} | `{rule.setting}` |"


def _words(words: tuple[str, ...]) -> str:
    return ", ".join(f"`{word}`" for word in words) + "."


def page(content: str) -> str:
    """The page with its tables made anew."""
    head, _, rest = content.partition(START)
    return head + START + "\n" + tables() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
