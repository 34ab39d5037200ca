"""The rules about tenants in Python, by the table that the API server's policy keeps too."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.api.engine import Engine
from qwen_operator.api.fields import camel
from qwen_operator.api.pod import Pod
from qwen_operator.engines import of
from qwen_operator.planning.engine_args import RESERVED
from qwen_operator.tenancy.judge import refused
from qwen_operator.tenancy.lists import BUILT_IN, Mode, Setting, Tenancy, matches
from qwen_operator.tenancy.options import ENGINE_OPTIONS, ENGINE_VARIABLES
from qwen_operator.tenancy.rules import FREE, RULES, option_name
from tests.tenancy import ALLOWED, CODE, RATCHET, REFUSED, Case, args, engine, pod, toleration, variable, volume

TENANCY = Tenancy(engine_image="localhost/sglang-cpu")


def fields_of(case: Case, tenancy: Tenancy = TENANCY, namespace: str = "team") -> set[str]:
    return {one.field.partition("[")[0] for one in refused(case.spec, tenancy, namespace, case.before)}


@pytest.mark.parametrize("case", [*ALLOWED, *REFUSED, *RATCHET], ids=lambda case: case.id)
def test_the_table(case: Case) -> None:
    assert fields_of(case) == ({case.refused} if case.refused else set())


def test_every_field_has_a_rule_or_needs_none() -> None:
    """A new field of the API is refused here until somebody decides about it."""
    named = {
        f"spec.{part}.{camel(one.name)}" for part, cls in (("pod", Pod), ("engine", Engine)) for one in fields(cls)
    }
    ruled = {".".join(("spec", *rule.path[:2])) for rule in RULES}
    assert ruled | set(FREE) == named
    assert not ruled & set(FREE)


def test_every_rule_refuses_and_allows_something_in_the_table() -> None:
    assert {case.refused for case in REFUSED} == {rule.name for rule in RULES}


def test_a_message_names_field_value_and_who_may_allow_it() -> None:
    (one,) = refused(pod(priorityClassName="system-node-critical"), TENANCY, "team")
    assert one.message == (
        "spec.pod.priorityClassName: 'system-node-critical' is not allowed here: a tenant gets the cluster's default "
        "PriorityClass; the platform team may allow it with the chart value tenancy.priorityClasses"
    )
    (second,) = refused(pod(tolerations=[{"key": "nvidia.com/gpu"}, {"operator": "Exists"}]), TENANCY, "team")
    assert second.message.startswith("spec.pod.tolerations[1]: {'operator': 'Exists'} is not allowed here: ")


EXTENDED = {
    Setting.PRIORITY_CLASSES: (("high",), pod(priorityClassName="high")),
    Setting.SERVICE_ACCOUNTS: (("builder",), pod(serviceAccountName="builder")),
    Setting.RUNTIME_CLASSES: (("kata",), pod(runtimeClassName="kata")),
    Setting.SCHEDULERS: (("other",), pod(schedulerName="other")),
    Setting.IMAGES: (("registry.example.com/ai/*",), engine(image="registry.example.com/ai/sglang:v1")),
    Setting.ENGINE_ARGS: ((CODE,), args(CODE)),
    Setting.ENV: (("SGLANG_*",), variable("SGLANG_PORT", value="1")),
    Setting.VOLUME_TYPES: (("hostPath",), volume(hostPath={"path": "/x"})),
    Setting.MOUNT_PATHS: (
        ("/opt/*",),
        pod(volumes=[{"name": "v", "emptyDir": {}}], volumeMounts=[{"name": "v", "mountPath": "/opt/x"}]),
    ),
    Setting.SECURITY_CONTEXT: (("runAsUser",), pod(securityContext={"runAsUser": 0})),
    Setting.TOLERATIONS: (("dedicated",), toleration(key="dedicated", value="x")),
    Setting.POD_AFFINITY_FIELDS: (
        ("namespaces",),
        pod(affinity={"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"namespaces": ["x"]}]}}),
    ),
    Setting.RESOURCES: (("rdma/*",), pod(resources={"limits": {"rdma/ib": 1}})),
    Setting.LABELS: (("cost.example.com/*",), pod(labels={"cost.example.com/center": "1"})),
    Setting.ANNOTATIONS: (("prometheus.io/scrape",), pod(annotations={"prometheus.io/scrape": "true"})),
}


@pytest.mark.parametrize("setting", [one for one in Setting if one is not Setting.MODELS])
def test_the_platform_team_extends_every_list(setting: Setting) -> None:
    entries, spec = EXTENDED[setting]
    assert refused(spec, TENANCY, "team")
    assert not refused(spec, Tenancy(added={setting: entries}), "team")
    only = Tenancy(by_namespace={"team": {setting: entries}})
    assert not refused(spec, only, "team")
    assert refused(spec, only, "other")


def test_trusted_and_exempt_objects_are_not_judged() -> None:
    assert TENANCY.judges("team", "chat")
    assert not Tenancy(mode=Mode.TRUSTED).judges("team", "chat")
    exempt = Tenancy(exempt=frozenset({"team/chat"}))
    assert (exempt.judges("team", "chat"), exempt.judges("team", "other")) == (False, True)


def test_the_built_in_options_exist_and_load_nothing() -> None:
    names = {option_name(entry) for entry in ENGINE_OPTIONS}
    assert names <= set(of("0.5.23").options.options)
    assert not names & set(RESERVED)
    # With an entry for any value, the entries for some values would mean nothing.
    assert not set(ENGINE_OPTIONS) & {option_name(entry) for entry in ENGINE_OPTIONS if "=" in entry}
    words = ("trust", "path", "custom-weight", "url", "endpoint", "port", "api-key", "hook", "plugin", "config", "file")
    assert [name for name in ENGINE_OPTIONS if any(f"-{word}" in name for word in words)] == []
    assert "--host" not in ENGINE_OPTIONS
    assert [name for name in ENGINE_VARIABLES if name.startswith("LD_")] == []
    bad = ("PYTHON", "NVIDIA_", "PATH", "PROXY", "PLUGIN", "ENDPOINT", "PACKAGE")
    assert [name for name in ENGINE_VARIABLES if any(word in name for word in bad)] == []
    assert all("*" not in entry for setting in (Setting.ENGINE_ARGS, Setting.ENV) for entry in BUILT_IN[setting])


def test_the_platform_team_may_allow_one_value_of_an_option() -> None:
    one = Tenancy(added={Setting.ENGINE_ARGS: ("--load-format=sharded_state",)})
    assert not refused(args("--load-format=sharded_state"), one, "team")
    for words in (["--load-format=pt"], ["--load-format", "sharded_state"], ["--load-format"]):
        assert refused(args(*words), one, "team")


def test_a_tag_has_no_slash() -> None:
    """sglang:5000/evil is an image of the registry sglang with the port 5000."""
    assert matches("sglang:v1", ("sglang:*",))
    assert not matches("sglang:5000/evil", ("sglang:*",))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FORMS = {
    "tolerations": st.lists(st.dictionaries(st.sampled_from(["key", "effect", "tolerationSeconds", "x"]), JSON)),
    "volumes": st.lists(st.dictionaries(st.sampled_from(["name", "emptyDir", "projected", "hostPath"]), JSON)),
    "volumeMounts": st.lists(st.dictionaries(st.sampled_from(["name", "mountPath", "x"]), JSON)),
    "securityContext": st.dictionaries(st.sampled_from(["runAsUser", "supplementalGroups", "seccompProfile"]), JSON),
    "affinity": st.dictionaries(st.sampled_from(["podAffinity", "nodeAffinity", "x"]), JSON),
}


@given(st.fixed_dictionaries({}, optional=FORMS))
def test_free_form_fields_never_raise(members: dict[str, Any]) -> None:
    refused({"pod": members}, TENANCY, "team", {"pod": members})
    refused({"pod": members}, TENANCY, "team")
