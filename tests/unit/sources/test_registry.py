"""What each scheme of sources makes of a spec: what SGLang gets, what a hub is asked for, what a pod inspects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qwen_operator.api import uris
from qwen_operator.api.spec import Spec, parse
from qwen_operator.checkpoints.config import from_config
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import Hub, HubQuery
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.manifests.names import Owner, PodIdentity
from qwen_operator.manifests.pods import RuntimeImage
from qwen_operator.planning.types import EngineDefaults
from qwen_operator.sources import registry
from qwen_operator.sources.pvc import claim_and_path
from tests.unit.checkpoints.configs import DENSE

COMMIT = "c" * 40
MODEL = "Qwen/Qwen3-8B"
FACTS = from_config(DENSE)
PINNED = replace(FACTS, commit=COMMIT)
HF = EngineDefaults("sglang", "0.5.23")
MIRROR = "https://mirror.example.org"
SCOPE = EngineDefaults("sglang", "0.5.23", hub=Hub.MODELSCOPE)
HF_URI, SCOPE_URI, PVC_URI = f"hf://{MODEL}", f"modelscope://{MODEL}", "pvc://claim/path"
SCOPED = {"SGLANG_USE_MODELSCOPE": "true"}


def _spec(source: dict[str, Any] | None) -> Spec:
    return parse({"metadata": {"name": "a"}, "spec": {"model": MODEL, "source": source}})


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
        (None, PINNED, HF, COMMIT, {}),
        ({"uri": HF_URI, "revision": "v1"}, FACTS, HF, "v1", {}),
        ({"uri": HF_URI, "revision": "v1"}, PINNED, HF, COMMIT, {}),
        (None, FACTS, replace(HF, hub_url=MIRROR), None, {"HF_ENDPOINT": MIRROR}),
        ({"uri": SCOPE_URI}, FACTS, replace(HF, hub_url=MIRROR), None, SCOPED),
        ({"uri": SCOPE_URI, "revision": "v1"}, PINNED, HF, "v1", SCOPED),
        (None, PINNED, SCOPE, None, SCOPED),
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
