"""Texts that Kubernetes would read as numbers are quoted."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import yaml

from qwen_operator.cli.yaml_text import yaml_text


@pytest.mark.parametrize("text", ["12345e67", "1e10", "-2E5", "1.5e3", "1_0e2", "+3e0"])
def test_what_looks_like_a_number_is_quoted(text: str) -> None:
    printed = yaml_text([{"metadata": {"name": text}}])
    assert f"name: '{text}'" in printed
    assert yaml.safe_load(printed) == {"metadata": {"name": text}}


@pytest.mark.parametrize("text", ["0a1b2c3d", "e12", "12e", "chat", "1e2-0"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert f"name: {text}\n" in yaml_text([{"name": text}])


def test_mappings_that_are_no_dicts_are_written_as_mappings() -> None:
    assert yaml_text([{"a": MappingProxyType({"b": 1})}]) == "---\na:\n  b: 1\n"
