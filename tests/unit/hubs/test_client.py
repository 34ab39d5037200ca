"""Reading a hub: the two protocols, and every way in which a hub may be absent, slow or hostile."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.facts import ChatFormat, Task
from qwen_operator.checkpoints.hubs import Hub, HubError, HubReason
from qwen_operator.hubs.client import fetch
from qwen_runtime.checkpoints.chat import LARGEST_CHAT_FILE, chat_format
from tests.unit.checkpoints.configs import DENSE, FP8
from tests.unit.checkpoints.templates import QWEN3, QWQ
from tests.unit.hubs.hub import COMMIT, FakeHub, repository, serving
from tests.unit.hubs.reading import INDEX, SHARDS, read, refusal


@pytest.mark.parametrize("kind", list(Hub))
@pytest.mark.parametrize(("total", "bytes_"), [(None, 927_980_000), (927_975_424, 927_980_000)])
async def test_a_repository_becomes_facts_at_a_commit(kind: Hub, total: int | None, bytes_: int) -> None:
    hub = repository(DENSE | {"quantization_config": FP8}, SHARDS, total)
    answer = await read(hub, kind)
    digest = hashlib.sha256(hub.files["config.json"]).hexdigest()
    config = json.loads(hub.files["config.json"])
    assert answer.commit == COMMIT
    assert answer.checkpoint == replace(
        from_config(config, weight_bytes=bytes_, digest=digest), chat=ChatFormat(template=False)
    )
    assert answer.checkpoint.source == "Hub"
    assert all(COMMIT in path or "cdn" in path for path in hub.asked[1:])


@pytest.mark.parametrize("kind", list(Hub))
async def test_the_chat_template_is_read_from_the_same_commit(kind: Hub) -> None:
    hub = repository(DENSE, SHARDS)
    hub.files |= {"tokenizer_config.json": json.dumps({"chat_template": QWEN3}).encode(), "last.txt": b""}
    assert (await read(hub, kind)).checkpoint.chat == chat_format(QWEN3)
    hub.files |= {"chat_template.jinja": QWQ.encode(), "1_Pooling/config.json": b"{}", "end.txt": b""}
    hub.asked.clear()
    assert (await read(hub, kind)).checkpoint.chat == chat_format(QWQ, task=Task.EMBED)
    # The template's own file wins, so nothing else is asked for it.
    assert not any("tokenizer_config" in path for path in hub.asked)


@pytest.mark.parametrize(
    ("card", "task"),
    [
        ({"pipeline_tag": "text-ranking"}, Task.RERANK),
        ({"pipeline_tag": "feature-extraction", "tags": ["sentence-transformers"]}, Task.EMBED),
        ({"pipeline_tag": "sentence-similarity", "tags": ["x", "sentence-transformers"]}, Task.EMBED),
        ({"pipeline_tag": "feature-extraction", "tags": ["qwen3"]}, Task.GENERATE),
        ({"pipeline_tag": "text-generation", "tags": ["sentence-transformers"]}, Task.GENERATE),
        ({"pipeline_tag": ["text-ranking"], "tags": 3}, Task.GENERATE),
        ({}, Task.GENERATE),
    ],
)
async def test_tags_of_the_hub(card: dict[str, Any], task: Task) -> None:
    hub = repository(DENSE, SHARDS)
    hub.card = card
    chat = (await read(hub)).checkpoint.chat
    assert chat is not None
    assert chat.task is task


async def test_a_broken_or_endless_template_is_refused() -> None:
    hub = repository(DENSE, SHARDS)
    hub.files["tokenizer_config.json"] = b"{"
    assert "tokenizer_config.json is not valid JSON" in str(await refusal(hub))
    hub.files["chat_template.jinja"] = b" " * (LARGEST_CHAT_FILE + 1)
    assert (await refusal(hub)).reason is HubReason.TOO_LARGE


@pytest.mark.parametrize(("kind", "revision"), [(Hub.HUGGING_FACE, "refs/pr/1"), (Hub.MODELSCOPE, COMMIT)])
async def test_a_revision_is_resolved(kind: Hub, revision: str) -> None:
    hub = repository(DENSE, SHARDS)
    assert (await read(hub, kind, revision)).commit == COMMIT
    assert hub.asked[0].count(revision.replace("/", "%2F")) == 1


def without(name: str) -> Callable[[FakeHub], Any]:
    return lambda hub: hub.files.pop(name)


def index(value: Any) -> Callable[[FakeHub], Any]:
    return lambda hub: hub.files.update({INDEX: json.dumps(value).encode()})


DAMAGE: dict[str, tuple[Callable[[FakeHub], Any], HubReason, str]] = {
    "no config": (
        without("config.json"),
        HubReason.INVALID,
        "no config.json; the repository contains no readable model",
    ),
    "GGUF only": (
        lambda hub: hub.files.update({"q4.gguf": hub.files.pop("config.json")}),
        HubReason.INVALID,
        "there is no config.json; the repository contains GGUF files",
    ),
    "no weights": (lambda hub: [hub.files.pop(name) for name in SHARDS], HubReason.INVALID, "no *.safetensors files"),
    "unknown size": (lambda hub: hub.sizes.update(dict.fromkeys(SHARDS)), HubReason.INVALID, "how large 'model-00001"),
    "negative size": (lambda hub: hub.sizes.update(dict.fromkeys(SHARDS, -1)), HubReason.INVALID, "how large 'model-0"),
    "large config": (
        lambda hub: hub.files.update({"config.json": b"{" + b" " * 10_000_000}),
        HubReason.TOO_LARGE,
        "config.json has more than 10000000 bytes",
    ),
    "an index that would fill the memory": (
        lambda hub: hub.files.update({INDEX: b'{"a":[' + b"{}," * 400_001 + b"{}]}"}),
        HubReason.TOO_LARGE,
        "model.safetensors.index.json is too large: it has more than 1048576 bytes besides its members",
    ),
    "an index with a huge name": (
        lambda hub: hub.files.update({INDEX: b'{"weight_map":{"' + b"x" * 70_000 + b'":"m"}}'}),
        HubReason.TOO_LARGE,
        "an entry of model.safetensors.index.json has more than 65536 bytes",
    ),
    "an index of objects": (
        lambda hub: hub.files.update({INDEX: b'{"weight_map":{"a":{}}}'}),
        HubReason.INVALID,
        "weight_map is an object, it must be an object of tensor names and files",
    ),
    "another model": (
        lambda hub: hub.files.update({"config.json": b'{"architectures": ["LlamaForCausalLM"]}'}),
        HubReason.UNKNOWN_ARCHITECTURE,
        "architectures[0] is 'LlamaForCausalLM', it must be one of Qwen2ForCausalLM",
    ),
    "no JSON": (lambda hub: hub.files.update({"config.json": b"{"}), HubReason.INVALID, "config.json is not valid"),
    "quantized beside": (
        lambda hub: hub.files.update({"hf_quant_config.json": b"{}"}), HubReason.INVALID, "hf_quant_config.json says"
    ),
    "empty index": (index({"weight_map": {}}), HubReason.INVALID, "weight_map is an object, it must be an object of"),
    "odd index": (index({"weight_map": {"a": 1}}), HubReason.INVALID, "weight_map is an object, it must be"),
    "no map": (index({}), HubReason.INVALID, "weight_map is missing, it must be an object"),
    "missing shard": (
        index({"weight_map": {"a": "b.safetensors"}}),
        HubReason.INVALID,
        f"{INDEX} names 'b.safetensors', which is not in the repository",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(Hub))
@pytest.mark.parametrize(("damage", "reason", "says"), DAMAGE.values(), ids=DAMAGE.keys())
async def test_a_repository_that_cannot_be_served(
    damage: Callable[[FakeHub], Any], reason: HubReason, says: str, kind: Hub
) -> None:
    hub = repository(DENSE, SHARDS)
    damage(hub)
    error = await refusal(hub, kind)
    assert error.reason is reason
    assert says in str(error)


FAULTS = {
    "hangs": (HubReason.OFFLINE, "cannot be reached: no answer within 1 s"),
    "trickles": (HubReason.OFFLINE, "cannot be reached: no answer within 1 s"),
    "floods": (HubReason.TOO_LARGE, "the list of files of Qwen/Test has more than 8388608 bytes"),
    "loops": (HubReason.INVALID, "the hub redirects the list of files of Qwen/Test more than 5 times"),
    "gzip": (HubReason.INVALID, "has the encoding 'gzip', but the request asked for none"),
    "text": (HubReason.INVALID, "the list of files of Qwen/Test is not valid JSON"),
    "401": (HubReason.AUTH_REQUIRED, "needs a token for the list of files of Qwen/Test (the hub answered 401)"),
    "403": (HubReason.AUTH_REQUIRED, "needs a token"),
    "404": (HubReason.NOT_FOUND, "does not exist, or it is private"),
    "418": (HubReason.INVALID, "the hub answered 418 for the list of files"),
    "429": (HubReason.UNAVAILABLE, "cannot be read now: the hub answered 429"),
    "503": (HubReason.UNAVAILABLE, "cannot be read now: the hub answered 503"),
}


@pytest.mark.parametrize("kind", list(Hub))
@pytest.mark.parametrize(("fault", "expected"), FAULTS.items(), ids=FAULTS.keys())
async def test_a_hub_that_misbehaves_is_named_in_time(fault: str, expected: tuple[HubReason, str], kind: Hub) -> None:
    hub = FakeHub({}, fault=fault)
    async with serving(hub):
        started = time.monotonic()
        with pytest.raises(HubError) as refused:
            await fetch("Qwen/Test", hub=kind, hub_url=hub.address, timeout=1 if fault[0] in "ht" else 20)
    assert (refused.value.reason, expected[1] in refused.value.whole) == (expected[0], True), refused.value.whole
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("status", "headers", "pause"),
    [
        ("429", {}, 0.0),
        ("429", {"RateLimit": '"api";r=0;t=55'}, 56.0),
        ("503", {"Retry-After": "90"}, 90.0),
        ("503", {}, None),
    ],
)
async def test_a_hub_that_asks_for_a_pause(status: str, headers: dict[str, str], pause: float | None) -> None:
    error = await refusal(FakeHub({}, fault=status, headers=headers))
    assert (error.reason, error.pause_seconds) == (HubReason.UNAVAILABLE, pause)
    assert ("Qwen/Test" in str(error)) is (pause is None), "other deployments are told it too"


@pytest.mark.parametrize("status", ["401", "403"])
async def test_a_gated_repository_is_not_told_as_a_private_one(status: str) -> None:
    error = await refusal(FakeHub({}, fault=status, headers={"X-Error-Code": "GatedRepo"}))
    assert (error.reason, str(error).startswith("Qwen/Test at http://127.0.0.1")) == (HubReason.GATED, True)


@pytest.mark.parametrize("kind", list(Hub))
async def test_what_does_not_exist_is_not_found(kind: Hub) -> None:
    hub = repository(DENSE, SHARDS)
    assert (await refusal(hub, kind, "no-such-branch")).reason is HubReason.NOT_FOUND
    async with serving(hub):
        with pytest.raises(HubError, match="or it is private") as refused:
            await fetch("Qwen/Absent", hub=kind, hub_url=hub.address)
    assert refused.value.reason is HubReason.NOT_FOUND


async def test_no_hub_is_offline() -> None:
    async with serving(FakeHub({})) as hub:
        address = hub.address
    with pytest.raises(HubError, match=r"cannot be reached$") as refused:
        await fetch("Qwen/Test", hub_url=address, timeout=5)
    assert refused.value.reason is HubReason.OFFLINE
    assert refused.value.detail


LISTINGS: list[tuple[Hub, Any, str]] = [
    (Hub.HUGGING_FACE, {"siblings": []}, "sha is missing, it must be a commit of 40 hexadecimal digits"),
    (Hub.HUGGING_FACE, {"sha": "main", "siblings": []}, "sha is 'main', it must be a commit"),
    (Hub.HUGGING_FACE, {"sha": "key: " + "s" * 50, "siblings": []}, "sha is a text of 55 characters, it must be"),
    (Hub.HUGGING_FACE, "AKIAIOSFODNN7EXAMPLE", "the list of files of Qwen/Test does not hold an object, it must hold"),
    (Hub.HUGGING_FACE, {"sha": COMMIT, "siblings": {}}, "siblings is an object, it must be a list of files"),
    (Hub.HUGGING_FACE, {"sha": COMMIT, "siblings": [7]}, "siblings is a list, it must be a list of files"),
    (Hub.HUGGING_FACE, {"sha": COMMIT, "siblings": [{"rfilename": 7}]}, "there is no config.json"),
    (Hub.MODELSCOPE, {"Code": 1, "Message": "no"}, "Data is missing, it must be an object"),
    (Hub.MODELSCOPE, {"Data": {"Files": [{"Path": "a"}]}}, "Data.Files is a list, it must be a list of files with"),
    (Hub.MODELSCOPE, {"Data": {"Files": [{"CommittedDate": 1}]}}, "Data.Files.Revision is missing, it must be"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "listing", "says"), LISTINGS)
async def test_an_odd_listing_is_refused(kind: Hub, listing: Any, says: str) -> None:
    refused = await refusal(FakeHub({}, listing=listing), kind)
    assert refused.reason is HubReason.INVALID
    assert says in str(refused)


@pytest.mark.parametrize(
    ("repository_", "revision", "url", "says"),
    [
        ("Qwen", "", "", "repository is 'Qwen', it must be ORGANISATION/NAME"),
        ("../x", "", "", "repository is '../x'"),
        ("Qwen/a..b", "", "", "repository is 'Qwen/a..b'"),
        ("Qwen/Test?x=1", "", "", "repository is 'Qwen/Test?x=1'"),
        ("Qwen/Test", "a..b", "", "revision is 'a..b', it must be a branch, a tag or a commit"),
        ("Qwen/Test", "a b", "", "revision is 'a b'"),
        ("Qwen/Test", "", "file:///etc", "the hub's address is 'file:///etc', it must be like https://hub.example.org"),
        ("Qwen/Test", "", "http://a:99999", "the hub's address is 'http://a:99999'"),
        ("Qwen/Test", "", "http://", "the hub's address is 'http:'"),
    ],
)
async def test_bad_names_are_refused_before_anything_is_sent(
    repository_: str, revision: str, url: str, says: str
) -> None:
    with pytest.raises(HubError) as refused:
        await fetch(repository_, revision, hub_url=url)
    assert str(refused.value).startswith(says)
