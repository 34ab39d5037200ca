"""The alerts ask for metrics that exist, and the page of metrics and alerts is complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from qwen_operator.api.conditions import ConditionType, Reason
from tests.unit.chart.manual import CHART, ROOT

PAGE = (ROOT / "docs/observability.md").read_text()
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
# Of the router and of SGLang.
THEIRS = {"smg_admission_queue_rejected_total", "sglang:num_retracted_requests_total"}


def exported() -> set[str]:
    """Names of the metrics of operator, agent and proxy, as the program's text has them: counters without `_total`."""
    paths = [path for path in sorted((ROOT / "operator").rglob("*")) if path.suffix in (".py", ".lua")]
    text = "".join(path.read_text() for path in paths)
    return set(re.findall(r'"(qwen_(?:deployment|operator|gateway)_[a-z_]+)"', text))


def named(text: str) -> set[str]:
    """Names of metrics in a text, in the same form."""
    return {name.removesuffix("_total") for name in re.findall(r"\b(?:qwen|smg)_[a-z_]+|\bsglang:[a-z_]+", text)}


def test_the_page_lists_exactly_the_metrics_that_exist() -> None:
    table = "\n".join(line for line in PAGE.splitlines() if line.startswith("| `qwen_"))
    assert named(table) == exported()


@every_rule
def test_an_alert_asks_for_metrics_that_exist(rule: dict[str, Any]) -> None:
    wanted = named(rule["expr"])
    assert wanted
    assert wanted - exported() - {name.removesuffix("_total") for name in THEIRS} == set()


def matched(expression: str, label: str) -> Iterator[str]:
    """The words that an expression compares a label with."""
    for words in re.findall(rf'\b{label}[!=]~?"([^"]*)"', expression):
        yield from words.split("|")


@every_rule
def test_an_alert_compares_with_words_that_exist(rule: dict[str, Any]) -> None:
    reasons = [word for word in matched(rule["expr"], "reason") if word != "Metrics.*"]
    assert set(reasons) <= set(Reason)
    assert set(matched(rule["expr"], "type")) <= set(ConditionType)


@every_rule
def test_an_alert_says_what_it_is_and_has_a_section(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() == {"summary", "description"}
    word = {"critical": "Page", "warning": "Ticket", "info": "Note"}[rule["labels"]["severity"]]
    section = PAGE.partition(f"\n### {rule['alert']}\n\n")[2]
    assert section.startswith(word)
    # Labels in the texts are those that are left after the aggregation.
    kept = {label for labels in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in labels.split(", ")}
    used = {label for text in rule["annotations"].values() for label in re.findall(r"\$labels\.(\w+)", text)}
    assert used <= (kept or {"namespace", "pod"})


def test_every_section_is_about_an_alert() -> None:
    sections = re.findall(r"^### (Qwen\w+)$", PAGE, re.MULTILINE)
    assert sections == sorted(sections, key=[rule["alert"] for rule in RULES].index)
    assert len(sections) == len(RULES)
