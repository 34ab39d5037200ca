"""The API reference is what the types say, and leaves nothing out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_operator.api import crd
from qwen_operator.api.conditions import ConditionType, Reason
from tools import api_reference

PAGE = Path(__file__).resolve().parents[3] / "docs/reference/api.md"


def test_the_page_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == api_reference.render(), "run `make api-reference`"


def _paths(path: str, schema: dict[str, Any]) -> Iterator[str]:
    for name, member in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from _paths(f"{path}.{name}", member)
        yield from _paths(f"{path}.{name}[]", member.get("items", {}))


def test_every_field_of_the_crd_has_its_row() -> None:
    root = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    paths = [path for part in ("spec", "status") for path in _paths(part, root[part])]

    assert sorted(re.findall(r'^\| <a id="([^"]+)"></a>', api_reference.render(), re.MULTILINE)) == sorted(paths)
    assert sorted(field.path for field in api_reference.all_fields()) == sorted(paths)


def test_every_row_has_four_cells() -> None:
    rows = [line for line in api_reference.render().splitlines() if line.startswith('| <a id="')]
    assert [row for row in rows if len(re.findall(r"(?<!\\)\|", row)) != 5] == []


@pytest.mark.parametrize(
    ("path", "cells"),
    [
        ("spec.model", ["string<br>1 to 96 characters", "required"]),
        ("spec.servedNames", ["list of strings<br>at most 4 items, none twice, each 1 to 96 characters", ""]),
        ("spec.workload.inputTokens", ["integer<br>1 to 16777216", "`2048`"]),
        ("spec.engine.kvCacheType", ["string<br>one of `Auto`, `BFloat16`, `Fp8E4m3`", "`Auto`"]),
        ("spec.engine.env", ["[list of objects](#specengineenv)<br>at most 64 items, one for each `name`", ""]),
        ("spec.pod.resources.limits", ["map of quantities<br>at most 16 keys, each at most 64 characters", ""]),
        ("status.lastFailure.time", ["time", "always set"]),
    ],
)
def test_type_bounds_and_default(path: str, cells: list[str]) -> None:
    row = next(line for line in api_reference.render().splitlines() if f'"{path}"' in line)
    assert [cell.strip() for cell in row.split(" | ")][1:3] == cells


def test_examples_stand_apart() -> None:
    page = api_reference.render()
    assert "Example: `Qwen/Qwen1.5-72B-Chat`" in page
    assert not re.search(r"Examples?: [^`<]", page)


def test_conditions_and_reasons_are_complete() -> None:
    page = api_reference.render()
    tail = page[page.index("## Conditions") :]
    assert [word for word in (*ConditionType, *Reason) if f"`{word}`" not in tail] == []
    assert all(tail.count(f"`{word}`") == 1 for word in Reason)
