"""Reads a fake hub."""

from __future__ import annotations

import pytest

from qwen_operator.checkpoints.hubs import Hub, HubCheckpoint, HubError
from qwen_operator.hubs.client import fetch
from tests.unit.hubs.hub import FakeHub, serving

SHARDS = {"model-00001-of-00002.safetensors": 500_000_000, "model-00002-of-00002.safetensors": 427_980_000}
INDEX = "model.safetensors.index.json"


async def read(hub: FakeHub, kind: Hub = Hub.HUGGING_FACE, revision: str = "") -> HubCheckpoint:
    async with serving(hub):
        return await fetch("Qwen/Test", revision, kind, hub.address + "/", timeout=20)


async def refusal(hub: FakeHub, kind: Hub = Hub.HUGGING_FACE, revision: str = "") -> HubError:
    with pytest.raises(HubError) as refused:
        await read(hub, kind, revision)
    assert "\n" not in str(refused.value)
    return refused.value
