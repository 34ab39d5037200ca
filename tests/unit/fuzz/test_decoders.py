"""Every decoder gets what nobody should write. It raises nothing but its own error, and its answer is bounded."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_operator import objects, untrusted
from qwen_operator.api.conditions import MESSAGE_LIMIT, clip
from qwen_operator.api.spec import InvalidSpec, parse, revision_hash
from qwen_operator.checkpoints import records
from qwen_operator.checkpoints.facts import InvalidFactsError
from qwen_operator.hardware.inventory import inventory
from qwen_operator.kube.decoding import MOST_LEVELS, decode
from qwen_operator.manifests.names import ANNOTATION_CORDONED_SINCE, ANNOTATION_DRAINING_SINCE, ANNOTATION_REPLICA_PODS
from qwen_operator.manifests.revisions import UnreadableRevisionError, read_revision
from qwen_operator.replicas.failures import report_of
from qwen_operator.replicas.groups import groups_of
from qwen_operator.replicas.node_health import node_health
from qwen_operator.replicas.pod_state import as_of, last_failure, read_pod, stored_failure
from qwen_operator.replicas.scaling_view import scaled_deployment, shown
from qwen_operator.routing.membership import EntryNaming, GatewayView, Membership, advance, restore
from qwen_operator.scaling.histograms import LARGEST_NUMBER
from qwen_operator.scaling.page import Reading
from tests.unit.fuzz.values import NASTY, anything, either, fuzzed, leaves, nested, record
from tests.unit.scaling.world import read_page

NOW = datetime(2026, 11, 24, 13, 0, tzinfo=UTC)
NAME = "chat-0a1b2c3d-0"
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")

ends = record("exitCode", "reason", "message", "startedAt", "finishedAt", "signal", inner=leaves)
states = record("terminated", "waiting", "running", inner=either(ends))
containers = st.builds(
    lambda name, rest: {"name": name, **rest},
    st.sampled_from(["engine", "qwen-runtime", "side"]),
    record("restartCount", "state", "lastState", "started", "image", inner=either(states)),
)
conditions = st.builds(
    lambda kind, rest: {"type": kind, **rest},
    st.sampled_from(["Ready", "PodScheduled", "ScalingActive"]),
    record("status", "message", "reason", "lastTransitionTime", inner=leaves),
)
statuses = st.fixed_dictionaries(
    {},
    optional={
        "phase": either(st.sampled_from(["Running", "Failed", "Pending", "Succeeded"])),
        "reason": either(st.sampled_from(["Evicted"])),
        "message": leaves,
        "podIP": either(st.sampled_from(["10.0.0.1", "fd00::1", "fe80::1%eth0"])),
        "conditions": either(st.lists(either(conditions), max_size=3)),
        "containerStatuses": either(st.lists(either(containers), max_size=3)),
        "initContainerStatuses": either(st.lists(either(containers), max_size=2)),
    },
)
engine_specs = st.builds(
    lambda rest: {"containers": [{"name": "engine", **rest}]},
    record("command", "args", "startupProbe", inner=either(st.lists(leaves, max_size=3))),
)
pod_annotations = st.dictionaries(
    st.sampled_from([ANNOTATION_CORDONED_SINCE, ANNOTATION_DRAINING_SINCE, ANNOTATION_REPLICA_PODS]),
    st.one_of(st.text(), st.sampled_from([value for value in NASTY if isinstance(value, str)])),
)
pods = st.builds(
    lambda status, spec, notes: {
        "metadata": {
            "name": NAME,
            "namespace": "team",
            "uid": "u",
            "annotations": notes,
            "labels": {"qwen-operator.dev/deployment": "chat"},
        },
        "spec": spec,
        "status": status,
    },
    either(statuses),
    either(engine_specs),
    pod_annotations,
)
deployment_statuses = st.fixed_dictionaries(
    {},
    optional={
        "lastFailure": either(record("reason", "phase", "pod", "exitCode", "time", "count", "log")),
        "scaling": either(record("wanted", "reason", "message", "since", inner=leaves)),
        "summary": either(record("load", inner=leaves)),
        "conditions": either(st.lists(either(conditions), max_size=3)),
    },
)


def terminated(message: Any) -> dict[str, Any]:
    end = {"exitCode": 1, "message": message}
    return {
        "metadata": {"name": NAME},
        "status": {"containerStatuses": [{"name": "engine", "state": {"terminated": end}}]},
    }


def clean(text: str, limit: int) -> bool:
    return len(text) <= limit and not UNSAFE.search(text)


@fuzzed
@given(st.one_of(st.binary(), st.text(alphabet='[]{}",:\\a1 \ud800'), anything.map(repr), st.just("[" * 100_000)))
def test_any_bytes_are_a_bounded_value_or_a_value_error(content: bytes | str) -> None:
    try:
        value = decode(content)
    except ValueError:
        return
    assert untrusted.size_of(value).levels <= MOST_LEVELS + 4


@fuzzed
@given(st.integers(1, 3000), st.sampled_from(['{"a":', "[", '[{"]}":']))
def test_only_what_is_too_deep_is_lost(levels: int, opening: str) -> None:
    closing = "".join({"[": "]", "{": "}"}[char] for char in reversed(opening.replace('"]}"', "")) if char in "[{")
    text = f'{{"before":1,"deep":{opening * levels}0{closing * levels},"after":"]}}"}}'
    value = untrusted.decode(text, 40)
    assert (value["before"], value["after"]) == (1, "]}")
    assert untrusted.size_of(value).levels <= 40
    if levels <= 10:
        assert value == json.loads(text)


@fuzzed
@given(anything, st.integers(10, 300))
def test_any_value_is_one_clean_line(value: Any, limit: int) -> None:
    assert clean(untrusted.clean(value, limit), limit)


@fuzzed
@given(either(pods))
def test_any_pod_has_a_state(pod: Any) -> None:
    if objects.malformed(pod) is not None:
        return
    state = as_of(read_pod(pod, "chat"), NOW)
    assert clean(clip(state.message), MESSAGE_LIMIT)
    failure = last_failure({}, [state])
    if failure is not None:
        assert len(failure.log) <= 10
        assert all(clean(line, 200) for line in (*failure.log, failure.phase, failure.time))
        assert -(2**31) <= failure.exit_code < 2**31
        assert 0 < failure.count <= 1_000_000
    for replica in groups_of([state]):
        since = replica.drains_since(NOW)
        assert since is None or since.year <= 9000


@pytest.mark.parametrize("message", NASTY, ids=range(len(NASTY)))
def test_any_termination_message_has_a_failure(message: Any) -> None:
    state = read_pod(terminated(message), "chat")
    assert state.failure is not None
    assert state.failure.reason != "Serving"
    assert all(clean(line, 200) for line in (*state.failure.log, state.failure.phase))


@fuzzed
@given(either(pods), either(deployment_statuses))
def test_scaling_sees_any_deployment(pod: Any, status: Any) -> None:
    deployment = {"metadata": {"name": "chat", "namespace": "team", "uid": "u"}, "status": status}
    if objects.malformed(pod) is None:
        scaled = scaled_deployment(deployment, groups_of([read_pod(pod, "chat")]))
        assert scaled.size is None or 0 <= scaled.size <= 10_000
        assert all(0 <= engine.limit <= 999_999_999 for engine in scaled.engines)
    state = shown(deployment)
    assert state is None or clean(state.message, MESSAGE_LIMIT)
    failure = stored_failure(objects.mapping(deployment, "status", "lastFailure"))
    assert failure is None or failure.count >= 1


@fuzzed
@given(st.lists(either(pods), max_size=3), either(deployment_statuses))
def test_the_agent_advances_past_any_pod(manifests: list[Any], status: Any) -> None:
    meta = {"name": "chat", "namespace": "team", "uid": "u", "creationTimestamp": "2026-11-24T12:00:00Z"}
    view = GatewayView(
        [{"metadata": meta, "spec": {"model": "m"}, "status": status}],
        [pod for pod in manifests if objects.malformed(pod) is None],
        None,
    )
    advanced = advance(view, Membership(), EntryNaming(nonce="n", cluster_domain="cluster.local"))
    assert restore(advanced.content()).entries == advanced.entries


@fuzzed
@given(anything.map(lambda value: json.dumps(value, default=str)) | st.text())
def test_the_agent_reads_any_file(content: str) -> None:
    assert restore(content).serial == 0


@fuzzed
@given(anything)
def test_any_report_gives_facts_or_its_own_error(message: Any) -> None:
    text = message if isinstance(message, str) else _json(message)
    report = report_of({"message": text})
    assert untrusted.size_of(report).levels <= 16
    with suppress(InvalidFactsError):
        records.from_inspection(report)


def _json(value: Any) -> str:
    try:
        return json.dumps(value)
    except ValueError:
        return "9" * 5000


series = st.builds(
    lambda name, labels, value: f"sglang:{name}{labels} {value}",
    st.sampled_from(["num_running_reqs", "num_queue_reqs", "num_used_tokens", "max_total_num_tokens", "token_usage"]),
    st.sampled_from(
        ["", '{model_name="m"}', '{model_name="m",dp_rank="1"}', "{" + 'a="' * 400, '{a="' + '\\"' * 900 + '"}']
    ),
    st.sampled_from(["1", "0", "-1", "NaN", "Inf", "8e307", "1e15", "9" * 400, "x", "", "1 2", "1 " + "9" * 400])
    | st.text(max_size=5),
)


@fuzzed
@given(st.lists(series, max_size=30).map("\n".join) | st.text())
@example("\n".join(f"sglang:num_{name} 8e307" for name in ("running_reqs", "queue_reqs", "used_tokens")))
def test_any_page_is_a_bounded_reading_or_trouble(page: str) -> None:
    reading = read_page(page, "")
    if isinstance(reading, Reading):
        numbers = (reading.running, reading.queued, reading.inside, reading.tokens_used, reading.tokens_capacity)
        assert all(0 <= number <= LARGEST_NUMBER for number in numbers)
    else:
        assert clean(reading.detail, 500)


specs = record(
    "model", "servedNames", "source", "contextTokens", "workload", "hardware", "parallelism", "engine", "replicas",
    "scaling", "rollout", "pod",
    inner=either(record("affinity", "tolerations", "volumes", "env", "args", "resources", "labels", "uri")),
)  # fmt: skip


@fuzzed
@given(either(specs))
@example({"contextTokens": 10**4000})
def test_any_spec_is_read_or_refused(spec: Any) -> None:
    untrusted.cut_deep(spec, MOST_LEVELS)
    with suppress(InvalidSpec):
        parse({"metadata": {"name": "chat"}, "spec": spec})
    if isinstance(spec, dict) and untrusted.size_of(spec).levels <= MOST_LEVELS:
        assert len(revision_hash(spec, {})) == 8


@fuzzed
@given(st.lists(record("labels", "spec", "status"), max_size=3))
def test_any_node_is_counted_or_left_out(parts: list[dict[str, Any]]) -> None:
    nodes = [{"metadata": {"name": f"n{index}"}, **part} for index, part in enumerate(parts)]
    assert inventory(nodes, ()) is not None
    assert len(node_health(nodes).names) == len(nodes)


@fuzzed
@given(record("data", "revision", inner=either(record("facts", "plan", "template"))))
@example({"data": {"facts": nested(90)}, "revision": 1})
def test_any_revision_is_read_or_unreadable(manifest: dict[str, Any]) -> None:
    untrusted.cut_deep(manifest, MOST_LEVELS)
    with pytest.raises(UnreadableRevisionError) as caught:
        read_revision({"metadata": {"name": "chat-0a1b2c3d"}, **manifest})
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"pod": {"affinity": nested(5000)}}, "spec.pod.affinity: the object has more than 32 levels, it must"),
        ({"pod": {"affinity": nested(40)}}, "spec.pod.affinity: the object has 40 levels, it must have at most 32"),
        ({"pod": {"tolerations": [{}, nested(33)]}}, "spec.pod.tolerations[1]: the object has 33 levels"),
        ({"engine": {"env": [{"name": "A", "valueFrom": nested(33)}]}}, "env[0].valueFrom: the object has 33"),
        ({"pod": {"affinity": {"a": [1] * 3000}}}, "3001 keys and entries, it must have at most 2048"),
        ({"pod": {"affinity": {"a": "x" * 20_000}}}, "20001 characters, it must have at most 16384"),
        ({"pod": {"volumes": [{"name": "x" * 16_000}] * 20}}, "spec: the object has 320"),
        ({"engine": nested(5000)}, "spec.engine.a: there is no such field"),
        ({"model": nested(5000)}, "spec.model: a value of the type dict must be text"),
        ({"contextTokens": 10**5000}, "spec.contextTokens: a value of the type int must be at most 16777216"),
    ],
)  # fmt: skip
def test_a_spec_without_bounds_names_the_field_and_the_bound(spec: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse({"metadata": {"name": "chat"}, "spec": {"model": "m", **spec}})
    assert any(problem in sentence for sentence in caught.value.problems), caught.value.problems
