"""How many bytes the weights of a repository have."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.hubs import Hub, HubReason
from qwen_operator.hubs.repository import stream
from tests.unit.checkpoints.configs import DENSE, FP8
from tests.unit.hubs.hub import repository
from tests.unit.hubs.reading import INDEX, SHARDS, read, refusal


async def test_a_size_that_the_hub_does_not_say_is_taken_from_the_index() -> None:
    hub = repository(DENSE, SHARDS, total=927_975_424)
    hub.sizes["model-00001-of-00002.safetensors"] = None
    assert (await read(hub)).checkpoint.weight_bytes == 927_975_424


async def test_a_repeated_embedding_counts_once() -> None:
    hub = repository(DENSE, SHARDS, total=1)
    shard = "model-00001-of-00002.safetensors"
    hub.files[INDEX] = json.dumps({"weight_map": {"lm_head.weight": shard}}).encode()
    assert (await read(hub)).checkpoint.weight_bytes == SHARDS[shard] - 2 * 151936 * 1024
    hub.files["config.json"] = json.dumps(DENSE | {"tie_word_embeddings": False}).encode()
    assert (await read(hub)).checkpoint.weight_bytes == SHARDS[shard]


async def test_a_layer_for_prediction_is_not_loaded() -> None:
    hub = repository(DENSE, SHARDS, total=1)
    shard = "model-00001-of-00002.safetensors"
    hub.sizes[shard] = 10**9
    hub.files[INDEX] = json.dumps({"weight_map": {"mtp.norm.weight": shard}}).encode()
    assert (await read(hub)).checkpoint.weight_bytes == from_config(DENSE).weight_bytes < 10**9
    hub.files["config.json"] = json.dumps(DENSE | {"quantization_config": FP8}).encode()
    assert (await read(hub)).checkpoint.weight_bytes == 10**9


async def test_only_weights_of_the_top_folder_count() -> None:
    hub = repository(DENSE, SHARDS | {"original/consolidated.safetensors": 10**12})
    assert (await read(hub)).checkpoint.weight_bytes == sum(SHARDS.values())


async def test_an_index_of_too_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_operator.hubs.weights.MOST_MEMBERS", 1000)
    hub = repository(DENSE, SHARDS)
    hub.files[INDEX] = b'{"weight_map":{' + b",".join(b'"%x":"m"' % number for number in range(1001)) + b"}}"
    error = await refusal(hub, Hub.HUGGING_FACE)
    assert (error.reason, "has more than 1000 tensors" in str(error)) == (HubReason.TOO_LARGE, True)


async def test_an_index_in_crumbs_is_read_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub decides how large the pieces are. Each one was searched together with all that came before."""

    async def crumbs(*args: Any) -> AsyncIterator[bytes]:
        async for piece in stream(*args):
            for start in range(0, len(piece), 64):
                yield piece[start : start + 64]

    monkeypatch.setattr("qwen_operator.hubs.weights.stream", crumbs)
    hub = repository(DENSE, SHARDS)
    hub.files[INDEX] = b"{" + b'"a":1,' * 40_000 + b'"weight_map":{"x":"none.safetensors"}}'
    began = time.process_time()
    error = await refusal(hub, Hub.HUGGING_FACE)
    assert (error.reason, "none.safetensors" in error.whole) == (HubReason.INVALID, True)
    assert time.process_time() - began < 4
