"""Texts that Kubernetes would read as numbers are quoted."""

from __future__ import annotations

import pytest
import yaml

from qwen_operator.api.fields import Passthrough
from qwen_operator.cli.yaml_text import yaml_text


@pytest.mark.parametrize("text", ["12345e67", "1e10", "-2E5", "1.5e3", "1_0e2", "+3e0"])
def test_what_looks_like_a_number_is_quoted(text: str) -> None:
    printed = yaml_text([{"metadata": {"name": text}}])
    assert f"name: '{text}'" in printed
    assert yaml.safe_load(printed) == {"metadata": {"name": text}}


@pytest.mark.parametrize("text", ["0a1b2c3d", "e12", "12e", "chat", "1e2-0"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert f"name: {text}\n" in yaml_text([{"name": text}])


def test_what_is_passed_on_unchanged_is_written_as_a_mapping() -> None:
    assert yaml_text([{"a": Passthrough({"b": 1})}]) == "---\na:\n  b: 1\n"
