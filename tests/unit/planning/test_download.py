"""Which bytes the engine is told to load."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qwen_operator.api.spec import parse
from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.facts import Checkpoint, InvalidFactsError
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.planning.engine import download
from qwen_operator.planning.types import EngineDefaults
from tests.unit.checkpoints.configs import DENSE

COMMIT = "c" * 40
FACTS = from_config(DENSE)
PINNED = replace(FACTS, commit=COMMIT)
HF = EngineDefaults("sglang", "0.5.23")
MIRROR = "https://mirror.example.org"
SCOPE = EngineDefaults("sglang", "0.5.23", hub=Hub.MODELSCOPE)
HF_URI, SCOPE_URI = "hf://Qwen/Qwen3-8B", "modelscope://Qwen/Qwen3-8B"
SCOPED = {"SGLANG_USE_MODELSCOPE": "true"}


@pytest.mark.parametrize(
    ("source", "facts", "defaults", "revision", "env"),
    [
        (None, FACTS, HF, None, {}),
        (None, PINNED, HF, COMMIT, {}),
        ({"uri": HF_URI, "revision": "v1"}, FACTS, HF, "v1", {}),
        ({"uri": HF_URI, "revision": "v1"}, PINNED, HF, COMMIT, {}),
        (None, FACTS, replace(HF, hub_url=MIRROR), None, {"HF_ENDPOINT": MIRROR}),
        ({"uri": SCOPE_URI}, FACTS, replace(HF, hub_url=MIRROR), None, SCOPED),
        ({"uri": SCOPE_URI, "revision": "v1"}, PINNED, HF, "v1", SCOPED),
        (None, PINNED, SCOPE, None, SCOPED),
        (None, FACTS, replace(SCOPE, hub_url=MIRROR), None, SCOPED | {"MODELSCOPE_DOMAIN": "mirror.example.org"}),
        ({"uri": HF_URI}, FACTS, replace(SCOPE, hub_url=MIRROR), None, {}),
        ({"uri": "pvc://claim/path"}, FACTS, replace(SCOPE, hub_url=MIRROR), None, {}),
    ],
)
def test_hub_and_revision(
    source: dict[str, Any] | None,
    facts: Checkpoint,
    defaults: EngineDefaults,
    revision: str | None,
    env: dict[str, str],
) -> None:
    spec = parse({"metadata": {"name": "a"}, "spec": {"model": "Qwen/Qwen3-8B", "source": source}})
    found = download(spec, facts, defaults)
    assert found.revision == revision
    assert {one.name: one.value for one in found.env} == env


def test_a_commit_is_part_of_the_record() -> None:
    record = PINNED.to_json()
    assert Checkpoint.from_json(record) == PINNED
    del record["commit"]
    assert Checkpoint.from_json(record) == FACTS
    with pytest.raises(InvalidFactsError, match="commit is 7, it must be text"):
        Checkpoint.from_json(record | {"commit": 7})
