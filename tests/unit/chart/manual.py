"""The chart's values, explained once: the comments of values.yaml, which the table of the documentation and the
descriptions of the schema repeat. `python -m tests.unit.chart.manual` writes both anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts/qwen-operator"
VALUES = CHART / "values.yaml"
SCHEMA = CHART / "values.schema.json"
PAGE = ROOT / "docs/install.md"
START, END = "<!-- values: made from values.yaml -->\n", "<!-- end of values -->\n"


@dataclass(frozen=True, slots=True)
class Value:
    """One key of values.yaml: its path, its comment in one line without the example, its default."""

    path: tuple[str, ...]
    text: str
    default: Any


def explained(text: str) -> Iterator[Value]:
    """The keys of a values file that follow a comment, in the file's order."""
    values, path, comment = yaml.safe_load(text), list[str](), list[str]()
    for line in text.splitlines():
        key = re.match(r"( *)([A-Za-z]+):(.*)", line)
        if key:
            del path[len(key[1]) // 2 :]
            path.append(key[2])
            if comment:
                yield Value(tuple(path), sentence(comment), lookup(values, path))
        note = re.match(r" *# ?(.*)", line)
        comment = [*comment, note[1]] if note else []


def sentence(comment: list[str]) -> str:
    """The lines as one; an example, which is indented, is left out together with the words that announce it."""
    prose = " ".join(line for line in comment if not line.startswith(" ")).strip()
    return re.sub(r" Each entry has these fields:$", "", prose)


def lookup(values: Any, path: list[str]) -> Any:
    for key in path:
        values = values[key]
    return values


def table(text: str) -> str:
    """The Markdown table of a values file. The default of a section is that of the values in it."""
    rows = ["| value | default | meaning |", "|---|---|---|"]
    values = list(explained(text))
    sections = {value.path[:depth] for value in values for depth in range(1, len(value.path))}
    for value in values:
        default = "" if value.path in sections else f"`{flow(value.default)}`"
        meaning = value.text.replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| `{'.'.join(value.path)}` | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def flow(value: Any) -> str:
    """YAML in one line."""
    text = json.dumps(value) if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=999)
    return text.removesuffix("...\n").strip()


def page(content: str, values: str) -> str:
    """The page with its table made anew."""
    head, _, rest = content.partition(START)
    return head + START + "\n" + table(values) + "\n" + END + rest.partition(END)[2]


def described(schema: dict[str, Any], values: str) -> dict[str, Any]:
    """The schema with the comments as descriptions, which editors show. Changes and returns `schema`."""
    for value in explained(values):
        node = schema
        for key in value.path:
            node = node["properties"][key]
        reference = node.pop("$ref", None)
        if reference:
            # Beside a $ref, draft 7 reads nothing else.
            node["allOf"] = [{"$ref": reference}]
        node["description"] = value.text
    return schema


def dump(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(), VALUES.read_text()))
    SCHEMA.write_text(dump(described(json.loads(SCHEMA.read_text()), VALUES.read_text())))
