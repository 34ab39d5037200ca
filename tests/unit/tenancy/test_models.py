"""The list of models in Python. tests/cluster/test_tenancy.py holds the same table against the API server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_operator.api import uris
from qwen_operator.api.spec import InvalidSpec, parse
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.config.plans import settings
from qwen_operator.config.section import ConfigError
from qwen_operator.planning.types import EngineDefaults
from qwen_operator.sources import registry
from qwen_operator.tenancy.judge import refused
from qwen_operator.tenancy.lists import MODEL_PATHS, Setting, Tenancy
from qwen_operator.tenancy.models import Place, allows, is_entry, parsed, place_of
from tests.tenancy import (
    ALLOWED,
    MODELS,
    MODELS_ALLOWED,
    MODELS_RATCHET,
    MODELS_REFUSED,
    RATCHET,
    REFUSED,
    Case,
    mount,
    source,
)
from tests.unit.world import deployment

NARROW = Tenancy(added={Setting.MODELS: MODELS})
SCHEMA = json.loads((Path(__file__).parents[3] / "charts/qwen-operator/values.schema.json").read_text())


def fields_of(case: Case, tenancy: Tenancy) -> set[str]:
    spec, before = ({"model": "Qwen/Qwen1.5-0.5B-Chat", **part} for part in (case.spec, case.before))
    found = refused(spec, tenancy, "team", before if case.before else None)
    return {one.field.partition("[")[0] for one in found}


@pytest.mark.parametrize("case", [*MODELS_ALLOWED, *MODELS_REFUSED, *MODELS_RATCHET], ids=lambda case: case.id)
def test_the_table(case: Case) -> None:
    assert fields_of(case, NARROW) == ({case.refused} if case.refused else set())
    assert fields_of(case, Tenancy()) == set(), "an empty list allows every model"


@pytest.mark.parametrize("case", [*ALLOWED, *REFUSED, *RATCHET], ids=lambda case: case.id)
def test_a_list_of_models_changes_nothing_else(case: Case) -> None:
    """Only mounts where the engine reads weights are refused too."""
    tenancy = Tenancy(engine_image="localhost/sglang-cpu", added={Setting.MODELS: MODELS})
    expected = {case.refused} if case.refused else set()
    mounts = case.spec.get("pod", {}).get("volumeMounts", ())
    if any(str(item["mountPath"]).startswith(("/models/", "/home/qwen/huggingface")) for item in mounts):
        expected = {"spec.pod.volumeMounts"}
    assert fields_of(case, tenancy) == expected


def test_the_list_of_a_namespace_adds_to_that_of_all() -> None:
    both = Tenancy(added={Setting.MODELS: ("hf://Qwen/*",)}, by_namespace={"a": {Setting.MODELS: ("pvc://*",)}})
    own, named = {"model": "x", **source("pvc://own/x")}, {"model": "Qwen/Qwen3-8B"}
    assert [bool(refused(own, both, space)) for space in ("a", "b")] == [False, True]
    assert [bool(refused(named, both, space)) for space in ("a", "b")] == [False, False]


def test_one_namespace_alone_can_be_narrowed() -> None:
    one = Tenancy(by_namespace={"a": {Setting.MODELS: ("hf://Qwen/*",)}})
    own, cache = {"model": "evil/x"}, {"model": "Qwen/Qwen3-8B", **mount(MODEL_PATHS[1])}
    for spec in (own, cache):
        assert [bool(refused(spec, one, space)) for space in ("a", "b")] == [True, False]


def test_a_mount_over_weights_is_allowed_by_its_own_list() -> None:
    spec = {"model": "Qwen/Qwen3-8B", **mount("/home/qwen/huggingface")}
    assert refused(spec, NARROW, "team")
    listed = {Setting.MODELS: MODELS, Setting.MOUNT_PATHS: ("/home/qwen/huggingface",)}
    assert not refused(spec, Tenancy(added=listed), "team")


def test_a_message_names_field_place_and_the_list() -> None:
    (one,) = refused({"model": "evil/x"}, NARROW, "team")
    assert one.message == (
        "spec.model: 'hf://evil/x' is not allowed here: tenants of this namespace may serve only hf://Qwen/*, "
        "hf://Qwen/Qwen3-8B@v*, hf://own/chat@refs/pr/7 and 5 more; the platform team may allow it with the chart "
        "value tenancy.models"
    )
    few = Tenancy(added={Setting.MODELS: ("hf://Qwen/*",)})
    (one,) = refused({"model": "chat", **source("hf://Qwen/Qwen3-8B", "v1")}, few, "team")
    assert one.message == (
        "spec.source: 'hf://Qwen/Qwen3-8B@v1' is not allowed here: tenants of this namespace may serve only "
        "hf://Qwen/* (an entry without @ allows only the main branch); the platform team may allow it with the chart "
        "value tenancy.models"
    )


def test_the_default_hub_decides_about_a_model_without_a_source() -> None:
    tenancy = Tenancy(added={Setting.MODELS: ("hf://Qwen/*",)}, hub="modelscope")
    (one,) = refused({"model": "Qwen/Qwen3-8B"}, tenancy, "team")
    assert one.value == "modelscope://Qwen/Qwen3-8B"


NAMES = st.sampled_from(["Qwen3-8B", "x"]) | st.text("Qwenevil3-8B./@%_ \\~*", max_size=20)
OWN = st.builds("Qwen/{}".format, NAMES)
REVISIONS = st.sampled_from([None, "main", "master", "v1", "refs/pr/7"]) | st.text("mainrefs/.@%7", min_size=1)
SPECS = st.builds(
    lambda model, where: {"model": model, **where},
    NAMES | OWN,
    st.just({})
    | st.builds(
        lambda scheme, rest, revision: source(f"{scheme}://{rest}", revision),
        st.sampled_from(["hf", "modelscope", "pvc", "HF"]),
        NAMES | OWN,
        REVISIONS,
    ),
)


@given(SPECS)
@example({"model": "Qwen/../evil"})
@example({"model": "x", **source("hf://Qwen/x", "refs/pr/7")})
def test_whatever_an_organisation_s_entry_allows_is_read_from_its_main_branches(spec: dict[str, Any]) -> None:
    """From the text of a spec to the query of the hub and the path that the engine gets."""
    try:
        read = parse(deployment(**spec))
    except InvalidSpec:
        return
    if not allows(("hf://Qwen/*",), place_of(spec, "hf")):
        return
    query = registry.hub_query(read, EngineDefaults(image="i", version="0.5.23", hub=Hub.HUGGING_FACE))
    assert query is not None
    assert query.hub is Hub.HUGGING_FACE
    assert re.fullmatch(r"Qwen/[A-Za-z0-9][-A-Za-z0-9._]*", query.repository)
    assert query.revision in ("", *uris.MAIN_BRANCHES)


ENTRIES = st.one_of(
    st.sampled_from(MODELS),
    st.text("hfpvcmodelscope:/@*.-Qx1~ ", max_size=16),
    st.builds(
        lambda scheme, rest: f"{scheme}://{rest}",
        st.sampled_from(["hf", "modelscope", "pvc", "oci", "oci://a.b/c"]),
        st.text("aQ1/@*:.-~ main", max_size=12),
    ),
)


def in_schema(entry: str) -> bool:
    """Whether the chart accepts the entry."""
    rule = SCHEMA["definitions"]["allowedModels"]["items"]
    # RE2's `$` matches only at the very end.
    found = [re.search(text.replace("$", r"\Z"), entry) for text in (rule["pattern"], rule["not"]["pattern"])]
    return 0 < len(entry) <= rule["maxLength"] and bool(found[0]) and not found[1]


@given(ENTRIES)
@example("hf://Qwen/x@main")
@example("hf://Qwen/x@v1..2")
@example("pvc://m/../x")
@example("pvc://m/a@main")
@example("hf://Qwen/x\n")
@example("hf://Qwen*")
@example("hf*")
@example("*")
@example("s3://bucket/*")
@example("s3://bucket/a@b")
@example("s3://bucket/../a")
@example("s3://bu*")
@example("s3://BUCKET/a")
@example("oci://*")
@example("oci://ghcr.io*")
@example("oci://ghcr.io/*")
@example("oci://ghcr.io/a/b*")
@example("oci://ghcr.io/a/b")
@example("oci://ghcr.io/a/b:*")
@example("oci://ghcr.io/a/b:7b*")
@example("oci://ghcr.io/a/b:7b/models/*")
@example("oci://ghcr.io/a/b:7b/../*")
@example("oci://ghcr.io/a/b:7b/..")
@example("oci://localhost:5000/a:b@sha256:" + "0" * 64)
@example("oci://ghcr.io/a@sha256:" + "0" * 64 + "*")
@example("oci://ghcr.io/a@sha256:" + "0" * 64 + "/*")
@example("oci://team/a:b")
@example("oci://ghcr.io/A:b")
def test_the_chart_accepts_the_entries_that_the_operator_accepts(entry: str) -> None:
    assert in_schema(entry) == is_entry(entry)


@pytest.mark.parametrize("entry", ["hf://Qwen/x", "hf://Qwen/x@v1", "modelscope://Qwen/x", "pvc://m", "pvc://m/a@b"])
def test_an_entry_without_a_star_allows_itself(entry: str) -> None:
    place = parsed(entry)
    assert allows((entry,), place)
    others = (Place(f"{place.uri}x", place.revision), Place(place.uri, f"{place.revision}x"))
    assert not any(allows((entry,), other) for other in others)


@pytest.mark.parametrize(
    ("entry", "right"),
    [
        ("hf://*", True),
        ("pvc://*", True),
        ("hf://Qwen/*", True),
        ("hf://Qwen/Qwen3-*", True),
        ("hf://Qwen/Qwen3-8B@*", True),
        ("hf://Qwen/Qwen3-8B@refs/pr/*", True),
        ("pvc://models", True),
        ("pvc://models/*", True),
        ("Qwen/*", False),
        ("hf://Qwen*", False),
        ("pvc://models*", False),
        ("hf://Qwen/*/x", False),
        ("hf://Qwen/x/*", False),
        ("hf://Qwen", False),
        ("hf://Qwen/x@", False),
        ("hf://Qwen/x@main", False),
        ("https://huggingface.co/Qwen/x", False),
        ("hf:/Qwen/*", False),
        ("*", False),
    ],
)
def test_entries(entry: str, right: bool) -> None:
    assert is_entry(entry) is right


def _settings(**tenancy: Any) -> Tenancy:
    parts = {"image": {"reference": "i"}, "engine": {"image": "e", "version": "0.5.23"}}
    return settings({**parts, "hub": {"default": "modelscope"}, "tenancy": tenancy}).tenancy


def test_the_settings_have_the_lists_and_the_hub() -> None:
    found = _settings(models=["hf://Qwen/*"], namespaces={"a": {"models": ["pvc://*"]}})
    assert found.allowed("a", Setting.MODELS) == ("hf://Qwen/*", "pvc://*")
    assert found.hub == "modelscope"


@pytest.mark.parametrize(
    ("tenancy", "says"),
    [
        ({"models": ["hf://Qwen/*", "Qwen/*"]}, "tenancy.models[1] is 'Qwen/*': it must be a whole source such as"),
        ({"namespaces": {"a": {"models": ["hf://Qwen*"]}}}, "tenancy.namespaces.a.models[0] is 'hf://Qwen*'"),
        ({"models": "hf://Qwen/*"}, "tenancy.models is 'hf://Qwen/*': it must be a list"),
        ({"mode": "trusted", "models": ["hf://Qwen/*"]}, "tenancy.models[0] is 'hf://Qwen/*': it must be absent while"),
        (
            {"mode": "trusted", "namespaces": {"a": {"models": ["hf://Qwen/*"]}}},
            "tenancy.namespaces.a.models[0] is 'hf://Qwen/*': it must be absent while tenancy.mode is trusted",
        ),
    ],
)
def test_wrong_lists_are_told(tenancy: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _settings(**tenancy)
    assert says in str(caught.value)
