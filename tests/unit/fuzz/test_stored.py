"""What the stores keep of any object, and what comes of a forged revision: bounded, and no error but its own."""

from __future__ import annotations

import asyncio
import copy
import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator import objects, untrusted
from qwen_operator.api.kept import kept_deployment
from qwen_operator.api.spec import UNKEPT, InvalidSpec, parse
from qwen_operator.controller.cache import WATCHED, Store, trim
from qwen_operator.gateway.kept import keep
from qwen_operator.kube import CONTROLLER_REVISIONS, PODS, QWENDEPLOYMENTS, RESOURCE_QUOTAS
from qwen_operator.manifests.drift import pod_repair
from qwen_operator.manifests.engine_pods import ReplicaPods, engine_pods
from qwen_operator.manifests.kept import CUT, kept_pod
from qwen_operator.manifests.names import Owner, PodIdentity
from qwen_operator.manifests.revisions import UnreadableRevisionError, read_revision
from qwen_operator.replicas.pod_state import as_of, read_pod
from qwen_runtime.json_parts import Parts, TooLargeError
from tests.unit.fuzz.test_decoders import pods
from tests.unit.fuzz.values import anything, either, fuzzed, record
from tests.unit.world import World, deployment

NOW = datetime(2026, 11, 24, 13, 0, tzinfo=UTC)
MEGABYTE = "x" * 1_400_000
metas = st.builds(
    lambda rest: {"name": "chat", "namespace": "team", "uid": "u", **rest},
    record("labels", "annotations", "ownerReferences", "managedFields", "generation", inner=either(anything)),
)
whole = st.builds(
    lambda meta, rest: {"metadata": meta, **rest}, metas, record("kind", "spec", "status", "data", "revision")
)


@fuzzed
@given(whole, st.sampled_from(WATCHED))
def test_of_any_object_something_is_kept_and_only_once(item: Any, resource: Any) -> None:
    untrusted.cut_deep(item, 100)
    if objects.malformed(item) is not None:
        return
    kept = trim(resource, item)
    assert objects.malformed(kept) is None
    assert trim(resource, {**kept}) == kept
    assert keep(resource.plural, copy.deepcopy(item)) is not None
    assert Store().update(resource, item) is not None


@fuzzed
@given(either(pods))
def test_what_is_kept_of_a_pod_reads_like_the_whole(pod: Any) -> None:
    if objects.malformed(pod) is not None:
        return
    kept = kept_pod(pod)
    before, after = (as_of(read_pod(one, "chat"), NOW) for one in (pod, kept))
    assert (before.name, before.up, before.ended, before.reason) == (after.name, after.up, after.ended, after.reason)


@pytest.mark.parametrize(
    "large",
    [
        {"metadata": {"annotations": {"a": MEGABYTE}}},
        {"metadata": {"labels": {f"l{number}": "x" for number in range(50_000)}}},
        {"metadata": {"managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {"f:replicas": {}}}}] * 20_000}},
        {"metadata": {"ownerReferences": [{"uid": "x", "kind": "y", "name": "z"}] * 20_000}},
        {"spec": {"affinity": [{}] * 400_000}},
        {"spec": {"containers": [{"name": "engine", "image": "i", "args": ["x"] * 300_000}]}},
        {"spec": {"tolerations": [{"key": "k"}] * 50_000, "hard": {f"r{n}": "1" for n in range(50_000)}}},
        {"status": {"conditions": [{"type": "t"}] * 50_000, "message": MEGABYTE}},
        {"status": {"containerStatuses": [{"name": "engine", "state": {"terminated": {"message": MEGABYTE}}}]}},
        {"data": {"template": [{}] * 400_000}},
    ],
    ids=lambda large: json.dumps(large)[:60],
)
@pytest.mark.parametrize("resource", [one for one in WATCHED if one.namespaced], ids=lambda one: one.plural)
def test_of_a_megabyte_little_is_kept(large: dict[str, Any], resource: Any) -> None:
    meta = {"name": "chat", "namespace": "team", "uid": "u", **large.get("metadata", {})}
    kept = trim(resource, {**large, "metadata": meta})
    size = untrusted.size_of(kept)
    assert size.values <= 5000
    assert size.characters <= 300_000


def test_a_spec_that_is_too_large_leaves_its_names_and_the_reasons() -> None:
    spec = {"model": "m", "servedNames": ["a", "b"], "replicas": 2, "pod": {"affinity": {"a": [{}] * 100_000}}}
    kept = kept_deployment({"metadata": {"name": "chat"}, "spec": spec})
    assert kept["spec"] == {"model": "m", "servedNames": ["a", "b"], "replicas": 2}
    with pytest.raises(InvalidSpec) as caught:
        parse(kept)
    says = "spec.pod.affinity: the object has more than 4096 keys and entries, it must have at most 2048"
    assert caught.value.problems == [says]
    assert UNKEPT not in kept_deployment({"metadata": {"name": "chat"}, "spec": {"model": "m"}})


async def test_a_pod_with_too_many_labels_is_not_repaired_for_ever() -> None:
    world = await World().start()
    world.api.put(QWENDEPLOYMENTS, deployment())
    await world.settle()
    [name] = world.names()
    world.api.edit(PODS, name, lambda pod: pod["metadata"]["labels"].update({f"l{n}": "" for n in range(400)}))
    await world.settle()
    stored = world.operator.store.get(PODS, ("team", name))
    assert stored is not None
    assert CUT in stored
    assert world.names() == [name]


async def test_a_quota_keeps_its_amounts() -> None:
    quota = {"metadata": {"name": "q", "namespace": "team"}, "spec": {"hard": {"pods": "4"}, "scopes": ["Terminating"]}}
    status = {"status": {"hard": {"pods": "4"}, "used": {"pods": "1"}}}
    kept = trim(RESOURCE_QUOTAS, {**quota, **status})
    assert (kept["spec"]["hard"], kept["spec"]["scopes"], kept["status"]) == (
        {"pods": "4"},
        ["Terminating"],
        status["status"],
    )


@pytest.fixture(scope="module")
def revision() -> dict[str, Any]:
    async def made() -> dict[str, Any]:
        world = await World().start()
        world.api.put(QWENDEPLOYMENTS, deployment())
        await world.settle()
        [item] = world.api.all(CONTROLLER_REVISIONS)
        return dict(item)

    return asyncio.run(made())


paths = st.sampled_from(
    [
        (), ("metadata",), ("metadata", "labels"), ("metadata", "annotations"), ("spec",), ("spec", "containers"),
        ("spec", "containers", 0), ("spec", "containers", 0, "name"), ("spec", "containers", 0, "image"),
        ("spec", "containers", 0, "env"), ("spec", "volumes"), ("spec", "tolerations"), ("spec", "initContainers"),
    ]
)  # fmt: skip


@fuzzed
@given(paths, anything)
def test_a_forged_template_is_unreadable_or_of_use(revision: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    forged = copy.deepcopy(revision)
    place: Any = forged["data"]
    for step in ("template", *path)[:-1]:
        place = place[step]
    place[("template", *path)[-1]] = value
    untrusted.cut_deep(forged, 64)
    with suppress(UnreadableRevisionError):
        pinned = read_revision(forged)
        identity = PodIdentity(Owner(name="chat", namespace="team", uid="u"), pinned.revision)
        for pod in engine_pods(ReplicaPods(identity, 0, 1), pinned.template, 30):
            pod_repair(pod, revision["data"]["template"])


texts = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner)
)


@fuzzed
@given(st.lists(texts, max_size=6), texts, st.integers(1, 40), st.booleans())
def test_parts_are_the_members_wherever_the_text_is_cut(
    items: list[Any], other: Any, step: int, ascii_only: bool
) -> None:
    document = {"kind": "List", "metadata": {"items": 1}, "items": items, "other": other}
    text = json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    parts = Parts("items", 1 << 20, 1 << 20)
    members = [part for start in range(0, len(text), step) for part in parts.feed(text[start : start + step])]
    assert [json.loads(part.decode("utf-8", "surrogatepass")) for part in members] == items
    assert json.loads(parts.end().decode("utf-8", "surrogatepass")) == {**document, "items": []}


@fuzzed
@given(st.lists(st.binary(max_size=50) | st.text('[]{}",:\\').map(str.encode), max_size=10))
def test_any_bytes_are_taken_apart_within_bounds(pieces: list[bytes]) -> None:
    parts = Parts(None, 64, 64)
    with suppress(TooLargeError):
        for piece in pieces:
            assert all(len(part) <= 64 for part in parts.feed(piece))
    assert len(parts.end()) <= 128


def test_a_part_beyond_the_limit_is_dropped_and_counted() -> None:
    parts = Parts("items", 100, 100)
    members = [part for piece in (b'{"items":[1,"' + b"x" * 500, b"x" * 500 + b'",2]}') for part in parts.feed(piece)]
    assert ([*map(json.loads, members)], parts.dropped, parts.end()) == ([1, 2], 1, b'{"items":[]}')
