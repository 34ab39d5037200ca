"""What is read from an object, what is refused, and when a revision changes."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_operator.api import uris
from qwen_operator.api.engine import EnvVar
from qwen_operator.api.fields import Passthrough, camel
from qwen_operator.api.objective import Objective
from qwen_operator.api.sizing import Workload
from qwen_operator.api.source import Source
from qwen_operator.api.spec import InvalidSpec, Rollout, Scaling, Spec, parse, revision_hash
from tests.unit.api.bad_objects import BAD, Bad

# The machine that runs the tests may be busy; that is not what they are about.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _object(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "demo"}, "spec": {"model": "Qwen/Qwen1.5-7B-Chat"} | spec}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
def test_bad_objects_are_refused_with_field_and_cure(bad: Bad) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse(bad.manifest())
    text = str(caught.value).replace("'a'", '"a"')
    assert all(part in text for part in bad.says), text


def test_a_schedule_that_only_the_operator_can_check_is_refused_with_field_and_cure() -> None:
    day = {"name": "day", "start": "0 25 * * *", "end": "0 0 31 2 *", "timeZone": "Europe/Berlim", "minReplicas": 2}
    with pytest.raises(InvalidSpec) as caught:
        parse(_object(scaling={"maxReplicas": 4, "schedules": [day]}))
    start, end, zone = caught.value.problems
    assert start.startswith("spec.scaling.schedules[0].start: '0 25 * * *': must be a cron expression with five fields")
    assert "Its hour is wrong; right would be, for example, '0 8 * * MON-FRI'" in start
    assert "spec.scaling.schedules[0].end: '0 0 31 2 *'" in end
    assert "spec.scaling.schedules[0].timeZone: 'Europe/Berlim': must be a name of the IANA" in zone


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse({"metadata": {"name": "1"}, "spec": {"model": "a:b", "replicas": -1, "source": {"uri": "x"}, "y": 1}})
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize(
    "obj",
    [
        {},
        {"metadata": {}},
        {"metadata": {"name": "a"}},
        {"metadata": {"name": "a"}, "spec": []},
        {"metadata": {"name": "a"}, "spec": {"model": "m", 1: 2}},
        {"metadata": {"name": "a"}, "spec": {"model": "m", "parallelism": {"tensor": 65}}},
    ],
)
def test_an_object_without_its_parts_is_refused(obj: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec):
        parse(obj)


def test_the_shortest_object_has_every_default() -> None:
    spec = parse(_object())
    assert spec == Spec(model="Qwen/Qwen1.5-7B-Chat")
    assert (spec.names, spec.repository) == (("Qwen/Qwen1.5-7B-Chat",), "Qwen/Qwen1.5-7B-Chat")


def test_a_full_object_is_read_with_its_types() -> None:
    spec = parse(
        _object(
            servedNames=["a", "b"],
            source={"uri": "hf://org/name"},
            contextTokens=8192,
            hardware={"products": ["H100-80GB"], "maxGpusPerReplica": 8},
            parallelism={"tensor": 4},
            workload={"concurrency": 3, "outputTokens": 100},
            replicas=0,
            engine={
                "kvCacheType": "Fp8E4m3",
                "args": ["--x"],
                "env": [{"name": "A", "valueFrom": {"k": 1}}, {"name": "B", "value": ""}],
            },
            pod={"resources": {"limits": {"memory": "8Gi", "cpu": 2}}, "tolerations": [{"key": "x"}], "affinity": None},
        )
    )
    assert spec.names == ("a", "b")
    assert (spec.replicas, spec.repository, spec.parallelism.tensor) == (0, "org/name", 4)
    assert spec.engine.env == (EnvVar("A", None, Passthrough(k=1)), EnvVar("B", ""))
    assert spec.pod.resources.limits == {"memory": "8Gi", "cpu": 2}
    assert spec.pod.tolerations == ({"key": "x"},)
    assert spec.pod.affinity is None
    assert spec.workload == Workload(3, 2048, 100)
    assert (spec.workload.tokens, spec.engine.kv_cache_type) == (3 * 2148, "Fp8E4m3")


def test_an_objective_has_defaults_for_what_it_leaves_out() -> None:
    spec = parse(_object(scaling={"maxReplicas": 4, "objective": {"timePerOutputTokenMilliseconds": 50}}))
    assert spec.scaling is not None
    assert spec.scaling.objective == Objective(2000, 250, 50, 99)


def test_scaling_and_rollout_have_defaults() -> None:
    spec = parse(_object(scaling={"maxReplicas": 4}))
    assert (spec.scaling, spec.rollout) == (Scaling(4, 1, 300), Rollout(600))
    spec = parse(_object(rollout={"drainSeconds": 0}, scaling={"maxReplicas": 9, "stabilizationSeconds": 0}))
    assert (spec.scaling, spec.rollout) == (Scaling(9, 1, 0), Rollout(0, 1, 0, None))
    for written, rollout in (
        ({"maxSurge": 0, "maxUnavailable": 2, "progressDeadlineSeconds": 90}, Rollout(600, 0, 2, 90)),
        ({"maxSurge": 3}, Rollout(600, 3, 0)),
        ({"maxUnavailable": 0}, Rollout()),
        ({"maxSurge": None, "maxUnavailable": None}, Rollout()),
    ):
        assert parse(_object(rollout=written)).rollout == rollout


def test_a_rollout_that_replaces_nothing_is_refused_in_one_sentence() -> None:
    with pytest.raises(InvalidSpec) as refusal:
        parse(_object(rollout={"maxSurge": 0, "maxUnavailable": 0}))
    assert refusal.value.problems == [
        "spec.rollout: maxSurge is 0, maxUnavailable is 0: maxSurge and maxUnavailable (default: 0) must not both be "
        "0, because then no replica could be replaced: set maxUnavailable to 1, or maxSurge to 1"
    ]


@pytest.mark.parametrize(
    ("uri", "scheme", "location", "repository"),
    [
        ("modelscope://Qwen/Qwen1.5-7B", "modelscope", "Qwen/Qwen1.5-7B", "Qwen/Qwen1.5-7B"),
        ("pvc://models/qwen/7b/", "pvc", "models/qwen/7b/", None),
        ("pvc://models", "pvc", "models", None),
        ("hf://Qwen/Qwen1.5-7B", "hf", "Qwen/Qwen1.5-7B", "Qwen/Qwen1.5-7B"),
    ],
)
def test_sources(uri: str, scheme: str, location: str, repository: str | None) -> None:
    source = parse(_object(source={"uri": uri})).source
    assert source == Source(uri)
    assert (source.scheme, source.location, source.repository) == (scheme, location, repository)


@pytest.mark.parametrize("form", uris.FORMS.values(), ids=uris.FORMS.keys())
def test_every_scheme_has_a_rule_and_a_place_in_the_manual(form: uris.UriForm) -> None:
    assert form.form in Source.__dataclass_fields__["uri"].metadata["description"]
    assert parse(_object(source={"uri": form.example})).source == Source(form.example)
    for uri in (form.prefix, f"{form.example}/..", f"{form.prefix}a/../b", f"{form.example} "):
        with pytest.raises(InvalidSpec, match=re.escape(f"must have the form {form.form}")):
            parse(_object(source={"uri": uri}))


def test_a_revision_is_part_of_what_the_pods_run() -> None:
    source = {"uri": "hf://Qwen/Qwen3-8B", "revision": "refs/pr/1"}
    spec = parse(_object(source=source)).source
    assert spec
    assert spec.revision == "refs/pr/1"
    hashes = {revision_hash({"source": source | {"revision": name}}, {}) for name in ("main", "v1", "")}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    "spec",
    [
        {"pod": {"volumes": [{"name": "shm"}]}},
        {"pod": {"volumes": [{"name": "qwen-model-cache"}]}},
        {"pod": {"volumeMounts": [{"name": "qwen-model-cache", "mountPath": "/all"}]}},
        {"pod": {"resources": {"limits": {"a": True}}}},
    ],
)
def test_what_only_the_operator_can_check(spec: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match=r"spec\.pod"):
        parse(_object(**spec))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
_FIELDS = (
    "model",
    "servedNames",
    "source",
    "contextTokens",
    "workload",
    "hardware",
    "parallelism",
    "engine",
    "replicas",
    "scaling",
    "rollout",
    "pod",
)
_PARTS = (
    "uri",
    "args",
    "env",
    "kvCacheType",
    "concurrency",
    "inputTokens",
    "name",
    "products",
    "tensor",
    "maxGpusPerReplica",
    "minReplicas",
    "maxReplicas",
    "labels",
    "volumes",
    "resources",
)


@UNHURRIED
@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON | st.dictionaries(st.sampled_from(_PARTS), _JSON)), _JSON)
def test_reading_anything_raises_nothing_but_a_refusal(spec: dict[str, Any], name: Any) -> None:
    try:
        parsed = parse({"metadata": {"name": name}, "spec": spec})
    except InvalidSpec as refusal:
        outcome: object = refusal.problems
    else:
        outcome = parsed
    assert isinstance(outcome, Spec) or (isinstance(outcome, list) and outcome)


SAME: dict[str, dict[str, Any]] = {
    "replicas": {"replicas": 3},
    "client names": {"servedNames": ["x"]},
    "bounds of scaling": {"scaling": {"maxReplicas": 3}},
    "time to drain": {"rollout": {"drainSeconds": 5}},
    "limits of a rollout": {"rollout": {"maxSurge": 0, "maxUnavailable": 1, "progressDeadlineSeconds": 60}},
    "empty group": {"hardware": {}},
    "empty members": {"hardware": {"products": []}, "pod": {"labels": {}, "priorityClassName": ""}},
    "null": {"contextTokens": None},
}
OTHER: dict[str, dict[str, Any]] = {
    "context": {"contextTokens": 4096},
    "zero is not empty": {"contextTokens": 0},
    "order of options": {"engine": {"args": ["--b", "--a"]}},
    "inside a passthrough": {"pod": {"volumes": [{"name": "a", "emptyDir": {}}]}},
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME.keys())
def test_a_change_that_needs_no_new_pods_keeps_the_revision(change: dict[str, Any]) -> None:
    assert revision_hash({"model": "m"} | change, {}) == revision_hash({"model": "m"}, {"other": "1"})


BESIDE_PODS = {"servedNames", "replicas", "suspend", "scaling", "rollout", "disruption", "prefetch"}
# Setting one of these replaces all pods. A field comes in here only after somebody has decided that it must.
IN_PODS = {
    "model": [],
    "source": ["uri", "revision", "secretRef", "endpoint", "file"],
    "adapters": ["name", "source"],
    "contextTokens": [],
    "workload": ["concurrency", "inputTokens", "outputTokens"],
    "hardware": ["products", "maxGpusPerReplica", "maxNodesPerReplica", "resourceName"],
    "parallelism": ["tensor", "pipeline"],
    "engine": [
        "image",
        "version",
        "args",
        "env",
        "kvCacheType",
        "toolCallParser",
        "reasoningParser",
        "fastStart",
        "startupSeconds",
    ],
    "pod": [
        "labels",
        "annotations",
        "priorityClassName",
        "imagePullSecrets",
        "nodeSelector",
        "tolerations",
        "affinity",
        "topologySpreadConstraints",
        "runtimeClassName",
        "schedulerName",
        "serviceAccountName",
        "resources",
        "volumes",
        "volumeMounts",
        "securityContext",
    ],
}


def test_every_field_of_the_spec_declares_whether_it_changes_pods() -> None:
    declared = {camel(field.name): field.metadata["changes_pods"] for field in fields(Spec)}
    assert declared == dict.fromkeys(IN_PODS, True) | dict.fromkeys(BESIDE_PODS, False)


def test_every_member_of_a_group_that_changes_pods_was_decided_on() -> None:
    hints = get_type_hints(Spec)
    members = {}
    for field in fields(Spec):
        if field.metadata["changes_pods"]:
            kinds = [kind for kind in (hints[field.name], *get_args(hints[field.name])) if is_dataclass(kind)]
            members[camel(field.name)] = [camel(member.name) for kind in kinds for member in fields(kind)]
    assert members == IN_PODS


def test_a_field_that_declares_nothing_replaces_no_pods() -> None:
    """A forgotten declaration, or a field of a later version: its pods stay, and the status offers the newer plan."""
    assert revision_hash({"model": "m", "ofALaterVersion": 1}, {}) == revision_hash({"model": "m"}, {})


def test_fields_of_a_later_version_change_no_hash_of_objects_without_them() -> None:
    """Eight digits that the version before the workload and the type of the cache gave."""
    spec = {"model": "Qwen/Qwen1.5-72B-Chat", "engine": {"args": ["--schedule-policy=lpm"]}, "contextTokens": 8192}
    assert revision_hash(spec, {}) == "c14da742"


def test_the_order_of_adapters_is_no_revision() -> None:
    one, two = ({"name": name, "source": {"uri": f"pvc://a/{name}"}} for name in "ab")
    hashes = {revision_hash({"model": "m", "adapters": listed}, {}) for listed in ([one, two], [two, one])}
    assert len(hashes) == 1
    assert revision_hash({"model": "m", "adapters": [one]}, {}) not in hashes
    assert revision_hash({"model": "m", "adapters": []}, {}) == revision_hash({"model": "m"}, {})


def test_every_other_change_is_a_revision_of_its_own() -> None:
    specs: list[dict[str, Any]] = [{"model": "m"}, {"model": "n"}, {"model": "m", "engine": {"args": ["--a", "--b"]}}]
    specs += [{"model": "m"} | change for change in OTHER.values()]
    hashes = {revision_hash(spec, {}) for spec in specs}
    hashes |= {revision_hash({"model": "m"}, {"qwen-operator.dev/replan": value}) for value in ("1", "2")}
    assert len(hashes) == len(specs) + 2
    assert all(len(value) == 8 for value in hashes)
