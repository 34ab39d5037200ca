"""What each scheme of sources makes of a spec: what SGLang gets, what a hub is asked for, what a pod inspects."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qwen_operator.actions.blocked import Blocked
from qwen_operator.actions.types import Create
from qwen_operator.api import uris
from qwen_operator.api.conditions import Reason
from qwen_operator.api.engine import EnvVar
from qwen_operator.api.fields import Passthrough
from qwen_operator.api.spec import InvalidSpec, Spec, parse
from qwen_operator.checkpoints.adapters import InspectedAdapter
from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import Hub, HubAnswer, HubQuery, HubReason
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.manifests.model_cache import fetch_container, mounted
from qwen_operator.manifests.names import Owner, PodIdentity
from qwen_operator.manifests.pod_parts import RuntimeImage
from qwen_operator.planning.types import CacheType, EngineDefaults, ModelCache, ModelFetch, ObjectStore, Outbound
from qwen_operator.sources import registry
from qwen_operator.sources.pvc import claim_and_path
from qwen_operator.sources.scheme import Facts, SourceContext
from qwen_runtime.checkpoints.adapter import AdapterFacts
from tests.unit.checkpoints.configs import DENSE

COMMIT = "c" * 40
MODEL = "Qwen/Qwen3-8B"
FACTS = from_config(DENSE)
PINNED = replace(FACTS, commit=COMMIT)
HF = EngineDefaults("sglang", "0.5.23")
MIRROR = "https://mirror.example.org"
SCOPE = EngineDefaults("sglang", "0.5.23", hub=Hub.MODELSCOPE)
HF_URI, SCOPE_URI, PVC_URI = f"hf://{MODEL}", f"modelscope://{MODEL}", "pvc://claim/path"
NOW = datetime(2026, 11, 1, tzinfo=UTC)
SCOPED = {"SGLANG_USE_MODELSCOPE": "true"}


def _spec(source: dict[str, Any] | None, **members: Any) -> Spec:
    return parse({"metadata": {"name": "a"}, "spec": {"model": MODEL, "source": source, **members}})


def test_every_form_has_a_scheme_and_every_hub_a_form() -> None:
    assert [scheme.form for scheme in registry.SCHEMES.values()] == list(uris.FORMS.values())
    assert set(Hub) <= registry.SCHEMES.keys()
    assert {name for name, scheme in registry.SCHEMES.items() if scheme.hub_query} == {
        name for name, form in uris.FORMS.items() if form.repository
    }


@pytest.mark.parametrize(
    ("source", "facts", "defaults", "revision", "env"),
    [
        (None, FACTS, HF, None, {}),
        ({"uri": HF_URI, "revision": "v1"}, FACTS, HF, "v1", {}),
        (None, FACTS, replace(HF, hub_url=MIRROR), None, {"HF_ENDPOINT": MIRROR}),
        ({"uri": SCOPE_URI}, FACTS, replace(HF, hub_url=MIRROR), None, SCOPED),
        ({"uri": SCOPE_URI, "revision": "v1"}, FACTS, HF, "v1", SCOPED),
        (None, FACTS, SCOPE, None, SCOPED),
        (None, FACTS, replace(SCOPE, hub_url=MIRROR), None, SCOPED | {"MODELSCOPE_DOMAIN": "mirror.example.org"}),
        ({"uri": HF_URI}, FACTS, replace(SCOPE, hub_url=MIRROR), None, {}),
    ],
)
def test_a_repository_is_downloaded_at_its_revision(
    source: dict[str, Any] | None,
    facts: Checkpoint,
    defaults: EngineDefaults,
    revision: str | None,
    env: dict[str, str],
) -> None:
    made = registry.engine_source(_spec(source), facts, defaults)
    assert (made.model_path, made.revision, made.downloads) == (MODEL, revision, True)
    assert {one.name: one.value for one in made.env} == env
    assert (made.volumes, made.mounts) == ((), ())


def test_a_claim_is_mounted_and_nothing_is_downloaded() -> None:
    made = registry.engine_source(_spec({"uri": PVC_URI}), PINNED, replace(SCOPE, hub_url=MIRROR))
    assert (made.model_path, made.revision, made.downloads, made.env) == ("/models/source/path", None, False, ())
    assert made.volumes == ({"name": "source", "persistentVolumeClaim": {"claimName": "claim", "readOnly": True}},)
    assert made.mounts == ({"name": "source", "mountPath": "/models/source", "readOnly": True},)


@pytest.mark.parametrize(
    ("uri", "claim", "path"),
    [
        ("pvc://models/qwen/7b/", "models", "qwen/7b"),
        ("pvc://models", "models", ""),
        ("pvc://models/", "models", ""),
        ("pvc://models//a", "models", "a"),
    ],
)
def test_claim_and_folder(uri: str, claim: str, path: str) -> None:
    spec = _spec({"uri": uri})
    assert claim_and_path(spec) == (claim, path)
    assert registry.engine_source(spec, FACTS, HF).model_path == f"/models/source/{path}".rstrip("/")


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ({"uri": "pvc://models/qwen/", "file": "q8_0/a.gguf"}, "/models/source/qwen/q8_0/a.gguf"),
        ({"uri": "pvc://models", "file": "a.gguf"}, "/models/source/a.gguf"),
        ({"uri": "hf://a/b-GGUF", "file": "q8_0/a.gguf"}, "a/b-GGUF/q8_0/a.gguf"),
    ],
)
def test_the_engine_gets_the_path_of_a_file(source: dict[str, Any], path: str) -> None:
    assert registry.engine_source(_spec(source), FACTS, HF).model_path == path


@pytest.mark.parametrize(
    ("source", "defaults", "query"),
    [
        (None, HF, HubQuery(Hub.HUGGING_FACE, MODEL)),
        (None, SCOPE, HubQuery(Hub.MODELSCOPE, MODEL)),
        ({"uri": "hf://a/b", "revision": "v1"}, SCOPE, HubQuery(Hub.HUGGING_FACE, "a/b", "v1")),
        ({"uri": "modelscope://a/b"}, HF, HubQuery(Hub.MODELSCOPE, "a/b")),
        ({"uri": "hf://a/b", "file": "q.gguf"}, HF, HubQuery(Hub.HUGGING_FACE, "a/b", "", "q.gguf")),
        ({"uri": PVC_URI}, HF, None),
    ],
)
def test_what_a_hub_is_asked_for(
    source: dict[str, Any] | None, defaults: EngineDefaults, query: HubQuery | None
) -> None:
    assert registry.hub_query(_spec(source), defaults) == query


@pytest.mark.parametrize(("source", "inspected"), [(None, False), ({"uri": HF_URI}, False), ({"uri": PVC_URI}, True)])
def test_only_a_claim_is_inspected_by_a_pod(source: dict[str, Any] | None, inspected: bool) -> None:
    identity, runtime = PodIdentity(Owner("a", "team", "uid"), "0a1b2c3d"), RuntimeImage("image")
    pod = registry.inspection_pod(identity, _spec(source), HF, runtime, Inventory())
    assert (pod is not None) is inspected


TOKEN = {"secretKeyRef": {"name": "hf-token", "key": "token"}}
PRIVATE = {"secretRef": {"name": "hf-token"}}
CACHE = ModelCache(CacheType.HOST_PATH, "/var/lib/models", 100)


@pytest.mark.parametrize(
    ("source", "defaults", "fetch"),
    [
        (None, HF, ModelFetch(CACHE, Hub.HUGGING_FACE, MODEL, COMMIT)),
        (None, SCOPE, ModelFetch(CACHE, Hub.MODELSCOPE, MODEL, COMMIT)),
        ({"uri": HF_URI}, replace(HF, hub_url=MIRROR), ModelFetch(CACHE, Hub.HUGGING_FACE, MODEL, COMMIT, MIRROR)),
        (
            {"uri": SCOPE_URI, **PRIVATE},
            HF,
            ModelFetch(CACHE, Hub.MODELSCOPE, MODEL, COMMIT, token=EnvVar("QWEN_HUB_TOKEN", None, Passthrough(TOKEN))),
        ),
    ],
)
def test_with_a_cache_the_engine_loads_a_folder_and_asks_no_hub(
    source: dict[str, Any] | None, defaults: EngineDefaults, fetch: ModelFetch
) -> None:
    made = registry.engine_source(_spec(source), PINNED, replace(defaults, cache=CACHE))
    assert (made.model_path, made.fetch) == (f"/models/cached/{MODEL}", fetch)
    assert (made.revision, made.downloads) == (None, False)
    assert made.env == (EnvVar("HF_HUB_OFFLINE", "1"),)


def test_a_claim_is_not_cached() -> None:
    assert registry.engine_source(_spec({"uri": PVC_URI}), PINNED, replace(HF, cache=CACHE)).fetch is None


def test_an_engine_that_downloads_itself_gets_the_token() -> None:
    made = registry.engine_source(_spec({"uri": HF_URI, **PRIVATE}), FACTS, HF)
    assert made.env == (EnvVar("HF_TOKEN", None, Passthrough(TOKEN)),)
    assert made.downloads


@pytest.mark.parametrize(
    "members",
    [
        {"engine": {"env": [{"name": "HF_HOME", "value": "/shared"}]}},
        {"engine": {"env": [{"name": "HF_TOKEN", "value": "x"}]}},
        {"engine": {"env": [{"name": "https_proxy", "value": "http://proxy:3128"}]}},
        {"engine": {"args": ["--download-dir=/shared"]}},
        {"engine": {"args": ["--load-format", "dummy"]}},
        {"engine": {"args": ["--speculative-draft-model-path=team/draft"]}},
        {"pod": {"volumeMounts": [{"name": "shared", "mountPath": "/home/qwen/huggingface"}]}},
    ],
)
def test_sglang_downloads_itself_where_somebody_says_how(members: dict[str, Any]) -> None:
    """A container would not use that token or that volume."""
    made = registry.engine_source(_spec(None, **members), PINNED, HF)
    assert (made.model_path, made.revision, made.downloads, made.fetch) == (MODEL, COMMIT, True, None)
    cached = registry.engine_source(_spec(None, **members), PINNED, replace(HF, cache=CACHE))
    assert cached.fetch is not None


@pytest.mark.parametrize(
    "defaults", [replace(HF, env=(EnvVar("HF_TOKEN", "x"),)), replace(HF, args=("--download-dir", "/shared"))]
)
def test_that_may_be_the_platform_team(defaults: EngineDefaults) -> None:
    assert registry.engine_source(_spec(None), PINNED, defaults).downloads


@pytest.mark.parametrize(
    ("uri", "defaults", "options"),
    [
        (HF_URI, HF, ["--hub=hf", f"--repository={MODEL}", "--revision=main"]),
        (HF_URI, replace(HF, hub_url=MIRROR), ["--hub=hf", f"--hub-url={MIRROR}", f"--repository={MODEL}"]),
        (SCOPE_URI, replace(HF, cache=CACHE), ["--hub=modelscope", f"--repository={MODEL}", "--revision=master"]),
    ],
)
def test_a_private_repository_is_read_by_a_pod_with_the_token(
    uri: str, defaults: EngineDefaults, options: list[str]
) -> None:
    identity, runtime = PodIdentity(Owner("a", "team", "uid"), "0a1b2c3d"), RuntimeImage("image")
    pod = registry.inspection_pod(identity, _spec({"uri": uri, **PRIVATE}), defaults, runtime, Inventory())
    assert pod is not None
    (container,) = pod["spec"]["containers"]
    assert container["command"][:2] == ["qwen-operator", "inspect-hub"]
    assert container["command"][2 : 2 + len(options)] == options
    assert container["env"] == [{"name": "QWEN_HUB_TOKEN", "valueFrom": TOKEN}]
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    # It needs no files of a node, so it stays away from GPUs.
    assert "preferredDuringSchedulingIgnoredDuringExecution" in pod["spec"]["affinity"]["nodeAffinity"]


def _context(spec: Spec, defaults: EngineDefaults, **changes: Any) -> SourceContext:
    meta = {"name": "a", "namespace": "team", "uid": "u", "generation": 1}
    known: dict[str, Any] = {"online": True, "now": NOW} | changes
    return SourceContext(spec, "0a1b2c3d", {"metadata": meta}, defaults, RuntimeImage("image"), Inventory(), **known)


def test_the_cache_needs_a_commit() -> None:
    spec, cached = _spec(None), replace(HF, cache=CACHE)
    asked = registry.resolve(_context(spec, cached))
    assert isinstance(asked, Blocked)
    assert (asked.waiting, asked.query) == (True, HubQuery(Hub.HUGGING_FACE, MODEL))
    answer = HubAnswer(HubQuery(Hub.HUGGING_FACE, MODEL), NOW + timedelta(minutes=5), PINNED)
    assert registry.resolve(_context(spec, cached, answer=answer)) == Facts(PINNED)
    # Without the cache, the catalog is enough if the hub says nothing.
    silent = HubAnswer(HubQuery(Hub.HUGGING_FACE, MODEL), NOW + timedelta(minutes=5), None, HubReason.OFFLINE)
    assert isinstance(registry.resolve(_context(spec, HF, answer=silent)), Facts)


def test_a_commit_in_the_spec_needs_no_hub() -> None:
    spec = _spec({"uri": HF_URI, "revision": COMMIT})
    facts = registry.resolve(_context(spec, replace(HF, cache=CACHE), online=False))
    assert isinstance(facts, Facts)
    assert (facts.checkpoint.commit, facts.remark) == (COMMIT, "")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"online": False}, "hub.lookup is false: set hub.lookup to true, or spec.source.revision to a commit"),
        (
            {"answer": HubAnswer(HubQuery(Hub.HUGGING_FACE, MODEL), NOW, None, HubReason.OFFLINE, "it is gone", 1)},
            "and it is gone; the operator asks it again",
        ),
    ],
)
def test_an_unknown_commit_is_told(changes: dict[str, Any], text: str) -> None:
    blocked = registry.resolve(_context(_spec(None), replace(HF, cache=CACHE), **changes))
    assert isinstance(blocked, Blocked)
    assert (blocked.reason, text in blocked.message) == (Reason.UNKNOWN_MODEL, True), blocked.message


@pytest.mark.parametrize(
    ("source", "facts", "token"),
    [
        ({"uri": SCOPE_URI, "revision": "v1"}, PINNED, None),
        ({"uri": SCOPE_URI, "revision": COMMIT}, FACTS, None),
        ({"uri": SCOPE_URI, **PRIVATE}, PINNED, EnvVar("QWEN_HUB_TOKEN", None, Passthrough(TOKEN))),
        (None, PINNED, None),
        ({"uri": HF_URI, "revision": "v1"}, PINNED, None),
        ({"uri": HF_URI, "revision": COMMIT}, FACTS, None),
        ({"uri": HF_URI, **PRIVATE}, PINNED, EnvVar("QWEN_HUB_TOKEN", None, Passthrough(TOKEN))),
    ],
)
def test_without_a_cache_a_container_downloads_a_known_commit(
    source: dict[str, Any] | None, facts: Checkpoint, token: EnvVar | None
) -> None:
    made = registry.engine_source(_spec(source), replace(facts, weight_bytes=100 << 30), HF)
    folder = ModelCache(CacheType.POD, "", 104)
    hub = Hub.MODELSCOPE if source and source["uri"] == SCOPE_URI else Hub.HUGGING_FACE
    assert made.fetch == ModelFetch(folder, hub, MODEL, COMMIT, token=token)
    assert (made.model_path, made.revision, made.downloads) == (f"/models/cached/{MODEL}", None, False)
    assert made.env == (EnvVar("HF_HUB_OFFLINE", "1"),)


@pytest.mark.parametrize(
    ("uri", "cache", "size"),
    [(SCOPE_URI, None, 17 + 11), ("pvc://models/base", None, 11), (SCOPE_URI, CACHE, CACHE.size_gib)],
)
def test_the_folder_of_a_pod_has_room_for_the_model_and_its_fetched_adapters(
    uri: str, cache: ModelCache | None, size: int
) -> None:
    places = {"a": "hf://team/a", "b": "pvc://models/b"}
    listed = [{"name": name, "source": {"uri": place}} for name, place in places.items()]
    facts = AdapterFacts(8, ("q_proj",), 2, 64, 64, 64, 0, 9 << 30)
    found = tuple(InspectedAdapter(name, place, facts, COMMIT) for name, place in places.items())
    model = replace(PINNED, weight_bytes=int(14.5 * (1 << 30)), adapters=found)
    made = registry.engine_source(_spec({"uri": uri}, adapters=listed), model, replace(HF, cache=cache))
    container = fetch_container(made, "team", {})
    assert f"--size-gib={size}" in container["command"]
    if cache is None:
        assert container["resources"]["requests"]["ephemeral-storage"] == f"{size}Gi"
        (volume,) = (one for one in mounted(made, "team").volumes if "emptyDir" in one)
        assert volume["emptyDir"] == {"sizeLimit": f"{size}Gi"}


def test_private_files_on_modelscope_are_inspected_without_a_cache() -> None:
    blocked = registry.resolve(_context(_spec({"uri": SCOPE_URI, **PRIVATE}), HF))
    assert isinstance(blocked, Blocked)
    assert (blocked.reason, len(blocked.actions)) == (Reason.INSPECTING, 1)


def test_a_secret_is_for_hubs() -> None:
    with pytest.raises(InvalidSpec, match="secretRef is for repositories of a hub"):
        _spec({"uri": PVC_URI, **PRIVATE})


S3_URI = "s3://weights/qwen/chat"
MINIO = "https://minio.example.com:9000"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION")


@pytest.mark.parametrize(
    ("source", "store", "options"),
    [
        ({}, ObjectStore(), []),
        ({}, ObjectStore(MINIO), [f"--endpoint={MINIO}"]),
        ({"endpoint": MINIO}, ObjectStore("https://other"), [f"--endpoint={MINIO}"]),
        ({"revision": COMMIT}, ObjectStore(), [f"--revision={COMMIT}"]),
    ],
)
def test_a_bucket_is_read_by_a_pod(source: dict[str, Any], store: ObjectStore, options: list[str]) -> None:
    identity, runtime = PodIdentity(Owner("a", "team", "uid"), "0a1b2c3d"), RuntimeImage("image")
    spec = _spec({"uri": S3_URI, "secretRef": {"name": "s3"}, **source})
    pod = registry.inspection_pod(identity, spec, replace(HF, store=store), runtime, Inventory())
    assert pod is not None
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["qwen-operator", "inspect-s3", f"--s3={S3_URI}", *options]
    entries = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"]}
    assert {name: entry["key"] for name, entry in entries.items()} == dict(zip(KEYS, KEYS, strict=True))
    assert [name for name, entry in entries.items() if entry.get("optional")] == list(KEYS[2:])
    assert "preferredDuringSchedulingIgnoredDuringExecution" in pod["spec"]["affinity"]["nodeAffinity"]


def test_a_bucket_without_a_secret_needs_none() -> None:
    identity, runtime = PodIdentity(Owner("a", "team", "uid"), "0a1b2c3d"), RuntimeImage("image")
    pod = registry.inspection_pod(identity, _spec({"uri": S3_URI}), HF, runtime, Inventory())
    assert pod is not None
    assert "env" not in pod["spec"]["containers"][0]


@pytest.mark.parametrize("cache", [None, CACHE])
def test_the_files_of_a_bucket_are_fetched_with_or_without_a_cache(cache: ModelCache | None) -> None:
    made = registry.engine_source(_spec({"uri": S3_URI}), PINNED, replace(HF, cache=cache))
    assert made.model_path == "/models/cached/weights/qwen/chat"
    assert made.fetch is not None
    assert (made.fetch.options, made.fetch.commit) == ((f"--s3={S3_URI}",), COMMIT)
    of_pod = ModelCache(CacheType.POD, "", -(-PINNED.weight_bytes * 102 // (100 << 30)) + 2)
    assert made.fetch.cache == (cache or of_pod)


@pytest.mark.parametrize(
    ("endpoint", "endpoints", "allowed"),
    [
        (None, (), True),
        (MINIO, (), True),
        (MINIO, (MINIO,), True),
        ("https://chart", (MINIO,), True),
        ("https://evil", (MINIO,), False),
        (None, (MINIO,), True),
    ],
)
def test_the_chart_decides_about_endpoints(endpoint: str | None, endpoints: tuple[str, ...], allowed: bool) -> None:
    source = {"uri": S3_URI, **({"endpoint": endpoint} if endpoint else {})}
    store = ObjectStore("https://chart", endpoints)
    found = registry.resolve(_context(_spec(source), replace(HF, store=store)))
    assert isinstance(found, Blocked)
    if allowed:
        assert (found.reason, len(found.actions)) == (Reason.INSPECTING, 1)
    else:
        text = f"spec.source.endpoint is https://evil, and the chart value objectStore.endpoints allows only {MINIO}"
        assert (found.reason, found.message, found.actions) == (Reason.NOT_ALLOWED, text, ())


OUTBOUND = Outbound("http://proxy:3128", ".svc", "authorities", "all.pem")
REACHING = {
    "HTTP_PROXY": "http://proxy:3128",
    "HTTPS_PROXY": "http://proxy:3128",
    "NO_PROXY": "localhost,127.0.0.1,::1,.svc",
    "SSL_CERT_FILE": "/etc/qwen-ca/all.pem",
    "REQUESTS_CA_BUNDLE": "/etc/qwen-ca/all.pem",
    "CURL_CA_BUNDLE": "/etc/qwen-ca/all.pem",
}
CA_VOLUME = {"name": "qwen-ca", "configMap": {"name": "authorities"}}
CA_MOUNT = {"name": "qwen-ca", "mountPath": "/etc/qwen-ca", "readOnly": True}


def test_an_engine_that_downloads_gets_the_proxy_and_the_authorities() -> None:
    made = registry.engine_source(_spec(None), FACTS, replace(HF, outbound=OUTBOUND))
    assert {one.name: one.value for one in made.env} == REACHING
    assert (made.volumes, made.mounts) == ((CA_VOLUME,), (CA_MOUNT,))


def test_with_a_cache_only_the_container_that_fetches_gets_them() -> None:
    made = registry.engine_source(_spec(None), PINNED, replace(HF, outbound=OUTBOUND, cache=CACHE))
    assert made.fetch is not None
    assert {one.name: one.value for one in made.fetch.env} == REACHING
    assert (made.env, made.mounts, made.volumes) == ((EnvVar("HF_HUB_OFFLINE", "1"),), (), (CA_VOLUME,))
    assert made.fetch.mounts == (CA_MOUNT,)


def test_an_inspection_that_connects_gets_them() -> None:
    defaults = replace(HF, outbound=OUTBOUND)
    blocked = registry.resolve(_context(_spec({"uri": S3_URI}), defaults))
    assert isinstance(blocked, Blocked)
    (action,) = blocked.actions
    assert isinstance(action, Create)
    (container,) = action.manifest["spec"]["containers"]
    assert {one["name"]: one["value"] for one in container["env"]} == REACHING
    assert CA_MOUNT in container["volumeMounts"]
    assert CA_VOLUME in action.manifest["spec"]["volumes"]


@pytest.mark.parametrize(
    ("taken", "name"),
    [((), "qwen-ca"), (("a", "qwen-ca-0"), "qwen-ca"), (("qwen-ca", "qwen-ca-0"), "qwen-ca-1")],
)
def test_the_volume_of_the_authorities_never_has_the_name_of_a_users(taken: tuple[str, ...], name: str) -> None:
    pod = {"volumes": [{"name": one, "emptyDir": {}} for one in taken]}
    spec, defaults = _spec({"uri": S3_URI}, pod=pod), replace(HF, outbound=OUTBOUND)
    made, read = registry.engine_source(spec, PINNED, defaults), registry.inspected(spec, defaults)
    assert made.fetch is not None
    assert read is not None
    assert CA_VOLUME | {"name": name} in made.volumes
    assert CA_MOUNT | {"name": name} in made.fetch.mounts
    assert CA_VOLUME | {"name": name} in read.volumes
    assert CA_MOUNT | {"name": name} in read.mounts


@pytest.mark.parametrize("source", [None, {"uri": S3_URI}, {"uri": PVC_URI}])
def test_without_the_values_nothing_is_added(source: dict[str, Any] | None) -> None:
    empty = Outbound(no_proxy=".svc", key="other.pem")
    plain = registry.engine_source(_spec(source), PINNED, HF)
    assert registry.engine_source(_spec(source), PINNED, replace(HF, outbound=empty)) == plain
    if source == {"uri": PVC_URI}:
        assert registry.engine_source(_spec(source), PINNED, replace(HF, outbound=OUTBOUND)) == plain
