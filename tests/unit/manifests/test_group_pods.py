"""The pods of a replica over several nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qwen_operator.api.spec import InvalidSpec
from qwen_operator.manifests import names
from qwen_operator.manifests.engine_pods import ReplicaPods, engine_pods
from tests.unit.manifests.made import IDENTITY, engine_pod_of, only_container, plan_of, spec_of, template_of


def _pair(**spec: Any) -> tuple[dict[str, Any], ...]:
    """The pods of a replica over two nodes."""
    parsed = spec_of(**spec)
    planned = replace(plan_of(parsed), nodes_per_replica=2, gpus_per_replica=16)
    return engine_pods(ReplicaPods(IDENTITY, 3, 2), template_of(parsed, planned), 600)


def test_members_of_a_replica_know_their_place_from_labels_and_annotations() -> None:
    leader, worker = _pair()
    for rank, pod in enumerate((leader, worker)):
        labels = pod["metadata"]["labels"]
        assert pod["metadata"]["name"] == f"demo-0a1b2c3d-3-{rank}"
        assert (labels[names.LABEL_REPLICA], labels[names.LABEL_RANK]) == ("demo-0a1b2c3d-3", str(rank))
        assert pod["spec"]["schedulingGates"] == [{"name": "qwen-operator.dev/group"}]
        paths = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in only_container(pod)["env"][-4:]}
        assert paths == {
            "QWEN_NODE_RANK": "metadata.labels['qwen-operator.dev/rank']",
            "QWEN_POD_NAME": "metadata.name",
            "QWEN_POD_UID": "metadata.uid",
            "QWEN_POD_IP": "status.podIP",
        }
        [volume] = [one for one in pod["spec"]["volumes"] if one["name"] == "qwen-group"]
        [item] = volume["downwardAPI"]["items"]
        assert item["fieldRef"]["fieldPath"] == "metadata.annotations['qwen-operator.dev/group-leader']"
    assert {key: value for key, value in leader["spec"].items() if key != "containers"} == {
        key: value for key, value in worker["spec"].items() if key != "containers"
    }


def test_kueue_admits_the_pods_of_a_replica_together_if_the_user_names_a_queue() -> None:
    queue, group = {"kueue.x-k8s.io/queue-name": "gpus"}, "kueue.x-k8s.io/pod-group-name"
    for pod in _pair(pod={"labels": queue}):
        assert pod["metadata"]["labels"][group] == "demo-0a1b2c3d-3"
        assert pod["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "2"
    for pod in _pair(pod={"labels": {**queue, group: "mine"}}):
        assert pod["metadata"]["labels"][group] == "mine"
        assert "kueue.x-k8s.io/pod-group-total-count" not in pod["metadata"]["annotations"]
    assert not any("kueue" in str(pod["metadata"]) for pod in _pair())


def test_a_volume_of_the_user_has_no_name_of_the_group() -> None:
    leader, _ = _pair(pod={"volumes": [{"name": "group", "emptyDir": {}}]})
    volumes = [one["name"] for one in leader["spec"]["volumes"]]
    assert len(set(volumes)) == len(volumes)
    with pytest.raises(InvalidSpec, match="one of the operator's own volumes"):
        _pair(pod={"volumes": [{"name": "qwen-group", "emptyDir": {}}]})


def test_a_user_of_dollar_signs_reads_no_variable_of_the_group() -> None:
    leader, _ = _pair(engine={"env": [{"name": "A", "value": "$(QWEN_NODE_RANK)"}]})
    [variable] = [one for one in only_container(leader)["env"] if one["name"] == "A"]
    assert variable["value"] == "$$(QWEN_NODE_RANK)"
    assert only_container(leader)["command"][-1] == "--node-rank=$(QWEN_NODE_RANK)"


def test_members_are_apart_and_keep_the_affinity_of_the_user() -> None:
    required, preferred = (f"{word}DuringSchedulingIgnoredDuringExecution" for word in ("required", "preferred"))
    term = {"labelSelector": {"matchLabels": {"app": "other"}}, "topologyKey": "zone"}
    own = {"podAntiAffinity": {required: [term]}, "podAffinity": {preferred: [{"weight": 1, "podAffinityTerm": term}]}}
    for pod in _pair(pod={"affinity": own}):
        affinity = pod["spec"]["affinity"]
        assert affinity["podAffinity"] == own["podAffinity"]
        assert affinity["podAntiAffinity"][required] == [
            term,
            {
                "labelSelector": {"matchLabels": {"qwen-operator.dev/replica": "demo-0a1b2c3d-3"}},
                "topologyKey": "kubernetes.io/hostname",
            },
        ]


def test_the_start_of_a_replica_over_several_nodes_may_wait_for_its_pods() -> None:
    alone, (leader, worker) = only_container(engine_pod_of()), _pair()
    attempts = [only_container(pod)["startupProbe"]["failureThreshold"] for pod in (leader, worker)]
    assert attempts == [alone["startupProbe"]["failureThreshold"] + 1200 // 5] * 2
