"""Decoders of hubs, checkpoints, the gateway's files, nodes and quotas: own errors only, bounded output and work."""

from __future__ import annotations

import asyncio
import json
import struct
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_operator.actions.types import ActionReason, Create, Kind
from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.hubs import ADDRESSES, Hub, HubCheckpoint, HubError
from qwen_operator.controller.volume_claims import VolumeClaims
from qwen_operator.gateway.proxy import MAX_BYTES, read_folder
from qwen_operator.gateway.settings import AgentSettings, ProxySettings, RouterSettings, SettingsError
from qwen_operator.gateway.tenants import MAX_KEYS, Keys, TenantsError, read_keys, read_tenants
from qwen_operator.hardware import hami, offers, shares
from qwen_operator.hardware.inventory import inventory
from qwen_operator.hubs.client import fetch
from qwen_operator.hubs.listing import LARGEST_LISTING
from qwen_operator.hubs.redirects import reach_of, redirect_fault
from qwen_operator.hubs.weights import INDEX
from qwen_operator.replicas.quotas import within_quotas
from qwen_operator.routing.membership import restore
from qwen_runtime import inspect_checkpoint
from qwen_runtime.checkpoints.chat import LARGEST_TEMPLATE, ChatFormat, chat_format, read_chat
from qwen_runtime.checkpoints.config import LARGEST_CONFIG
from qwen_runtime.checkpoints.reading import InvalidFactsError, parse_json
from qwen_runtime.faults import Fault
from qwen_runtime.safetensors import Room, parse_header
from tests.unit.checkpoints.configs import DENSE, GPTQ, HYBRID, MOE
from tests.unit.fuzz.values import NASTY, anything, either, fuzzed, leaves, nested, record

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MESSAGE = 2000
"""The longest message of an error, in characters. A status keeps 1024 of them."""


def written(value: Any) -> bytes:
    """The value as JSON; as other text if JSON cannot have it."""
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    except ValueError:
        return b"9" * 5000


documents = st.one_of(anything.map(written), st.binary(max_size=200), st.sampled_from([b"[" * 100_000, b"", b"\xff"]))


@contextmanager
def only(*errors: type[Exception], most: int = MESSAGE) -> Iterator[None]:
    """Nothing but these errors, with a message of less than `most` characters, may leave the block. It ends there."""
    try:
        yield
    except errors as error:
        message = str(error.message if isinstance(error, Fault) else error)
        if len(message) >= most:
            raise AssertionError(f"{len(message)} characters: {message[:200]}") from error


def mutated(good: Any) -> st.SearchStrategy[Any]:
    """The good object with some members of any type, also in the objects inside it."""
    inner = [name for name, member in good.items() if isinstance(member, dict)]
    outer = st.dictionaries(st.sampled_from(sorted(good)), anything, max_size=2).map(lambda some: {**good, **some})
    if not inner:
        return outer
    deeper = st.sampled_from(inner).flatmap(
        lambda name: mutated(good[name]).map(lambda member: {**good, name: member}),
    )
    return st.one_of(outer, deeper)


# A hub


class HostileHub:
    """Answers each request of `fetch` with the next of `answers`, and counts the bytes that it has sent."""

    def __init__(self, answers: dict[str, tuple[int, dict[str, str], bytes]]) -> None:
        self.answers = answers
        self.requests = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        path = request.url.path
        part = "index" if path.endswith(INDEX) else "config" if path.endswith("config.json") else "listing"
        if "/api/" not in path and part == "listing":
            part = "other"
        status, headers, body = self.answers.get(part, (404, {}, b""))
        raw = [(name.encode(), text.encode()) for name, text in headers.items()]
        return httpx.Response(status, headers=raw, content=_in_pieces(body))


async def _in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for piece in pieces(body, 1000):
        yield piece


def read_hub(hub: HostileHub, kind: Hub) -> HubCheckpoint | HubError:
    client = partial(httpx.AsyncClient, transport=httpx.MockTransport(hub))
    with patch("qwen_operator.hubs.repository.httpx.AsyncClient", client):
        try:
            return asyncio.run(fetch("Qwen/Test", hub=kind, timeout=60))
        except HubError as error:
            return error


LISTING = {
    "sha": COMMIT,
    "siblings": [{"rfilename": name, "size": 1000} for name in ("config.json", INDEX, "a.safetensors")],
    "pipeline_tag": "text-generation",
    "tags": ["sentence-transformers"],
}
MODELSCOPE = {
    "Data": {
        "Files": [
            {"Path": name, "Size": 1000, "CommittedDate": 1, "Revision": COMMIT, "Type": "blob"}
            for name in ("config.json", INDEX, "a.safetensors")
        ]
    }
}
INDEXED = {"metadata": {"total_size": 1000}, "weight_map": {"lm_head.weight": "a.safetensors"}}
CONFIG = DENSE
headers = st.dictionaries(
    st.sampled_from(["Location", "Content-Length", "Content-Encoding", "X-Error-Code"]),
    st.sampled_from(
        ["/next", "http://169.254.169.254/", "https://[::1", "//", "gzip", "99999999999999999999", "-1", "RepoNotFound",
         "https://a:b@example.org/", "file:///etc/passwd", "http://0x7f.1/", "https://" + "a" * 5000, "\x80"]
    ),
    max_size=2,
)  # fmt: skip
statuses = st.sampled_from([200, 200, 200, 200, 301, 302, 307, 400, 401, 404, 429, 503])


Answer = st.SearchStrategy[tuple[int, dict[str, str], bytes]]


def answer(good: Any) -> Answer:
    body = st.one_of(st.just(written(good)), mutated(good).map(written), documents)
    plain: Answer = body.map(lambda content: (200, {}, content))
    return st.one_of(plain, plain, plain, st.tuples(statuses, headers, body))


@fuzzed
@given(
    st.sampled_from(Hub),
    st.fixed_dictionaries({"config": answer(CONFIG), "index": answer(INDEXED)}),
    answer(LISTING),
    answer(MODELSCOPE),
)
def test_any_hub_gives_facts_or_its_own_error(
    kind: Hub,
    answers: dict[str, Any],
    hugging_face: tuple[int, dict[str, str], bytes],
    modelscope: tuple[int, dict[str, str], bytes],
) -> None:
    hub = HostileHub({**answers, "listing": modelscope if kind is Hub.MODELSCOPE else hugging_face})
    result = read_hub(hub, kind)
    assert hub.requests <= 40
    if isinstance(result, HubCheckpoint):
        assert result.commit == COMMIT
    else:
        assert len(str(result)) < MESSAGE


def test_the_good_answers_are_facts() -> None:
    good = {"listing": LISTING, "config": CONFIG, "index": INDEXED}
    hub = HostileHub({name: (200, {}, written(value)) for name, value in good.items()})
    assert isinstance(read_hub(hub, Hub.HUGGING_FACE), HubCheckpoint)


def test_no_more_of_an_endless_answer_is_read_than_the_limit() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 20
            yield b" " * (1 << 20)

    client = partial(httpx.AsyncClient, transport=httpx.MockTransport(lambda _: httpx.Response(200, content=endless())))
    with patch("qwen_operator.hubs.repository.httpx.AsyncClient", client), pytest.raises(HubError):
        asyncio.run(fetch("Qwen/Test", timeout=60))
    assert sent <= LARGEST_LISTING + (2 << 20)


urls = st.one_of(
    st.text(),
    st.builds(
        lambda scheme, host, rest: f"{scheme}://{host}{rest}",
        st.sampled_from(["http", "https", "file", ""]),
        st.text(max_size=20) | st.sampled_from(["[::1", "[fe80::1%25eth0]", "127.1", "0x7f.1", "a@b", "9" * 5000, "."]),
        st.text(max_size=10) | st.sampled_from([":99999", ":x", "/", "?", "#"]),
    ),
)


@fuzzed
@given(urls, urls)
def test_any_redirect_is_judged(url: str, target: str) -> None:
    fault = redirect_fault(url, target, ADDRESSES[Hub.HUGGING_FACE])
    assert fault is None or len(fault) < 500
    assert reach_of(target) is not None


# A checkpoint

CONFIGS = (DENSE, MOE, HYBRID, DENSE | {"quantization_config": GPTQ})


@fuzzed
@given(st.sampled_from(CONFIGS).flatmap(mutated) | anything)
@example({"quantization_config": nested(200)})
def test_any_config_is_a_model_or_invalid(config: Any) -> None:
    with only(InvalidFactsError):
        from_config(parse_json(written(config), "config.json", LARGEST_CONFIG))


TENSOR = {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}
headers_of_files = st.dictionaries(
    st.sampled_from(["lm_head.weight", "model.a", "__metadata__", ""]) | st.text(max_size=8),
    either(mutated(TENSOR)),
    max_size=4,
)


def pieces(content: bytes, step: int) -> Iterator[bytes]:
    return (content[start : start + step] for start in range(0, len(content), step))


@fuzzed
@given(headers_of_files.map(written) | documents, st.integers(1, 64))
def test_any_safetensors_header_is_a_shard_or_a_fault(header: bytes, step: int) -> None:
    room = Room(3, 1000)
    with only(Fault):
        shard = parse_header(pieces(header, max(step, len(header) // 200)), "a.safetensors", room)
        assert len(shard.tensors) <= 3
        assert all(tensor.size >= 0 for tensor in shard.tensors.values())


files = st.fixed_dictionaries(
    {},
    optional={
        "config.json": st.just(written(CONFIG)) | mutated(CONFIG).map(written) | documents,
        "tokenizer.json": documents,
        "tokenizer_config.json": documents,
        "chat_template.jinja": st.binary(max_size=100),
        INDEX: st.just(written(INDEXED)) | mutated(INDEXED).map(written) | documents,
        "a.safetensors": st.one_of(
            headers_of_files.map(written).map(lambda text: struct.pack("<Q", len(text)) + text + b"\0\0"),
            st.binary(max_size=64),
        ),
    },
)


@fuzzed
@given(files)
def test_any_folder_has_a_bounded_report(content: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, data in content.items():
            (Path(folder) / name).write_bytes(data)
        report, _ = inspect_checkpoint.examine(Path(folder))
    # The kubelet keeps 4096 bytes of a termination message.
    assert len(json.dumps(report)) <= 4096


words = st.sampled_from(
    ["{#", "#}", "{%", "%}", "<think>", "</think>", "\\n", " ", "enable_thinking", " is ", "sameas", "(", "false",
     "true", " not ", "namespace(", "=", "add_generation_prompt", "<|im_start|>", "<tool_call>", "<function=",
     "<parameter=", "tools", "<｜Assistant｜>", "x"]
)  # fmt: skip
templates = st.lists(words | st.text(max_size=3), max_size=20).map("".join)
chat_documents = st.dictionaries(
    st.sampled_from(["chat_template.jinja", "chat_template.json", "tokenizer_config.json", "modules.json",
                     "config_sentence_transformers.json"]),
    st.one_of(
        documents,
        templates.map(str.encode),
        templates.map(lambda text: written({"chat_template": text})),
        anything.map(lambda value: written({"chat_template": [value, {"name": "default", "template": value}]})),
        st.lists(record("type", "name", inner=leaves), max_size=3).map(written),
    ),
    max_size=4,
)  # fmt: skip


@fuzzed
@given(chat_documents, st.lists(st.text(max_size=8), max_size=3))
def test_any_chat_files_have_a_format_or_are_invalid(content: dict[str, bytes], names: list[str]) -> None:
    with only(InvalidFactsError):
        chat = read_chat(content, (*content, *names))
        assert isinstance(chat, ChatFormat)
        assert len(json.dumps(chat.to_record())) < 200


@pytest.mark.parametrize(
    "unit",
    ["{#", "{##}", "{# #", "<think>", "<think> ", "enable_thinking is not ", "namespace(", "namespace( ", "true if ",
     "not ", " ", "\n", "enable_thinking|d(", "enable_thinking is sameas (", "<think>\\n", "{#}"],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize(
    "start",
    [
        "",
        "<think>enable_thinking is sameas",
        "<think>enable_thinking = namespace(",
        "<|im_start|>add_generation_prompt",
    ],
    ids=repr,
)
def test_a_large_template_is_read_in_steps_that_grow_with_its_length(start: str, unit: str) -> None:
    """A pattern whose steps grow with the square of the length would need minutes for one of these."""
    size = LARGEST_TEMPLATE // 4
    text = (start + unit * size)[:size]
    assert isinstance(chat_format(text, text), ChatFormat)


def test_comments_are_left_out() -> None:
    commented = chat_format("<|im_start|>{# <tool_call> #}{#}a#}b{# open <function=")
    assert commented == chat_format("<|im_start|>b{# open <function=")


# The gateway

key_texts = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["a", "b", "", " ", "\r", "x" * 600, "\x00", "ключ"]), max_size=5).map("\n".join),
    st.just("\n".join(f"k{number}" for number in range(MAX_KEYS + 1))),
)
entries = st.dictionaries(st.sampled_from(["a", "b", "..", "x y"]) | st.text(max_size=4), key_texts, max_size=4)


@fuzzed
@given(entries, entries)
def test_any_keys_leave_each_key_one_tenant(first: dict[str, str], second: dict[str, str]) -> None:
    keys = Keys()
    for content in (first, second):
        keys = read_keys(content, keys.of)
        all_keys = [key for own in keys.of.values() for key in own]
        assert len(all_keys) == len(set(all_keys))
        assert all(len(own) <= MAX_KEYS for own in keys.of.values())
        assert set(keys.of) <= set(content)
        assert all(len(problem) < 500 and problem.isprintable() for problem in keys.problems)


@fuzzed
@given(st.lists(st.binary(max_size=50), max_size=3), st.booleans())
@example([b"x" * (MAX_BYTES + 10)], True)
def test_any_folder_of_keys_is_read_in_bounds(contents: list[bytes], folder_inside: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(contents):
            (Path(folder) / f"tenant-{number}").write_bytes(content)
        if folder_inside:
            (Path(folder) / "..data").mkdir()
            (Path(folder) / "inner").mkdir()
        read = read_folder(Path(folder))
    assert len(read) == len(contents)
    assert all(len(text) <= MAX_BYTES for text in read.values())


limits = record("models", "requestsPerMinute", "tokensPerMinute", "concurrentRequests", "bodyBytes", "other")
tenant_files = st.fixed_dictionaries(
    {}, optional={"defaults": either(limits), "tenants": either(st.dictionaries(st.text(max_size=4), either(limits)))}
)


@fuzzed
@given(st.one_of(tenant_files.map(written), documents).map(lambda content: content.decode("utf-8", "replace")))
@example('{"tenants":{"' + "x" * 5000 + '\\u0000 ":{}}}')
@example('{"defaults":{"' + "x" * 5000 + '":1}}')
@example('{"defaults":{"bodyBytes":' + "9" * 5000 + "}}")
@example('{"defaults":{"bodyBytes":"' + "x" * 5000 + '"}}')
@example('{"defaults":{"models":["' + "x" * 5000 + '"]}}')
def test_any_tenants_file_is_read_or_refused(content: str) -> None:
    # A ValueError says that it is not JSON.
    with only(TenantsError, ValueError, most=500):
        tenants = read_tenants(content)
        for own in (tenants.defaults, *tenants.own.values()):
            assert all(0 <= number <= 2**53 for number in own.numbers.values())


NAMES = (
    "QWEN_SERVED_NAMES", "QWEN_GATEWAY_REQUEST_TIMEOUT_SECONDS", "QWEN_GATEWAY_CORS_ALLOWED_ORIGINS",
    "QWEN_WATCH_NAMESPACES", "QWEN_GATEWAY_DIR", "POD_NAME", "POD_UID", "POD_NAMESPACE", "QWEN_GATEWAY_KEYS_DIR",
)  # fmt: skip
environments = st.dictionaries(
    st.sampled_from(NAMES),
    st.one_of(
        st.text(max_size=10),
        st.sampled_from([value for value in NASTY if isinstance(value, str)]),
        st.dictionaries(st.text(max_size=5), either(st.lists(leaves, max_size=2)), max_size=2).map(
            lambda value: written(value).decode("utf-8", "replace")
        ),
    ),
)


@fuzzed
@given(environments, st.sampled_from([AgentSettings, RouterSettings, ProxySettings]))
@example({"QWEN_SERVED_NAMES": "[" * 4000}, AgentSettings)
@example({"QWEN_SERVED_NAMES": json.dumps({"team": ["x" * 5000]})}, AgentSettings)
def test_any_environment_of_the_gateway_is_read_or_refused(environ: dict[str, str], kind: Any) -> None:
    with only(SettingsError):
        kind.from_env(environ)


@fuzzed
@given(
    st.builds(
        lambda head, rest: head + written(rest).decode("utf-8", "replace"),
        st.sampled_from(["", "# qwen\n", "\n"]),
        anything | st.lists(record("url", "labels", "id", "model_id", "serial", "workers"), max_size=3),
    )
)
def test_any_discovery_file_is_a_membership(content: str) -> None:
    membership = restore(content)
    assert len(membership.entries) <= len(content)
    assert restore(membership.content()).entries == membership.entries


# Nodes and quotas

SHARE_LABELS = (
    offers.PRODUCT_LABEL, offers.REPLICAS_LABEL, offers.GKE_MIG_LABEL, offers.MIG_STATE_LABEL, *offers.SHARING_LABELS,
    "nvidia.com/gpu.memory", "nvidia.com/gpu.count", "nvidia.com/mig.strategy", "nvidia.com/mig-1g.10gb.memory",
    "nvidia.com/mig-1g.10gb.count", "nvidia.com/mig-1g.10gb.replicas", "nvidia.com/gpu.compute.major",
)  # fmt: skip
RESOURCES = ("nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb", "nvidia.com/mig-9g.999gb.shared",
             "nvidia.com/gpumem", "amd.com/gpu", "memory")  # fmt: skip
label_values = st.sampled_from(
    ["NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "NVIDIA-L4-SHARED", "81559", "0", "-1", "9" * 30,
     "9" * 5000, "pending", "success", "4", "true", "1g.10gb", "999999g.99999999gb", "", "²"]
)  # fmt: skip
amounts: st.SearchStrategy[Any] = st.sampled_from(
    ["1", "8", "0", "-1", "1e400", "9" * 400, "1Gi", "x", "", 4, 10**400, None, True, [], "0.5"]
)
shared_nodes = st.builds(
    lambda labels, notes, capacity, allocatable: {
        "metadata": {"name": "gpu-1", "labels": labels, "annotations": notes},
        "spec": {},
        "status": {"capacity": capacity, "allocatable": allocatable},
    },
    st.dictionaries(st.sampled_from(SHARE_LABELS), label_values, max_size=8),
    st.dictionaries(
        st.sampled_from(hami.ANNOTATIONS),
        st.one_of(
            st.text(max_size=20),
            documents.map(lambda content: content.decode("utf-8", "replace")),
            st.lists(record("count", "devmem", inner=leaves), max_size=3).map(lambda value: written(value).decode()),
            st.sampled_from(["GPU-1,10,81559,100,NVIDIA-H100,0,true:", "a,9,9,9,9:" * 300, "[" * 5000, "[1" * 500]),
        ),
    ),
    st.dictionaries(st.sampled_from(RESOURCES), amounts, max_size=4),
    st.dictionaries(st.sampled_from(RESOURCES), amounts, max_size=4),
)


@fuzzed
@given(st.lists(shared_nodes, max_size=3))
def test_any_shares_of_gpus_are_counted_or_left_out(nodes: list[dict[str, Any]]) -> None:
    for number, node in enumerate(nodes):
        node["metadata"]["name"] = f"gpu-{number}"
    counted = inventory(nodes, ())
    for node in nodes:
        parts = list(shares.parts(node, node["metadata"]["labels"]))
        assert len(parts) <= len(RESOURCES)
        assert all(0 <= part.memory_mib < 2**40 and 0 <= part.share.pods <= 2**31 for part in parts)
        assert 1 <= hami.shares(node["metadata"]["annotations"]) < 10**9
        assert 0 <= hami.memory_mib(node["metadata"]["annotations"]) < 10**9
    assert len(counted.products) <= len(nodes) * len(RESOURCES)
    assert all(product.memory_mib > 0 for product in counted.products)


counts = either(st.dictionaries(st.sampled_from(["pods", "requests.cpu", "cpu"]), amounts))
quotas = st.builds(
    lambda spec, status: {"metadata": {"name": "q", "namespace": "team"}, "spec": spec, "status": status},
    either(st.fixed_dictionaries({}, optional={"hard": counts, "scopes": leaves})),
    either(st.fixed_dictionaries({}, optional={"hard": counts, "used": counts})),
)


@fuzzed
@given(st.lists(quotas, max_size=3), st.dictionaries(st.sampled_from(["cpu", "memory", "nvidia.com/gpu"]), amounts))
def test_any_quota_has_room_or_a_message(listed: list[dict[str, Any]], requests: dict[str, Any]) -> None:
    container = {"name": "engine", "resources": {"requests": requests, "limits": requests}}
    pod = {"metadata": {"name": "chat-0"}, "spec": {"containers": [container]}}
    kept, message = within_quotas([Create(Kind.POD, pod, ActionReason.INSPECT)], listed)
    assert bool(kept) == (message is None)


@fuzzed
@given(either(record("phase", "x")), either(record("storageClassName")))
def test_any_claim_is_bound_or_not(status: Any, spec: Any) -> None:
    class Claims:
        async def get(self, *_: object) -> dict[str, Any]:
            return {"metadata": {"name": "models"}, "spec": spec, "status": status}

    claim = asyncio.run(VolumeClaims(cast("Any", Claims()))._read("team", "models"))
    assert claim is not None
    assert claim.bound == (isinstance(status, dict) and status.get("phase") == "Bound")
    assert isinstance(claim.storage_class, str)
